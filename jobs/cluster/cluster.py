"""The one seam between the stages and what runs them: Ray, or processes of this machine.

A stage says `each` (a function of a unit), `actors` (a worker that is built once and fed), or
`shuffle` (rows that meet by key). Functions and units are pickled: module-level functions, partials
of them, or methods of dataclasses. How they travel is the business of the side that runs them.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from layerrank.jobs.cluster.pool import (
    TASK_CPUS,
    CannotScheduleError,
    Feed,
    Make,
    Pool,
    Runner,
    Split,
    TorchDevice,
    Work,
    Write,
)
from layerrank.jobs.cluster.tally import Counts
from layerrank.jobs.cluster.watch import EngineError
from layerrank.jobs.config import Engine
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.settings import Device

# Tokens through models, at most, of a run that is small: an hour or so of two cores.
SMALL_TOKENS = 20_000_000
_ACTOR_CPU_SHARE = 0.75  # of each thread of a CPU actor: the rest feeds it


class Side(Protocol):
    """What runs the work of the stages."""

    @property
    def name(self) -> str:
        """The engine's name."""

    @property
    def may_grow(self) -> bool:
        """Whether there may be more machines later."""

    def resources(self, *, gpu: bool) -> dict[str, float]:
        """Return the CPUs and GPUs, as Ray names them; a `gpu` is waited for where one may come."""

    def begin(self) -> None:
        """Begin to start what takes time, while the driver does something else."""

    def describe(self, work: int | Pool, device: TorchDevice) -> tuple[int, str]:
        """Return how many tasks or workers of a pool run at once, at most; and what they are."""

    def each(self, units: Sequence[Any], work: Work, *, cpus: float, gpus: float) -> Iterator[Any]:
        """Yield the result of every unit."""

    def actors(self, units: Sequence[Any], make: Make, feed: Feed, pool: Pool) -> Iterator[Any]:
        """Yield the result of every unit from workers that are built once."""

    def shuffle(
        self, units: Sequence[Any], split: Split, write: Write, *, key: str, groups: int
    ) -> Iterator[Any]:
        """Yield what `write` returns for the rows of every value of `key`."""

    def counted(self) -> Counts:
        """Return what the workers have counted of all units of the plan that runs."""

    def close(self) -> None:
        """End what was started."""


@dataclass
class Cluster:
    """What a run's stages see of the engine; nothing starts before there is work.

    `made` has what ran each stage: "2 actors on CPU, fed by 1 reader (engine ray)".
    """

    side: Side
    say: Callable[[str], None] = lambda _line: None
    made: dict[str, str] = field(default_factory=dict)
    has_begun: bool = False
    _widest: dict[str, int] = field(default_factory=dict)
    _open: Iterator[Any] | None = None  # the results of the plan that was begun last

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()
        self.side.close()

    def begin(self) -> None:
        """Begin to start the engine: there will be work."""
        self.has_begun = True
        self.side.begin()

    def abandon(self) -> None:
        """End the plan that was begun last, if an error left it before its end."""
        if isinstance(self._open, Generator):
            self._open.close()

    def counted(self) -> Counts:
        """Return what the workers have counted of all units of the plan that runs."""
        return self.side.counted()

    def forget(self) -> None:
        """Begin anew to say what runs each stage, as another checkpoint goes through them."""
        self.made.clear()
        self._widest.clear()

    def pool(
        self, device: Device, units: int, *, workers: int | None = None, threads: int | None = None
    ) -> Pool:
        """Return the workers that `units` pieces of work get here.

        CannotScheduleError if the device is not there, or if the wanted workers would leave no CPU
        for the tasks that feed them. A cluster that may grow gets what fits now at first, and more
        later.
        """
        resources, may_grow = self.side.resources(gpu=device == "cuda"), self.side.may_grow
        cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
        if device == "cuda" and gpus < 1:
            raise CannotScheduleError(
                f"device is cuda, but the cluster has no GPU (it has {cpus:g} CPUs); "
                "use device: cpu or auto, or a cluster with GPUs"
            )
        on_gpu = device != "cpu" and gpus >= 1
        of_each = threads or 1
        share = _ACTOR_CPU_SHARE * (1 if on_gpu else of_each)
        most = min(gpus, (cpus - TASK_CPUS) // share) if on_gpu else cpus // of_each
        fitting = max(int(most), 1)
        # A growing GPU cluster gets an actor per unit at most; its own limits say how many nodes.
        wanted = max(min(workers or (units if may_grow and on_gpu else fitting), units), 1)
        pool = Pool(
            min(wanted, fitting) if may_grow else wanted, wanted, share, float(on_gpu), of_each
        )
        needed = pool.size * pool.num_cpus + TASK_CPUS
        if needed > cpus or pool.size * pool.num_gpus > gpus:
            raise CannotScheduleError(
                f"{pool.size} model actors with {pool.num_cpus:g} CPUs and {pool.num_gpus:g} GPUs "
                f"each need {needed:g} CPUs and {pool.size * pool.num_gpus:g} GPUs with the tasks "
                f"that feed them, but the cluster has {cpus:g} CPUs and {gpus:g} GPUs: it would "
                "wait for ever. Lower extract.workers or extract.threads"
            )
        return pool

    def device(self, wanted: Device) -> TorchDevice:
        """Return the device that a task gets; CannotScheduleError if it is not there."""
        return self.pool(wanted, 1).device

    def each(
        self,
        stage: str,
        units: Sequence[Any],
        work: Work,
        *,
        device: TorchDevice = "cpu",
        cpus: float = 1.0,
    ) -> Iterator[Any]:
        """Yield `work(unit)` of every unit as they finish, in any order."""
        if not units:
            return iter(())
        self._tell(stage, len(units), device)
        found = self.side.each(units, work, cpus=cpus, gpus=float(device == "cuda"))
        self._open = _of_stage(stage, found)
        return self._open

    def actors(
        self, stage: str, units: Sequence[Any], make: Make, pool: Pool, *, feed: Feed
    ) -> Iterator[Any]:
        """Yield `worker(feed(unit))` of every unit; `make` builds a worker once in each process."""
        self._tell(stage, pool, pool.device)
        self._open = _of_stage(stage, self.side.actors(units, make, feed, pool))
        return self._open

    def shuffle(
        self, stage: str, units: Sequence[Any], split: Split, write: Write, *, key: str, groups: int
    ) -> Iterator[Any]:
        """Yield `write(rows)` of the rows of each of the `groups` values of the column `key`.

        `split(unit)` yields tables; their rows meet in no order that means anything.
        """
        self._tell(stage, groups, "cpu")
        found = self.side.shuffle(units, split, write, key=key, groups=groups)
        self._open = _of_stage(stage, found)
        return self._open

    def _tell(self, stage: str, work: int | Pool, device: TorchDevice) -> None:
        """Say what runs a stage, and again if a later plan of it is wider."""
        width, how = self.side.describe(work, device)
        if width > self._widest.get(stage, 0):
            self._widest[stage] = width
            self.made[stage] = f"{how} (engine {self.side.name})"
            self.say(f"  {stage}: {how}")


def _of_stage(stage: str, results: Iterator[Any]) -> Iterator[Any]:
    """Yield the results of a plan; what ends it for the engine's part names the stage."""
    try:
        yield from results
    except EngineError as error:
        raise error.of(stage) from error


def choose(
    address: str | None, asked: Engine, tokens: Callable[[], float | None]
) -> tuple[Runner, str]:
    """Return the engine of a run and why: `asked`, unless that is auto.

    `tokens` says how many tokens the models read at most, None if that is unknown beforehand.
    ConfigError if a cluster is named and the processes of this machine are asked for.
    """
    if asked == "process" and address:
        raise ConfigError(
            f"engine process is this machine, and the address {address} another one: "
            "leave one of them out"
        )
    if asked != "auto":
        return asked, "as asked"
    if address or os.environ.get("RAY_ADDRESS") or "RAY_JOB_ID" in os.environ:
        return "ray", "a cluster is given"
    if _has_gpu():
        return "ray", "this machine has a GPU"
    count = tokens()
    if count is None:
        return "ray", "how much there is to read is not known beforehand"
    bound = f"{count:,.0f} tokens of the {SMALL_TOKENS:,} that are small"
    if count <= SMALL_TOKENS:
        return "process", f"no cluster, no GPU, at most {bound}"
    return "ray", f"up to {bound}, which is not small"


def _has_gpu() -> bool:
    """Whether torch can use a GPU here; it takes seconds to import, and is asked where one may be.

    Without the library of a driver, or the device of AMD's, there is none.
    """
    if not Path("/dev/kfd").exists():
        try:
            ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        except OSError:
            return False
    import torch  # noqa: PLC0415

    return torch.cuda.is_available()
