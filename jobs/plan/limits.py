"""What a run may cost at most, what is assumed of speed and prices, and how both are given."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass

TOKENS_PER_SECOND = 50_000.0  # assumed of a GPU
PRICE_GB_MONTH = 0.023  # USD, S3 Standard in us-east-1, the first 50 TB
PRICE_1000_PUTS = 0.005  # USD, the same
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?i?b?)", re.IGNORECASE)
_POWERS = "kmgtp"


@dataclass(frozen=True)
class Limits:
    """The most that a run may write and take; None for no bound."""

    bytes: int | None = None
    gpu_hours: float | None = None
    tokens_per_second: float | None = None

    def __bool__(self) -> bool:
        return self.bytes is not None or self.gpu_hours is not None


def parse_bytes(text: str) -> int:
    """Return a size in bytes: `10GB` is 10^10, `500MiB` 500 x 2^20, `4096` itself."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size; give a number and a unit, such as 10GB or 500MiB"
        )
    number, unit = float(found[1]), found[2].lower()
    power = _POWERS.index(unit[0]) + 1 if unit[:1] and unit[0] in _POWERS else 0
    return int(number * (1024 if "i" in unit else 1000) ** power)


def positive(text: str) -> float:
    """Return a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


def price(text: str) -> float:
    """Return a finite number from 0."""
    return 0.0 if text.strip() in ("0", "0.0") else positive(text)


def size(count: float) -> str:
    """Return bytes for people, in binary units."""
    power = min(int(math.log2(max(count, 1)) // 10), len(_POWERS))
    if not power:
        return f"{count:,.0f} B"
    return f"{count / 1024**power:,.1f} {_POWERS[power - 1].upper()}iB"
