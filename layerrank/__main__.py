"""`layerrank`, and the same as `python -m layerrank`."""

import gc
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NoReturn

_SELDOM = 200_000  # new objects
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C; a scheduler; a closed terminal
_CLEANING_SECONDS = 20.0  # until a command that was told to end does so as it stands
_AGAIN_SECONDS = 0.05


class Stopped(KeyboardInterrupt):
    """The command was told to end."""


class _Ends:
    """Lets a command end cleanly when a signal tells it to: the first raises `Stopped`, once.

    What is cleaned up then is not disturbed by a second one, but it has its time.
    """

    def __init__(self) -> None:
        self.number = 0  # of the signal, if there was one
        self._was_raised = False
        self._swallowed = sys.unraisablehook
        sys.unraisablehook = self._take
        signal.signal(signal.SIGALRM, self._again)
        for each in _SIGNALS:
            if signal.getsignal(each) != signal.SIG_IGN:  # as of `nohup`
                signal.signal(each, self._stop)
        told, tells = os.pipe()
        os.set_blocking(tells, False)
        signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
        threading.Thread(target=self._end_at_last, args=(told,), daemon=True).start()

    def _stop(self, number: int, _frame: object) -> None:
        self.number = self.number or number
        if not self._was_raised:
            self._was_raised = True
            raise Stopped

    def _take(self, unraisable: Any) -> None:  # noqa: ANN401  (has no public type)
        """Raise it once more where Python cannot pass it on, as out of a destructor."""
        if isinstance(unraisable.exc_value, Stopped):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        else:
            self._swallowed(unraisable)

    def _again(self, _number: int, _frame: object) -> None:
        raise Stopped

    def _end_at_last(self, told: int) -> None:
        """End the command some time after a signal, also where Python cannot raise what it is told.

        The main thread hears of one when native code returns to it.
        """
        while (number := os.read(told, 1)[0]) not in _SIGNALS:
            pass
        self.number = self.number or number
        time.sleep(_CLEANING_SECONDS)
        self.end(0)

    def end(self, code: int) -> NoReturn:
        """End the process; everything is written, or will not be.

        To take torch apart again would keep the user for another second.
        """
        if self.number:
            from layerrank.jobs.cluster.left import descendants, end_all  # noqa: PLC0415

            end_all(lambda: descendants(os.getpid()))  # as a server that still imports
            with suppress(OSError):
                sys.stderr.write("layerrank: stopped; the same command goes on from here\n")
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # nobody reads on
                stream.flush()
        if "multiprocessing.forkserver" in sys.modules:  # its socket lies there
            shutil.rmtree(sys.modules["multiprocessing.util"].get_temp_dir(), ignore_errors=True)
        os._exit(128 + self.number if self.number else code)


def main() -> NoReturn:
    """Run one command, and end the process."""
    ends = _Ends()
    # What is imported stays: to look for garbage among it takes a quarter of the time.
    gc.set_threshold(_SELDOM, 50, 50)
    code = 1
    with suppress(KeyboardInterrupt):  # or what a library made of it
        from layerrank.jobs.cli import main as run  # noqa: PLC0415

        code = run(stopped=lambda: bool(ends.number))
    ends.end(code)


if __name__ == "__main__":
    main()
