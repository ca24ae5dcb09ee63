"""Which checkpoints `revisions` stands for, and in which order."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from layerrank.jobs.cluster.cluster import Cluster
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.run import RunConfig
from layerrank.jobs.config.sealed import sealed
from layerrank.jobs.config.settings import StorageConfig, SubjectConfig
from layerrank.jobs.run import Run
from layerrank.jobs.subjects import checked, remember, resolve, subject, subject_identity
from layerrank.operators.model.subject import ModelShape, ModelUnavailableError, Subject
from layerrank.storage.partition import step_of
from layerrank.storage.root import Root
from tests.support.machines.here import Here
from tests.support.tiny import save_tiny


def _resolve(model: object, revisions: str | list[str], **more: str) -> tuple[Subject, ...]:
    given = {"model": str(model), "revisions": revisions, **more}
    return resolve([SubjectConfig.model_validate(given)], StorageConfig())


def test_a_pattern_takes_folders_by_their_steps_and_a_list_keeps_its_order(tmp_path: Path) -> None:
    ladder = tmp_path / "neox"
    for name in ("step1000", "step0", "step64", "notes"):
        (ladder / name).mkdir(parents=True)
    found = _resolve(ladder, "step*")
    assert [str(each) for each in found] == ["neox at step0", "neox at step64", "neox at step1000"]
    assert [each.model for each in found] == [str(ladder / each.revision) for each in found]
    assert [each.revision for each in _resolve(ladder, ["step64", "step0"])] == ["step64", "step0"]
    with pytest.raises(ConfigError, match="has no folder step7; it has notes, step0"):
        _resolve(ladder, ["step7"])
    with pytest.raises(ConfigError, match="no folder matches revisions 'epoch"):
        _resolve(ladder, "epoch*")


def test_a_folder_that_a_package_lacks_is_answered_with_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights_of" / "model").mkdir(parents=True)
    (tmp_path / "weights_of" / "__init__.py").write_text("raise SystemExit")  # not to be imported
    monkeypatch.syspath_prepend(tmp_path)
    assert subject(SubjectConfig(model="package:weights_of/model")).is_folder
    for given in ("modle", "modle/", "modle/a.gguf"):
        meant = r"has no folder modle; did you mean package:weights_of/model\?$"
        with pytest.raises(ConfigError, match=meant):
            subject(SubjectConfig(model=f"package:weights_of/{given}"))


@pytest.mark.parametrize(
    "package", ["weights_of.inner/x", "", "..", ".weights_of/x", "weights_of/../.."]
)
def test_only_a_whole_package_is_looked_for_and_nothing_is_imported(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights_of" / "inner").mkdir(parents=True)
    (tmp_path / "weights_of" / "__init__.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelUnavailableError, match=rf"{re.escape(package)}: give package:"):
        subject(SubjectConfig(model=f"package:{package}"))
    assert "weights_of" not in sys.modules


@pytest.mark.parametrize("key", ["name", "revision"])
def test_a_name_that_no_folder_can_have_is_refused(key: str) -> None:
    assert subject(SubjectConfig(model="m", **{key: "a" * 230}))
    for long in ("a" * 231, "é" * 60):
        with pytest.raises(ConfigError, match=f"its {key} has .* characters"):
            subject(SubjectConfig(model="m", **{key: long}))


def test_branches_of_the_hub_are_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    branches = [SimpleNamespace(name=name) for name in ("main", "step2000", "step512")]
    refs = SimpleNamespace(branches=branches)
    monkeypatch.setattr(huggingface_hub, "list_repo_refs", lambda _: refs)
    found = _resolve("org/model", "step*")
    assert [str(each) for each in found] == ["org/model at step512", "org/model at step2000"]

    def offline(_: str) -> None:
        raise OfflineModeIsEnabled("the hub is not to be reached")

    monkeypatch.setattr(huggingface_hub, "list_repo_refs", offline)
    with pytest.raises(ConfigError, match=r"org/model: cannot list its branches: the hub"):
        _resolve("org/model", "step*")


def test_revision_and_revisions_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="give revision or revisions, not both"):
        _resolve("org/model", ["step0"], revision="main")
    with pytest.raises(ValueError, match="names no checkpoint"):
        _resolve("org/model", [])


@pytest.mark.parametrize(
    ("revision", "step"), [("step0", 0), ("step143000", 143000), ("v2-step10", 10), ("main", None)]
)
def test_the_step_is_the_last_number_of_a_revision(revision: str, step: int | None) -> None:
    assert step_of(revision) == step


def test_a_note_of_an_earlier_version_is_asked_for_the_kind(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "tiny", "mamba")
    root, storage = Root(str(tmp_path / "out")), StorageConfig()
    (subject,) = resolve([SubjectConfig(model=str(model))], storage)
    identity, begun = subject_identity(subject, storage), list[None]()

    def ask() -> ModelShape:
        return checked(subject, identity, storage, root, lambda: begun.append(None))

    shape = ask()
    assert (shape.kind, len(begun)) == ("state-space model", 1)
    remember(shape, identity, root)
    assert (ask(), len(begun)) == (shape, 1)  # as it was remembered
    (note,) = (tmp_path / "out" / "_layerrank" / "models").iterdir()
    sizes: dict[str, Any] = {
        "layers": 3,
        "hidden_size": 32,
        "max_tokens": None,
        "vocabulary": 300,
    }
    note.write_bytes(sealed(sizes))
    assert (ask(), len(begun)) == (shape, 2)
    # What was read once is read on when its files cannot be asked.
    (model / "config.json").unlink()
    assert ask() == ModelShape(**sizes)
    note.unlink()
    with pytest.raises(ModelUnavailableError):
        ask()


def test_the_kind_of_a_model_that_is_gone_is_unknown(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "tiny")
    values = {
        "name": "small",
        "subjects": [{"model": str(model)}],
        "datasets": [{"name": "texts", "source": {"files": str(tmp_path / "texts.jsonl")}}],
    }
    config, root = RunConfig.model_validate(values), Root(str(tmp_path / "out"))
    run = Run(config, root, Cluster(Here()))
    (subject,) = run.subjects
    shutil.rmtree(model)
    assert run.kind(subject) is None
    save_tiny(model)
    assert run.kind(subject) == "causal decoder"
