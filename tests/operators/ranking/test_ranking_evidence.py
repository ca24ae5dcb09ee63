"""Evidence on layers: closed forms, invariances, simulated coverage, a published known outcome."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.ranking.evidence import (
    Evidence,
    LayerEvidence,
    Overtaking,
    draw_scores,
    holm,
    overtakings,
    p_values,
    weigh,
)
from operators.ranking.scores import Resampled, TaskScores
from tests.support.places import GOLDEN as GOLDEN_FOLDER
from tests.support.published import layer_scores

GOLDEN = GOLDEN_FOLDER / "pythia_410m_main.parquet"
NUMBERS = [name for name in LayerEvidence.__dataclass_fields__ if name not in ("layer", "rank")]

Scores = npt.NDArray[np.float64]


def single(name: str, scores: Sequence[float] | Scores) -> TaskScores:
    score_L = np.asarray(scores, np.float64)
    return TaskScores(name, "sts", score_L, np.empty((len(score_L), 0)), "folds")


def folded(name: str, folds: Sequence[Sequence[float]] | Scores) -> TaskScores:
    folds_LF = np.asarray(folds, np.float64)
    return TaskScores(name, "classification", folds_LF.mean(axis=1), folds_LF, "folds")


def sampled(name: str, scores: Sequence[float], replicates: Scores) -> TaskScores:
    return TaskScores(name, "sts", np.array(scores), replicates, "replicates")


def singles(scores_LT: Scores) -> list[TaskScores]:
    return [single(f"task-{t:03}", column) for t, column in enumerate(scores_LT.T)]


def noisy(n_layers: int = 5, n_tasks: int = 6, n_folds: int = 4, seed: int = 0) -> list[TaskScores]:
    scores_TLF = np.random.default_rng(seed).random((n_tasks, n_layers, n_folds))
    return [folded(f"task-{t}", scores_LF) for t, scores_LF in enumerate(scores_TLF)]


def numbers(row: LayerEvidence) -> list[float]:
    return [getattr(row, name) for name in NUMBERS]


def same(one: object, other: object) -> bool:
    """Whether two results are equal to the last digit, NaN being equal to NaN."""
    return repr(one) == repr(other)


def column(evidence: Evidence, name: str) -> list[float]:
    return [getattr(row, name) for row in evidence.layers]


def published(path: Path, revision: str) -> list[TaskScores]:
    return [single(task, score_L) for task, score_L in layer_scores(path, revision).items()]


def of_rows(tasks: Sequence[TaskScores], rows: list[int]) -> list[TaskScores]:
    """The tasks' scores in some of the layers."""
    return [replace(t, score_L=t.score_L[rows], resampled_LR=t.resampled_LR[rows]) for t in tasks]


def test_every_number_without_draws_by_hand() -> None:
    # Means over the tasks: 0.4, 0.6, 0.4, 0.3.
    scores = np.array([[0.2, 0.6, 0.4], [0.5, 0.7, 0.6], [0.4, 0.5, 0.3], [0.5, 0.2, 0.2]])
    evidence = weigh(singles(scores), layers=[0, 1, 2, 3], draws=50)
    assert column(evidence, "layer") == [0, 1, 2, 3]
    assert column(evidence, "score") == pytest.approx([0.4, 0.6, 0.4, 0.3])
    assert column(evidence, "rank") == [2, 1, 2, 4]
    assert column(evidence, "gain") == pytest.approx([0.1, 0.3, 0.1, 0.0])
    assert column(evidence, "shortfall") == pytest.approx([0.2, 0.0, 0.2, 0.3])
    # Ranks by task: 4, 1.5, 3, 1.5; 2, 1, 3, 4; 2, 1, 3, 4.
    assert column(evidence, "mean_rank") == pytest.approx([8 / 3, 3.5 / 3, 3, 9.5 / 3])
    assert column(evidence, "won") == pytest.approx([0, 2.5 / 3, 0, 0.5 / 3])
    assert evidence.oracle == pytest.approx((0.5 + 0.7 + 0.6) / 3)
    assert evidence.best is not None
    assert (evidence.best.layer, evidence.last.layer) == (1, 3)


def test_a_constant_shift_is_a_gain_without_width() -> None:
    below = np.linspace(0.1, 0.8, 6)
    shifted = singles(np.stack([below + 0.05, below]))
    first, last = weigh(shifted, layers=[3, 4], draws=2000).layers
    assert (first.gain, first.gain_low, first.gain_high) == pytest.approx((0.05, 0.05, 0.05))
    assert first.score_high - first.score_low > 0.1
    assert first.p_value == pytest.approx(2 / 2001)
    assert (last.gain, last.gain_low, last.gain_high) == (0, 0, 0)
    assert math.isnan(last.p_value)
    assert math.isnan(last.p_holm)
    assert (last.shortfall, last.shortfall_se) == pytest.approx((0.05, 0))


def test_order_of_tasks_and_layers_changes_nothing() -> None:
    tasks = noisy()
    before = weigh(tasks, layers=range(5), draws=500)
    assert same(weigh(tasks[::-1], layers=range(5), draws=500), before)
    order = [3, 0, 4, 1, 2]
    after = weigh(of_rows(tasks, order), layers=order, draws=500)
    assert after.last is after.layers[2]
    for row in after.layers:
        assert numbers(row) == pytest.approx(numbers(before.layers[row.layer]), nan_ok=True)


@given(st.integers(0, 5), st.floats(-0.4, 0.4))
def test_what_all_layers_share_does_not_touch_differences(task: int, constant: float) -> None:
    scores = 0.4 + np.random.default_rng(1).random((4, 6)) / 10
    harder = scores.copy()
    harder[:, task] += constant
    one, other = (weigh(singles(each), layers=range(4), draws=60) for each in (scores, harder))
    for name in set(NUMBERS) - {"score", "score_low", "score_high"}:
        assert column(one, name) == pytest.approx(column(other, name), nan_ok=True, abs=1e-9)


def test_equal_layers_tie_exactly_and_share_wins() -> None:
    tasks = noisy(3)
    evidence = weigh(of_rows(tasks, [1, 2, 1, 0]), layers=range(4))
    one, other = evidence.layers[0], evidence.layers[2]
    assert replace(one, layer=2) == other
    alone = weigh(of_rows(tasks, [1, 2, 0]), layers=range(3)).layers[0]
    assert one.p_best == pytest.approx(alone.p_best / 2)
    assert one.won == pytest.approx(alone.won / 2)
    same_as_last = weigh(singles(np.tile([0.3, 0.5, 0.4], (2, 1))), layers=[0, 1], draws=99)
    first = same_as_last.layers[0]
    assert (first.rank, first.gain, first.gain_low, first.gain_high) == (1, 0, 0, 0)
    assert (first.p_value, first.p_best, first.shortfall_se) == (1, 0.5, 0)


@pytest.mark.parametrize("seed", range(3))
def test_shares_sum_to_one_and_ranks_to_their_mean(seed: int) -> None:
    evidence = weigh(noisy(7, seed=seed), layers=range(7), draws=300)
    assert sum(column(evidence, "p_best")) == pytest.approx(1)
    assert sum(column(evidence, "won")) == pytest.approx(1)
    assert np.mean(column(evidence, "mean_rank")) == pytest.approx(4)
    assert evidence.oracle >= max(column(evidence, "score"))


def test_the_interval_has_the_width_of_the_standard_error() -> None:
    difference = np.clip(np.random.default_rng(2).normal(0.3, 0.1, size=400), -1, 1)
    error = difference.std() / math.sqrt(400)
    scores = np.stack([difference, np.zeros(400)])
    for tasks in ([folded("only", scores)], singles(scores)):
        row, last = weigh(tasks, layers=[0, 1]).layers
        assert row.gain_high - row.gain == pytest.approx(1.96 * error, rel=0.1)
        assert row.gain - row.gain_low == pytest.approx(1.96 * error, rel=0.1)
        assert last.shortfall_se == pytest.approx(error, rel=0.05)


def test_one_task_with_replicates_has_the_replicates_interval() -> None:
    # 0, 0.001 … 1: a draw takes one replicate, so the quantiles are those of the replicates.
    values = np.linspace(0, 1, 1001)
    task = sampled("only", [0.5, 0.5], np.stack([values, 1 - values]))
    row, last = weigh([task], layers=[0, 1], draws=20_000).layers
    assert (row.score_low, row.score_high) == pytest.approx((0.025, 0.975), abs=0.01)
    # Paired: the gain of replicate v is v - (1 - v), which spans -1..1.
    assert (row.gain_low, row.gain_high) == pytest.approx((-0.95, 0.95), abs=0.02)
    assert row.p_value == pytest.approx(1, abs=0.03)
    assert last.shortfall_se == pytest.approx((values * 2 - 1).std(), rel=0.02)


def test_replicates_and_folds_of_several_tasks_mix() -> None:
    generator = np.random.default_rng(5)
    replicates = 0.5 + generator.normal(0, 0.05, size=(1, 400))
    folds = 0.5 + generator.normal(0, 0.05, size=(1, 400))
    drawn = draw_scores([sampled("a", [0.5], replicates), folded("b", folds)], draws=20_000)
    # Drawn a twice, once, never: variance of a draw given the mix, and none between equal means.
    of_a, of_b = replicates.var(), folds.var() / 400
    between = 0.5 * ((replicates.mean() - folds.mean()) / 2) ** 2
    expected = (2 * of_a / 4 + (of_a + of_b) / 4 * 2 + 2 * of_b / 4) / 4 + between
    assert drawn.var() == pytest.approx(expected, rel=0.03)


def test_an_undefined_replicate_is_left_out_in_every_layer() -> None:
    replicates = np.array([[0.1, np.nan, 0.3], [0.2, 0.9, 0.4]])
    drawn = draw_scores([sampled("a", [0.2, 0.3], replicates)], draws=200)
    assert {tuple(draw) for draw in drawn.T} == {(0.1, 0.2), (0.3, 0.4)}


def test_intervals_cover_the_true_gain() -> None:
    generator = np.random.default_rng(6)
    n_tasks, runs, covered, rejected = 20, 300, 0, 0
    for run in range(runs):
        gains = generator.normal(0.02, 0.03, size=n_tasks)
        scores = np.stack(
            [0.5 + gains, 0.5 + generator.normal(0, 0.03, n_tasks), np.full(n_tasks, 0.5)]
        )
        better, equal, _ = weigh(singles(scores), layers=range(3), draws=400, seed=run).layers
        covered += better.gain_low <= 0.02 <= better.gain_high
        rejected += equal.p_value < 0.05
    # 95 % nominal, and the bootstrap is known to be a little too narrow; 3 standard errors of 300.
    assert 0.89 <= covered / runs <= 0.98
    assert 0.02 <= rejected / runs <= 0.11


def test_the_level_and_the_seed_set_the_interval() -> None:
    tasks = noisy()
    wide, narrow = (weigh(tasks, layers=range(5), level=level).layers[0] for level in (0.95, 0.5))
    assert wide.gain_low < narrow.gain_low < narrow.gain_high < wide.gain_high
    assert weigh(tasks, layers=range(5)).layers[0] == wide
    assert weigh(tasks, layers=range(5), seed=1).layers[0].gain_low != wide.gain_low


def test_the_chunks_hold_every_draw_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("operators.ranking.evidence.CHUNK_NUMBERS", 24 * 7)
    chunked = draw_scores(noisy(1), draws=3001)
    monkeypatch.undo()
    whole = draw_scores(noisy(1), draws=3001)
    assert chunked.shape == whole.shape == (1, 3001)
    assert len(np.unique(chunked)) > 2900
    for share in (0.025, 0.5, 0.975):
        assert np.quantile(chunked, share) == pytest.approx(np.quantile(whole, share), abs=0.01)


def test_a_draw_is_a_mean_over_tasks_of_means_over_their_folds() -> None:
    tasks = [folded("a", [[0.0, 0.5]]), single("b", [1.0])]
    # a twice: quarters of 0.5; a and b: 0.5, 0.625, 0.75; b twice: 1.
    seen = set(np.round(draw_scores(tasks, draws=5000)[0], 9))
    assert seen == {0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 1.0}
    assert weigh(tasks, layers=[0]).layers[0].score == pytest.approx(0.625)


def test_p_values_count_both_tails() -> None:
    drawn = np.array([[0.1] * 97 + [-0.1] * 2, [-0.1] * 99, [0.0] * 99, [math.nan] * 99])
    assert p_values(drawn) == pytest.approx([2 * 3 / 100, 2 / 100, 1, math.nan], nan_ok=True)


def test_holm_by_hand() -> None:
    # Sorted 0.005 0.01 0.03 0.04 times 4 3 2 1, then never falling; the NaN is no test.
    corrected = holm(np.array([0.01, 0.04, math.nan, 0.03, 0.005]))
    assert corrected == pytest.approx([0.03, 0.06, math.nan, 0.06, 0.02], nan_ok=True)
    assert holm(np.array([0.9, 0.6])) == pytest.approx([1, 1])
    assert holm(np.array([math.nan])) == pytest.approx([math.nan], nan_ok=True)


def test_unscored_tasks_do_not_count() -> None:
    tasks = noisy()
    blank = single("blank", [math.nan] * 5)
    before, after = weigh(tasks, layers=range(5)), weigh([blank, *tasks], layers=range(5))
    assert (after.unscored, before.unscored) == (["blank"], [])
    assert same(replace(after, unscored=[]), before)
    assert after.tasks == [task.task for task in tasks]


def test_a_layer_that_lacks_a_task_is_not_compared() -> None:
    tasks = noisy()
    scores, resampled = tasks[2].score_L.copy(), tasks[2].resampled_LR.copy()
    scores[1] = resampled[1, 2] = math.nan
    lacks = [replace(tasks[2], score_L=scores, resampled_LR=resampled), *tasks[3:]]
    lacking = weigh([*tasks[:2], *lacks], layers=range(5))
    assert lacking.layers[1].rank == 5
    assert all(math.isnan(value) for value in numbers(lacking.layers[1]))
    assert np.isnan(draw_scores(lacks, draws=50)).tolist() == [[n == 1] * 50 for n in range(5)]
    rest = [0, 2, 3, 4]
    without = weigh(of_rows(tasks, rest), layers=rest)
    assert same(replace(lacking, layers=[lacking.layers[row] for row in rest]), without)


def test_a_last_layer_without_a_score_leaves_no_gains() -> None:
    evidence = weigh(
        [single("a", [0.4, 0.5, math.nan]), single("b", [0.3, 0.4, 0.2])], layers=range(3)
    )
    assert column(evidence, "score") == pytest.approx([0.35, 0.45, math.nan], nan_ok=True)
    for name in ("gain", "gain_low", "p_value", "p_holm"):
        assert all(math.isnan(value) for value in column(evidence, name))
    assert column(evidence, "p_best") == pytest.approx([0, 1, math.nan], nan_ok=True)
    assert evidence.layers[0].shortfall == pytest.approx(0.1)


@pytest.mark.parametrize("task", [single("only", [0.7, 0.6]), folded("only", [[0.7], [0.6]])])
def test_one_score_of_one_task_leaves_nothing_to_draw(task: TaskScores) -> None:
    evidence = weigh([task], layers=[0, 1])
    first = evidence.layers[0]
    assert (first.score, first.gain, first.won, first.mean_rank) == pytest.approx((0.7, 0.1, 1, 1))
    for name in ("score_low", "gain_high", "p_value", "p_holm", "p_best", "shortfall_se"):
        assert all(math.isnan(value) for value in column(evidence, name))


def test_no_tasks_at_all() -> None:
    for tasks in ([], [single("blank", [math.nan] * 3)]):
        evidence = weigh(tasks, layers=[0, 1, 2])
        assert all(math.isnan(value) for row in evidence.layers for value in numbers(row))
        assert column(evidence, "rank") == [1, 1, 1]
        assert math.isnan(evidence.oracle)
        assert evidence.best is None
        assert evidence.last.layer == 2


@pytest.mark.parametrize(
    ("scores", "resampled", "kind", "message"),
    [
        (np.zeros(2), np.zeros((3, 0)), "folds", r"task emotion: .* \(2,\) and \(3, 0\)"),
        (np.zeros((2, 1)), np.zeros((2, 0)), "folds", r"task emotion: expected scores \[layers\]"),
        (np.array([0.5, 51.9]), np.zeros((2, 0)), "folds", r"1 of 2 scores .* is 51.9; .* percent"),
        (np.array([np.inf]), np.zeros((1, 0)), "folds", "task emotion: 1 of 1 scores lie outside"),
        (np.zeros(1), np.array([[0.5, -2]]), "replicates", "1 of 2 resampled scores lie outside"),
        (np.array([0.5, 0.6]), np.full((2, 3), 0.5), "folds", "number 2 of 2 is 0.6, .* is 0.5"),
        (np.array([0.5]), np.array([[0.5, np.nan]]), "folds", "mean of its 2 folds is nan"),
        (np.array([0.5]), np.array([[0.5]]), "replicates", "one replicate shows no spread"),
        (np.array([0.5]), np.array([[0.5]]), "jackknife", "'jackknife', not folds or replicates"),
    ],
)  # fmt: skip
def test_scores_without_meaning_are_errors(
    scores: Scores, resampled: Scores, kind: Resampled, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TaskScores("emotion", "classification", scores, resampled, kind)


def test_layers_and_settings_without_meaning_are_errors() -> None:
    with pytest.raises(ValueError, match="repeated numbers"):
        weigh(noisy(), layers=[0, 1, 1, 2, 3])
    with pytest.raises(ValueError, match="task task-0: 5 scores for 4 layers"):
        weigh(noisy(), layers=range(4))
    with pytest.raises(ValueError, match="there are none"):
        weigh([], layers=[])
    for draws, level in ((1, 0.95), (100, 1.0), (100, 95.0)):
        with pytest.raises(ValueError, match="draws must be at least 2 and level in"):
            weigh(noisy(), layers=range(5), draws=draws, level=level)


def test_pythia_410m_is_best_at_layer_17_of_24() -> None:
    """The outcome that was published, from the excerpt whose metadata names its source."""
    evidence = weigh(published(GOLDEN, "main"), layers=range(25))
    assert len(evidence.tasks) == 32
    best, last = evidence.best, evidence.last
    assert best is not None
    assert best.layer == 17
    scores, gains = (
        (best.score, last.score, evidence.oracle),
        (best.gain, best.gain_low, best.gain_high),
    )
    assert scores == pytest.approx((0.519, 0.468, 0.534), abs=5e-4)
    assert gains == pytest.approx((0.051, 0.038, 0.065), abs=1.5e-3)
    assert best.p_holm < 0.01
    assert best.p_best > 0.7
    assert last.won == 0
    assert min(evidence.layers, key=lambda row: row.mean_rank).layer == 17


@pytest.mark.parametrize(
    ("gains", "lows", "stays", "clear"),
    [
        ([0.1, 0.2, 0.3], None, 0, None),
        ([-0.1, 0.2, 0.3], None, 1, None),
        ([0.1, -0.2, 0.3], None, 2, None),
        ([0.1, math.nan, 0.3], None, 2, None),
        ([0.1, 0.2, math.nan], None, None, None),
        ([0.1, 0.0, 0.3], None, 2, None),
        ([-0.1, 1e-13, 0.3], None, 2, None),
        ([0.3], None, 0, None),
        ([0.1, 0.2, 0.3], [-0.1, 0.1, 0.2], 0, 1),
        ([0.1, 0.2, -0.3], [0.05, 0.1, -0.4], None, 0),
        ([0.1, 0.2, 0.3], [math.nan, math.nan, 0.1], 0, 2),
        ([0.1, 0.2, 0.3], [-0.1, 0.0, -0.1], 0, None),
        ([0.1, 0.2], [math.nan, math.nan], 0, None),
    ],
)
def test_a_layer_stays_above_from_its_last_fall_and_clearly_once_its_interval_is(
    gains: list[float], lows: list[float] | None, stays: int | None, clear: int | None
) -> None:
    both = [[[value, 0.0] for value in values] for values in (gains, lows or [-1.0] * len(gains))]
    found = overtakings(both[0], both[1], layers=[3, 4])
    assert found == [Overtaking(3, stays, clear), Overtaking(4, None, None)]


def test_shapes_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"for 2 layers .* got \(1, 3\) and \(1, 3\)"):
        overtakings([[0.1, 0.2, 0.0]], [[0.1, 0.2, 0.0]], layers=[0, 1])
    with pytest.raises(ValueError, match=r"got \(1, 2\) and \(2, 2\)"):
        overtakings([[0.1, 0.0]], [[0.1, 0.0], [0.1, 0.0]], layers=[0, 1])
