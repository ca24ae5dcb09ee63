"""The command line without its start: one process for the commands of many tests.

Starting Python and importing what the workers need takes longer than what most tests ask for. What
a start, an exit or a signal does, and what Ray does, is tested with a process of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

Told = subprocess.CompletedProcess[str]  # what a command printed, and how it ended


class Living:
    """A process in a folder that runs one command after another, by a program of ours."""

    def __init__(
        self,
        environment: dict[str, str],
        folder: Path,
        program: str = "tests.support.machines.living",
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", program],
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
        return Told(arguments, **json.loads(line))

    def end(self) -> None:
        """Let the process end."""
        self._process.communicate(timeout=60)


def main() -> None:
    """Run the commands on standard input, each a list as JSON, and answer with what they told."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is written goes elsewhere
    from layerrank.jobs.cli import main as run

    for line in sys.stdin:
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = run(json.loads(line))
        told = {"returncode": code, "stdout": stdout.getvalue(), "stderr": stderr.getvalue()}
        answers.write(json.dumps(told) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
