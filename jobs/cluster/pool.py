"""What the two sides of the seam share: the pieces of a stage, and the workers that it gets."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

import layerrank
from layerrank.jobs.config.blocks import ConfigError

TorchDevice = Literal["cpu", "cuda"]
Runner = Literal["process", "ray"]
# What a stage gives the seam. All of it is pickled, and so are units and results.
Work = Callable[[Any], Any]  # unit -> result
Make = Callable[[], Work]  # builds a worker, once in each process
Feed = Callable[[Any], Any]  # unit -> what the worker gets
Split = Callable[[Any], Iterator[pa.Table]]  # unit -> rows
Write = Callable[[pa.Table], Any]  # the rows of a key -> result

MOST_BUCKETS = 64  # of a shuffle: keys beyond that share one
HOME = Path(layerrank.__file__).resolve().parents[1]  # the folder that our package lies in
TASK_CPUS = 0.25  # of a task that runs beside model actors


class CannotScheduleError(ConfigError):
    """The cluster can never run the plan."""


@dataclass(frozen=True)
class Pool:
    """How many actors at first and at most, and what each takes."""

    size: int
    most: int
    num_cpus: float
    num_gpus: float
    threads: int

    @property
    def readers(self) -> int:
        """How many tasks feed the actors; on CPUs they take from the actors' own cores."""
        return self.most if self.num_gpus else max(self.most // 2, 1)

    @property
    def device(self) -> TorchDevice:
        """The torch device of the actors."""
        return "cuda" if self.num_gpus else "cpu"


@contextmanager
def sockets_in(variable: str = "TMPDIR") -> Iterator[None]:
    """Say what is wrong if a variable's temporary folder is too long a path for sockets in it."""
    try:
        yield
    except OSError as error:
        if "AF_UNIX path" not in str(error):
            raise
        folder = tempfile.gettempdir() if variable == "TMPDIR" else os.environ[variable]
        raise ConfigError(
            f"the path of the temporary folder, {folder}, is too long for the sockets in it: set "
            f"{variable} to a shorter one, such as /tmp"
        ) from error
