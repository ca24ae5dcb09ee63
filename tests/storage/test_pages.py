"""Vectors that are laid out by hand: other readers agree, and nothing else is ever written."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerrank.storage import pages, schema, shards
from layerrank.storage.layers import (
    Group,
    by_prompts,
    embeddings_table,
    read_vectors,
    shard_vectors,
)
from layerrank.storage.manifest import Manifests, digest_of
from layerrank.storage.partition import Partition, part_name, shard_name, whole_name
from layerrank.storage.root import Root
from layerrank.storage.shards import ENCODED, Receipt, Shard, index_key, write_shard

WHERE = Partition("embeddings", ("model", "main", "data", "clean"))
SETTINGS = {"seed": 1}
GROUPS = [(layer, norm, "mean") for layer in (0, 1, 300) for norm in ("final", "none")]


def tables(rows: int, dim: int, seed: int = 0, groups: Any = GROUPS) -> list[pa.Table]:  # noqa: ANN401
    draw = np.random.default_rng(seed)
    ids = draw.integers(-(2**63), 2**63, rows)
    lengths = draw.integers(1, 2**31, rows, np.int32)
    return [
        embeddings_table(group, ids, lengths, draw.standard_normal((rows, dim), np.float32))
        for group in groups
    ]


def write(root: Root, made: list[pa.Table], name: str = shard_name(0)) -> Receipt:
    blank = Receipt(name, 0, digest_of(SETTINGS), "", facts={"prompts": made[0].num_rows})
    return write_shard(root, WHERE.shard(name), made, made[0].schema, blank)


def ranges(file: pq.ParquetFile, name: str) -> list[tuple[Any, Any, int]]:
    place = file.metadata.schema.names.index(name)
    groups = map(file.metadata.row_group, range(file.num_row_groups))
    found = [group.column(place).statistics for group in groups]
    return [(each.min, each.max, each.null_count) for each in found]


@pytest.mark.parametrize(("rows", "dim"), [(1, 1), (9, 1), (1, 7), (37, 64), (300, 5)])
def test_pyarrow_duckdb_and_polars_read_what_was_laid_out(
    tmp_path: Path, rows: int, dim: int
) -> None:
    root, made = Root(str(tmp_path)), tables(rows, dim)
    receipt = write(root, made)
    expected = pa.concat_tables(made)
    path = root.path(WHERE.shard(receipt.name))
    file = pq.ParquetFile(path)
    assert file.read().to_pydict() == expected.to_pydict()
    assert file.schema.equals(pq.ParquetFile(encoded(tmp_path, made)).schema)
    assert file.metadata.metadata == pq.ParquetFile(encoded(tmp_path, made)).metadata.metadata
    assert [ranges(file, name) for name in ("layer", "norm", "pooling")] == [
        [(group[place], group[place], 0) for group in GROUPS] for place in range(3)
    ]
    query = f"from read_parquet('{path}', hive_partitioning = false) "
    with duckdb.connect() as sql:
        asked = sql.execute(f"{query} where layer = 300 and norm = 'none'").fetchall()
        assert sql.execute(f"{query} limit 1").fetchall() == [(*made[0].to_pylist()[0].values(),)]
    assert asked == [(*row.values(),) for row in made[-1].to_pylist()]
    lazy = pl.scan_parquet(path).filter((pl.col("layer") == 1) & (pl.col("norm") == "final"))
    assert lazy.collect().to_dicts() == made[2].to_pylist()
    assert pl.read_parquet(path).to_dicts() == expected.to_pylist()


def encoded(folder: Path, made: list[pa.Table]) -> Path:
    """Return a file that pyarrow's writer makes of the same, by the way of other tables."""
    root = Root(str(folder / "encoded"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_lay_out", lambda *_: None)
        return Path(root.path(WHERE.shard(write(root, made).name)))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.integers(1, 20))
def test_groups_of_any_shapes_are_read_back_where_they_lie(rows: list[int], dim: int) -> None:
    made = [
        tables(count, dim, seed, [(seed, "none", "mean")])[0] for seed, count in enumerate(rows)
    ]
    known = [pages.group_of(table) for table in made]
    plan = pages.layout(dim, (("a", "b"),), tuple(filter(None, known)))
    content = np.full(plan.size, 0xFF, np.uint8)
    pages.begin(content, plan)
    for table, places in zip(made, plan.groups, strict=True):
        pages.put(content, places, table)
        assert not any(place % 8 for place in places.values)
    with pq.ParquetFile(pa.BufferReader(pa.py_buffer(content))) as file:
        assert file.read().to_pydict() == pa.concat_tables(made).to_pydict()
        start = 0
        for index, (table, places) in enumerate(zip(made, plan.groups, strict=True)):
            part = content[start : places.end].tobytes()
            assert pages.read(file.metadata.row_group(index), start, part) == table
            start = places.end


def test_the_bytes_depend_on_the_rows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on what was written before, by which process, or what lies in memory that is used again.

    Nor is any of that memory written.
    """
    root = Root(str(tmp_path))
    first = write(root, tables(51, 7))
    content = root.read(WHERE.shard(first.name))
    dirty = np.full(pages.OBJECT_BYTES, 0xAB, np.uint8)[:]
    monkeypatch.setattr(shards, "_spare", [dirty])
    for clear in (pages.layout, pages._frame, pages._require_readable, pages.vector_head):
        clear.cache_clear()
    write(root, tables(7, 8, seed=2))
    assert write(root, tables(51, 7)) == first
    assert root.read(WHERE.shard(first.name)) == content
    assert len(shards._spare) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_NO_ROWS", b"nowhere"),
        ("_RLE_DICTIONARY", 5),
        ("_MOST_PAGE", 100),
        ("_NUMBERS", {"prompt_id": (4, pa.int64()), "n_tokens": (1, pa.int32())}),
        ("_VECTOR", "vector.list.item"),
    ],
)
def test_what_does_not_match_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    """A footer of another form, pages that pyarrow does not read as meant, or too large ones."""
    root, made = Root(str(tmp_path)), tables(20, 6)
    laid_out = write(root, made)
    caches = pages.layout, pages._frame, pages._require_readable
    with monkeypatch.context() as patch:
        patch.setattr(pages, name, value)
        for each in caches:
            each.cache_clear()
        other = write(root, made)
    for each in caches:
        each.cache_clear()
    assert other.checksum != laid_out.checksum
    # pyarrow goes by position: it reads a column of another name or type as wide all the same.
    refused = name not in ("_NUMBERS", "_VECTOR")
    assert (bool(other.facts.get(ENCODED)), ENCODED in laid_out.facts) == (refused, False)
    shard = Shard(root, WHERE, other)
    assert shard.read().to_pydict() == pa.concat_tables(made).to_pydict()
    for table, group in zip(made, GROUPS, strict=True):
        found = shard.read_group({"layer": group[0], "norm": group[1]})
        assert found.to_pydict() == table.to_pydict()
    np.testing.assert_allclose(shard.sums(), [pages.vectors(t).sum(0, np.float64) for t in made])


def test_groups_of_several_layers_or_without_rows_are_encoded(tmp_path: Path) -> None:
    root, made = Root(str(tmp_path)), tables(6, 3)
    mixed = pa.concat_tables(made[:3]).combine_chunks()
    assert pages.group_of(mixed) is None
    assert Shard(root, WHERE, write(root, [mixed])).read().to_pydict() == mixed.to_pydict()
    assert write(root, [made[0].slice(0, 0)]).rows == 0
    nothing: list[pa.Table] = []
    blank = Receipt(shard_name(1), 0, "", "")
    columns = schema.embeddings(3)
    assert write_shard(root, WHERE.shard(blank.name), nothing, columns, blank).rows == 0


def test_a_group_is_read_without_a_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, made = Root(str(tmp_path)), tables(30, 8)
    laid_out, other = write(root, made), encoded(tmp_path, made)
    shard = Shard(root, WHERE, laid_out)
    elsewhere = Shard(Root(str(tmp_path / "encoded")), WHERE, laid_out)
    assert other.exists()
    with monkeypatch.context() as patch:
        patch.setattr(Shard, "_file", None)
        assert shard.read_group({"layer": 1, "norm": "none"}) == made[3]
        both = shard.read_group({"layer": 1})
        assert both.to_pydict() == pa.concat_tables(made[2:4]).to_pydict()
        with pytest.raises(shards.DamagedError):  # of the other receipt
            elsewhere.read_group({"layer": 1})


def test_parts_are_read_as_the_shard_that_they_are_of(tmp_path: Path) -> None:
    assert part_name(shard_name(7), 2) == "shard-00007.part-2.parquet"
    assert whole_name(part_name(shard_name(7), 12)) == whole_name(shard_name(7)) == shard_name(7)
    one, several = Root(str(tmp_path / "one")), Root(str(tmp_path / "several"))
    made = tables(25, 4)
    cuts = enumerate([(0, 11), (11, 22), (22, 25)], start=1)
    receipts = [
        write(several, [t.slice(a, b - a) for t in made], part_name(shard_name(0), number))
        for number, (a, b) in cuts
    ]
    whole = Manifests(one).publish(WHERE, SETTINGS, [write(one, made)])
    parts = Manifests(several).publish(WHERE, SETTINGS, receipts)
    assert [*by_prompts(several, parts)] == [*by_prompts(one, whole)] == [shard_name(0)]
    wanted = made[0]["prompt_id"].to_numpy()[5:24]
    for group in (Group(*each) for each in GROUPS):
        for found, expected in (
            (read_vectors(several, parts, group, wanted), read_vectors(one, whole, group, wanted)),
            (
                shard_vectors(by_prompts(several, parts)[shard_name(0)], group),
                shard_vectors(by_prompts(one, whole)[shard_name(0)], group),
            ),
        ):
            np.testing.assert_array_equal(found.prompt_ids, expected.prompt_ids)
            np.testing.assert_array_equal(found.matrix_ND, expected.matrix_ND)


def test_an_object_of_the_most_rows_is_as_large_as_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "OBJECT_BYTES", 1_000_000)
    for dim in (1, 8, 1000):
        rows = pages.most_rows(dim, len(GROUPS))
        size = write(Root(str(tmp_path)), tables(rows, dim)).bytes
        assert 700_000 < size <= 1_000_000, dim
    assert pages.most_rows(1_000_000, 50) == 1


@pytest.mark.parametrize("vectors", [True, False])
@pytest.mark.parametrize("at", [0, 1])
def test_a_full_disk_is_named_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vectors: bool, at: int
) -> None:
    """`at` 0 it fills as the object is written, at 1 as its index is."""
    root, made = Root(str(tmp_path)), tables(20, 6)
    if not vectors:
        made = [table.drop(["vector"]) for table in made]
    before = write(root, made)
    listed = {key: root.listing(key) for key in (WHERE.path, index_key(WHERE.path))}
    calls, whole = [], os.fsync

    def fill(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == at + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", fill)
    name = shard_name(1)
    with pytest.raises(OSError, match=rf"No space left on device.*{name}") as error:
        write(root, made, name)
    assert error.value.errno == errno.ENOSPC
    assert {key: {n for n in root.listing(key) if n != name} for key in listed} == {
        key: {*names} for key, names in listed.items()
    }
    # What has no index counts as not made.
    assert Manifests(root).survey(WHERE, SETTINGS) == {before.name: before}
    assert write(root, made, name).checksum == before.checksum
    assert len(Manifests(root).survey(WHERE, SETTINGS)) == 2
