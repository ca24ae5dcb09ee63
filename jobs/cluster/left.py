"""Processes that may be left when a run has ended: found in /proc, and ended at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_ENDED_SECONDS = 5.0  # until processes that were killed are gone


def descendants(*ancestors: int) -> set[int]:
    """Return the processes that were started by others, and by those in turn."""
    of_parent: dict[int, set[int]] = {}
    for process in _processes():
        with suppress(OSError):  # it has ended meanwhile
            state, parent = status(process)[:2]
            if state != "Z":  # one that has ended, and nobody has asked how
                of_parent.setdefault(int(parent), set()).add(process)
    found, begun = set[int](), [*ancestors]
    while begun:
        children = of_parent.get(begun.pop(), set()) - found
        found |= children
        begun += children
    return found


def children() -> dict[int, tuple[str, bool]]:
    """Return what this process has started: process -> its program, and whether it has ended.

    One of which somebody has asked how it ended is gone.
    """
    found = {}
    for process in _processes():
        with suppress(OSError):
            state, parent = status(process)[:2]
            if int(parent) == os.getpid():
                name = (_PROC / str(process) / "comm").read_text().strip()
                found[process] = name, state == "Z"
    return found


def status(process: int) -> list[str]:
    """Return what the system says of a process from its state on; OSError if it has ended."""
    stat = (_PROC / str(process) / "stat").read_text(errors="replace")
    return stat.rpartition(")")[2].split()  # the name before may hold anything


def at_work_in(folder: str, programs: str) -> set[int]:
    """Return the processes that print into a folder, or of certain programs with a path in it.

    The programs lie in a folder as well: somebody may read a file of the first with others.
    """
    found = set()
    for process in _processes() - {os.getpid()}:
        of_process = _PROC / str(process)
        with suppress(OSError):
            printed = str((of_process / "fd" / "1").readlink())
            command = (of_process / "cmdline").read_bytes()
            of_both = all(each.encode() in command for each in (folder, programs))
            if of_both or folder in printed:
                found.add(process)
    return found


def end_all(find: Callable[[], set[int]]) -> None:
    """Kill the processes that `find` returns until it returns none, for a few seconds at most."""
    until = time.monotonic() + _ENDED_SECONDS
    while (found := find()) and time.monotonic() < until:
        for process in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)


def _processes() -> set[int]:
    return {int(each.name) for each in _PROC.iterdir() if each.name.isdigit()}
