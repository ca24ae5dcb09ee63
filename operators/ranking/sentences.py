"""The sentences of a verdict, in points: 100 x score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from operators.ranking.evidence import Evidence, LayerEvidence
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


def no_labels(last: LayerEvidence) -> str:
    """With no labelled task."""
    return (
        "No labelled task has scores to compare, so no score says which layer to use; the last "
        f"layer ({last.layer}) is what a model gives by default."
    )


def no_score(evidence: Evidence) -> str:
    """With tasks that leave no layer to compare."""
    if not evidence.tasks:
        reason = "no labelled task has a score in any layer"
    else:
        reason = "no layer was scored on every task"
    return f"Not enough evidence: {reason}; this leaves the last layer ({evidence.last.layer})."


def not_counted(why_of: Mapping[str, str]) -> str:
    """Name the tasks that are not in the ranking and, in a clause, why each is not."""
    if len(why_of) == 1:
        ((task, why),) = why_of.items()
        return f"Task {task} is not in the ranking: {why}."
    named = _some([f"{task}, because {why}" for task, why in why_of.items()])
    return f"{len(why_of)} tasks are not in the ranking: {named}."


def not_compared(gaps: Sequence[Gap]) -> str:
    """Name the layers that tasks in the ranking have no score in, which leaves these layers out."""
    layers = sorted({layer for gap in gaps for layer in gap.layers})
    left_out = f"{_listed(layers).capitalize()} {'is' if len(layers) == 1 else 'are'} not in the"
    if len(gaps) == 1:
        return f"{left_out} ranking: task {gaps[0].task} has no score there{gaps[0].because}."
    named = _some([f"{gap.task} in {_listed(gap.layers)}{gap.because}" for gap in gaps])
    return f"{left_out} ranking: {len(gaps)} tasks have no score there: {named}."


def use(evidence: Evidence, row: LayerEvidence, why: str, saved: float) -> str:
    """Advise a layer below the last: why, its gain over the last layer, and what it saves."""
    clause = f"it {_gain(evidence, row)} and saves {_share(saved)} of the compute"
    if np.isnan(row.gain):
        clause = (
            f"it saves {_share(saved)} of the compute, but the last layer ({evidence.last.layer}) "
            "was not scored on every task, so no gain over it is known"
        )
    return f"Use layer {row.layer}: {why}; {clause}."


def highest(evidence: Evidence, row: LayerEvidence) -> str:
    """Say that a layer scores highest, alone or with others."""
    others = [each.layer for each in evidence.layers if each.rank == 1 and each.layer != row.layer]
    if not others:
        return "the highest score"
    costs = "costs" if len(others) == 1 else "cost"
    return f"the highest score (shared with {_listed(others)}, which {costs} as much or more)"


def cannot_be_told(evidence: Evidence, row: LayerEvidence, best: LayerEvidence) -> str:
    """Say that a layer is the cheapest within one standard error of the best."""
    last = ", the last" if best.layer == evidence.last.layer else ""
    return (
        f"the cheapest that cannot be told from the best (layer {best.layer}{last}, "
        f"{_points(row.shortfall)} points more)"
    )


def proven(evidence: Evidence, row: LayerEvidence) -> str:
    """Say that a layer is significantly better than the last."""
    corrected = _corrected(evidence, row)
    return f"{highest(evidence, row)}, significantly above the last layer's ({corrected})"


def unproven(evidence: Evidence, best: LayerEvidence) -> str:
    """Say why the last layer stays although another one scores more."""
    last = evidence.last
    if np.isnan(best.gain):
        return (
            f"Not enough evidence: the last layer ({last.layer}) was not scored on every task, so "
            f"no gain over it is known; this keeps it, though layer {best.layer} scores highest."
        )
    kept = f"this keeps the last layer ({last.layer})."
    if np.isnan(best.gain_low):
        return f"{_guess(best)}; {kept}"
    if best.gain_low > 0:
        leads = f"{_gain(evidence, best)}, but {_corrected(evidence, best)}"
    else:
        few = f" ({_few(evidence)})" if _few(evidence) else ""
        interval = f"{_interval(evidence, best)}{few}"
        leads = f"scores {_amount(best)} than the last layer, but the {interval} {_place(best)}"
    return f"Not enough evidence: layer {best.layer} {leads}; {kept}"


def guess(evidence: Evidence, best: LayerEvidence) -> str:
    """Name the layer that scores highest where nothing says how sure that is."""
    if np.isnan(best.gain):
        return (
            f"Not enough evidence: layer {best.layer} scores highest, but the last layer "
            f"({evidence.last.layer}) was not scored on every task, and a single score of one task "
            "gives no interval; take it as a guess."
        )
    return f"{_guess(best)}; take it as a guess."


def keep_last(evidence: Evidence, why: str) -> str:
    """Keep the last layer, and name the one that comes nearest."""
    last = evidence.last
    others = [row for row in evidence.layers if row.layer != last.layer and not np.isnan(row.score)]
    if not others:
        return f"Keep the last layer ({last.layer}): there is no other layer with a score."
    nearest = max(others, key=lambda row: (row.score, -row.layer))
    return (
        f"Keep the last layer ({last.layer}): {why}; the nearest, layer {nearest.layer}, scores "
        f"{_amount(nearest)}{_bracket(evidence, nearest)}."
    )


def _guess(best: LayerEvidence) -> str:
    than = "as the last layer" if abs(best.gain) <= TIE else "than the last layer"
    return (
        f"Not enough evidence: layer {best.layer} scores highest, {_amount(best)} {than}, but a "
        "single score of one task gives no interval"
    )


def _gain(evidence: Evidence, row: LayerEvidence) -> str:
    """Return "scores 5.1 points more than the last layer (95 % interval 3.8 to 6.5)"."""
    than = "as the last layer" if abs(row.gain) <= TIE else "than the last layer"
    return f"scores {_amount(row)} {than}{_bracket(evidence, row)}"


def _amount(row: LayerEvidence) -> str:
    if abs(row.gain) <= TIE:
        return "as much"
    return f"{_points(abs(row.gain))} points {'more' if row.gain > 0 else 'less'}"


def _bracket(evidence: Evidence, row: LayerEvidence) -> str:
    """Return the interval of the gain in brackets; nothing if there is none."""
    if np.isnan(row.gain_low):
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
    n_tasks = len(evidence.tasks)
    return "" if n_tasks > FEW_TASKS else f"from {n_tasks} task{'' if n_tasks == 1 else 's'}"


def _corrected(evidence: Evidence, row: LayerEvidence) -> str:
    n_tests = sum(not np.isnan(each.p_value) for each in evidence.layers)
    after = "" if n_tests == 1 else f" after Holm's correction for {n_tests} comparisons"
    return f"p = {row.p_holm:.2g}{after}"


def _points(value: float) -> str:
    """A score or a difference in points, with more decimals where one would show only 0.0."""
    points = round(100 * value, 4) + 0.0
    return f"{points:.2g}" if 0 < abs(points) < _SHOWN else f"{points:.1f}"


def _share(value: float) -> str:
    percent = round(100 * value)
    return f"{percent} %" if percent or not value else "less than 1 %"


def _some(parts: Sequence[str]) -> str:
    """Return the first of several clauses, and how many more there are."""
    more = len(parts) - _NAMED
    return "; ".join([*parts[:_NAMED], *([f"and {more} more"] if more > 0 else [])])


def _listed(layers: list[int]) -> str:
    names = [str(layer) for layer in sorted(layers)]
    if len(names) == 1:
        return f"layer {names[0]}"
    return f"layers {', '.join(names[:-1])} and {names[-1]}"
