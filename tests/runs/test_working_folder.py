"""The command works from any folder, also one with a `storage.py` or a `jobs/` of the user's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import offline_environment, write_config
from tests.support.installed import install, users_folder

pytestmark = pytest.mark.slow
TIME_LIMIT = 120  # workers that cannot import a library are started again and again


def _run(commands: Path, folder: Path, name: str, *arguments: str) -> None:
    result = subprocess.run(
        [str(commands / name), *arguments],
        cwd=folder,
        env=offline_environment(),
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("editable", [True, False], ids=["editable", "wheel"])
def test_a_users_modules_with_our_names_are_not_taken_for_ours(
    tmp_path: Path, checkpoint: Path, editable: bool
) -> None:
    """Nor is a module with the name of a library's taken for it on a worker."""
    commands = install(tmp_path / "installed", editable=editable)
    config = write_config(tmp_path, checkpoint)
    folder = users_folder(tmp_path / "users", "jobs.py", "datasets.py", "pyarrow/__init__.py")
    for engine in ("ray", "process"):
        engined = ("--output", engine, "--engine", engine)
        _run(commands, folder, "layerrank", "prepare", str(config), *engined)
        assert list(folder.glob(f"{engine}/prompts/**/*.parquet"))

    # Python itself looks in the folder first for what `-m` runs, and for the libraries.
    output, folder = str(folder / "ray"), users_folder(tmp_path / "more")
    query = ("query", output, "SELECT 1")
    _run(commands, folder, "python", "-m", "layerrank", *query)
    shutil.rmtree(folder / "jobs")
    _run(commands, folder, "python", "-m", "jobs", *query)
