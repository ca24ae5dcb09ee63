"""The project as a user installs it, and a folder of the user's with modules named like ours."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.support.places import PROJECT


def install(folder: Path, *, editable: bool = False) -> Path:
    """Install a copy of the project under `folder`, and return where its commands are.

    Its environment sees this one's libraries, but not what is installed here in editable mode.
    """
    source, environment = folder / "source", folder / "environment"
    for name in ("layerrank", "jobs", "operators", "storage"):
        shutil.copytree(PROJECT / name, source / name, symlinks=True)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(PROJECT / name, source)
    venv.create(environment, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", f"--python={environment / 'bin' / 'python'}", "install"]
    offline = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    how = ["--editable"] if editable else ["--force-reinstall"]
    subprocess.run([*command, *offline, *how, str(source)], check=True, timeout=120)
    if not editable:
        shutil.rmtree(source)
    return environment / "bin"


def users_folder(folder: Path, *more: str) -> Path:
    """Write modules with the names of ours, and `more`, none of which can be imported."""
    for name in ("storage.py", "jobs/__init__.py", "operators/__init__.py", *more):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"raise ImportError('the user has a {name} too')\n", encoding="utf-8")
    return folder
