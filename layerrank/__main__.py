"""`layerrank`, and the same as `python -m layerrank`."""

import gc
import os
import sys
from contextlib import suppress
from typing import NoReturn

_SELDOM = 200_000  # new objects


def main() -> NoReturn:
    """Run one command, and end the process."""
    # What is imported stays: to look for garbage among it takes a quarter of the time.
    gc.set_threshold(_SELDOM, 50, 50)
    from layerrank.jobs.cli import main as run  # noqa: PLC0415

    code = run()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):  # nobody reads on
            stream.flush()
    # Everything is written. To take torch apart again would keep the user for another second.
    os._exit(code)


if __name__ == "__main__":
    main()
