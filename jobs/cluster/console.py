"""What a person sees while a run goes on: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import re
import sys
import threading
import time
from typing import Any, TextIO

from tqdm import tqdm

_LOG_SECONDS = 10.0
_REDRAW_SECONDS = 1.0
# What a terminal obeys, or shows in another order, and does not show: control characters, marks
# and overrides of direction, separators of lines, halves of surrogate pairs.
_UNSHOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(line: str) -> str:
    """Return one line in which whatever a terminal cannot show is escaped, as Python writes it."""
    return _UNSHOWN.sub(lambda found: repr(found[0])[1:-1], line)


_quiet = False


def quiet(on: bool) -> bool:
    """Leave out the story and the progress of runs from now on, or not; return what was before."""
    global _quiet
    before, _quiet = _quiet, on
    return before


def say(line: str = "") -> None:
    """Print one line of the run's story."""
    if not _quiet:
        _write(printable(line))


class UnreadError(RuntimeError):
    """Whoever read the answer of a command has gone, as `head` does when it has its lines."""


def answer(line: str = "", *, raw: bool = False) -> None:
    """Print one line of what a command was asked for, which no option leaves out.

    What is `raw` goes to a file or another program as it is.
    """
    try:
        _write(line if raw and not sys.stdout.isatty() else printable(line))
    except BrokenPipeError as error:
        raise UnreadError(str(error)) from error


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Progress:
    """Counts what a stage has done: `with Progress(...) as progress: progress.add(...)`.

    On a terminal a bar with rate and time left, redrawn every second; elsewhere a line every ten
    seconds, also while nothing finishes, so that a log never falls silent. A stage that finds
    everything present shows nothing.
    """

    def __init__(self, stage: str, total: int, unit: str, stream: TextIO | None = None) -> None:
        self._stage, self._total, self._unit = stage, total, unit
        self._stream = stream or sys.stderr
        self._done, self.tokens = 0, 0
        self._began = time.monotonic()
        self._stopped = threading.Event()
        self._bar: tqdm[Any] | None = None
        if self._stream.isatty() and not _quiet:
            self._bar = tqdm(
                total=total, desc=f"  {stage:<8}", unit=f" {unit}", file=self._stream, leave=False
            )
        self._watch = threading.Thread(target=self._keep_showing, daemon=True)

    def __enter__(self) -> Progress:
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._watch.join()
        if self._bar is not None:
            self._bar.close()

    def add(self, done: int, tokens: int = 0) -> None:
        """Count `done` more units, and the tokens that went through the model for them."""
        self._done += done
        self.tokens += tokens
        if self._bar is not None:
            self._bar.set_postfix_str(self._rate(), refresh=False)
            self._bar.update(done)

    @property
    def seconds(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self._began

    def line(self) -> str:
        """Return the state as one line of text."""
        parts = [f"  {self._stage}: {self._done:,} of {self._total:,} {self._unit}", self._rate()]
        if 0 < self._done < self._total:
            left = self.seconds / self._done * (self._total - self._done)
            parts.append(f"about {left:.0f} s left")
        return ", ".join(filter(None, parts))

    def _rate(self) -> str:
        return f"{self.tokens / max(self.seconds, 1e-9):,.0f} tokens/s" if self.tokens else ""

    def _keep_showing(self) -> None:
        wait = _REDRAW_SECONDS if self._bar is not None else _LOG_SECONDS
        while not self._stopped.wait(wait):
            if self._bar is not None:
                self._bar.refresh()
            elif not _quiet:
                self._stream.write(self.line() + "\n")
                self._stream.flush()
