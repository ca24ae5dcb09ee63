"""Figures as inline SVG: text stays text, and colours are the page's own CSS variables.

Figures are drawn without pyplot, in CSS pixels (72 dpi makes a point a pixel). The colours below
are placeholders that become `var(--…)`, so a plot follows the page into dark mode.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, MUTED, RULE, ACCENT, BAND = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
PAPER, SECOND, THIRD, FOURTH = "#101112", "#131415", "#161718", "#191a1b"
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    ACCENT: "var(--accent)",
    BAND: "var(--band)",
    PAPER: "var(--paper)",
    SECOND: "var(--second)",
    THIRD: "var(--third)",
    FOURTH: "var(--fourth)",
}
_DPI = 72
LINE_HEIGHT = 15
CHAR_WIDTH = 6.8


def variable(colour: str) -> str:
    """Return the CSS variable that a placeholder becomes."""
    return _VARIABLES[colour]


@dataclass(frozen=True)
class Size:
    """Pixels of a plot: the whole, and the margins around the axes."""

    width: int
    height: int
    left: int = 40
    right: int = 12
    top: int = 12
    bottom: int = 42
    label_chars: int = 24


@dataclass(frozen=True)
class Line:
    """A named line of y against x; a gap where y is NaN."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with matplotlib's defaults, whatever the user's own are, and with stable ids."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams["font.size"] = 12
        mpl.rcParams["svg.fonttype"] = "none"
        mpl.rcParams["svg.hashsalt"] = "layerrank"
        yield


def defined(curve: Line) -> list[tuple[float, float]]:
    """Return the points of a curve that have a value."""
    return [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if not np.isnan(y)]


def new_axes(size: Size, labelled: Sequence[Line]) -> tuple[Figure, Axes]:
    """Return empty axes that leave room at the right for the names of curves."""
    figure = Figure(figsize=(size.width / _DPI, size.height / _DPI), dpi=_DPI)
    longest = max(
        (len(shortened(name, size)) for name in [curve.name for curve in labelled]), default=0
    )
    right = size.width - size.right - (longest * CHAR_WIDTH + 8 if longest else 0)
    axes = figure.add_axes(
        (
            size.left / size.width,
            size.bottom / size.height,
            (right - size.left) / size.width,
            (size.height - size.top - size.bottom) / size.height,
        )
    )
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    return figure, axes


def finish(axes: Axes, x: Sequence[float], label: str = "layer") -> None:
    """Give the axes their grid, limits and ticks, with the layers or something else along x."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=MUTED, pad=6)
    axes.margins(x=0.02, y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if x:
        span = x[-1] - x[0] or 1
        axes.set_xlim(x[0] - 0.02 * span, x[-1] + 0.02 * span)
    axes.set_xlabel(label, color=MUTED)
    axes.yaxis.label.set_color(MUTED)


def show_ticks(axes: Axes, places: Sequence[float], labels: Sequence[str], apart: float) -> None:
    """Label the places along x, the last one and as many before it as lie `apart` pixels apart."""
    across = axes.transData.transform([(x, 0) for x in places])[:, 0]
    shown: list[int] = []
    for index in reversed(range(len(places))):
        if not shown or across[shown[-1]] - across[index] >= apart:
            shown.append(index)
    shown.reverse()
    axes.set_xticks([places[i] for i in shown], labels=[labels[i] for i in shown])


def shortened(name: str, size: Size) -> str:
    """Return a name as it fits beside a curve."""
    return name if len(name) <= size.label_chars else name[: size.label_chars - 2] + ".."


def label_ends(axes: Axes, curves: Sequence[Line], size: Size) -> None:
    """Name each curve beside its last value, moved apart where names would overlap."""
    ends = [(curve.name, [y for y in curve.y if not np.isnan(y)]) for curve in curves]
    values = sorted(((ys[-1], name) for name, ys in ends if ys), reverse=True)
    bottom, top = axes.get_ylim()
    height = size.height - size.top - size.bottom
    place = float("inf")
    for value, name in values:
        wanted = (value - bottom) / (top - bottom) * height
        place = min(wanted, place - LINE_HEIGHT)
        axes.annotate(
            shortened(name, size),
            (1, place / height),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=MUTED,
            parse_math=False,
        )


def to_svg(figure: Figure, name: str, title: str, words: str) -> Markup:
    """Return the figure as an SVG element with ids of its own, a title and a description."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    drawn = buffer.getvalue()
    body = drawn[drawn.index("<svg") :].partition(">")[2]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    for placeholder, variable in _VARIABLES.items():
        body = body.replace(placeholder, variable)
    width, height = (round(_DPI * inches) for inches in figure.get_size_inches())
    head = Markup(
        '<svg viewBox="0 0 {w} {h}" role="img" aria-labelledby="{id}-title {id}-words">'
        '<title id="{id}-title">{title}</title><desc id="{id}-words">{words}</desc>'
    ).format(w=width, h=height, id=name, title=escape(title), words=escape(words))
    return head + Markup(body)
