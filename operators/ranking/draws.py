"""Bootstrap draws of the mean score: tasks first, then what varies within a task.

Shapes: L layers, T tasks, C cells (one fold or replicate of one task, or its only score), B draws,
S slots of a draw (as many as tasks, each filled with a task drawn with replacement), K cells that
a slot takes.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from layerrank.operators.ranking.scores import Array, TaskScores, scored

Counts = npt.NDArray[np.int64]

# Random numbers per chunk of draws: 4 MiB as float64, whatever the number of tasks and folds.
CHUNK_NUMBERS = 2**19


def draw_scores(tasks: Sequence[TaskScores], *, seed: int = 0, draws: int = 10_000) -> Array:
    """Mean score over tasks of every layer in every draw, [L, B]; all layers see the same draws.

    The bootstrap in two stages (Efron and Tibshirani 1993, *An Introduction to the Bootstrap*;
    hierarchical data in Davison and Hinkley 1997, *Bootstrap Methods and their Application*,
    chapter 3). A draw takes as many tasks as there are, with replacement, and for each as many of
    its folds, with replacement, or one of its replicates. With one task only its folds or
    replicates vary; where every task has a single score only tasks do. With nothing to draw from,
    one score of one task or none, there are no draws: B = 0.

    The draws depend on the seed and the tasks, not on the order of tasks or layers. A task without
    any score does not count; a layer without a score in a task that counts is NaN in every draw. A
    replicate that is undefined in a scored layer is left out in all layers of its task.
    """
    counted = scored(tasks)
    if not counted:
        return np.empty((len(tasks[0].score_L) if tasks else 0, 0))
    cells = [task.cells if task.cells.shape[1] else task.score_L[:, None] for task in counted]
    n_cells_T = np.array([each.shape[1] for each in cells])
    n_taken_T = np.where([task.resampled == "replicates" for task in counted], 1, n_cells_T)
    cells_CL = np.ascontiguousarray(np.concatenate(cells, axis=1).T)
    if len(cells_CL) == 1:
        return np.empty((cells_CL.shape[1], 0))
    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK_NUMBERS // int(len(counted) * n_taken_T.max()))
    drawn_BL = np.concatenate(
        [
            _weights(n_cells_T, n_taken_T, min(chunk, draws - start), generator) @ cells_CL
            for start in range(0, draws, chunk)
        ]
    )
    drawn_BL[:, np.isnan(cells_CL).any(axis=0)] = np.nan
    return np.ascontiguousarray(drawn_BL.T)


def _weights(
    n_cells_T: Counts, n_taken_T: Counts, n_draws: int, generator: np.random.Generator
) -> csr_array:
    """Weight of the drawn cells in every draw, sparse [B, C]; a draw's weights sum to 1.

    A slot of a draw holds a task; each of the k cells it takes adds 1 / (k * number of slots). A
    task drawn twice draws its cells anew.
    """
    n_tasks = len(n_cells_T)
    task_BS = generator.integers(n_tasks, size=(n_draws, n_tasks))
    uniform_BSK = generator.random((n_draws, n_tasks, int(n_taken_T.max())))
    nth_BSK = (uniform_BSK * n_cells_T[task_BS][..., None]).astype(np.int64)
    cell_BSK = (np.cumsum(n_cells_T) - n_cells_T)[task_BS][..., None] + nth_BSK
    # A task that takes fewer cells than another leaves the rest of its slot without weight.
    n_taken_BS1 = n_taken_T[task_BS][..., None]
    taken_BSK = np.arange(uniform_BSK.shape[2]) < n_taken_BS1
    weight_BSK = np.broadcast_to(1 / (n_taken_BS1 * n_tasks), taken_BSK.shape)
    starts = np.concatenate([[0], np.cumsum(taken_BSK.sum(axis=(1, 2)))])
    shape = (n_draws, int(n_cells_T.sum()))
    return csr_array((weight_BSK[taken_BSK], cell_BSK[taken_BSK], starts), shape=shape)
