"""The worker of probing: one layer's vectors read once, a task scored on them in each variant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from threadpoolctl import threadpool_limits

from jobs.config.datasets import Task
from jobs.tasks.items import Given
from jobs.tasks.types import TYPES, check_items, read_items
from operators.model.subject import Subject, Variant
from operators.probes.fold import FoldScore, NoScoreError, unit_rows
from operators.prompts.seeding import prompt_id
from storage.layers import Group, Ids, LayerVectors, read_vectors
from storage.manifest import Manifest, Settings
from storage.partition import Partition
from storage.root import Root
from storage.shards import DamagedError

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
    The texts of some sides have the vectors `prompted`, by the side's name, and not the others.
    """

    subject: Subject
    task: Task
    items: Manifest
    embeddings: Manifest
    partition: Partition
    settings: Settings
    variants: tuple[Variant, ...]
    noisy: Manifest | None = None
    examples: tuple[int, ...] = ()
    modules: tuple[str, ...] = ()
    prompted: Mapping[str, Manifest] = field(default_factory=dict)

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
    def is_protocol(self) -> bool:
        """Whether it holds what is ranked, and no curve beside it."""
        return self.noisy is None and not self.examples


@dataclass(frozen=True)
class ScoreUnit:
    """One layer of one target, and which of its folds are wanted."""

    target: int
    group: Group
    first: int
    folds: int


@dataclass(frozen=True)
class Scorer:
    """Scores units; what fails is reported beside what was scored, and stops nothing else."""

    root: Root
    targets: Sequence[ScoreTarget]
    seed: int
    replicates: int

    def __call__(self, unit: ScoreUnit) -> tuple[int, list[Row], str | None]:
        """Return the target's index, the rows of the unit's scores, and why it failed if it did."""
        target = self.targets[unit.target]
        by_mteb = TYPES[type(target.task)].score is None
        try:
            # One core is one task: more threads would only wait for each other.
            with threadpool_limits(1):
                rows = self._mteb_rows(target, unit) if by_mteb else self._rows(target, unit)
                return unit.target, list(rows), None
        except DamagedError:  # made again, and the run goes on
            raise
        except Exception as error:  # noqa: BLE001  (any task may fail; the driver stops the run)
            named = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            return unit.target, [], f"layer {unit.group.layer}: {named}{error}"

    def _rows(self, target: ScoreTarget, unit: ScoreUnit) -> Iterator[Row]:
        kind = TYPES[type(target.task)]
        assert kind.score, target.task
        items = read_items(target.task, target.items.shards(self.root)).sort_by("row")
        check_items(target.task, items)
        vectors = self._read(target, unit, items)
        noisy = self._read(target, unit, items, target.noisy) if target.noisy else None
        items = _keyed(target, items)
        scores: list[FoldScore] = []
        # In one order whatever the config says: l2 takes the place of raw, not needed any more.
        for variant in sorted(target.variants, key=get_args(Variant).index):
            if variant == "l2" and not kind.scale_free:
                vectors, noisy = _normalised(vectors), _normalised(noisy) if noisy else None
            for examples in target.examples or (None,):
                task, own = target.task, {}
                if examples is not None:
                    assert kind.fewer, task
                    task, own = kind.fewer(task, examples), {"examples": examples}
                if not (scores and kind.scale_free):
                    how = (self.seed, self.replicates if not own else 0, unit.first, unit.folds)
                    try:
                        scores = kind.score(task, Given(items, vectors, noisy or vectors, *how))
                        reason = None
                    except NoScoreError as error:  # the vectors that there are allow none
                        scores = [FoldScore(0, kind.metric, float("nan"), 0, 0)]
                        reason = str(error)
                shared = {**asdict(unit.group), "variant": variant, "task_type": task.type}
                for score in scores:
                    yield {**shared, **own, "reason": reason, **asdict(score)}

    def _mteb_rows(self, target: ScoreTarget, unit: ScoreUnit) -> Iterator[Row]:
        from operators.benchmark import score as mteb  # noqa: PLC0415  (imports mteb, seconds)

        items = read_items(target.task, target.items.shards(self.root))
        vectors = self._read(target, unit, items)
        name = target.task.name
        model = {"model_name": target.subject.name, "revision": target.subject.revision}
        known = set(items["prompt_id"].to_pylist())

        def looked_up(texts: Sequence[str], asked: str) -> npt.NDArray[np.float32]:
            ids = [prompt_id(text) for text in texts]
            for text, identity in zip(texts, ids, strict=True):
                if identity not in known:
                    raise KeyError(text)
            rows = vectors.rows_of(np.array(ids, dtype=np.int64) ^ target.key(asked))
            matrix_ND: npt.NDArray[np.float32] = vectors.matrix_ND[rows]
            matrix_ND[rows < 0] = 0.0  # a text of the task without a token
            return matrix_ND

        for variant in target.variants:
            task = _mteb_task(name, target.modules)
            outcome = mteb.score_task(task, looked_up, **model, variant=variant)
            if variant == target.variants[0]:
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


def _normalised(vectors: LayerVectors) -> LayerVectors:
    if not len(vectors.prompt_ids):  # nothing to scale, and no score either: the probe says so
        return vectors
    return LayerVectors(vectors.prompt_ids, unit_rows(vectors.matrix_ND))


@lru_cache(maxsize=1)
def _mteb_task(name: str, modules: tuple[str, ...]) -> AbsTask:
    """Return a task with its data, which the layers that a worker scores have in common."""
    from operators.benchmark.tasks import load_task  # noqa: PLC0415  (imports mteb, seconds)

    return load_task(name, modules)
