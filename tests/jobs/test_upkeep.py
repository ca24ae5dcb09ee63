"""Healing: work that meets damage is done again, once for each shard."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from layerrank.jobs import cli
from layerrank.jobs.cluster.errors import USAGE
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.stored import FOLDER, record
from layerrank.jobs.run import Run, Seen, partition
from layerrank.jobs.upkeep import healing, prune
from layerrank.storage import schema
from layerrank.storage.manifest import Manifests, everything, load
from layerrank.storage.partition import Partition
from layerrank.storage.readers import delta
from layerrank.storage.readers.delta import LogError
from layerrank.storage.shards import DamagedError
from tests.support.checkpoints import make_run, store_checkpoint
from tests.support.places import PROJECT
from tests.support.stored import store


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = make_run(tmp_path)
    store_checkpoint(run, "step0", [0.3, 0.4, 0.5, 0.4])
    return run


def test_what_is_damaged_is_deleted_and_the_work_done_again(run: Run) -> None:
    where = Partition("probe_scores", ("org/model", "step0", "texts", "clean", "t"))
    rows, passes = run.rows(where), list[str]()

    def work() -> int:
        if run.manifests.load(where) is None:
            passes.append("made")
            run.write(where, {}, rows)
        path = Path(run.root.path(where.shard("scores.parquet")))
        if not passes:
            path.write_bytes(path.read_bytes()[:-1])
        passes.append("read")
        return len(run.rows(where))

    assert healing(run, work) == len(rows)
    assert passes == ["read", "made", "read"]
    assert load(run.root, partition("ranking", "org/model", "step0", run.config.name))


def test_logs_are_asked_for_before_the_work_and_kept_after_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("deltalake", reason="the extra delta is not installed")
    asked = replace(run, config=run.config.model_copy(update={"delta": True}))
    where = Partition("layer_metrics", ("org/model", "step1", "texts", "clean"))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "deltalake", None)
        with pytest.raises(LogError):
            healing(asked, lambda: pytest.fail("the work has begun"))
    healing(asked, lambda: None)
    # Whoever runs next, the root has logs.
    rows = run.rows(Partition("layer_metrics", ("org/model", "step0", "texts", "clean")))
    later = replace(run, seen=Seen())
    healing(later, lambda: later.write(where, {}, rows))
    for table, height in (("ranking", 4), ("layer_metrics", 2 * len(rows))):
        assert pl.scan_delta(run.root.place(table)).collect().height == height


def test_whatever_ranks_says_first_that_the_package_of_its_logs_lacks(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record(run.config, run.config, run.root)
    run.root.write(delta.MARK, b"")
    monkeypatch.setitem(sys.modules, "deltalake", None)
    monkeypatch.setattr(Manifests, "publish", lambda *_, **__: pytest.fail("work has begun"))
    scores = str(PROJECT / "jobs/recipes/pythia-410m-scores.parquet")
    for command in (["report", run.root.uri], ["rank", "--scores", scores, "-o", run.root.uri]):
        assert cli.main(command) == USAGE
        assert "pip install 'layerrank[delta]'" in capsys.readouterr().err


def test_the_root_is_looked_at_before_the_work_is_done(run: Run) -> None:
    where, passes = Partition("layer_metrics", ("org/model", "step0", "texts", "clean")), 0

    def work() -> None:
        nonlocal passes
        passes += 1
        if run.manifests.load(where) is None:
            run.write(where, {}, [])
        if passes == 1:  # somebody deletes it behind the run's back
            run.root.delete(where.shard("metrics.parquet"))

    healing(run, work)
    assert passes == 2
    assert run.manifests.damage(run.manifests.require(where)) == {}


def test_all_that_is_damaged_of_a_partition_is_found_at_once(run: Run) -> None:
    where, passes = Partition("embeddings", ("org/model", "step0", "texts", "clean")), 0
    tables = [schema.LAYER_COSTS.empty_table()] * 3
    made = store(run.root, where, tables, {})
    content = {key: run.root.read(key) for key in made.objects()}

    def work() -> None:
        nonlocal passes
        passes += 1
        if passes == 1:
            for key in made.objects()[1:]:  # of equal size, and at no later time
                path = Path(run.root.path(key))
                before = path.stat()
                path.write_bytes(content[key][:9] + b"?" + content[key][10:])
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            run.manifests.load(where)
            made.shards(run.root)[2].read()
        assert sorted(run.root.sizes(where.path)) == [made.receipts[0].name]

    healing(run, work)
    assert passes == 2


def test_what_is_damaged_again_ends_the_run(run: Run) -> None:
    where, passes = Partition("layer_metrics", ("org/model", "step0", "texts", "clean")), 0

    def work() -> None:
        nonlocal passes
        passes += 1
        raise DamagedError(where, "metrics.parquet", "as ever")

    with pytest.raises(DamagedError, match="as ever"):
        healing(run, work)
    assert passes == 2


def test_nothing_is_pruned_while_a_config_cannot_be_read(run: Run) -> None:
    for config in (run.config, run.config.model_copy(update={"name": "another"})):
        record(config, config, run.root)
    before = {each.partition for each in everything(run.root)}
    path = Path(run.root.path(f"{FOLDER}/{run.config.name}.yaml"))
    path.write_bytes(path.read_bytes() + b"# a note\n")
    with pytest.raises(ConfigError, match="nothing is deleted"):
        prune(run.root)
    assert {each.partition for each in everything(run.root)} == before


def test_an_error_of_another_kind_is_left_alone(run: Run) -> None:
    def work() -> None:
        raise ValueError("of another kind")

    with pytest.raises(ValueError, match="of another kind"):
        healing(run, work)
