"""How strongly traits of prompts differ between two groups of them: effect sizes.

Shapes: N prompts; A, B values of the two groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

Array = npt.NDArray[np.float64]
Measure = Literal["cliffs_delta", "cramers_v"]
CLIFFS_DELTA: Final = "cliffs_delta"
CRAMERS_V: Final = "cramers_v"
ONE_KIND = "all prompts are of one kind, or each of its own"
NO_VALUE = "no value in one of the groups"


@dataclass(frozen=True)
class Separation:
    """How a trait separates the lower from the upper group.

    `effect` is Cliff's delta, -1..1, or Cramér's V, 0..1, as `measure` says; NaN with its `reason`.
    `low` and `high` are the medians of the groups, NaN for a trait that is a name.
    """

    trait: str
    measure: Measure
    effect: float
    low: float
    high: float
    n_prompts: int
    reason: str | None


def cliffs_delta(low_A: Array, high_B: Array) -> float:
    """Return the probability that a value of the upper group is larger, minus that it is smaller.

    2 U / (A B) - 1 with the Mann-Whitney U, where equal values count half: the rank-biserial
    correlation. 1: every value of the upper group is above all of the lower one; 0: neither tends
    to be larger; -1: all below. From 0.474 on it is customarily called large, below 0.147
    negligible (Cliff 1993, *Dominance Statistics*, Psychological Bulletin 114; the bounds: Romano
    et al. 2006). Ranks only: no scale, no outliers. NaN if a group is empty.
    """
    a, b = len(low_A), len(high_B)
    if not a or not b:
        return float("nan")
    ranks = rankdata(np.concatenate([low_A, high_B]))
    u = ranks[a:].sum() - b * (b + 1) / 2
    return float(2 * u / (a * b) - 1)


def cramers_v(is_high_N: npt.NDArray[np.bool_], names_N: Sequence[str]) -> float:
    """Return how far a name and the group determine each other, 0..1.

    The root of chi-squared / (N (min(rows, columns) - 1)) of the table of names and groups, without
    the part of chi-squared that unrelated ones have by chance (Cramér 1946; Bergsma 2013, *A
    bias-correction for Cramér's V*, Journal of the Korean Statistical Society 42). 0: the name says
    nothing of the group; with two names 1: it says all. NaN with a single name or group,
    and when every prompt has a name of its own.
    """
    names, name_N = np.unique(np.asarray(names_N), return_inverse=True)
    table = np.zeros((len(names), 2))
    np.add.at(table, (name_N, is_high_N.astype(int)), 1)
    n, rows, columns = len(name_N), len(names), int((table.sum(axis=0) > 0).sum())
    # 1 for one kind, and again for as many kinds as prompts.
    sides = [side - (side - 1) ** 2 / max(n - 1, 1) for side in (rows, columns)]
    if min(sides) <= 1:
        return float("nan")
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / n
    phi = ((table - expected) ** 2 / expected).sum() / n
    corrected = max(phi - (rows - 1) * (columns - 1) / (n - 1), 0.0)
    return float(min(np.sqrt(corrected / (min(sides) - 1)), 1.0))


def separations(
    is_high_N: npt.NDArray[np.bool_],
    numbers: Mapping[str, Array],
    names: Mapping[str, Sequence[str]],
) -> Iterator[Separation]:
    """Yield the effect of every trait; prompts whose trait is NaN are left out of it."""
    nan = float("nan")
    for trait, values_N in numbers.items():
        known_N = ~np.isnan(values_N)
        groups = values_N[known_N & ~is_high_N], values_N[known_N & is_high_N]
        effect = cliffs_delta(*groups)
        low, high = (float(np.median(each)) if len(each) else nan for each in groups)
        reason = NO_VALUE if np.isnan(effect) else None
        yield Separation(trait, CLIFFS_DELTA, effect, low, high, int(known_N.sum()), reason)
    for trait, names_N in names.items():
        effect = cramers_v(is_high_N, names_N)
        reason = ONE_KIND if np.isnan(effect) else None
        yield Separation(trait, CRAMERS_V, effect, nan, nan, len(names_N), reason)
