"""What a run may cost at most: bounds on bytes and hours, checked before they are spent."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.config.blocks import ConfigError
from jobs.config.run import RunConfig
from storage.root import Root

if TYPE_CHECKING:
    from jobs.plan.plan import Plan


TOKENS_PER_SECOND = 50_000.0  # assumed of a GPU
PRICE_GB_MONTH = 0.023  # USD, S3 Standard in us-east-1, the first 50 TB
PRICE_1000_PUTS = 0.005  # USD, the same
_BIGGEST = 3
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?i?b?)", re.IGNORECASE)
_POWERS = "kmgtp"


@dataclass(frozen=True)
class Rates:
    """What is assumed of speed and prices: tokens per second of a device, and USD."""

    tokens_per_second: float | None
    gb_month: float
    thousand_puts: float


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


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the bounds, and the speed that hours are reckoned with."""
    parser.add_argument(
        "--max-bytes",
        type=parse_bytes,
        metavar="SIZE",
        help="refuse a run that would write more, such as 10GB or 500MiB",
    )
    parser.add_argument(
        "--max-gpu-hours",
        type=positive,
        metavar="HOURS",
        help="refuse a run that would take more hours of one device",
    )
    parser.add_argument(
        "--tokens-per-second",
        type=positive,
        metavar="N",
        help=f"assumed speed of one device (default: {TOKENS_PER_SECOND:,.0f})",
    )


def add_prices(parser: argparse.ArgumentParser) -> None:
    """Add what object storage is assumed to cost."""
    parser.add_argument(
        "--price-gb-month",
        type=price,
        default=PRICE_GB_MONTH,
        metavar="USD",
        help=f"of 2^30 bytes for a month (default: {PRICE_GB_MONTH}, S3 Standard in us-east-1)",
    )
    parser.add_argument(
        "--price-1000-puts",
        type=price,
        default=PRICE_1000_PUTS,
        metavar="USD",
        help=f"of 1,000 PUT requests (default: {PRICE_1000_PUTS}, the same)",
    )


def speed(plan: Plan, stated: float | None) -> float:
    """Return the tokens per second that hours are reckoned with: stated, measured, or assumed."""
    return stated or plan.tokens_per_second or TOKENS_PER_SECOND


def require_within(plan: Plan, limits: Limits) -> None:
    """ConfigError that names the bound, the estimate and its biggest parts if a plan exceeds it."""
    kind = "at most" if plan.is_bound else "about"
    if limits.bytes is not None and plan.total.bytes > limits.bytes:
        tables = sorted(plan.tables().items(), key=lambda pair: -pair[1].bytes)
        parts = (f"{name} {size(each.bytes)}" for name, each in tables[:_BIGGEST])
        raise ConfigError(
            f"{plan.run} would write {kind} {size(plan.total.bytes)}, and --max-bytes allows "
            f"{size(limits.bytes)}; most of it: {', '.join(parts)}"
        )
    rate = speed(plan, limits.tokens_per_second)
    hours = plan.hours(rate)
    if limits.gpu_hours is not None and hours > limits.gpu_hours:
        pairs = sorted(plan.pairs, key=lambda each: -each.tokens)
        parts = (
            f"{each.model.subject.name} over {each.corpus.dataset.name} "
            f"{each.tokens / rate / 3600:,.2f}"
            for each in pairs[:_BIGGEST]
        )
        raise ConfigError(
            f"{plan.run} would take {kind} {hours:,.2f} device-hours at {rate:,.0f} tokens/s, and "
            f"--max-gpu-hours allows {limits.gpu_hours:g}; most of it: {', '.join(parts)}"
        )


@dataclass
class Guard:
    """Keeps a run from starting that would exceed its limits.

    A plan that only knows an upper bound of a dataset is decided on when that is prepared.
    """

    limits: Limits
    _decided: bool = False

    def check(
        self, config: RunConfig, root: Root, say: Callable[[str], None], *, prepared: bool = False
    ) -> None:
        """ConfigError if the run would exceed a limit, as far as that is known."""
        if self._decided or not self.limits:
            return
        from jobs.plan.plan import plan  # noqa: PLC0415  (imports torch, seconds)

        found = plan(config, root)
        self._decided = prepared or not any(each.basis == "bound" for each in found.corpora)
        try:
            require_within(found, self.limits)
        except ConfigError as error:
            if self._decided:
                raise
            say(f"  {error}; decided when the texts are prepared")
