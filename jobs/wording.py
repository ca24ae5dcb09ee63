"""How a report puts numbers and names into words. Scores are shown in points, 100 x score."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jobs.findings import LayerFinding, Series, SubjectFinding
from operators.metrics.registry import METRICS
from operators.ranking.scores import TIE

NOTHING = "-"
_OF_TOKENS = "tokens"  # the pooling of a mean over per-prompt token metrics
_DIGITS = 3


def points(value: float | None) -> str:
    """Return a score in points, one decimal."""
    return NOTHING if value is None else f"{round(100 * value, 1) + 0.0:.1f}"


def signed(value: float | None) -> str:
    """Return a gain in points with its sign."""
    return f"+{points(value)}" if value is not None and round(100 * value, 1) > 0 else points(value)


def span(low: float | None, high: float | None) -> str:
    """Return an interval in points."""
    return NOTHING if low is None or high is None else f"{points(low)} to {points(high)}"


def gain_span(subject: SubjectFinding, layer: int) -> str:
    """Return the interval of a layer's gain; the last layer is what gains are over."""
    row = next(row for row in subject.layers if row.layer == layer)
    if layer == subject.last:
        return NOTHING if row.score is None else "baseline"
    return span(row.gain_low, row.gain_high)


def share(value: float | None) -> str:
    """Return a share as a percentage; only 0 is shown as 0 %, only 1 as 100 %."""
    if value is None:
        return NOTHING
    percent = f"{100 * value:.0f}"
    if percent == "0" and value > 0:
        return "<1 %"
    return ">99 %" if percent == "100" and value < 1 - TIE else f"{percent} %"


def p_value(value: float | None) -> str:
    """Return a p-value with two digits."""
    return NOTHING if value is None else f"{value:.2g}"


def number(value: float | None) -> str:
    """Return a metric's value with four digits."""
    return NOTHING if value is None else f"{value:#.4g}".rstrip(".")


def decimal(value: float | None) -> str:
    """Return a number with one decimal."""
    return NOTHING if value is None else f"{value:.1f}"


def correlation(value: float | None) -> str:
    """Return a correlation with two decimals."""
    return NOTHING if value is None else f"{round(value, 2) + 0.0:.2f}"


def correlation_span(low: float | None, high: float | None) -> str:
    """Return an interval of a correlation."""
    if low is None or high is None:
        return NOTHING
    return f"{correlation(low)} to {correlation(high)}"


def size(value: float) -> str:
    """Return a size with three digits and separators, never as a power of ten."""
    if not value:
        return "0"
    decimals = max(_DIGITS - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{decimals}f}"


def millions(value: float) -> str:
    """Return how many millions a number is."""
    return size(value / 1e6)


def count(value: float) -> str:
    """Return a count with separators."""
    return f"{value:,.0f}"


def counted(amount: int, noun: str) -> str:
    """Return a count with its noun, plural unless it is one."""
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def setting(subject: SubjectFinding) -> str:
    """Return which vectors of a subject were ranked."""
    return f"{counted(subject.blocks, 'block')}, {ranked_vectors(subject)}"


def ranked_vectors(subject: SubjectFinding) -> str:
    """Return the vectors that were ranked in words."""
    scaled = ", scaled to unit length" if subject.variant == "l2" else ""
    return f"{vectors_of(subject.norm, subject.pooling)}{scaled}"


def vectors_of(norm: str, pooling: str) -> str:
    """Return a norm and a pooling in words."""
    state = "final norm" if norm == "final" else "raw output"
    how = "token by token" if pooling == _OF_TOKENS else f"{pooling.replace('_', ' ')} pooling"
    return f"{how}, {state}"


def title(metric: str) -> str:
    """Return a metric's title; its name if no title is known."""
    return METRICS[metric].title if metric in METRICS else metric


def is_equal(row: LayerFinding) -> bool:
    """Whether a layer is within one standard error of the best, itself among them."""
    if row.shortfall is None or row.shortfall_se is None:
        return False
    return row.shortfall <= row.shortfall_se + TIE


def scored(subject: SubjectFinding) -> list[LayerFinding]:
    """Return the layers that have a score."""
    return [row for row in subject.layers if row.score is not None]


def nearest(subject: SubjectFinding) -> int | None:
    """Return the layer below the last that scores highest; None if none has a score."""
    others = [row for row in scored(subject) if row.layer != subject.last]
    best_first = sorted(others, key=lambda row: (-(row.score or 0.0), row.layer))
    return best_first[0].layer if best_first else None


def best(subject: SubjectFinding, label: str) -> float | None:
    """Return the highest score of a task over the layers."""
    return max((v for row in subject.layers if (v := row.tasks[label]) is not None), default=None)


def layers(series: Sequence[Series]) -> list[int]:
    """Return the layers that some series have."""
    return sorted({value.layer for each in series for value in each.values})


def value_at(series: Series, layer: int) -> float | None:
    """Return the value of a layer; None if there is none."""
    return next((each.value for each in series.values if each.layer == layer), None)
