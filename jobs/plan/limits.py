"""What a run may cost at most, what is assumed of speed and prices, and how both are given."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

TOKENS_PER_SECOND = 50_000.0  # assumed of a GPU
PRICE_GB_MONTH = 0.023  # USD, S3 Standard in us-east-1, the first 50 TB
PRICE_1000_PUTS = 0.005  # USD, the same
# Of models of 384 and 576 features, measured with AMX, and with AVX-512 on a Zen 5.
BFLOAT16_GAIN = 2.5
_CPU = Path("/proc/cpuinfo")
_BFLOAT16_UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512"}
_FLOAT16_UNITS = {"amx_fp16", "avx512_fp16", "asimdhp"}


@dataclass(frozen=True)
class Limits:
    """The most that a run may write and take; None for no bound."""

    bytes: int | None = None
    gpu_hours: float | None = None
    tokens_per_second: float | None = None

    def __bool__(self) -> bool:
        return self.bytes is not None or self.gpu_hours is not None


def bfloat16_unit() -> str:
    """Return what multiplies bfloat16 in this machine's CPU; "" for nothing that is known of."""
    flags = _flags()
    return next((unit for flag, unit in _BFLOAT16_UNITS.items() if flag in flags), "")


def _flags() -> set[str]:
    try:
        return {*_CPU.read_text(encoding="utf-8", errors="replace").split()}
    except OSError:  # another system than Linux
        return set()


def multiplies_float16() -> bool:
    """Whether this machine's CPU has what multiplies float16, as far as is known of it."""
    return bool(_flags() & _FLOAT16_UNITS)


def parse_bytes(text: str) -> int:
    """Return a size in bytes: `10GB` is 10^10, `500MiB` 500 x 2^20, `4096` itself."""
    from pydantic import ByteSize, TypeAdapter, ValidationError  # noqa: PLC0415  (not for --help)

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


def whole(text: str) -> int:
    """Return a whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def price(text: str) -> float:
    """Return a finite number from 0."""
    return 0.0 if text.strip() in ("0", "0.0") else positive(text)
