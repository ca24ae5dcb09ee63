"""Every place where a run can die: its calls that write, replace or delete a file of its root.

Python tells an audit hook of such a call before it makes it, whoever calls, so no place is left out
that is added later. A point has the name of what happens and to which object, and not a number:
with two workers it is the same point in whatever order they come.

Run as a program this imports all that a run needs once and forks a process for every command, whose
pool is forked from there too: a run takes a second. Lines on standard input are lists as JSON: the
root, what happens at which point, and the command.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import util
from pathlib import Path
from typing import Any, Literal, get_args

LIMIT = 300.0  # seconds of a command
HUNG = 124  # its exit code when it took longer
_TEMPORARY = re.compile(r"\.(.+)\.[^.]*\.tmp")
_DRAWN = re.compile(r"[0-9a-f]{32}")  # of names that are other ones in every run
_WRITES = os.O_WRONLY | os.O_RDWR

# What happens at a point: all processes of the run die at once, or the one that is there, or the
# disk is full from there on, or the driver gets Ctrl-C or SIGTERM.
How = Literal["nothing", "die", "die alone", "disk full", "Ctrl-C", "SIGTERM"]


@dataclass
class Points:
    """Tells of the points of a root in a file, and lets something happen at one of them."""

    root: str
    log: Path
    at: str = ""
    how: How = "nothing"
    driver: int = field(default_factory=os.getpid)
    _met: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Meet what Python is about to do."""
        act = _ACTS.get(event)
        if act is None or not isinstance(arguments[0], (str, os.PathLike)):
            return
        path = os.fspath(arguments[0])
        if not path.startswith(f"{self.root}/") or not (name := act(path, arguments)):
            return
        what, key = name
        point = f"{what} {_DRAWN.sub('*', key.removeprefix(f'{self.root}/'))}"
        self._met[point] += 1
        if self._met[point] > 1:
            point += f" #{self._met[point]}"
        who = "driver" if os.getpid() == self.driver else "worker"
        os.write(self._file, f"{who} {point}\n".encode())
        if self.how == "disk full" and self._fired.exists() and what == "begin":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if point == self.at and self._first():
            self._happen(path)

    @property
    def _fired(self) -> Path:
        return self.log.with_suffix(".fired")

    def _first(self) -> bool:
        try:
            self._fired.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _happen(self, path: str) -> None:
        if self.how == "die":
            os.killpg(0, signal.SIGKILL)
        elif self.how == "die alone":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.how == "disk full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        elif self.how == "Ctrl-C":
            os.kill(self.driver, signal.SIGINT)
        elif self.how == "SIGTERM":
            os.kill(self.driver, signal.SIGTERM)


def _target(path: str) -> str:
    """Return where a file will lie that is written under a temporary name."""
    folder, _, name = path.rpartition("/")
    found = _TEMPORARY.fullmatch(name)
    return f"{folder}/{found[1]}" if found else path


def _opened(path: str, given: tuple[Any, ...]) -> tuple[str, str] | None:
    _, mode, flags = given
    writes = set(mode) & set("wax+") if mode else flags & _WRITES
    return ("begin", _target(path)) if writes else None


def _removed(path: str, _given: tuple[Any, ...]) -> tuple[str, str] | None:
    if not os.path.lexists(path):
        return None
    return "tidy" if _target(path) != path else "delete", _target(path)


def _shown(path: str, given: tuple[Any, ...]) -> tuple[str, str] | None:
    return ("show", os.fspath(given[1])) if _target(path) != path else ("move", path)


_ACTS: dict[str, Callable[[str, tuple[Any, ...]], tuple[str, str] | None]] = {
    "open": _opened,
    "os.rename": _shown,
    "os.link": _shown,
    "os.remove": _removed,
    "os.truncate": lambda path, _given: ("cut", path),
}


def _forked(_python: bytes, arguments: Sequence[Any], passed: Sequence[int]) -> int:
    """Run the program of multiprocessing's own processes in a fork instead of another Python."""
    if child := os.fork():
        return child
    kept = {0, 1, 2, *passed, *_kept_files}
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        if number not in kept:
            with suppress(OSError):  # that of the listing
                os.close(number)
    try:
        exec(os.fsdecode(arguments[-1]), {})
    finally:
        os._exit(0)  # whatever was raised is not for the driver's copy


_kept_files: list[int] = []


def _run(points: Points, command: list[str]) -> None:
    """Be the process of a command."""
    os.setpgid(0, 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(points.log.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    setattr(util, "spawnv_passfds", _forked)  # noqa: B010  (whose types are wider)
    points.driver = os.getpid()
    _kept_files.append(points._file)
    sys.addaudithook(points)
    sys.argv[1:] = command
    from layerrank.__main__ import main as run

    run()


def _told(points: Points, command: list[str]) -> dict[str, Any]:
    """Run a command in a fork and return how it ended."""
    points.log.with_suffix(".fired").unlink(missing_ok=True)
    child = os.fork()
    if not child:
        try:
            _run(points, command)
        finally:
            os._exit(99)
    os.close(points._file)
    deadline = time.monotonic() + LIMIT
    done, status = os.waitpid(child, os.WNOHANG)
    while not done and time.monotonic() < deadline:
        time.sleep(0.01)
        done, status = os.waitpid(child, os.WNOHANG)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if not done:
        os.waitpid(child, 0)
    out, err = (points.log.with_suffix(f".{name}").read_text() for name in ("stdout", "stderr"))
    code = os.waitstatus_to_exitcode(status) if done else HUNG
    return {"returncode": code, "stdout": out, "stderr": err}


def main() -> None:
    """Run the commands of standard input."""
    answers = os.fdopen(os.dup(1), "w")
    from layerrank.jobs import whole

    for name in (
        *whole.WORKERS,
        *whole._AT_THE_END,
        "layerrank.__main__",
        "layerrank.jobs.cli",
        "deltalake",
    ):
        import_module(name)
    for line in sys.stdin:
        root, log, how, at, *command = json.loads(line)
        assert how in get_args(How)
        answers.write(json.dumps(_told(Points(root, Path(log), at, how), command)) + "\n")
        answers.flush()


if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    main()
