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
            # A name in brackets may hold anything; behind it stand the state and the parent.
            stat = (_PROC / str(process) / "stat").read_text(errors="replace")
            state, parent = stat.rpartition(")")[2].split()[:2]
            if state != "Z":  # one that has ended, and nobody has asked how
                of_parent.setdefault(int(parent), set()).add(process)
    found, begun = set[int](), [*ancestors]
    while begun:
        children = of_parent.get(begun.pop(), set()) - found
        found |= children
        begun += children
    return found


def at_work_in(folder: str) -> set[int]:
    """Return the processes that were started with a path in a folder, or that print into it."""
    found = set()
    for process in _processes() - {os.getpid()}:
        of_process = _PROC / str(process)
        with suppress(OSError):
            printed = str((of_process / "fd" / "1").readlink())
            if folder in printed or folder.encode() in (of_process / "cmdline").read_bytes():
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
