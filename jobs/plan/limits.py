"""What a run may cost at most, what is assumed of speed and prices, and how both are given."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from pydantic import ByteSize, TypeAdapter, ValidationError

TOKENS_PER_SECOND = 50_000.0  # assumed of a GPU
PRICE_GB_MONTH = 0.023  # USD, S3 Standard in us-east-1, the first 50 TB
PRICE_1000_PUTS = 0.005  # USD, the same


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
    try:
        return TypeAdapter(ByteSize).validate_python(text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size; give a number and a unit, such as 10GB or 500MiB"
        ) from error


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
    return ByteSize(count).human_readable(separator=" ")
