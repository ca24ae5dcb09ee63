"""What a verdict says, from its kind and reason and the evidence; in points, 100 x score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from layerrank.jobs.words import capital, counted, known, listed, numbered, share, signed
from layerrank.operators.analysis import labelfree
from layerrank.operators.model.subject import Kind, Vectors
from layerrank.operators.ranking.evidence import Choice, Evidence, LayerEvidence, LeftOut
from layerrank.operators.ranking.intervals import FEWEST_TASKS, FEWEST_TO_TEST
from layerrank.operators.ranking.policy import Verdict

_SHOWN = 0.1  # points; below this one decimal is too few
_NAMED = 3  # tasks that a sentence names before it only counts them
# Labelled texts in all, as tests/bench/advice/few_labels measures it on a decoder.
_ENOUGH, _TOO_FEW = (80, 130), 64
_MOST_ITEMS = 100  # times as many items as there are; more is no advice
AFTER: dict[LeftOut, str] = {
    "tasks": "after choosing on all tasks but one",
    "folds": "after choosing on all folds but one of the only task",
    "items": "corrected for choosing on the same items",
    "nothing": "as it stands",
}


@dataclass(frozen=True)
class Gap:
    """The layers in which a task has no score, and why where that is known."""

    task: str
    layers: list[int]
    reason: str = ""

    @property
    def because(self) -> str:
        """The reason in brackets; nothing if it is not known."""
        return f" ({self.reason})" if self.reason else ""


_POOLED = {
    "mean": "pooled by the mean",
    "mean_no_first": "without the first token",
    "last": "pooled by the last token",
    "first": "pooled by the first token",
    "weighted_mean": "pooled by the weighted mean",
}
_NORMED = {"none": "without the final norm", "final": "with the final norm"}
TRANSFORMED = {
    "raw": "as they are",
    "l2": "scaled to unit length",
    "z": "standardised",
    "abtt": "without their top directions",
}


def different(vectors: Vectors, plain: Vectors) -> str:
    """Return in words what vectors are beside those that are ranked in every layer."""
    words = zip((_NORMED, _POOLED, TRANSFORMED), vectors, plain, strict=True)
    return listed([of[mine] for of, mine, theirs in words if mine != theirs])


def named(vectors: Vectors, plain: Vectors) -> str:
    """Return what differs from the ranked vectors in the words of a config; nothing if nothing."""
    return " ".join(mine for mine, theirs in zip(vectors, plain, strict=True) if mine != theirs)


def answer(evidence: Evidence, verdict: Verdict, how: str = "") -> str:
    """Return what to do, in about twelve words; `how` says what is done to the vectors."""
    layer, last = verdict.layer, evidence.last.layer
    if verdict.kind == "use_layer" and layer == last:
        keep = f"eep the last layer, {last}, {how}."
        return f"K{keep}" if verdict.sure == "new_task" else f"On these tasks, k{keep}"
    if verdict.kind == "use_layer":
        use = f"se layer {layer} of {last}{f', {how}' if how else ''}."
        return f"U{use}" if verdict.sure == "new_task" else f"On these tasks, u{use}"
    if verdict.kind == "keep_last":
        return f"Keep the last layer, {last}."
    lacking = "Nothing is labelled" if verdict.kind == "no_labels" else "Not enough evidence"
    guess = f"layer {layer} of {last} is a guess"
    return f"{lacking}: {guess if layer != last else f'keep the last layer, {last}'}."


def sentence(evidence: Evidence, verdict: Verdict, how: str = "") -> str:
    """Return the verdict in a few sentences: what to do, why, by how much, how sure, what next.

    `how` says what is done to the vectors of the choice.
    """
    last, choice = evidence.last, evidence.choice
    if choice is None or verdict.reason in ("no_score", "no_last"):
        return (
            f"Not enough evidence: {why(evidence, verdict)}; this leaves the last ({last.layer})."
        )
    if verdict.kind == "keep_last":
        return f"Keep the last layer ({last.layer}): {_nearest(evidence, verdict)}."
    sure = gain(evidence, choice)
    if verdict.kind == "use_layer":
        start = answer(evidence, verdict, how).rstrip(".")
        saves = "" if verdict.layer == last.layer else f", and saves {_saved(verdict)}"
        said = f"{start}: {why(evidence, verdict)}; {sure}{saves}."
    else:
        leads = "leads" if evidence.row(choice.layer).rank == 1 else "is taken"
        leads = f"Layer {choice.layer}{f', {how},' if how else ''} {leads}"
        said = f"Not enough evidence: {why(evidence, verdict)}. {leads}: {sure}."
        if verdict.layer == last.layer:
            said += f" This keeps the last layer ({last.layer})."
    return " ".join(filter(None, [said, settles(evidence, verdict)]))


def unlabelled(kind: Kind | None, layer: int) -> str:
    """Return what is known of a model without any label: why this layer, and what would help."""
    keep = f"Keep the last layer ({layer})"
    if kind == "embedding model":
        return (
            f"{keep}: the model was trained so that what is pooled from it is the embedding, and "
            "nothing is labelled that could say otherwise."
        )
    found = labelfree.EVIDENCE.get(kind) if kind else None
    few = (
        f"with a decoder, {_ENOUGH[0]} to {_ENOUGH[1]} labelled texts in all were enough on three "
        f"real sets to come within 2 points of the best layer, {_TOO_FEW} were not"
    )
    if found is None:
        told = "no model of this kind was measured that says which layer is better"
    elif not known(found.half):
        told = (
            f"one model of the kind {kind} was measured, in which the best layer scored "
            f"{_points(found.highest)} points more, and one says little of another"
        )
    elif found.is_settled:
        return (
            f"Layer {layer}, {share(float(found.share))} of the depth, without any label: on "
            f"{found.models} models of the kind {kind} the depth that the others choose gains "
            f"{_points(found.gain)} points over the last layer, ± {_points(found.half)}."
        )
    else:
        told = (
            f"on {found.models} models of the kind {kind} the depth that the others choose gains "
            f"{_points(found.gain)} points over the last layer, ± {_points(found.half)}, although "
            f"each has a layer that is {_span(found.lowest, found.highest)} points better"
        )
    return (
        f"{keep}: nothing is labelled, and no depth is known to be better. "
        f"{capital(told)}. A small labelled set decides: {few}."
    )


def why(evidence: Evidence, verdict: Verdict) -> str:
    """Return what decided, as a clause."""
    row, choice = evidence.row(verdict.layer), evidence.choice
    tasks, all_tasks = len(evidence.tasks), len(evidence.tasks) + len(evidence.without_last)
    leader = evidence.row(choice.layer) if choice else row
    if verdict.reason == "as_good_as_best":
        best = evidence.best
        assert best is not None
        last = ", the last" if best.layer == evidence.last.layer else ""
        return (
            f"the cheapest that cannot be told from the best (layer {best.layer}{last}, "
            f"{_points(row.shortfall)} points more)"
        )
    if verdict.reason == "none_cheaper_as_good":
        return "no cheaper layer comes within one standard error of the best"
    if verdict.reason == "proven":
        return f"{_highest(evidence, row)}, above the last by a test ({_corrected(evidence, row)})"
    if verdict.reason == "unproven":
        return f"no gain over the last layer is proven ({_corrected(evidence, leader)})"
    return {
        "highest": _highest(evidence, row),
        "none_higher": "no other layer scores more",
        "no_other_layer": "no other layer scores more, and no other vectors of it surely do",
        "single_score": f"nothing shows how far the gain of layer {leader.layer} may vary",
        "unsure": "nothing shows that the lead is more than chance",
        "few_tasks": (
            f"a test needs {FEWEST_TO_TEST} tasks, and layer {leader.layer} has scores in "
            f"{leader.n_tasks}"
        ),
        "no_score": "no labelled task has a score in any layer",
        "no_last": (
            f"the last layer ({evidence.last.layer}) has a score in {tasks} of "
            f"{counted(all_tasks, 'task')}, and every gain is over it"
        ),
        "no_labels": "no labelled task has scores to compare",
    }[verdict.reason]


def gain(evidence: Evidence, choice: Choice) -> str:
    """Return the gain of a choice, the corrected one first, and in brackets how sure it is."""
    tasks, parts = evidence.row(choice.layer).n_tasks, []
    over = "that layer as it is" if choice.layer == evidence.last.layer else "the last layer"
    gained = f"it {_gains(choice.naive)} {over}"
    if known(choice.gain):
        gained = f"it {_gains(choice.gain)} {over}, {AFTER[choice.left_out]}"
        parts.append(f"{_points(choice.naive)} as it stands")
    spans = _spans((choice.here_low, choice.here_high), (choice.low, choice.high))
    if spans:
        parts.append(f"{100 * evidence.level:g} % interval {', '.join(spans)}")
    if tasks < FEWEST_TASKS:
        say = "says" if tasks == 1 else "say"
        parts.append(f"{counted(tasks, 'task')} {say} nothing of a new one")
    return f"{gained} ({'; '.join(parts)})" if parts else gained


def without_depth(choice: Choice, alone: Choice, how: str, plain_gain: float, saved: float) -> str:
    """Say what vectors of the last layer `alone` gain, and those of the choice's layer as ranked.

    So that nobody takes what was done to the vectors for the layer's doing. `how` says what is done
    to those of the last layer, nothing if they stay as they are; `saved` what the choice saves.
    """
    if choice.layer == alone.layer:
        rest = ""
    else:
        more = f"{signed(choice.naive - alone.naive)}"
        if known(choice.gain) and known(alone.gain):
            more = f"{signed(choice.gain - alone.gain)} to that ({more} as it stands)"
        rest = f"; to choose among all layers adds {more}"
    if rest and saved:
        rest += f", and saves {share(saved)} of the compute"
    if not how:
        said = f"On the last layer alone nothing that is done to the vectors scores more{rest}."
    else:
        gained, after = alone.naive, "as it stands"
        if known(alone.gain):
            gained, after = alone.gain, AFTER[alone.left_out]
        said = f"On the last layer alone vectors {how} gain {signed(gained)} points, {after}{rest}."
    if choice.layer != alone.layer and known(plain_gain):
        said += f" Layer {choice.layer} without any of this gains {signed(plain_gain)}."
    return said


def tried(choice: Choice) -> str:
    """Return on what choosing was tried that did not help to choose."""
    return {"tasks": "choosing on all tasks but one", "folds": "choosing on all folds but one"}.get(
        choice.left_out, "choosing on items drawn anew"
    )


def settles(evidence: Evidence, verdict: Verdict) -> str:
    """Return what would settle what is not sure: more tasks, more items; nothing if all is."""
    choice, parts = evidence.choice, list[str]()
    if choice is None or verdict.kind not in ("use_layer", "not_enough_evidence"):
        return ""
    tasks = evidence.row(choice.layer).n_tasks
    if verdict.reason == "few_tasks":
        more = max(FEWEST_TO_TEST - tasks, choice.more_tasks or 0)
        return f"What would settle it: {counted(more, 'more task')}."
    if verdict.sure == "new_task":
        return ""
    if tasks < len(evidence.tasks):
        parts.append(f"the scores that layer {choice.layer} lacks")
    if verdict.sure == "nothing" and 1 < choice.more_items <= _MOST_ITEMS:
        times = _times(choice.more_items)
        parts.append(f"for these tasks about {times} as many labelled items, or folds of them")
    if choice.more_tasks is not None:
        parts.append(f"for a new task about {counted(choice.more_tasks, 'more task')} like these")
    elif tasks < FEWEST_TASKS:
        parts.append(f"for a new task at least {FEWEST_TASKS} tasks, of the kinds that matter")
    if parts:
        return f"What would settle it: {'; '.join(parts)}."
    return "From these scores it cannot be said how many more tasks or items would settle it."


def task_types(evidence: Evidence) -> str:
    """Return the types of the tasks that the advice rests on, as a clause; nothing if unknown."""
    types = {
        name if ":" in name else name.replace("_", " "): count
        for name, count in sorted(evidence.types.items())
        if name
    }
    if not types:
        return ""
    if len(types) == 1:
        (only,) = types
        return f"all of the type {only}, so of other types nothing is known"
    return listed([f"{count} {name}" for name, count in types.items()])


def advice(evidence: Evidence, verdict: Verdict) -> str:
    """Return what to do with a verdict."""
    again = "and run again: the stored vectors are used as they are"
    if verdict.kind == "keep_last":
        return "Go on with the model as it is."
    if verdict.kind == "use_layer":
        cut = f"Cut the model after block {verdict.layer} of {evidence.last.layer}"
        if verdict.layer == evidence.last.layer:
            cut = "Take the whole model with these vectors"
        if verdict.layer == 0:
            cut = "Take the input embeddings, for which no block has to run"
        return f"{cut}; “layerrank export FOLDER --ranking OUTPUT” writes that."
    if verdict.reason == "no_labels":
        return f"Give it labels, even a few (a folder or a column of them, or a task), {again}."
    if verdict.reason == "no_score":
        return f"See which scores are undefined, mend or leave out those tasks, {again}."
    if verdict.reason == "no_last":
        return (
            f"Score layer {evidence.last.layer} on the other tasks, or leave its scores out: then "
            "the layer below is what the others are compared with."
        )
    return f"Add labelled tasks, or items, before relying on it, {again}."


def not_counted(why_of: Mapping[str, str]) -> str:
    """Name the tasks that are not in the ranking and, in a clause, why each is not."""
    same: dict[str, list[str]] = {}
    for task, reason in why_of.items():
        same.setdefault(reason, []).append(task)
    named = [f"{_some(tasks, ', ')}, because {reason}" for reason, tasks in same.items()]
    are = "1 task is" if len(why_of) == 1 else f"{len(why_of)} tasks are"
    return f"{are} not in the ranking: {_some(named)}."


def holes(evidence: Evidence, gaps: Sequence[Gap]) -> list[str]:
    """Say which layers lack tasks, and what that means for them; `gaps` say which, and why."""
    tasks, found = len(evidence.tasks), []
    thin = evidence.thin
    if thin:
        least, most = (of(row.n_tasks for row in thin) for of in (min, max))
        counts = f"{least}" if least == most else f"{least} to {most}"
        are, have = ("is", "has") if len(thin) == 1 else ("are", "have")
        found.append(
            f"{capital(numbered([row.layer for row in thin]))} {are} not recommended: "
            f"{'it' if are == 'is' else 'they'} {have} scores in {counts} of {tasks} tasks, "
            "fewer than half."
        )
    partly = [row for row in evidence.layers if row.rank is not None and row.n_tasks < tasks]
    if partly:
        least = min(row.n_tasks for row in partly)
        lacks, its = ("lacks", "its gain is") if len(partly) == 1 else ("lack", "their gains are")
        found.append(
            f"{capital(numbered([row.layer for row in partly]))} {lacks} tasks: {its} over the "
            f"tasks that {'it has' if len(partly) == 1 else 'they have'}, "
            f"{'' if len(partly) == 1 else 'at least '}{least} of {tasks}."
        )
    compared = {row.layer for row in partly}
    same: dict[str, list[str]] = {}
    for gap in gaps:
        if these := sorted(compared & {*gap.layers}):
            same.setdefault(f"in {numbered(these)}{gap.because}", []).append(gap.task)
    named = [f"{_some(of_layers, ', ')} {where}" for where, of_layers in same.items()]
    return [*found, *([f"Missing: {_some(named)}."] if named else [])]


def dropped(layers: Sequence[int]) -> str:
    """Name the layers that a search left without a score."""
    return (
        f"The search dropped {numbered(layers)} early: more than one standard error behind the "
        "best, so not to be recommended."
    )


def _times(factor: float) -> str:
    return "twice" if factor < 2.5 else f"{factor:.0f} times"  # noqa: PLR2004  (2.5 rounds to 3)


def _nearest(evidence: Evidence, verdict: Verdict) -> str:
    """Say why the last layer stays, with the layer that comes nearest."""
    others = [row for row in evidence.layers[:-1] if row.rank is not None]
    if not others:
        return "there is no other layer with a score"
    nearest = max(others, key=lambda row: (row.gain, -row.layer))
    behind = f"{_points(abs(nearest.gain))} points {'more' if nearest.gain > 0 else 'less'}"
    if not round(nearest.gain, 12):
        behind = "as much"
    spans = _spans((nearest.here_low, nearest.here_high), (nearest.gain_low, nearest.gain_high))
    sure = f" ({100 * evidence.level:g} % interval of the gain {', '.join(spans)})" if spans else ""
    clause = f"{why(evidence, verdict)}; the nearest, layer {nearest.layer}, scores {behind}{sure}"
    choice = evidence.choice
    if choice is None or not known(choice.gain) or choice.left_out == "nothing":
        return clause
    return f"{clause}; {tried(choice)} gains {signed(choice.gain)} points"


def _highest(evidence: Evidence, row: LayerEvidence) -> str:
    """Say that a layer scores highest, alone or with others."""
    others = [each.layer for each in evidence.layers if each.rank == 1 and each.layer != row.layer]
    if not others:
        return "the highest score"
    costs = "costs" if len(others) == 1 else "cost"
    return f"the highest score (shared with {numbered(others)}, which {costs} as much or more)"


def _saved(verdict: Verdict) -> str:
    return f"{share(verdict.saved).replace('<', 'less than ')} of the compute"


def _spans(here: tuple[float, float], new: tuple[float, float]) -> list[str]:
    """Return the intervals that there are, on these tasks and on a new one."""
    both = {"on these tasks": here, "on a new task": new}
    return [f"{_span(*ends)} {where}" for where, ends in both.items() if known(ends[0])]


def _span(low: float, high: float) -> str:
    return f"{_points(low)} to {_points(high)}"


def _gains(value: float) -> str:
    points = f"{_points(abs(value))} points"
    return f"gains {points} over" if value >= 0 else f"is {points} below"


def _corrected(evidence: Evidence, row: LayerEvidence) -> str:
    n_tests = sum(known(each.p_max) for each in evidence.layers)
    among = "" if n_tests == 1 else f" among {n_tests} layers"
    return f"p = {row.p_max:.2g} by sign flips{among}"


def _points(value: float) -> str:
    """A score or a difference in points, with more decimals where one would show only 0.0."""
    points = round(100 * value, 4) + 0.0
    return f"{points:.2g}" if 0 < abs(points) < _SHOWN else f"{points:.1f}"


def _some(parts: Sequence[str], between: str = "; ") -> str:
    """Return the first of several clauses, and how many more there are."""
    more = len(parts) - _NAMED
    return between.join([*parts[:_NAMED], *([f"and {more} more"] if more > 0 else [])])
