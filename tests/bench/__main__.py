"""`make bench`: every benchmark, one after another, each in its own process."""

from __future__ import annotations

import argparse
import subprocess
import sys

from layerrank.jobs.cluster.console import say

PROGRAMS = (
    "extraction",
    "tokens",
    "spectrum",
    "memory",
    "scoring",
    "scoring_memory",
    "objects",
    "query",
    "runs",
    "small",
    "coverage",
    "advice.depth",
    "advice.few_labels",
)


def main() -> int:
    """Run the programs named on the command line, or all of them.

    Each has options of its own, for `python -m tests.bench.NAME`.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("programs", nargs="*", metavar="NAME")
    names = parser.parse_args().programs
    if unknown := set(names).difference(PROGRAMS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(PROGRAMS)}")
    for name in names or PROGRAMS:
        say(f"== {name}")
        subprocess.run([sys.executable, "-m", f"tests.bench.{name}"], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
