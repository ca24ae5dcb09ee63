"""What a verdict says, from its kind and reason and the evidence; in points, 100 x score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.words import counted, known, numbered, share
from operators.ranking.evidence import Evidence, LayerEvidence
from operators.ranking.policy import Verdict
from operators.ranking.scores import TIE

# With so few tasks an interval is much too narrow, and the sentence says how many there were.
FEW_TASKS = 5

_SHOWN = 0.1  # points; below this one decimal is too few
_NAMED = 3  # tasks that a sentence names before it only counts them


@dataclass(frozen=True)
class Gap:
    """The layers in which a task has no score, and why where that is known."""

    task: str
    layers: list[int]
    reason: str

    @property
    def because(self) -> str:
        """The reason in brackets; nothing if it is not known."""
        return f" ({self.reason})" if self.reason else ""


def answer(evidence: Evidence, verdict: Verdict) -> str:
    """Return what to do, in at most twelve words."""
    layer, last = verdict.layer, evidence.last.layer
    if verdict.kind == "use_layer":
        return f"Use layer {layer} of {last}."
    if verdict.kind == "keep_last":
        return f"Keep the last layer, {last}."
    lacking = "Nothing is labelled" if verdict.kind == "no_labels" else "Not enough evidence"
    guess = f"layer {layer} of {last} is a guess"
    return f"{lacking}: {guess if layer != last else f'keep the last layer, {last}, for now'}."


def sentence(evidence: Evidence, verdict: Verdict) -> str:
    """Return the verdict in a sentence or two: what to do, why, by how much, and how sure."""
    row, last = _row(evidence, verdict.layer), evidence.last
    if verdict.reason == "no_labels":
        # The figures are `task_regrets` on the scores of 32 tasks that the authors of arXiv
        # 2502.02013 released, and how often the best single layer beats the last in 19 models and
        # checkpoints. On Pythia-410M alone the rule loses 2.7 points and the labels of other tasks
        # 1.5. On its checkpoints the rule loses 2.7 to 4.2 from step 4000 on and 10.6 to 17.6
        # before, where layer 0 is the best.
        return (
            f"Layer {row.layer} (2/3 of the depth) is a guess, because no labelled task has scores "
            "to compare. On the published scores of Pythia-160M and 410M this rule loses 2.2 "
            "points to the best layer of each task, less than any metric's choice; the labels of "
            "other tasks lose 1.7. On checkpoints from the first 1,000 steps it loses 11 to 18. "
            "The best single layer beat the last in 18 of 19 published models and checkpoints, so "
            "the last is no safe choice either. A small labelled task would decide."
        )
    if verdict.reason == "no_score":
        lacking = "no layer was scored on every task"
        if not evidence.tasks:
            lacking = "no labelled task has a score in any layer"
        return f"Not enough evidence: {lacking}; this leaves the last layer ({row.layer})."
    if verdict.reason == "single_score":
        found = _guess(row)
        if not known(row.gain):
            found = (
                f"Not enough evidence: layer {row.layer} scores highest, but the last layer "
                f"({last.layer}) was not scored on every task, and a single score of one task "
                "gives no interval"
            )
        return f"{found}; take it as a guess."
    if verdict.reason == "unproven":
        return _unproven(evidence)
    if verdict.kind == "keep_last":
        rows = [each for each in evidence.layers if known(each.score)]
        others = [each for each in rows if each.layer != last.layer]
        because = "there is no other layer with a score"
        if others:
            nearest = max(others, key=lambda each: (each.score, -each.layer))
            scores = f"scores {_amount(nearest)}{_bracket(evidence, nearest)}"
            because = f"{why(evidence, verdict)}; the nearest, layer {nearest.layer}, {scores}"
        return f"Keep the last layer ({last.layer}): {because}."
    clause = f"it {_gain(evidence, row)} and saves {_saved(verdict)} of the compute"
    if not known(row.gain):
        clause = (
            f"it saves {_saved(verdict)} of the compute, but the last layer "
            f"({last.layer}) was not scored on every task, so no gain over it is known"
        )
    return f"Use layer {row.layer}: {why(evidence, verdict)}; {clause}."


def why(evidence: Evidence, verdict: Verdict) -> str:
    """Return what decided, as a clause."""
    row, nobody = _row(evidence, verdict.layer), "no cheaper layer comes within one standard error"
    if verdict.reason == "as_good_as_best":
        best = evidence.best
        assert best is not None
        last = ", the last" if best.layer == evidence.last.layer else ""
        return (
            f"the cheapest that cannot be told from the best (layer {best.layer}{last}, "
            f"{_points(row.shortfall)} points more)"
        )
    if verdict.reason == "none_higher":
        return "no other layer scores more"
    if verdict.reason == "none_cheaper_as_good":
        highest = "it scores highest" if verdict.kind == "keep_last" else _highest(evidence, row)
        return f"{highest}, and {nobody} of it"
    if verdict.reason == "proven":
        above = f"significantly above the last layer's ({_corrected(evidence, row)})"
        return f"{_highest(evidence, row)}, {above}"
    return {
        "highest": _highest(evidence, row),
        "highest_and_cheapest": f"{_highest(evidence, row)} at the lowest cost",
        "single_score": "a single score of one task gives no interval",
        "unproven": "no gain over the last layer is proven",
        "no_score": "no layer can be compared",
        "no_labels": "no labelled task has scores to compare",
    }[verdict.reason]


def advice(evidence: Evidence, verdict: Verdict) -> str:
    """Return what to do with a verdict."""
    again = "and run again: the stored vectors are used as they are"
    if verdict.kind == "keep_last":
        return "Go on with the model as it is."
    if verdict.kind == "use_layer":
        cut = f"Cut the model after block {verdict.layer} of {evidence.last.layer}"
        if verdict.layer == 0:
            cut = "Take the input embeddings, for which no block has to run"
        return f"{cut}; “layerrank export” writes that model."
    if verdict.reason == "no_labels":
        return f"Give a dataset of the config a labelled task, even a small one, {again}."
    if verdict.reason == "no_score":
        return f"See which scores are undefined, mend or leave out those tasks, {again}."
    return f"Add labelled tasks, or folds, before relying on it, {again}."


def not_counted(why_of: Mapping[str, str]) -> str:
    """Name the tasks that are not in the ranking and, in a clause, why each is not."""
    if len(why_of) == 1:
        ((task, reason),) = why_of.items()
        return f"Task {task} is not in the ranking: {reason}."
    named = _some([f"{task}, because {reason}" for task, reason in why_of.items()])
    return f"{len(why_of)} tasks are not in the ranking: {named}."


def not_compared(gaps: Sequence[Gap]) -> str:
    """Name the layers that tasks in the ranking have no score in, which leaves these layers out."""
    layers = sorted({layer for gap in gaps for layer in gap.layers})
    left_out = f"{numbered(layers).capitalize()} {'is' if len(layers) == 1 else 'are'} not in the"
    if len(gaps) == 1:
        return f"{left_out} ranking: task {gaps[0].task} has no score there{gaps[0].because}."
    named = _some([f"{gap.task} in {numbered(gap.layers)}{gap.because}" for gap in gaps])
    return f"{left_out} ranking: {len(gaps)} tasks have no score there: {named}."


def dropped(layers: Sequence[int]) -> str:
    """Name the layers that a search left without a score."""
    return (
        f"The search dropped {numbered(layers)} early: more than one standard error behind the "
        "best, so not to be recommended."
    )


def _unproven(evidence: Evidence) -> str:
    """Say why the last layer stays although another one scores more."""
    last, best = evidence.last, evidence.best
    assert best is not None
    if not known(best.gain):
        return (
            f"Not enough evidence: the last layer ({last.layer}) was not scored on every task, so "
            f"no gain over it is known; this keeps it, though layer {best.layer} scores highest."
        )
    kept = f"this keeps the last layer ({last.layer})."
    if not known(best.gain_low):
        return f"{_guess(best)}; {kept}"
    if best.gain_low > 0:
        leads = f"{_gain(evidence, best)}, but {_corrected(evidence, best)}"
    else:
        few = f" ({_few(evidence)})" if _few(evidence) else ""
        interval = f"{_interval(evidence, best)}{few}"
        leads = f"scores {_amount(best)} than the last layer, but the {interval} {_place(best)}"
    return f"Not enough evidence: layer {best.layer} {leads}; {kept}"


def _highest(evidence: Evidence, row: LayerEvidence) -> str:
    """Say that a layer scores highest, alone or with others."""
    others = [each.layer for each in evidence.layers if each.rank == 1 and each.layer != row.layer]
    if not others:
        return "the highest score"
    costs = "costs" if len(others) == 1 else "cost"
    return f"the highest score (shared with {numbered(others)}, which {costs} as much or more)"


def _row(evidence: Evidence, layer: int) -> LayerEvidence:
    return next(row for row in evidence.layers if row.layer == layer)


def _saved(verdict: Verdict) -> str:
    return share(verdict.saved).replace("<", "less than ")


def _guess(best: LayerEvidence) -> str:
    return (
        f"Not enough evidence: layer {best.layer} scores highest, {_than_last(best)}, but a single "
        "score of one task gives no interval"
    )


def _gain(evidence: Evidence, row: LayerEvidence) -> str:
    """Return "scores 5.1 points more than the last layer (95 % interval 3.8 to 6.5)"."""
    return f"scores {_than_last(row)}{_bracket(evidence, row)}"


def _than_last(row: LayerEvidence) -> str:
    return f"{_amount(row)} {'as' if abs(row.gain) <= TIE else 'than'} the last layer"


def _amount(row: LayerEvidence) -> str:
    if abs(row.gain) <= TIE:
        return "as much"
    return f"{_points(abs(row.gain))} points {'more' if row.gain > 0 else 'less'}"


def _bracket(evidence: Evidence, row: LayerEvidence) -> str:
    """Return the interval of the gain in brackets; nothing if there is none."""
    if not known(row.gain_low):
        return ""
    few = f"; {_few(evidence)}" if _few(evidence) else ""
    if row.gain <= TIE:
        return f" ({_interval(evidence, row, ' of the gain')}{few})"
    doubt = "" if row.gain_low > 0 else f", which {_place(row)}"
    return f" ({_interval(evidence, row)}{doubt}{few})"


def _interval(evidence: Evidence, row: LayerEvidence, of_gain: str = "") -> str:
    span = f"{_points(row.gain_low)} to {_points(row.gain_high)}"
    return f"{100 * evidence.level:g} % interval{of_gain} {span}"


def _place(row: LayerEvidence) -> str:
    """Return where an interval lies that is not above 0."""
    return "includes 0" if row.gain_high >= 0 else "lies below 0"


def _few(evidence: Evidence) -> str:
    """Return "from 3 tasks" where tasks are few, else nothing."""
    tasks = len(evidence.tasks)
    return "" if tasks > FEW_TASKS else f"from {counted(tasks, 'task')}"


def _corrected(evidence: Evidence, row: LayerEvidence) -> str:
    n_tests = sum(known(each.p_value) for each in evidence.layers)
    after = "" if n_tests == 1 else f" after Holm's correction for {n_tests} comparisons"
    return f"p = {row.p_holm:.2g}{after}"


def _points(value: float) -> str:
    """A score or a difference in points, with more decimals where one would show only 0.0."""
    points = round(100 * value, 4) + 0.0
    return f"{points:.2g}" if 0 < abs(points) < _SHOWN else f"{points:.1f}"


def _some(parts: Sequence[str]) -> str:
    """Return the first of several clauses, and how many more there are."""
    more = len(parts) - _NAMED
    return "; ".join([*parts[:_NAMED], *([f"and {more} more"] if more > 0 else [])])
