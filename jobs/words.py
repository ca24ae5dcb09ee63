"""Numbers in words: scores in points (100 x score), shares, intervals, counts."""

from __future__ import annotations

import math

from operators.ranking.scores import TIE

NOTHING = "-"
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
