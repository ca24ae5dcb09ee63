"""From evidence to advice: which layer to use, what it saves, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from layerrank.operators.ranking.evidence import LEAST_SHARE, Choice, Evidence
from layerrank.operators.ranking.intervals import FEWEST_TO_TEST
from layerrank.operators.ranking.scores import TIE, Array

Kind = Literal["use_layer", "keep_last", "not_enough_evidence", "no_labels"]
Sure = Literal["new_task", "these_tasks", "nothing"]
Reason = Literal[
    "no_labels",
    "no_score",
    "no_last",
    "single_score",
    "unsure",
    "highest",
    "as_good_as_best",
    "none_cheaper_as_good",
    "none_higher",
    "no_other_layer",
    "few_tasks",
    "proven",
    "unproven",
]


@dataclass(frozen=True)
class Verdict:
    """What to do: the layer that the policy takes, and why.

    `kind` says how it was found: `use_layer` a layer below the last whose gain is sure somewhere,
    or the last with other vectors than the baseline's; `keep_last` the baseline;
    `not_enough_evidence` when nothing shows that the layer that the policy takes is really better:
    then `layer` is a guess, or the last layer if the policy asks for proof; `no_labels` without any
    labelled task. `saved` is the share of the last layer's compute that is not spent, 0..1. `sure`
    says where the gain lies above 0 with the level of the intervals: on a new task, on these tasks
    only, or nowhere.

    `reason` is what decided: no labelled task; no layer that can be compared, or no score of the
    last one to compare with; scores that show no spread, so no interval; a gain whose intervals
    include 0; the highest score; a cheaper layer within one standard error of the best, or none; no
    other layer higher than the last; other vectors of the last that lead, but not surely; too few
    tasks for a test; a gain that is proven, or is not.
    """

    kind: Kind
    layer: int
    saved: float
    reason: Reason
    sure: Sure = "nothing"


def recommend(evidence: Evidence, cost_L: Sequence[float] | Array) -> Verdict:
    """Turn the choice of a policy (`choosing.choose`) into advice; `cost_L` as `weigh` had it.

    A layer below the last is advice where an interval of its gain lies above 0, which it does only
    if choosing without one of the tasks, or folds, gains as well; else it is a guess.
    `last_unless_significant` takes it only if the test by sign flips (`intervals.sign_flips`),
    corrected for all layers, is below 1 - level; with fewer than six tasks no such test exists.
    Where nothing is above the last layer it stays, unless `cheapest_equal` finds an equal one that
    is cheaper.

    ValueError for costs that do not fit the layers or lie outside 0..1.
    """
    layers, cost_L = [row.layer for row in evidence.layers], np.asarray(cost_L, np.float64)
    if cost_L.shape != (len(layers),):
        raise ValueError(f"expected one cost for each of {len(layers)} layers, got {cost_L.shape}")
    costs = dict(zip(layers, cost_L.tolist(), strict=True))
    for layer, cost in costs.items():
        if not 0 <= cost <= 1:
            raise ValueError(f"the cost of layer {layer} is {cost:g}, not a share of the last's")
    last, choice = evidence.last.layer, evidence.choice
    if choice is None or len(evidence.tasks) < LEAST_SHARE * _scored(evidence):
        kind, reason = _nothing(evidence)
        return Verdict(kind, last, 0.0, reason)
    kind, reason, sure = _judge(evidence, choice)
    stays = evidence.policy == "last_unless_significant" and kind != "use_layer"
    layer = last if stays or kind == "keep_last" else choice.layer
    return Verdict(kind, layer, 1 - costs[layer], reason, sure)


def _scored(evidence: Evidence) -> int:
    """Return how many tasks have a score in some layer."""
    return len(evidence.tasks) + len(evidence.without_last)


def _nothing(evidence: Evidence) -> tuple[Kind, Reason]:
    """Return why there is nothing to choose from."""
    if _scored(evidence):
        return "not_enough_evidence", "no_last"
    return ("not_enough_evidence", "no_score") if evidence.unscored else ("no_labels", "no_labels")


def _judge(evidence: Evidence, choice: Choice) -> tuple[Kind, Reason, Sure]:
    """Return what a choice is as advice, why, and where its gain is sure."""
    row, sure = evidence.row(choice.layer), _sure(choice)
    cheapest = evidence.policy == "cheapest_equal"
    kept = evidence.candidates[choice.row] is evidence.baseline
    if kept or (evidence.baseline.rank == 1 and not cheapest):
        return "keep_last", "none_cheaper_as_good" if cheapest else "none_higher", "nothing"
    if evidence.policy == "last_unless_significant":
        if row.p_max < 1 - evidence.level:
            return "use_layer", "proven", "new_task"
        few = row.n_tasks < FEWEST_TO_TEST
        return "not_enough_evidence", "few_tasks" if few else "unproven", sure
    found: Reason = "highest" if row.rank == 1 else "as_good_as_best"
    if sure != "nothing":
        return "use_layer", found, sure
    if choice.layer == evidence.last.layer:
        return "keep_last", "no_other_layer", sure
    if found == "highest":
        unknown = np.isnan(choice.low) and np.isnan(choice.here_low)
        found = "single_score" if unknown else "unsure"
    return "not_enough_evidence", found, sure


def _sure(choice: Choice) -> Sure:
    """Return where the gain of a choice lies above 0 with its interval."""
    # Both reach down to the corrected gain, so neither is above 0 unless that is.
    if choice.low > 0:
        return "new_task"
    return "these_tasks" if choice.here_low > 0 else "nothing"


def pareto(
    score_L: Sequence[float] | Array, cost_L: Sequence[float] | Array
) -> npt.NDArray[np.bool_]:
    """Return which layers lie on the front of score against cost, [L].

    A layer lies on it unless another one scores more at the same or a lower cost, or the same at a
    lower cost. Layers that are equal in both share their place; a layer without a score (NaN) has
    none. ValueError if the lengths differ or a cost is not a number.
    """
    score_L, cost_L = np.asarray(score_L, np.float64), np.asarray(cost_L, np.float64)
    if score_L.shape != cost_L.shape or score_L.ndim != 1 or not np.isfinite(cost_L).all():
        raise ValueError(
            f"expected a score and a finite cost of every layer, got {score_L.shape} scores and "
            f"{cost_L.shape} costs, {np.count_nonzero(~np.isfinite(cost_L))} of them not finite"
        )
    more_LL = score_L[None] > score_L[:, None] + TIE
    same_LL = np.abs(score_L[None] - score_L[:, None]) <= TIE
    no_dearer_LL, cheaper_LL = cost_L[None] <= cost_L[:, None], cost_L[None] < cost_L[:, None]
    beaten_L = ((more_LL & no_dearer_LL) | (same_LL & cheaper_LL)).any(axis=1)
    front_L: npt.NDArray[np.bool_] = ~beaten_L & ~np.isnan(score_L)
    return front_L
