"""A lock with a lease in the root: one holder at a time, and a crashed one's lease runs out.

An object store can create an object only if there is none, but not swap one for another. So the
lock is a series of numbered objects, `NAME-000017.json`: the highest number is the lock. Only
the one who created an object writes it again, to renew the lease or to mark it released; an expired
or released lock is taken over by creating the next number, which succeeds for one contender alone.
A holder that sees a higher number has lost its lease. Numbers below the lock are deleted.

Clocks of contenders must agree to a small part of the lease; synchronised machines differ by less
than a second.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from botocore.exceptions import BotoCoreError

from layerrank.storage.root import BOOKS, Root

FOLDER = f"{BOOKS}/locks"
_RENEWALS = 3  # per lease
_ATTEMPTS = 16
_LAST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
_LONGEST = 3600.0  # seconds that a claim can be ahead: it lasts a minute, and clocks may differ
_LONGEST_NAME = 300  # characters of a holder


class LockHeldError(RuntimeError):
    """Somebody else holds the lock."""


class LeaseLostError(RuntimeError):
    """The lease ran out, or somebody else has taken the lock over: stop."""


@dataclass(frozen=True)
class Lease:
    """What a lock object holds; times are in seconds of the Unix epoch.

    `token` is random and tells one acquisition from another, `holder` is for people.
    """

    holder: str
    token: str
    since: float
    until: float
    released: bool = False


@dataclass(eq=False)
class Lock:
    """The lock `name` of a root, held for `seconds` from each renewal on."""

    root: Root
    name: str
    seconds: float
    clock: Callable[[], float] = time.time
    holder: str = field(default_factory=lambda: f"process {os.getpid()} on {socket.gethostname()}")
    _number: int = 0
    _lease: Lease | None = None
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def acquire(self) -> None:
        """Take the lock; LockHeldError that says who holds it, since when and until when."""
        for _ in range(_ATTEMPTS):
            number, now = max(self._numbers(), default=0), self.clock()
            held = self._read(number)
            if held is not None and not held.released and now < held.until:
                raise LockHeldError(
                    f"another {self.name} is running on {self.root.uri}: {held.holder}, since "
                    f"{_clock_time(held.since)}; its lease runs until {_clock_time(held.until)}, "
                    "unless it goes on and renews it; if that is not so, delete "
                    f"{self.root.place(self._key(number))}"
                )
            number += 1
            lease = Lease(self.holder, uuid.uuid4().hex, now, now + self.seconds)
            self.root.create(self._key(number), _encoded(lease))
            # The object is what counts, not the answer: a write that was repeated after a lost
            # answer finds its own object there. And the number may be one that a later holder had
            # deleted.
            mine = self._read(number)
            if mine is None or mine.token != lease.token:
                continue
            numbers = self._numbers()
            if max(numbers, default=0) > number:
                self.root.delete(self._key(number))
                continue
            self._number, self._lease = number, lease
            for old in numbers:
                if old < number:
                    self.root.delete(self._key(old))
            return
        raise LockHeldError(
            f"another {self.name} takes the lock of {self.root.uri} again and again"
        )

    def renew(self) -> None:
        """Prolong the lease; LeaseLostError if it is no longer this holder's."""
        with self._writing:
            self.check()
            assert self._lease is not None
            renewed = replace(self._lease, until=self.clock() + self.seconds)
            self.root.write(self._key(self._number), _encoded(renewed))
            self._lease = renewed
        self.check()

    def check(self) -> None:
        """Raise LeaseLostError if the lease ran out or the lock was taken over."""
        if self._lease is None:
            raise LeaseLostError(f"the lock of {self.name} on {self.root.uri} is not held")
        highest = max(self._numbers(), default=0)
        if highest > self._number or self.clock() >= self._lease.until:
            raise LeaseLostError(
                f"the lock of {self.name} on {self.root.uri} was lost: "
                f"held until {_clock_time(self._lease.until)} and not renewed in time; "
                "nothing more is published"
            )

    def release(self) -> None:
        """Let others have the lock at once; nothing happens if it is not held."""
        with self._writing:
            if self._lease is not None:
                released = replace(self._lease, released=True)
                self.root.write(self._key(self._number), _encoded(released))
            self._lease = None

    def _numbers(self) -> list[int]:
        pattern = re.compile(rf"{re.escape(self.name)}-(\d+)\.json")
        matches = map(pattern.fullmatch, self.root.sizes(FOLDER))
        return [int(match[1]) for match in matches if match]

    def _read(self, number: int) -> Lease | None:
        try:
            return _lease(json.loads(self.root.read(self._key(number))))
        except FileNotFoundError:  # deleted since it was listed: there is a higher one
            return None
        except (ValueError, TypeError, RecursionError):  # torn: nobody's
            return None

    def _key(self, number: int) -> str:
        return f"{FOLDER}/{self.name}-{number:06d}.json"


@contextmanager
def held(lock: Lock) -> Iterator[Lock]:
    """Hold a lock for a block, renewing its lease in the background.

    A renewal that fails is tried again until the lease runs out; `check` then says so.
    """
    lock.acquire()
    stopped = threading.Event()

    def keep_renewing() -> None:
        while not stopped.wait(lock.seconds / _RENEWALS):
            try:
                lock.renew()
            except LeaseLostError:
                return
            except (OSError, BotoCoreError):
                continue

    watch = threading.Thread(target=keep_renewing, name="lease", daemon=True)
    watch.start()
    try:
        yield lock
    finally:
        stopped.set()
        watch.join()
        with suppress(OSError, BotoCoreError):  # the lease runs out by itself
            lock.release()


class Claim(NamedTuple):
    """What somebody does in a root while its lease runs; `about` says what, as JSON."""

    lease: Lease
    about: Mapping[str, Any]


@contextmanager
def claimed(
    root: Root, about: Mapping[str, Any], refuse: Callable[[Claim], None], seconds: float = 60.0
) -> Iterator[None]:
    """Tell others for a block what is done in a root; several may, unless one refuses another.

    `refuse` gets every claim that was there before and raises if it cannot stand beside it. A
    claim whose lease ran out, or says of itself what cannot be, or whose process on this machine
    has ended, is deleted, after what it had begun to write.
    """
    now, holder = time.time(), f"process {os.getpid()} on {socket.gethostname()}"
    mine = Lease(holder, uuid.uuid4().hex, now, now + seconds)

    def key(token: str) -> str:
        return f"{FOLDER}/run-{token}.json"

    def write(lease: Lease) -> None:
        root.write(key(lease.token), json.dumps({**asdict(lease), "about": about}).encode())

    stopped = threading.Event()

    def keep_renewing() -> None:
        while not stopped.wait(seconds / _RENEWALS):
            with suppress(OSError, BotoCoreError):
                write(replace(mine, until=time.time() + seconds))

    write(mine)
    watch = threading.Thread(target=keep_renewing, name="claim", daemon=True)
    is_swept = False
    for folder in ("", FOLDER):  # where one is written to before there is a claim
        root.sweep(folder)
    try:
        for name in root.sizes(FOLDER):
            other = _read_claim(root, name) if name.startswith("run-") else None
            if other is None or other.lease.token == mine.token:
                continue
            left = other.lease.until - time.time()
            if not 0 <= left <= _LONGEST or _has_ended(other.lease.holder):
                if not is_swept:
                    root.sweep(deep=True)
                    is_swept = True
                root.delete(f"{FOLDER}/{name}")
            elif (other.lease.since, other.lease.token) < (mine.since, mine.token):
                refuse(other)
        watch.start()
        yield
    finally:
        stopped.set()
        if watch.is_alive():
            watch.join()
        with suppress(OSError, BotoCoreError):  # the lease runs out by itself
            root.delete(key(mine.token))


def _read_claim(root: Root, name: str) -> Claim | None:
    """Return a claim; None if it has gone, or is none."""
    try:
        values = json.loads(root.read(f"{FOLDER}/{name}"))
        about = values.pop("about")
        return Claim(_lease(values), about) if isinstance(about, dict) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _lease(values: Any) -> Lease:  # noqa: ANN401  (any JSON value)
    """Return a lease of its values; TypeError or ValueError if it is none."""
    lease = Lease(**values)
    for each in (lease.since, lease.until):
        _clock_time(each)
    for name in (lease.holder, lease.token):
        if not isinstance(name, str) or len(name) > _LONGEST_NAME:
            raise TypeError("a holder and a token are short texts")
    return lease


def _has_ended(holder: str) -> bool:
    """Whether a holder was a process of this machine that is no more."""
    found = re.fullmatch(r"process (\d+) on (.+)", holder)
    if not found or found[2] != socket.gethostname():
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # of somebody else, or no number of a process
        return False
    return False


def _encoded(lease: Lease) -> bytes:
    return json.dumps(asdict(lease)).encode()


def _clock_time(seconds: float) -> str:
    """Return a time as people read it; ValueError or TypeError if there is no such time."""
    if not 0 <= seconds < _LAST:
        raise ValueError(f"{seconds} is no time")
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
