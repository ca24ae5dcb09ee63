"""How far the units are that are under way: workers count what they do, the driver reads it.

It is shown, and it is a sign of life (`watch.py`): no result depends on it, nobody waits for it,
and where nobody reads it nothing is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class Counts(NamedTuple):
    """What is done of a unit, or of all: texts or other work, and the tokens of it.

    Of `known` texts, done or not, it is known that they have `known_tokens`. `waits` is how often
    somebody else was seen to go on with what the unit waits for.
    """

    done: int = 0
    tokens: int = 0
    known: int = 0
    known_tokens: int = 0
    waits: int = 0


Tell = Callable[[Counts], object]


_TALLY: ContextVar[tuple[Tell, Counts] | None] = ContextVar("tally", default=None)


@contextmanager
def counting(tell: Tell) -> Iterator[None]:
    """Give what this thread counts in the block, from nothing on, to `tell`."""
    before = _TALLY.set((tell, Counts()))
    try:
        yield
    finally:
        _TALLY.reset(before)


def count(done: int, tokens: int = 0) -> None:
    """Count what is done of this thread's unit."""
    _add(Counts(done, tokens))


def expect(texts: int, tokens: int) -> None:
    """Say of how many texts of this thread's unit it is known how many tokens they have."""
    _add(Counts(known=texts, known_tokens=tokens))


def wait() -> None:
    """Say that what this thread's unit waits for goes on."""
    _add(Counts(waits=1))


def _add(more: Counts) -> None:
    if of_unit := _TALLY.get():
        tell, counts = of_unit
        counts = Counts(*map(sum, zip(counts, more, strict=True)))
        _TALLY.set((tell, counts))
        tell(counts)
