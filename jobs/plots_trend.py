"""The plots of the trend page: scores, the recommended layer and metrics over the checkpoints.

Checkpoints stand evenly spaced in the order of their steps: training saves them at very uneven
ones, and the first would otherwise lie on one another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from jobs import wording
from jobs.drawing import (
    ACCENT,
    BAND,
    CHAR_WIDTH,
    INK,
    MUTED,
    Curve,
    Size,
    defined,
    drawing,
    finish,
    label_ends,
    new_axes,
    show_ticks,
    to_svg,
)
from jobs.trend_findings import LayerScore, MetricTrend, ModelTrend, Ranked

_WIDE, _NARROW = Size(1040, 340, left=48), Size(368, 300, left=44, label_chars=13)
_LOW_WIDE, _LOW_NARROW = Size(1040, 200, left=48), Size(368, 200, left=44, label_chars=13)
_SMALL = Size(320, 190, left=56)
_DOTS_APART = 9  # pixels; nearer ones would touch
_MOST_CHARS = 9  # of a tick's label
_LONG_UNIT = 20  # characters that fit beside the axis
_NAN = float("nan")
_DASHED, _DOTTED = (0, (4, 2)), (0, (1, 3))


def both_widths(
    plot: Callable[[ModelTrend, str, Size], Markup], trend: ModelTrend, name: str
) -> dict[str, Markup]:
    """Return a plot for wide and for narrow windows."""
    wide, narrow = (_WIDE, _NARROW) if plot is score_plot else (_LOW_WIDE, _LOW_NARROW)
    return {
        "wide": plot(trend, f"{name}-wide", wide),
        "narrow": plot(trend, f"{name}-narrow", narrow),
    }


@drawing()
def score_plot(trend: ModelTrend, name: str, size: Size) -> Markup:
    """Draw the scores of the recommended, the best and the last layer, the first with its band."""
    rows = trend.checkpoints
    curves = [
        _curve("recommended", [row.recommended for row in rows]),
        _curve("best", [row.best for row in rows]),
        _curve("last", [row.last for row in rows]),
    ]
    figure, axes = new_axes(size, curves)
    for curve, colour, dashes in zip(
        curves, (ACCENT, INK, MUTED), ("-", _DASHED, "-"), strict=True
    ):
        _draw(axes, curve, colour, dashes)
    _draw_band(axes, [row.recommended for row in rows])
    _mark_alerts(axes, trend)
    axes.set_ylabel("score, points")
    _finish(axes, rows)
    label_ends(axes, curves, size)
    title = f"Score of the recommended, the best and the last layer of {trend.model} over training"
    return to_svg(figure, name, title, _words(rows, curves, wording.decimal))


@drawing()
def layer_plot(trend: ModelTrend, name: str, size: Size) -> Markup:
    """Draw the recommended layer, under the scores: the same axis of checkpoints."""
    rows = trend.checkpoints
    x = list(range(len(rows)))
    last = Curve("last", x, [float(row.last.layer) for row in rows])
    recommended = Curve("recommended", x, [float(row.recommended.layer) for row in rows])
    figure, axes = new_axes(size, [last, recommended])
    _draw(axes, last, MUTED, "-", dots=False)
    _draw(axes, recommended, ACCENT, "-")
    _mark_alerts(axes, trend)
    axes.set_ylabel("layer")
    _finish(axes, rows)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set_ylim(-0.5, max(last.y) + 0.5)
    label_ends(axes, [last, recommended], size)
    title = f"Recommended layer of {trend.model} over training"
    return to_svg(figure, name, title, _words(rows, [recommended], lambda y: f"layer {y:g}"))


@drawing()
def metric_plot(trend: ModelTrend, metric: MetricTrend, name: str) -> Markup:
    """Draw a metric at the recommended layer and, dashed, at the last."""
    rows = trend.checkpoints
    x = list(range(len(rows)))
    curves = [
        Curve("recommended layer", x, [_NAN if y is None else y for y in metric.recommended]),
        Curve("last layer", x, [_NAN if y is None else y for y in metric.last]),
    ]
    shown = [curve for curve in curves if defined(curve)]
    figure, axes = new_axes(_SMALL, [])
    for curve in shown:
        first = curve is curves[0]
        _draw(axes, curve, ACCENT if first else MUTED, "-" if first else _DASHED, width=1.8)
    _mark_alerts(axes, trend)
    axes.set_ylabel(metric.unit, fontsize=12 if len(metric.unit) <= _LONG_UNIT else 10)
    _finish(axes, rows)
    title = f"{wording.title(metric.metric)} on {metric.dataset} over training"
    return to_svg(figure, name, title, _words(rows, shown, lambda y: f"{y:.3g}"))


def step_label(row: Ranked) -> str:
    """Return a checkpoint as a tick names it: its step, or else its name."""
    label = row.revision if row.step is None else f"{row.step:,}"
    return label if len(label) <= _MOST_CHARS else f"{label[: _MOST_CHARS - 2]}.."


def _curve(name: str, scores: Sequence[LayerScore | None]) -> Curve:
    values = [_NAN if each is None else _points(each.score) for each in scores]
    return Curve(name, list(range(len(scores))), values)


def _points(score: float | None) -> float:
    return _NAN if score is None else 100 * score


def _draw(
    axes: Axes, curve: Curve, colour: str, dashes: object, *, width: float = 2.0, dots: bool = True
) -> None:
    apart = axes.bbox.width / max(len(curve.x) - 1, 1)
    alone = len(curve.x) == 1
    axes.plot(
        curve.x,
        curve.y,
        color=colour,
        linestyle=dashes,
        linewidth=width,
        marker="o" if alone or (dots and apart >= _DOTS_APART) else None,
        markersize=4,
        zorder=4 if colour == ACCENT else 3,
    )


def _draw_band(axes: Axes, scores: Sequence[LayerScore]) -> None:
    x = list(range(len(scores)))
    low, high = [_points(each.low) for each in scores], [_points(each.high) for each in scores]
    axes.fill_between(x, low, high, color=BAND, linewidth=0, zorder=1)
    if len(x) == 1:  # which fill_between leaves out
        axes.vlines(x, low, high, color=BAND, linewidth=6, zorder=1)


def _mark_alerts(axes: Axes, trend: ModelTrend) -> None:
    alerted = {alert.revision for alert in trend.alerts}
    for x, row in enumerate(trend.checkpoints):
        if row.revision in alerted:
            axes.axvline(x, color=INK, linewidth=1.4, linestyle=_DOTTED, zorder=2)


def _finish(axes: Axes, rows: Sequence[Ranked]) -> None:
    labels = [step_label(row) for row in rows]
    places = list(range(len(rows)))
    by_name = all(row.step is None for row in rows)
    finish(axes, places, "checkpoint" if by_name else "training step")
    show_ticks(axes, places, labels, (max(map(len, labels)) + 1.5) * CHAR_WIDTH)


def _words(rows: Sequence[Ranked], curves: Sequence[Curve], said: Callable[[float], str]) -> str:
    """Return how each curve runs."""
    parts = []
    for curve in curves:
        pairs = [(rows[int(x)].revision, y) for x, y in defined(curve)]
        if not pairs:
            parts.append(f"{curve.name}: no value.")
            continue
        (first, start), (last, end) = pairs[0], pairs[-1]
        low, high = min(pairs, key=lambda pair: pair[1]), max(pairs, key=lambda pair: pair[1])
        parts.append(
            f"{curve.name}: from {said(start)} at {first} to {said(end)} at {last}; lowest "
            f"{said(low[1])} at {low[0]}, highest {said(high[1])} at {high[0]}."
        )
    return " ".join(parts)
