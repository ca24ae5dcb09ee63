"""From evidence to advice: which layer to use, what it saves, and why."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from operators.ranking.evidence import Evidence, LayerEvidence
from operators.ranking.scores import TIE, Array

Policy = Literal["best", "cheapest_equal", "last_unless_significant"]
Kind = Literal["use_layer", "keep_last", "not_enough_evidence", "no_labels"]
Reason = Literal[
    "no_labels",
    "no_score",
    "single_score",
    "highest",
    "highest_and_cheapest",
    "none_cheaper_as_good",
    "as_good_as_best",
    "none_higher",
    "proven",
    "unproven",
]
Costs = Mapping[int, float]


@dataclass(frozen=True)
class Verdict:
    """What to do: the layer that the policy takes, and why.

    `kind` says how it was found: `use_layer` a layer below the last; `keep_last` the last one;
    `not_enough_evidence` when nothing shows that the layer that leads is really better: then
    `layer` is a guess, or the last layer if the policy asks for proof; `no_labels` without any
    labelled task. `saved` is the share of the last layer's compute that is not spent, 0..1.

    `reason` is what decided: no labelled task; no layer with a score on every task; a single score,
    which has no interval; the highest score, alone, at the lowest cost, or with no cheaper layer
    within one standard error; a cheaper layer within one standard error of the best; no other layer
    higher than the last; a gain that is proven, or is not.
    """

    kind: Kind
    layer: int
    saved: float
    reason: Reason


def recommend(
    evidence: Evidence, cost_L: Sequence[float] | Array, policy: Policy = "cheapest_equal"
) -> Verdict:
    """Take a layer by a policy; `cost_L` is the cost of every layer of `evidence`, 1 = the last.

    - `best`: the highest score, whatever its interval.
    - `cheapest_equal`: the one-standard-error rule (Breiman, Friedman, Olshen and Stone 1984,
      *Classification and Regression Trees*, section 3.4.3): the cheapest layer whose shortfall is
      at most one standard error. Theirs is the standard error of the best score; ours is that of
      the paired difference to the best, which is smaller, as what makes a task hard for every
      layer cancels. Where nothing was drawn, the best.
    - `last_unless_significant`: the best layer if its p-value, corrected by Holm for one test per
      layer, is below 1 - level and the interval of its gain lies above 0; else the last.

    Of equally good layers the cheapest counts, of equally cheap ones the best, then the lowest.
    ValueError for costs that do not fit the layers or lie outside 0..1, and an unknown policy.
    """
    layers, cost_L = [row.layer for row in evidence.layers], np.asarray(cost_L, np.float64)
    if cost_L.shape != (len(layers),):
        raise ValueError(f"expected one cost for each of {len(layers)} layers, got {cost_L.shape}")
    costs = dict(zip(layers, cost_L.tolist(), strict=True))
    for layer, cost in costs.items():
        if not 0 <= cost <= 1:
            raise ValueError(f"the cost of layer {layer} is {cost:g}, not a share of the last's")
    if policy not in get_args(Policy):
        raise ValueError(f"unknown policy {policy!r}; choose from {', '.join(get_args(Policy))}")
    last = evidence.last
    highest = [row for row in evidence.layers if row.rank == 1 and not np.isnan(row.score)]
    best = min(highest, key=lambda row: (costs[row.layer], row.layer), default=None)
    if not evidence.tasks and not evidence.unscored:
        return Verdict("no_labels", last.layer, 0.0, "no_labels")
    if best is None:
        return Verdict("not_enough_evidence", last.layer, 0.0, "no_score")
    kind, taken, reason = _POLICIES[policy](evidence, costs, best)
    return Verdict(kind, taken.layer, 1 - costs[taken.layer], reason)


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


_Taken = tuple[Kind, LayerEvidence, Reason]


def _take_best(evidence: Evidence, _: Costs, best: LayerEvidence) -> _Taken:
    if best.layer == evidence.last.layer:
        return "keep_last", best, "none_higher"
    if np.isnan(best.score_low):
        return "not_enough_evidence", best, "single_score"
    return "use_layer", best, "highest"


def _take_cheapest_equal(evidence: Evidence, costs: Costs, best: LayerEvidence) -> _Taken:
    if np.isnan(best.shortfall_se):
        return _take_best(evidence, costs, best)
    equal = [row for row in evidence.layers if row.shortfall <= row.shortfall_se + TIE]
    # A tied best layer has a shortfall of 0, so `equal` has at least the best.
    taken = min(equal, key=lambda row: (costs[row.layer], row.rank, row.layer))
    if taken.layer == evidence.last.layer:
        return "keep_last", taken, "none_cheaper_as_good"
    if taken.rank > 1:
        return "use_layer", taken, "as_good_as_best"
    is_cheapest = costs[taken.layer] == min(costs.values())
    return "use_layer", taken, "highest_and_cheapest" if is_cheapest else "none_cheaper_as_good"


def _take_last_unless_significant(evidence: Evidence, _: Costs, best: LayerEvidence) -> _Taken:
    last = evidence.last
    if last.rank == 1 and not np.isnan(last.score):
        return "keep_last", last, "none_higher"
    if best.gain_low > 0 and best.p_holm < 1 - evidence.level:
        return "use_layer", best, "proven"
    return "not_enough_evidence", last, "unproven"


_POLICIES: dict[Policy, Callable[[Evidence, Costs, LayerEvidence], _Taken]] = {
    "best": _take_best,
    "cheapest_equal": _take_cheapest_equal,
    "last_unless_significant": _take_last_unless_significant,
}
