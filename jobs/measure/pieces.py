"""Pieces of a stage that wait for nothing of each other, worked on in one plan."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from layerrank.jobs.cluster.cluster import Cluster
from layerrank.jobs.cluster.console import Progress, say
from layerrank.jobs.cluster.pool import TorchDevice, Work


@dataclass(frozen=True)
class Piece:
    """Units of work and, when all of them are done, what becomes of their results.

    `done` gets them in any order, makes a table visible, and returns what is to be said of it.
    """

    units: Sequence[Any]
    work: Work
    done: Callable[[list[Any]], str]
    device: TorchDevice = "cpu"
    cpus: float = 1.0


def work_on(cluster: Cluster, pieces: Sequence[Piece]) -> None:
    """Do all pieces, those of one device in one plan; a piece is done as soon as its units are."""
    plans = defaultdict(list)
    for each in pieces:
        plans[each.device, each.cpus].append(each)
    for (device, cpus), together in plans.items():
        units = [(index, unit) for index, each in enumerate(together) for unit in each.units]
        found: list[list[Any]] = [[] for _ in together]
        told = [""] * len(together)
        work = partial(_one, [each.work for each in together])
        with Progress("measure", len(units), "pieces") as progress:
            for index, result in cluster.each("measure", units, work, device=device, cpus=cpus):
                found[index].append(result)
                if len(found[index]) == len(together[index].units):
                    told[index] = together[index].done(found[index])
                    found[index] = []
                progress.add(1)
        for line in filter(None, told):
            say(line)


def _one(works: Sequence[Work], unit: tuple[int, Any]) -> tuple[int, Any]:
    """Return the result of a unit, and of which piece it is."""
    index, of_piece = unit
    return index, works[index](of_piece)
