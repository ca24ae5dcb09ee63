"""The table of what layers cost: measured once, and read as earlier versions wrote it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from layerrank.jobs.measure.pieces import work_on
from layerrank.jobs.measure.stage import costs as costs_of
from layerrank.jobs.rank.stage import read_costs
from layerrank.jobs.run import Run, Seen, partition
from layerrank.storage import schema
from layerrank.storage.manifest import Manifests, require
from layerrank.storage.shards import write_shard
from tests.support.machines.here import run_here
from tests.support.stored import ask
from tests.support.tiny import BLOCKS

LATER = ["latency_low_ms", "latency_high_ms"]


@pytest.fixture
def run(tmp_path: Path, checkpoint: Path) -> Run:
    return run_here(tmp_path, checkpoint, [{"name": "data"}])


def test_every_layer_has_a_cost_with_the_spread_of_its_latency(run: Run) -> None:
    work_on(run.cluster, costs_of(run, run.subjects[0]))
    costs = read_costs(run, run.subjects[0])
    assert [*costs] == list(range(BLOCKS + 1))
    for layer, each in costs.items():
        assert (each.layer, each.tokens, each.device) == (layer, 128, "cpu")
        assert 0 < each.latency_low_ms <= each.latency_ms <= each.latency_high_ms
    rows = ask(run.root, "SELECT latency_low_ms FROM layer_costs ORDER BY layer")
    assert [low for (low,) in rows] == [each.latency_low_ms for each in costs.values()]


@pytest.mark.parametrize("columns", [LATER, []])
def test_a_table_without_the_spread_is_current_and_reads_as_nan(
    run: Run, columns: list[str], tmp_path: Path
) -> None:
    """The columns are missing, as before there were any, or hold nulls."""
    subject = run.subjects[0]
    work_on(run.cluster, costs_of(run, run.subjects[0]))
    before = read_costs(run, subject)
    manifest = require(run.root, partition("layer_costs", subject))
    types = [each for each in schema.LAYER_COSTS if each.name not in columns]
    old = pa.schema(types, metadata=schema.LAYER_COSTS.metadata)
    rows = [{k: v for k, v in asdict(each).items() if k not in LATER} for each in before.values()]
    table, (blank,) = pa.Table.from_pylist(rows, old), manifest.receipts
    key = manifest.partition.shard(blank.name)
    receipt = write_shard(run.root, key, [table], old, blank)
    Manifests(run.root).publish(manifest.partition, manifest.settings, [receipt])
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    warm = replace(run, seen=Seen())
    assert not costs_of(warm, subject)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == written
    for layer, found in read_costs(warm, subject).items():
        assert np.isnan([found.latency_low_ms, found.latency_high_ms]).all()
        blanked = replace(before[layer], latency_low_ms=0.0, latency_high_ms=0.0)
        assert replace(found, latency_low_ms=0.0, latency_high_ms=0.0) == blanked
