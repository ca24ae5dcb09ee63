"""What there is to choose from: every recipe, metric, type of task and key, as it is documented."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from layerrank.jobs.config import RECIPES, recipes
from layerrank.jobs.config.datasets import Task
from layerrank.jobs.config.run import load
from layerrank.operators.metrics.registry import METRICS
from tests.conftest import Cli


def columns(text: str) -> list[list[str]]:
    """Return the rows of a list, cell by cell."""
    return [re.split(r"  +", line) for line in text.splitlines()]


def test_recipes_are_listed_and_shown_as_they_are(cli: Cli, tmp_path: Path) -> None:
    listed = columns(cli("recipes").stdout)
    assert [name for name, _ in listed] == recipes()
    assert dict(listed)["quickcheck"].startswith("A first look at one's own texts: which layer")
    assert dict(listed)["architectures"].endswith("on the same texts and tasks")
    for name in recipes():
        shown = cli("recipes", name).stdout
        assert shown == (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
        (tmp_path / f"{name}.yaml").write_text(shown, encoding="utf-8")
        cli("validate", str(tmp_path / f"{name}.yaml"))
    assert "did you mean demo?" in cli("recipes", "dmo", expect=2).stderr


def test_metrics_and_types_of_tasks_are_listed_with_what_they_need(cli: Cli) -> None:
    metrics = {name: of for name, of, *_ in columns(cli("ls", "metrics").stdout)}
    assert metrics.keys() == METRICS.keys()
    assert metrics["prompt_entropy"] == "tokens of each prompt"
    assert metrics["infonce"] == "augmented views"
    rows = columns(cli("ls", "tasks").stdout)
    listed = [(name, needs) for name, needs, *_ in rows]
    assert rows[2][2].startswith("Find the labels again")
    assert len(listed) == len(get_args(get_args(Task)[0]))
    assert ("clustering", "label_column, [split_column]") in listed
    assert ("package.module:Class", "first_column, second_column, any other") in listed


def test_every_key_is_listed_and_can_be_set_to_its_default(cli: Cli) -> None:
    rows = columns(cli("ls", "keys").stdout)
    known = {key: rest for key, *rest in rows}
    assert known["extract.max_tokens"][:2] == ["512", "integer ≥ 2 ≤ 16777216"]
    assert known["datasets.*.limit"][0] == "null"
    assert known["subjects.*.dtype"][:2] == ['"float32"', "float32 | bfloat16 | float16"]
    assert any(row[0] == "datasets.*.tasks.*.type" and "clustering" in row[2] for row in rows)
    # But for what the recipe says itself, and what stands for a dataset of mteb.
    own = ("output", "views.", "extract.max_tokens", "tasks.")
    sets = [
        f"{key}={default}"
        for key, default, *_ in rows
        if "*" not in key and default not in ("required", "all") and not key.startswith(own)
    ]
    assert len(sets) > 50
    assert load("demo", sets).model_dump() == load("demo").model_dump()


OWN_TASKS = [
    {"name": "t", "type": "mine:T", "label_column": "a", "depth": 3},
    {"name": "t", "type": "my_pkg.mod:T", "first_column": "a", "second_column": "b", "folds": 2},
]


def schema(cli: Cli) -> Any:  # noqa: ANN401  (jsonschema ships no types)
    known = json.loads(cli("schema").stdout)
    validators = import_module("jsonschema").validators
    checker = validators.validator_for(known)
    checker.check_schema(known)
    return checker(known)


def test_the_schema_takes_what_is_valid_and_no_more(cli: Cli) -> None:
    checker = schema(cli)
    for name in recipes():
        checker.validate(yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8")))
    demo = yaml.safe_load((RECIPES / "demo.yaml").read_text(encoding="utf-8"))
    docs, templates = demo["datasets"][0], {"body": "passage: {text}", "chat": {"chat": "{text}"}}
    of_mteb = {"name": "m", "subjects": demo["subjects"], "tasks": {"mteb": "STS12"}}
    for fine in (
        {**demo, "datasets": [{**docs, "source": {"files": "a.csv"}, "prompts": templates}]},
        {**demo, "datasets": [{**docs, "source": {"files": ["a.csv", "b.csv"]}}]},
        {**demo, "measure": {"metrics": ["lidar", "mine:f"]}},
        *({**demo, "datasets": [{**docs, "tasks": [own]}]} for own in OWN_TASKS),
        of_mteb,
    ):
        assert not [*checker.iter_errors(fine)], fine
    for wrong in (
        {**demo, "extarct": {}},
        {**demo, "extract": {"max_tokens": 1}},
        {**demo, "extract": {"poolings": ["median"]}},
        {**demo, "datasets": [{**docs, "tasks": [{"name": "t", "type": "sts"}]}]},
        {**demo, "datasets": [{**docs, "tasks": [{"name": "t", "type": "mine:"}]}]},
        {"name": "m", "subjects": demo["subjects"]},
        {"name": "m", "scores": "a.csv", "output": "out", "subjects": []},
    ):
        assert [*checker.iter_errors(wrong)], wrong


def test_every_block_of_the_schema_says_what_it_is(cli: Cli) -> None:
    known = schema(cli).schema
    assert [name for name, each in known["$defs"].items() if "description" not in each] == []
    assert known["$defs"]["ExtractConfig"]["properties"]["max_tokens"]["description"]


def test_a_config_is_valid_or_everything_wrong_is_told_in_a_line_each(
    cli: Cli, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nseed: soon\nsubjects: [{model: org/m}]\n"
        "datasets: [{name: a, source: {files: a.csv}, limit: 0}]\n"
        "extract: {max_token: 5, threads: -1}\nstorage: {secrt: hunter2, key: [hunter2]}\nx: 1\n",
        encoding="utf-8",
    )
    lines = cli("validate", str(path), expect=2).stderr.splitlines()
    assert all(line.startswith(f"layerrank: {path}: ") for line in lines)
    told = [line.removeprefix(f"layerrank: {path}: ").partition(":")[0] for line in lines]
    keys = ["seed", "datasets.0.limit", "extract", "extract.threads", "storage", "storage.key"]
    assert told == ["unknown key x; known keys", *keys]
    assert "hunter2" not in "".join(lines)
    assert cli("validate", "published").stdout.startswith("published is valid; only the config")
    path.write_text("name: [", encoding="utf-8")
    assert "not valid YAML" in cli("validate", str(path), expect=2).stderr


def test_a_config_is_checked_with_what_a_run_is_to_put_into_it(cli: Cli) -> None:
    bad = ("--set", "extract.max_tokens=1", "--set", "seed=soon")
    first, second = cli("validate", "demo", *bad, expect=2).stderr.splitlines()
    assert (first.count("seed"), second.count("extract.max_tokens")) == (1, 1)
    (told,) = cli("validate", "demo", *bad[:2], expect=2).stderr.splitlines()
    assert told.startswith("layerrank: --set extract.max_tokens: ")
    assert "is valid" in cli("validate", "demo", "--set", "seed=5", "--limit", "400").stdout
    assert "--limit 3" in cli("validate", "published", "--limit", "3", expect=2).stderr
    assert "--limit 3" in cli("run", "published", "--limit", "3", expect=2).stderr


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("run quick", "quickcheck"),
        ("stat", "status"),
        ("run demo --engine pro", "process"),
        ("recipes pap", "paper"),
        ("status out-", "out-folder"),
        ("validate min", "mine.yaml"),
    ],
)
def test_a_shell_completes_commands_recipes_choices_and_paths(
    cli: Cli, tmp_path: Path, words: str, found: str
) -> None:
    bash = shutil.which("bash")
    assert bash
    (tmp_path / "out-folder").mkdir()
    (tmp_path / "mine.yaml").touch()
    script = cli("completion", "bash").stdout
    typed = ["layerrank", *words.split()]
    asked = f"""{script}
COMP_WORDS=({" ".join(typed)}); COMP_CWORD={len(typed) - 1}
_shtab_layerrank; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        [bash, "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found in done.stdout.split(), done


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_a_script_too(cli: Cli, shell: str) -> None:
    assert "quickcheck" in cli("completion", shell).stdout
