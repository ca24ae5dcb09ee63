"""When each layer overtook the last one: closed forms and invariants."""

from __future__ import annotations

import numpy as np
import pytest

from operators.ranking.overtaking import Overtaking, overtakings

NAN = float("nan")


@pytest.mark.parametrize(
    ("gains", "lows", "stays", "clear"),
    [
        ([0.1, 0.2, 0.3], None, 0, None),
        ([-0.1, 0.2, 0.3], None, 1, None),
        ([0.1, -0.2, 0.3], None, 2, None),
        ([0.1, 0.2, -0.3], None, None, None),
        ([0.1, NAN, 0.3], None, 2, None),
        ([0.1, 0.2, NAN], None, None, None),
        ([0.1, 0.0, 0.3], None, 2, None),
        ([-0.1, 1e-13, 0.3], None, 2, None),
        ([0.3], None, 0, None),
        ([0.1, 0.2, 0.3], [-0.1, 0.1, 0.2], 0, 1),
        ([0.1, 0.2, -0.3], [0.05, 0.1, -0.4], None, 0),
        ([0.1, 0.2, 0.3], [NAN, NAN, 0.1], 0, 2),
        ([0.1, 0.2, 0.3], [-0.1, 0.0, -0.1], 0, None),
        ([0.1, 0.2], [NAN, NAN], 0, None),
    ],
)
def test_a_layer_stays_above_from_its_last_fall_and_clearly_once_its_interval_is(
    gains: list[float], lows: list[float] | None, stays: int | None, clear: int | None
) -> None:
    both = [[[value, 0.0] for value in values] for values in (gains, lows or [-1.0] * len(gains))]
    found = overtakings(both[0], both[1], layers=[3, 4])
    assert found == [Overtaking(3, stays, clear), Overtaking(4, None, None)]


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
