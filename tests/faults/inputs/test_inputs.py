"""Bad inputs: one loop, one judgement; `pytest -rP` shows the lines, `--durations` the time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import offline_environment
from tests.faults.inputs import configs, datasets, models, outputs
from tests.faults.inputs.case import Case, Places, config
from tests.support.machines.living import Living, Told
from tests.support.places import PROJECT
from tests.support.tiny import save_tiny

pytestmark = pytest.mark.inputs
SECONDS = 30.0  # of a command
CASES = [
    *(*configs.CASES, *datasets.CASES, *models.CASES),
    *(*outputs.SCORES, *outputs.ROOTS, *outputs.QUERIES, *outputs.USAGE),
]
ENVIRONMENT = {**offline_environment(), "AWS_EC2_METADATA_DISABLED": "true"}


class Commands:
    """Runs commands in a process that lives on, and in another after one that took too long.

    `shared` is a checkpoint and an output, made by a first command that imports what all need.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._started = folder, 0
        self._model = save_tiny(folder / "tiny")
        self.shared = self._start()

    def __call__(self, command: list[str]) -> Told:
        try:
            return self._living.tell(command, SECONDS)
        except RuntimeError as error:
            self.end()
            self._start()
            return Told(command, -1, "", str(error))

    def _start(self) -> Places:
        self._started += 1
        folder = self._folder / f"start-{self._started}"
        places, good = Places(folder, self._model, folder / "out"), config("good", {})
        self._living = Living(ENVIRONMENT, PROJECT)
        told = self._living.tell(good.make(places), 20 * SECONDS)
        assert good.faults(told, places) == []
        return places

    def end(self) -> None:
        self._living.end()


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    found = Commands(tmp_path_factory.mktemp("shared"))
    yield found
    found.end()


def _in_a_process(command: list[str], case: Case) -> Told:
    try:
        return subprocess.run(
            [sys.executable, "-m", "layerrank", *command],
            cwd=PROJECT,
            env={**ENVIRONMENT, **case.environment},
            capture_output=True,
            text=True,
            timeout=3 * SECONDS,  # it begins with Python itself
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return Told(command, -1, "", str(error))


@pytest.mark.parametrize("case", CASES, ids=[each.name for each in CASES])
def test_a_bad_input_is_one_line_that_says_what_and_where_or_works(
    case: Case, commands: Commands, tmp_path: Path
) -> None:
    places = replace(commands.shared, folder=tmp_path)
    command = case.make(places)
    told = _in_a_process(command, case) if case.environment else commands(command)
    sys.stdout.write(told.stderr)  # `pytest -rP` shows every line
    assert case.faults(told, places) == [], told.stderr[-2000:] + told.stdout[-300:]


def test_every_case_has_a_name_of_its_own() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert len(names) >= 217
