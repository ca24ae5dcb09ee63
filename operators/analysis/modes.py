"""Whether values have one mode or several, where two modes lie, and what separates them.

A mode is where values are dense. The dip asks whether one is enough; the excess mass, the same
number in another form, says where two of them are. Effect sizes say how strongly traits of prompts,
some of which are measured here, differ between the groups of two modes.

Shapes: N values or prompts; A and B values of two groups; K candidate densities; B bins of a
histogram.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from layerrank.operators.later import Later

if TYPE_CHECKING:
    import diptest
    from scipy import stats
    from scipy.stats import contingency
else:  # the bounds below are part of every config
    diptest, stats = Later("diptest"), Later("scipy.stats")
    contingency = Later("scipy.stats.contingency")

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Range = tuple[float, float]  # its first and its last value
FEWEST = 10  # with fewer, even groups that overlap in no value are mostly missed
MOST = 72_000  # the table of p-values ends here
_LEAST_P = 1e-5  # and here: the last tabulated quantile is 0.99999
_FEWEST_BINS, _MOST_BINS = 8, 40
_MOST_PEAKS = 6  # that are counted
_WORD = re.compile(r"[^\W\d_]+")
_LONGEST_WORD = 1000  # letters; no token has so many
_WORDS = 1 << 16  # that are tokenised at once
Measure = Literal["cliffs_delta", "cramers_v"]
CLIFFS_DELTA: Final = "cliffs_delta"
CRAMERS_V: Final = "cramers_v"
ONE_KIND = "all prompts are of one kind, or each of its own"
NO_VALUE = "no value in one of the groups"
NO_WORD = "no word of letters"
UNDEFINED = f"fewer than {FEWEST} prompts with a value, or all values equal"


@dataclass(frozen=True)
class Modes:
    """The two densest separate ranges of some values, and how far they are from a single one.

    `dip` is in 0..1/4, `p_value` in 1e-5..1, `low` and `high` are in the unit of the values; all
    are NaN where there is nothing to test. `peaks` counts the ranges that stand out: 2 or more, or
    0 without any.
    """

    dip: float
    p_value: float
    low: Range
    high: Range
    peaks: int

    @property
    def split(self) -> float:
        """The middle of the gap between the two ranges."""
        return (self.low[1] + self.high[0]) / 2


NOTHING = Modes(np.nan, np.nan, (np.nan, np.nan), (np.nan, np.nan), 0)


def find_modes(values_N: Array) -> Modes:
    """Test values [N] for a single mode and return the two that contradict it most.

    The dip is the largest distance between the distribution function of the values and that of
    the nearest unimodal distribution; its p-value is how often as many uniform values dip as far
    (Hartigan and Hartigan 1985, *The Dip Test of Unimodality*, Annals of Statistics 13; tabulated).
    In large samples no unimodal values dip further, so for others the test rejects less often than
    its level says. The modes are those of `excess_mass`.

    At most 72,000 values, in any order; equal values count each. NOTHING for fewer than FEWEST
    values or when all are equal.
    """
    sorted_N = np.sort(values_N)
    assert len(sorted_N) <= MOST, f"{len(sorted_N)} values, at most {MOST}"
    if len(sorted_N) < FEWEST or sorted_N[0] == sorted_N[-1]:
        return NOTHING
    dip, p_value = diptest.diptest(sorted_N, sort_x=False)
    _, low, high, peaks = excess_mass(sorted_N)
    return Modes(float(dip), max(float(p_value), _LEAST_P), low, high, peaks)


def excess_mass(sorted_N: Array) -> tuple[float, Range, Range, int]:
    """Return how much mass a second range exceeds by, 0..1/2, the two ranges, and the peaks.

    Over all densities d, the largest of: what two separate ranges hold beyond d times their length,
    minus the most that one range does. It is twice the dip (Müller and Sawitzki 1991, *Excess Mass
    Estimates and Tests for Multimodality*, JASA 86), so the two ranges are what the dip test finds.
    They need no bandwidth, move with any shift and scale of the values, and do not follow a few far
    values. A further range is a peak of its own if at the same density it adds at least half of
    what the second adds: values that stand like a comb have many. The values [N] are ascending, two
    at least, and not all equal.
    """
    found = [(density, *_excess(sorted_N, density)) for density in _densities(sorted_N)]
    density, mass, *ends = max(found, key=lambda each: each[1])
    low_0, low_1, high_0, high_1 = sorted_N[ends].tolist()
    # What each further range adds to the largest excess mass at this density.
    start_N, end_N = _ends(sorted_N, density)
    held_N, total = np.zeros(len(sorted_N)), [0.0]  # by the ranges so far, up to each value
    for _ in range(_MOST_PEAKS):
        before_N = np.concatenate([[0.0], held_N[:-1]])
        held_N = np.maximum.accumulate(end_N + np.maximum.accumulate(before_N - start_N))
        total.append(float(held_N[-1]))
    gains = np.diff(total)
    return mass, (low_0, low_1), (high_0, high_1), 1 + int((gains[1:] >= gains[1] / 2).sum())


def _ends(sorted_N: Array, density: float) -> tuple[Array, Array]:
    """Start and end [N]: the excess mass of the range from value i to j is end[j] - start[i]."""
    n = len(sorted_N)
    return np.arange(n) / n - density * sorted_N, np.arange(1, n + 1) / n - density * sorted_N


def _densities(sorted_N: Array) -> Array:
    """Return the densities at which the best single range changes, falling, [K].

    Between two of them the gain of a second range is convex, so its maximum is at one of them. They
    are the slopes of the least concave function over the points (length of the shortest range that
    holds k values, k / N). Time N^2 / 2: 0.3 s for 20,000 values.
    """
    n = len(sorted_N)
    shortest = [0.0, *((sorted_N[k:] - sorted_N[: n - k]).min() for k in range(1, n))]
    hull: list[tuple[float, float]] = []
    for k, length in enumerate(shortest, 1):
        if hull and length <= hull[-1][0]:  # as short, and holds more
            hull.pop()
        point = (float(length), k / n)
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return np.array([_slope(*pair) for pair in pairwise(hull)])


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def _excess(sorted_N: Array, density: float) -> tuple[float, int, int, int, int]:
    """Return by how much two ranges exceed one at a density, and the ends of the two."""
    start_N, end_N = _ends(sorted_N, density)
    until_N = end_N - np.minimum.accumulate(start_N)  # the best range that ends here
    onwards_N = np.maximum.accumulate(end_N[::-1])[::-1] - start_N  # the best that starts here
    left_N = np.maximum.accumulate(until_N)
    right_N = np.maximum.accumulate(onwards_N[::-1])[::-1]
    both_N = left_N[:-1] + right_N[1:]
    cut = int(both_N.argmax())
    last = int(until_N[: cut + 1].argmax())
    first = int(start_N[: last + 1].argmin())
    next_first = cut + 1 + int(onwards_N[cut + 1 :].argmax())
    next_last = next_first + int(end_N[next_first:].argmax())
    return float(both_N[cut] - left_N[-1]), first, last, next_first, next_last


def middle(values_N: Array, ends: Range) -> float:
    """Return the median of the values in a range, ends included; NaN without any."""
    inside = values_N[(values_N >= ends[0]) & (values_N <= ends[1])]
    return float(np.median(inside)) if len(inside) else np.nan


def nearest(values_N: Array, ids_N: Counts, place: float, count: int) -> npt.NDArray[np.intp]:
    """Return the positions of the `count` values nearest to a place; ties by the smaller id."""
    return np.lexsort((ids_N, np.abs(values_N - place)))[:count]


def histogram(values_N: Array) -> tuple[Array, Counts]:
    """Return the edges and the counts of bins of equal width over all values.

    Their number is twice the cube root of N (Rice's rule), but 8 to 40. Empty without values.
    """
    if not len(values_N):
        return np.empty(0), np.empty(0, dtype=np.int64)
    wanted = int(np.ceil(2 * np.cbrt(len(values_N))))
    counts_B, edges_B = np.histogram(values_N, min(max(wanted, _FEWEST_BINS), _MOST_BINS))
    return edges_B, counts_B.astype(np.int64)


def holm(p_L: Array) -> Array:
    """Return p-values corrected for testing several hypotheses at once, each 0..1; NaN stays NaN.

    The i-th smallest of m becomes the largest of min(1, (m - j + 1) p_j) over j <= i. Rejecting
    what is below alpha then rejects any true hypothesis with probability alpha at most, however
    the tests depend on each other (Holm 1979, *A Simple Sequentially Rejective Multiple Test
    Procedure*, Scandinavian Journal of Statistics 6).
    """
    corrected_L = np.full(len(p_L), np.nan)
    order = np.argsort(p_L)[: np.count_nonzero(~np.isnan(p_L))]
    factors = np.arange(len(order), 0, -1)
    corrected_L[order] = np.minimum(np.maximum.accumulate(factors * p_L[order]), 1.0)
    return corrected_L


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
        return np.nan
    ranks = stats.rankdata(np.concatenate([low_A, high_B]))
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
    table = contingency.crosstab(names_N, is_high_N).count
    n, (rows, columns) = len(names_N), table.shape
    # 1 for one kind, and again for as many kinds as prompts.
    sides = [side - (side - 1) ** 2 / max(n - 1, 1) for side in (rows, columns)]
    if min(sides) <= 1:
        return np.nan
    phi = stats.chi2_contingency(table, correction=False).statistic / n
    corrected = max(phi - (rows - 1) * (columns - 1) / (n - 1), 0.0)
    return float(min(np.sqrt(corrected / (min(sides) - 1)), 1.0))


def separations(
    is_high_N: npt.NDArray[np.bool_],
    numbers: Mapping[str, Array],
    names: Mapping[str, Sequence[str]],
) -> Iterator[Separation]:
    """Yield the effect of every trait; prompts whose trait is NaN are left out of it."""
    for trait, values_N in numbers.items():
        known_N = ~np.isnan(values_N)
        groups = values_N[known_N & ~is_high_N], values_N[known_N & is_high_N]
        effect = cliffs_delta(*groups)
        low, high = (float(np.median(each)) if len(each) else np.nan for each in groups)
        reason = NO_VALUE if np.isnan(effect) else None
        yield Separation(trait, CLIFFS_DELTA, effect, low, high, int(known_N.sum()), reason)
    for trait, names_N in names.items():
        effect = cramers_v(is_high_N, names_N)
        reason = ONE_KIND if np.isnan(effect) else None
        yield Separation(trait, CRAMERS_V, effect, np.nan, np.nan, len(names_N), reason)


def repeated_share(ids: npt.NDArray[np.int32]) -> float:
    """Return the share of a prompt's tokens that occurred before in it, 0..1 (excluded).

    0: all tokens differ. Special tokens count. It grows with the length of any natural text. The
    prompt must not be empty.
    """
    return 1 - len(np.unique(ids)) / len(ids)


def unknown_word_shares(tokenizer: Any, texts: Sequence[str]) -> Array:  # noqa: ANN401
    """Return the share of each text's words that the tokenizer has no single token for, 0..1 [N].

    A word is a run of letters, counted as often as it occurs, in the whole text. It is unknown if
    the tokenizer cuts it into pieces or gives it its unknown token, both at the start of a text and
    after a blank. In scripts without blanks a run is a clause, and the share is near 1. NaN for a
    text without a word.
    """
    words = [Counter(each.group() for each in _WORD.finditer(text)) for text in texts]
    different = sorted({word for each in words for word in each if len(word) <= _LONGEST_WORD})
    known = set()
    for start in range(0, len(different), _WORDS):
        some = different[start : start + _WORDS]
        for forms in (some, [f" {word}" for word in some]):
            encoded = tokenizer(forms, add_special_tokens=False)["input_ids"]
            for word, ids in zip(some, encoded, strict=True):
                if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
                    known.add(word)
    return np.array(
        [
            1 - sum(each[word] for word in each if word in known) / each.total() if each else np.nan
            for each in words
        ]
    )
