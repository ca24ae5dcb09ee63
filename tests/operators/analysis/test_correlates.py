"""Correlations over layers: equal to the plain functions, with null levels that hold."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy.fft import dct

from layerrank.operators.analysis.correlates import (
    FEWEST_LAYERS,
    Correlation,
    correlation,
    distance_correlation,
    sign_surrogates,
    spearman,
)

Values = npt.NDArray[np.float64]


def walk(generator: np.random.Generator, n_layers: int) -> Values:
    return np.cumsum(generator.normal(size=n_layers))


def one(values: Values, score: Values, draws: int = 200) -> Correlation:
    return correlation("metric", values, score, layers=range(len(score)), draws=draws)


def test_every_row_is_measured_alone_and_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = np.random.default_rng(0).integers(0, 6, size=(2, 40, 9)).astype(np.float64)
    x[3] = 1.0
    for statistic in (spearman, distance_correlation):
        expected = [float(statistic(a, b)) for a, b in zip(x, y, strict=True)]
        assert statistic(x, y) == pytest.approx(expected, nan_ok=True)
        monkeypatch.setattr("layerrank.operators.analysis.correlates.CHUNK_NUMBERS", 7 * 81)
        assert statistic(x, y) == pytest.approx(expected, nan_ok=True)
        assert math.isnan(expected[3])


def test_a_perfect_relation() -> None:
    score = walk(np.random.default_rng(3), 25)
    found = one(-2 * score + 1, score)
    assert found.spearman.value == pytest.approx(-1)
    assert (found.spearman.low, found.spearman.high) == pytest.approx((-1, -1))
    assert found.distance.value == pytest.approx(1)
    assert (found.n_layers, found.left_out, found.reason) == (25, 0, "")


def test_surrogates_keep_every_cosine_mean_and_variance() -> None:
    curve = walk(np.random.default_rng(1), 13) + 1000
    surrogates = sign_surrogates(curve, 50, np.random.default_rng(2))
    for surrogate in surrogates:
        assert np.abs(dct(surrogate)) == pytest.approx(np.abs(dct(curve)), abs=1e-6)
        assert surrogate.mean() == pytest.approx(curve.mean())
        assert surrogate.std() == pytest.approx(curve.std())
    assert len(np.unique(surrogates.round(6), axis=0)) > 40
    # Ties of the curve stay ties, whatever the transform rounds.
    steps = np.repeat([5.0, 0.1], [4, 4])
    ranks = {len(np.unique(row)) for row in sign_surrogates(steps, 50, np.random.default_rng(2))}
    assert min(ranks) == 2


@pytest.mark.parametrize("n_layers", [13, 25])
def test_the_smooth_level_holds_where_the_permuted_one_fails(n_layers: int) -> None:
    # Unrelated random walks: 5 % may exceed a 95 % level.
    generator = np.random.default_rng(4)
    found = [
        one(walk(generator, n_layers), walk(generator, n_layers), draws=99) for _ in range(200)
    ]
    above = np.array(
        [
            [abs(c.spearman.value) > c.spearman.permuted, abs(c.spearman.value) > c.spearman.smooth]
            for c in found
        ]
    ).mean(axis=0)
    assert above[0] > 0.2
    assert above[1] < 0.1
    distance = np.mean([c.distance.value > c.distance.smooth for c in found])
    assert distance < 0.1


def test_a_real_relation_of_rough_curves_exceeds_both_levels() -> None:
    generator = np.random.default_rng(5)
    score = generator.normal(size=25)
    found = one(score + generator.normal(0, 0.2, size=25), score)
    for association in (found.spearman, found.distance):
        assert association.value > max(association.permuted, association.smooth)
        assert association.low < association.value


def test_missing_layers_are_left_out_and_counted() -> None:
    generator = np.random.default_rng(6)
    values, score = walk(generator, 12), walk(generator, 12)
    values[[0, 4]] = math.nan
    score[[4, 9]] = math.nan
    found = one(values, score)
    kept = [row for row in range(12) if row not in {0, 4, 9}]
    assert (found.n_layers, found.left_out) == (9, 3)
    without = one(values[kept], score[kept])
    assert (found.spearman, found.distance) == (without.spearman, without.distance)


@pytest.mark.parametrize(
    ("values", "score", "reason"),
    [
        ([1, 2, 3], [1, 2, 3], f"3 layers have both values, {FEWEST_LAYERS} are needed"),
        ([1, 1, 1, 1], [1, 2, 3, 4], "metric is the same in every layer"),
        ([1, 2, 3, 4], [2, 2, 2, 2], "the score is the same in every layer"),
        ([math.nan] * 4, [1, 2, 3, 4], "0 layers have both values"),
    ],
)
def test_what_has_no_correlation_says_why(
    values: list[float], score: list[float], reason: str
) -> None:
    found = one(np.array(values, dtype=np.float64), np.array(score, dtype=np.float64))
    assert reason in found.reason
    assert math.isnan(found.spearman.value)
    assert math.isnan(found.distance.smooth)


def test_the_order_of_rows_does_not_matter_and_the_seed_does() -> None:
    generator = np.random.default_rng(7)
    values, score, order = walk(generator, 9), walk(generator, 9), generator.permutation(9)
    plain = correlation("metric", values, score, layers=range(9), draws=50)
    mixed = correlation("metric", values[order], score[order], layers=order.tolist(), draws=50)
    assert plain == mixed
    assert plain != correlation("metric", values, score, layers=range(9), draws=50, seed=1)


def test_tables_without_meaning_are_errors() -> None:
    four = np.arange(4.0)
    with pytest.raises(ValueError, match="lidar: 4 layers need as many, got 3"):
        correlation("lidar", four[:3], four, layers=range(4))
    with pytest.raises(ValueError, match="repeated"):
        correlation("lidar", four, four, layers=[0, 1, 1, 2])
