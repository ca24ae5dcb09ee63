"""Numbers in words: scores in points (100 x score), shares, intervals, counts.

A value that does not exist, None or NaN, is a dash.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, TypeGuard

import numpy as np

from layerrank.operators.ranking.scores import TIE

NOTHING = "-"
_DIGITS = 3
_KIBI = 1024
Value = float | None


def defined(value: Any) -> Any:  # noqa: ANN401  (any JSON value)
    """Return a value, and what is in it, as JSON can say it: None for what is no finite number."""
    if isinstance(value, Mapping):
        return {key: defined(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [defined(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def known(value: Value) -> TypeGuard[float]:
    """Whether a value exists: neither None nor NaN."""
    return value is not None and not math.isnan(value)


def points(value: Value) -> str:
    """Return a score in points, one decimal."""
    return f"{round(100 * value, 1) + 0.0:.1f}" if known(value) else NOTHING


def signed(value: Value) -> str:
    """Return a gain in points with its sign."""
    return f"+{points(value)}" if known(value) and round(100 * value, 1) > 0 else points(value)


def span(low: Value, high: Value) -> str:
    """Return an interval in points."""
    return f"{points(low)} to {points(high)}" if known(low) and known(high) else NOTHING


def share(value: Value) -> str:
    """Return a share as a percentage; only 0 is shown as 0 %, only 1 as 100 %."""
    if not known(value):
        return NOTHING
    percent = f"{100 * value:.0f}"
    if percent == "0" and value > 0:
        return "<1 %"
    return ">99 %" if percent == "100" and value < 1 - TIE else f"{percent} %"


def p_value(value: Value) -> str:
    """Return a p-value with two digits."""
    return f"{value:.2g}" if known(value) else NOTHING


def number(value: Value) -> str:
    """Return a metric's value with four digits."""
    return f"{value:#.4g}".rstrip(".") if known(value) else NOTHING


def decimal(value: Value) -> str:
    """Return a number with one decimal."""
    return f"{value:.1f}" if known(value) else NOTHING


def hundredths(value: Value) -> str:
    """Return a correlation or a relative depth with two decimals."""
    return f"{round(value, 2) + 0.0:.2f}" if known(value) else NOTHING


def size(value: Value) -> str:
    """Return a size with three digits and separators, never as a power of ten."""
    if not known(value):
        return NOTHING
    if not value:
        return "0"
    decimals = max(_DIGITS - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{decimals}f}"


def bytes_of(amount: float) -> str:
    """Return a number of bytes with one decimal, in the largest unit of which there is one."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < _KIBI:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= _KIBI
    return f"{amount:,.1f} PiB"


def ago(seconds: float) -> str:
    """Return a time that has passed, in the largest unit of which there is one."""
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= size:
            return counted(int(seconds // size), unit)
    return counted(max(int(seconds), 0), "second")


def count(value: float) -> str:
    """Return a count with separators."""
    return f"{value:,.0f}"


def counted(amount: int, noun: str) -> str:
    """Return a count with its noun, plural unless it is one."""
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def listed(parts: Sequence[str]) -> str:
    """Return parts as a sentence lists them: a, b and c."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def numbered(layers: Sequence[int]) -> str:
    """Return layers in words, three and more in a row as a range."""
    parts: list[str] = []
    for _, same in groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0]):
        run = [str(layer) for _, layer in same]
        parts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else run  # noqa: PLR2004  (2 are no range)
    return f"layer{'' if len(layers) == 1 else 's'} {listed(parts)}"


def capital(text: str) -> str:
    """Return a text with its first letter as a capital, the others as they are."""
    return text[:1].upper() + text[1:]
