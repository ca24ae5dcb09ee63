"""Ranking statistics: closed forms, invariances, and a published result with a known outcome."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from operators.ranking import LayerRank, rank_layers, verdict

PUBLISHED = Path(__file__).parents[2] / "shared" / "published" / "layer_scores.parquet"

Scores = npt.NDArray[np.float64]


def noisy(n_layers: int = 5, n_tasks: int = 6, n_folds: int = 4, seed: int = 0) -> Scores:
    return np.random.default_rng(seed).random((n_layers, n_tasks, n_folds))


def test_scores_ranks_and_gains_by_hand() -> None:
    # Task means by layer: (0.2, 0.6), (0.5, 0.7), (0.3, 0.5).
    scores = np.array(
        [[[0.1, 0.3], [0.6, 0.6]], [[0.4, 0.6], [0.7, 0.7]], [[0.3, 0.3], [0.4, 0.6]]]
    )
    ranking = rank_layers(scores, layers=[0, 1, 2], draws=50)
    assert [row.layer for row in ranking] == [0, 1, 2]
    assert [row.score for row in ranking] == pytest.approx([0.4, 0.6, 0.4])
    assert [row.rank for row in ranking] == [2, 1, 2]
    assert [row.gain for row in ranking] == pytest.approx([0.0, 0.2, 0.0])


def test_tasks_weigh_equally_whatever_their_folds() -> None:
    scores = np.full((1, 2, 4), np.nan)
    scores[0, 0] = [0.0, 0.0, 0.4, 0.4]
    scores[0, 1, :1] = 0.8
    (row,) = rank_layers(scores, layers=[0])
    assert row.score == pytest.approx((0.2 + 0.8) / 2)
    # The first task can be drawn twice with only its lowest folds, the second one twice.
    assert row.score_low < 0.15
    assert row.score_high == pytest.approx(0.8)


def test_a_constant_shift_is_a_gain_without_width() -> None:
    last = noisy(1)[0]
    ranking = rank_layers(np.stack([last + 0.05, last]), layers=[3, 4])
    assert ranking[0].gain == pytest.approx(0.05)
    assert (ranking[0].gain_low, ranking[0].gain_high) == pytest.approx((0.05, 0.05))
    assert ranking[0].score_high - ranking[0].score_low > 0.1
    assert (ranking[1].gain, ranking[1].gain_low, ranking[1].gain_high) == (0, 0, 0)


def test_order_of_tasks_and_folds_does_not_change_scores() -> None:
    scores = noisy()
    generator = np.random.default_rng(1)
    shuffled = scores[:, generator.permutation(6)][:, :, generator.permutation(4)]
    before = rank_layers(scores, layers=range(5))
    after = rank_layers(shuffled, layers=range(5))
    assert [row.rank for row in before] == [row.rank for row in after]
    for one, other in zip(before, after, strict=True):
        assert (one.score, one.gain) == pytest.approx((other.score, other.gain))
        assert (one.gain_low, one.gain_high) == pytest.approx(
            (other.gain_low, other.gain_high), abs=0.02
        )


def test_what_all_layers_share_does_not_touch_the_gain() -> None:
    scores = noisy() / 10
    harder = scores.copy()
    harder[:, 2] += 5
    for one, other in zip(
        rank_layers(scores, layers=range(5)), rank_layers(harder, layers=range(5)), strict=True
    ):
        assert (one.gain, one.gain_low, one.gain_high) == pytest.approx(
            (other.gain, other.gain_low, other.gain_high)
        )
        assert other.score_high - other.score_low > 10 * (one.score_high - one.score_low)


def test_interval_of_independent_folds_has_the_width_of_the_standard_error() -> None:
    differences = np.random.default_rng(2).normal(0.3, 0.1, size=400)
    scores = np.stack([differences, np.zeros(400)])
    half_width = 1.96 * differences.std() / math.sqrt(400)
    only_folds = rank_layers(scores[:, None, :], layers=[0, 1])[0]
    only_tasks = rank_layers(scores[:, :, None], layers=[0, 1])[0]
    for row in (only_folds, only_tasks):
        assert row.gain_high - row.gain == pytest.approx(half_width, rel=0.1)
        assert row.gain - row.gain_low == pytest.approx(half_width, rel=0.1)


def test_both_stages_add_their_variance() -> None:
    generator = np.random.default_rng(3)
    n_tasks, n_folds = 60, 5
    of_task = generator.normal(0, 0.1, size=(n_tasks, 1))
    scores = (of_task + generator.normal(0, 0.3, size=(n_tasks, n_folds)))[None]
    (row,) = rank_layers(scores, layers=[0])
    task_means = scores[0].mean(axis=1)
    variance = (task_means.var() + scores[0].var(axis=1).mean() / n_folds) / n_tasks
    assert (row.score_high - row.score_low) / 2 == pytest.approx(1.96 * variance**0.5, rel=0.05)


def test_the_level_and_the_seed_set_the_interval() -> None:
    scores = noisy()
    wide, narrow = (rank_layers(scores, layers=range(5), level=level)[0] for level in (0.95, 0.5))
    assert wide.gain_low < narrow.gain_low < narrow.gain_high < wide.gain_high
    assert rank_layers(scores, layers=range(5)) == rank_layers(scores, layers=range(5))
    assert rank_layers(scores, layers=range(5), seed=1)[0].gain_low != wide.gain_low


def test_the_chunks_hold_every_draw_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("operators.ranking.CHUNK_NUMBERS", 24 * 7)
    differences = np.random.default_rng(2).normal(0.3, 0.1, size=(1, 6, 4))
    chunked = rank_layers(differences, layers=[0], draws=3001)[0]
    only = rank_layers(differences, layers=[0], draws=1)[0]
    assert only.score_low == only.score_high
    monkeypatch.undo()
    whole = rank_layers(differences, layers=[0], draws=3001)[0]
    assert chunked.score == whole.score
    assert chunked.score_low == pytest.approx(whole.score_low, abs=0.005)
    assert chunked.score_high == pytest.approx(whole.score_high, abs=0.005)


def test_padding_and_unscored_tasks_do_not_count() -> None:
    scores = noisy()
    padded = np.full((5, 8, 7), np.nan)
    padded[:, 1:7, 2:6] = scores
    for one, other in zip(
        rank_layers(scores, layers=range(5)), rank_layers(padded, layers=range(5)), strict=True
    ):
        assert one == other


def test_a_layer_that_lacks_a_fold_has_no_score_and_comes_last() -> None:
    scores = noisy()
    scores[1, 3, 2] = np.nan
    ranking = rank_layers(scores, layers=range(5))
    assert math.isnan(ranking[1].score)
    assert math.isnan(ranking[1].gain_low)
    assert sorted(row.rank for row in ranking) == [1, 2, 3, 4, 5]
    assert ranking[1].rank == 5


def test_one_fold_of_one_task_has_no_interval() -> None:
    ranking = rank_layers(np.array([[[0.7]], [[0.6]]]), layers=[0, 1])
    assert ranking[0].gain == pytest.approx(0.1)
    assert math.isnan(ranking[0].gain_low)
    assert math.isnan(ranking[0].score_high)
    advice = verdict(ranking)
    assert (advice.kind, advice.layer) == ("not_enough_evidence", 1)
    assert "10.0 points" in advice.sentence
    assert "no interval" in advice.sentence


def test_the_last_layer_is_the_largest_number() -> None:
    scores = noisy(3)
    ranking = rank_layers(scores, layers=[8, 24, 16])
    assert [row.layer for row in ranking] == [8, 24, 16]
    assert ranking[1].gain == 0
    assert ranking[0].gain == pytest.approx(ranking[0].score - ranking[1].score)


@pytest.mark.parametrize(
    ("scores", "layers", "message"),
    [
        (noisy()[:, 0], range(5), r"\[layers, tasks, folds\] for 5 layers, got \(5, 4\)"),
        (noisy(), range(4), r"for 4 layers, got \(5, 6, 4\)"),
        (noisy(), [0, 1, 1, 2, 3], "repeated"),
        (np.array([[[0.5, np.inf]]]), [0], "1 of 2 are infinite"),
    ],
)
def test_tables_without_meaning_are_errors(scores: Scores, layers: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_layers(scores, layers=layers)


@pytest.mark.parametrize("settings", [{"draws": 0}, {"level": 1.0}, {"level": 95.0}])
def test_settings_out_of_range_are_errors(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="draws must be at least 1 and level in"):
        rank_layers(noisy(), layers=range(5), **settings)  # type: ignore[arg-type]


def place(layer: int, score: float, rank: int, gain: float, half_width: float) -> LayerRank:
    return LayerRank(
        layer=layer,
        score=score,
        rank=rank,
        gain=gain,
        gain_low=gain - half_width,
        gain_high=gain + half_width,
        score_low=score - half_width,
        score_high=score + half_width,
    )


LAST = place(24, 0.468, 3, 0.0, 0.0)
UNSCORED = place(24, math.nan, 2, math.nan, 0.0)


@pytest.mark.parametrize(
    ("ranking", "kind", "layer", "sentence"),
    [
        (
            [place(17, 0.519, 1, 0.051, 0.013), LAST],
            "use_layer",
            17,
            "Use layer 17: it scores 5.1 points more than the last layer "
            "(95 % interval 3.8 to 6.4).",
        ),
        (
            [place(17, 0.472, 1, 0.004, 0.006), LAST],
            "not_enough_evidence",
            24,
            "Not enough evidence: layer 17 scores 0.4 points more than the last layer, but the "
            "95 % interval -0.2 to 1.0 includes 0.",
        ),
        (
            [place(9, 0.4684, 1, 0.0004, 0.0001), place(4, 0.4684, 1, 0.0004, 0.0001), LAST],
            "use_layer",
            4,
            "Use layer 4: it scores 0.04 points more than the last layer "
            "(95 % interval 0.03 to 0.05).",
        ),
        (
            [
                place(22, 0.45, 3, -0.018, 0.002),
                place(23, 0.46, 2, -0.008, 0.002),
                place(24, 0.468, 1, 0, 0),
            ],
            "keep_last",
            24,
            "Keep the last layer (24): no other layer scores more; the gain of the nearest, "
            "layer 23, is -0.8 points (95 % interval -1.0 to -0.6).",
        ),
        (
            [place(23, 0.468, 1, 0.0, 0.002), place(24, 0.468, 1, 0, 0)],
            "keep_last",
            24,
            "Keep the last layer (24): no other layer scores more; the gain of the nearest, "
            "layer 23, is 0.0 points (95 % interval -0.2 to 0.2).",
        ),
        (
            [place(24, 0.468, 1, 0, 0)],
            "keep_last",
            24,
            "Keep the last layer (24): no other layer scores more.",
        ),
        (
            [place(23, math.nan, 2, math.nan, 0), UNSCORED],
            "not_enough_evidence",
            24,
            "Not enough evidence: no labelled task was scored.",
        ),
        (
            [place(23, 0.468, 1, math.nan, 0), UNSCORED],
            "not_enough_evidence",
            24,
            "Not enough evidence: the last layer (24) was not scored on every task.",
        ),
    ],
)
def test_verdicts(ranking: list[LayerRank], kind: str, layer: int, sentence: str) -> None:
    advice = verdict(ranking)
    assert (advice.kind, advice.layer, advice.sentence) == (kind, layer, sentence)


def test_no_tasks_at_all() -> None:
    for scores in (np.zeros((3, 0, 0)), np.full((3, 2, 2), np.nan)):
        ranking = rank_layers(scores, layers=[0, 1, 2])
        assert all(math.isnan(row.score) for row in ranking)
        advice = verdict(ranking)
        assert (advice.kind, advice.layer) == ("not_enough_evidence", 2)
        assert "no labelled task" in advice.sentence
    with pytest.raises(ValueError, match="no layers"):
        verdict([])


def test_the_verdict_names_the_level() -> None:
    ranking = rank_layers(noisy(2) + np.array([[[1.0]], [[0.0]]]), layers=[0, 1], level=0.9)
    assert "(90 % interval" in verdict(ranking, level=0.9).sentence


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published layer scores are not here")
def test_pythia_410m_is_best_at_layer_17_of_24() -> None:
    rows = pq.read_table(PUBLISHED, filters=[("revision", "=", "main")]).to_pylist()
    tasks = sorted({row["task"] for row in rows})
    scores = np.full((25, len(tasks), 1), np.nan)
    for row in rows:
        scores[row["layer"], tasks.index(row["task"]), 0] = row["score"]
    assert len(tasks) == 32
    ranking = rank_layers(scores, layers=range(25))
    best = min(ranking, key=lambda row: row.rank)
    assert best.layer == 17
    assert (best.score, ranking[24].score) == pytest.approx((0.519, 0.468), abs=5e-4)
    assert (best.gain, best.gain_low, best.gain_high) == pytest.approx(
        (0.051, 0.038, 0.065), abs=1.5e-3
    )
    assert verdict(ranking).kind == "use_layer"
