"""`layerrank`, and the same as `python -m layerrank`: our packages, whatever else has their names.

Python, and Ray for a submitted job, may look in the user's folder first, where a `storage.py` or a
`jobs/` is not ours. What was imported once is not looked for again.
"""

import gc
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

_SELDOM = 200_000  # new objects


def main() -> NoReturn:
    """Import our three packages from beside this file, run one command, and end the process."""
    # What is imported stays: to look for garbage among it takes a quarter of the time.
    gc.set_threshold(_SELDOM, 50, 50)
    folder = str(Path(__file__).resolve().parent)
    sys.path.insert(0, folder)
    try:
        import jobs  # noqa: F401, PLC0415
        import operators  # noqa: F401, PLC0415
        import storage  # noqa: F401, PLC0415
    finally:
        sys.path.remove(folder)
    from jobs.cli import main as run  # noqa: PLC0415

    code = run()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):  # nobody reads on
            stream.flush()
    # Everything is written. To take torch apart again would keep the user for another second.
    os._exit(code)


if __name__ == "__main__":
    main()
