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

from storage.manifest import require
from storage.partition import KEYS, partitions
from storage.root import Root
from tests.support.local_cluster import local_cluster
from tests.support.places import PROJECT

DEMO, SUBMITTED = PROJECT / "layerrank-demo", PROJECT / "layerrank-demo-cluster"
_MEASURED = ("layer_costs",)  # latencies, which no two runs share


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
            result = cluster.submit(python.parent / "ray", PROJECT, *command, shown=True)
    if result.returncode:
        sys.stderr.write(result.stderr)
        return 1
    return _compare(_content(Root(str(DEMO))), _content(Root(str(SUBMITTED))))


def _content(root: Root) -> dict[str, tuple[int, str]]:
    """Return rows and checksum of every shard."""
    found = (require(root, where) for table in KEYS for where in partitions(root, table))
    return {
        each.partition.shard(receipt.name): (receipt.rows, receipt.checksum)
        for each in found
        if each.partition.table not in _MEASURED
        for receipt in each.receipts
    }


def _compare(demo: dict[str, tuple[int, str]], submitted: dict[str, tuple[int, str]]) -> int:
    other = sorted(name for name in {*demo, *submitted} if demo.get(name) != submitted.get(name))
    if other or not demo:
        _say(f"{len(other)} of {len(demo)} shards differ, first {other[:1]}")
        return 1
    rows = sum(count for count, _ in demo.values())
    _say(f"{len(demo)} shards, {rows:,} rows: the same to the bit as those of `make demo`")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"demo-cluster: {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
