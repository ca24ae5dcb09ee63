"""How a report puts numbers and names into words. Scores are shown in points, 100 x score."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.report.findings import LayerFinding, Series, SubjectFinding
from jobs.words import NOTHING, counted, span
from operators.metrics.registry import METRICS
from operators.ranking.scores import TIE

_OF_TOKENS = "tokens"  # the pooling of a mean over per-prompt token metrics


def gain_span(subject: SubjectFinding, layer: int) -> str:
    """Return the interval of a layer's gain; the last layer is what gains are over."""
    row = next(row for row in subject.layers if row.layer == layer)
    if layer == subject.last:
        return NOTHING if row.score is None else "baseline"
    return span(row.gain_low, row.gain_high)


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
