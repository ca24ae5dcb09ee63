"""The recipe `encoder` as a whole command: wall seconds, and CPU seconds of what it waited for.

From nothing, again with everything present, and from nothing with Ray; three times each, so that
the spread of the machine shows.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from layerrank.jobs.cluster.console import say


def main() -> None:
    """Print the median and the times of each, and Ray's over those of processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    wall, cpu = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for number in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for name, engine, output in (
                ("from nothing", "process", "processes"),
                ("everything present", "process", "processes"),
                ("from nothing, on Ray", "ray", "ray"),
            ):
                seconds, used = _timed(engine, Path(folder, output))
                wall[name].append(seconds)
                cpu[name].append(used)
                say(f"run {number + 1}, {name}: {seconds:.1f} s")
    for name, seconds_of in wall.items():
        times = " ".join(f"{each:.1f}" for each in sorted(seconds_of))
        used = statistics.median(cpu[name])
        median = statistics.median(seconds_of)
        say(f"encoder, {name}: {median:.1f} s ({times}); {used:.1f} CPU-s")
    on_ray, here = (statistics.median(wall[f"from nothing{on}"]) for on in (", on Ray", ""))
    say(f"encoder, Ray over processes: {on_ray / here:.2f}")


def _timed(engine: str, output: Path) -> tuple[float, float]:
    """Return the wall and CPU seconds of the command, its waited-for children counted."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "layerrank",
            "run",
            "encoder",
            "--engine",
            engine,
            "--output",
            output,
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, used


if __name__ == "__main__":
    main()
