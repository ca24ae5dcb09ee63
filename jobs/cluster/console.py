"""What a person sees while a run goes on: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple, TextIO

from tqdm import tqdm

from layerrank.jobs.cluster.tally import Counts
from layerrank.jobs.config.printable import escaped, printable, unguarded, without_known

_LOG_SECONDS = 10.0
_REDRAW_SECONDS = 1.0
_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


def quiet(on: bool) -> bool:
    """Leave out this thread's story and progress from now on, or not; return what was before."""
    before = _QUIET.get()
    _QUIET.set(on)
    return before


def say(line: str = "") -> None:
    """Print one line of the run's story."""
    if not _QUIET.get():
        _write(printable(line))


class UnreadError(RuntimeError):
    """Whoever read the answer of a command has gone, as `head` does when it has its lines."""


def answer(line: str = "", *, raw: bool = False) -> None:
    """Print one line of what a command was asked for, which no option leaves out.

    It may be of the user's own data, in which addresses stay whole. What is `raw` goes to a file or
    another program as it is.
    """
    line = without_known(line)
    try:
        _write(line if raw and not sys.stdout.isatty() else escaped(line))
    except BrokenPipeError as error:
        raise UnreadError(str(error)) from error


def _write(line: str) -> None:
    stream = unguarded(sys.stdout)
    stream.write(f"{line}\n")
    stream.flush()


class Pace(NamedTuple):
    """What is known of the models' work before any is done: all tokens, and tokens a second."""

    tokens: float
    speed: float

    def __str__(self) -> str:
        return f"{_span(self.tokens / self.speed)} at {self.speed:,.0f} tokens/s, as before"


class Progress:
    """Counts what a stage has done: `with Progress(...) as progress: progress.add(...)`.

    On a terminal a bar with rate and time left, redrawn every second; elsewhere a line every ten
    seconds, also while nothing finishes, so that a log never falls silent, and the first as soon as
    it is known that it will take longer. A stage that finds everything present shows nothing.

    `counted` says what workers have done of units that are not finished. The time that is left is
    by tokens, where they are counted: short texts go through a model before long ones. Before there
    is any, it is by `pace`.
    """

    def __init__(
        self,
        stage: str,
        total: int,
        unit: str,
        stream: TextIO | None = None,
        *,
        counted: Callable[[], Counts] = Counts,
        pace: Pace | None = None,
    ) -> None:
        self._stage, self._total, self._unit = stage, total, unit
        self._stream = stream or sys.stderr
        self._finished, self.tokens = 0, 0
        self._counted, self._counts, self._pace = counted, Counts(), pace
        # What is shown does not go back where a worker that died begins anew.
        self._done, self._encoded = 0, 0
        self._began = self._since = time.monotonic()
        self._before = 0  # tokens that were done when a batch was first heard of
        self._stopped = threading.Event()
        self._bar: tqdm[Any] | None = None
        if self._stream.isatty() and not _QUIET.get():
            shape = f"{{l_bar}}{{bar}}| {{n_fmt}} of {{total_fmt}} {unit} [{{elapsed}}{{postfix}}]"
            self._bar = tqdm(
                total=total,
                desc=f"  {stage:<8}",
                bar_format=shape,
                file=self._stream,
                leave=False,
            )
        self._watch = threading.Thread(target=self._keep_showing, daemon=True)

    def __enter__(self) -> Progress:
        if not _QUIET.get():
            self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._watch.ident:
            self._watch.join(_REDRAW_SECONDS)  # who is asked for counts may not answer any more
        if self._bar is not None:
            self._bar.close()

    def add(self, done: int, tokens: int = 0) -> None:
        """Count `done` more units, and the tokens that went through the model for them."""
        self._finished += done
        self.tokens += tokens
        self._update()

    @property
    def seconds(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self._began

    def line(self) -> str:
        """Return the state as one line of text."""
        done = f"  {self._stage}: {self._done:,} of {self._total:,} {self._unit}"
        return ", ".join(filter(None, [done, self._rate(), self._left()]))

    def look(self) -> None:
        """Look how far the workers are."""
        self._counts = self._counted()
        if not self._before and self._counts.tokens:  # until then models were loaded
            self._since, self._before = time.monotonic(), self._counts.tokens
        self._update()

    def _update(self) -> None:
        done = max(self._finished, self._counts.done, self._done)
        self._done = min(done, self._total)
        self._encoded = max(self.tokens, self._counts.tokens, self._encoded)
        if self._bar is not None:
            self._bar.n = self._done
            said = ", ".join(filter(None, [self._rate(), self._left()]))
            self._bar.set_postfix_str(said, refresh=False)

    def _rate(self) -> str:
        encoded = self._encoded - self._before
        elapsed = time.monotonic() - self._since
        return f"{encoded / max(elapsed, 1e-9):,.0f} tokens/s" if encoded > 0 else ""

    @property
    def _known(self) -> float:
        """Tokens of all texts, as far as those tell that workers have read; 0 if none."""
        known = self._counts.known
        return self._counts.known_tokens / known * self._total if known else 0.0

    @property
    def _seconds_left(self) -> float | None:
        """How long the rest will take; None if there is nothing yet to tell it by."""
        encoded = self._encoded - self._before
        if self._known and encoded > 0:
            left = (time.monotonic() - self._since) / encoded * (self._known - self._encoded)
        elif self._pace:
            left = ((self._known or self._pace.tokens) - self._encoded) / self._pace.speed
        elif self._done and not self._known:
            left = self.seconds / self._done * (self._total - self._done)
        else:
            return None
        return max(left, 0.0)

    def _left(self) -> str:
        left = self._seconds_left
        if self._done >= self._total or (left is None and not self._known):
            return ""
        return f"{self._known:,.0f} tokens" if left is None else f"about {_span(left)} left"

    def _keep_showing(self) -> None:
        shown, wait = self._began, min(_REDRAW_SECONDS, _LOG_SECONDS)
        while not self._stopped.wait(wait):
            try:
                self.look()
            except Exception:  # noqa: BLE001  (what is shown of the work is no reason to end it)
                self._counted = Counts
            now = time.monotonic()
            is_first = shown == self._began and bool(self._known)
            if self._stopped.is_set():
                return
            if self._bar is not None:
                self._bar.refresh()
            elif now - shown >= _LOG_SECONDS or (
                is_first and (self._seconds_left or 0.0) > _LOG_SECONDS
            ):
                shown = now
                self._stream.write(self.line() + "\n")
                self._stream.flush()


def _span(seconds: float) -> str:
    """Return a time in the unit that it is read in."""
    if seconds < 100:  # noqa: PLR2004
        return f"{max(seconds, 1):.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"  # noqa: PLR2004
