"""The command line: `layerrank COMMAND`.

Exit codes: 0 done; 1 failed or incomplete; 2 bad usage or config; 3 done, and a regression found.
A command that a signal ends has 128 and the signal's number: 130 of Ctrl-C, 143 of SIGTERM.
What a command needs is imported when it is run, so that `--help` comes at once.
"""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module

from layerrank.jobs.cli.parser import build
from layerrank.jobs.config.printable import guarded, printable


def main(argv: Sequence[str] | None = None, *, stopped: Callable[[], bool] = lambda: False) -> int:
    """Run one command and return its exit code; every error is one line on standard error.

    `stopped` says whether the command was told to end: whatever broke then broke of it.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a run does not die of a name in its story
        sys.stdout.reconfigure(errors="replace")
    given = sys.argv[1:] if argv is None else argv
    with guarded(given):
        return _done(given, stopped)


def _done(argv: Sequence[str], stopped: Callable[[], bool]) -> int:
    parser = build()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as ended:  # after --help, --version or bad usage, which is said
        return int(ended.code or 0)
    if arguments.version:
        from importlib.metadata import version  # noqa: PLC0415  (a tenth of the time)

        sys.stdout.write(f"layerrank {version('layerrank')}\n")
        return 0
    if arguments.command is None:
        parser.print_help()
        return 0
    from layerrank.jobs.cluster.console import UnreadError, quiet  # noqa: PLC0415
    from layerrank.jobs.cluster.errors import FAILED, explain  # noqa: PLC0415

    before = quiet(arguments.quiet)
    try:
        module, function = arguments.handler.split(":")
        handler = getattr(import_module(f"layerrank.jobs.cli.{module}"), function)
        code: int = handler(arguments)
    except UnreadError:
        return FAILED
    except Exception as error:
        if stopped():
            raise KeyboardInterrupt from error
        if arguments.verbose:
            traceback.print_exception(error)
        message, code = explain(error)
        sys.stderr.write(f"layerrank: {printable(message)}\n")
    finally:
        quiet(before)
    return code
