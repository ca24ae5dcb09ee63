"""A side of the seam for tests, one unit after another in this process, and a run on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from layerrank.jobs.cluster.cluster import Cluster, Side
from layerrank.jobs.cluster.pool import Feed, Make, Pool, Split, TorchDevice, Work, Write
from layerrank.jobs.cluster.tally import Counts
from layerrank.jobs.config.run import RunConfig
from layerrank.jobs.run import Run
from layerrank.storage.root import Root


class Here:
    """One unit after another in this process."""

    name = "here"
    may_grow = False

    def resources(self, *, gpu: bool) -> dict[str, float]:
        del gpu
        return {"CPU": 1.0}

    def begin(self) -> None:
        """Start nothing."""

    def describe(self, work: int | Pool, device: TorchDevice) -> tuple[int, str]:
        del work, device
        return 1, "this process"

    def each(self, units: Sequence[Any], work: Work, *, cpus: float, gpus: float) -> Iterator[Any]:
        del cpus, gpus
        return map(work, units)

    def actors(self, units: Sequence[Any], make: Make, feed: Feed, pool: Pool) -> Iterator[Any]:
        del pool
        worker = make()
        return (worker(feed(unit)) for unit in units)

    def shuffle(
        self, units: Sequence[Any], split: Split, write: Write, *, key: str, groups: int
    ) -> Iterator[Any]:
        del groups
        rows = pa.concat_tables(table for unit in units for table in split(unit))
        for value in sorted(pc.unique(rows[key]).to_pylist()):
            yield write(rows.filter(pc.equal(rows[key], value)))

    def counted(self) -> Counts:
        return Counts()

    def close(self) -> None:
        """End nothing."""


def run_here(
    folder: Path,
    model: Path | str,
    datasets: Sequence[dict[str, Any]],
    *,
    side: Side | None = None,
    **blocks: object,
) -> Run:
    """Return a run of one subject over files that nobody reads, with `folder` as its root."""
    values = {
        "name": "small",
        "subjects": [{"model": str(model), "name": "tiny"}],
        "datasets": [{"source": {"files": "none.jsonl"}, **each} for each in datasets],
    }
    config = RunConfig.model_validate({**values, **blocks})
    return Run(config, Root(str(folder)), Cluster(side or Here()))
