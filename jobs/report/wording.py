"""What several sections call alike: metrics, vectors, layers, the interval of a gain."""

from __future__ import annotations

from jobs.rank.ranking import Ranking, Row
from jobs.words import NOTHING, known, span
from operators.metrics.registry import METRICS, Parameters, main_variant, unit_of


def vectors_of(norm: str, pooling: str) -> str:
    """Return a norm and a pooling in words."""
    state = "final norm" if norm == "final" else "raw output"
    how = "token by token" if pooling == "tokens" else f"{pooling.replace('_', ' ')} pooling"
    return f"{how}, {state}"


def title(metric: str) -> str:
    """Return a metric's title; its name if no title is known."""
    return METRICS[metric].title if metric in METRICS else metric


def layer_cell(layer: int, ranking: Ranking) -> tuple[str, str]:
    """Return the number of a layer as a table begins its row, the last one marked."""
    return str(layer), "last" if layer == ranking.last else ""


def gain_span(row: Row, last: int) -> str:
    """Return the interval of a layer's gain; the last layer is what gains are over."""
    if row["layer"] == last:
        return "baseline" if known(row["score"]) else NOTHING
    return span(row["gain_low"], row["gain_high"])


def units_of(asked: Parameters) -> dict[str, str]:
    """Return the unit of each metric's main variant."""
    return {name: unit_of(name, main_variant(name, asked)) for name in METRICS}
