"""Evidence on layers: closed forms, invariances, grids with holes, a published known outcome."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerrank.operators.ranking.choosing import choose, left_out
from layerrank.operators.ranking.evidence import (
    Evidence,
    LayerEvidence,
    Overtaking,
    overtakings,
    weigh,
)
from layerrank.operators.ranking.scores import Resampled, TaskScores
from tests.support.places import PROJECT
from tests.support.published import layer_scores

GOLDEN = PROJECT / "jobs/recipes/pythia-410m-scores.parquet"
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


def test_every_number_by_hand() -> None:
    # Means over the tasks: 0.4, 0.6, 0.4, 0.3.
    scores = np.array([[0.2, 0.6, 0.4], [0.5, 0.7, 0.6], [0.4, 0.5, 0.3], [0.5, 0.2, 0.2]])
    evidence = weigh(singles(scores), layers=[0, 1, 2, 3])
    assert column(evidence, "layer") == [0, 1, 2, 3]
    assert column(evidence, "n_tasks") == [3, 3, 3, 3]
    assert column(evidence, "score") == pytest.approx([0.4, 0.6, 0.4, 0.3])
    assert column(evidence, "rank") == [2, 1, 2, 4]
    assert column(evidence, "gain") == pytest.approx([0.1, 0.3, 0.1, 0.0])
    assert column(evidence, "shortfall") == pytest.approx([0.2, 0.0, 0.2, 0.3])
    # Behind layer 1: 0.3, 0.1, 0.2 in layer 0, whose deviation with divisor 3 is sqrt(0.02 / 3).
    assert evidence.layers[0].shortfall_se == pytest.approx(math.sqrt(0.02 / 9))
    # Ranks by task: 4, 1.5, 3, 1.5; 2, 1, 3, 4; 2, 1, 3, 4.
    assert column(evidence, "mean_rank") == pytest.approx([8 / 3, 3.5 / 3, 3, 9.5 / 3])
    assert column(evidence, "won") == pytest.approx([0, 2.5 / 3, 0, 0.5 / 3])
    assert evidence.oracle == pytest.approx((0.5 + 0.7 + 0.6) / 3)
    assert evidence.types == {"sts": 3}
    assert evidence.best is not None
    assert (evidence.best.layer, evidence.last.layer) == (1, 3)
    # Layer 0 gains -0.3, 0.4, 0.2: Student's t with 2 degrees of freedom is 4.3027.
    half = 4.3027 * math.sqrt((0.4**2 + 0.3**2 + 0.1**2) / 2 / 3)
    first = evidence.layers[0]
    assert (first.gain_low, first.gain_high) == pytest.approx((0.1 - half, 0.1 + half), abs=1e-4)
    # Layer 1 is taken by any two of the tasks; it gains 0, 0.5 and 0.4.
    assert column(evidence, "taken") == pytest.approx([0, 1, 0, 0])
    choice = evidence.choice
    assert choice is not None
    assert (choice.layer, choice.left_out) == (1, "tasks")
    assert (choice.gain, choice.naive) == pytest.approx((0.3, 0.3))
    for name in ("here_low", "score_high", "p_value", "p_max"):
        assert all(math.isnan(value) for value in column(evidence, name))


def test_a_constant_shift_is_a_gain_without_width() -> None:
    below = np.linspace(0.1, 0.8, 6)
    first, last = weigh(singles(np.stack([below + 0.05, below])), layers=[3, 4]).layers
    assert (first.gain, first.gain_low, first.gain_high) == pytest.approx((0.05, 0.05, 0.05))
    assert (first.p_value, first.p_max) == (2 / 64, 2 / 64)  # all signs alike, of 64 ways
    assert last.gain == 0
    assert math.isnan(last.gain_low)
    assert math.isnan(last.p_value)
    assert (last.shortfall, last.shortfall_se) == pytest.approx((0.05, 0))


def test_the_order_of_tasks_changes_nothing() -> None:
    tasks = noisy()
    assert same(weigh(tasks[::-1], layers=range(5)), weigh(tasks, layers=range(5)))


@given(st.integers(0, 5), st.floats(-0.4, 0.4))
def test_what_all_layers_share_does_not_touch_differences(task: int, constant: float) -> None:
    scores = 0.4 + np.random.default_rng(1).random((4, 6)) / 10
    harder = scores.copy()
    harder[:, task] += constant
    one, other = (weigh(singles(each), layers=range(4)) for each in (scores, harder))
    for name in set(NUMBERS) - {"score", "score_low", "score_high"}:
        assert column(one, name) == pytest.approx(column(other, name), nan_ok=True, abs=1e-9)


def test_equal_layers_tie_exactly_and_share_wins() -> None:
    tasks = noisy(3)
    evidence = weigh(of_rows(tasks, [1, 2, 1, 0]), layers=range(4))
    one, other = evidence.layers[0], evidence.layers[2]
    assert (one.rank, one.gain, one.won) == (other.rank, other.gain, other.won)
    alone = weigh(of_rows(tasks, [1, 2, 0]), layers=range(3)).layers[0]
    assert one.won == pytest.approx(alone.won / 2)
    same_as_last = weigh(singles(np.tile([0.3, 0.5, 0.4], (2, 1))), layers=[0, 1])
    first = same_as_last.layers[0]
    assert (first.rank, first.gain, first.gain_low, first.gain_high) == (1, 0, 0, 0)
    assert same_as_last.choice is not None
    assert same_as_last.choice.layer == 0  # of equally good layers the cheapest


@pytest.mark.parametrize("seed", range(3))
def test_shares_sum_to_one_and_ranks_to_their_mean(seed: int) -> None:
    evidence = weigh(noisy(7, seed=seed), layers=range(7))
    assert sum(column(evidence, "taken")) == pytest.approx(1)
    assert sum(column(evidence, "won")) == pytest.approx(1)
    assert np.mean(column(evidence, "mean_rank")) == pytest.approx(4)
    assert evidence.oracle >= max(column(evidence, "score"))


def test_folds_of_a_lone_task_are_the_units() -> None:
    # Layer 0 gains 0.2, 0.4, 0.0 and -0.2 in the folds, layer 1 gains 0.1 in each.
    folds = np.array([[0.5, 0.7, 0.3, 0.1], [0.4] * 4, [0.3] * 4])
    evidence = weigh([folded("only", folds)], layers=range(3))
    assert evidence.choice is not None
    assert (evidence.choice.layer, evidence.choice.left_out) == (0, "folds")
    # Without fold 1 or 2 layer 1 leads (0.067 and 0 against 0.1); without 3 and 4 layer 0 does.
    assert evidence.choice.gain == pytest.approx((0.1 + 0.1 + 0.0 - 0.2) / 4)
    assert column(evidence, "taken") == pytest.approx([0.5, 0.5, 0])
    half = 3.1824 * math.sqrt((0.1**2 + 0.3**2 + 0.1**2 + 0.3**2) / 3 / 4)
    assert evidence.choice.here_high == pytest.approx(0.1 + half, abs=1e-4)
    assert evidence.choice.here_low == pytest.approx(0.0 - half, abs=1e-4)  # around the corrected
    row = evidence.layers[1]
    assert math.isnan(row.gain_low)
    assert row.shortfall_se == pytest.approx(math.sqrt((0.1**2 + 0.3**2 + 0.1**2 + 0.3**2) / 16))


def test_replicates_of_a_lone_task_take_their_optimism_off() -> None:
    # Two layers beside the last, equal on the items; a replicate favours one of them by 0.1.
    replicates = np.array([[0.6, 0.5, 0.6, 0.5], [0.5, 0.6, 0.5, 0.6], [0.4] * 4])
    evidence = weigh([sampled("only", [0.55, 0.55, 0.4], replicates)], layers=range(3))
    assert evidence.choice is not None
    assert (evidence.choice.layer, evidence.choice.left_out) == (0, "items")
    assert evidence.choice.naive == pytest.approx(0.15)
    assert evidence.choice.gain == pytest.approx(0.15 - 0.05)  # 0.2 there, 0.15 on the items
    half = 3.1824 * math.sqrt(0.05**2 * 4 / 3)
    assert evidence.layers[1].here_high == pytest.approx(0.15 + half, abs=1e-4)


def test_an_undefined_replicate_is_left_out_in_every_layer() -> None:
    replicates = np.array([[0.1, np.nan, 0.3], [0.2, 0.9, 0.4]])
    task = sampled("a", [0.2, 0.3], replicates)
    assert task.cells.tolist() == [[0.1, 0.3], [0.2, 0.4]]


def test_a_task_without_spread_leaves_these_tasks_without_an_interval() -> None:
    for still in (single("still", [0.5, 0.4]), folded("still", [[0.5, 0.5], [0.4, 0.4]])):
        evidence = weigh([*noisy(2), still], layers=[0, 1])
        assert math.isnan(evidence.layers[0].here_low)
        assert not math.isnan(evidence.layers[0].gain_low)
    assert not math.isnan(weigh(noisy(2), layers=[0, 1]).layers[0].here_low)


def test_the_level_sets_the_interval() -> None:
    tasks = noisy()
    wide, narrow = (weigh(tasks, layers=range(5), level=level).layers[0] for level in (0.95, 0.5))
    for of in ("gain", "here", "score"):
        low, high = (getattr(narrow, f"{of}_{end}") for end in ("low", "high"))
        assert getattr(wide, f"{of}_low") < low < high < getattr(wide, f"{of}_high")


def test_unscored_tasks_do_not_count() -> None:
    tasks = noisy()
    blank = single("blank", [math.nan] * 5)
    before, after = weigh(tasks, layers=range(5)), weigh([blank, *tasks], layers=range(5))
    assert (after.unscored, before.unscored) == (["blank"], [])
    assert same(replace(after, unscored=[]), before)
    assert after.tasks == [task.task for task in tasks]


def test_a_hole_is_compared_on_the_tasks_that_both_have() -> None:
    scores = np.array([[0.9, math.nan, 0.5, 0.4], [0.6, 0.6, 0.6, 0.6], [0.5, 0.5, 0.4, 0.2]])
    evidence = weigh(singles(scores), layers=range(3))
    first = evidence.layers[0]
    assert (first.n_tasks, first.rank) == (3, 1)
    assert first.gain == pytest.approx((0.4 + 0.1 + 0.2) / 3)
    assert first.score == pytest.approx(1.8 / 3)
    assert evidence.layers[1].gain == pytest.approx((0.1 + 0.1 + 0.2 + 0.4) / 4)
    # Behind layer 0 on the three tasks that both have: 0.3, -0.1, -0.2, on average not at all.
    assert evidence.layers[1].shortfall == pytest.approx(0.0, abs=1e-12)
    assert evidence.choice is not None
    # Left out: task 0 leaves layer 1 (+0.1); tasks 2 and 3 leave layer 0; task 1 is none of its.
    assert evidence.choice.gain == pytest.approx((0.1 + 0.1 + 0.2) / 3)
    alone = weigh(singles(scores[:, [0, 2, 3]]), layers=range(3)).layers[0]
    assert (alone.gain, alone.won) == (first.gain, first.won)


def test_a_layer_with_fewer_than_half_of_the_tasks_is_listed_and_not_chosen() -> None:
    scores = np.full((3, 5), 0.5)
    scores[0] = [0.9, 0.9, *[math.nan] * 3]
    scores[1] += 0.1
    evidence = weigh(singles(scores), layers=range(3))
    thin = evidence.layers[0]
    assert (thin.n_tasks, thin.rank) == (2, None)
    assert thin.gain == pytest.approx(0.4)
    assert evidence.thin == [thin]
    assert evidence.choice is not None
    assert evidence.choice.layer == 1
    assert evidence.oracle == pytest.approx(0.6)
    scores[0, 2] = 0.9
    whole = weigh(singles(scores), layers=range(3))
    assert whole.choice is not None
    assert (whole.choice.layer, whole.thin) == (0, [])


def test_a_task_without_the_last_layer_does_not_count() -> None:
    tasks = [single("a", [0.4, 0.5, math.nan]), single("b", [0.3, 0.4, 0.2])]
    evidence = weigh(tasks, layers=range(3))
    assert (evidence.tasks, evidence.without_last) == (["b"], ["a"])
    assert column(evidence, "gain") == pytest.approx([0.1, 0.2, 0.0])
    nowhere = weigh([tasks[0]], layers=range(3))
    assert (nowhere.choice, nowhere.best) == (None, None)
    assert column(nowhere, "score")[:2] == pytest.approx([0.4, 0.5])
    assert all(math.isnan(value) for value in column(nowhere, "gain"))


@pytest.mark.parametrize("task", [single("only", [0.7, 0.6]), folded("only", [[0.7], [0.6]])])
def test_one_score_of_one_task_leaves_nothing_to_draw(task: TaskScores) -> None:
    evidence = weigh([task], layers=[0, 1])
    first, choice = evidence.layers[0], evidence.choice
    assert (first.score, first.gain, first.won, first.mean_rank) == pytest.approx((0.7, 0.1, 1, 1))
    for name in ("score_low", "gain_high", "here_low", "p_value", "p_max", "shortfall_se"):
        assert all(math.isnan(value) for value in column(evidence, name))
    assert choice is not None
    assert choice.left_out == "nothing"
    assert choice.naive == pytest.approx(0.1)
    assert math.isnan(choice.gain)


def test_no_tasks_at_all() -> None:
    for tasks in ([], [single("blank", [math.nan] * 3)]):
        evidence = weigh(tasks, layers=[0, 1, 2])
        numbers = {name: column(evidence, name) for name in NUMBERS}
        assert numbers.pop("n_tasks") == [0, 0, 0]
        assert all(math.isnan(value) for each in numbers.values() for value in each)
        assert column(evidence, "rank") == [None] * 3
        assert math.isnan(evidence.oracle)
        assert (evidence.best, evidence.choice) == (None, None)
        assert evidence.last.layer == 2


@pytest.mark.parametrize(("spread", "more"), [(0.0, None), (0.02, None), (0.1, 7), (0.3, None)])
def test_more_tasks_are_asked_for_by_the_variance_seen(spread: float, more: int | None) -> None:
    # Ten tasks show a gain of one standard deviation. With three times that the corrected gain is
    # negative, so no number of tasks is known to help.
    gains = 0.1 + spread * np.array([-1.0, 0.0, 1.0])
    choice = weigh(singles(np.stack([gains, np.zeros(3)])), layers=[0, 1]).choice
    assert choice is not None
    assert choice.more_tasks == more
    assert (choice.gain > 0) == (spread < 0.3)


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
    with pytest.raises(ValueError, match="not in ascending order"):
        weigh(noisy(), layers=[0, 2, 1, 2, 3])
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
    assert gains == pytest.approx((0.051, 0.037, 0.065), abs=1e-3)
    assert best.p_max < 0.01
    assert best.taken == 1
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


# Three tasks; two candidates of each of three layers, of which the first are as ranked.
SEVERAL = np.array(
    [
        [0.50, 0.52, 0.51],
        [0.60, 0.61, 0.59],
        [0.55, 0.50, 0.60],
        [0.54, 0.53, 0.52],
        [0.40, 0.45, 0.42],
        [0.58, 0.60, 0.57],
    ]
)
OF_LAYERS = [0, 0, 1, 1, 2, 2]


def test_every_gain_of_a_candidate_is_over_the_last_layer_as_ranked() -> None:
    found = weigh(singles(SEVERAL), layers=OF_LAYERS)
    assert found.baseline is found.candidates[4]
    gains = (SEVERAL - SEVERAL[4]).mean(axis=1)
    assert [row.gain for row in found.candidates] == pytest.approx(gains)
    assert [row.rank for row in found.candidates] == [5, 1, 3, 4, 6, 2]
    # Of a layer its best candidate counts, ranked among the layers.
    assert found.rows == [1, 2, 5]
    assert [row.layer for row in found.layers] == [0, 1, 2]
    assert [row.gain for row in found.layers] == pytest.approx(gains[[1, 2, 5]])
    assert [row.rank for row in found.layers] == [1, 3, 2]
    assert [row.won for row in found.layers] == [pytest.approx(2 / 3), pytest.approx(1 / 3), 0]
    assert sum(row.won for row in found.candidates) == pytest.approx(1)
    choice = found.choice
    assert choice is not None
    assert (choice.layer, choice.row) == (0, 1)
    picked, rows = left_out(
        (SEVERAL - SEVERAL[4]), partial(choose, cost_L=OF_LAYERS, policy="best")
    )
    assert choice.gain == pytest.approx(picked.mean())
    taken = [(rows // 2 == layer).mean() for layer in range(3)]
    assert [row.taken for row in found.layers] == pytest.approx(taken)


def test_of_equal_candidates_the_ranked_one_counts() -> None:
    scores = SEVERAL[[0, 0, 2, 2, 4, 4]]
    found = weigh(singles(scores), layers=OF_LAYERS)
    assert found.rows == [0, 2, 4]
    assert found.choice is not None
    assert found.choice.row == 2


def test_the_last_layer_as_ranked_can_stand_for_the_layer() -> None:
    found = weigh(singles(SEVERAL), layers=OF_LAYERS, keep_last=True)
    assert found.rows == [1, 2, 4]
    assert found.last is found.layers[-1]
    assert (found.last.gain, found.last.rank) == (0, 3)


def test_a_candidate_without_scores_never_counts() -> None:
    scores = SEVERAL.copy()
    scores[[1, 3]] = np.nan
    found = weigh(singles(scores), layers=OF_LAYERS)
    assert found.rows == [0, 2, 5]
    assert found.candidates[1].rank is None
    assert found.candidates[1].n_tasks == 0
