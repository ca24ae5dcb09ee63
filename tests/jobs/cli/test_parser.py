"""Help, versions, and mistakes in the words of a command: told at once, and what was meant."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version

import pytest

from layerrank.jobs.cli.parser import COMMANDS, build
from tests.conftest import Cli, offline_environment
from tests.support.places import PROJECT

# What takes long to import, and what reads a config or a table.
HEAVY = {"pydantic", "yaml", "numpy", "pyarrow", "duckdb", "fsspec", "torch", "ray", "tqdm"}


@pytest.mark.parametrize("words", [(), ("--help",), *((name, "--help") for name in COMMANDS)])
def test_help_shows_commands_that_are_understood(cli: Cli, words: tuple[str, ...]) -> None:
    told = cli(*words).stdout
    _, _, examples = told.partition("examples:\n")
    shown = [line.strip() for line in examples.splitlines() if line.startswith("  layerrank ")]
    assert shown
    for line in shown:
        _, *given = shlex.split(re.split(r" [|<>] ", line)[0])
        found = build().parse_args(given)
        assert found.command == (words[0] if words and words[0] in COMMANDS else given[0])


def test_every_command_has_its_function() -> None:
    for command in COMMANDS.values():
        module, name = command.handler.split(":")
        assert callable(getattr(import_module(f"layerrank.jobs.cli.{module}"), name)), command


@pytest.mark.parametrize("words", ["--help", "--version", "run --help", "rnu"])
def test_what_reads_no_table_imports_nothing_that_is_slow(words: str) -> None:
    program = f"""
import sys
from layerrank.jobs.cli import main
main({words.split()!r})
sys.exit(" ".join({HEAVY!r} & sys.modules.keys()) or 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=offline_environment(),
        cwd=PROJECT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_version_is_that_of_the_package(cli: Cli) -> None:
    assert cli("--version").stdout == f"layerrank {version('layerrank')}\n"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["rnu"], "run"),
        (["statsu", "out"], "status"),
        (["rank", "--policy", "bset"], "best"),
        (["run", "demo", "--engine", "proces"], "process"),
    ],
)
def test_a_choice_that_there_is_not_is_answered_with_the_nearest(
    cli: Cli, words: list[str], meant: str
) -> None:
    assert f"did you mean {meant}?" in cli(*words, expect=2).stderr


def test_short_and_long_options_are_one() -> None:
    short = vars(build().parse_args(["run", "demo", "-o", "out", "-q", "-v"]))
    long = ["run", "demo", "--output", "out", "--quiet", "--verbose"]
    assert short == vars(build().parse_args(long))
