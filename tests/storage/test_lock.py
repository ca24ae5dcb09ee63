"""The lock of a root: one holder of many contenders, leases that run out, on a disk and on S3."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from layerrank.storage.lock import FOLDER, Claim, LeaseLostError, Lock, LockHeldError, claimed, held
from layerrank.storage.root import Root
from tests.conftest import S3

CONTENDERS = 12


@dataclass
class Clock:
    """A clock that stands still until it is set."""

    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    if request.param == "disk":
        return Root(str(tmp_path))
    s3: S3 = request.getfixturevalue("s3")
    return s3.root(tmp_path.name)


def _locks(root: Root, count: int = 2) -> tuple[Clock, list[Lock]]:
    """Return locks of one name by one clock."""
    clock = Clock()
    return clock, [Lock(root, "nightly", 60, clock=clock) for _ in range(count)]


def _objects(root: Root) -> list[str]:
    return sorted(root.sizes(FOLDER))


def test_a_torn_lock_is_nobodys(root: Root) -> None:
    _, (lock, _) = _locks(root)
    root.write(f"{FOLDER}/nightly-000003.json", b'{"holder": "some')
    lock.acquire()
    assert _objects(root) == ["nightly-000004.json"]


def test_an_object_is_created_once(root: Root) -> None:
    assert root.create("a/b", b"first")
    assert not root.create("a/b", b"second")
    assert root.read("a/b") == b"first"
    assert list(root.sizes("a")) == ["b"]


def test_the_second_is_told_who_holds_the_lock_and_until_when(root: Root) -> None:
    clock = Clock()
    Lock(root, "nightly", 60, clock=clock, holder="the first").acquire()
    second = Lock(root, "nightly", 60, clock=clock)
    with pytest.raises(LockHeldError) as told:
        second.acquire()
    assert "the first, since 1970-01-01 00:16:40 UTC" in str(told.value)
    assert "its lease runs until 1970-01-01 00:17:40 UTC" in str(told.value)
    Lock(root, "another", 60, clock=clock).acquire()
    with pytest.raises(LeaseLostError, match="not held"):
        second.check()


def test_an_expired_lease_is_taken_over_and_its_holder_stops(root: Root) -> None:
    clock, (crashed, second) = _locks(root)
    crashed.acquire()
    clock.now += 59.9
    with pytest.raises(LockHeldError):
        second.acquire()
    clock.now += 0.1
    second.acquire()
    for outdated in (crashed.check, crashed.renew):
        with pytest.raises(LeaseLostError):
            outdated()
    clock.now -= 30  # not even if its clock were behind
    with pytest.raises(LeaseLostError):
        crashed.check()
    crashed.release()  # does not touch the lock of the other
    second.check()


@pytest.mark.parametrize("before", ["nothing", "expired", "released"])
def test_one_of_many_contenders_wins(root: Root, before: str) -> None:
    clock, (last, *contenders) = _locks(root, 1 + CONTENDERS)
    together = threading.Barrier(CONTENDERS)
    if before != "nothing":
        last.acquire()
        if before == "released":
            last.release()
        clock.now += 60 if before == "expired" else 0

    def contend(lock: Lock) -> bool:
        together.wait()
        try:
            lock.acquire()
        except LockHeldError:
            return False
        lock.check()
        return True

    with ThreadPoolExecutor(CONTENDERS) as pool:
        assert sum(pool.map(contend, contenders)) == 1


def test_a_contender_that_looked_long_ago_does_not_win_below_the_lock(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saw an expired number, others came and went, and its next number was deleted since."""
    _, (slow, holder, *others) = _locks(root, 5)
    for other in others:
        other.acquire()
        other.release()
    holder.acquire()
    assert _objects(root) == ["nightly-000004.json"]
    honest = slow._numbers
    first = iter([[1]])
    monkeypatch.setattr(slow, "_numbers", lambda: next(first, None) or honest())
    with pytest.raises(LockHeldError):
        slow.acquire()
    holder.check()
    assert _objects(root) == ["nightly-000004.json"]


def test_a_create_whose_answer_was_lost_is_still_a_create(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Root.create
    monkeypatch.setattr(Root, "create", lambda *a: (create(*a), create(*a))[1])
    lock = Lock(Root(str(tmp_path)), "nightly", 60)
    lock.acquire()
    lock.check()


def test_a_held_lock_is_renewed_in_the_background_and_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Root(str(tmp_path))
    write, failures = Root.write, iter([OSError("no disk for a moment")])

    def flaky(self: Root, key: str, content: bytes) -> None:
        for error in failures:
            raise error
        write(self, key, content)

    monkeypatch.setattr(Root, "write", flaky)
    with held(Lock(root, "nightly", 0.6)) as lock:
        time.sleep(1.2)
        lock.check()
        with pytest.raises(LockHeldError):
            Lock(root, "nightly", 0.6).acquire()
    kept = json.loads(root.read(f"{FOLDER}/nightly-000001.json"))
    assert kept["released"]
    assert kept["until"] - kept["since"] > 1


def test_a_lease_that_cannot_be_renewed_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("no disk")

    monkeypatch.setattr(Root, "write", broken)
    with held(Lock(Root(str(tmp_path)), "nightly", 0.3)) as lock:
        time.sleep(0.5)
        with pytest.raises(LeaseLostError, match="nothing more is published"):
            lock.check()


LIES: list[dict[str, Any]] = [
    {"until": 1e300},
    {"until": float("nan")},
    {"until": float("inf")},
    {"since": -1e300},
    {"since": "yesterday"},
    {"until": None},
    {"until": 10**400},
    {"holder": ["x"]},
    {"token": 5},
    {"more": 1},
]


@pytest.mark.parametrize("lie", LIES)
def test_a_lock_that_says_what_cannot_be_is_nobodys(lie: dict[str, Any], tmp_path: Path) -> None:
    root, now = Root(str(tmp_path)), time.time()
    true = {"holder": "process 1 on a", "token": "x", "since": now, "until": now + 50}
    lied = json.dumps({**true, **lie}).encode()
    root.write(f"{FOLDER}/nightly-000001.json", lied)
    with held(Lock(root, "nightly", 60.0)) as mine:
        mine.check()
    root.write(f"{FOLDER}/run-x.json", json.dumps({**true, **lie, "about": {}}).encode())
    with claimed(root, {}, _refused):
        pass


@pytest.mark.parametrize("content", [b"[1]", b"null", b'"x"', b"[" * 100_000, b"\xff", b"{}"])
def test_a_lock_of_another_form_is_nobodys(content: bytes, tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    for name in ("nightly-000001", "run-x"):
        root.write(f"{FOLDER}/{name}.json", content)
    with held(Lock(root, "nightly", 60.0)), claimed(root, {}, _refused):
        pass


def test_a_lock_of_a_clock_that_is_far_ahead_is_named_with_its_file_and_a_claim_is_none(
    tmp_path: Path,
) -> None:
    root, far = Root(str(tmp_path)), time.time() + 10 * 365 * 86_400
    true = {"holder": "process 99999999999999999999 on a", "token": "x", "since": 0.0, "until": far}
    root.write(f"{FOLDER}/run-x.json", json.dumps({**true, "about": {}}).encode())
    with claimed(root, {}, _refused):
        pass
    root.write(f"{FOLDER}/nightly-000001.json", json.dumps(true).encode())
    with pytest.raises(LockHeldError, match=r"since 1970.*delete .*nightly-000001\.json"):
        Lock(root, "nightly", 60.0).acquire()


def test_a_holder_that_is_no_process_has_not_ended(tmp_path: Path) -> None:
    root, now = Root(str(tmp_path)), time.time()
    holder = f"process 99999999999999999999999 on {socket.gethostname()}"
    claim = {"holder": holder, "token": "x", "since": now - 5, "until": now + 50, "about": {}}
    root.write(f"{FOLDER}/run-x.json", json.dumps(claim).encode())
    with pytest.raises(AssertionError, match="refused"), claimed(root, {}, _refused):
        pass


def _refused(other: Claim) -> None:
    raise AssertionError(f"refused for {other}")
