"""What is installed: one package, beside whatever else has the names of ours, for any machine."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.conftest import offline_environment
from tests.support.machines.installed import install
from tests.support.places import PROJECT

OF_CUDA = re.compile(r"^(torch|nvidia|cuda|triton)\b", re.MULTILINE)


@pytest.mark.slow
def test_a_wheel_stands_beside_packages_with_the_names_of_ours(tmp_path: Path) -> None:
    commands = install(tmp_path)
    (site,) = tmp_path.glob("environment/lib/python*/site-packages")
    files = (site / next(site.glob("layerrank-*.dist-info")) / "RECORD").read_text().splitlines()
    tops = {line.partition("/")[0] for line in files}
    assert tops == {"..", "layerrank", next(site.glob("layerrank-*.dist-info")).name}
    assert (site / "layerrank" / "py.typed").is_file()
    for name in ("jobs", "operators", "storage"):
        assert not (site / "layerrank" / name).is_symlink()
        (site / name).mkdir()
        (site / name / "__init__.py").write_text("WHOSE = 'theirs'\n", encoding="utf-8")
    environment = offline_environment()
    environment.pop("PYTHONPATH", None)
    code = (
        "import jobs, operators, storage, layerrank\n"
        "from layerrank.jobs.config.run import load\n"
        "print({each.WHOSE for each in (jobs, operators, storage)}, load('demo').name)"
    )
    for command in (["python", "-c", code], ["layerrank", "plan", "--help"]):
        told = subprocess.run(
            [str(commands / command[0]), *command[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout.startswith("{'theirs'} demo" if command[0] == "python" else "usage:")


def test_the_lock_takes_no_side_for_a_build_of_torch() -> None:
    assert not OF_CUDA.search((PROJECT / "constraints.txt").read_text(encoding="utf-8"))
    pinned = (PROJECT / "constraints-torch.txt").read_text(encoding="utf-8").splitlines()[-1]
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+", pinned)  # no +cpu, no +cu126


def test_every_extra_is_what_the_tests_have_or_says_why_not() -> None:
    """Those of clouds need their clouds: nothing here can answer as they do."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]

    def names(extra: str) -> set[str]:
        return {re.split(r"[\[><=]", each)[0] for each in extras[extra]}

    tested = names("dev") | names("demo") | names("mteb") | names("export") | {"transformers"}
    assert {each for each in extras if not names(each) <= tested} == {"gcs", "azure"}
