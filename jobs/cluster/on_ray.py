"""The Ray side of the seam: start or join a cluster, and run units on it as Ray Data plans.

The only module that imports ray. What travels is a unit and a result, pickled into a column. What a
worker counts of its units it puts into the cluster's store of keys, where the driver may look: that
needs no process more, and no worker that dies or joins is missed.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import pickle
import secrets
import shutil
import socket
import struct
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import ray.data
from ray._private import ray_constants, services, worker
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.autoscaler.sdk import request_resources
from ray.data.context import ShuffleStrategy
from ray.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)
from ray.experimental import internal_kv
from ray.job_config import JobConfig

from layerrank.jobs.cluster.errors import (
    InWorkerError,
    WorkerDiedError,
    raised_within,
    sockets_in,
    travelling,
)
from layerrank.jobs.cluster.left import at_work_in, descendants, end_all
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
from layerrank.jobs.cluster.watch import EngineError, Sign, Watch
from layerrank.jobs.config.blocks import ConfigError

_OBJECT_STORE_BYTES = 512 << 20  # texts, token ids and receipts; tensors never enter it
_POLL_SECONDS = 5.0
_TELL_SECONDS = 1.0
_NAMESPACE = "layerrank"
_AT_WORK, _COUNTED = "at-work-", "counted-"  # of the keys of what a process tells of a plan
# How often Ray waits 40 s for a cluster that it joins, by itself 20 times; and how many seconds for
# one that it starts.
_TRIES = "RAY_gcs_server_port_wait_time_s"
_ROW = struct.Struct("6q")  # of a unit: its number, and what was counted of it
_JOIN_SECONDS = 55.0  # until a cluster that does not answer is not there
_START_SECONDS = 120.0  # until one of this machine has started, which a busy one takes long for
_STOP_SECONDS = 8.0
_SOON_SECONDS = 2.0
_LOOK_SECONDS = 0.5  # between two looks at the processes that Ray itself is made of
_INTERRUPTED_SECONDS = 3.0  # until a plan that was interrupted has ended
_ONE: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}  # a batch is one unit
_ATTEMPTS = 3  # of a unit whose worker died, and of actors that die as they start
_SILENT_BEATS = 4.0  # after which a process may have died: it tells of itself at each
_STARTING = -1  # in place of the number of a unit
_SHUFFLING = -2
_DIED = (NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError)
_TOKEN = secrets.token_hex(32)  # of clusters of this machine
_RAYS = str(Path(ray.__file__).parent)  # where its programs lie
_VITAL = ("gcs_server", "raylet")  # of the processes of a cluster of this machine
# Units inside an actor: one in the model, the others being written. A GPU makes vectors several
# times faster than one thread writes them.
_CONCURRENT_UNITS = {"cpu": 2, "cuda": 4}


_UnderWay = dict[int, list[Sign]]  # the number of a unit -> the processes that have it


@dataclass
class RayCluster:
    """A Ray cluster that starts when there is work for it, here or at `address`."""

    address: str | None
    wait_seconds: float
    stall_seconds: float
    verbose: bool
    say: Callable[[str], None]
    preload: Sequence[str] = ()  # modules that the driver needs, sooner or later
    _started: bool = False
    _aside: _Aside | None = None  # what starts Ray and stops it, once there is work
    _folder: str = ""  # of Ray's files on this machine, if it starts here
    _keeps: bool = False  # the folder, for its logs
    _plan: str = ""  # the one that was begun last
    _beat: float = 30.0  # seconds between two times that a process tells of itself
    # A process -> what time it has told last, by its own clock, and when that was new here.
    _heard: dict[str, tuple[float, float]] = field(default_factory=dict)
    _told_ray: list[str] = field(default_factory=list)  # the variables that were set for it
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
        return self._results(plan, len(units))

    def actors(self, units: Sequence[Any], make: Make, feed: Feed, pool: Pool) -> Iterator[Any]:
        """Yield the result of every unit from a pool of actors, fed by a pool of reading tasks."""
        self._start()
        numbered = self._numbered(units)
        plan = (
            _from_units(numbered)
            .map_batches(
                partial(_of_unit, feed),
                **_ONE,
                num_cpus=TASK_CPUS,
                compute=ray.data.TaskPoolStrategy(size=pool.readers),
            )
            .map_batches(
                _Actor,
                fn_constructor_args=(make, numbered[0]._replace(number=_STARTING, value=None)),
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
        return self._results(plan, len(units), actors=pool.most)

    def shuffle(
        self, units: Sequence[Any], split: Split, write: Write, *, key: str, groups: int
    ) -> Iterator[Any]:
        """Yield what `write` returns for the rows of every value of `key`."""
        self._start()
        numbered = self._numbered(units)
        gathered = numbered[0]._replace(number=len(units), value=None)
        plan = (
            _from_units(numbered)
            .map_batches(partial(_rows_of_unit, split), **_ONE, num_cpus=1)
            .groupby(key, num_partitions=min(groups, MOST_BUCKETS))
            .map_groups(partial(_of_rows, write, gathered), batch_format="pyarrow", num_cpus=1)
        )
        return self._results(plan, len(units) + 1, shuffles=True)

    def counted(self) -> Counts:
        """Return what the workers have counted of all units of the plan that was begun last."""
        of_units: dict[int, Counts] = {}
        for content in self._told(_COUNTED):
            for number, *counts in _ROW.iter_unpack(content):
                # Several have counted a unit if one of them died: what is done of it is the most.
                before = of_units.get(number, Counts())
                of_units[number] = Counts(*map(max, zip(before, counts, strict=True)))
        return Counts(*map(sum, zip(*of_units.values(), strict=True)))

    def _told(self, kind: str) -> list[bytes]:
        """Return what the processes that work on the plan have told of a kind."""
        if not self._plan:
            return []
        keys = internal_kv._internal_kv_list(f"{self._plan}{kind}", namespace=_NAMESPACE)
        found = (internal_kv._internal_kv_get(key, namespace=_NAMESPACE) for key in keys)
        return [content for content in found if content]

    def _under_way(self, actors: int, shuffles: bool) -> _UnderWay:
        """Return what is known of the processes at their units.

        WorkerDiedError if more have taken up one of them than attempts are made: but for the last,
        these have died. Beside `actors` that start now, so have those that began to.
        """
        found, now = _UnderWay(), time.monotonic()
        for content in self._told(_AT_WORK):
            who, told_at, cpu_seconds, units = json.loads(content)
            if who not in self._heard or self._heard[who][0] != told_at:
                self._heard[who] = told_at, now
            is_there = now - self._heard[who][1] < _SILENT_BEATS * self._beat
            for number, counts in units:
                sign = Sign(who, Counts(*counts), cpu_seconds, is_there)
                found.setdefault(number, []).append(sign)
        for number, signs in found.items():
            lasting = actors - 1 if number == _STARTING else 0
            if len(signs) - lasting > _ATTEMPTS and not shuffles:
                raise _died(", ".join(sign.worker for sign in signs))
        if shuffles and not any(sign.is_there for signs in found.values() for sign in signs):
            # Tasks of Ray's own, which tell nothing, fill its store.
            held = Counts(int(ray.available_resources().get("object_store_memory", 0)))
            found[_SHUFFLING] = [Sign("no task of a shuffle ends", held, 0.0)]
        return found

    def _numbered(self, units: Sequence[Any]) -> list[_Unit]:
        self._plan = f"{self._mine}{uuid.uuid4().hex}-"
        self._beat = Watch(self.stall_seconds, len(units)).pause
        self._heard.clear()
        return [_Unit(self._plan, number, unit, self._beat) for number, unit in enumerate(units)]

    def _results(
        self, plan: ray.data.Dataset, total: int, *, actors: int = 0, shuffles: bool = False
    ) -> Iterator[Any]:
        """Yield what the units of a plan return, and forget what was counted of them.

        InWorkerError if one failed, an EngineError if its worker died again and again, if one does
        not answer, or if Ray is not there any more.
        """
        watch, looks = Watch(self.stall_seconds, total), _Looks(self._under_way)
        found = SimpleQueue[Any]()
        taking = threading.Thread(target=_take, args=(plan, found), daemon=True)
        taking.start()
        try:
            under_way = partial(looks.last, actors, shuffles)
            while (unit := self._next(found, watch, under_way)) is not None:
                if isinstance(unit, Exception):
                    taking.join()
                    self._require_ray()
                    raise _of_ray(unit)
                watch.done(_SHUFFLING if shuffles else unit.number)
                if isinstance(unit.value, _Failed):
                    raise InWorkerError(unit.value.error) from unit.value.error
                yield unit.value
            taking.join()
        except EngineError:
            _interrupt(taking)
            self._keeps, self._plan = True, ""
            self.close()  # what comes after, as of another checkpoint, begins anew
            raise
        finally:
            if not _interrupt(taking):
                self.close()  # with it ends what would write on
            if self._plan and self._aside:  # one that was told to end with us does not answer
                with suppress(TimeoutError):
                    self._aside.do(partial(_forget, self._plan), _SOON_SECONDS)
            self._plan = ""

    def _next(
        self, found: SimpleQueue[Any], watch: Watch, under_way: Callable[[], _UnderWay]
    ) -> Any:  # noqa: ANN401  (a unit with its result, an error, or None at the end)
        watch.resume()
        while True:
            try:
                return found.get(timeout=min(_LOOK_SECONDS, watch.pause))
            except Empty:
                self._require_ray()
                if watch.is_due:
                    watch.look(under_way())

    def _require_ray(self) -> None:
        """EngineError if a process has ended that a cluster of this machine cannot be without."""
        node = worker._global_node
        if self._folder and node is not None:
            for name, process in node.dead_processes():
                if name in _VITAL:
                    raise EngineError(
                        f"Ray's {name}, process {process.pid} of this machine, has ended (exit "
                        f"code {process.returncode}; -9 is a kill, as for want of memory); its "
                        f"logs stay in {self._folder}; the same command goes on from here"
                    )

    def close(self) -> None:
        """Stop what was started, or leave the cluster that was joined."""
        if self._aside is None:
            return
        aside, self._aside = self._aside, None
        if self._folder and not self._started:
            end_all(partial(_of_cluster, self._folder))  # which ends the start
        patience = _STOP_SECONDS if self._started else _SOON_SECONDS if self._folder else 0.0
        with suppress(Exception):  # it does not answer, or is gone: then it is ended
            aside.do(partial(self._leave, self._started), patience)
        aside.end()
        worker.print_to_stdstream = _printed
        while self._told_ray:  # another cluster, or one that starts, is told something else
            os.environ.pop(self._told_ray.pop(), None)
        self._started = False
        if folder := self._folder:
            end_all(partial(_of_cluster, folder))
            if self._keeps or self.verbose:
                self.say(f"  Ray's logs stay in {folder}")
            else:
                shutil.rmtree(folder, ignore_errors=True)
        self._folder, self._keeps = "", False

    def _leave(self, is_there: bool) -> None:
        if is_there and not self._folder:
            _forget(self._mine)  # what was told of a plan after its end
        ray.shutdown()

    def _tell_ray(self, **variables: str) -> None:
        """Set variables for Ray and its workers until it is left, unless the user has set them."""
        for name in variables.keys() - os.environ.keys():
            os.environ[name] = variables[name]
            self._told_ray.append(name)

    def _prepare_here(self) -> None:
        """Make the folder of a cluster of this machine, and let nobody else in.

        The name is short: a path of a socket has 107 bytes at most.
        """
        within = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
        within.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.mkdtemp(prefix="lr-", dir=within)
        # By itself Ray gives up after 30 s; a busy machine takes longer.
        self._tell_ray(**{_TRIES: f"{_START_SECONDS:.0f}", "RAY_AUTH_MODE": "token"})
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            self._tell_ray(RAY_AUTH_TOKEN=_TOKEN)

    def _start(self) -> None:
        """Start a local cluster or join the one at `address`; nothing if that was done before."""
        if self._started:
            return
        # The folder that a job was started in may be made anew while it joins, as by a second node
        # of this machine: what comes from there is imported before.
        for name in self.preload:
            import_module(name)
        self._tell_ray(
            RAY_USAGE_STATS_ENABLED="0",
            # A worker does the user's work: it is no less urgent than what else runs here.
            RAY_worker_niceness="0",
            # One that has imported what the stages need is kept for the next stage.
            RAY_idle_worker_killing_time_threshold_ms="600000",
            # Workers inherit this. glibc otherwise keeps a heap per thread, and an actor that
            # writes one shard while it computes the next grows with the corpus (1.5 GiB instead of
            # 1.1 at 40,000).
            MALLOC_ARENA_MAX="1",
            RAY_DATA_DISABLE_PROGRESS_BARS="0" if self.verbose else "1",
        )
        if self.verbose:
            logging.basicConfig(level=logging.INFO, stream=sys.stderr)
        else:
            self._tell_ray(RAY_BACKEND_LOG_LEVEL="fatal")
            logging.getLogger("ray").setLevel(logging.CRITICAL)
            # Errors reach the user through the exception, as one line.
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        # Its native code has a handler for SIGTERM too, which aborts; this process has its own.
        ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
        options: dict[str, Any] = {
            "logging_level": logging.INFO if self.verbose else logging.CRITICAL,
            "log_to_driver": self.verbose,
            "job_config": JobConfig(_py_driver_sys_path=_WorkerPath([str(HOME)])),
        }
        if self.address is None:
            self._prepare_here()
            start: Callable[[], Any] = partial(_start_here, self._folder, **options)
            seconds = _START_SECONDS
        else:
            if "RAY_JOB_ID" not in os.environ and "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
                # Workers need no installed wheel.
                options["runtime_env"] = {"py_modules": [str(HOME / "layerrank")]}
            self._tell_ray(**{_TRIES: "1"})
            self.say(f"  joining the Ray cluster at {self.address}")
            start, seconds = partial(ray.init, address=self.address, **options), _JOIN_SECONDS
        if not self.verbose:
            worker.print_to_stdstream = lambda *_, **__: None  # what Ray tells of its workers
        if not ray.is_initialized():
            # What it keeps of the variables of a cluster before, its mode first: else a thread that
            # is left of that one may want a token that is not there.
            Config.initialize("")
            AuthenticationTokenLoader.instance().reset_cache()
        self._aside = _Aside()
        variable = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
        try:
            with _stderr_held_back(self.verbose, self._folder), sockets_in(variable):
                self._aside.do(start, seconds)
        except ConfigError:
            self.close()
            raise
        except Exception as error:
            folder, self._keeps = self._folder, True
            self.close()
            why = str(error) or f"no answer in {seconds:.0f} s"
            if self.address is not None:
                at = f"the Ray cluster at {self.address}"
                raise ConfigError(f"cannot reach {at}: {why}") from error
            raise EngineError(
                f"Ray did not start on this machine: {why}; its logs stay in {folder}; "
                "`--engine process` does without Ray"
            ) from error
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
    """A unit, what was read of it, or its result: of which plan, and the how manyth of it.

    Whoever works on it tells so every `beat` seconds.
    """

    plan: str
    number: int
    value: Any
    beat: float = 30.0


def _from_units(units: Sequence[_Unit]) -> ray.data.Dataset:
    """Return a Dataset with one block per unit of work: Ray would otherwise coalesce small rows."""
    rows = [{"unit": pickle.dumps(unit)} for unit in units]
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def _take(plan: ray.data.Dataset, found: SimpleQueue[Any]) -> None:
    """Give the units of a plan with their results as they finish, then None or an error."""
    with suppress(KeyboardInterrupt):  # nobody waits any more
        try:
            for bundle in plan.iter_internal_ref_bundles():
                for reference in bundle.block_refs:
                    block = ray.get(reference)
                    for row in block["result"].to_pylist() if block.num_rows else ():
                        found.put(pickle.loads(row))
            found.put(None)
        except Exception as error:  # noqa: BLE001  (raised again by who waits)
            found.put(error)


def _interrupt(taking: threading.Thread) -> bool:
    """End a plan that nobody waits for any more, as Ctrl-C would if it ran in the main thread.

    Whether it has ended: it may wait for what does not answer.
    """
    if taking.is_alive():
        name = ctypes.c_ulong(taking.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(name, ctypes.py_object(KeyboardInterrupt))
        taking.join(_INTERRUPTED_SECONDS)
    return not taking.is_alive()


def _of_ray(error: Exception) -> Exception:
    """Return what people are told of an error that Ray raises."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, _DIED):
        cause = getattr(cause, "cause", None) or cause.__cause__
    # An actor that could not be made, as of a module that is not there, has died of no want.
    is_of_making = getattr(cause, "actor_init_failed", False) and raised_within(str(cause))
    if cause is None or is_of_making:
        return error
    return _died(" ".join(str(cause).split()))


def _died(what: str) -> WorkerDiedError:
    return WorkerDiedError(
        f"workers died again and again, over the same piece of work or as they started: {what}; "
        "as for want of memory, which fewer of them (extract.workers) or smaller batches "
        "(extract.batch_tokens) need less of"
    )


class _Looks:
    """Looks at what the workers tell, in a thread of its own: the cluster may not answer."""

    def __init__(self, look: Callable[[int, bool], _UnderWay]) -> None:
        self._look = look
        self._found: _UnderWay | Exception = {}
        self._thread = threading.Thread()

    def last(self, actors: int, shuffles: bool) -> _UnderWay:
        """Return what was found last, and look again; raise what ended a look."""
        if not self._thread.is_alive():
            given = actors, shuffles
            self._thread = threading.Thread(target=self._see, args=given, daemon=True)
            self._thread.start()
        self._thread.join(_LOOK_SECONDS)
        if isinstance(self._found, Exception):
            raise self._found
        return self._found

    def _see(self, actors: int, shuffles: bool) -> None:
        try:
            with suppress(RayError, OSError):  # what is seen stays as it was
                self._found = self._look(actors, shuffles)
        except Exception as error:  # noqa: BLE001  (raised again by who waits)
            self._found = error


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
        with _teller().at_work(unit) as tell, counting(tell):
            found = work(unit.value)
        return _packed(unit._replace(value=found), "result")
    except Exception as error:  # noqa: BLE001  (raised again in the driver)
        return _packed(unit._replace(value=_Failed(travelling(error))), "result")


def _rows_of_unit(split: Split, batch: pa.Table) -> Iterator[pa.Table]:
    unit = _unit(batch)
    with _teller().at_work(unit):
        yield from split(unit.value)


def _of_rows(write: Write, unit: _Unit, rows: pa.Table) -> pa.Table:
    with _teller().at_work(unit):
        return _packed(unit._replace(value=write(rows)), "result")


class _Failed(NamedTuple):
    """What stands for the result of a unit that failed.

    Errors travel as results: of one that Ray sees the driver gets the words alone, and each time it
    prints a traceback on standard output.
    """

    error: Exception


class _Actor:
    """Holds the worker that `make` builds, for many units; one that cannot be built fails them."""

    def __init__(self, make: Make, starting: _Unit) -> None:
        self._failed: _Failed | None = None
        try:
            with _teller().at_work(starting) as tell, counting(tell):
                self._worker = make()
        except Exception as error:  # noqa: BLE001  (raised again in the driver)
            self._failed = _Failed(travelling(error))

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self._failed:
            return _packed(_unit(batch)._replace(value=self._failed), "result")
        return _of_unit(self._worker, batch)


class _Teller:
    """Tells what this process does of a plan where the driver reads it, by a thread of its own."""

    def __init__(self) -> None:
        self._worker = f"process {os.getpid()} of {socket.gethostname()}"
        self._name, self._plan = uuid.uuid4().hex, ""
        self._counts: dict[int, Counts] = {}
        self._at_work: list[int] = []
        self._beat = 0.0
        self._changed = threading.Event()
        threading.Thread(target=self._keep_telling, daemon=True).start()

    @contextmanager
    def at_work(self, unit: _Unit) -> Iterator[Callable[[Counts], None]]:
        """Tell of the work on a unit in the block; give what takes what is counted of it."""
        if unit.plan != self._plan:
            self._counts, self._plan, self._beat = {}, unit.plan, unit.beat
        self._at_work.append(unit.number)
        self._changed.set()
        self._tell_work()  # at once: what died of a unit has told that it had it
        try:
            yield partial(self._take, unit.number)
        finally:
            self._at_work.remove(unit.number)
            self._changed.set()

    def _take(self, number: int, counts: Counts) -> None:
        self._counts[number] = counts
        self._changed.set()

    def _keep_telling(self) -> None:
        while True:
            self._changed.wait(self._beat if self._at_work else None)
            self._changed.clear()
            self._tell_work()
            rows = [*self._counts.items()]
            self._put(_COUNTED, b"".join(_ROW.pack(number, *counts) for number, counts in rows))
            time.sleep(min(_TELL_SECONDS, self._beat))

    def _tell_work(self) -> None:
        units = [(number, self._counts.get(number, Counts())) for number in [*self._at_work]]
        content = json.dumps([self._worker, time.monotonic(), time.process_time(), units])
        self._put(_AT_WORK, content.encode())

    def _put(self, kind: str, content: bytes) -> None:
        with suppress(RayError, OSError):  # as the cluster ends
            key = f"{self._plan}{kind}{self._name}"
            internal_kv._internal_kv_put(key, content, namespace=_NAMESPACE)


@lru_cache(maxsize=1)
def _teller() -> _Teller:
    return _Teller()


class _Aside:
    """A thread that starts Ray and stops it: whoever waits for it may be told to end meanwhile.

    What it starts ends with the thread that has started it, and so the thread lives as long.
    """

    def __init__(self) -> None:
        self._asked = SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]()
        threading.Thread(target=self._serve, daemon=True).start()

    def do(self, work: Callable[[], Any], seconds: float) -> None:
        """Do one thing after what was asked before; TimeoutError if it takes longer."""
        done = Future[Any]()
        self._asked.put((done, work))
        done.result(seconds)

    def end(self) -> None:
        """End the thread when it has done what it does."""
        self._asked.put(None)

    def _serve(self) -> None:
        while asked := self._asked.get():
            done, work = asked
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001  (raised again by who waits)
                done.set_exception(error)


def _start_here(folder: str, **options: Any) -> None:  # noqa: ANN401  (those of ray.init)
    """Start Ray on this machine, for this process and its user alone.

    Its files lie in a folder of ours, since Ray lets everybody into its own; it listens on the
    loopback, and takes requests with a token that nobody else knows.
    """
    replaced = {"resolve_ip_for_localhost": str, "get_node": _node_when_there}
    before = {name: getattr(services, name) for name in replaced}
    for name, function in replaced.items():
        setattr(services, name, function)
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=str(Path(folder, "r")),
            _node_ip_address="127.0.0.1",
            **options,
        )
    finally:
        for name, function in before.items():
            setattr(services, name, function)


_printed = worker.print_to_stdstream
_get_node: Callable[..., Any] = services.get_node


def _node_when_there(*named: Any) -> Any:  # noqa: ANN401  (those of Ray's function)
    """Return what Ray knows of a node, as soon as it does."""
    until = time.monotonic() + _START_SECONDS
    while True:
        try:
            return _get_node(*named)
        except RuntimeError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.2)


def _of_cluster(folder: str) -> set[int]:
    """Return the processes of the cluster of this machine whose files lie in a folder."""
    found = at_work_in(folder, _RAYS)
    return found | descendants(*found)


class _WorkerPath(list[str]):
    """What Ray puts first on a worker's path: the folder of our packages, and nothing else.

    Ray extends it with the folder that the command was started in, the last the first to be
    searched, and whatever that folder has of the name of a module of ours would be taken for it.
    """

    def extend(self, _folders: Iterable[str]) -> None:
        """Add nothing."""


@contextmanager
def _stderr_held_back(verbose: bool, folder: str) -> Iterator[None]:
    """Put what Ray's native code says at its start with its logs, or nowhere: the error says it."""
    if verbose:
        yield
        return
    sys.stderr.flush()
    with Path(folder, "start.log").open("wb") if folder else tempfile.TemporaryFile() as held:
        real = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(real, 2)
            os.close(real)
