"""The worker of probing: one layer's vectors read once, a task scored on them in each variant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from threadpoolctl import threadpool_limits

from layerrank.jobs.cluster import tally
from layerrank.jobs.config.datasets import MtebTask, Task
from layerrank.jobs.own import Own
from layerrank.jobs.tasks.items import Given
from layerrank.jobs.tasks.types import TYPES, check_items, read_items, type_of
from layerrank.operators.model.subject import Subject, Transform, Vectors
from layerrank.operators.probes import transform
from layerrank.operators.probes.fold import FoldScore, NoScoreError
from layerrank.operators.prompts.seeding import prompt_id
from layerrank.storage.layers import Group, Ids, LayerVectors, read_vectors
from layerrank.storage.manifest import Manifest, Settings
from layerrank.storage.partition import Partition
from layerrank.storage.root import Root
from layerrank.storage.shards import DamagedError

if TYPE_CHECKING:
    from mteb import AbsTask

Row = dict[str, Any]
# Experiments whose mean is the main score show how it varies; others are of another kind.
_SAME = 1e-6


@dataclass(frozen=True)
class ScoreTarget:
    """The scores of one task with one subject: what they are made of and where they go.

    A fitted task is tested on the vectors of `noisy` where that is given. With `examples` the
    scores are learning curves: for each number of training items per label, or per tenth of values.
    `fits` are the transforms of the subject's layers.
    The texts of some sides have the vectors `prompted`, by the side's name, and not the others. A
    task of the user's own has its class.
    """

    subject: Subject
    task: Task
    items: Manifest
    embeddings: Manifest
    partition: Partition
    settings: Settings
    noisy: Manifest | None = None
    examples: tuple[int, ...] = ()
    modules: tuple[str, ...] = ()
    fits: Manifest | None = None
    prompted: Mapping[str, Manifest] = field(default_factory=dict)
    own: Own | None = None

    def key(self, side: str) -> int:
        """Return what tells the vectors of a side's texts from others of the same texts.

        The id of a vector is the prompt_id of its text, XORed with this.
        """
        if side not in self.prompted:
            return 0
        return prompt_id(self.prompted[side].partition.keys["condition"])

    @property
    def cells(self) -> int:
        """How many folds a search can score one by one; other tasks are scored at once."""
        return self.task.repeats if TYPES[type(self.task)].by_fold else 1

    @property
    def of_candidates(self) -> bool:
        """Whether it holds vectors that a run may recommend beside those of every layer."""
        return self.partition.table == "candidate_scores"

    @property
    def is_protocol(self) -> bool:
        """Whether it holds what is ranked, and no curve beside it."""
        return self.noisy is None and not self.examples


@dataclass(frozen=True)
class ScoreUnit:
    """One layer of one target with its transforms, and which folds, or share of items, is wanted.

    A share of the items is to compare candidates by: it has no replicates.
    """

    target: int
    group: Group
    first: int
    folds: int
    transforms: tuple[Transform, ...]
    share: float = 1.0


@dataclass(frozen=True)
class Scorer:
    """Scores units; what fails is reported beside what was scored, and stops nothing else.

    Of `ranked` vectors mteb's own results are written.
    """

    root: Root
    targets: Sequence[ScoreTarget]
    ranked: Vectors
    seed: int
    replicates: int

    def __call__(self, unit: ScoreUnit) -> tuple[ScoreUnit, list[Row], str | None]:
        """Return a unit, the rows of its scores, and why it failed if it did."""
        target = self.targets[unit.target]
        by_mteb = isinstance(target.task, MtebTask)
        try:
            # One core is one task: more threads would only wait for each other.
            with threadpool_limits(1):
                rows = self._mteb_rows(target, unit) if by_mteb else self._rows(target, unit)
                return unit, list(rows), None
        except DamagedError:  # made again, and the run goes on
            raise
        except Exception as error:  # noqa: BLE001  (any task may fail; the driver stops the run)
            named = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            return unit, [], f"layer {unit.group.layer}: {named}{error}"

    def _rows(self, target: ScoreTarget, unit: ScoreUnit) -> Iterator[Row]:
        kind = type_of(target.task, target.own)
        assert kind.score, target.task
        items = _items(self.root, target)
        check_items(target.task, items, kind)
        vectors = self._read(target, unit, items)
        noisy = self._read(target, unit, items, target.noisy) if target.noisy else None
        items = _keyed(target, items)
        scores: list[FoldScore] = []
        made_of = ""
        *_, last = order = sorted(unit.transforms, key=get_args(Transform).index)
        for variant in order:
            # Directions alone are the same of raw vectors and of unit length.
            how = "raw" if kind.scale_free and variant == "l2" else variant
            known, made_of = made_of == how and kind.scale_free, how
            if not known:
                fit = self._fit(target, unit.group) if how in transform.FITTED else None
                own_ND = transformed(vectors, how, fit)
                tested_ND = transformed(noisy, how, fit) if noisy else own_ND
            if variant == last:  # what it was made of is not needed any more
                vectors, noisy = own_ND, None
            for examples in target.examples or (None,):
                task, own = target.task, {}
                if examples is not None:
                    assert kind.fewer, task
                    task, own = kind.fewer(task, examples), {"examples": examples}
                if not known:
                    replicates = 0 if own or unit.share < 1 else self.replicates
                    drawn = (self.seed, replicates, unit.first, unit.folds, unit.share)
                    try:
                        scores = kind.score(task, Given(items, own_ND, tested_ND, *drawn))
                        reason = None
                    except NoScoreError as error:  # the vectors that there are allow none
                        scores = [FoldScore(0, kind.metric, float("nan"), 0, 0)]
                        reason = str(error)
                shared = {**asdict(unit.group), "variant": variant, "task_type": task.type}
                for score in scores:
                    yield {**shared, **own, "reason": reason, **asdict(score)}
            tally.count(1)

    def _mteb_rows(self, target: ScoreTarget, unit: ScoreUnit) -> Iterator[Row]:
        from layerrank.operators.benchmark import score as mteb  # noqa: PLC0415  (imports mteb, seconds)

        items = read_items(target.task, target.items.shards(self.root))
        vectors = self._read(target, unit, items)
        name = target.task.name
        model = {"model_name": target.subject.name, "revision": target.subject.revision}
        known = set(items["prompt_id"].to_pylist())

        def looked_up(
            own: LayerVectors, texts: Sequence[str], asked: str
        ) -> npt.NDArray[np.float32]:
            ids = [prompt_id(text) for text in texts]
            for text, identity in zip(texts, ids, strict=True):
                if identity not in known:
                    raise KeyError(text)
            rows = own.rows_of(np.array(ids, dtype=np.int64) ^ target.key(asked))
            matrix_ND: npt.NDArray[np.float32] = own.matrix_ND[rows]
            matrix_ND[rows < 0] = 0.0  # a text of the task without a token
            return matrix_ND

        for variant in unit.transforms:
            task, own, how = _mteb_task(name, target.modules), vectors, variant
            if variant in transform.FITTED:
                own = transformed(vectors, variant, self._fit(target, unit.group))
                how = "raw"
            outcome = mteb.score_task(task, partial(looked_up, own), **model, variant=how)
            if (unit.group.norm, unit.group.pooling, variant) == self.ranked:
                where = mteb.result_path(**model, layer=unit.group.layer, task=name)
                self.root.write(where, outcome.json.encode())
                meta = mteb.model_meta_json(**model).encode()
                self.root.write(f"{where.rpartition('/')[0]}/{mteb.META_FILE}", meta)
            values = outcome.experiments
            if not values or abs(np.mean(values) - outcome.score) > _SAME:
                values = (outcome.score,)
            shared = {"variant": variant, "task_type": outcome.task_type, "reason": None}
            for fold, value in enumerate(values):
                score = FoldScore(fold, outcome.main_metric, value, 0, 0)
                yield {**asdict(unit.group), **shared, **asdict(score)}
            tally.count(1)

    def _fit(self, target: ScoreTarget, group: Group) -> transform.Fit:
        """Return what was fitted of a layer's vectors."""
        assert target.fits, target.partition
        return fits_of(self.root, target.fits)[group]

    def _read(
        self, target: ScoreTarget, unit: ScoreUnit, items: pa.Table, noisy: Manifest | None = None
    ) -> LayerVectors:
        """Return the vectors of all texts of a task, by `ScoreTarget.key`, or their noisy ones."""
        wanted: dict[int, list[Ids]] = {}
        where = {0: noisy or target.embeddings}
        for side, ids in _sides(items):
            key = target.key(side)
            where[key] = target.prompted.get(side, where[0])
            wanted.setdefault(key, []).append(ids)
        found = []
        for key, of_key in wanted.items():
            each = read_vectors(self.root, where[key], unit.group, np.concatenate(of_key))
            if not key and len(wanted) == 1:
                return each
            found.append(LayerVectors(each.prompt_ids ^ key, each.matrix_ND))
        found = [each for each in found if len(each.prompt_ids)] or found[:1]
        prompt_ids = np.concatenate([each.prompt_ids for each in found])
        order = np.argsort(prompt_ids)
        matrix_ND = np.concatenate([each.matrix_ND for each in found])
        return LayerVectors(prompt_ids[order], matrix_ND[order])


def _sides(items: pa.Table) -> Iterator[tuple[str, Ids]]:
    """Yield the sides of a task with the ids of their texts."""
    if "prompt_type" not in items.column_names:
        for name in items.column_names:
            if name.endswith("_id"):
                yield name, items[name].to_numpy()
        return
    for side in items["prompt_type"].unique().to_pylist():
        of_side = items.filter(pc.equal(items["prompt_type"], side))
        yield side, of_side["prompt_id"].to_numpy()


def _keyed(target: ScoreTarget, items: pa.Table) -> pa.Table:
    """Return items whose ids are those of the vectors of their texts."""
    for place, name in enumerate(items.column_names):
        if key := target.key(name):
            items = items.set_column(place, items.field(name), [items[name].to_numpy() ^ key])
    return items


def transformed(vectors: LayerVectors, how: Transform, fit: transform.Fit | None) -> LayerVectors:
    """Return the vectors of some prompts transformed."""
    return LayerVectors(vectors.prompt_ids, transform.apply(vectors.matrix_ND, how, fit))


# What this process read last, by what says which it is: the layers that a worker scores have it in
# common, and many a search has small units.
_READ: dict[tuple[str, str, str], dict[Group, transform.Fit]] = {}
_ITEMS: dict[tuple[str, str, str], pa.Table] = {}


def _items(root: Root, target: ScoreTarget) -> pa.Table:
    """Return the items of a task in source order."""
    key = root.uri, target.items.partition.path, target.items.content
    if key not in _ITEMS:
        found = read_items(target.task, target.items.shards(root)).sort_by("row")
        _ITEMS.clear()
        _ITEMS[key] = found
    return _ITEMS[key]


def fits_of(root: Root, fits: Manifest) -> dict[Group, transform.Fit]:
    """Return what a table `transforms` holds."""
    key = root.uri, fits.partition.path, fits.content
    if key not in _READ:
        shard = fits.only(root)
        table, names = shard.read(), ("mean", "deviation", "directions")
        count = table.num_rows
        wide = (table[name].combine_chunks().values.to_numpy().reshape(count, -1) for name in names)
        groups = (table[name].to_pylist() for name in ("layer", "norm", "pooling"))
        _READ.clear()
        _READ[key] = {
            Group(*group): transform.Fit(mean_D, deviation_D, direction.reshape(-1, len(mean_D)))
            for *group, mean_D, deviation_D, direction in zip(*groups, *wide, strict=True)
        }
    return _READ[key]


@lru_cache(maxsize=1)
def _mteb_task(name: str, modules: tuple[str, ...]) -> AbsTask:
    """Return a task with its data, which the layers that a worker scores have in common."""
    from layerrank.operators.benchmark.tasks import load_task  # noqa: PLC0415  (imports mteb, seconds)

    return load_task(name, modules)
