"""Choosing a layer without labels, and what each rule loses where labels exist.

Shapes: L layers, T tasks, B bootstrap draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from layerrank.operators.metrics.registry import METRICS
from layerrank.operators.model.subject import Kind

Values = npt.NDArray[np.float64]
DEPTHS = {
    "1/2 depth": Fraction(1, 2),
    "2/3 depth": Fraction(2, 3),
    "3/4 depth": Fraction(3, 4),
    "last layer": Fraction(1),
}
# Sums of scores closer than this are equal: the rest is rounding.
TIE = 1e-12
DEFAULT_RULE = "last layer"  # as no other depth is settled (`rule_for`)
OTHER_TASKS = "labels of other tasks"
READ_AS = {name: metric.read_as for name, metric in METRICS.items() if metric.read_as}


@dataclass(frozen=True)
class Choice:
    """What a rule chose and what that loses, in the unit of the score (mostly 0..1).

    `layer` is None for a rule that chooses for each task anew. The bounds are NaN where there was
    nothing to draw from.
    """

    rule: str
    layer: int | None
    score: float
    regret: float
    regret_low: float
    regret_high: float


@dataclass(frozen=True)
class Evidence:
    """What taking one depth for all models of a kind gains over the last layer.

    `share` of the depth gains most in the mean over the `models`, so many. `gain` is the mean of
    what the share that the *other* models choose gains on each, in the unit of the scores, `half`
    half of its 95 % interval, t over models: NaN of fewer than two models, and of fewer than three.
    In hindsight the best layer of each model gains `lowest` to `highest`.
    """

    models: int
    share: Fraction
    gain: float
    half: float
    lowest: float
    highest: float

    @property
    def is_settled(self) -> bool:
        """Whether the interval excludes 0, so that the share is better than the last layer."""
        return self.half < self.gain


# As `python -m tests.bench.advice.depth` derives it from scores of every layer. Other encoders than
# embedding models have none to the last.
EVIDENCE: dict[Kind, Evidence] = {
    "causal decoder": Evidence(4, Fraction(1, 4), 0.0401, 0.0822, 0.0353, 0.1219),
    "state-space model": Evidence(1, Fraction(3, 8), math.nan, math.nan, 0.1604, 0.1604),
    "embedding model": Evidence(2, Fraction(23, 24), -0.0546, math.nan, 0, 0.0174),
}


def at_depth(share: Fraction, layers: Sequence[int]) -> int:
    """Return the layer nearest to a share of the depth, of two equally near the lower, cheaper one.

    The depth is the largest layer number. Example: 3/4 of layers 0..6 gives 4.
    """
    _check(layers)
    last = max(layers)
    return min(layers, key=lambda layer: (abs(layer - share * last), layer))


def rule_for(kind: Kind | None, layers: Sequence[int]) -> int | None:
    """Return the layer to take of a model of some kind without any label; None: nothing says which.

    An embedding model was trained so that what is pooled from its last layer is the embedding, and
    so that is its layer. Of another kind it is a share of the depth, if that is settled.
    """
    if kind == "embedding model":
        return max(layers)
    found = EVIDENCE.get(kind) if kind else None
    return at_depth(found.share, layers) if found and found.is_settled else None


def depth_rules(layers: Sequence[int]) -> dict[str, int]:
    """Layer that each rule of constant depth chooses: 1/2, 2/3 and 3/4 of the depth, and the last.

    Example: layers 0..6 give 3, 4, 4 and 6.
    """
    return {rule: at_depth(share, layers) for rule, share in DEPTHS.items()}


def metric_rule(metric: str, values_L: Values, *, layers: Sequence[int]) -> int | None:
    """Layer that a metric would choose: where it is highest or lowest, as people read it.

    Layers without a finite value are passed over, of several equal layers the lowest counts. A
    metric without a direction, or without any value, has no rule: None.
    """
    _check(layers, **{metric: values_L})
    signed_L = values_L * (-1 if READ_AS.get(metric) == "high" else 1)
    pairs = [pair for pair in zip(signed_L, layers, strict=True) if np.isfinite(pair[0])]
    return min(pairs)[1] if pairs and metric in READ_AS else None


def regrets(
    choices: Mapping[str, int],
    score_L: Values,
    *,
    layers: Sequence[int],
    draws_LB: Values | None = None,
    level: float = 0.95,
) -> list[Choice]:
    """Regret of choosing one layer by a rule, against the best single layer; lowest first.

    regret = highest score of any layer - score of the chosen one, 0 or more. Layers without a score
    (NaN) are never the best, and choosing one has the regret NaN and comes last.

    `draws_LB` holds bootstrap draws of the scores, the same draw for all layers. The regret of a
    draw is against the layer that is best *in that draw*, while the choice stays, since a rule
    without labels does not see them. So the bounds are the (1 - level) / 2 and (1 + level) / 2
    quantiles of a number that is never negative, and the observed best layer has an upper bound
    above 0 if another could have been the best. With many nearly equal layers the best of a draw
    is better than the best of the truth: then both bounds are a little too high.
    """
    _check(layers, score=score_L)
    scored_L = ~np.isnan(score_L)
    best = float(score_L[scored_L].max()) if scored_L.any() else math.nan
    found = []
    for rule, layer in choices.items():
        row = _row(rule, layer, layers)
        regret_B = np.full(1, math.nan)
        if draws_LB is not None and scored_L[row]:
            regret_B = draws_LB[scored_L].max(axis=0) - draws_LB[row]
        score = float(score_L[row])
        found.append(Choice(rule, layer, score, best - score, *_interval(regret_B, level)))
    return sorted(found, key=_order)


def task_regrets(
    choices: Mapping[str, int],
    scores_LT: Values,
    *,
    layers: Sequence[int],
    seed: int = 0,
    draws: int = 10_000,
    level: float = 0.95,
) -> list[Choice]:
    """Regret of every rule against the best layer *of each task*, mean over tasks; lowest first.

    regret = mean over tasks t of (max over layers of s_lt - s_{chosen, t}). It is `regrets` plus a
    constant: what the best single layer loses to the best of each task. This is the number that
    the published results are quoted in, and the only one in which a rule that chooses for each task
    anew can be compared: `OTHER_TASKS`, the layer with the highest mean score over the *other*
    tasks, which a person gets who has labels for those. It is added where two or more tasks allow
    it; only layers that are scored on every task are candidates, of equal ones the lowest counts.

    Interval: percentile bootstrap of the mean over tasks (Efron and Tibshirani 1993, chapter 13),
    NaN for one task. It holds the choices fixed and knows nothing of the noise within a task. A
    task without any score does not count; a choice that lacks a task has the regret NaN.
    """
    _check(layers, scores=scores_LT)
    scores_LT = scores_LT[:, ~np.isnan(scores_LT).all(axis=0)]
    n_tasks = scores_LT.shape[1]
    if not n_tasks:
        raise ValueError("regrets: no task has a score")
    chosen = {rule: [layer] * n_tasks for rule, layer in choices.items()}
    rows = [row for row in np.argsort(layers) if not np.isnan(scores_LT[row]).any()]
    if n_tasks > 1 and rows:
        others_LT = scores_LT[rows].sum(axis=1, keepdims=True) - scores_LT[rows]
        best_LT = others_LT >= others_LT.max(axis=0) - TIE
        chosen[OTHER_TASKS] = [layers[rows[first]] for first in best_LT.argmax(axis=0)]

    best_T = np.nanmax(scores_LT, axis=0)
    counts_BT = np.random.default_rng(seed).multinomial(n_tasks, [1 / n_tasks] * n_tasks, draws)
    found = []
    for rule, layer_T in chosen.items():
        score_T = scores_LT[[_row(rule, layer, layers) for layer in layer_T], np.arange(n_tasks)]
        regret_T = best_T - score_T
        regret_B = counts_BT @ regret_T / n_tasks if n_tasks > 1 else np.full(1, math.nan)
        means = float(score_T.mean()), float(regret_T.mean())
        found.append(Choice(rule, choices.get(rule), *means, *_interval(regret_B, level)))
    return sorted(found, key=_order)


def _check(layers: Sequence[int], **of_layers: Values) -> None:
    if not len(layers):
        raise ValueError("there are no layers to choose from")
    if len(set(layers)) != len(layers):
        raise ValueError(f"layers: {sorted(layers)} has repeated numbers")
    for name, values in of_layers.items():
        if len(values) != len(layers):
            raise ValueError(f"{name}: {len(layers)} layers need as many values, got {len(values)}")


def _row(rule: str, layer: int, layers: Sequence[int]) -> int:
    if layer not in layers:
        raise ValueError(f"{rule}: layer {layer} is not one of the scored layers {sorted(layers)}")
    return list(layers).index(layer)


def _interval(values_B: Values, level: float) -> tuple[float, float]:
    low, high = np.quantile(values_B, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _order(choice: Choice) -> tuple[bool, float, float, str]:
    """Lowest regret first, NaN last; of equal ones the cheaper layer, then the name."""
    layer = math.inf if choice.layer is None else choice.layer
    missing = math.isnan(choice.regret)
    return missing, 0.0 if missing else choice.regret, layer, choice.rule
