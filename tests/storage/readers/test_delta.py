"""The Delta logs of a root say what its manifests say, whatever came between."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pds
import pytest

from layerrank.jobs.cluster.errors import DONE, USAGE, explain
from layerrank.jobs.status import status
from layerrank.jobs.upkeep import repair
from layerrank.storage import schema
from layerrank.storage.layers import embeddings_table, prompt_metrics_table
from layerrank.storage.manifest import Manifest, Manifests, require
from layerrank.storage.partition import Partition
from layerrank.storage.readers.delta import LogError, Logs, storage_options
from layerrank.storage.root import AddressError, Root
from layerrank.storage.shards import Shard
from tests.support.stored import store

deltalake = pytest.importorskip("deltalake", reason="the extra delta is not installed")
IDS, LENGTHS = np.arange(4), np.full(4, 7, np.int32)


def _where(revision: str = "step1") -> Partition:
    return Partition("embeddings", ("a/b 100%", revision, "d[1]*", "clean"))


def _vectors(root: Root, where: Partition, shards: int = 1, value: float = 1.0) -> Manifest:
    vectors_ND = np.full((4, 3), value, np.float32)
    table = embeddings_table((1, "final", "mean"), IDS, LENGTHS, vectors_ND)
    return store(root, where, [table] * shards, {"value": value})


def _log(root: Root, table: str = "embeddings") -> Any:  # noqa: ANN401
    return deltalake.DeltaTable(root.place(table), storage_options=storage_options(root))


def _read(root: Root, table: str = "embeddings") -> dict[str, int]:
    """Rows by revision, as deltalake and Polars read them."""
    read = pa.table(_log(root, table).to_pyarrow_table())
    given: Any = storage_options(root)
    lazy = pl.scan_delta(root.place(table), storage_options=given or None)
    assert lazy.collect().sort(pl.all().exclude("reasons", "vector")).height == read.num_rows
    counts = lazy.group_by("revision").len().collect().rows()
    assert sorted(counts) == sorted(pd.Series(read["revision"]).value_counts().items())
    return dict(counts)


@pytest.fixture(params=["here", "on S3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    if request.param == "here":
        return Root(str(tmp_path / "root"))
    found: Root = request.getfixturevalue("s3").root(tmp_path.name)
    return found


@pytest.fixture
def here(tmp_path: Path) -> Root:
    """A folder whose tables have logs, and one partition."""
    root = Root(str(tmp_path / "root"))
    _vectors(root, _where())
    Manifests(root).keep_logs(asked=True)
    return root


def test_a_log_follows_what_is_published_withdrawn_and_deleted(root: Root) -> None:
    _vectors(root, _where("step1"), shards=2)
    Manifests(root).keep_logs(asked=True)
    assert _read(root) == {"step1": 8}
    vectors = pl.scan_delta(root.place("embeddings"), storage_options=storage_options(root) or None)
    assert vectors.select("vector").first().collect().item().to_list() == [1.0, 1.0, 1.0]
    _vectors(root, _where("step2"))
    _vectors(root, _where("step3"))
    assert _read(root) == {"step1": 8, "step2": 4, "step3": 4}
    assert _log(root).to_pyarrow_table(filters=[("model", "=", "a/b 100%")]).num_rows == 16
    Manifests(root).withdraw(_where("step2"))
    Manifests(root).remove(_where("step3"), "keep.nights")
    assert _read(root) == {"step1": 8}
    # Fewer shards of another content, in the same names.
    made = require(root, _where("step1"))
    Manifests(root).publish(_where("step1"), made.settings, made.receipts[:1])
    assert _read(root) == {"step1": 4}
    version = _log(root).version()
    Manifests(root).publish(_where("step1"), made.settings, made.receipts[:1])
    assert _log(root).version() == version
    other = Manifests(root)
    other.survey(_where("step1"), {"of": "others"}, overwrite=True)
    assert _read(root) == {}


def test_a_run_that_was_stopped_before_its_commit_is_made_up_for(
    here: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Logs, "follow", killed)
        with pytest.raises(KeyboardInterrupt):
            _vectors(here, _where("step2"))
        with pytest.raises(KeyboardInterrupt):
            Manifests(here).withdraw(_where("step1"))
    assert _read(here) == {"step1": 4}
    again = Manifests(here)
    assert again.load(_where("step2"))
    assert again.load(_where("step1")) is None
    again.look()
    assert _read(here) == {"step2": 4}


def test_runs_that_commit_at_once_all_do(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    Manifests(root).keep_logs(asked=True)  # without a table: the first of them begins the log
    revisions = [f"step{number}" for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda revision: _vectors(root, _where(revision)), revisions))
    assert _read(root) == dict.fromkeys(revisions, 4)


def test_what_another_run_commits_first_is_looked_at_again(
    here: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, columns = require(here, _where()), Logs._columns
    held = {_where(): replace(made, receipts=(replace(made.receipts[0], checksum="other"),)).held}

    def in_between(logs: Logs, *of: Any) -> pa.Schema:  # noqa: ANN401
        monkeypatch.undo()
        Logs(here).follow(held)
        return columns(logs, *of)

    before = _log(here).version()
    monkeypatch.setattr(Logs, "_columns", in_between)
    Logs(here).follow(held)
    assert _log(here).version() == before + 1
    assert _read(here) == {"step1": 4}


def test_a_column_that_comes_later_is_null_before(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    Manifests(root).keep_logs(asked=True)
    for number, alpha in enumerate((1, 5)):
        values = {("prompt_entropy", f"alpha={alpha}"): np.full(4, float(alpha))}
        table = prompt_metrics_table(0, "none", IDS, LENGTHS, values, {"prompt_entropy": "short"})
        where = Partition("prompt_metrics", ("m", f"step{number}", "d", "clean"))
        store(root, where, [table], {"alphas": [alpha]})
    assert _read(root, "prompt_metrics") == {"step0": 4, "step1": 4}
    found = pl.scan_delta(root.place("prompt_metrics")).select("revision", "prompt_entropy_alpha_5")
    assert sorted(found.unique().collect().rows()) == [("step0", None), ("step1", 5.0)]


def test_columns_are_those_of_the_schemas(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    for table, keys in (("ranking", ("m", "r", "g")), ("tasks", ("t", "d"))):
        where = Partition(table, keys)  # type: ignore[arg-type]
        store(root, where, [schema.TABLES[table][1].empty_table()], {})
        Manifests(root).keep_logs(asked=True)
        assert [each.name for each in _log(root, table).schema().fields] == [
            *schema.TABLES[table][1].names,
            *where.keys,
        ]


def test_a_folder_with_a_log_is_still_read_without_it(here: Root) -> None:
    folder = here.path("embeddings")
    assert len(pd.read_parquet(folder)) == pds.dataset(folder).count_rows() == 4
    counted = duckdb.execute(f"SELECT count(*) FROM '{folder}/**/*.parquet'")
    assert counted.fetchall() == [(4,)]
    assert pl.read_parquet(f"{folder}/**/*.parquet").height == 4
    assert status(here, verify=True) == DONE


def test_what_is_repaired_leaves_the_log(here: Root) -> None:
    shard = Shard(here, _where(), require(here, _where()).receipts[0])
    here.write(shard.key, here.read(shard.key)[:-1] + b"?")
    _vectors(here, _where("step2"))
    here.write(_where("step2").manifest, b"torn")
    assert repair(here) == DONE
    assert _read(here) == {}


def test_what_is_lacking_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AddressError, match="memory"):
        Manifests(Root("memory://somewhere")).keep_logs(asked=True)
    monkeypatch.setitem(sys.modules, "deltalake", None)
    root = Root(str(tmp_path))
    Manifests(root).keep_logs(asked=False)
    with pytest.raises(LogError) as told:
        Manifests(root).keep_logs(asked=True)
    line, code = explain(told.value)
    assert code == USAGE
    assert "pip install 'layerrank[delta]'" in line
    assert not list(tmp_path.iterdir())


def test_a_content_has_a_number_of_its_own(tmp_path: Path) -> None:
    made = _vectors(Root(str(tmp_path)), _where())
    other = replace(made, receipts=(replace(made.receipts[0], checksum="other"),))
    removed, withdrawn = replace(made, removed="rule"), replace(made, withdrawn="stale")
    assert 0 < made.held.number < 1 << 63
    assert made.held.number != other.held.number
    assert removed.held.number == withdrawn.held.number == 0
