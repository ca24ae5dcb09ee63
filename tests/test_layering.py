"""Three layers of code, one direction (DESIGN 2), and imports that cost nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "storage": {"torch", "transformers", "ray", "operators", "jobs"},
    "operators": {"ray", "jobs", "duckdb", "s3fs", "fsspec"},
}


def _imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_one_way(package: str) -> None:
    files = sorted((PROJECT / package).rglob("*.py"))
    assert files
    for file in files:
        imported = {name.split(".")[0] for name in _imports(file)}
        assert not imported & FORBIDDEN[package], file


def test_operators_know_of_storage_only_its_schema() -> None:
    for file in (PROJECT / "operators").rglob("*.py"):
        storage = {name for name in _imports(file) if name.split(".")[0] == "storage"}
        assert all(name.startswith("storage.schema") for name in storage), file


def test_operators_run_without_ray() -> None:
    modules = [
        ".".join(file.relative_to(PROJECT).with_suffix("").parts)
        for file in (PROJECT / "operators").rglob("*.py")
        if file.name != "__init__.py"
    ]
    code = "import sys; sys.modules['ray'] = None\n" + "\n".join(f"import {m}" for m in modules)
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, timeout=120)
