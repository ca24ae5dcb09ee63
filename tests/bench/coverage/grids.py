"""Tasks and folds drawn from published grids of layer scores, whose truth is known.

Shapes: L layers, M tasks of a grid, N draws of T tasks, F folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from layerrank.operators.ranking.scores import Array

Truth = Literal["real", "null", "mirrored"]
# Standard deviation of a fold's score about its layer and its fold, as measured over the folds of
# classification and clustering of MiniLM on docstrings (0.9 to 1.7 points).
NOISE = 0.012
FILES = ("layer_scores.parquet", "more_layer_scores.parquet")
FEWEST = 24  # tasks of a grid that is drawn from
# Checkpoints that have hardly been trained: the best layer is 0, by 9 to 18 points.
EARLY = tuple(f"step{step}" for step in (1, 64, 128, 256, 512, 1000))


@dataclass(frozen=True, eq=False)
class Grid:
    """The scores of a model's layers in many tasks, without holes, the last layer last."""

    name: str
    score_LM: Array

    @property
    def is_early(self) -> bool:
        """Whether it is of a checkpoint that nobody would rank."""
        return self.name.endswith(EARLY)

    def as_truth(self, truth: Truth) -> Array:
        """Return the scores with gains over the last layer as they are, without any, or mirrored.

        Of the null truth the mean gain of every layer is 0, and tasks differ as they do.
        """
        last_M = self.score_LM[-1]
        gain_LM: Array = self.score_LM - last_M
        if truth == "null":
            gain_LM = gain_LM - gain_LM.mean(axis=1, keepdims=True)
        if truth == "mirrored":
            gain_LM = -gain_LM
        score_LM: Array = last_M + gain_LM
        return score_LM


@dataclass(frozen=True)
class Draws:
    """`gain_NLT`, its variance within the tasks (NaN for one fold), and the truth.

    `true_L` is the mean gain over all tasks of the grid, `true_NL` over the tasks of a draw.
    """

    gain_NLT: Array
    variance_NLT: Array
    true_L: Array
    true_NL: Array
    folds: int

    @property
    def cost_L(self) -> Array:
        """The cost of every layer, by depth."""
        return np.linspace(0, 1, len(self.true_L))


def grids(folder: Path) -> list[Grid]:
    """Return every published grid with enough tasks, cut to the layers and tasks without holes."""
    rows = [row for name in FILES for row in pq.read_table(folder / name).to_pylist()]
    of_model: dict[str, dict[tuple[int, str], float]] = {}
    for row in rows:
        at = of_model.setdefault(f"{row['model']} {row['revision']}", {})
        at[row["layer"], row["task"]] = row["score"]
    found = (Grid(name, without_holes(cells)) for name, cells in sorted(of_model.items()))
    return [grid for grid in found if grid.score_LM.shape[1] >= FEWEST]


def without_holes(cells: dict[tuple[int, str], float]) -> Array:
    """Return [layers, tasks] after dropping whichever lacks the largest share, never the last."""
    layers, tasks = sorted({layer for layer, _ in cells}), sorted({task for _, task in cells})
    score_LM = np.array([[cells.get((layer, task), np.nan) for task in tasks] for layer in layers])
    while np.isnan(score_LM).any():
        of_layer, of_task = (np.isnan(score_LM).mean(axis=axis) for axis in (1, 0))
        of_layer[-1] = -1
        if of_layer.max() >= of_task.max():
            score_LM = np.delete(score_LM, of_layer.argmax(), axis=0)
        else:
            score_LM = np.delete(score_LM, of_task.argmax(), axis=1)
    return score_LM


def drawn(
    grid: Grid, truth: Truth, *, tasks: int, folds: int, draws: int, generator: np.random.Generator
) -> Draws:
    """Draw tasks with replacement and folds about their scores, paired over layers.

    What the layers of a fold share cancels in a gain, so it is not drawn.
    """
    score_LM = grid.as_truth(truth)
    of_draw_NT = generator.integers(score_LM.shape[1], size=(draws, tasks))
    true_NLT = (score_LM - score_LM[-1])[:, of_draw_NT].transpose(1, 0, 2)
    shape = (draws, len(score_LM), tasks)
    noise_NLT = generator.normal(0, NOISE / np.sqrt(folds), size=shape)
    gain_NLT = true_NLT + noise_NLT - noise_NLT[:, -1:]
    variance_NLT = np.full(shape, np.nan)
    if folds > 1:  # of a difference of two layers, from a sample of folds
        chi2_NLT = generator.chisquare(folds - 1, size=shape) / (folds - 1)
        variance_NLT = 2 * NOISE**2 / folds * chi2_NLT
    true_L = (score_LM - score_LM[-1]).mean(axis=1)
    return Draws(gain_NLT, variance_NLT, true_L, true_NLT.mean(axis=2), folds)
