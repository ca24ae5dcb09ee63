"""`make bench`: every benchmark, one after another, each in its own process."""

from __future__ import annotations

import subprocess
import sys

PROGRAMS = ("extraction", "spectrum", "memory", "scoring", "scoring_memory", "demo")


def main() -> int:
    """Run the programs named on the command line, or all of them."""
    for name in sys.argv[1:] or PROGRAMS:
        sys.stdout.write(f"== {name}\n")
        sys.stdout.flush()
        subprocess.run([sys.executable, "-m", f"tests.bench.{name}"], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
