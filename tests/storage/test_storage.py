"""Roots, shards, manifests and SQL views, on a local folder and on a real S3 server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_128_hexdigest

from layerrank.storage import manifest, schema
from layerrank.storage.layers import (
    Group,
    TokenSpool,
    embeddings_table,
    groups,
    read_vectors,
    token_states,
)
from layerrank.storage.manifest import (
    FormatError,
    Manifest,
    Manifests,
    SettingsConflictError,
    digest_of,
    load,
    missing,
    require,
    require_format,
)
from layerrank.storage.pages import vectors
from layerrank.storage.partition import Partition, all_partitions, one_name, partitions, shard_name
from layerrank.storage.root import _HERE, AddressError, Root, fingerprint
from layerrank.storage.shards import (
    DamagedError,
    Receipt,
    Shard,
    _opened,
    index_key,
    read_receipt,
    write_shard,
)
from layerrank.storage.sql import connect
from tests.conftest import S3
from tests.support.places import PROJECT

WHERE = Partition("embeddings", ("org/mödel 1", "step=5", "data", "clean"))
SETTINGS = {"seed": 1}
DIM = 4


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    if request.param == "local":
        return Root(str(tmp_path / "out"))
    s3: S3 = request.getfixturevalue("s3")
    return s3.root(tmp_path.name)


def _write(root: Root, number: int, rows: int = 3, settings: dict[str, int] = SETTINGS) -> Receipt:
    """Write one shard of two layers whose vectors say which shard, layer and row they are."""
    name, ids = shard_name(number), np.arange(rows, dtype=np.int64)[::-1] + 10 * number
    tables = []
    for layer in range(2):
        matrix = np.full((rows, DIM), layer, np.float32)
        matrix[:, 0] = np.arange(rows) + 100 * number
        lengths = np.full(rows, 7, np.int32)
        tables.append(embeddings_table((layer, "none", "mean"), ids, lengths, matrix))
    blank = Receipt(name, 0, digest_of(settings), "", facts={"tokens": 7 * rows})
    return write_shard(root, WHERE.shard(name), tables, schema.embeddings(DIM), blank)


def test_shard_roundtrip_keeps_values_receipt_and_one_group_per_layer(root: Root) -> None:
    receipt = _write(root, 0)
    key = WHERE.shard(receipt.name)
    assert (receipt.rows, receipt.bytes) == (6, root.sizes(WHERE.path)[receipt.name])
    assert read_receipt(root, key) == receipt
    shard = Shard(root, WHERE, receipt)
    assert shard.group_values(["layer", "norm"]) == [(0, "none"), (1, "none")]
    group = shard.read_group({"layer": 1})
    assert group["layer"].to_pylist() == [1, 1, 1]
    np.testing.assert_array_equal(vectors(group)[:, 1], [1, 1, 1])
    assert shard.read().num_rows == 6
    assert shard.sums() == [[3, 0, 0, 0], [3, 3, 3, 3]]
    with root.reader(key) as stream:
        file = pq.ParquetFile(stream)
    assert file.schema_arrow.field("vector").type == pa.list_(
        pa.field("element", pa.float32(), nullable=False)
    )
    assert not file.schema_arrow.field("vector").nullable
    assert b"ARROW:schema" not in file.metadata.metadata
    assert file.metadata.metadata[b"layerrank.settings"].decode() == receipt.digest
    with pytest.raises(ValueError, match=r"shard-00000.* no rows with .*9"):
        shard.read_group({"layer": 9})


def test_checksum_is_of_the_rows_and_no_changed_byte_is_read(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    first = _write(root, 0)
    assert _write(root, 0) == first
    assert _write(root, 1).checksum != first.checksum
    shard = Shard(root, WHERE, first)
    assert not shard.verify()
    for key in (shard.key, index_key(shard.key)):
        whole = root.read(key)
        for place in range(0, len(whole), 7):
            content = bytearray(whole)
            content[place] ^= 1
            root.write(key, bytes(content))
            _opened.cache_clear()
            # What is read is what was written, or it is not read; and verifying sees it all.
            with contextlib.suppress(DamagedError):
                assert vectors(shard.read_group({"layer": 1}))[:, 1].tolist() == [1, 1, 1]
            assert shard.verify() or key != shard.key
        root.write(key, whole)
    root.write(shard.key, root.read(shard.key)[:-1])
    assert "cut off" in shard.verify()
    root.delete(shard.key)
    assert "gone" in shard.verify()
    with pytest.raises(DamagedError, match="shard-00000"):
        shard.read()


def test_wrong_type_is_refused_and_leaves_nothing(root: Root) -> None:
    table = pa.table({"prompt_id": ["not a number"], "text": ["x"], "shard": [0]})
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        write_shard(root, "p/x.parquet", [table], schema.PROMPTS, Receipt("x", 0, "", ""))
    assert root.sizes("p") == {}


def test_partition_is_visible_only_through_its_manifest(root: Root) -> None:
    receipts = [_write(root, n) for n in range(2)]
    root.write(WHERE.shard("shard-00009.parquet"), b"a stranger")
    assert load(root, WHERE) is None
    assert partitions(root, "embeddings") == []
    assert all_partitions(root, "embeddings") == [WHERE]
    with pytest.raises(FileNotFoundError, match="no complete embeddings of model org/mödel 1"):
        require(root, WHERE)
    Manifests(root).publish(WHERE, SETTINGS, reversed(receipts))
    found = require(root, WHERE)
    assert found.rows == 12
    assert found.facts()["tokens"] == 42
    assert [r.name for r in found.receipts] == [shard_name(0), shard_name(1)]
    assert partitions(root, "embeddings") == [WHERE]
    assert set(root.sizes(WHERE.path)) == {shard_name(0), shard_name(1)}
    assert set(root.sizes(index_key(WHERE.path))) == {shard_name(0), shard_name(1)}


def test_survey_reads_the_state_from_what_exists(root: Root) -> None:
    receipts = [_write(root, n) for n in range(2)]
    expected = [shard_name(n) for n in range(4)]
    found = Manifests(root).survey(WHERE, SETTINGS)
    assert found == {receipt.name: receipt for receipt in receipts}
    assert missing(expected, found) == expected[2:]
    with pytest.raises(SettingsConflictError, match=digest_of({"seed": 2})):
        Manifests(root).survey(WHERE, {"seed": 2})
    assert Manifests(root).survey(WHERE, {"seed": 2}, overwrite=True) == {}


def test_what_is_damaged_is_found_by_a_listing_deleted_and_said(root: Root) -> None:
    said: list[str] = []
    receipts = [_write(root, n) for n in range(4)]
    Manifests(root).publish(WHERE, SETTINGS, receipts)
    assert len(Manifests(root, say=said.append).survey(WHERE, SETTINGS)) == 4
    lost, cut, flipped, whole = (WHERE.shard(each.name) for each in receipts)
    time.sleep(0.02 if root.is_local else 1.1)  # the times of S3 are of seconds
    root.delete(lost)
    root.write(cut, root.read(cut)[:-5])
    content = bytearray(root.read(flipped))
    content[200] ^= 16
    root.write(flipped, bytes(content))
    root.write(whole, root.read(whole))  # as a copy does
    found = Manifests(root, say=said.append).survey(WHERE, SETTINGS)
    assert [*found] == [shard_name(3)]
    assert [line.split("/")[-1][:11] for line in said] == [
        "shard-00000",
        "shard-00001",
        "shard-00002",
    ]
    assert load(root, WHERE) is None
    assert [*root.sizes(WHERE.path)] == [shard_name(3)]
    Manifests(root).publish(WHERE, SETTINGS, [_write(root, n) for n in range(4)])
    assert require(root, WHERE).receipts == tuple(receipts)


def test_what_is_cut_off_is_damage_when_it_is_read(root: Root) -> None:
    shard = Shard(root, WHERE, _write(root, 0))
    root.write(shard.key, root.read(shard.key)[:40])
    with pytest.raises(DamagedError, match="cut off"):
        shard.read()


def test_what_keeps_an_index_from_being_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Root(str(tmp_path))
    shard = Shard(root, WHERE, _write(root, 0))

    def refused(_self: Root, _key: str) -> bytes:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Root, "read", refused)
    for read in (shard.verify, lambda: read_receipt(root, shard.key)):
        with pytest.raises(OSError, match="Too many"):
            read()


def test_the_manifest_of_another_run_of_the_same_is_taken(root: Root) -> None:
    first, second = Manifests(root), Manifests(root)
    before = first.publish(WHERE, SETTINGS, [_write(root, 0)])
    after = second.publish(WHERE, SETTINGS, [_write(root, 0, rows=2)])
    assert first.damage(before) == {}
    assert first.require(WHERE) == after
    assert first.survey(WHERE, SETTINGS) == {after.receipts[0].name: after.receipts[0]}


def test_what_was_copied_is_read_once_and_then_believed(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    made = Manifests(root).publish(WHERE, SETTINGS, [_write(root, 0)])
    path = Path(root.path(made.objects()[0]))
    os.utime(path, (later := path.stat().st_mtime + 1, later))
    time.sleep(1.1)
    assert Manifests(root).damage(made) == {}
    assert root.changed(WHERE.manifest) > root.changed(made.objects()[0])


def test_what_another_run_withdrew_stays_so_and_what_it_is_writing_stays(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    first, second = Manifests(root), Manifests(root)
    made = first.publish(WHERE, SETTINGS, [_write(root, 0)])
    second.withdraw(WHERE, "stale")
    os.utime(root.path(made.objects()[0]))  # as if changed since
    assert first.damage(made) == {}
    assert load(root, WHERE) is None
    dead = [
        tmp_path / folder / f".{shard_name(1)}.{_HERE}{'0' * 24}.tmp"
        for folder in (WHERE.path, index_key(WHERE.path))
    ]
    with root.writer(WHERE.shard(shard_name(1))) as stream:
        stream.write(b"half a shard")
        for each in dead:
            each.write_bytes(b"of a worker that died")
        first.publish(WHERE, SETTINGS, [_write(root, 0)])
    assert root.read(WHERE.shard(shard_name(1))) == b"half a shard"
    assert not any(each.exists() for each in dead)


def test_a_removal_that_died_halfway_is_ended_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Root(str(tmp_path))
    Manifests(root).publish(WHERE, SETTINGS, [_write(root, 0), _write(root, 1)])
    plain, deleted = Root.delete, list[str]()

    def dies(self: Root, key: str) -> None:
        deleted.append(key)
        if len(deleted) == 2:
            raise KeyboardInterrupt
        plain(self, key)

    monkeypatch.setattr(Root, "delete", dies)
    with pytest.raises(KeyboardInterrupt):
        Manifests(root).remove(WHERE, "a rule")
    monkeypatch.undo()
    Manifests(root).remove(WHERE, "a rule")
    assert root.sizes(WHERE.path) == root.sizes(index_key(WHERE.path)) == {}


_DIES = """
import os, sys
from layerrank.storage.root import Root
with Root(sys.argv[1]).writer("runs/a.yaml") as stream:
    stream.write(b"whole, and not there yet")
    stream.flush()
    os._exit(0)
"""


def test_what_a_dead_writer_began_is_not_there_and_is_swept(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    subprocess.run([sys.executable, "-c", _DIES, root.uri], check=True, cwd=PROJECT)
    assert len([*(tmp_path / "runs").iterdir()]) == 1
    assert root.sizes("runs") == {}
    with root.writer("runs/b.yaml") as stream:
        stream.write(b"of a living one")
        root.sweep()
        assert len([*(tmp_path / "runs").iterdir()]) == 2
        root.sweep(deep=True)
        assert len([*(tmp_path / "runs").iterdir()]) == 1
    assert [each.name for each in (tmp_path / "runs").iterdir()] == ["b.yaml"]


def test_what_another_machine_writes_is_swept_when_it_has_not_changed_for_an_hour(
    tmp_path: Path,
) -> None:
    left = tmp_path / f".a.yaml.{'0' * 32}.tmp"  # and no lock of it is known here
    left.write_bytes(b"half")
    Root(str(tmp_path)).sweep()
    assert left.exists()
    os.utime(left, (0, time.time() - 4000))
    Root(str(tmp_path)).sweep()
    assert not left.exists()


def test_what_came_of_another_content_is_made_again(root: Root) -> None:
    """A shard that comes out otherwise than before, as on another machine."""
    manifests = Manifests(root)
    before = manifests.publish(WHERE, SETTINGS, [_write(root, 0)])
    of_it, of_that, other = (
        Partition("layer_metrics", (*WHERE.values[:2], name, "clean")) for name in "abc"
    )
    settings = {of_it: {"of": before.content}, other: {"of": "x"}}
    made = {where: _publish_empty(root, where, each) for where, each in settings.items()}
    _publish_empty(root, of_that, {"views": [made[of_it].content]})
    ranking = Partition("ranking", (*WHERE.values[:2], "run"))
    _publish_empty(root, ranking, {"config": "run"})
    manifests.discard(DamagedError(WHERE, shard_name(0), "as a test"))
    manifests.publish(WHERE, SETTINGS, [_write(root, 0)])  # as it was
    assert None not in [load(root, each) for each in (of_it, of_that, ranking)]
    manifests.discard(DamagedError(WHERE, shard_name(0), "as a test"))
    manifests.publish(WHERE, SETTINGS, [_write(root, 0, rows=2)])
    gone = [load(root, each) is None for each in (of_it, of_that, ranking, other)]
    assert gone == [True, True, True, False]
    # Not a conflict: what it was made of has changed.
    assert Manifests(root).survey(of_it, {"of": "another"}) == {}
    with pytest.raises(SettingsConflictError):
        Manifests(root).survey(other, {"of": "another"})


def _publish_empty(root: Root, where: Partition, settings: dict[str, Any]) -> Manifest:
    blank = Receipt("metrics.parquet", 0, digest_of(settings), "")
    columns = schema.LAYER_METRICS
    tables = [columns.empty_table()]
    receipt = write_shard(root, where.shard(blank.name), tables, columns, blank)
    return Manifests(root).publish(where, settings, [receipt])


def test_what_was_removed_by_a_rule_is_noted_and_counts_as_made(root: Root) -> None:
    manifests = Manifests(root)
    made = manifests.publish(WHERE, SETTINGS, [_write(root, 0)])
    manifests.remove(WHERE, "keep.views")
    assert root.sizes(WHERE.path) == {}
    assert [*Manifests(root).survey(WHERE, SETTINGS)] == [shard_name(0)]
    noted = require(root, WHERE)
    assert (noted.removed, noted.content) == ("keep.views", made.content)
    with pytest.raises(DamagedError, match=r"removed, by keep\.views"):
        noted.filled(root)
    with pytest.raises(FileNotFoundError, match="no complete table"), connect(root):
        pass


def test_nothing_is_written_or_deleted_behind_a_link(tmp_path: Path) -> None:
    root, elsewhere = Root(str(tmp_path / "out")), tmp_path / "elsewhere"
    receipt = _write(root, 0)
    shutil.move(Path(root.uri, "embeddings"), elsewhere)
    Path(root.uri, "embeddings").symlink_to(elsewhere)
    stranger = next(elsewhere.rglob("*.parquet")).with_name("mine.txt")
    stranger.write_text("kept")
    with pytest.raises(PermissionError, match="symbolic link"):
        Manifests(root).publish(WHERE, SETTINGS, [receipt])
    with pytest.raises(PermissionError, match="symbolic link"):
        _write(root, 1)
    assert stranger.read_text() == "kept"


def test_a_root_of_format_1_is_refused(tmp_path: Path) -> None:
    require_format(Root(str(tmp_path)))
    (tmp_path / "prompts" / "dataset=x").mkdir(parents=True)
    with pytest.raises(FormatError, match="format 1"):
        require_format(Root(str(tmp_path)))


def test_conflict_with_a_complete_partition_names_the_setting(root: Root) -> None:
    Manifests(root).publish(WHERE, SETTINGS, [_write(root, 0)])
    with pytest.raises(SettingsConflictError, match=r"seed: 1 there, 2 here.*--overwrite"):
        Manifests(root).survey(WHERE, {"seed": 2})
    assert require(root, WHERE).settings == SETTINGS
    Manifests(root).survey(WHERE, {"seed": 2}, overwrite=True)
    assert load(root, WHERE) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("settings", [1]),
        ("settings", None),
        ("made", 5),
        ("removed", ["x"]),
        ("withdrawn", "mine"),
        ("published", {}),
        ("shards", {"name": "x"}),
        ("shards", [{"name": 5}]),
        ("rows", "many"),
        ("rows", -1),
        ("rows", 1.5),
        ("rows", 10**30),
        ("bytes", None),
        ("checksum", 5),
        ("facts", ["x"]),
        ("format", "2"),
        ("", [[]]),
    ],
)
def test_a_sealed_manifest_of_another_form_counts_as_absent(
    key: str, value: object, tmp_path: Path
) -> None:
    root = Root(str(tmp_path))
    whole = Manifests(root).publish(WHERE, SETTINGS, [_write(root, 0)]).encoded()
    values = json.loads(whole)
    del values["seal"]
    if key in values and key != "rows":
        values[key] = value
    elif key:
        values["shards"][0][key] = value
    body = json.dumps(values if key else value).encode()[:-1]
    seal = xxh3_128_hexdigest(body)
    root.write(WHERE.manifest, body + f',\n "seal": "{seal}"}}'.encode())
    assert load(root, WHERE) is None
    assert [*Manifests(root).survey(WHERE, SETTINGS)] == [shard_name(0)]


def test_a_table_of_one_object_with_several_is_named(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    receipts = [_write(root, number) for number in (0, 1)]
    found = Manifests(root).publish(WHERE, SETTINGS, receipts)
    with pytest.raises(DamagedError, match="names 2 objects"):
        found.only(root)
    assert Manifests(root).publish(WHERE, SETTINGS, receipts[:1]).only(root).receipt == receipts[0]


@pytest.mark.parametrize(
    "name", [".", "..", "...", "a/b", "../../x", "\0", " ", "%2F..", "CON", "é"]
)
def test_a_name_is_one_file_and_none_leads_elsewhere(name: str) -> None:
    assert unquote(one_name(name)) == name
    assert PurePosixPath("a", one_name(name)).parent == PurePosixPath("a")
    assert ".." not in PurePosixPath(one_name(name)).parts
    where = Partition("embeddings", (name, name, "data", "clean"))
    assert ".." not in PurePosixPath(where.manifest).parts
    assert len(PurePosixPath(where.path).parts) == 5


def test_a_torn_or_foreign_manifest_counts_as_absent(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Manifests(root).publish(WHERE, SETTINGS, [_write(root, 0)]).encoded()
    lines = whole.decode().splitlines()
    assert max(len(line) for line in lines if '"name"' in line) <= 400
    other = Partition("embeddings", ("another", "main", "data", "clean"))
    foreign = replace(require(root, WHERE), partition=other).encoded()
    leaving = whole.replace(b"shard-00000.parquet", b"../../etc/x.parquet")
    for content in (whole[: len(whole) // 2], b"", foreign, whole.replace(b"6", b"7"), leaving):
        root.write(WHERE.manifest, content)
        assert load(root, WHERE) is None
        # Its shards are there with receipts of their own.
        assert [*Manifests(root).survey(WHERE, SETTINGS)] == [shard_name(0)]
    for name in ("../x.parquet", "*.parquet", "/etc/x.parquet", ".x.parquet"):
        sealed = Manifest(WHERE, SETTINGS, (Receipt(name, 1, "", ""),)).encoded()
        root.write(WHERE.manifest, sealed)
        assert load(root, WHERE) is None
    monkeypatch.setattr(manifest, "FORMAT", 3)
    root.write(WHERE.manifest, Manifest(WHERE, SETTINGS, ()).encoded())
    monkeypatch.undo()
    with pytest.raises(FormatError, match="format 3"):
        load(root, WHERE)


def test_vectors_of_one_layer_come_from_every_shard_sorted_by_prompt(root: Root) -> None:
    made = Manifests(root).publish(WHERE, SETTINGS, [_write(root, n) for n in range(2)])
    assert groups(root, made) == [Group(0, "none", "mean"), Group(1, "none", "mean")]
    found = read_vectors(root, made, Group(1, "none", "mean"), np.arange(99))
    assert found.prompt_ids.tolist() == [0, 1, 2, 10, 11, 12]
    assert found.matrix_ND[:, 0].tolist() == [2, 1, 0, 102, 101, 100]
    some = read_vectors(root, made, Group(0, "none", "mean"), np.array([11, 1, 99]))
    assert some.prompt_ids.tolist() == [1, 11]
    assert some.rows_of(np.array([11, 5, 1])).tolist() == [1, -1, 0]


def test_sql_sees_complete_partitions_only_with_decoded_keys(root: Root) -> None:
    with pytest.raises(FileNotFoundError, match="no complete table"), connect(root):
        pass
    Manifests(root).publish(WHERE, SETTINGS, [_write(root, 0)])
    unfinished = Partition("embeddings", ("org/mödel 1", "step=6", "data", "clean"))
    root.write(unfinished.shard(shard_name(0)), root.read(WHERE.shard(shard_name(0))))
    with connect(root) as connection:
        query = "SELECT model, revision, count(*), max(vector[1]) FROM embeddings GROUP BY ALL"
        assert connection.sql(query).fetchall() == [("org/mödel 1", "step=5", 6, 2.0)]


@pytest.mark.parametrize("on_s3", [False, True])
def test_what_lies_above_a_table_is_neither_pattern_nor_column(
    on_s3: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bucket = request.getfixturevalue("s3").root(tmp_path.name) if on_s3 else Root(str(tmp_path))
    above = "model=x/layer=7/run=5"
    for name, rows in {"ruXa": 4, "ru*[a]": 3, "ru*": 2}.items():
        root = Root(f"{bucket.uri}/{name}/{above}", bucket.options)
        Manifests(root).publish(WHERE, SETTINGS, [_write(root, 0, rows=rows)])
        with connect(root) as connection:
            query = "SELECT model, layer, count(*) FROM embeddings GROUP BY ALL ORDER BY layer"
            named = connection.sql(query).fetchall()
            columns = connection.sql("SELECT * FROM embeddings").columns
        assert named == [("org/mödel 1", 0, rows), ("org/mödel 1", 1, rows)]
        assert columns[-4:] == ["model", "revision", "dataset", "condition"]
        assert len(columns) == len(schema.embeddings(DIM)) + 4


def test_an_address_that_cannot_be_reached_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    known = {"foo://b/x": "foo", "S3://b/x": "S3", "s3:/b/x": "two slashes"}
    for uri, words in {**known, "s3://b/x": "no credentials"}.items():
        with pytest.raises(AddressError, match=f"{uri}.*{words}"):
            Root(uri).check_writable()
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(AddressError, match=r"s3://b/x.*nobody"):
        Root("s3://b/x").path()
    assert not [*tmp_path.iterdir()]
    Root("s3", {}).check_writable()
    assert not [*tmp_path.iterdir()]


@given(st.lists(st.integers(0, 30), unique=True), st.sets(st.integers(0, 30)))
def test_missing_covers_without_overlap_for_any_state(expected: list[int], done: set[int]) -> None:
    names, finished = [shard_name(n) for n in expected], {shard_name(n) for n in done}
    left = missing(names, finished)
    assert set(left) | (finished & set(names)) == set(names)
    assert not set(left) & finished
    assert len(left) == len(set(left))


def test_token_spool_turns_batches_into_layers() -> None:
    lengths = [2, 3, 1]
    ids = np.array([5, 6, 7], dtype=np.int64)
    states = [
        [np.full((n, DIM), 10 * of + row, np.float32) for row, n in enumerate(lengths)]
        for of in (0, 1)
    ]
    with TokenSpool(ids, lengths, "float32") as spool:
        for batch in ([2, 0], [1]):
            for layer in range(2):
                stacked = np.concatenate([states[layer][row] for row in batch])
                spool.add(layer, np.array(batch), stacked)
        tables = list(spool.groups("none"))
    assert [table["layer"][0].as_py() for table in tables] == [0, 1]
    for layer, table in enumerate(tables):
        assert table["prompt_id"].to_pylist() == [7, 5, 6]
        for row, got in zip([2, 0, 1], token_states(table, "float32"), strict=True):
            np.testing.assert_array_equal(got, states[layer][row])


def test_float16_overflow_names_the_layer() -> None:
    with (
        TokenSpool(np.array([1]), [1], "float16") as spool,
        pytest.raises(ValueError, match=r"layer 3 holds a value of 70000.*tokens\.dtype: float32"),
    ):
        spool.add(3, np.array([0]), np.full((1, DIM), 70000, np.float32))


def test_an_unwritable_root_says_where(tmp_path: Path, s3: S3) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PermissionError, match=r"cannot write to the output root .*file/out"):
        Root(str(tmp_path / "file" / "out")).check_writable()
    with pytest.raises(PermissionError, match="s3://no-such-bucket"):
        Root("s3://no-such-bucket/x", s3.root("").options).check_writable()


def test_root_never_shows_its_credentials() -> None:
    assert "hidden" not in repr(Root("s3://bucket", {"secret": "hidden"}))


@pytest.mark.parametrize("whole", [1 << 30, 1 << 10], ids=["whole", "sampled"])
def test_fingerprint_sees_content_and_size_not_the_name(tmp_path: Path, whole: int) -> None:
    content = os.urandom(300_000)
    changed = content[:-1] + bytes([content[-1] ^ 1])
    for name, given_bytes in zip("abcd", (content, content, changed, content + b"x"), strict=True):
        (tmp_path / name).write_bytes(given_bytes)
    prints = {name: fingerprint(str(tmp_path / name), {}, whole=whole) for name in "abcd"}
    assert prints["a"] == prints["b"]
    assert len(set(prints.values())) == 3
    assert (prints["a"] == fingerprint(str(tmp_path / "a"), {})) == (whole > len(content))


def test_every_column_has_a_unit_and_every_table_a_version() -> None:
    tables = [v for v in vars(schema).values() if isinstance(v, pa.Schema)]
    for table in [*tables, schema.embeddings(DIM), schema.prompt_metrics(["own"])]:
        assert table.metadata[b"layerrank.version"] == str(schema.VERSION).encode()
        for column in table:
            assert column.metadata[b"unit"], column.name


def test_manifest_digest_ignores_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert Manifest(WHERE, {"a": 1}, ()).digest == digest_of({"a": 1})
