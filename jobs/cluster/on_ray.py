"""The Ray side of the seam: start or join a cluster, and run units on it as Ray Data plans.

The only module that imports ray. What travels is a unit and a result, pickled into a column. What a
worker counts of its units it puts into the cluster's store of keys, where the driver may look: that
needs no process more, and no worker that dies or joins is missed.
"""

from __future__ import annotations

import logging
import os
import pickle
import struct
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib import import_module
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import ray.data
from ray.autoscaler.sdk import request_resources
from ray.data.context import ShuffleStrategy
from ray.exceptions import RayError
from ray.experimental import internal_kv
from ray.job_config import JobConfig

from layerrank.jobs.cluster.errors import InWorkerError, sockets_in_tmpdir, travelling
from layerrank.jobs.cluster.pool import (
    HOME,
    MOST_BUCKETS,
    TASK_CPUS,
    CannotScheduleError,
    Feed,
    Make,
    Pool,
    Split,
    TorchDevice,
    Work,
    Write,
)
from layerrank.jobs.cluster.tally import Counts, counting
from layerrank.jobs.config.blocks import ConfigError

_OBJECT_STORE_BYTES = 512 << 20  # texts, token ids and receipts; tensors never enter it
_POLL_SECONDS = 5.0
_TELL_SECONDS = 1.0
_NAMESPACE = "layerrank"
# How often Ray waits 40 s for a cluster that it joins: by itself 20 times.
_TRIES = "RAY_gcs_server_port_wait_time_s"
_ROW = struct.Struct("5q")  # of a unit: its number, and what was counted of it
_ONE: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}  # a batch is one unit
# Units inside an actor: one in the model, the others being written. A GPU makes vectors several
# times faster than one thread writes them.
_CONCURRENT_UNITS = {"cpu": 2, "cuda": 4}


@dataclass
class RayCluster:
    """A Ray cluster that starts when there is work for it, here or at `address`."""

    address: str | None
    wait_seconds: float
    verbose: bool
    say: Callable[[str], None]
    preload: Sequence[str] = ()  # modules that the driver needs, sooner or later
    _started: bool = False
    _plan: str = ""  # the one that was begun last
    _mine: str = field(default_factory=lambda: f"{uuid.uuid4().hex}-")  # what its plans begin with
    name = "ray"

    @property
    def may_grow(self) -> bool:
        """Whether this is somebody's cluster, which may start more nodes, and not this machine."""
        return bool(self.address)

    def resources(self, *, gpu: bool) -> dict[str, float]:
        """Return the cluster's total resources, waiting for a GPU worker that has yet to start."""
        self._start()
        return self._await(gpu=gpu)

    def begin(self) -> None:
        """Start nothing yet: what is imported and looked at first is done before a job joins."""

    def describe(self, work: int | Pool, device: TorchDevice) -> tuple[int, str]:
        """Return how many tasks or actors run at once, at most; where, and what feeds them."""
        where = "GPU" if device == "cuda" else "CPU"
        if isinstance(work, int):
            return work, f"{work} task{'' if work == 1 else 's'} on {where}"
        return work.size, (
            f"{work.size} actor{'' if work.size == 1 else 's'} on {where}, fed by "
            f"{work.readers} reader{'' if work.readers == 1 else 's'}"
        )

    def each(self, units: Sequence[Any], work: Work, *, cpus: float, gpus: float) -> Iterator[Any]:
        """Yield the result of every unit, as they finish; anywhere in the cluster."""
        self._start()
        plan = _from_units(self._numbered(units)).map_batches(
            partial(_of_unit, work), **_ONE, num_cpus=cpus, num_gpus=gpus
        )
        return self._results(plan)

    def actors(self, units: Sequence[Any], make: Make, feed: Feed, pool: Pool) -> Iterator[Any]:
        """Yield the result of every unit from a pool of actors, fed by a pool of reading tasks."""
        self._start()
        plan = (
            _from_units(self._numbered(units))
            .map_batches(
                partial(_of_unit, feed),
                **_ONE,
                num_cpus=TASK_CPUS,
                compute=ray.data.TaskPoolStrategy(size=pool.readers),
            )
            .map_batches(
                _Actor,
                fn_constructor_args=(make,),
                **_ONE,
                num_cpus=pool.num_cpus,
                num_gpus=pool.num_gpus,
                compute=ray.data.ActorPoolStrategy(
                    min_size=pool.size,
                    max_size=pool.most,
                    max_concurrent_calls_per_actor=_CONCURRENT_UNITS[pool.device],
                    max_tasks_in_flight_per_actor=_CONCURRENT_UNITS[pool.device],
                    enable_true_multi_threading=True,
                ),
            )
        )
        return self._results(plan)

    def shuffle(
        self, units: Sequence[Any], split: Split, write: Write, *, key: str, groups: int
    ) -> Iterator[Any]:
        """Yield what `write` returns for the rows of every value of `key`."""
        self._start()
        plan = (
            _from_units(self._numbered(units))
            .map_batches(partial(_rows_of_unit, split), **_ONE, num_cpus=1)
            .groupby(key, num_partitions=min(groups, MOST_BUCKETS))
            .map_groups(partial(_of_rows, write), batch_format="pyarrow", num_cpus=1)
        )
        return self._results(plan)

    def counted(self) -> Counts:
        """Return what the workers have counted of all units of the plan that was begun last."""
        keys = internal_kv._internal_kv_list(self._plan, namespace=_NAMESPACE) if self._plan else []
        of_units: dict[int, Counts] = {}
        for key in keys:
            content = internal_kv._internal_kv_get(key, namespace=_NAMESPACE) or b""
            for number, *counts in _ROW.iter_unpack(content):
                # Several have counted a unit if one of them died: what is done of it is the most.
                before = of_units.get(number, Counts())
                of_units[number] = Counts(*map(max, zip(before, counts, strict=True)))
        return Counts(*map(sum, zip(*of_units.values(), strict=True)))

    def _numbered(self, units: Sequence[Any]) -> list[_Unit]:
        self._plan = f"{self._mine}{uuid.uuid4().hex}-"
        return [_Unit(self._plan, number, unit) for number, unit in enumerate(units)]

    def _results(self, plan: ray.data.Dataset) -> Iterator[Any]:
        """Yield what the units of a plan return, and forget what was counted of them."""
        try:
            yield from _results(plan)
        finally:
            if self._plan:
                _forget(self._plan)
            self._plan = ""

    def close(self) -> None:
        """Stop what was started, or leave the cluster that was joined."""
        if self._started:
            _forget(self._mine)  # what was told of a plan after its end
            ray.shutdown()
            self._started = False

    def _start(self) -> None:
        """Start a local cluster or join the one at `address`; nothing if that was done before."""
        if self._started:
            return
        # The folder that a job was started in may be made anew while it joins, as by a second node
        # of this machine: what comes from there is imported before.
        for name in self.preload:
            import_module(name)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # A worker does the user's work: it is no less urgent than what else runs here.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # One that has imported what the stages need is kept for the next stage.
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
        # Workers inherit this. glibc otherwise keeps a heap per thread, and an actor that writes
        # one shard while it computes the next grows with the corpus (1.5 GiB instead of 1.1 at
        # 40,000).
        os.environ.setdefault("MALLOC_ARENA_MAX", "1")
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "0" if self.verbose else "1")
        if self.verbose:
            logging.basicConfig(level=logging.INFO, stream=sys.stderr)
        else:
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            logging.getLogger("ray").setLevel(logging.ERROR)
            # Errors reach the user through the exception, as one line.
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        options: dict[str, Any] = {
            "logging_level": logging.INFO if self.verbose else logging.ERROR,
            "log_to_driver": self.verbose,
            "job_config": JobConfig(_py_driver_sys_path=_WorkerPath([str(HOME)])),
        }
        if self.address is None:
            options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
        elif "RAY_JOB_ID" not in os.environ and "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
            # Workers need no installed wheel.
            options["runtime_env"] = {"py_modules": [str(HOME / "layerrank")]}
        if self.address is not None:
            os.environ.setdefault(_TRIES, "1")
            self.say(f"  joining the Ray cluster at {self.address}")
        try:
            with _stderr_held_back(self.verbose), sockets_in_tmpdir():
                ray.init(address=self.address or "local", **options)
        except ConnectionError as error:
            raise ConfigError(f"cannot reach the Ray cluster at {self.address}: {error}") from error
        self._started = True
        self._await(gpu=False)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = self.verbose
        context.print_on_execution_start = self.verbose
        # The hash shuffles start a pool of aggregators: 8 s more for a small corpus (2 cores).
        context.shuffle_strategy = ShuffleStrategy.SORT_SHUFFLE_PULL_BASED

    def _await(self, *, gpu: bool) -> dict[str, float]:
        """Wait until the cluster has a CPU, and a `gpu` if one is wanted.

        An autoscaling cluster shows only its head at first: what is missing is asked for and
        awaited for `cluster.wait_seconds`, saying so every few seconds, then asked for no longer.
        """
        needed = {"CPU": 1, **({"GPU": 1} if gpu else {})}
        deadline = time.monotonic() + (self.wait_seconds if self.may_grow else 0)
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


def _forget(plan: str) -> None:
    """Forget what was counted of a plan, or of all that begin so; if that fails, it stays."""
    with suppress(RayError, OSError):
        if internal_kv._internal_kv_initialized():  # it was not left meanwhile
            internal_kv._internal_kv_del(plan, del_by_prefix=True, namespace=_NAMESPACE)


class _Unit(NamedTuple):
    """A unit, what was read of it, or its result: of which plan, and the how manyth of it."""

    plan: str
    number: int
    value: Any


def _from_units(units: Sequence[_Unit]) -> ray.data.Dataset:
    """Return a Dataset with one block per unit of work: Ray would otherwise coalesce small rows."""
    rows = [{"unit": pickle.dumps(unit)} for unit in units]
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def _results(plan: ray.data.Dataset) -> Iterator[Any]:
    """Yield what the units of a plan return, as they finish; InWorkerError if one failed."""
    for row in plan.iter_rows():
        result = pickle.loads(row["result"]).value
        if isinstance(result, _Failed):
            raise InWorkerError(result.error) from result.error
        yield result


def _packed(value: object, column: str) -> pa.Table:
    return pa.table({column: pa.array([pickle.dumps(value)], pa.large_binary())})


def _unit(batch: pa.Table) -> _Unit:
    (column,) = batch.columns
    unit: _Unit = pickle.loads(column[0].as_py())
    return unit


def _of_unit(work: Work, batch: pa.Table) -> pa.Table:
    unit = _unit(batch)
    if isinstance(unit.value, _Failed):  # what should have read it has failed
        return batch
    try:
        with counting(partial(_tell, unit.plan, unit.number)):
            found = work(unit.value)
        return _packed(unit._replace(value=found), "result")
    except Exception as error:  # noqa: BLE001  (raised again in the driver)
        return _packed(unit._replace(value=_Failed(travelling(error))), "result")


def _rows_of_unit(split: Split, batch: pa.Table) -> Iterator[pa.Table]:
    yield from split(_unit(batch).value)


def _of_rows(write: Write, rows: pa.Table) -> pa.Table:
    return _packed(_Unit("", 0, write(rows)), "result")


class _Failed(NamedTuple):
    """What stands for the result of a unit that failed.

    Errors travel as results: of one that Ray sees the driver gets the words alone, and each time it
    prints a traceback on standard output.
    """

    error: Exception


class _Actor:
    """Holds the worker that `make` builds, for many units; one that cannot be built fails them."""

    def __init__(self, make: Make) -> None:
        self._failed: _Failed | None = None
        try:
            self._worker = make()
        except Exception as error:  # noqa: BLE001  (raised again in the driver)
            self._failed = _Failed(travelling(error))

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self._failed:
            return _packed(_unit(batch)._replace(value=self._failed), "result")
        return _of_unit(self._worker, batch)


class _Teller:
    """Puts what this process counts of a plan where the driver reads it, by a thread of its own."""

    def __init__(self) -> None:
        self._key = self._plan = ""
        self._counts: dict[int, Counts] = {}
        self._changed = threading.Event()
        threading.Thread(target=self._keep_telling, daemon=True).start()

    def take(self, plan: str, number: int, counts: Counts) -> None:
        """Take what was counted of a unit."""
        if plan != self._plan:
            self._counts, self._key, self._plan = {}, f"{plan}{uuid.uuid4().hex}", plan
        self._counts[number] = counts
        self._changed.set()

    def _keep_telling(self) -> None:
        while self._changed.wait():
            self._changed.clear()
            key, rows = self._key, [*self._counts.items()]
            content = b"".join(_ROW.pack(number, *counts) for number, counts in rows)
            internal_kv._internal_kv_put(key, content, namespace=_NAMESPACE)
            time.sleep(_TELL_SECONDS)


@lru_cache(maxsize=1)
def _teller() -> _Teller:
    return _Teller()


def _tell(plan: str, number: int, counts: Counts) -> None:
    _teller().take(plan, number, counts)


class _WorkerPath(list[str]):
    """What Ray puts first on a worker's path: the folder of our packages, and nothing else.

    Ray extends it with the folder that the command was started in, the last the first to be
    searched, and whatever that folder has of the name of a module of ours would be taken for it.
    """

    def extend(self, _folders: Iterable[str]) -> None:
        """Add nothing."""


@contextmanager
def _stderr_held_back(verbose: bool) -> Iterator[None]:
    """Hold back what Ray's native code says at its start, and show it if the start fails.

    Not if a cluster is not there or our own check fails: such an error says it all.
    """
    if verbose:
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        real = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except (ConnectionError, ConfigError):
            raise
        except BaseException:
            held.seek(0)
            os.write(real, held.read())
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)
