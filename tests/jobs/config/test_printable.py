"""What reaches a terminal: nothing that it obeys, and no secret, whoever prints it."""

from __future__ import annotations

import io
import json
import logging
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import layerrank
from layerrank.jobs import cli
from layerrank.jobs.cluster import console
from layerrank.jobs.cluster.errors import USAGE, explain
from layerrank.jobs.config.printable import (
    guarded,
    know_secrets,
    printable,
    without_secrets,
    without_signatures,
)
from layerrank.jobs.config.run import RunConfig

SECRET = "sk-S3CR3T/0123+4567"
PARTS = ("S3CR3T", "0123", "4567")
BASE: dict[str, Any] = {
    "name": "one",
    "subjects": [{"model": "a/b"}],
    "datasets": [{"name": "d", "source": {"files": "no.jsonl"}}],
}


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Know no secret of another test."""
    with guarded([]):
        pass
    yield
    with guarded([]):
        pass


def test_what_a_terminal_cannot_show_is_escaped_and_what_it_lacks_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hidden = {"\x1b[31m": "\\x1b[31m", "\n": "\\n", "\x9b": "\\x9b", "\u202e": "\\u202e"}
    for character, shown in {**hidden, "\ud800": "\\ud800", "é 🦜 مرحبا": "é 🦜 مرحبا"}.items():
        assert printable(f"a{character}b") == f"a{shown}b"
    for encoding, name in {"ascii": "mod?le", "latin-1": "modèle", "utf-8": "modèle"}.items():
        stream = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding))
        assert cli.main(["status", "nowhere"]) == USAGE
        console.say("modèle")
        assert stream.getvalue().decode(encoding) == f"{name}\n"


def test_what_libraries_print_is_escaped_too(capsys: pytest.CaptureFixture[str]) -> None:
    with guarded([]):
        said = "of \x1b]0;a title\x07 and \u202etxet"
        logging.StreamHandler().handle(logging.makeLogRecord({"msg": said}))
        try:
            raise ValueError("\x1b[2Jgone")
        except ValueError as error:
            traceback.print_exception(error)
        sys.stderr.write("\x1b[36mworker\x1b[0m\n")
        sys.stderr.write("\r 50 %|##  |")
    shown = capsys.readouterr().err
    assert "\\x1b]0;a title\\x07 and \\u202etxet" in shown
    assert "\\x1b[2Jgone" in shown
    assert shown.endswith("worker\n\r 50 %|##  |")
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"s3://KEY:{SECRET}@bucket/x", "s3://***@bucket/x"),
        (f"no https://me:{SECRET}@host/a: 404", "no https://***@host/a: 404"),
        ("https://token@host/a", "https://***@host/a"),
        (f"'https://host/a?X-Amz-Signature={SECRET}'", "'https://host/a?X-Amz-Signature=***'"),
        (f"gs://bucket/a?token={SECRET} and", "gs://bucket/a?token=*** and"),
        (
            f"https://host/a?revision=main&sig={SECRET}#{SECRET}",
            "https://host/a?revision=main&sig=***#***",
        ),
        (f"https://host/a;token={SECRET}", "https://host/a;token=***"),
        (f"cannot open s3:///KEY:{SECRET}@bucket/x", "cannot open s3://***@bucket/x"),
        (f"model s3:/KEY:{SECRET}@bucket/x", "model s3://***@bucket/x"),
        (f"model KEY:{SECRET}@bucket/x", "model ***@bucket/x"),
        (f"error: --set storage.secret={SECRET}", "error: --set storage.secret=***"),
        # What is no secret stays.
        ("s3://bucket/part-?.parquet", "s3://bucket/part-?.parquet"),
        ("s3://bucket/at@2/b.parquet", "s3://bucket/at@2/b.parquet"),
        ("abfs://box@account.dfs.core.windows.net/a", "abfs://box@account.dfs.core.windows.net/a"),
        ("http://127.0.0.1:8265/jobs", "http://127.0.0.1:8265/jobs"),
        ("http://10.0.0.1:9000/box/data@v2/x", "http://10.0.0.1:9000/box/data@v2/x"),
        ("https://host/x.jsonl?download=true", "https://host/x.jsonl?download=true"),
        ("s3://bucket/x?y=1*", "s3://bucket/x?y=1*"),
        ("of file.py:12 at step@3", "of file.py:12 at step@3"),
        ("--set nightly.score_drop: give a number", "--set nightly.score_drop: give a number"),
    ],
)
def test_a_secret_in_an_address_is_known_by_its_place(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@given(st.text("abcXYZ059-_+/%:@", min_size=1, max_size=20), st.sampled_from(["s3", "https"]))
def test_no_user_part_is_left_in_an_address(user: str, scheme: str) -> None:
    assert without_signatures(f"{scheme}://K:{user}@bucket/x") == f"{scheme}://***@bucket/x"


@pytest.mark.parametrize(
    "text",
    [
        f"storage: {{secret:{SECRET}}}",
        f"storage:\n  secret:{SECRET}",
        f"storage: [secret:{SECRET}]",
        f"storage: {{{SECRET}}}",
        f"storage: {{endpoint_url: 'http://127.0.0.1:9/{SECRET}'}}",
        f"storage: {{region: '{SECRET}'}}",
        f"nightly: {{webhok: 'https://host/{SECRET}'}}",
        f"nightly: https://host/{SECRET}",
        f"nightly: {{score_drop: 'https://host/{SECRET}'}}",
        f"webhook: https://host/{SECRET}",
        f"output: s3://KEY:{SECRET}@bucket/x",
        f"output: https://u:{SECRET}@127.0.0.1:9/x",
        f"subjects: [{{model: 's3://KEY:{SECRET}@bucket/m'}}]",
        f"datasets: [{{name: d, source: {{files: 'http://127.0.0.1:9/x.jsonl?sig={SECRET}'}}}}]",
        f"scores: https://u:{SECRET}@127.0.0.1:9/x.csv",
        f"nightly: {{webhook: {SECRET}",
    ],
)
def test_no_command_shows_a_secret_of_a_config(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "run.yaml", tmp_path / "out"
    base = {key: each for key, each in BASE.items() if f"{key}:" not in text}
    if text.startswith("scores"):
        base = {"name": "one"}
    if not text.startswith("output"):
        base["output"] = str(output)
    path.write_text(f"{yaml.safe_dump(base)}{text}\n")
    for command in (["validate"], ["run", "-v"]):
        assert cli.main([*command, str(path)]) in (
            (0, USAGE) if command[0] == "validate" else (1, 2)
        )
    told = capsys.readouterr()
    assert "layerrank: " in told.err
    assert not [part for part in PARTS if part in told.out + told.err], told


def test_no_command_shows_a_secret_of_the_command_line_or_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(BASE))
    for arguments in (
        ["validate", str(path), "--set", f"storage={{secret: [{SECRET}]}}"],
        ["validate", str(path), "--sett", f"storage.secret={SECRET}"],
        ["status", f"s3://KEY:{SECRET}@bucket/x", "-v"],
        ["run", f"s3://KEY:{SECRET}@bucket/x.yaml"],
    ):
        assert cli.main(arguments) == USAGE
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with guarded([]):
        sys.stderr.write(f"botocore: {SECRET}\n")
    shown = capsys.readouterr().err
    assert "***" in shown
    assert not [part for part in PARTS if part in shown], shown


def test_a_secret_is_known_in_each_way_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    know_secrets({"storage": {"secret": SECRET}, "nightly": {"lease_seconds": 600.0}})
    for written in (SECRET, "sk-S3CR3T%2F0123%2B4567", "sk-S3CR3T/0123%2B4567", repr(SECRET)):
        assert without_secrets(f"a {written} b").replace("'", "") == "a *** b"
    assert explain(OSError(f"bad {SECRET}"))[0] == "bad ***"
    assert without_secrets("600.0 secret") == "600.0 secret"
    console.answer(json.dumps({"a": SECRET}), raw=True)
    console.answer("https://host/?of=data")
    assert capsys.readouterr().out == '{"a": "***"}\nhttps://host/?of=data\n'


def test_what_python_shows_of_a_config_has_no_secret() -> None:
    files = f"https://me:{SECRET}@host/a.jsonl?sig={SECRET}"
    values = {
        **BASE,
        "datasets": [{"name": "d", "source": {"files": files}}],
        "storage": {"endpoint_url": f"http://h/{SECRET}", "region": SECRET, "key": SECRET},
        "nightly": {"webhook": f"https://h/{SECRET}"},
    }
    config = RunConfig.model_validate(values)
    for shown in (f"{config!r} {config}", f"{config.storage!r}", f"{config.nightly!r}"):
        assert not [part for part in PARTS if part in shown], shown


def test_an_error_of_python_shows_no_secret_either_nor_its_cause() -> None:
    with pytest.raises(layerrank.UsageError) as caught:
        layerrank.open(f"s3://KEY:{SECRET}@bucket/x")
    shown = "".join(traceback.format_exception(caught.value, limit=0))
    assert "bucket" in shown
    with pytest.raises(layerrank.Error) as other:
        layerrank.rank({**BASE, "output": f"https://u:{SECRET}@127.0.0.1:9/x"})
    told = "".join(traceback.format_exception(other.value, limit=0))
    assert not [part for part in PARTS if part in shown + told], shown + told


def test_a_word_is_no_secret_wherever_it_stands() -> None:
    know_secrets(
        {"storage": {"key": "testing", "region": "RegionOne", "endpoint_url": "http://box"}}
    )
    know_secrets({"nightly": {"webhook": "https://ops.example.com/alerts"}})
    for text in ("5 layers of testing", "/home/me/box/alerts/night", "RegionOne"):
        assert without_secrets(text) == text
    assert without_secrets("no https://ops.example.com/alerts") == "no ***"
    know_secrets({"storage": {SECRET: "secret", "secret": "a1b2c3d4"}})
    assert without_secrets(f"unknown key {SECRET}") == "unknown key ***"
