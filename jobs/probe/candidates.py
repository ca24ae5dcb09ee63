"""What may be recommended beside the ranked vectors: transforms that are fitted, and their search.

A candidate is a layer with a norm, a pooling and a transform. The ranked vectors of every layer are
scored in full, whatever a search does with the others.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from layerrank.jobs.cluster.console import say
from layerrank.jobs.config.candidates import candidate_vectors, fitted_datasets, sample_shares
from layerrank.jobs.config.datasets import DatasetConfig
from layerrank.jobs.config.prompts import ASKED, asked_fact
from layerrank.jobs.probe.worker import Row, ScoreTarget, ScoreUnit
from layerrank.jobs.run import Run, leading, partition
from layerrank.jobs.tasks.types import TYPES
from layerrank.jobs.words import counted
from layerrank.operators.model.subject import Subject, Transform, Vectors
from layerrank.operators.probes import transform
from layerrank.operators.prompts.seeding import sample_order
from layerrank.operators.ranking.ladder import Candidate, Ladder, ladder_of
from layerrank.storage.layers import Group, by_prompts, groups, shard_vectors
from layerrank.storage.manifest import Manifest
from layerrank.storage.partition import CLEAN, Partition, whole_name
from layerrank.storage.root import Root

Score = Callable[[Sequence[ScoreUnit]], Iterable[tuple[ScoreUnit, list[Row]]]]
Key = tuple[int, Group, Transform]  # a task by its index, and whose score


class _Share(NamedTuple):
    """The embeddings of a dataset, and how many prompts are taken of each of its shards."""

    embeddings: Manifest
    prompts: Mapping[str, int]


@dataclass(frozen=True)
class _Fitter:
    """Fits the transforms of one layer's vectors on the sample of the run's texts."""

    root: Root
    shares: Sequence[_Share]
    directions: int
    seed: int

    def __call__(self, group: Group) -> dict[str, Any]:
        """Return the row of the group in the table `transforms`."""
        parts = []
        for share in self.shares:
            objects = by_prompts(self.root, share.embeddings)
            for name, count in share.prompts.items():
                if name in objects:
                    found = shard_vectors(objects[name], group)
                    rows = sample_order(self.seed, found.prompt_ids)[:count]
                    parts.append(found.matrix_ND[np.sort(rows)])
        fit = transform.fit(np.concatenate(parts), self.directions)
        return {
            **asdict(group),
            "n_prompts": sum(map(len, parts)),
            "mean": fit.mean_D,
            "deviation": fit.deviation_D,
            "directions": fit.direction_KD.ravel(),
        }


def fitted(run: Run, subject: Subject, *, now: bool = True) -> Manifest | None:
    """Return the transforms of a subject's layers, fitted `now` unless they are; None if none is.

    There is none where none is asked for, and from too few texts. FileNotFoundError if they are
    not there and not to be fitted.
    """
    config, asked, every = run.config, run.config.candidates, candidate_vectors(run.config)
    wanted = {(v.norm, v.pooling) for v in every if v.transform in transform.FITTED}
    if asked is None or not wanted:
        return None
    sources = {
        f"{each.keys['dataset']} {each.keys['condition']}": run.manifests.require(each)
        for dataset in fitted_datasets(config)
        for each in _read_as(run, subject, dataset)
    }
    counts = {name: _texts(each) for name, each in sources.items()}
    taken = sample_shares(config, {name: sum(each.values()) for name, each in counts.items()})
    sources = {name: each for name, each in sources.items() if taken[name]}
    count = sum(taken.values())
    directions = asked.directions if any(v.transform == "abtt" for v in every) else 0
    if count < directions + 2:
        say(f"  {subject}: no transform is fitted, on {counted(count, 'text')}")
        return None
    where = partition("transforms", subject, config)
    settings = {
        "embeddings": {name: each.content for name, each in sources.items()},
        "texts": taken,
        "vectors": sorted(wanted),
        "directions": directions,
        "seed": config.seed,
    }

    def rows() -> list[dict[str, Any]]:
        shares = [
            _Share(each, leading(counts[name], taken[name])) for name, each in sources.items()
        ]
        known = groups(run.root, shares[0].embeddings)
        units = [each for each in known if (each.norm, each.pooling) in wanted]
        fitter = _Fitter(run.root, shares, directions, config.seed)
        found = [*run.cluster.each("transforms", units, fitter)]
        return sorted(found, key=lambda row: (row["layer"], row["norm"], row["pooling"]))

    if not now:
        found = run.manifests.stands(where, settings, overwrite=True)
        if found is None:
            raise FileNotFoundError(f"{where} is not fitted: run `layerrank probe` first")
        return found
    # Made of what else is there: with other texts it is made anew.
    return run.make(where, settings, rows, overwrite=True)[0]


def _read_as(run: Run, subject: Subject, dataset: DatasetConfig) -> list[Partition]:
    """Return the embeddings of a dataset's texts as its tasks read them: alone, or in templates."""
    sides, alone = run.sides(subject, dataset), not dataset.tasks
    for task in dataset.tasks:
        columns = TYPES[type(task)].columns.names
        every = [name for name in columns if name.endswith("_id")]
        if "prompt_type" in columns:
            facts = run.manifests.require(partition("tasks", task, dataset)).facts()
            every = [name for name in ASKED if facts.get(asked_fact(name), 0) > 0] or ["none"]
        alone |= {*every} != {side.name for side in sides if side.task.name == task.name}
    conditions = sorted({side.template.condition for side in sides})
    return [
        partition("embeddings", subject, dataset, condition)
        for condition in [*([CLEAN] if alone else []), *conditions]
    ]


def _texts(embeddings: Manifest) -> dict[str, int]:
    """Return how many texts of each shard of prompts have a vector."""
    found: dict[str, int] = {}
    for receipt in embeddings.receipts:
        name = whole_name(receipt.name)
        found[name] = found.get(name, 0) + int(receipt.facts["prompts"])
    return found


@dataclass
class Rungs:
    """The scores of one subject's candidates, on more and more of its tasks."""

    targets: Mapping[int, ScoreTarget]
    vectors: Sequence[Vectors]
    score: Score
    # What is scored in full, or fold by fold: the values by fold; NaN alone where it is undefined.
    known: defaultdict[Key, list[float]] = field(default_factory=lambda: defaultdict(list))
    failed: set[int] = field(default_factory=set)
    reached: dict[Candidate, float] = field(default_factory=dict)

    def keep(self, index: int, rows: Iterable[Row]) -> None:
        """Take what is scored already of a task."""
        for row in rows:
            group = Group(row["layer"], row["norm"], row["pooling"])
            self.known[index, group, row["variant"]].append(row["value"])

    def look(self, candidates: Sequence[Candidate], share: float) -> dict[Candidate, list[float]]:
        """Return the scores of candidates by task, on a share of each; NaN where there is none.

        A task that fails, or in which no candidate has a score, does not count.
        """
        keys = [(index, *self._split(each)) for index in self.targets for each in candidates]
        units: dict[tuple[int, Group, int], list[Transform]] = defaultdict(list)
        for index, group, how in keys:
            first = self._first(index, group, how, share)
            if first is not None and index not in self.failed:
                units[index, group, first].append(how)
        asked = [
            ScoreUnit(index, group, first, self._folds(index, share), tuple(hows), part)
            for (index, group, first), hows in units.items()
            for part in [self._part(index, share)]
        ]
        rough: dict[Key, list[float]] = {}
        for unit, rows in self.score(asked):
            if not rows:
                self.failed.add(unit.target)
            for row in rows:
                key = unit.target, unit.group, row["variant"]
                if unit.share < 1:
                    rough.setdefault(key, []).append(row["value"])
                else:
                    self.known[key].append(row["value"])

        self.reached |= dict.fromkeys(candidates, share)

        def value(index: int, group: Group, how: Transform) -> float:
            if index in self.failed:
                return math.nan
            key = index, group, how
            values = rough.get(key) or self.known.get(key, [])[: self._folds(index, share)]
            return float(np.mean(values))

        values = [value(*key) for key in keys]
        found_TC = np.array(values).reshape(len(self.targets), len(candidates))
        counted_TC = found_TC[~np.isnan(found_TC).all(axis=1)]
        return dict(zip(candidates, counted_TC.T.tolist(), strict=True))

    def has_reached(self, index: int, row: Row) -> bool:
        """Whether a fold of a candidate is of what the rungs scored."""
        how = row["norm"], row["pooling"], row["variant"]
        number = next((v for v, each in enumerate(self.vectors) if each == how), -1)
        share = self.reached.get(Candidate(row["layer"], number), 0.0)
        whole = self.targets[index].cells == 1 or np.isnan(row["value"])
        return bool(share == 1 or (share and (whole or row["fold"] < self._folds(index, share))))

    def ladder(self, layers: int) -> Ladder:
        """Return the ladder of these tasks and so many layers."""
        kinds = [TYPES[type(each.task)] for each in self.targets.values()]
        return ladder_of(layers, in_part=all(each.by_fold or each.by_share for each in kinds))

    def share(self, candidates: Iterable[Candidate]) -> float:
        """Return the share of the work on some candidates in full that was done."""
        return float(np.mean([self.reached.get(each, 0.0) for each in candidates]))

    def _split(self, candidate: Candidate) -> tuple[Group, Transform]:
        of = self.vectors[candidate.vectors]
        return Group(candidate.layer, of.norm, of.pooling), of.transform

    def _folds(self, index: int, share: float) -> int:
        """Return how many folds of a task are a share of it; all if they are not scored singly."""
        target = self.targets[index]
        in_part = target.cells > 1 or self._part(index, share) < 1
        return math.ceil(share * target.task.repeats) if in_part else target.task.repeats

    def _part(self, index: int, share: float) -> float:
        """Return the share of a task's items that is scored."""
        return share if TYPES[type(self.targets[index].task)].by_share else 1.0

    def _first(self, index: int, group: Group, how: Transform, share: float) -> int | None:
        """Return from which fold on something is to be scored; None if nothing is."""
        done = self.known.get((index, group, how), [])
        if self.targets[index].cells == 1:
            return 0 if self._part(index, share) < 1 or not done else None
        whole = len(done) >= self._folds(index, share) or np.isnan(done).any()
        return None if whole else len(done)
