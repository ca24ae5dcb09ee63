"""The process side of the seam: a pool of processes of this machine that lives through all stages.

A server process imports what the workers need once and then forks them, so that a worker is there
in milliseconds. A worker gets the plan it works on once, pickled, and then unit after unit. One
that dies is replaced, and its unit is tried again; all end with the driver, however that ends. What
a worker counts of a unit it writes into a file, where the driver may look.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import shutil
import signal
import struct
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from joblib import cpu_count

from layerrank.jobs.cluster.errors import (
    InWorkerError,
    died,
    travelling,
)
from layerrank.jobs.cluster.left import status
from layerrank.jobs.cluster.pool import (
    HOME,
    MOST_BUCKETS,
    Feed,
    Make,
    Pool,
    Split,
    TorchDevice,
    Work,
    Write,
    sockets_in,
)
from layerrank.jobs.cluster.tally import Counts, counting
from layerrank.jobs.cluster.watch import Sign, Watch

_ATTEMPTS = 3  # of a unit whose worker died
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}  # as Ray gives a task of one CPU
_PRINTED = "printed"  # the file in which what the workers print ends
_SHOWN_BYTES = 2000  # of what a worker printed before it died
_COUNTED = "counted"  # the file in which every unit of the plan has a row of counts
_ROW = struct.Struct("5q")
# What a terminal or a scheduler sends to the whole group of processes: the driver ends the others.
_THE_DRIVERS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class Processes:
    """A pool of as many processes as this machine has CPUs; they start when there is work."""

    name = "process"
    may_grow = False

    def __init__(
        self, preload: Sequence[str] = (), *, stall_seconds: float = 600, verbose: bool = False
    ) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["layerrank.jobs.cluster.server", *preload])
        self._size = cpu_count()
        self._workers: list[_Worker] = []
        self._is_verbose, self._stall_seconds = verbose, stall_seconds
        # Of temporary files, once there are workers; it goes with the driver.
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._is_busy = False

    def resources(self, *, gpu: bool) -> dict[str, float]:
        """Return the CPUs of this machine: its GPUs are Ray's to share out."""
        del gpu
        return {"CPU": float(self._size)}

    def begin(self) -> None:
        """Let the server import what the workers need."""
        _start_server()

    def describe(self, work: int | Pool, device: TorchDevice) -> tuple[int, str]:
        """Return how many processes run at once, at most; and that they feed themselves."""
        del device
        count = min(work if isinstance(work, int) else work.size, self._size)
        processes = f"{count} process{'' if count == 1 else 'es'}"
        if isinstance(work, int):
            return count, f"{processes} of this machine"
        return count, f"{processes} on CPU, each reads for itself"

    def each(self, units: Sequence[Any], work: Work, *, cpus: float, gpus: float) -> Iterator[Any]:
        """Yield the result of every unit, as they finish."""
        del cpus, gpus
        return self._run(units, work, self._size)

    def actors(self, units: Sequence[Any], make: Make, feed: Feed, pool: Pool) -> Iterator[Any]:
        """Yield the result of every unit from workers that `make` builds once in each process."""
        return self._run(units, feed, min(pool.size, self._size), make)

    def shuffle(
        self, units: Sequence[Any], split: Split, write: Write, *, key: str, groups: int
    ) -> Iterator[Any]:
        """Yield what `write` returns for the rows of every value of `key`.

        The rows of a bucket of keys meet in files of a temporary folder, and never in the driver.
        """
        with tempfile.TemporaryDirectory(dir=self._temporary()) as folder:
            buckets = _Buckets(Path(folder), key, min(groups, MOST_BUCKETS), split, write)
            for _ in self._run([*enumerate(units)], buckets.spread, self._size):
                pass
            for results in self._run(range(buckets.count), buckets.gather, self._size):
                yield from results

    def counted(self) -> Counts:
        """Return what the workers have counted of all units of the plan that runs."""
        return Counts(*map(sum, zip(*self._of_units(), strict=True)))

    def _of_units(self) -> list[Counts]:
        """Return what is counted of the units, as far as one was, in their order."""
        if self._folder is None:
            return []
        try:
            content = Path(self._folder.name, _COUNTED).read_bytes()
        except FileNotFoundError:  # no plan yet, or no pool any more
            return []
        return [Counts(*row) for row in _ROW.iter_unpack(content)]

    def _under_way(self, busy: dict[_Worker, tuple[int, Any]]) -> dict[int, list[Sign]]:
        """Return what is known of the workers at their units."""
        counts, found = self._of_units(), dict[int, list[Sign]]()
        for worker, (number, _) in busy.items():
            of_unit = counts[number] if number < len(counts) else Counts()
            found[number] = [Sign(f"process {worker.process.pid}", of_unit, worker.cpu_seconds())]
        return found

    def close(self) -> None:
        """End every process."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _run(
        self, units: Sequence[Any], read: Work, at_once: int, make: Make | None = None
    ) -> Iterator[Any]:
        """Yield the result of every unit as it is read, or as the workers make it of that."""
        assert not self._is_busy, "one plan at a time: the workers of another are at work"
        plan = pickle.dumps((read, make))
        Path(self._temporary(), _COUNTED).write_bytes(b"")
        self._is_busy = True
        waiting = deque(enumerate(units))
        busy: dict[_Worker, tuple[int, Any]] = {}
        deaths: Counter[int] = Counter()
        watch = Watch(self._stall_seconds, len(units))
        try:
            while waiting or busy:
                for worker in self._idle(min(at_once, len(waiting) + len(busy)), busy):
                    if waiting:
                        busy[worker] = waiting.popleft()
                        worker.send(plan, *busy[worker])
                of_connection: dict[Any, _Worker] = {each.connection: each for each in busy}
                answered = wait([*of_connection], watch.pause)
                if watch.is_due:
                    watch.look(self._under_way(busy))
                for worker in [of_connection[each] for each in answered]:
                    index, unit = busy.pop(worker)
                    answer = worker.answer()
                    if answer is None:
                        deaths[index] += 1
                        said = self._drop(worker)
                        if deaths[index] == _ATTEMPTS:
                            raise died(_ATTEMPTS, worker.process.exitcode, said)
                        waiting.appendleft((index, unit))
                        continue
                    result, error = pickle.loads(answer)
                    if error is not None:
                        raise InWorkerError(error) from error
                    watch.done(index)
                    yield result
                    watch.resume()
        finally:
            for worker in busy:  # what was asked of them is not wanted any more
                self._drop(worker)
            self._is_busy = False

    def _idle(self, at_once: int, busy: dict[_Worker, tuple[int, Any]]) -> list[_Worker]:
        """Return workers without a unit, started if fewer than `at_once` are there."""
        if len(self._workers) < at_once:
            _start_server()
        while len(self._workers) < at_once:
            self._workers.append(_Worker(self._context, self._temporary(), self._is_verbose))
        return [worker for worker in self._workers[:at_once] if worker not in busy]

    def _drop(self, worker: _Worker) -> str:
        """End a worker, and return the end of what the workers printed."""
        worker.end()
        self._workers.remove(worker)
        printed = Path(self._temporary(), _PRINTED).read_bytes()
        return printed[-_SHOWN_BYTES:].decode(errors="replace")

    def _temporary(self) -> str:
        """Return the folder of temporary files, made if it is not there."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(
                prefix="layerrank-", ignore_cleanup_errors=True
            )
            Path(self._folder.name, _PRINTED).touch()
        return self._folder.name


class _Worker:
    """One process of the pool, as the driver sees it."""

    def __init__(self, context: ForkServerContext, folder: str, is_verbose: bool) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, dict(os.environ), folder, is_verbose), daemon=True
        )
        with _as_children_start():
            self.process.start()
        theirs.close()
        self._plan = b""

    def send(self, plan: bytes, number: int, unit: object) -> None:
        """Give the process a unit of a number, and the plan if it does not have it."""
        known = plan is self._plan
        self._plan = plan
        with suppress(OSError):  # it died; that there is no answer says so
            self.connection.send_bytes(pickle.dumps((None if known else plan, number, unit)))

    def answer(self) -> bytes | None:
        """Return what the process answered; None if it died."""
        try:
            return self.connection.recv_bytes()
        except (EOFError, OSError):
            return None

    def cpu_seconds(self) -> float:
        """Return for how long the process, and children of it that have ended, used a CPU."""
        try:
            ticks = status(self.process.pid or 0)[11:15]
        except OSError:  # it has ended
            return 0.0
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """End the process at once."""
        self.process.join(0)  # one that has ended is not killed by its number
        self.process.kill()
        self.process.join()
        self.connection.close()


def _start_server() -> None:
    """Start the process that imports and forks, if there is none: with one thread for BLAS."""
    # What Python finds in the folder that it is started in is the user's, and not ours to import;
    # the server takes our packages from where the driver has them.
    path = os.pathsep.join(filter(None, [str(HOME), os.environ.get("PYTHONPATH")]))
    own = {**_ONE_THREAD, "PYTHONSAFEPATH": "1", "PYTHONPATH": path}
    before = {name: os.environ.pop(name) for name in own if name in os.environ}
    os.environ.update(own)
    resource_tracker.ensure_running()  # which lets Ctrl-C through again when it has started
    # What tells the driver to end is for it alone, also while the server imports.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _THE_DRIVERS)
    try:
        with _as_children_start(), sockets_in():
            ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name in own:
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _as_children_start() -> Iterator[None]:
    """Let children import our packages first, and not run the program's main script again."""
    main, path = sys.modules["__main__"], [*sys.path]
    sys.modules["__main__"] = ModuleType("__main__")
    sys.path.insert(0, str(HOME))
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        sys.path[:] = path


def _serve(
    connection: Connection, environment: dict[str, str], folder: str, is_verbose: bool
) -> None:
    """Work on units until the driver closes the connection."""
    gc.freeze()  # what the server has imported
    gc.enable()
    # The driver's own way to end a process at its exit, if it was not ended before.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_driver, args=(folder,), daemon=True).start()
    os.environ.update({**environment, **_ONE_THREAD})
    if not is_verbose:
        # What libraries print goes where the driver can read it, and not into its own story.
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            stream.flush()
            with Path(folder, _PRINTED).open("ab") as file:
                os.dup2(file.fileno(), number)
    read: Work
    make: Make | None
    worker: Work | None = None
    counted = os.open(Path(folder, _COUNTED), os.O_WRONLY)
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            break
        try:
            plan, number, unit = pickle.loads(message)
            if plan is not None:
                worker = None  # frees what the plan before held, a model for one
                if torch := sys.modules.get("torch"):
                    torch.set_num_threads(1)  # again, whatever the plan before asked for
                read, make = pickle.loads(plan)
            with counting(partial(_tell, counted, number)):
                found = read(unit)  # which says how much there is, before a model is loaded
                if make:
                    worker = worker or make()
                    found = worker(found)
            answer = pickle.dumps((found, None))
        except Exception as error:  # noqa: BLE001  (raised again in the driver)
            answer = pickle.dumps((None, travelling(error)))
        connection.send_bytes(answer)
    shutil.rmtree(folder, ignore_errors=True)


def _tell(file: int, number: int, counts: Counts) -> None:
    with suppress(OSError):  # as of a disk that is full: what is shown is no reason to fail
        os.pwrite(file, _ROW.pack(*counts), number * _ROW.size)


def _end_with_driver(folder: str) -> None:
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    shutil.rmtree(folder, ignore_errors=True)  # the driver ended without doing so
    os._exit(1)


@dataclass(frozen=True)
class _Buckets:
    """Files in which rows meet: one folder per bucket of keys, one file per unit in it."""

    folder: Path
    key: str
    count: int
    split: Split
    write: Write

    def spread(self, numbered: tuple[int, Any]) -> None:
        """Write the rows that a unit is split into to the buckets of their keys."""
        number, unit = numbered
        for part, table in enumerate(self.split(unit)):
            of_row = pc.bit_wise_and(table[self.key], 0x7FFFFFFF).to_numpy() % self.count
            for bucket in sorted(set(of_row.tolist())):
                folder = self.folder / f"{bucket:05d}"
                folder.mkdir(exist_ok=True)
                rows = table.filter(pa.array(of_row == bucket))
                path = str(folder / f"{number:08d}-{part:08d}")
                with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
                    writer.write_table(rows)

    def gather(self, bucket: int) -> list[Any]:
        """Return what `write` makes of the rows of every key of a bucket."""
        files = sorted((self.folder / f"{bucket:05d}").glob("*"))
        if not files:
            return []
        rows = pa.concat_tables(
            pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in files
        )
        keys = sorted(pc.unique(rows[self.key]).to_pylist())
        return [self.write(rows.filter(pc.equal(rows[self.key], key))) for key in keys]
