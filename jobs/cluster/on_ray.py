"""The Ray side of the seam: units as Ray Data plans, on a cluster of `ray_session`.

What travels is a unit and a result, pickled into a column. What a
worker counts of its units it puts into the cluster's store of keys, where the driver may look: that
needs no process more, and no worker that dies or joins is missed.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)
from ray.experimental import internal_kv

from layerrank.jobs.cluster.errors import (
    InWorkerError,
    WorkerDiedError,
    raised_within,
    travelling,
)
from layerrank.jobs.cluster.pool import (
    MOST_BUCKETS,
    TASK_CPUS,
    Feed,
    Make,
    Pool,
    Split,
    TorchDevice,
    Work,
    Write,
)
from layerrank.jobs.cluster.ray_session import SOON_SECONDS, Session
from layerrank.jobs.cluster.tally import Counts, counting
from layerrank.jobs.cluster.watch import EngineError, Sign, Watch

_TELL_SECONDS = 1.0
_NAMESPACE = "layerrank"
_AT_WORK, _COUNTED = "at-work-", "counted-"  # of the keys of what a process tells of a plan
_ROW = struct.Struct("6q")  # of a unit: its number, and what was counted of it
_LOOK_SECONDS = 0.5  # between two looks at the processes that Ray itself is made of
_INTERRUPTED_SECONDS = 3.0  # until a plan that was interrupted has ended
_ONE: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}  # a batch is one unit
_ATTEMPTS = 3  # of a unit whose worker died, and of actors that die as they start
_SILENT_BEATS = 4.0  # after which a process may have died: it tells of itself at each
_STARTING = -1  # in place of the number of a unit
_SHUFFLING = -2
_DIED = (NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError)
# Units inside an actor: one in the model, the others being written. A GPU makes vectors several
# times faster than one thread writes them.
_CONCURRENT_UNITS = {"cpu": 2, "cuda": 4}


_UnderWay = dict[int, list[Sign]]  # the number of a unit -> the processes that have it


@dataclass
class RayCluster:
    """A Ray cluster that starts when there is work for it, here or at `address`."""

    session: Session
    stall_seconds: float
    _plan: str = ""  # the one that was begun last
    _beat: float = 30.0  # seconds between two times that a process tells of itself
    # A process -> what time it has told last, by its own clock, and when that was new here.
    _heard: dict[str, tuple[float, float]] = field(default_factory=dict)
    _mine: str = field(default_factory=lambda: f"{uuid.uuid4().hex}-")  # what its plans begin with
    name = "ray"

    @property
    def may_grow(self) -> bool:
        """Whether this is somebody's cluster, which may start more nodes, and not this machine."""
        return bool(self.session.address)

    def resources(self, *, gpu: bool) -> dict[str, float]:
        """Return the cluster's total resources, waiting for a GPU worker that has yet to start."""
        self.session.start()
        return self.session.awaited(gpu=gpu)

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
        self.session.start()
        plan = _from_units(self._numbered(units)).map_batches(
            partial(_of_unit, work), **_ONE, num_cpus=cpus, num_gpus=gpus
        )
        return self._results(plan, len(units))

    def actors(self, units: Sequence[Any], make: Make, feed: Feed, pool: Pool) -> Iterator[Any]:
        """Yield the result of every unit from a pool of actors, fed by a pool of reading tasks."""
        self.session.start()
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
        self.session.start()
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
                    self.session.require_there()
                    raise _of_ray(unit)
                watch.done(_SHUFFLING if shuffles else unit.number)
                if isinstance(unit.value, _Failed):
                    raise InWorkerError(unit.value.error) from unit.value.error
                yield unit.value
            taking.join()
        except EngineError:
            _interrupt(taking)
            self._plan = ""
            self.close(keeps=True)  # what comes after, as of another checkpoint, begins anew
            raise
        finally:
            if not _interrupt(taking):
                self.close()  # with it ends what would write on
            if self._plan:
                with suppress(TimeoutError):  # one that was told to end with us does not answer
                    self.session.ask(partial(_forget, self._plan), SOON_SECONDS)
            self._plan = ""

    def _next(
        self, found: SimpleQueue[Any], watch: Watch, under_way: Callable[[], _UnderWay]
    ) -> Any:  # noqa: ANN401  (a unit with its result, an error, or None at the end)
        watch.resume()
        while True:
            try:
                return found.get(timeout=min(_LOOK_SECONDS, watch.pause))
            except Empty:
                self.session.require_there()
                if watch.is_due:
                    watch.look(under_way())

    def close(self, *, keeps: bool = False) -> None:
        """Stop what was started, whose logs it may keep, or leave the cluster that was joined."""
        # What was told of a plan after its end is forgotten last.
        self.session.end(partial(_forget, self._mine), keeps=keeps)


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
