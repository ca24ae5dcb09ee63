"""The demo, from nothing and again with everything present: wall seconds of the whole command."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

from jobs.cluster.console import say


def main() -> None:
    """Print both times."""
    with tempfile.TemporaryDirectory() as output:
        for name in ("from nothing", "everything present"):
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "jobs", "run", "demo", "--output", output],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            say(f"demo, {name}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
