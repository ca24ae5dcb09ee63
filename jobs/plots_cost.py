"""The plot of score against cost: where the Pareto front lies, and which layers are on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from jobs import wording
from jobs.drawing import (
    ACCENT,
    CHAR_WIDTH,
    LINE_HEIGHT,
    MUTED,
    Size,
    drawing,
    finish,
    new_axes,
    to_svg,
)
from jobs.findings import LayerFinding, SubjectFinding
from jobs.plots import marks

_APART = 15  # pixels from a point to the middle of its name
_CLEAR = 6  # pixels around a point and half a whisker that no name may cover
_Box = tuple[float, float, float, float]  # left, bottom, right, top


@drawing()
def cost_plot(subject: SubjectFinding, name: str, size: Size) -> Markup:
    """Draw score against cost: the front, and how far each layer is from the best.

    A whisker is one standard error of the difference to the best layer, upwards: where it reaches
    the best score, the layer is within one standard error of it.
    """
    figure, axes = new_axes(size, [])
    rows = wording.scored(subject)
    best = max(_y(row) for row in rows)
    axes.axhline(best, color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    _draw_front(axes, rows)
    for row in rows:
        colour = ACCENT if row.front else MUTED
        equal = wording.is_equal(row)
        axes.vlines(
            _x(row), _y(row), _top(row), color=colour, linewidth=1.4, alpha=1 if equal else 0.5
        )
        axes.plot(_x(row), _y(row), color=colour, marker="o", markersize=6 if row.front else 4)
        if row.layer == subject.verdict.layer:
            (ring,) = axes.plot(_x(row), _y(row), color=colour, marker="o", markersize=12, zorder=5)
            ring.set_markerfacecolor("none")
    axes.set_ylabel("score, points")
    finish(axes, [0, 100], "compute of a token, % of the whole model")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.margins(y=0.2)
    axes.autoscale_view()  # else the limits are not those of the names' places yet
    _name_points(axes, subject, rows)
    title = f"Score of every layer of {subject.name} against its cost"
    return to_svg(figure, name, title, _words(rows))


def _x(row: LayerFinding) -> float:
    return 100 * row.cost


def _y(row: LayerFinding) -> float:
    return 100 * (row.score or 0.0)


def _top(row: LayerFinding) -> float:
    return _y(row) + 100 * (row.shortfall_se or 0.0)


def _draw_front(axes: Axes, rows: Sequence[LayerFinding]) -> None:
    """Draw the best score that each amount of compute can buy, as steps."""
    x, y = zip(*_corners(rows), strict=True)
    axes.plot(x, y, color=ACCENT, linewidth=1.6, zorder=2)


def _corners(rows: Sequence[LayerFinding]) -> list[tuple[float, float]]:
    """Return the corners of the steps, from the cheapest layer to the whole model."""
    front = sorted((_x(row), _y(row)) for row in rows if row.front)
    ends = [*(x for x, _ in front[1:]), 100.0]
    return [
        corner for (x, y), end in zip(front, ends, strict=True) for corner in ((x, y), (end, y))
    ]


def _name_points(axes: Axes, subject: SubjectFinding, rows: Sequence[LayerFinding]) -> None:
    """Name the layers that matter in words, then the front and the others by number.

    A number for which there is no free place is left out: the table below has every layer.
    """
    words = marks(subject)
    order = sorted(rows, key=lambda row: (row.layer not in words, not row.front, row.layer))
    taken = [*_lines(axes, rows), *(box for row in rows for box in _covered(axes, row))]
    for row in order:
        text, colour = words.get(row.layer, (str(row.layer), ACCENT if row.front else MUTED))
        width = len(text) * CHAR_WIDTH
        places = list(_places(axes, row, width))
        free = [each for each in places if not any(_overlap(_box(each, width), t) for t in taken)]
        if not free and row.layer not in words:
            continue
        x, y = free[0] if free else places[0]
        taken.append(_box((x, y), width))
        axes.annotate(text, (x, y), xycoords="axes pixels", ha="center", va="center", color=colour)


def _pixel(axes: Axes, x: float, y: float) -> tuple[float, float]:
    right, up = axes.transData.transform((x, y)) - axes.transAxes.transform((0, 0))
    return float(right), float(up)


def _lines(axes: Axes, rows: Sequence[LayerFinding]) -> Iterator[_Box]:
    """Yield what the steps of the front and the line of the best score cover."""
    best = max(_y(row) for row in rows)
    corners = [_pixel(axes, *corner) for corner in _corners(rows)]
    ends = [_pixel(axes, 0, best), _pixel(axes, 100, best)]
    for one, other in [*pairwise(corners), (ends[0], ends[1])]:
        (left, right), (low, high) = sorted((one[0], other[0])), sorted((one[1], other[1]))
        yield left - 1, low - 1, right + 1, high + 1


def _covered(axes: Axes, row: LayerFinding) -> Iterator[_Box]:
    """Yield what a point and its whisker cover."""
    x, y = _pixel(axes, _x(row), _y(row))
    yield x - _CLEAR, y - _CLEAR, x + _CLEAR, y + _CLEAR
    _, top = _pixel(axes, _x(row), _top(row))
    yield x - 2, y, x + 2, top


def _places(axes: Axes, row: LayerFinding, width: float) -> Iterator[tuple[float, float]]:
    """Yield where the middle of a point's name may lie, the usual place first."""
    x, y = _pixel(axes, _x(row), _y(row))
    right, height = axes.transAxes.transform((1, 1)) - axes.transAxes.transform((0, 0))
    aside = width / 2 + _CLEAR + 2
    around = [(0, -_APART), (aside, -_APART), (-aside, -_APART), (aside, 0), (-aside, 0)]
    around += [(0, _APART), (aside, _APART), (-aside, _APART), (0, -2 * _APART), (0, 2 * _APART)]
    for across, up in around:
        inside = min(max(x + across, width / 2), float(right) - width / 2)
        if LINE_HEIGHT / 2 <= y + up <= float(height):
            yield inside, y + up
    yield min(max(x, width / 2), float(right) - width / 2), y - _APART


def _box(middle: tuple[float, float], width: float) -> _Box:
    x, y = middle
    return x - width / 2, y - LINE_HEIGHT / 2, x + width / 2, y + LINE_HEIGHT / 2


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _words(rows: Sequence[LayerFinding]) -> str:
    """Return the plot in words: who is on the front, and every point."""
    front = ", ".join(str(row.layer) for row in rows if row.front)
    each = "; ".join(f"layer {row.layer}: {_y(row):.1f} at {_x(row):.0f} %" for row in rows)
    return f"On the Pareto front: layers {front}. Points at their share of the compute: {each}."
