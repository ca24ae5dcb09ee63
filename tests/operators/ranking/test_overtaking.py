"""When each layer overtook the last one: closed forms and invariants."""

from __future__ import annotations

import numpy as np
import pytest

from operators.ranking.overtaking import Overtaking, overtakings

NAN = float("nan")


def _of(gains: list[float], lows: list[float] | None = None) -> tuple[int | None, int | None]:
    """Return when one layer beside the last overtook it."""
    lows = lows or [gain - 1 for gain in gains]
    both = [[[value, 0.0] for value in values] for values in (gains, lows)]
    first, last = overtakings(both[0], both[1], layers=[3, 4])
    assert last == Overtaking(4, None, None)
    assert first.layer == 3
    return first.stays_above, first.clearly_above


@pytest.mark.parametrize(
    ("gains", "stays"),
    [
        ([0.1, 0.2, 0.3], 0),
        ([-0.1, 0.2, 0.3], 1),
        ([0.1, -0.2, 0.3], 2),
        ([0.1, 0.2, -0.3], None),
        ([0.1, NAN, 0.3], 2),
        ([0.1, 0.2, NAN], None),
        ([0.1, 0.0, 0.3], 2),
        ([-0.1, 1e-13, 0.3], 2),
        ([0.3], 0),
    ],
)
def test_a_layer_stays_above_from_the_end_of_its_last_fall(
    gains: list[float], stays: int | None
) -> None:
    assert _of(gains)[0] == stays


@pytest.mark.parametrize(
    ("gains", "lows", "clear"),
    [
        ([0.1, 0.2, 0.3], [-0.1, 0.1, 0.2], 1),
        ([0.1, 0.2, -0.3], [0.05, 0.1, -0.4], 0),
        ([0.1, 0.2, 0.3], [NAN, NAN, 0.1], 2),
        ([0.1, 0.2, 0.3], [-0.1, 0.0, -0.1], None),
        ([0.1, 0.2], [NAN, NAN], None),
    ],
)
def test_a_layer_is_clearly_above_once_its_interval_is(
    gains: list[float], lows: list[float], clear: int | None
) -> None:
    assert _of(gains, lows)[1] == clear


def test_an_older_checkpoint_shifts_what_came_after_it() -> None:
    generator = np.random.default_rng(0)
    gain_SL = generator.normal(size=(6, 5))
    low_SL = gain_SL - generator.uniform(size=(6, 5))
    before = overtakings(gain_SL, low_SL, layers=range(5))
    behind = np.full((1, 5), -1.0)
    after = overtakings(np.vstack([behind, gain_SL]), np.vstack([behind, low_SL]), layers=range(5))
    assert any(each.stays_above is not None for each in before)
    for old, new in zip(before, after, strict=True):
        for name in ("stays_above", "clearly_above"):
            first, shifted = getattr(old, name), getattr(new, name)
            assert shifted == (None if first is None else first + 1)


def test_shapes_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"for 2 layers .* got \(1, 3\) and \(1, 3\)"):
        overtakings([[0.1, 0.2, 0.0]], [[0.1, 0.2, 0.0]], layers=[0, 1])
    with pytest.raises(ValueError, match=r"got \(1, 2\) and \(2, 2\)"):
        overtakings([[0.1, 0.0]], [[0.1, 0.0], [0.1, 0.0]], layers=[0, 1])
