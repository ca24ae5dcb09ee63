"""What the checkpoints of a run show over training: as plain data, in words, and drawn.

A value that does not exist is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from jobs import words
from jobs.config.metrics import parameters
from jobs.config.run import RunConfig
from jobs.nightly.alerts import Alert, read_alerts
from jobs.nightly.history import Checkpoint
from jobs.report import wording
from jobs.report.charts import (
    ACCENT,
    BAND,
    CHAR_WIDTH,
    INK,
    MUTED,
    Line,
    Size,
    defined,
    drawing,
    finish,
    label_ends,
    new_axes,
    show_ticks,
    to_svg,
)
from jobs.subjects import by_step, step_of
from jobs.words import NOTHING, counted, points, signed, span
from operators.metrics.registry import main_variant, unit_of
from operators.model.subject import Subject
from storage.root import Root

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LayerScore:
    """The score of a layer with its interval, 0..1."""

    layer: int
    score: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Ranked:
    """A ranked checkpoint; `best` is None where no layer has a score."""

    revision: str
    step: int | None
    verdict: str
    recommended: LayerScore
    best: LayerScore | None
    last: LayerScore


@dataclass(frozen=True)
class MetricTrend:
    """A metric's main variant, checkpoint by checkpoint, at two layers."""

    dataset: str
    metric: str
    unit: str
    recommended: list[float | None]
    last: list[float | None]


@dataclass(frozen=True)
class Unranked:
    """A checkpoint that has no ranking, and why."""

    revision: str
    reason: str


@dataclass(frozen=True)
class ModelTrend:
    """The checkpoints of one model in the order of their steps."""

    model: str
    checkpoints: list[Ranked]
    metrics: list[MetricTrend]
    alerts: list[Alert]
    unranked: list[Unranked]


@dataclass(frozen=True)
class Trend:
    """Everything that the trend page of a run says."""

    schema_version: int
    run: str
    level: float
    models: list[ModelTrend]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def trend_of(
    root: Root, config: RunConfig, history: Sequence[Checkpoint], failed: Mapping[Subject, str]
) -> Trend:
    """Gather the trend from ranked checkpoints, in order, and from those that could not be."""
    models = sorted({each.model for each in history} | {each.name for each in failed})
    found = []
    for model in models:
        checkpoints = [each for each in history if each.model == model]
        revisions = [each.revision for each in checkpoints]
        alerts = read_alerts(root, config.name, model)
        unranked = {
            each.revision: Unranked(each.revision, reason)
            for each, reason in failed.items()
            if each.name == model and each.revision not in revisions
        }
        found.append(
            ModelTrend(
                model,
                [_ranked(each) for each in checkpoints],
                _metrics(config, checkpoints),
                [alerts[name] for name in revisions if name in alerts],
                [unranked[name] for name in sorted(unranked, key=by_step)],
            )
        )
    return Trend(SCHEMA_VERSION, config.name, config.rank.level, found)


def _ranked(checkpoint: Checkpoint) -> Ranked:
    best = [row["layer"] for row in checkpoint.ranking if row["rank"] == 1]
    return Ranked(
        checkpoint.revision,
        step_of(checkpoint.revision),
        checkpoint.ranking[0]["verdict"],
        _score(checkpoint, checkpoint.recommended),
        _score(checkpoint, min(best)) if best else None,
        _score(checkpoint, max(checkpoint.layers)),
    )


def _score(checkpoint: Checkpoint, layer: int) -> LayerScore:
    row = checkpoint.row(layer)
    values = (_defined(row[name]) for name in ("score", "score_low", "score_high"))
    return LayerScore(layer, *values)


def _metrics(config: RunConfig, checkpoints: Sequence[Checkpoint]) -> list[MetricTrend]:
    named = dict.fromkeys(name for each in checkpoints for name in each.metrics)
    found = []
    for dataset, metric in named:
        values = [each.metrics.get((dataset, metric), {}) for each in checkpoints]
        layers = [(each.recommended, max(each.layers)) for each in checkpoints]
        pairs = [
            (_defined(at.get(recommended)), _defined(at.get(last)))
            for at, (recommended, last) in zip(values, layers, strict=True)
        ]
        unit = unit_of(metric, main_variant(metric, parameters(config)))
        found.append(
            MetricTrend(
                *(dataset, metric, unit), [first for first, _ in pairs], [last for _, last in pairs]
            )
        )
    return found


def _defined(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


_VERDICTS = {
    "use_layer": "use it",
    "keep_last": "keep the last layer",
    "not_enough_evidence": "a guess: not enough evidence",
    "no_labels": "a guess: nothing is labelled",
}


def scope(trend: Trend, model: ModelTrend) -> str:
    """Return what the page is about."""
    rows = model.checkpoints
    reach = f", from {rows[0].revision} to {rows[-1].revision}" if len(rows) > 1 else ""
    return f"Layers over training. {counted(len(rows), 'checkpoint')}{reach}; run {trend.run}."


def headline(model: ModelTrend) -> str:
    """Return what the newest checkpoint recommends, and how it compares with the last layer."""
    newest = model.checkpoints[-1]
    layer, last = newest.recommended, newest.last
    if layer.score is None or last.score is None:
        return f"At {newest.revision} layer {layer.layer} is a guess: it has no score."
    is_sure = newest.verdict in ("use_layer", "keep_last")
    said = f"At {newest.revision} {'use' if is_sure else 'a guess is'} layer {layer.layer}: "
    said += f"{points(layer.score)} points"
    if layer.layer == last.layer:
        return f"{said}, and it is the last."
    return f"{said}, {signed(layer.score - last.score)} against the last layer, {last.layer}."


def since(model: ModelTrend) -> str:
    """Return how the newest checkpoint compares with the first and the one before it."""
    rows = model.checkpoints
    parts = []
    for text, row in [("the checkpoint before", rows[-2:-1]), ("the first", rows[:1])]:
        if not row or row[0] is rows[-1] or (text == "the first" and row == rows[-2:-1]):
            continue
        now, then = rows[-1].recommended.score, row[0].recommended.score
        if now is not None and then is not None:
            parts.append(f"{signed(now - then)} points since {text}, {row[0].revision}")
    return f"Recommended layer: {', and '.join(parts)}." if parts else ""


def is_alerted(model: ModelTrend) -> bool:
    """Whether the newest checkpoint left an alert."""
    return any(alert.revision == model.checkpoints[-1].revision for alert in model.alerts)


def verdict(row: Ranked) -> str:
    """Return a verdict in words."""
    return _VERDICTS.get(row.verdict, row.verdict)


def score(value: LayerScore | None) -> str:
    """Return a score in points."""
    return points(value.score if value else None)


def layer(value: LayerScore | None) -> str:
    """Return the number of a layer."""
    return str(value.layer) if value else NOTHING


def interval(value: LayerScore) -> str:
    """Return the interval of a score in points."""
    return span(value.low, value.high)


def is_scored(model: ModelTrend) -> bool:
    """Whether some checkpoint has a score."""
    return any(row.best is not None for row in model.checkpoints)


def rules_of(model: ModelTrend, revision: str) -> str:
    """Return the rules that a checkpoint broke, by name."""
    found = [alert for alert in model.alerts if alert.revision == revision]
    return ", ".join(dict.fromkeys(each.rule for alert in found for each in alert.rules))


def has_values(metric: MetricTrend) -> bool:
    """Whether a metric has a value in some checkpoint."""
    return any(value is not None for value in (*metric.recommended, *metric.last))


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
    return to_svg(figure, name, title, _words(rows, curves, words.decimal))


@drawing()
def layer_plot(trend: ModelTrend, name: str, size: Size) -> Markup:
    """Draw the recommended layer, under the scores: the same axis of checkpoints."""
    rows = trend.checkpoints
    x = list(range(len(rows)))
    last = Line("last", x, [float(row.last.layer) for row in rows])
    recommended = Line("recommended", x, [float(row.recommended.layer) for row in rows])
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
        Line("recommended layer", x, [_NAN if y is None else y for y in metric.recommended]),
        Line("last layer", x, [_NAN if y is None else y for y in metric.last]),
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


def _curve(name: str, scores: Sequence[LayerScore | None]) -> Line:
    values = [_NAN if each is None else _points(each.score) for each in scores]
    return Line(name, list(range(len(scores))), values)


def _points(score: float | None) -> float:
    return _NAN if score is None else 100 * score


def _draw(
    axes: Axes, curve: Line, colour: str, dashes: object, *, width: float = 2.0, dots: bool = True
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


def _words(rows: Sequence[Ranked], curves: Sequence[Line], said: Callable[[float], str]) -> str:
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
