"""What a report says around the verdict: what to do, how sure it is, and what it follows."""

from __future__ import annotations

import re

from jobs.findings import SubjectFinding, TaskFinding
from jobs.wording import counted, points, ranked_vectors, scored, share, size
from operators.ranking.scores import TIE
from operators.ranking.sentences import FEW_TASKS

_NEXT_SENTENCE = re.compile(r"(?<=\.) (?=[A-Z])")
_STORED = "The stored vectors are used as they are: nothing is encoded twice."
_POLICIES = {
    "best": "the layer with the highest score, whatever its interval",
    "cheapest_equal": "the cheapest layer whose score is at most one standard error of the "
    "difference below the best",
    "last_unless_significant": "the last layer, unless another one is better by Holm's test and "
    "its interval",
}


def parted(sentence: str) -> tuple[str, str]:
    """Return the first sentence of a verdict and what follows it."""
    first, *rest = _NEXT_SENTENCE.split(sentence, maxsplit=1)
    return first, "".join(rest)


def advice(subject: SubjectFinding) -> str:
    """Return what to do with the verdict, and what that saves."""
    verdict, kind = subject.verdict, subject.verdict.kind
    if kind == "use_layer":
        return f"{_cut(subject)} The command “layerrank export” writes that model."
    if kind == "keep_last":
        return (
            "Go on with the model as it is; no compute is saved "
            f"(vectors: {ranked_vectors(subject)})."
        )
    if kind == "no_labels":
        return (
            "Give a dataset of the config a labelled task, even a small one, and run again. "
            f"{_STORED} Until then the default saves {share(verdict.saved)} of the compute."
        )
    if not subject.is_scored:
        return (
            "See below which scores are undefined, mend or leave out those tasks, and run again. "
            f"{_STORED}"
        )
    if verdict.layer != subject.last:
        return (
            f"As a guess, layer {verdict.layer} would save {share(verdict.saved)} of the compute. "
            f"Add labelled tasks, or folds, before relying on it. {_STORED}"
        )
    needed = "to narrow the intervals" if has_intervals(subject) else "to have intervals"
    return (
        f"Keep the last layer for now, which saves no compute, and add labelled tasks {needed}. "
        f"{_STORED}"
    )


def _cut(subject: SubjectFinding) -> str:
    layer, saved = subject.verdict.layer, share(subject.verdict.saved)
    if layer == 0:
        return (
            "Take the input embeddings: no block of the model has to run, which saves "
            f"{saved} of the compute. Take the vectors as here: {ranked_vectors(subject)}."
        )
    return (
        f"Cut the model after block {layer} of {subject.blocks}, which saves {saved} of the "
        f"compute. Take the vectors as here: {ranked_vectors(subject)}."
    )


def certainty(subject: SubjectFinding, level: float, draws: int) -> str:
    """Return what the intervals come from, and what they leave out."""
    if not subject.is_scored:
        return ""
    tasks = counting(subject)
    folds = sorted({task.folds for task in tasks})
    each = f"{folds[0]}" if len(folds) == 1 else f"{folds[0]} to {folds[-1]}"
    said = f"{counted(len(tasks), 'task')} of {each} fold{'' if folds == [1] else 's'}"
    if not has_intervals(subject):
        return f"{said}: a single score gives no interval, and nothing says how sure it is."
    percent = f"{100 * level:g} %"
    if len(tasks) == 1:
        within = "folds" if folds[-1] > 1 else "test items"
        return (
            f"{said}. The {percent} intervals come from {draws:,} bootstrap draws of its {within}: "
            f"they show the noise of these, and nothing of other tasks. {_one_of_many(subject)}"
        )
    said = (
        f"{said} each. The {percent} intervals come from {draws:,} bootstrap draws of tasks and, "
        f"within a task, of its folds or test items. {_one_of_many(subject)}"
    )
    if len(tasks) <= FEW_TASKS:
        return (
            f"{said} From {len(tasks)} tasks they are too narrow, and p-values too small: of "
            "simulated 95 % intervals from one score each of 3 tasks 73 % held the true gain, of "
            "5 tasks 83 %, of 32 tasks 94 %."
        )
    return said


def counting(subject: SubjectFinding) -> list[TaskFinding]:
    """Return the tasks that have a score in some layer."""
    return [
        task
        for task in subject.tasks
        if any(row.tasks[task.label] is not None for row in subject.layers)
    ]


def not_counted(subject: SubjectFinding) -> list[str]:
    """Return the labels of the tasks that have no score in any layer, which no mean contains."""
    counted_tasks = counting(subject)
    return [task.label for task in subject.tasks if task not in counted_tasks]


def has_intervals(subject: SubjectFinding) -> bool:
    """Whether there was something to draw intervals from."""
    return any(row.score_low is not None for row in subject.layers)


def _one_of_many(subject: SubjectFinding) -> str:
    compared = len(scored(subject))
    if compared == 1:
        return ""
    return (
        f"Each is one layer's own, not corrected for choosing the best of {compared} layers, so "
        "the best layer's gain is a little optimistic."
    )


def policy(subject: SubjectFinding) -> str:
    """Return the rule that the verdict follows."""
    rule = _POLICIES.get(subject.policy, "")
    return f"The policy {subject.policy} takes {rule}." if rule else ""


def search(subject: SubjectFinding) -> str:
    """Return what a search left out; nothing if every layer was scored."""
    if subject.search_share is None:
        return ""
    done = f"The search did {share(subject.search_share)} of the scoring of a full sweep"
    if all(row.score is not None for row in subject.layers):
        return f"{done}; no layer could be dropped."
    return f"{done}; the layers that it dropped early have no score."


def oracle(subject: SubjectFinding) -> str:
    """Return what the best layer of each task would reach; nothing for fewer than two tasks."""
    best = max(scored(subject), key=lambda row: (row.score or 0.0, -row.layer), default=None)
    if subject.oracle is None or best is None or len(counting(subject)) == 1:
        return ""
    more = subject.oracle - (best.score or 0.0)
    if more <= TIE:
        return f"Layer {best.layer} is the best in every task: no choice by task scores more."
    return (
        f"The best layer of each task, chosen task by task, would score {points(subject.oracle)} "
        f"points, {points(more)} more than layer {best.layer}, the best single one."
    )


def latency(subject: SubjectFinding) -> str:
    """Return what the verdict's layer takes beside the whole model, and how it was measured."""
    times = {row.layer: row.latency_ms for row in subject.layers}
    layer, whole = subject.verdict.layer, f"the whole model takes {size(times[subject.last])} ms"
    if layer != subject.last:
        whole = f"layer {layer} takes {size(times[layer])} ms, {whole.replace('takes ', '')}"
    return f"Measured with {subject.measured_on}: {whole}."
