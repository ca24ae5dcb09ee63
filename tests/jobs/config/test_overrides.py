"""`--subject` and `--revisions`: every config runs on a model of one's own."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest

from jobs.config.blocks import ConfigError
from jobs.config.overrides import add_subject, overridden
from jobs.config.run import RunConfig
from jobs.config.settings import StorageConfig
from jobs.subjects import check, resolve
from operators.model.subject import ModelUnavailableError


def _config(*subjects: dict[str, Any]) -> RunConfig:
    datasets = [{"name": "texts", "source": {"files": "texts.jsonl"}}]
    return RunConfig.model_validate({"name": "r", "subjects": [*subjects], "datasets": datasets})


RECIPE = _config({"model": "org/one", "dtype": "bfloat16", "trust_remote_code": True, "name": "1"})


def _given(config: RunConfig, *words: str) -> RunConfig:
    parser = ArgumentParser()
    add_subject(parser)
    return overridden(config, parser.parse_args(words))


def test_without_options_nothing_is_replaced() -> None:
    assert _given(RECIPE) is RECIPE


def test_subjects_are_replaced_and_trust_is_not_handed_on(tmp_path: Path) -> None:
    config = _given(RECIPE, "--subject", str(tmp_path), "--subject", "mine=org/two")
    first, second = config.subjects
    assert (first.model, first.dtype, first.trust_remote_code) == (str(tmp_path), "bfloat16", False)
    assert (second.model, second.name) == ("org/two", "mine")
    assert config.datasets == RECIPE.datasets
    mixed = _config({"model": "org/one", "dtype": "bfloat16"}, {"model": "org/two"})
    assert _given(mixed, "--subject", "org/three").subjects[0].dtype == "float32"


def test_revisions_make_a_sweep_of_what_is_given_or_of_the_config(tmp_path: Path) -> None:
    for step in ("step8", "step64", "notes"):
        (tmp_path / "neox" / step).mkdir(parents=True)
    config = _given(RECIPE, "--subject", str(tmp_path / "neox"), "--revisions", "step*")
    assert [str(each) for each in resolve(config.subjects, config.storage)] == [
        "neox at step8",
        "neox at step64",
    ]
    narrowed = _given(_config({"model": "org/m", "revision": "main"}), "--revisions", "step1*")
    assert (narrowed.subjects[0].revision, narrowed.subjects[0].revisions) == ("", "step1*")
    given = _given(RECIPE, "--subject", str(tmp_path / "neox"))
    (parent,) = resolve(given.subjects, given.storage)
    with pytest.raises(ModelUnavailableError, match=r"only folders \(notes, step64, step8\): give"):
        check(parent, StorageConfig())


def test_a_folder_whose_name_has_an_equals_sign_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run=1").mkdir()
    monkeypatch.chdir(tmp_path)
    assert _given(RECIPE, "--subject", "run=1").subjects[0].model == "run=1"
    (remote,) = _given(RECIPE, "--subject", "s3://bucket/run=1/step8").subjects
    assert (remote.model, remote.name) == ("s3://bucket/run=1/step8", "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--subject", "./nowhere"), r"--subject \./nowhere: there is no such folder, and it is"),
        (("--subject", "a/b/c"), "--subject a/b/c: there is no such folder"),
        (("--subject", ""), "--subject : there is no such folder"),
        (("--revisions", ""), "--revisions is empty"),
    ],
)
def test_what_names_no_model_is_an_error(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        _given(RECIPE, *words)
