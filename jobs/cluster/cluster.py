"""The Ray side of every stage: start or join a cluster, size the pools, stream small results back.

On a small machine actors that take every CPU starve the tasks that feed them and the job hangs
silently, so model actors take a fraction of a CPU per thread, and a plan that can never be
scheduled is refused before it starts.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.autoscaler.sdk import request_resources
from ray.data.context import ShuffleStrategy
from ray.job_config import JobConfig

import jobs
from jobs.cluster.pool import CannotScheduleError
from jobs.config.blocks import ConfigError
from jobs.config.settings import ClusterConfig, Device

_OBJECT_STORE_BYTES = 512 << 20  # texts, token ids and receipts; tensors never enter it
_POLL_SECONDS = 5.0


@dataclass
class Cluster:
    """A Ray cluster that starts when the first stage has work for it, and stops with the run."""

    address: str | None = None
    config: ClusterConfig = field(default_factory=ClusterConfig)
    verbose: bool = False
    say: Callable[[str], None] = lambda _line: None
    _started: bool = False

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._started:
            ray.shutdown()

    def start(self) -> None:
        """Start a local cluster or join the one at `address`; nothing if that was done before."""
        if self._started:
            return
        address = self.address or os.environ.get("RAY_ADDRESS")
        _quieten(self.verbose)
        options: dict[str, Any] = {
            "logging_level": logging.INFO if self.verbose else logging.ERROR,
            "log_to_driver": self.verbose,
            "job_config": JobConfig(_py_driver_sys_path=_WorkerPath([str(_home())])),
        }
        if address is None:
            options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
        elif "RAY_JOB_ID" not in os.environ and "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
            options["runtime_env"] = {"py_modules": _own_packages()}
        try:
            with _stderr_held_back(self.verbose):
                ray.init(address=address or "local", **options)
        except ConnectionError as error:
            raise ConfigError(f"cannot reach the Ray cluster at {address}: {error}") from error
        self._started = True
        self._await("cpu")
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = self.verbose
        context.print_on_execution_start = self.verbose
        # The hash shuffles start a pool of aggregators: 8 s more for a small corpus (2 cores).
        context.shuffle_strategy = ShuffleStrategy.SORT_SHUFFLE_PULL_BASED

    def resources(self, device: Device) -> dict[str, float]:
        """Return the cluster's total resources, waiting for a GPU worker that has yet to start."""
        self.start()
        return self._await(device)

    def _await(self, device: Device) -> dict[str, float]:
        """Wait until the cluster has a CPU, and a GPU if the device is cuda.

        An autoscaling cluster shows only its head at first: what is missing is asked for and
        awaited for `cluster.wait_seconds`, saying so every few seconds, then asked for no longer.
        """
        needed = {"CPU": 1, **({"GPU": 1} if device == "cuda" else {})}
        deadline = time.monotonic() + (self.config.wait_seconds if self.may_grow else 0)
        asked = False
        try:
            while True:
                total: dict[str, float] = ray.cluster_resources()
                lacking = [name for name, count in needed.items() if total.get(name, 0) < count]
                if "CPU" in lacking and time.monotonic() >= deadline:
                    raise CannotScheduleError("the cluster has no CPU to run a task on")
                if not lacking or time.monotonic() >= deadline:
                    return total
                if not asked:
                    request_resources(bundles=[needed])
                    asked = True
                left = deadline - time.monotonic()
                self.say(f"waiting for a {lacking[-1]} to join the cluster ({left:.0f} s left)")
                time.sleep(_POLL_SECONDS)
        finally:
            if asked:
                request_resources(bundles=[])

    @property
    def may_grow(self) -> bool:
        """Whether this is somebody's cluster, which may start more nodes, and not this machine."""
        return bool(self.address or os.environ.get("RAY_ADDRESS"))


def from_units(units: Sequence[str]) -> ray.data.Dataset:
    """Return a Dataset with one block per unit of work: Ray would otherwise coalesce small rows."""
    return ray.data.from_items([{"unit": unit} for unit in units], override_num_blocks=len(units))


def results(plan: ray.data.Dataset) -> Iterator[Any]:
    """Yield what the units of a plan return, decoded from the `result` column, as they finish."""
    for row in plan.iter_rows():
        yield json.loads(row["result"])


_IN_PROCESS: ContextVar[bool] = ContextVar("in_process", default=False)


class InProcess(Cluster):
    """In the place of a cluster, this process: for work too small to send anywhere.

    While it is entered, `run_tasks` runs the units one after another, here.
    """

    _token: Token[bool]

    def __enter__(self) -> Cluster:
        self._token = _IN_PROCESS.set(True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _IN_PROCESS.reset(self._token)

    def start(self) -> None:
        """Start nothing."""

    def resources(self, device: Device) -> dict[str, float]:
        """Return one CPU; ConfigError if that is not the device."""
        if device == "cuda":
            raise ConfigError("what runs in this process runs on its CPU; say device: cpu")
        return {"CPU": 1.0}

    @property
    def may_grow(self) -> bool:
        """Whether there could be more: there could not."""
        return False


def run_tasks(
    units: Sequence[str],
    task: Callable[[pa.Table], pa.Table],
    *,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
) -> Iterator[Any]:
    """Run `task` once per unit, anywhere in the cluster, and yield the results as they finish."""
    if _IN_PROCESS.get():
        tables = (task(pa.table({"unit": [unit]})) for unit in units)
        return (json.loads(table["result"][0].as_py()) for table in tables)
    plan = from_units(units).map_batches(
        task, batch_size=1, batch_format="pyarrow", num_cpus=num_cpus, num_gpus=num_gpus
    )
    return results(plan)


def one_unit(batch: pa.Table) -> str:
    """Return the unit in a batch of one row."""
    unit: str = batch["unit"][0].as_py()
    return unit


def result_table(*values: Any) -> pa.Table:  # noqa: ANN401  (any JSON value)
    """Return the `result` column that `results` reads."""
    return pa.table({"result": [json.dumps(value) for value in values]})


class _WorkerPath(list[str]):
    """What Ray puts first on a worker's path: the folder of our packages, and nothing else.

    Ray extends it with the folder that the command was started in, the last the first to be
    searched, and whatever that folder has of the name of a module of ours would be taken for it.
    """

    def extend(self, _folders: Iterable[str]) -> None:
        """Add nothing."""


def _home() -> Path:
    """Return the folder that our three packages lie in."""
    return Path(jobs.__file__).resolve().parents[1]


def _own_packages() -> list[str]:
    """Return the folders of our three packages, so that workers need no installed wheel."""
    return [str(_home() / name) for name in ("jobs", "operators", "storage")]


@contextmanager
def _stderr_held_back(verbose: bool) -> Iterator[None]:
    """Hold back what Ray's native code says at its start, and show it if the start fails."""
    if verbose:
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        real = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(real, held.read())
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)


def _quieten(verbose: bool) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers inherit this. glibc otherwise keeps a heap per thread, and an actor that writes one
    # shard while it computes the next grows with the corpus (1.5 GiB instead of 1.1 at 40,000).
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "0" if verbose else "1")
    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Errors reach the user through the exception, as one line.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
