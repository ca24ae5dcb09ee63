"""Bad inputs: one loop, one judgement; `pytest -rP` shows the lines, `--durations` the time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.conftest import offline_environment
from tests.faults.inputs import configs, datasets, models, outputs
from tests.faults.inputs.case import Case, Places, config
from tests.support.machines.living import Living, Told
from tests.support.places import PROJECT
from tests.support.tiny import save_tiny

pytestmark = pytest.mark.inputs
SECONDS = 60.0  # of a command
CASES = [
    *(*configs.CASES, *datasets.CASES, *models.CASES),
    *(*outputs.SCORES, *outputs.ROOTS, *outputs.QUERIES, *outputs.USAGE),
]
ENVIRONMENT = {**offline_environment(), "AWS_EC2_METADATA_DISABLED": "true"}


@dataclass
class Commands:
    """Runs commands in a process that lives on, or in another if one took too long."""

    living: Living

    def __call__(self, command: list[str], seconds: float) -> Told:
        try:
            return self.living.tell(command, seconds)
        except RuntimeError as error:
            self.living.end()
            self.living = Living(ENVIRONMENT, PROJECT)
            return Told(command, -1, "", str(error))


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    found = Commands(Living(ENVIRONMENT, PROJECT))
    yield found
    found.living.end()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, commands: Commands) -> Places:
    """A checkpoint and an output, made by a command that needs nothing to be forgiven."""
    folder = tmp_path_factory.mktemp("shared")
    places = Places(folder, save_tiny(folder / "tiny"), folder / "out")
    good = config("good", {})
    told = commands(good.make(places), 120)
    assert good.faults(told, places) == []
    return places


def _in_a_process(command: list[str], case: Case) -> Told:
    try:
        return subprocess.run(
            [sys.executable, "-m", "layerrank", *command],
            cwd=PROJECT,
            env={**ENVIRONMENT, **case.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return Told(command, -1, "", str(error))


def _waiting(case: Case) -> object:
    marks = [pytest.mark.xfail(reason=case.awaited, strict=True)] if case.awaited else []
    return pytest.param(case, id=case.name, marks=marks)


@pytest.mark.parametrize("case", [_waiting(each) for each in CASES])
def test_a_bad_input_is_one_line_that_says_what_and_where_or_works(
    case: Case, commands: Commands, shared: Places, tmp_path: Path
) -> None:
    places = replace(shared, folder=tmp_path)
    command = case.make(places)
    told = _in_a_process(command, case) if case.environment else commands(command, SECONDS)
    sys.stdout.write(told.stderr)  # `pytest -rP` shows every line
    assert case.faults(told, places) == [], told.stderr[-2000:] + told.stdout[-300:]


def test_every_case_has_a_name_of_its_own() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert len(names) >= 217
