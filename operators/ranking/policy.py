"""From evidence to advice: which layer to use, what it saves, and one sentence that says why."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from operators.ranking import sentences
from operators.ranking.evidence import Evidence, LayerEvidence
from operators.ranking.scores import TIE, Array

Policy = Literal["best", "cheapest_equal", "last_unless_significant"]
Kind = Literal["use_layer", "keep_last", "not_enough_evidence", "no_labels"]
Costs = Mapping[int, float]


@dataclass(frozen=True)
class Verdict:
    """What to do: the layer that the policy takes, and a sentence that says why.

    `kind` says how it was found: `use_layer` a layer below the last; `keep_last` the last one;
    `not_enough_evidence` when nothing shows that the layer that leads is really better: then
    `layer` is a guess, or the last layer if the policy asks for proof; `no_labels` without any
    labelled task. `saved` is the share of the last layer's compute that is not spent, 0..1. The
    sentence gives scores and differences in points, 100 x score.
    """

    kind: Kind
    layer: int
    saved: float
    sentence: str


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
    costs = _checked(evidence, cost_L)
    if policy not in get_args(Policy):
        raise ValueError(f"unknown policy {policy!r}; choose from {', '.join(get_args(Policy))}")
    last, best = evidence.last, _best(evidence, costs)
    if not evidence.tasks and not evidence.unscored:
        return Verdict("no_labels", last.layer, 0.0, sentences.no_labels(last))
    if best is None:
        return Verdict("not_enough_evidence", last.layer, 0.0, sentences.no_score(evidence))
    kind, layer, sentence = _POLICIES[policy](evidence, costs, best)
    return Verdict(kind, layer, 1 - costs[layer], sentence)


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


def _checked(evidence: Evidence, cost_L: Sequence[float] | Array) -> Costs:
    layers = [row.layer for row in evidence.layers]
    costs = np.asarray(cost_L, np.float64)
    if costs.shape != (len(layers),):
        raise ValueError(f"expected one cost for each of {len(layers)} layers, got {costs.shape}")
    for layer, cost in zip(layers, costs, strict=True):
        if not 0 <= cost <= 1:
            raise ValueError(f"the cost of layer {layer} is {cost:g}, not a share of the last's")
    return {layer: float(cost) for layer, cost in zip(layers, costs, strict=True)}


def _best(evidence: Evidence, costs: Costs) -> LayerEvidence | None:
    """Return the cheapest of the layers that score highest."""
    best = [row for row in evidence.layers if row.rank == 1 and not np.isnan(row.score)]
    return min(best, key=lambda row: (costs[row.layer], row.layer), default=None)


def _take_best(evidence: Evidence, costs: Costs, best: LayerEvidence) -> tuple[Kind, int, str]:
    if best.layer == evidence.last.layer:
        return "keep_last", best.layer, sentences.keep_last(evidence, "no other layer scores more")
    if np.isnan(best.score_low):
        return "not_enough_evidence", best.layer, sentences.guess(evidence, best)
    why = sentences.highest(evidence, best)
    return "use_layer", best.layer, sentences.use(evidence, best, why, 1 - costs[best.layer])


def _take_cheapest_equal(
    evidence: Evidence, costs: Costs, best: LayerEvidence
) -> tuple[Kind, int, str]:
    if np.isnan(best.shortfall_se):
        return _take_best(evidence, costs, best)
    equal = [row for row in evidence.layers if row.shortfall <= row.shortfall_se + TIE]
    # A tied best layer has a shortfall of 0, so `equal` has at least the best.
    taken = min(equal, key=lambda row: (costs[row.layer], row.rank, row.layer))
    if taken.layer == evidence.last.layer:
        why = "it scores highest, and no cheaper layer comes within one standard error of it"
        return "keep_last", taken.layer, sentences.keep_last(evidence, why)
    if taken.rank > 1:
        why = sentences.cannot_be_told(evidence, taken, best)
    elif costs[taken.layer] == min(costs.values()):
        why = f"{sentences.highest(evidence, taken)} at the lowest cost"
    else:
        why = (
            f"{sentences.highest(evidence, taken)}, and no cheaper layer comes within one standard "
            "error of it"
        )
    return "use_layer", taken.layer, sentences.use(evidence, taken, why, 1 - costs[taken.layer])


def _take_last_unless_significant(
    evidence: Evidence, costs: Costs, best: LayerEvidence
) -> tuple[Kind, int, str]:
    last = evidence.last
    if last.rank == 1 and not np.isnan(last.score):
        return "keep_last", last.layer, sentences.keep_last(evidence, "no other layer scores more")
    if best.gain_low > 0 and best.p_holm < 1 - evidence.level:
        sentence = sentences.use(
            evidence, best, sentences.proven(evidence, best), 1 - costs[best.layer]
        )
        return "use_layer", best.layer, sentence
    return "not_enough_evidence", last.layer, sentences.unproven(evidence, best)


_POLICIES: dict[Policy, Callable[[Evidence, Costs, LayerEvidence], tuple[Kind, int, str]]] = {
    "best": _take_best,
    "cheapest_equal": _take_cheapest_equal,
    "last_unless_significant": _take_last_unless_significant,
}
