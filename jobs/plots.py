"""Plots as inline SVG: text stays text, and colours are the page's own CSS variables.

Figures are drawn without pyplot, in CSS pixels (72 dpi makes a point a pixel). The colours below
are placeholders that become `var(--…)`, so a plot follows the page into dark mode.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jobs.findings import LayerFinding, SubjectFinding

_INK, _MUTED, _RULE, _ACCENT, _BAND = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _RULE: "var(--rule)",
    _ACCENT: "var(--accent)",
    _BAND: "var(--band)",
}
_DPI = 72
_LINE_HEIGHT = 15
_CHAR_WIDTH = 6.8
_MARK_WIDTH = 150  # of the words above a marked layer
_MOST_LABELS = 6  # of curves; more would cover one another
_MOST_DOTS, _MOST_SMALL_DOTS = 32, 16  # on a curve; more would touch


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
class Curve:
    """A named line of y against x; a gap where y is NaN."""

    name: str
    x: Sequence[int]
    y: Sequence[float]


WIDE = Size(1040, 360, left=48)
NARROW = Size(368, 300, label_chars=13)
SMALL = Size(320, 190, left=46)


@contextmanager
def _drawing() -> Iterator[None]:
    """Draw with matplotlib's defaults, whatever the user's own are, and with stable ids."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams["font.size"] = 12
        mpl.rcParams["svg.fonttype"] = "none"
        mpl.rcParams["svg.hashsalt"] = "layerrank"
        yield


@_drawing()
def score_plot(subject: SubjectFinding, name: str, size: Size) -> Markup:
    """Draw score against layer: interval band, one faint line per task, the layers that matter."""
    rows, tasks = subject.layers, _task_curves(subject)
    size = replace(size, top=_room_for_marks(subject, size))
    figure, axes = _axes(size, _labelled(tasks))
    for curve in tasks:
        axes.plot(curve.x, curve.y, color=_MUTED, linewidth=1, alpha=0.55, zorder=2)
    score = Curve("score", _numbers(rows), [_points(row.score) for row in rows])
    _draw_with_band(axes, score, [(row.score_low, row.score_high) for row in rows])
    _mark_layers(axes, subject, size, named=True)
    axes.set_ylabel("score, points")
    _finish(axes, _numbers(rows))
    _label_ends(axes, _labelled(tasks), size)
    each = "; ".join(f"layer {x}: {y:.1f}" for x, y in _defined(score))
    title = f"Score of every layer of {subject.name}, with its interval"
    return _svg(figure, name, title, f"{subject.verdict.sentence} In points: {each}.")


@_drawing()
def gain_plot(subject: SubjectFinding, name: str, size: Size) -> Markup:
    """Draw gain over the last layer, with its band, under the score: the same axis of layers."""
    rows = subject.layers
    size = replace(size, height=round(0.68 * size.height))
    figure, axes = _axes(size, _labelled(_task_curves(subject)))
    gain = Curve("gain", _numbers(rows), [_points(row.gain) for row in rows])
    _draw_with_band(axes, gain, [(row.gain_low, row.gain_high) for row in rows])
    axes.axhline(0, color=_MUTED, linewidth=1, zorder=2)
    _mark_layers(axes, subject, size, named=False)
    axes.set_ylabel("gain, points")
    _finish(axes, _numbers(rows))
    title = f"Gain of every layer of {subject.name} over the last, with its interval"
    each = "; ".join(f"layer {x}: {y:.1f}" for x, y in _defined(gain))
    return _svg(figure, name, title, f"In points: {each}.")


@_drawing()
def metric_plot(curve: Curve, name: str, title: str, unit: str) -> Markup:
    """Draw a metric against layer."""
    figure, axes = _axes(SMALL, [])
    marker = "o" if len(curve.x) <= _MOST_SMALL_DOTS else None
    axes.plot(curve.x, curve.y, color=_ACCENT, linewidth=1.8, marker=marker, markersize=3)
    axes.set_ylabel(unit)
    _finish(axes, curve.x)
    return _svg(figure, name, f"{title} against layer", _course(curve))


def _task_curves(subject: SubjectFinding) -> list[Curve]:
    """Return a curve per task; none for one task, whose curve is the score."""
    rows, labels = subject.layers, [task.label for task in subject.tasks]
    curves = [
        Curve(label, _numbers(rows), [_points(row.tasks[label]) for row in rows])
        for label in labels
    ]
    return curves if len(curves) > 1 else []


def _labelled(curves: list[Curve]) -> list[Curve]:
    return curves if len(curves) <= _MOST_LABELS else []


def _numbers(rows: Sequence[LayerFinding]) -> list[int]:
    return [row.layer for row in rows]


def _defined(curve: Curve) -> list[tuple[int, float]]:
    return [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if not np.isnan(y)]


def _draw_with_band(
    axes: Axes, curve: Curve, bounds: Sequence[tuple[float | None, float | None]]
) -> None:
    low, high = [_points(low) for low, _ in bounds], [_points(high) for _, high in bounds]
    axes.fill_between(curve.x, low, high, color=_BAND, linewidth=0, zorder=1)
    marker = "o" if len(curve.x) <= _MOST_DOTS else None
    axes.plot(curve.x, curve.y, color=_ACCENT, linewidth=2.2, marker=marker, markersize=4, zorder=4)


def _points(score: float | None) -> float:
    return float("nan") if score is None else 100 * score


def _axes(size: Size, labelled: Sequence[Curve]) -> tuple[Figure, Axes]:
    """Return empty axes that leave room at the right for the names of curves."""
    figure = Figure(figsize=(size.width / _DPI, size.height / _DPI), dpi=_DPI)
    longest = max(
        (len(_short(name, size)) for name in [curve.name for curve in labelled]), default=0
    )
    right = size.width - size.right - (longest * _CHAR_WIDTH + 8 if longest else 0)
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


def _room_for_marks(subject: SubjectFinding, size: Size) -> int:
    return size.top + _LINE_HEIGHT * (1 + _is_stacked(subject, size))


def _is_stacked(subject: SubjectFinding, size: Size) -> bool:
    """Whether the words above the recommended and the last layer need a line each."""
    apart = 1 - subject.verdict.layer / max(subject.last, 1)
    return subject.verdict.kind == "use_layer" and apart * size.width < _MARK_WIDTH


def _mark_layers(axes: Axes, subject: SubjectFinding, size: Size, *, named: bool) -> None:
    """Draw a rule at the last and at the recommended layer, if `named` with words above it."""
    use, last, kind = subject.verdict.layer, subject.last, subject.verdict.kind
    names = {last: f"keep layer {last}, the last" if kind == "keep_last" else f"last layer {last}"}
    if kind == "use_layer":
        names[use] = f"use layer {use}"
    for layer, text in names.items():
        chosen = layer == use and kind != "not_enough_evidence"
        colour = _ACCENT if chosen else _MUTED
        axes.axvline(layer, color=colour, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        line = 1 if layer != last and _is_stacked(subject, size) else 0
        if not named:
            continue
        axes.annotate(
            text,
            (layer, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 5 + _LINE_HEIGHT * line),
            textcoords="offset points",
            ha="right" if layer > last / 2 else "left",
            color=colour,
            annotation_clip=False,
        )


def _finish(axes: Axes, layers: Sequence[int]) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)
    axes.grid(axis="y", color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=_MUTED, pad=6)
    axes.margins(x=0.02, y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if layers:
        span = max(layers[-1] - layers[0], 1)
        axes.set_xlim(layers[0] - 0.02 * span, layers[-1] + 0.02 * span)
    axes.set_xlabel("layer", color=_MUTED)
    axes.yaxis.label.set_color(_MUTED)


def _label_ends(axes: Axes, curves: Sequence[Curve], size: Size) -> None:
    """Name each curve beside its last value, moved apart where names would overlap."""
    ends = [(curve.name, [y for y in curve.y if not np.isnan(y)]) for curve in curves]
    values = sorted(((ys[-1], name) for name, ys in ends if ys), reverse=True)
    bottom, top = axes.get_ylim()
    height = size.height - size.top - size.bottom
    place = float("inf")
    for value, name in values:
        wanted = (value - bottom) / (top - bottom) * height
        place = min(wanted, place - _LINE_HEIGHT)
        axes.annotate(
            _short(name, size),
            (1, place / height),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=_MUTED,
            parse_math=False,
        )


def _short(name: str, size: Size) -> str:
    return name if len(name) <= size.label_chars else name[: size.label_chars - 2] + ".."


def _course(curve: Curve) -> str:
    pairs = _defined(curve)
    first, last = pairs[0], pairs[-1]
    low, high = min(pairs, key=lambda pair: pair[1]), max(pairs, key=lambda pair: pair[1])
    return (
        f"From {first[1]:.3g} in layer {first[0]} to {last[1]:.3g} in layer {last[0]}; "
        f"lowest {low[1]:.3g} in layer {low[0]}, highest {high[1]:.3g} in layer {high[0]}."
    )


def _svg(figure: Figure, name: str, title: str, words: str) -> Markup:
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
