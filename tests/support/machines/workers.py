"""Workers for the tests of the seam, in a module that is imported in no time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from layerrank.jobs.cluster import tally


def square(unit: int) -> int:
    return unit * unit


def refuse(error: Exception, unit: int) -> int:
    if unit == 3:
        raise error
    return unit


def refuse_oddly(unit: int) -> int:
    raise Unpicklable("what it says", str(unit))


def die_once(folder: Path, unit: int) -> int:
    """Kill the process of unit 3, the first time."""
    mark = folder / "died"
    if unit == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return unit


def die(unit: int) -> int:
    print(f"unit {unit} is too much", flush=True)  # noqa: T201
    os._exit(7)


def count_and_wait(folder: Path, unit: int) -> int:
    """Count a part of the unit, and the rest when that has been seen."""
    tally.expect(10, 100)
    tally.count(4, 30)
    deadline = time.monotonic() + 60
    while not (folder / "seen").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    tally.count(6, 70)
    return unit


def count_and_die_once(folder: Path, unit: int) -> int:
    """Count a part of every unit, and of unit 3 twice: its process is killed the first time."""
    tally.count(4)
    die_once(folder, unit)
    tally.count(6)
    return unit


def split(unit: int) -> Iterator[pa.Table]:
    yield pa.table({"shard": [unit % 3, 2], "text": [f"a {unit}", f"b {unit}"]})
    yield pa.table({"shard": [0], "text": [f"c {unit}"]})


def joined(rows: pa.Table) -> tuple[int, list[str]]:
    (shard,) = set(rows["shard"].to_pylist())
    return shard, sorted(rows["text"].to_pylist())


class Counting:
    """Built once in each process: says which one, and how many units it has had."""

    def __init__(self, add: int) -> None:
        self.add, self.had = add, 0

    def __call__(self, unit: int) -> tuple[int, int, int]:
        self.had += 1
        return unit + self.add, os.getpid(), self.had


def doubled(unit: int) -> int:
    return 2 * unit


class Unpicklable(Exception):
    """Cannot be built again from its text."""

    def __init__(self, one: str, _other: str) -> None:
        super().__init__(one)


def linger(unit: int) -> int:
    time.sleep(600 * (unit > 1))
    return os.getpid()


def stand_still(unit: int) -> int:
    """Stop the process of unit 3 as a debugger would, for ever."""
    if unit == 3:
        os.kill(os.getpid(), signal.SIGSTOP)
    return unit


def wait_for_ever(unit: int) -> int:
    """Wait in unit 3 for what never comes."""
    if unit == 3:
        time.sleep(600)
    return unit


def work_long(seconds: float, unit: int) -> int:
    """Work on a CPU without telling of it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return unit


def kill(name: str, unit: int) -> int:
    """Kill an ancestor, or another child of one, whose command line has such a name."""
    if unit == 3:
        for process in _relatives():
            if name in Path(f"/proc/{process}/cmdline").read_text(errors="replace"):
                os.kill(process, signal.SIGKILL)
    time.sleep(1)
    return unit


def _relatives() -> list[int]:
    (raylet,) = [os.getppid()]
    driver = int(Path(f"/proc/{raylet}/stat").read_text().rpartition(")")[2].split()[1])
    tasks = Path(f"/proc/{driver}/task").glob("*/children")
    return [int(each) for task in tasks for each in task.read_text().split()]
