"""What a ranking is made from: the score of every layer in a task, and how that score varies.

Shapes: L layers, R resampled scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Resampled = Literal["folds", "replicates"]

# Scores closer than this are equal: the rounding of a sum is no difference between layers.
TIE = 1e-12

# Files keep scores to six decimals or fewer; a mean of folds off by more is of other folds.
_ROUNDED = 1e-4
LARGEST = 1 + 1e-9  # of a score: a V-measure of 1 may come out as the next number above it


@dataclass(frozen=True, eq=False)
class TaskScores:
    """The scores of one task in every layer, all in the order of one list of layers.

    `score_L` is the exact main score, mostly 0..1 (rank correlations reach down to -1), NaN where
    it is undefined. `resampled_LR` shows how it varies, in one of two forms. As `folds` it holds
    the scores of R folds, whose mean is the score; a draw of the bootstrap takes R of the R with
    replacement. As `replicates` it holds the score on R bootstrap samples of the test items; a draw
    takes one column. Column r is the same fold or sample in every layer, so differences between
    layers are paired. R = 0 where only the score is known.

    ValueError names the task and what is wrong: shapes that do not fit, a value outside -1..1,
    folds of a scored layer that are undefined or whose mean is not the score, a lone replicate.
    """

    task: str
    task_type: str
    score_L: Array
    resampled_LR: Array
    resampled: Resampled

    def __post_init__(self) -> None:
        object.__setattr__(self, "score_L", np.array(self.score_L, dtype=np.float64))
        object.__setattr__(self, "resampled_LR", np.array(self.resampled_LR, dtype=np.float64))
        scores, resampled = self.score_L.shape, self.resampled_LR.shape
        if len(scores) != 1 or len(resampled) != 2 or scores[0] != resampled[0]:  # noqa: PLR2004
            raise ValueError(
                f"task {self.task}: expected scores [layers] and resampled scores [layers, R] of "
                f"the same layers, got {scores} and {resampled}"
            )
        for name, values in (("scores", self.score_L), ("resampled scores", self.resampled_LR)):
            outside = values[~np.isnan(values) & ~(np.abs(values) <= LARGEST)]
            if outside.size:
                raise ValueError(
                    f"task {self.task}: {outside.size} of {values.size} {name} lie outside -1..1, "
                    f"the first is {outside[0]:g}; scores in percent must be divided by 100"
                )
        if self.resampled not in get_args(Resampled):
            raise ValueError(
                f"task {self.task}: resampled is {self.resampled!r}, not folds or replicates"
            )
        if self.resampled == "replicates":
            if resampled[1] == 1:
                raise ValueError(
                    f"task {self.task}: one replicate shows no spread; give several, or none"
                )
        elif resampled[1]:
            mean_L = self.resampled_LR.mean(axis=1)
            wrong_L = ~np.isnan(self.score_L) & ~(np.abs(mean_L - self.score_L) <= _ROUNDED)
            if wrong_L.any():
                row = int(np.argmax(wrong_L))
                raise ValueError(
                    f"task {self.task}: the score of layer number {row + 1} of {len(wrong_L)} is "
                    f"{self.score_L[row]:g}, but the mean of its {resampled[1]} folds is "
                    f"{mean_L[row]:g}"
                )

    @property
    def cells(self) -> Array:
        """What shows how the score varies, [L, R]; R = 0 where nothing does.

        A replicate that is undefined in a scored layer is left out in all layers; a layer without
        a score is NaN.
        """
        scored_L = ~np.isnan(self.score_L)
        cells_LR = self.resampled_LR[:, ~np.isnan(self.resampled_LR[scored_L]).any(axis=0)]
        return np.where(scored_L[:, None], cells_LR, np.nan)


def scored(tasks: Sequence[TaskScores]) -> list[TaskScores]:
    """Return the tasks with a score in some layer, sorted by name; the others do not count."""
    found = [task for task in tasks if not np.all(np.isnan(task.score_L))]
    return sorted(found, key=lambda task: (task.task, task.task_type))
