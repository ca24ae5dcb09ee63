"""`make demo-cluster`: the demo as a submitted job on two Ray nodes, with the demo's own tables.

Two nodes are started on this machine, the job is submitted as the README says, and every shard that
it wrote is compared with the one that `make demo` wrote, to the bit; but for the layers' latencies,
which no two runs share.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from jobs.cluster.console import say
from storage.root import Root
from tests.support.local_cluster import local_cluster
from tests.support.places import PROJECT
from tests.support.stored import content

DEMO, SUBMITTED = PROJECT / "layerrank-demo", PROJECT / "layerrank-demo-cluster"


def main() -> int:
    """Run the demo as a job, and return 0 if its tables are the demo's."""
    python = Path(sys.executable)
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "PATH": path,
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        _say("starting two Ray nodes on this machine")
        with local_cluster(python, environment, Path(folder), nodes=2, cpus=1) as cluster:
            command = ("python", "-m", "jobs", "run", "demo", "--output", str(SUBMITTED))
            _say(f"ray job submit --working-dir . -- {' '.join(command)}")
            result = cluster.submit(PROJECT, *command, shown=True)
    if result.returncode:
        sys.stderr.write(result.stderr)
        return 1
    demo, submitted = _shards(DEMO), _shards(SUBMITTED)
    other = sorted(name for name in {*demo, *submitted} if demo.get(name) != submitted.get(name))
    if other or not demo:
        _say(f"{len(other)} of {len(demo)} shards differ, first {other[:1]}")
        return 1
    rows = sum(count for count, _ in demo.values())
    _say(f"{len(demo)} shards, {rows:,} rows: the same to the bit as those of `make demo`")
    return 0


def _shards(folder: Path) -> dict[str, tuple[int, str]]:
    found = content(Root(str(folder)))
    return {f"{where}/{name}": each for where in found for name, each in found[where].items()}


def _say(line: str) -> None:
    say(f"demo-cluster: {line}")


if __name__ == "__main__":
    sys.exit(main())
