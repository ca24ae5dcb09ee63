"""Bootstrap draws of scores: what a draw holds, and how much it varies."""

from __future__ import annotations

import numpy as np
import pytest

from layerrank.operators.ranking.draws import draw_scores
from tests.operators.ranking.test_ranking_evidence import folded, noisy, sampled, single


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


def test_the_chunks_hold_every_draw_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerrank.operators.ranking.draws.CHUNK_NUMBERS", 24 * 7)
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


def test_a_layer_without_a_score_is_in_no_draw() -> None:
    tasks = [single("a", [0.4, np.nan]), single("b", [0.5, 0.6])]
    assert np.isnan(draw_scores(tasks, draws=50)).all(axis=1).tolist() == [False, True]
