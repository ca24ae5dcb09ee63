"""Charts as inline SVG: text stays text, every point says its value on hover.

Colours are the page's own CSS variables, so that a chart follows the page into dark mode. Figures
are drawn without pyplot, in CSS pixels (72 dpi make a point a pixel).
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from layerrank.jobs.report.charts import HeatMap, Histogram, Line, Lines, Look, Plot, Scatter, Shape


@dataclass(frozen=True)
class Size:
    """Pixels of a chart: the whole, and the margins around the axes."""

    width: int
    height: int
    left: int = 44
    right: int = 12
    top: int = 12
    bottom: int = 42
    label_chars: int = 24

    @property
    def inner_height(self) -> int:
        """The height of the axes."""
        return self.height - self.top - self.bottom


SIZES: dict[Shape, tuple[Size, ...]] = {  # two: for wide and for narrow windows
    "wide": (Size(1040, 340), Size(368, 290, label_chars=13)),
    "low": (Size(1040, 220), Size(368, 210, label_chars=13)),
    "panel": (Size(330, 210, left=56),),
    "small": (Size(144, 92, left=2, right=2, top=4, bottom=20),),
}
# The page's variables by the colour that matplotlib draws in their stead.
_VARIABLES = {
    f"#0102{number:02x}": name
    for number, name in enumerate(
        ("ink", "muted", "rule", "accent", "band", "second", "third", "fourth"), 1
    )
}
INK, MUTED, RULE, ACCENT, BAND, SECOND, THIRD, FOURTH = _VARIABLES
_COLOURS = (ACCENT, SECOND, THIRD, FOURTH)
_DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2), (2, 2), (8, 2, 2, 2))
_DASHED = (0, (4, 2))
_LOOKS: dict[Look, dict[str, Any]] = {
    "strong": {"color": ACCENT, "linewidth": 2.2, "marker": "o", "markersize": 4, "zorder": 4},
    "second": {"color": INK, "linewidth": 2, "linestyle": _DASHED, "marker": "o", "zorder": 4},
    "beside": {"color": MUTED, "linewidth": 1.4, "linestyle": _DASHED, "zorder": 2},
    "plain": {"color": MUTED, "linewidth": 1.6, "zorder": 3},
    "faint": {"color": MUTED, "linewidth": 1, "alpha": 0.45, "zorder": 2},
    "level": {"color": ACCENT, "linewidth": 1.6, "zorder": 3},
    "clean": {"color": INK, "linewidth": 1.4, "linestyle": _DASHED, "zorder": 5},
    "thin": {"linewidth": 1.2, "zorder": 3},
    "model": {"linewidth": 2, "marker": "o", "markersize": 3, "zorder": 3},
}
_BANDS: dict[Look, tuple[str, float]] = {"strong": (BAND, 1.0), "second": (MUTED, 0.18)}
_DPI = 72
_LINE_HEIGHT, _CHAR_WIDTH = 15, 6.8
_MOST_DOTS = 32  # on a line; more would touch
_MARK_WIDTH = 150  # of the words above a mark
_LONG_UNIT = 20  # characters that fit beside the axis
_FAINTEST = 0.07
_BAR = 12  # pixels of a scale's width, and half of that from the map
_HOVER = 7  # pixels around a point


def draw(plot: Plot, shape: Shape, name: str, title: str) -> Markup:
    """Draw a chart as SVG with ids of its own that begin with `name`, for one width or for two."""
    sizes = SIZES[shape]
    if len(sizes) == 1:
        return _drawn(plot, sizes[0], name, title)
    return Markup("").join(
        Markup('<div class="{0}">{1}</div>').format(
            window, _drawn(plot, size, f"{name}-{window}", title)
        )
        for window, size in zip(("wide", "narrow"), sizes, strict=True)
    )


def swatch(index: int) -> Markup:
    """Return the line of the model with this number, for a legend."""
    colour, dashes = _of_model(index)
    return Markup(
        '<svg viewBox="0 0 34 10" aria-hidden="true"><path d="M0 5H34" fill="none" '
        'stroke="var(--{0})" stroke-width="2.2" stroke-dasharray="{1}"/></svg>'
    ).format(_VARIABLES[colour], " ".join(f"{each:g}" for each in dashes) or "none")


class _Canvas:
    """A figure that is being drawn: its axes, and what is put over them in pixels."""

    def __init__(self, size: Size, right: float = 0) -> None:
        self.size = size
        self.figure = Figure(figsize=(size.width / _DPI, size.height / _DPI), dpi=_DPI)
        across = size.width - size.left - size.right - right
        self.axes: Axes = self.figure.add_axes(
            (
                size.left / size.width,
                size.bottom / size.height,
                across / size.width,
                size.inner_height / size.height,
            )
        )
        for patch in (self.figure.patch, self.axes.patch):
            patch.set_alpha(0)
        self.axes.spines[["top", "right", "left"]].set_visible(False)
        self.axes.spines["bottom"].set_color(RULE)
        self.axes.tick_params(length=0, labelcolor=MUTED, pad=6)
        self.over: list[Markup] = []

    def pixel(self, x: float, y: float) -> tuple[float, float]:
        """Return where a point lies, from the top left."""
        across, up = self.axes.transData.transform((x, y))
        return float(across), float(self.size.height - up)

    def hover(self, x: float, y: float, says: str) -> None:
        """Say something where the pointer is near a pixel."""
        circle = Markup('<circle cx="{0:.1f}" cy="{1:.1f}" r="{2}"><title>{3}</title></circle>')
        self.over.append(circle.format(x, y, _HOVER, says))

    def finish(self, x: Sequence[float], across: str, up: str) -> None:
        """Give the axes their grid, limits, ticks and names."""
        axes = self.axes
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.margins(x=0.02, y=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        if len(x):
            span = (max(x) - min(x)) or 1
            axes.set_xlim(min(x) - 0.02 * span, max(x) + 0.02 * span)
        axes.set_xlabel(across, color=MUTED)
        axes.set_ylabel(up, color=MUTED, fontsize=12 if len(up) <= _LONG_UNIT else 10)

    def ticks(self, ticks: Sequence[tuple[float, str]]) -> None:
        """Label the places along x, the last one and as many before it as fit."""
        shown: list[tuple[float, str]] = []
        left = math.inf
        for place, text in reversed(ticks):
            half = (len(text) * _CHAR_WIDTH + 8) / 2
            middle, _ = self.pixel(place, 0)
            if middle + half <= left:
                shown.append((place, text))
                left = middle - half
        self.axes.set_xticks([x for x, _ in shown], labels=[text for _, text in shown])

    def write(self, x: float, y: float, text: str, colour: str, **how: Any) -> None:  # noqa: ANN401
        """Write text at a pixel of the axes, from their bottom left."""
        how = {"va": "center", "annotation_clip": False, "parse_math": False, **how}
        self.axes.annotate(text, (x, y), xycoords="axes pixels", color=colour, **how)

    def svg(self, name: str, title: str, words: str) -> Markup:
        """Return the figure as an SVG element with a title and a description."""
        buffer = io.StringIO()
        self.figure.savefig(buffer, format="svg", metadata={"Date": None})
        drawn = buffer.getvalue()
        body = drawn[drawn.index("<svg") :].partition(">")[2].rpartition("</svg>")[0]
        body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
        used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
        body = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", body)
        body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
        for placeholder, variable in _VARIABLES.items():
            body = body.replace(placeholder, f"var(--{variable})")
        head = Markup(
            '<svg viewBox="0 0 {w} {h}" role="img" aria-labelledby="{id}-title {id}-words">'
            '<title id="{id}-title">{title}</title><desc id="{id}-words">{words}</desc>'
        ).format(
            w=self.size.width, h=self.size.height, id=name, title=escape(title), words=escape(words)
        )
        over = Markup('<g class="over">{0}</g>').format(Markup("").join(self.over))
        return head + Markup(body) + (over if self.over else "") + Markup("</svg>")


@contextmanager
def _plain() -> Iterator[None]:
    """Draw with matplotlib's defaults, whatever the user's own are, and with stable ids."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams["font.size"] = 12
        mpl.rcParams["font.sans-serif"] = ["DejaVu Sans"]  # which the page's own font replaces
        mpl.rcParams["lines.markersize"] = 4
        mpl.rcParams["svg.fonttype"] = "none"
        mpl.rcParams["svg.hashsalt"] = "layerrank"
        yield


def _drawn(plot: Plot, size: Size, name: str, title: str) -> Markup:
    with _plain():
        if isinstance(plot, Lines):
            canvas = _lines(plot, size)
        elif isinstance(plot, Scatter):
            canvas = _scatter(plot, size)
        elif isinstance(plot, Histogram):
            canvas = _histogram(plot, size)
        else:
            canvas = _heat_map(plot, size)
        return canvas.svg(name, title, plot.words())


def _of_model(index: int) -> tuple[str, tuple[float, ...]]:
    """Return colour and dashes of a model's line: sixteen that can be told apart."""
    turn = index // len(_COLOURS)
    return _COLOURS[index % len(_COLOURS)], _DASHES[(index + turn) % len(_DASHES)]


def _lines(plot: Lines, size: Size) -> _Canvas:
    words = [mark for mark in plot.marks if mark.text]
    places = [x for x, _ in plot.ticks] or sorted({x for line in plot.lines for x in line.x})
    span = (places[-1] - places[0]) or 1
    apart = size.width * abs(words[0].x - words[-1].x) / span if words else 0
    stacked = len(words) > 1 and apart < _MARK_WIDTH  # the words need a line each
    size = replace(size, top=size.top + _LINE_HEIGHT * (bool(words) + stacked))
    longest = max((len(_shortened(line, size)) for line in plot.lines if line.at_end), default=0)
    canvas = _Canvas(size, longest * _CHAR_WIDTH + 8 if longest else 0)
    for line in plot.lines:
        axes, look = canvas.axes, _look(plot, line)
        if line.look == "thin":
            axes.plot(line.x, _own_scale(line), transform=axes.get_xaxis_transform(), **look)
        else:
            axes.plot(line.x, line.y, **look)
        if line.low:
            colour, alpha = _BANDS.get(line.look, (BAND, 1.0))
            axes.fill_between(
                line.x, line.low, line.high, color=colour, alpha=alpha, lw=0, zorder=1
            )
            for x, low, high in line.alone():  # which fill_between leaves out
                axes.vlines(x, low, high, color=colour, linewidth=6, zorder=1)
    if plot.zero:
        canvas.axes.axhline(0, color=MUTED, linewidth=1, zorder=2)
    canvas.finish(places, plot.x, plot.y)
    if plot.ticks:
        canvas.ticks(plot.ticks)
    for mark in plot.marks:
        colour = ACCENT if mark.strong else MUTED
        canvas.axes.axvline(mark.x, color=colour, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        if mark.text:
            across, _ = canvas.pixel(mark.x, 0)
            lift = 12 + _LINE_HEIGHT * (stacked and mark is not words[0])
            side = "right" if mark.x > (places[0] + places[-1]) / 2 else "left"
            canvas.write(across - size.left, size.inner_height + lift, mark.text, colour, ha=side)
    _tell_lines(canvas, plot)
    return canvas


def _look(plot: Lines, line: Line) -> dict[str, Any]:
    """Return how a line is drawn; thin ones and models by their number among them."""
    look = {**_LOOKS[line.look], "alpha": line.opacity * _LOOKS[line.look].get("alpha", 1)}
    number = [each for each in plot.lines if each.look == line.look].index(line)
    if line.look == "thin":
        look["color"] = _COLOURS[1 + number % 3]
    elif line.look == "model":
        look["color"], dashes = _of_model(number)
        look["linestyle"] = (0, dashes) if dashes else "-"
    if line.alone():  # of which there is no line
        look["marker"] = "o"
    elif len(line.x) > _MOST_DOTS:
        look["marker"] = None
    return look


def _tell_lines(canvas: _Canvas, plot: Lines) -> None:
    """Say every point on hover, and name lines beside their last values, where none overlap."""
    bottom, top = canvas.axes.get_ylim()
    ends: list[tuple[float, Line]] = []
    for line in plot.lines:
        own = line.look == "thin"
        shares = _own_scale(line) if own else [(y - bottom) / (top - bottom) for y in line.y]
        unit, share = f" {line.unit}" if line.unit else "", 0.0
        for x, y, height in zip(line.x, line.y, shares, strict=True):
            if not math.isnan(y):
                share = height
                says = f"{line.name}, {plot.at(x)}: {y:{line.form}}{unit}"
                canvas.hover(*canvas.pixel(x, bottom + height * (top - bottom)), says)
        if line.at_end and line.points:
            ends.append((share, line))
    place, right = math.inf, canvas.axes.bbox.width + 8
    for share, line in sorted(ends, key=lambda end: -end[0]):
        place = min(share * canvas.size.inner_height, place - _LINE_HEIGHT)
        colour = _look(plot, line)["color"] if line.look == "thin" else MUTED
        canvas.write(right, place, _shortened(line, canvas.size), colour)


def _own_scale(line: Line) -> list[float]:
    """Return the values of a line as shares of the height."""
    values = [y for _, y in line.points]
    low, span = min(values, default=0.0), (max(values, default=0.0) - min(values, default=0.0)) or 1
    return [0.06 + 0.88 * (y - low) / span for y in line.y]


def _shortened(line: Line, size: Size) -> str:
    most = size.label_chars
    return line.name if len(line.name) <= most else f"{line.name[: most - 2]}.."


def _scatter(plot: Scatter, size: Size) -> _Canvas:
    canvas = _Canvas(size)
    axes = canvas.axes
    axes.axhline(plot.level, color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    if plot.steps:
        axes.plot(*zip(*plot.steps, strict=True), color=ACCENT, linewidth=1.6, zorder=2)
    for point in plot.points:
        colour, reaches = ACCENT if point.strong else MUTED, point.top >= plot.level
        if not math.isnan(point.top):
            fade = 1 if reaches else 0.5
            axes.vlines(point.x, point.y, point.top, color=colour, linewidth=1.4, alpha=fade)
        axes.plot(point.x, point.y, color=colour, marker="o", markersize=6 if point.strong else 4)
        if point.ringed:
            (ring,) = axes.plot(point.x, point.y, color=colour, marker="o", markersize=12, zorder=5)
            ring.set_markerfacecolor("none")
    canvas.finish([0, plot.right], plot.x, plot.y)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.margins(y=0.2)
    axes.autoscale_view()  # else the limits are not those of the names' places yet
    _name_points(canvas, plot)
    for point in plot.points:
        of_y, of_x = plot.units
        says = f"{point.name}: {point.y:.1f} {of_y}, {point.x:.0f} {of_x}"
        canvas.hover(*canvas.pixel(point.x, point.y), says)
    return canvas


def _name_points(canvas: _Canvas, plot: Scatter) -> None:
    """Name points where their names cover nothing, those that matter first.

    Points and whiskers are taken, and so are names; a name without a free place is left out, as
    the table below and the pointer tell every point, but for those of ringed points.
    """
    size, taken = canvas.size, list[tuple[float, float, float, float]]()
    width, height = float(canvas.axes.bbox.width), size.inner_height

    def inner(x: float, y: float) -> tuple[float, float]:
        across, down = canvas.pixel(x, y)
        return across - size.left, size.height - size.bottom - down

    for point in plot.points:
        x, y = inner(point.x, point.y)
        _, top = inner(point.x, point.y if math.isnan(point.top) else point.top)
        taken += [(x - 6, y - 6, x + 6, y + 6), (x - 2, y, x + 2, top)]
    for ends in pairwise(plot.steps):
        (left, low), (right, up) = (inner(*end) for end in ends)
        taken.append((left - 1, min(low, up) - 1, right + 1, max(low, up) + 1))
    for point in sorted(plot.points, key=lambda p: (not p.ringed, not p.strong)):
        x, y = inner(point.x, point.y)
        half = len(point.label) * _CHAR_WIDTH / 2
        around = [
            (across, up) for up in (-15, 0, 15, -30, 30) for across in (0, half + 9, -half - 9)
        ]
        boxes = []
        for across, up in around:
            middle = min(max(x + across, half), width - half)
            if y + up - 7 >= 0 and y + up <= height:
                boxes.append((middle - half, y + up - 7, middle + half, y + up + 7))
        free = [
            box
            for box in boxes
            if not any(
                box[0] < each[2] and each[0] < box[2] and box[1] < each[3] and each[1] < box[3]
                for each in taken
            )
        ]
        for left, low, right, up in (free or (boxes if point.ringed else []))[:1]:
            taken.append((left, low, right, up))
            colour = ACCENT if point.strong else MUTED
            canvas.write((left + right) / 2, (low + up) / 2, point.label, colour, ha="center")


def _histogram(plot: Histogram, size: Size) -> _Canvas:
    canvas = _Canvas(size)
    axes = canvas.axes
    fill, line = (RULE, MUTED) if plot.split is None else (BAND, ACCENT)
    axes.stairs(plot.counts, plot.edges, fill=True, color=fill)
    axes.stairs(plot.counts, plot.edges, color=line, linewidth=1)
    if plot.split is not None:
        axes.axvline(plot.split, color=INK, linewidth=1, linestyle=(0, (3, 2)))
    axes.set(
        xlim=(plot.edges[0], plot.edges[-1]),
        ylim=(0, 1.05 * max(plot.counts)),
        xticks=[],
        yticks=[],
    )
    for edge, side, x in ((0, "left", 0.0), (-1, "right", float(axes.bbox.width))):
        canvas.write(x, -10, f"{plot.edges[edge]:#.4g}".rstrip("."), MUTED, ha=side, fontsize=11)
    for count, low, high in zip(plot.counts, plot.edges, plot.edges[1:], strict=False):
        says = f"{count:,} from {low:.3g} to {high:.3g} {plot.unit}"
        canvas.hover(*canvas.pixel((low + high) / 2, count / 2), says)
    return canvas


def _heat_map(plot: HeatMap, size: Size) -> _Canvas:
    size = replace(size, right=70, left=44)
    canvas = _Canvas(size)
    axes, strength_LS = canvas.axes, plot.strengths()
    layers, columns = plot.values_LS.shape
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(-0.5, layers - 0.5)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(plot.x, color=MUTED)
    axes.set_ylabel("layer", color=MUTED)
    canvas.ticks(list(enumerate(plot.columns)))
    every = max(math.ceil(_LINE_HEIGHT / (size.inner_height / layers)), 1)
    shown = range(layers - 1, -1, -every)
    axes.set_yticks(list(shown), labels=[str(plot.layers[row]) for row in shown])
    for row, column in np.argwhere(~np.isnan(plot.values_LS)):
        value = plot.values_LS[row, column]
        says = f"layer {plot.layers[row]}, {plot.columns[column]}: {value:{plot.form}} {plot.unit}"
        (left, bottom), (right, top) = (
            canvas.pixel(column - 0.5, row - 0.5),
            canvas.pixel(column + 0.5, row + 0.5),
        )
        canvas.over.append(_cell(left, top, right, bottom, strength_LS[row, column], says))
    for marked, radius, look in ((plot.rings, 6, "ring"), (plot.dots, 3, "dot")):
        for column, layer in enumerate(marked):
            if layer is not None and layer in plot.layers:
                x, y = canvas.pixel(column, list(plot.layers).index(layer))
                circle = '<circle class="{0}" cx="{1:.1f}" cy="{2:.1f}" r="{3}"/>'
                canvas.over.append(Markup(circle).format(look, x, y, radius))
    _draw_scale(canvas, plot)
    return canvas


def _cell(
    left: float, top: float, right: float, bottom: float, strength: float, says: str
) -> Markup:
    rect = (
        '<rect x="{0}" y="{1}" width="{2}" height="{3}" fill-opacity="{4:.2f}">'
        "<title>{5}</title></rect>"
    )
    alpha = _FAINTEST + (1 - _FAINTEST) * strength
    x, y = round(left), round(top)  # so that neighbours neither overlap nor part
    return Markup(rect).format(x, y, round(right) - x, round(bottom) - y, alpha, says)


def _draw_scale(canvas: _Canvas, plot: HeatMap) -> None:
    """Draw the colours from the lowest to the highest value at the right, with numbers."""
    size = canvas.size
    left = size.width - size.right + _BAR / 2
    low, high = float(np.nanmin(plot.values_LS)), float(np.nanmax(plot.values_LS))
    steps = 12 if high > low else 1
    for step in range(steps):
        height = size.inner_height / steps
        top = size.top + size.inner_height - (step + 1) * height
        strength = step / (steps - 1) if steps > 1 else 1.0
        value = _on_scale(plot, low, high, (step + 0.5) / steps)
        says = f"{value:{plot.form}} {plot.unit}"
        canvas.over.append(_cell(left, top, left + _BAR, top + height, strength, says))
    for share in (0.0, 0.5, 1.0) if high > low else (1.0,):
        text = f"{_on_scale(plot, low, high, share):{plot.form}}"
        x = canvas.axes.bbox.width + 1.5 * _BAR + 4
        canvas.write(x, share * size.inner_height, text, MUTED)


def _on_scale(plot: HeatMap, low: float, high: float, share: float) -> float:
    return low * (high / low) ** share if plot.is_logarithmic else low + share * (high - low)
