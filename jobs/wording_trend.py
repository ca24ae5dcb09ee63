"""How the trend page puts its findings into words."""

from __future__ import annotations

from jobs.trend_findings import LayerScore, MetricTrend, ModelTrend, Ranked, Trend
from jobs.wording import NOTHING, counted, points, signed, span

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
