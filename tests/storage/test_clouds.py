"""Roots on gs:// and az://, by the packages that reach them, on servers of this process.

The servers answer as the protocols are documented; nothing here was tried on the services.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from layerrank.jobs.prepare import sources
from layerrank.storage.checkpoint import CACHE, Checkpoint
from layerrank.storage.lock import FOLDER, Lock, LockHeldError
from layerrank.storage.manifest import Manifests
from layerrank.storage.root import AddressError, Root, fingerprint
from layerrank.storage.sql import connect
from tests.conftest import Cli, edited, offline_environment, write_config
from tests.jobs.prepare.test_records import dataset
from tests.storage.test_storage import SETTINGS, WHERE, _write
from tests.support.machines.clouds import Cloud, azure, connection_string, google

SCHEMES = {"gs": "gcsfs", "az": "adlfs"}


@pytest.fixture(params=SCHEMES)
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    pytest.importorskip(SCHEMES[request.param], reason="object storage by an extra")
    fsspec.get_filesystem_class(request.param).clear_instance_cache()
    with (google if request.param == "gs" else azure)() as served:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", served.endpoint)
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string(served))
        yield served


@pytest.fixture
def root(cloud: Cloud, request: pytest.FixtureRequest) -> Root:
    assert cloud.endpoint
    return Root(f"{request.node.callspec.params['cloud']}://bucket/some/where")


def test_objects_are_written_whole_listed_read_and_deleted(root: Root, cloud: Cloud) -> None:
    root.check_writable()
    assert not cloud.objects
    for key in ("a/one", "a/b/two", "ab/three", "a/b/c/four"):
        root.write(key, key.encode())
    assert cloud.objects["bucket", "some/where/a/b/two"] == b"a/b/two"
    assert root.sizes("a") == {"one": 5}
    assert root.folders("a") == ["b"]
    assert root.folders("") == ["a", "ab"]
    assert root.sizes("none") == {} == root.sizes("a/one/x")
    assert (root.read("a/one"), root.read_range("a/one", 2, 4)) == (b"a/one", b"on")
    with root.reader("ab/three") as stream:
        stream.seek(3)
        assert stream.read() == b"three"
    assert [root.exists(key) for key in ("a", "a/one", "a/on")] == [True, True, False]
    assert root.changed("a/one") > 0
    before = root.versions("a")
    root.write("a/one", b"replaced")
    assert root.versions("a") != before
    assert fingerprint(root.place("a/one"), {}) == fingerprint(root.place("a/one"), {})
    root.delete("a/one")
    root.delete("a/one")
    with pytest.raises(FileNotFoundError):
        root.read("a/one")


def test_of_a_writer_that_fails_nothing_is_seen(root: Root, cloud: Cloud) -> None:
    root.write("a", b"before")

    def fail() -> None:
        with root.writer("a") as stream:
            stream.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert cloud.objects == {("bucket", "some/where/a"): b"before"}
    with root.writer("a") as stream:
        stream.write(b"wh")
        stream.write(b"ole")
    assert root.read("a") == b"whole"


def test_an_object_is_created_once_and_one_of_many_has_the_lock(root: Root) -> None:
    assert root.create("a", b"first")
    assert not root.create("a", b"second")
    assert root.read("a") == b"first"
    locks = [Lock(root, "nightly", 60) for _ in range(6)]

    def taken(lock: Lock) -> bool:
        try:
            lock.acquire()
        except LockHeldError:
            return False
        return True

    with ThreadPoolExecutor(len(locks)) as pool:
        won = [*pool.map(taken, locks)]
    assert sum(won) == 1
    holder = locks[won.index(True)]
    holder.renew()
    holder.release()
    locks[not won.index(True)].acquire()
    assert list(root.sizes(FOLDER)) == ["nightly-000002.json"]


def test_a_partition_is_written_and_asked(root: Root) -> None:
    Manifests(root).publish(WHERE, SETTINGS, [_write(root, number) for number in range(2)])
    with connect(root) as connection:
        found = connection.sql("SELECT layer, count(*) FROM embeddings GROUP BY ALL ORDER BY ALL")
        assert found.fetchall() == [(0, 6), (1, 6)]


def test_what_a_service_refuses_is_an_error_of_files(
    root: Root, cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    root.write("a", b"")
    for status in (401, 403):
        cloud.refused = {"POST": status, "PUT": status, "GET": status}
        with pytest.raises(PermissionError, match=f"cannot write to the output root {root.uri}"):
            root.check_writable()
        with pytest.raises(OSError, match=r"(?i)not ?today"):
            root.read("a")


def test_texts_and_a_checkpoint_are_read(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path))
    texts = {"a": "one", "b": "two"}
    for name, text in texts.items():
        root.write(f"data/{name}.jsonl", f'{{"text": "{text}"}}'.encode())
    config = dataset(source={"files": f"{root.uri}/data/*.jsonl"})
    parts = sources.discover(config, {})
    read = [
        table["text"].to_pylist() for part in parts for table in sources.read(part, ["text"], {})
    ]
    assert read == [["one"], ["two"]]
    folder = sources.discover(dataset(source={"folder": f"{root.uri}/data"}), {})
    assert sources.inspect(folder[0], {})[0] == 2
    for name in ("config.json", "model.safetensors"):
        root.write(f"tiny/{name}", name.encode())
    checkpoint = Checkpoint(Root(f"{root.uri}/tiny"))
    assert (checkpoint.fetch() / "model.safetensors").read_bytes() == b"model.safetensors"
    assert set(checkpoint.prints()) == {"config.json", "model.safetensors"}


@pytest.mark.slow
@pytest.mark.parametrize("cloud", ["gs"], indirect=True)
def test_a_run_reads_texts_and_a_model_there_and_leaves_its_root_there(
    root: Root, cloud: Cloud, checkpoint: Path, tmp_path: Path
) -> None:
    few = {"candidates": None, "views": {"count": 0, "sample": 24}}
    config, place = write_config(tmp_path, checkpoint, **few), root.uri.partition("/some")[0]
    for file in checkpoint.iterdir():
        cloud.put("bucket", f"models/tiny/{file.name}", file.read_bytes(), only_new=True)
    texts = (tmp_path / "texts.jsonl").read_bytes()
    cloud.put("bucket", "data/texts.jsonl", texts, only_new=True)
    with edited(config) as values:
        values["datasets"][0]["source"]["files"] = f"{place}/data/*.jsonl"
        values["subjects"][0]["model"] = f"{place}/models/tiny"
    cli = Cli({**offline_environment(), "LAYERRANK_CACHE": str(tmp_path / "cache")})
    run = ["run", str(config), "--output", root.uri, "--engine", "process"]
    told = cli(*run)
    assert "5/5 rank" in told.stdout
    assert "not a real secret" not in told.stdout + told.stderr
    before = dict(cloud.objects)
    assert "texts to encode" not in cli(*run).stdout
    changed = {
        key for _, key in cloud.objects if cloud.objects["bucket", key] != before["bucket", key]
    }
    assert {key.partition("/")[0] for key in changed} <= {"some"}
    assert not [key for key in changed if "ranking" not in key and "/report/" not in key]
    assert "complete" in cli("status", root.uri, "--verify").stdout
    assert "tiny" in cli("query", root.uri, "SELECT model FROM ranking").stdout


@pytest.mark.parametrize(
    ("scheme", "package"), [("gs", "gcsfs"), ("gcs", "gcsfs"), ("az", "adlfs"), ("abfs", "adlfs")]
)
def test_a_package_that_is_not_there_is_named_with_its_extra(
    scheme: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*sys.modules]:
        if name.partition(".")[0] in (package, "azure"):
            monkeypatch.delitem(sys.modules, name)
    for name in (package, f"{package}.core", "azure.core.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    extra = {"gcsfs": "gcs", "adlfs": "azure"}[package]
    with pytest.raises(AddressError, match=rf"{scheme}://b/x.*pip install 'layerrank\[{extra}\]'"):
        Root(f"{scheme}://b/x").check_writable()


def test_azure_is_told_its_account_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("adlfs", reason="object storage by an extra")
    fsspec.get_filesystem_class("az").clear_instance_cache()
    for name in ("ACCOUNT_NAME", "CONNECTION_STRING"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AddressError, match=r"az://c/x.*AZURE_STORAGE_ACCOUNT_NAME"):
        Root("az://c/x").check_writable()
    with pytest.raises(AddressError, match=r"abfs://c/PREFIX, .*ACCOUNT_NAME=acc$"):
        Root("abfs://c@acc.dfs.core.windows.net/x").check_writable()
