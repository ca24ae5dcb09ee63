"""When, over training, a layer came to score above the last one.

Shapes: S checkpoints from the oldest to the newest, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from operators.ranking.scores import TIE, Array


@dataclass(frozen=True)
class Overtaking:
    """Since when a layer scores above the last one, as indices of checkpoints; None: it does not.

    - `stays_above`: the first checkpoint from which on the layer's gain over the last layer is
      above 0 in every checkpoint, the newest among them.
    - `clearly_above`: the first checkpoint at which the interval of the gain lies above 0. It may
      be earlier, if the layer fell behind again, or later, or be there alone.
    """

    layer: int
    stays_above: int | None
    clearly_above: int | None


def overtakings(
    gain_SL: Sequence[Sequence[float]] | Array,
    low_SL: Sequence[Sequence[float]] | Array,
    *,
    layers: Sequence[int],
) -> list[Overtaking]:
    """Return when each layer overtook the last one.

    `gain_SL` is each layer's score minus the last layer's at the same checkpoint, `low_SL` the
    lower end of its interval. A gain that is unknown (NaN) is not above 0, so it breaks a run of
    checkpoints; of a tie the same holds. Each comparison is one layer's own at one checkpoint: with
    many of both, some intervals lie above 0 by chance. ValueError if the shapes differ.

    >>> overtakings([[-0.1, 0.0], [0.2, 0.0], [0.3, 0.0]], [[-0.2, 0], [-0.1, 0], [0.1, 0]],
    ...             layers=[0, 1])[0]
    Overtaking(layer=0, stays_above=1, clearly_above=2)
    """
    gain_SL, low_SL = np.asarray(gain_SL, np.float64), np.asarray(low_SL, np.float64)
    if gain_SL.shape != low_SL.shape or gain_SL.shape[1:] != (len(layers),):
        raise ValueError(
            f"expected a gain and its lower end for {len(layers)} layers at every checkpoint, got "
            f"{gain_SL.shape} and {low_SL.shape}"
        )
    above_SL, clear_SL = gain_SL > TIE, low_SL > TIE
    # Counted from the newest back: whether the layer is above there and everywhere later.
    staying_SL = np.logical_and.accumulate(above_SL[::-1], axis=0)[::-1]
    return [
        Overtaking(int(layer), _first(staying_SL[:, index]), _first(clear_SL[:, index]))
        for index, layer in enumerate(layers)
    ]


def _first(true_S: npt.NDArray[np.bool_]) -> int | None:
    return int(np.argmax(true_S)) if true_S.any() else None
