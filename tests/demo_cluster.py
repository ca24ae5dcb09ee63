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

from layerrank.jobs.cluster.console import say
from layerrank.storage.root import Root
from tests.conftest import offline_environment
from tests.support.machines.local_cluster import local_cluster
from tests.support.places import PROJECT
from tests.support.stored import content

DEMO, SUBMITTED = PROJECT / "layerrank-demo", PROJECT / "layerrank-demo-cluster"


def main() -> int:
    """Run the demo as a job, and return 0 if its tables are the demo's."""
    python = Path(sys.executable)
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**offline_environment(), "PATH": path}
    with tempfile.TemporaryDirectory() as folder:
        _say("starting two Ray nodes on this machine")
        with local_cluster(python, environment, Path(folder), nodes=2, cpus=1) as cluster:
            command = ("python", "-m", "layerrank", "run", "demo", "--output", str(SUBMITTED))
            _say(f"ray job submit --working-dir . -- {' '.join(command)}")
            result = cluster.submit(PROJECT, *command, shown=True)
    if result.returncode:
        sys.stderr.write(result.stderr)
        return 1
    demo, submitted = content(Root(str(DEMO))), content(Root(str(SUBMITTED)))
    other = sorted(
        where for where in {*demo, *submitted} if demo.get(where) != submitted.get(where)
    )
    if other or not demo:
        _say(f"{len(other)} of {len(demo)} partitions differ, first {other[:1]}")
        return 1
    shards = [each for of_partition in demo.values() for each in of_partition.values()]
    rows = sum(count for count, _ in shards)
    _say(f"{len(shards)} shards, {rows:,} rows: the same to the bit as those of `make demo`")
    return 0


def _say(line: str) -> None:
    say(f"demo-cluster: {line}")


if __name__ == "__main__":
    sys.exit(main())
