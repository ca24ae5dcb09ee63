"""The command line without its start: one process, and one Ray, for the commands of many tests.

Starting Python, Ray and its workers takes several times as long as what most tests ask for. What a
start, an exit or a signal does is tested with a process of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock


@dataclass(frozen=True)
class Told:
    """What a command printed, how it ended, and whether it asked for Ray."""

    returncode: int
    stdout: str
    stderr: str
    started: bool = False  # of a living process alone

    @property
    def printed(self) -> str:
        """Everything that was printed."""
        return self.stdout + self.stderr


class Living:
    """A process in a folder that runs one command after another."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.living"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, arguments: list[str], seconds: float) -> Told:
        """Run a command; RuntimeError if it takes longer, or if the process ended."""
        assert self._process.stdin
        assert self._process.stdout
        limit = threading.Timer(seconds, self._process.kill)
        limit.start()
        try:
            self._process.stdin.write(json.dumps(arguments) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        finally:
            limit.cancel()
        if not line:
            raise RuntimeError(f"{arguments} ended its process, or took {seconds:g} s")
        return Told(**json.loads(line))

    def end(self) -> None:
        """Let the process stop its Ray and end."""
        self._process.communicate(timeout=60)


def main() -> None:
    """Run the commands on standard input, each a list as JSON, and answer with what they told."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is written goes elsewhere
    import ray

    from jobs.cli import main as run

    start, stop = ray.init, ray.shutdown
    asked: list[dict[str, Any]] = []

    def init(**options: Any) -> None:  # noqa: ANN401
        asked.append(options)
        if not ray.is_initialized():
            start(**options)

    with mock.patch.object(ray, "init", init), mock.patch.object(ray, "shutdown"):
        for line in sys.stdin:
            asked.clear()
            stdout, stderr = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                code = run(json.loads(line))
            told = Told(code, stdout.getvalue(), stderr.getvalue(), bool(asked))
            answers.write(json.dumps(vars(told)) + "\n")
            answers.flush()
    stop()


if __name__ == "__main__":
    main()
