"""Modes of what is made on this machine: what the user's mask leaves of 0750 and 0640."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from layerrank.jobs.export import staged
from layerrank.storage.checkpoint import CACHE, Checkpoint
from layerrank.storage.layers import embeddings_table
from layerrank.storage.manifest import Manifests
from layerrank.storage.partition import Partition
from layerrank.storage.root import Root, narrowed
from tests.support.stored import store

WHERE = Partition("embeddings", ("a/b", "main", "data", "clean"))


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    assert os.umask(before) == request.param  # it is the user's again


def assert_narrow(made: Path, mask: int) -> None:
    """Hold the modes of a folder and all in it."""
    found = {each: each.stat().st_mode & 0o777 for each in (made, *made.rglob("*"))}
    wanted = {each: (0o750 if each.is_dir() else 0o640) & ~mask for each in found}
    assert found == wanted
    assert len(found) > 1


def test_objects_of_a_root(tmp_path: Path, mask: int) -> None:
    root = Root(str(tmp_path / "above" / "root"))
    root.check_writable()
    root.write("a/b/whole", b"1")
    assert root.create("a/once", b"1")
    with root.writer("a/c/streamed") as stream:
        stream.write(b"1")
    assert_narrow(tmp_path / "above", mask)


def test_a_root_of_before_goes_on_and_what_is_made_anew_is_narrow(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "old").write_bytes(b"1")
    (folder / "old").chmod(0o666)
    Root(str(tmp_path)).write("a/old", b"2")
    assert (folder / "old").read_bytes() == b"2"
    assert (folder / "old").stat().st_mode & 0o027 == 0
    assert folder.stat().st_mode & 0o777 == 0o777  # whoever made it wanted it


def test_a_table_and_its_delta_log(tmp_path: Path, mask: int) -> None:
    pytest.importorskip("deltalake", reason="the extra delta is not installed")
    root = Root(str(tmp_path / "root"))
    vectors_ND, lengths_N = np.ones((2, 3), np.float32), np.full(2, 7, np.int32)
    table = embeddings_table((1, "final", "mean"), np.arange(2), lengths_N, vectors_ND)
    store(root, WHERE, [table], {"seed": 1})
    Manifests(root).keep_logs(asked=True)
    assert_narrow(tmp_path / "root", mask)


def test_a_checkpoint_that_was_fetched(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    assert (Checkpoint(Root(str(checkpoint))).fetch() / "config.json").is_file()
    assert_narrow(tmp_path / "cache", mask)


def test_a_checkpoint_leaves_the_mask_alone_while_it_is_fetched(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    root, masks = Root(str(checkpoint)), set[int]()
    plain = type(root.filesystem).get_file

    def noted(*given: Any, **options: Any) -> None:  # noqa: ANN401
        masks.add(os.umask(mask))
        plain(*given, **options)

    monkeypatch.setattr(type(root.filesystem), "get_file", noted)
    Checkpoint(root).fetch()
    assert masks == {mask}


def test_the_mask_is_the_users_after_the_last_of_blocks_that_overlap(mask: int) -> None:
    first, second = narrowed(), narrowed()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    inside = os.umask(0)
    os.umask(inside)
    assert inside == mask | 0o027
    second.__exit__(None, None, None)
    assert os.umask(mask) == mask


def test_an_exported_folder_whatever_library_writes_its_files(tmp_path: Path, mask: int) -> None:
    with staged(tmp_path / "above" / "out") as made:
        (made / "1_Pooling").mkdir()
        (made / "config.json").write_text("{}", encoding="utf-8")
        save_file({"weight": np.ones(2, np.float32)}, made / "1_Pooling" / "model.safetensors")
    weights = tmp_path / "above" / "out" / "1_Pooling" / "model.safetensors"
    assert weights.stat().st_mode & 0o777 == 0o600  # which safetensors sees to itself
    weights.unlink()
    assert_narrow(tmp_path / "above", mask)
