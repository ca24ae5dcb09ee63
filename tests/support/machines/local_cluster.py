"""Ray nodes on this machine, started as on a cluster: `ray start`, with token authentication."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 150
JOB_SECONDS = 900


@dataclass(frozen=True)
class LocalCluster:
    """Running nodes: where to join them and to submit jobs, and the environment that may."""

    address: str
    dashboard: str
    environment: dict[str, str]
    nodes: list[subprocess.Popen[bytes]]

    def submit(
        self, folder: Path, *command: str, shown: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a job with `folder` as its working folder, and wait for its end.

        What it prints is kept, or `shown` as it comes.
        """
        ray = Path(sys.executable).parent / "ray"
        job = [str(ray), "job", "submit", "--address", self.dashboard, "--working-dir", "."]
        deadline = time.monotonic() + START_SECONDS
        while True:
            result = self.run(folder, *job, "--", *command, shown=shown)
            # A head answers some seconds before the agent that starts jobs does.
            if "No available agent" not in result.stderr or time.monotonic() > deadline:
                return result
            time.sleep(1)

    def run(
        self, folder: Path, *command: str, shown: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a folder with what the cluster wants to see of it."""
        return subprocess.run(
            command,
            cwd=folder,
            env=self.environment,
            stdout=None if shown else subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            timeout=JOB_SECONDS,
            check=False,
        )


@contextmanager
def local_cluster(
    python: Path, environment: Mapping[str, str], folder: Path, *, nodes: int = 1, cpus: int = 2
) -> Iterator[LocalCluster]:
    """Start a head and more nodes with the Ray of `python`, and stop them at the end.

    `folder` gets the token. A node counts as many CPUs as it is told, whatever there are.
    """
    token = folder / "token"
    token.write_text(secrets.token_urlsafe(32), encoding="utf-8")
    environment = {
        **environment,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nothing is left to drain at the end
    }
    port, dashboard_port = _free_port(), _free_port()
    address, dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard_port}"
    head = ("--head", f"--port={port}", f"--dashboard-port={dashboard_port}")
    started: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        start = (str(python), "-m", "ray.scripts.scripts", "start", "--block", f"--num-cpus={cpus}")
        for number in range(nodes):
            where = (f"--address={address}",) if number else head
            # Its default is fixed: where another Ray has it, this one never takes a job.
            agent = f"--dashboard-agent-listen-port={_free_port()}"
            process = subprocess.Popen(
                [*start, *where, agent],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            started.append(process)
            stack.callback(process.wait, timeout=60)
            stack.callback(process.terminate)  # before it is waited for
            if not number:
                _wait_until_up(dashboard, process)
        yield LocalCluster(address, dashboard, environment, started)


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
