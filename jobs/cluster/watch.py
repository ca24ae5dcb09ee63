"""Whether work that is under way goes on: what gives no sign of life for too long ends the run.

A sign is a result, a changed count of what is done, another process that has the unit, or time of a
CPU that was used. One that is stopped, deadlocked, or waits for what never comes uses none; one
that loads a model or fits for an hour does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

# Of the time that may pass without a sign, so much on a CPU is one. A worker of Ray that does
# nothing uses half of it.
_CPU_SHARE = 0.005

_STARTING_SECONDS = 60.0  # that workers may take to start and import, at least
_STOOD_PAUSES = 3.0  # between two looks: the driver itself did not go on


class EngineError(RuntimeError):
    """What runs the work has failed, and not the work."""

    def of(self, stage: str) -> EngineError:
        """Return the error with the stage that it ended."""
        return type(self)(f"{stage}: {self}")


class StalledError(EngineError):
    """A worker does not answer, or there is none."""


class Sign(NamedTuple):
    """What is known of the process that has a unit: its name, and what it has done by now.

    One that may have died, with its machine perhaps, is not known to be there.
    """

    worker: str
    counts: tuple[int, ...]
    cpu_seconds: float
    is_there: bool = True


class _Last(NamedTuple):
    """The last sign of life of a unit, and when it was seen."""

    signs: Mapping[str, Sign]
    at: float


@dataclass
class Watch:
    """Watches the units of a plan; after `seconds` without a sign of life it says so."""

    seconds: float
    total: int
    clock: Callable[[], float] = time.monotonic
    _last: dict[int, _Last] = field(default_factory=dict)
    _done: set[int] = field(default_factory=set)
    _at: float = 0.0  # when there was a sign of anything
    _looked: float = 0.0

    def __post_init__(self) -> None:
        self._at = self._looked = self.clock()

    @property
    def pause(self) -> float:
        """Seconds between two looks at the workers."""
        return min(max(self.seconds / 20, 0.2), 30.0)

    @property
    def is_due(self) -> bool:
        """Whether it is time to look at the workers again."""
        return self.clock() - self._looked >= self.pause

    def resume(self) -> None:
        """Take it that nobody could look since the last sign or look: the driver was busy."""
        now = self.clock()
        away = now - max(self._at, self._looked)
        self._last = {
            number: last._replace(at=last.at + away) for number, last in self._last.items()
        }
        self._at = now

    def alive(self) -> None:
        """Take it that the plan goes on, whichever of its units does."""
        self._at = self.clock()

    def done(self, number: int) -> None:
        """Take it that there is a result of a unit."""
        self._done.add(number)
        self.alive()

    def look(self, under_way: Mapping[int, list[Sign]]) -> None:
        """Compare what is known of the units under way with what was; StalledError if one stands.

        Several processes have a unit where one of them has died, and it may wait for a new one: so
        a unit stands that a process is there for, or any when nothing goes on. What passes while
        the driver is stopped, or its machine sleeps, is not counted.
        """
        if self.clock() - max(self._at, self._looked) > _STOOD_PAUSES * self.pause:
            self.resume()
        now = self._looked = self.clock()
        found = {}
        for number in under_way.keys() - self._done:
            signs = {sign.worker: sign for sign in under_way[number]}
            last = self._last.get(number)
            if last is None or any(self._is_of_life(last, sign) for sign in signs.values()):
                last = _Last(signs, now)
                self._at = now
            found[number] = last
        self._last = found
        there = {
            number: [sign.worker for sign in under_way[number] if sign.is_there] for number in found
        }
        is_quiet = now - self._at > self.seconds
        for number in sorted(found, key=lambda each: not there[each]):
            seconds = now - found[number].at
            if seconds > self.seconds and (there[number] or is_quiet):
                who = " and ".join(there[number] or found[number].signs)
                at = f" stands at piece {number + 1} of {self.total}" if number >= 0 else ""
                raise _stalled(f"{who}{at}", seconds)
        if not found and now - self._at > max(self.seconds, _STARTING_SECONDS):
            left = self.total - len(self._done)
            raise _stalled(f"no worker has taken up the {left} pieces left", now - self._at)

    def _is_of_life(self, last: _Last, sign: Sign) -> bool:
        before = last.signs.get(sign.worker)
        if before is None or before.counts != sign.counts:
            return True
        return sign.cpu_seconds - before.cpu_seconds > _CPU_SHARE * self.seconds


def _stalled(what: str, seconds: float) -> StalledError:
    """Return the error of work that gives no sign of life, since when, and what to do."""
    return StalledError(
        f"{what}: no sign of life for {seconds:.0f} s (cluster.stall_seconds), neither a result "
        "nor work on a CPU; the same command tries it again, and a larger cluster.stall_seconds "
        "waits longer"
    )
