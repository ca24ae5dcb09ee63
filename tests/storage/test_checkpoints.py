"""Checkpoints away from this machine: found, checked by their headers, and fetched once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from filelock import FileLock

from layerrank.jobs.cluster import tally
from layerrank.jobs.cluster.tally import Counts
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.settings import StorageConfig, SubjectConfig
from layerrank.jobs.subjects import check, local, resolve, shape_of, subject, subject_identity
from layerrank.operators.model.on_transformers import load_model
from layerrank.operators.model.subject import ModelUnavailableError, Subject
from layerrank.operators.model.tokenise import load_tokenizer
from layerrank.storage.checkpoint import CACHE, Checkpoint
from layerrank.storage.root import Root
from tests.conftest import S3
from tests.support.tiny import BLOCKS, save_tiny, save_tiny_adapter, save_tiny_gguf

SECRET, WEIGHTS = "not-a-real-secret", "model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def storage(s3: S3) -> StorageConfig:
    names = {"region": "DEFAULT_REGION", "key": "ACCESS_KEY_ID", "secret": "SECRET_ACCESS_KEY"}
    given = {key: s3.environment[f"AWS_{name}"] for key, name in names.items()}
    return StorageConfig.model_validate({"endpoint_url": s3.endpoint, **given})


@pytest.fixture
def sweep(s3: S3, storage: StorageConfig, checkpoint: Path, request: pytest.FixtureRequest) -> str:
    """Upload the tiny model as two checkpoints of a sweep; each test has a prefix of its own."""
    uri = f"{s3.uri}/{request.node.name}/neox"
    root = Root(uri, storage.options())
    for step in ("step64", "step8"):
        for file in checkpoint.iterdir():
            root.write(f"{step}/{file.name}", file.read_bytes())
    return uri


@pytest.fixture
def one(sweep: str, storage: StorageConfig) -> Subject:
    return _resolve(storage, model=f"{sweep}/step8")[0]


def _resolve(storage: StorageConfig, **subject: Any) -> tuple[Subject, ...]:  # noqa: ANN401
    return resolve([SubjectConfig.model_validate(subject)], storage)


def test_a_sweep_in_object_storage_is_listed_and_loads(sweep: str, storage: StorageConfig) -> None:
    found = _resolve(storage, model=sweep, revisions="step*")
    assert [str(each) for each in found] == ["neox at step8", "neox at step64"]
    assert [each.model for each in found] == [f"{sweep}/step8", f"{sweep}/step64"]
    assert SECRET not in repr(found) + repr(storage)
    here = local(found[0], storage)
    assert load_model(here, torch.device("cpu")).shape.layers == BLOCKS
    with pytest.raises(ConfigError, match=r"no folder matches revisions 'epoch\*'; it has step64"):
        _resolve(storage, model=sweep, revisions="epoch*")
    with pytest.raises(ConfigError, match="has no folder step7; it has step64, step8"):
        _resolve(storage, model=sweep, revisions=["step7"])


def test_the_shape_and_the_tokenizer_need_no_weights(
    sweep: str, storage: StorageConfig, cache: Path
) -> None:
    (one,) = _resolve(storage, model=f"{sweep}/step8/")
    assert str(one) == "step8 at remote"
    assert shape_of(one, storage).layers == BLOCKS
    assert load_tokenizer(local(one, storage, weights=False))("a text")["input_ids"]
    assert check(one, storage).layers == BLOCKS
    assert not list(cache.rglob("*.safetensors"))


def test_a_replaced_checkpoint_is_fetched_anew_and_another_identity(
    one: Subject, storage: StorageConfig, tmp_path: Path, checkpoint: Path
) -> None:
    identity, folder = subject_identity(one, storage), local(one, storage).folder
    # The same files are the same model, wherever they lie, and are fetched once.
    assert identity == subject_identity(Subject(str(checkpoint), "local", "tiny"), storage)
    assert local(one, storage).folder == folder
    other = save_tiny(tmp_path / "other", blocks=BLOCKS + 1)
    root = Root(one.model, storage.options())
    for name in ("config.json", "model.safetensors"):
        root.write(name, (other / name).read_bytes())
    assert subject_identity(one, storage) != identity
    assert local(one, storage).folder != folder
    assert load_model(local(one, storage), torch.device("cpu")).shape.layers == BLOCKS + 1


def test_many_fetch_at_once_and_each_file_is_whole(
    one: Subject, storage: StorageConfig, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    filesystem = Root(one.model, storage.options()).filesystem
    counted = Mock(wraps=filesystem.get_file)
    monkeypatch.setattr(filesystem, "get_file", counted)
    with ThreadPoolExecutor(4) as pool:
        folders = [*pool.map(lambda _: local(one, storage).folder, range(4))]
    assert len(set(folders)) == 1
    fetched = [call.args[0] for call in counted.call_args_list]
    assert len(fetched) == len({*fetched})
    for file in checkpoint.iterdir():
        assert (Path(folders[0]) / file.name).read_bytes() == file.read_bytes()


def test_who_waits_for_a_download_tells_of_it_while_it_goes_on(
    one: Subject, storage: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerrank.storage.checkpoint._WAIT_SECONDS", 0.01)
    folder = Path(local(one, storage, weights=False).folder or "")
    part, told, seen = folder / f".{WEIGHTS}.part", list[Counts](), list[int]()
    with ThreadPoolExecutor(1) as pool, FileLock(folder / f".{WEIGHTS}.lock") as lock:

        def wait() -> None:
            with tally.counting(told.append):
                local(one, storage, wait=tally.wait)

        waiting = pool.submit(wait)
        for size in range(1, 4):
            part.write_bytes(b"x" * size)
            time.sleep(0.1)
            seen.append(len(told))
        time.sleep(0.2)
        assert len(told) == seen[-1]  # it stands
        lock.release()
        waiting.result()
    assert seen == sorted({*seen})
    assert told[-1].waits == len(told)
    assert (folder / WEIGHTS).is_file()


def test_a_gguf_file_and_an_adapter_in_object_storage(
    s3: S3, storage: StorageConfig, tmp_path: Path
) -> None:
    model = save_tiny(tmp_path / "llama", "llama")
    file = save_tiny_gguf(tmp_path / "q.gguf", model)
    adapter = save_tiny_adapter(tmp_path / "tuned", model)
    root = Root(f"{s3.uri}/q", storage.options())
    for each in (file, *adapter.iterdir()):
        root.write(f"{each.parent.name if each != file else 'm'}/{each.name}", each.read_bytes())
    given = {"model": root.place("m/q.gguf"), "adapter": root.place("tuned")}
    (one,), here = _resolve(storage, **given), subject(SubjectConfig(model=str(file)))
    assert str(one) == "q+tuned at remote"
    assert check(one, storage) == check(here, storage)
    found = load_model(local(one, storage), torch.device("cpu"))
    assert found.shape.layers == BLOCKS
    identity, alone = subject_identity(one, storage), subject_identity(here, storage)
    assert {**identity, "adapter": ""} == {**alone, "adapter": ""}
    content = file.read_bytes()
    root.write("m/q.gguf", content[:-1])
    with pytest.raises(ModelUnavailableError, match=r"its q\.gguf is cut off"):
        check(one, storage)
    root.write("m/q.gguf", content)
    root.delete("tuned/adapter_model.safetensors")
    with pytest.raises(ModelUnavailableError, match=r"m/q\.gguf .*adapter s3://.*tuned: it has no"):
        check(one, storage)


def test_a_killed_fetch_leaves_no_file(
    one: Subject, storage: StorageConfig, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    filesystem = Root(one.model, storage.options()).filesystem

    def cut_off(_: str, to: str) -> None:
        Path(to).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(filesystem, "get_file", cut_off)
        with pytest.raises(KeyboardInterrupt):
            local(one, storage)
    assert not [file for file in cache.rglob("*") if file.is_file() and file.name[0] != "."]
    assert load_model(local(one, storage), torch.device("cpu")).shape.layers == BLOCKS


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Mock(free=10))
    with pytest.raises(OSError, match=rf"has room for 0\.0 GB .* or set {CACHE}"):
        Checkpoint(Root(str(checkpoint))).fetch()
    assert not [file for file in cache.rglob("*") if file.is_file()]


def test_places_that_cannot_be_read_are_one_line_without_secrets(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    wrong = StorageConfig.model_validate(
        {"endpoint_url": "http://127.0.0.1:9", "key": "k", "secret": SECRET}
    )
    with pytest.raises(ConfigError, match="cannot list its checkpoints") as listed:
        _resolve(wrong, model=f"{s3.uri}/x", revisions="step*")
    one = Subject(f"{s3.uri}/x/step8", "step8", "x")
    with pytest.raises(ModelUnavailableError, match="s3://layers/x/step8 at revision s") as read:
        check(one, wrong)
    for caught in (listed, read):
        assert "\n" not in str(caught.value)
        assert SECRET not in str(caught.value)


def test_a_folder_of_links_is_the_model_that_they_lead_to(checkpoint: Path, tmp_path: Path) -> None:
    """As in the hub's cache: `snapshots/REV/model.safetensors -> ../../blobs/HASH`."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(checkpoint.iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    (snapshot / "notes.txt").symlink_to("../../blobs/gone")
    one, plain = (subject(SubjectConfig(model=str(each))) for each in (snapshot, checkpoint))
    assert check(one, StorageConfig()).layers == BLOCKS
    assert load_model(one, torch.device("cpu")).shape.layers == BLOCKS
    assert subject_identity(one, StorageConfig()) == subject_identity(plain, StorageConfig())
    assert {*Root(str(snapshot)).sizes("")} == set()  # as an output root, no link is followed
    _cut(blobs / str([each.name for each in sorted(checkpoint.iterdir())].index(WEIGHTS)), -1)
    with pytest.raises(ModelUnavailableError, match="is cut off"):
        check(one, StorageConfig())


PARTS = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


def _cut(weights: Path, end: int) -> None:
    weights.write_bytes(weights.read_bytes()[:end])


def _garble(weights: Path) -> None:
    content = bytearray(weights.read_bytes())
    content[8:12] = b"\xff\xff\xff\xff"
    weights.write_bytes(content)


def _half_indexed(weights: Path) -> None:
    weights.rename(weights.with_name(PARTS["a"]))
    index = weights.with_name("model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": PARTS}))


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda file: _cut(file, -1), r"its model\.safetensors is cut off: [\d,]+ bytes, and its"),
        (lambda file: _cut(file, 100), r"its model\.safetensors is cut off: 100 bytes, and its"),
        (_garble, r"the header of its model\.safetensors cannot be read"),
        (lambda file: file.write_text("version https://git-lfs"), r"is not a safetensors file"),
        (Path.unlink, r"it has no weights: no model\.safetensors among config\.json"),
        (
            lambda file: file.rename(file.with_name("pytorch_model.bin")),
            r"only pickled weights \(pytorch_model\.bin\).* set allow_pickle: true",
        ),
        (_half_indexed, r"it lacks 1 of the 2 weight files .*: model-00002-of-00002"),
        (
            lambda file: file.with_name("config.json").write_text('{"model_type": '),
            r"not a valid JSON file",
        ),
        (lambda file: [each.unlink() for each in file.parent.iterdir()], r"no files in .*step8"),
        (lambda file: file.parent.rename(file.parents[2] / "elsewhere"), r"no files in .*step8"),
    ],
)
def test_a_broken_checkpoint_is_named_with_what_is_wrong(
    tmp_path: Path, break_it: Callable[[Path], object], says: str
) -> None:
    folder = save_tiny(tmp_path / "neox" / "step8")
    (one,) = _resolve(StorageConfig(), model=str(folder.parent), revisions="step*")
    assert check(one, StorageConfig()).layers == BLOCKS
    break_it(folder / "model.safetensors")
    with pytest.raises(ModelUnavailableError, match=says) as caught:
        check(one, StorageConfig())
    assert str(caught.value).startswith(f"cannot load model {folder} at revision step8: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("num_hidden_layers", value) for value in (10**9, 10**30, 1e9, 1000)),
        *((key, 10**12) for key in ("hidden_size", "vocab_size", "intermediate_size")),
        ("hidden_size", 10**6),
    ],
)
@pytest.mark.parametrize("architecture", ["gpt_neox", "qwen2"])  # the latter lists its blocks
def test_a_size_that_no_weights_have_is_refused_before_anything_is_made_of_it(
    key: str, value: float, architecture: str, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "odd", architecture)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    given = subject(SubjectConfig(model=str(folder)))
    for known in (check, shape_of) if value > 10_000_000 else (check,):
        with pytest.raises(ModelUnavailableError, match=rf"config\.json says {key}: 1"):
            known(given, StorageConfig())


def test_weights_that_break_while_loading_are_one_line(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "neox")
    _cut(folder / "model.safetensors", -1)
    one = subject(SubjectConfig(model=str(folder)))
    with pytest.raises(ModelUnavailableError, match=r"cannot load model .*neox at rev") as caught:
        load_model(one, torch.device("cpu"))
    assert "\n" not in str(caught.value)
