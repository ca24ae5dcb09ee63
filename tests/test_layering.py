"""Three layers of code, one direction, and rooms that can be found."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.places import PROJECT

PACKAGES = ("jobs", "operators", "storage")
STAGES = ("prepare", "extract", "measure", "probe")
ABOVE = ("rank", "report", "nightly", "plan", "whole", "cli")  # what reads or calls the stages
# What the rooms below the stages may import of one another.
BELOW = {
    "words": set[str](),
    "config": set[str](),
    "own": {"config"},
    "tasks": {"config", "own"},
    "subjects": {"config"},
    "cluster": {"config"},
    "run": {"config", "own", "tasks", "subjects", "cluster"},
}
MOST_FILES = 12  # of a folder
LONGEST_CHAIN = {"jobs": 10, "": 14}  # files that import one another, of a package or of all
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
    return {name.removeprefix("layerrank.") for name in found}


def _modules() -> dict[str, set[str]]:
    """Return every module of ours, and which of the others it imports, wherever in it."""
    files = {
        ".".join(file.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): file
        for package in PACKAGES
        for file in (PROJECT / package).rglob("*.py")
    }
    return {name: _imports(file) & (files.keys() - {name}) for name, file in files.items()}


def _room(module: str) -> str:
    """Return what a module of `jobs` belongs to: its package, or itself."""
    return module.split(".")[1] if module.startswith("jobs.") else ""


def test_only_the_side_of_ray_imports_it() -> None:
    files = (file for package in PACKAGES for file in (PROJECT / package).rglob("*.py"))
    found = [file for file in files if any(n.split(".")[0] == "ray" for n in _imports(file))]
    cluster = PROJECT / "jobs" / "cluster"
    assert sorted(found) == [cluster / "on_ray.py", cluster / "ray_session.py"]


def test_stages_import_none_of_each_other_and_nothing_from_above() -> None:
    for module, imported in _modules().items():
        rooms = {_room(each) for each in imported} - {_room(module)}
        if _room(module) in BELOW:
            assert rooms - {""} <= BELOW[_room(module)], module
        if _room(module) not in (*ABOVE, "", "__main__", "export", "vectors"):
            assert not rooms & {*STAGES, *ABOVE}, module


def test_a_folder_holds_few_files() -> None:
    for package in (*PACKAGES, "tests"):
        for folder in {file.parent for file in (PROJECT / package).rglob("*.py")}:
            assert len([*folder.glob("*.py")]) <= MOST_FILES, folder


@pytest.mark.parametrize("package", LONGEST_CHAIN)
def test_chains_of_imports_are_short_and_never_closed(package: str) -> None:
    modules = {name: each for name, each in _modules().items() if name.startswith(package)}
    chains: dict[str, list[str]] = {}

    def chain(module: str, above: tuple[str, ...]) -> list[str]:
        assert module not in above, f"a circle: {above}"
        if module not in chains:
            below = [chain(each, (*above, module)) for each in modules[module] & modules.keys()]
            chains[module] = [module, *max(below, key=len, default=[])]
        return chains[module]

    longest = max((chain(module, ()) for module in modules), key=len)
    assert len(longest) <= LONGEST_CHAIN[package], longest


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
