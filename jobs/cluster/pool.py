"""How many model actors a cluster takes, and what each of them gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from jobs.config.blocks import ConfigError
from jobs.config.settings import Device

TorchDevice = Literal["cpu", "cuda"]
# What a stage gives the seam. All of it is pickled, and so are units and results.
Work = Callable[[Any], Any]  # unit -> result
Make = Callable[[], Work]  # builds a worker, once in each process
Feed = Callable[[Any], Any]  # unit -> what the worker gets
Split = Callable[[Any], Iterator[pa.Table]]  # unit -> rows
Write = Callable[[pa.Table], Any]  # the rows of a key -> result

MOST_BUCKETS = 64  # of a shuffle: keys beyond that share one
_ACTOR_CPU_SHARE = 0.75  # of each thread of a CPU actor: the rest feeds it
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


def plan_pool(
    resources: Mapping[str, float],
    device: Device,
    units: int,
    *,
    workers: int | None = None,
    threads: int | None = None,
    may_grow: bool = False,
) -> Pool:
    """Return the actor pool for `units` pieces of work on a cluster with `resources`.

    CannotScheduleError if the device is not there, or if the wanted actors would leave no CPU for
    the tasks that feed them. A cluster that `may_grow` gets what fits now at first, and more later.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    if device == "cuda" and gpus < 1:
        raise CannotScheduleError(
            f"device is cuda, but the cluster has no GPU (it has {cpus:g} CPUs); "
            "use device: cpu or auto, or a cluster with GPUs"
        )
    on_gpu = device != "cpu" and gpus >= 1
    per_actor = threads or 1
    share = _ACTOR_CPU_SHARE * (1 if on_gpu else per_actor)
    fitting = max(int(min(gpus, (cpus - TASK_CPUS) // share) if on_gpu else cpus // per_actor), 1)
    # A growing GPU cluster gets an actor per unit at most; its own limits say how many nodes start.
    wanted = max(min(workers or (units if may_grow and on_gpu else fitting), units), 1)
    size = min(wanted, fitting) if may_grow else wanted
    pool = Pool(size, wanted, share, float(on_gpu), per_actor)
    _refuse_starving(pool, cpus, gpus)
    return pool


def _refuse_starving(pool: Pool, cpus: float, gpus: float) -> None:
    needed = pool.size * pool.num_cpus + TASK_CPUS
    if needed > cpus or pool.size * pool.num_gpus > gpus:
        raise CannotScheduleError(
            f"{pool.size} model actors with {pool.num_cpus:g} CPUs and {pool.num_gpus:g} GPUs each "
            f"need {needed:g} CPUs and {pool.size * pool.num_gpus:g} GPUs with the tasks that feed "
            f"them, but the cluster has {cpus:g} CPUs and {gpus:g} GPUs: it would wait for ever. "
            "Lower extract.workers or extract.threads"
        )
