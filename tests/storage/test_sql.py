"""SQL views: their columns without a look at the shards, and what they ask of S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from layerrank.jobs.cluster.errors import USAGE, explain
from layerrank.storage.layers import embeddings_table, prompt_metrics_table
from layerrank.storage.manifest import Manifest, require
from layerrank.storage.partition import KEYS, Partition
from layerrank.storage.root import Root
from layerrank.storage.schema import TABLES
from layerrank.storage.sql import connect
from tests.conftest import S3
from tests.support.machines.proxy import Proxy, proxy
from tests.support.stored import ask, store

ROWS = 512
IDS, LENGTHS = np.arange(ROWS), np.full(ROWS, 7, np.int32)
COUNT = "SELECT count(*) FROM embeddings WHERE layer = 3"


@pytest.fixture
def between(s3: S3) -> Iterator[Proxy]:
    with proxy(s3) as found:
        yield found


def _where(name: str = "a/b 100%", condition: str = "clean") -> Partition:
    return Partition("embeddings", (name, "main?", "d[1]*", condition))


def _vectors(root: Root, where: Partition, shards: int = 1, features: int = 64) -> Manifest:
    vectors_ND = np.ones((ROWS, features), np.float32)
    groups = [embeddings_table((n, "final", "mean"), IDS, LENGTHS, vectors_ND) for n in range(5)]
    table = pa.concat_tables(groups)
    return store(root, where, [table] * shards, {"features": features})


def test_a_layer_is_counted_without_a_head_and_a_row_group_is_one_get(
    between: Proxy, tmp_path: Path
) -> None:
    root = between.root(tmp_path.name)
    made = _vectors(root, _where(), shards=4)
    with connect(root) as sql:
        between.passed.clear()
        assert sql.sql(COUNT).fetchall() == [(4 * ROWS,)]
        assert between.count("GET") == len(between.passed) <= 8
        between.passed.clear()
        assert sql.sql("SELECT min(vector[1]) FROM embeddings").fetchall() == [(1.0,)]
        assert between.count("GET") == len(between.passed)
    shard = made.shards(root)[0]
    shard.group_values(["layer"])  # its index and footer are known from here on
    between.passed.clear()
    shard.read_group({"layer": 3})
    assert [each.split()[0] for each in between.passed] == ["GET"]
    between.passed.clear()
    assert require(root, _where()) == made
    assert [each.split()[0] for each in between.passed] == ["GET"]


@pytest.mark.parametrize("on_s3", [False, True])
def test_shards_of_other_columns_stand_in_one_view(
    on_s3: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = Root(str(tmp_path))
    if on_s3:
        root = request.getfixturevalue("s3").root(tmp_path.name)
    for features, condition in ((3, "clean"), (5, "view-00")):
        _vectors(root, _where(condition=condition), features=features)
    query = "SELECT model, revision, dataset, condition, max(len(vector)) FROM embeddings "
    keys = "a/b 100%", "main?", "d[1]*"
    found = [(*keys, "clean", 3), (*keys, "view-00", 5)]
    assert sorted(ask(root, f"{query} GROUP BY ALL")) == found
    assert ask(root, f"{query} WHERE condition = 'view-00' GROUP BY ALL") == found[1:]
    values = {("prompt_entropy", f"alpha={n}"): np.full(ROWS, float(n)) for n in (1, 3, 5)}
    for alpha in (3, 5):
        keys_of = ("prompt_entropy", "alpha=1"), ("prompt_entropy", f"alpha={alpha}")
        chosen = {key: values[key] for key in keys_of}
        table = prompt_metrics_table(0, "none", IDS, LENGTHS, chosen, {"prompt_entropy": "short"})
        where = _where(f"of {alpha}").sibling("prompt_metrics")
        store(root, where, [table], {"subject": alpha, "alphas": [1, alpha]})
    several = ", ".join(f"any_value(prompt_entropy_alpha_{n})" for n in (1, 3, 5))
    query = f"SELECT model, {several} FROM prompt_metrics GROUP BY ALL ORDER BY model"
    assert ask(root, query) == [("of 3", 1.0, 3.0, None), ("of 5", 1.0, None, 5.0)]


def test_columns_and_types_are_those_that_duckdb_finds_in_the_shards(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    assert TABLES.keys() == KEYS.keys()
    for table in KEYS:
        names = tuple(f"a {key}" for key in KEYS[table])
        store(root, Partition(table, names), [TABLES[table][1].empty_table()], {"of": table})
    with connect(root) as sql:
        for table in KEYS:
            file = require(root, Partition(table, tuple(f"a {k}" for k in KEYS[table]))).objects()
            plain = sql.read_parquet(root.path(file[0]), hive_partitioning=False)
            found = sql.table(table)
            assert found.columns == [*plain.columns, *KEYS[table]]
            assert found.types == [*plain.types, *["VARCHAR"] * len(KEYS[table])]
            assert plain.columns == TABLES[table][1].names


@pytest.mark.parametrize(
    ("where", "late"),
    [
        (Partition("ranking", ("m", "r", "g")), "won"),
        (_where().sibling("prompt_metrics"), "first_token_share"),
    ],
)
def test_a_column_that_a_later_version_has_is_null_before(
    where: Partition, late: str, tmp_path: Path
) -> None:
    root, columns = Root(str(tmp_path)), TABLES[where.table][1]
    before = [each.with_nullable(True) for each in columns if each.name != late]
    row = {each.name: [0 if each.name == "layer" else None] for each in before}
    store(root, where, [pa.table(row, pa.schema(before, columns.metadata))], {})
    assert ask(root, f"SELECT layer, {late} FROM {where.table}") == [(0, None)]


@pytest.mark.parametrize("on_s3", [False, True])
def test_a_shard_that_is_gone_is_named_by_what_asks_for_it(
    on_s3: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = Root(str(tmp_path))
    if on_s3:
        root = request.getfixturevalue("s3").root(tmp_path.name)
    made = _vectors(root, _where("m"), shards=2)
    root.delete(made.objects()[1])
    with pytest.raises(duckdb.Error) as told:
        ask(root, COUNT)
    line, code = explain(told.value)
    assert code == USAGE
    assert line.startswith(("cannot read s3://", "IO Error: No files"))
    assert "shard-00001" in line
