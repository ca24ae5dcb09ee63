"""Simulated scores of layers, and vectors from memory, for tests of what is made from them."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from layerrank.operators.probes.fold import FoldScore
from layerrank.operators.ranking.search import Round, Rule, State, replay

Scores = npt.NDArray[np.float64]


def peaked(n_layers: int = 13, n_tasks: int = 1, n_folds: int = 10, seed: int = 0) -> Scores:
    """Scores with the best layer at two thirds, and more noise between folds than layers."""
    generator = np.random.default_rng(seed)
    mean = 0.7 - 0.0008 * (np.arange(n_layers) - 2 * n_layers / 3) ** 2
    of_fold = generator.normal(0, 0.02, size=(1, n_tasks, n_folds))
    noise = generator.normal(0, 0.01, size=(n_layers, n_tasks, n_folds))
    return mean[:, None, None] + of_fold + noise


def values(scores: Sequence[FoldScore]) -> list[float]:
    """Return what a probe scored, fold by fold."""
    return [score.value for score in scores]


def search(
    scores: Scores, rule: Rule | None = None, layers: Sequence[int] | None = None
) -> tuple[State, list[Round]]:
    """Score what the next round of a search misses until nothing does.

    Return what is scored then, NaN where nothing is, and the rounds.
    """
    layers = layers or range(len(scores))
    n_folds = tuple((~np.isnan(scores[0])).sum(axis=1).tolist())
    nothing = np.full(scores.shape, np.nan), np.zeros(scores.shape, dtype=bool)
    state = State(tuple(layers), n_folds, *nothing)
    while (rounds := replay(state, rule or Rule()))[-1].missing:
        for cells in rounds[-1].missing:
            where = layers.index(cells.layer), cells.task, slice(cells.fold_from, cells.fold_to)
            state.scores_LTF[where] = scores[where]
            state.done_LTF[where] = True
    return state, rounds


def text_table(
    texts: Sequence[str], vectors_ND: npt.NDArray[np.float32]
) -> Callable[[Sequence[str], str], npt.NDArray[np.float32]]:
    """Return a lookup of vectors by text; KeyError with the first text that has none."""
    row = {text: at for at, text in enumerate(texts)}
    return lambda asked, _: vectors_ND[[row[text] for text in asked]]
