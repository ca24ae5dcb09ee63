"""The worker of probing: one layer's vectors read once, a task scored on them in each variant."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypedDict, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from threadpoolctl import threadpool_limits

from jobs.config.settings import Variant
from jobs.tasks.items import check_items
from jobs.tasks.types import (
    ClassificationTask,
    ClusteringTask,
    MtebTask,
    PairClassificationTask,
    RegressionTask,
    RelevanceTask,
    RerankingTask,
    RetrievalTask,
    StsTask,
    Task,
)
from operators.model.subject import Subject
from operators.probes import MAIN_METRICS
from operators.probes.classification import classification
from operators.probes.clustering import clustering
from operators.probes.fold import FoldScore, NoScoreError, PairRows, unit_rows
from operators.probes.multilabel import multilabel_classification
from operators.probes.pairs import pair_classification, sts
from operators.probes.regression import regression
from operators.probes.relevance import reranking, retrieval
from operators.prompts.seeding import prompt_id
from storage.manifest import Manifest, Settings
from storage.partition import Partition
from storage.root import Root
from storage.shards import read_tables
from storage.vectors import Group, LayerVectors, read_vectors

if TYPE_CHECKING:
    from mteb import AbsTask


# Experiments whose mean is the main score show how it varies; others are of another kind.
_SAME = 1e-6
# The scores of these depend on directions alone: both variants have the same.
SCALE_FREE = (StsTask, RerankingTask, RetrievalTask)


class _Replicated(TypedDict):
    seed: int
    replicates: int


@dataclass(frozen=True)
class ScoreTarget:
    """The scores of one task with one subject: what they are made of and where they go.

    A fitted task is tested on the vectors of `noisy` where that is given. With `examples` the
    scores are learning curves: of a classification, for each number of training items per label.
    """

    subject: Subject
    task: Task
    items: Manifest
    embeddings: Manifest
    noisy: Manifest | None
    partition: Partition
    settings: Settings
    variants: tuple[Variant, ...]
    examples: tuple[int, ...] = ()
    modules: tuple[str, ...] = ()

    @property
    def folds(self) -> int:
        """How many times the task is repeated, where the config says so."""
        return getattr(self.task, "folds", 1)

    @property
    def cells(self) -> int:
        """How many folds a search can score one by one; other tasks are scored at once."""
        return self.folds if isinstance(self.task, (ClassificationTask, ClusteringTask)) else 1


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
    targets: tuple[ScoreTarget, ...]
    seed: int
    replicates: int

    def __call__(self, unit: ScoreUnit) -> tuple[int, list[dict[str, Any]], str | None]:
        """Return the target's index, the rows of the unit's scores, and why it failed if it did."""
        target = self.targets[unit.target]
        try:
            # One core is one task: more threads would only wait for each other.
            with threadpool_limits(1):
                rows = list(self._rows(target, unit))
        except Exception as error:  # noqa: BLE001  (any task may fail; the driver stops the run)
            named = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            reason = f"{named}{error}"
            return unit.target, [], f"layer {unit.group.layer}: {reason}"
        return unit.target, rows, None

    def _rows(self, target: ScoreTarget, unit: ScoreUnit) -> Iterator[dict[str, Any]]:
        if isinstance(target.task, MtebTask):
            yield from self._mteb_rows(target, target.task, unit)
            return
        items = read_tables(self.root, target.items.objects()).sort_by("row")
        check_items(target.task, items)
        vectors = _read(self.root, target.embeddings, unit.group, items)
        noisy = _read(self.root, target.noisy, unit.group, items) if target.noisy else None
        scores: list[FoldScore] = []
        # In one order whatever the config says: l2 takes the place of raw, not needed any more.
        for variant in sorted(target.variants, key=get_args(Variant).index):
            if variant == "l2" and not isinstance(target.task, SCALE_FREE):
                vectors, noisy = _normalised(vectors), _normalised(noisy) if noisy else None
            for examples in target.examples or (None,):
                task = target.task
                if examples is not None:
                    task = task.model_copy(update={"samples_per_label": examples})
                if not (scores and isinstance(task, SCALE_FREE)):
                    scores, reason = self._scored(task, items, vectors, noisy, unit)
                shared = {**asdict(unit.group), "variant": variant, "task_type": task.type}
                own = {} if examples is None else {"examples": examples}
                for score in scores:
                    yield {**shared, **own, "reason": reason, **asdict(score)}

    def _scored(
        self,
        task: Task,
        items: pa.Table,
        vectors: LayerVectors,
        noisy: LayerVectors | None,
        unit: ScoreUnit,
    ) -> tuple[list[FoldScore], str | None]:
        """Return the scores, or NaN and the reason where the vectors that there are allow none."""
        try:
            return self._score(task, items, vectors, noisy, unit), None
        except NoScoreError as error:
            return [FoldScore(0, main_metric(task), float("nan"), 0, 0)], str(error)

    def _score(
        self,
        task: Task,
        items: pa.Table,
        vectors: LayerVectors,
        noisy: LayerVectors | None,
        unit: ScoreUnit,
    ) -> list[FoldScore]:
        if isinstance(task, (ClassificationTask, RegressionTask)):
            return self._fitted(task, items, vectors, noisy or vectors, unit)
        if isinstance(task, ClusteringTask):
            test_ND, labels = _labelled(items, vectors, "test", "label")
            return clustering(
                test_ND,
                labels,
                seed=self.seed,
                first=unit.first,
                folds=unit.folds,
                max_documents=task.max_documents,
                documents_per_fold=min(task.documents_per_fold, len(labels)),
            )
        replicated: _Replicated = {"seed": self.seed, "replicates": self.replicates}
        if isinstance(task, (PairClassificationTask, StsTask)):
            rows, values = _pairs(items, vectors)
            both = vectors.matrix_ND, vectors.matrix_ND
            if isinstance(task, StsTask):
                return sts(*both, values, rows=rows, **replicated)
            return pair_classification(*both, values.astype(np.int64), rows=rows, **replicated)
        assert isinstance(task, (RerankingTask, RetrievalTask)), task
        return _relevance(task, items, vectors, replicated)

    def _fitted(
        self,
        task: ClassificationTask | RegressionTask,
        items: pa.Table,
        vectors: LayerVectors,
        tested: LayerVectors,
        unit: ScoreUnit,
    ) -> list[FoldScore]:
        column = "value" if isinstance(task, RegressionTask) else "label"
        train_ND, train = _labelled(items, vectors, "train", column)
        test_ND, test = _labelled(items, tested, "test", column)
        shared = {"seed": self.seed, "folds": unit.folds}
        if isinstance(task, RegressionTask):
            return regression(train_ND, train, test_ND, test, samples=task.samples, **shared)
        shared |= {"first": unit.first, "samples_per_label": task.samples_per_label}
        if not task.multi_label:
            return classification(train_ND, train, test_ND, test, **shared)
        lists = [[json.loads(labels) for labels in part] for part in (train, test)]
        return multilabel_classification(train_ND, lists[0], test_ND, lists[1], **shared)

    def _mteb_rows(
        self, target: ScoreTarget, task: MtebTask, unit: ScoreUnit
    ) -> Iterator[dict[str, Any]]:
        from operators.benchmark.score import (  # noqa: PLC0415  (imports mteb, seconds)
            META_FILE,
            model_meta_json,
            result_path,
            score_task,
        )

        items = read_tables(self.root, target.items.objects())
        vectors = _read(self.root, target.embeddings, unit.group, items)
        subject = target.subject
        for variant in target.variants:
            outcome = score_task(
                _mteb_task(task.name, target.modules),
                _Lookup(vectors, set(items["prompt_id"].to_pylist())),
                model_name=subject.name,
                revision=subject.revision,
                variant=variant,
            )
            if variant == target.variants[0]:
                where = result_path(subject.name, subject.revision, unit.group.layer, task.name)
                self.root.write(where, outcome.json.encode())
                meta = model_meta_json(subject.name, subject.revision).encode()
                self.root.write(f"{where.rpartition('/')[0]}/{META_FILE}", meta)
            values = outcome.experiments
            if not values or abs(np.mean(values) - outcome.score) > _SAME:
                values = (outcome.score,)
            for fold, value in enumerate(values):
                yield {
                    **asdict(unit.group),
                    "variant": variant,
                    "task_type": outcome.task_type,
                    "reason": None,
                    **asdict(FoldScore(fold, outcome.main_metric, value, 0, 0)),
                }


@dataclass(frozen=True)
class _Lookup:
    """Vectors by text, as mteb asks for them; a text of the task without a token has zeros."""

    vectors: LayerVectors
    known: set[int]

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        ids = [prompt_id(text) for text in texts]
        for text, identity in zip(texts, ids, strict=True):
            if identity not in self.known:
                raise KeyError(text)
        rows = self.vectors.rows_of(np.array(ids, dtype=np.int64))
        matrix_ND: npt.NDArray[np.float32] = self.vectors.matrix_ND[rows]
        matrix_ND[rows < 0] = 0.0
        return matrix_ND


@lru_cache(maxsize=1)
def _mteb_task(name: str, modules: tuple[str, ...]) -> AbsTask:
    """Return a task with its data, which the layers that a worker scores have in common."""
    from operators.benchmark.tasks import load_task  # noqa: PLC0415  (imports mteb, seconds)

    return load_task(name, modules)


def main_metric(task: Task) -> str:
    """Return the name of a task's main metric."""
    if isinstance(task, ClassificationTask) and task.multi_label:
        return MAIN_METRICS["multilabel_classification"]
    return MAIN_METRICS[task.type]


def _read(root: Root, embeddings: Manifest, group: Group, items: pa.Table) -> LayerVectors:
    """Read the vectors of a task's texts."""
    columns = [name for name in items.column_names if name.endswith("_id")]
    wanted = np.concatenate([items[name].to_numpy() for name in columns])
    return read_vectors(root, embeddings, group, wanted)


def _normalised(vectors: LayerVectors) -> LayerVectors:
    if not len(vectors.prompt_ids):  # nothing to scale, and no score either: the probe says so
        return vectors
    return LayerVectors(vectors.prompt_ids, unit_rows(vectors.matrix_ND))


def _labelled(
    items: pa.Table, vectors: LayerVectors, split: str, column: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    """Return the vectors of the items of a split, in source order, and their labels or values."""
    part = items.filter(pc.equal(items["split"], split))
    rows = vectors.rows_of(part["prompt_id"].to_numpy())
    values = np.array(part[column].to_pylist())
    return vectors.matrix_ND[rows[rows >= 0]], values[rows >= 0]


def _pairs(items: pa.Table, vectors: LayerVectors) -> tuple[PairRows, npt.NDArray[np.float64]]:
    """Return the rows of both sides of the pairs that have vectors, and their values."""
    first = vectors.rows_of(items["first_id"].to_numpy())
    second = vectors.rows_of(items["second_id"].to_numpy())
    both = (first >= 0) & (second >= 0)
    return (first[both], second[both]), items["value"].to_numpy()[both]


def _relevance(
    task: RelevanceTask, items: pa.Table, vectors: LayerVectors, replicated: _Replicated
) -> list[FoldScore]:
    query_ids, candidate_ids = items["query_id"].to_numpy(), items["candidate_id"].to_numpy()
    keep = (vectors.rows_of(query_ids) >= 0) & (vectors.rows_of(candidate_ids) >= 0)
    query_ids, candidate_ids = query_ids[keep], candidate_ids[keep]
    gains = items["relevance"].to_numpy()[keep]
    queries, first = np.unique(query_ids, return_index=True)
    queries = queries[np.argsort(first)]  # source order
    documents = np.unique(candidate_ids)
    query_MD = vectors.matrix_ND[vectors.rows_of(queries)]
    document_ND = vectors.matrix_ND[vectors.rows_of(documents)]
    of_query: dict[int, list[tuple[int, int]]] = defaultdict(list)
    rows = np.searchsorted(documents, candidate_ids).tolist()
    for query, row, gain in zip(query_ids.tolist(), rows, gains.tolist(), strict=True):
        of_query[query].append((row, gain))
    ordered = [of_query[query] for query in queries.tolist()]
    if isinstance(task, RerankingTask):
        candidates = [[row for row, _ in pairs] for pairs in ordered]
        relevance = [[gain for _, gain in pairs] for pairs in ordered]
        return reranking(query_MD, document_ND, candidates, relevance, **replicated)
    relevant = [[(row, gain) for row, gain in pairs if gain > 0] for pairs in ordered]
    return retrieval(
        query_MD,
        document_ND,
        [[row for row, _ in pairs] for pairs in relevant],
        gains=[[gain for _, gain in pairs] for pairs in relevant],
        **replicated,
    )
