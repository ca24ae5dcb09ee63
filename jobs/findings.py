"""What a run found, as plain data: everything that the report says, before it is said.

Nothing is computed here that a stage did not store; a value that does not exist is None, and the
reason stands beside it. `to_json` is what `report.json` holds.
"""

from __future__ import annotations

import math
import platform
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jobs.corpora import DatasetConfig, Task
from jobs.measurer import parameters
from jobs.rank import SubjectRanking, cost
from jobs.records import SKIPPED
from jobs.run import Run, partition
from operators.metrics.registry import METRICS, main_variant
from operators.ranking import LayerRank, Verdict
from operators.subject import Subject
from operators.views import view_name
from storage.manifest import load
from storage.partition import CLEAN, Partition
from storage.shards import read_table

SCHEMA_VERSION = 1
_PACKAGES = (
    "layerrank",
    "torch",
    "transformers",
    "ray",
    "numpy",
    "pyarrow",
    "scikit-learn",
    "datasets",
)
# Addresses of sources may carry a password before the host, or a signature after the path.
_PASSWORD = re.compile(r"(?<=://)[^/@\s]+@")
_SIGNATURE = re.compile(r"(?<=\S)\?\S*")


@dataclass(frozen=True)
class TaskFinding:
    """A labelled task; `label` is its name, with the dataset where two tasks share a name."""

    label: str
    name: str
    dataset: str
    type: str
    metric: str | None
    folds: int


@dataclass(frozen=True)
class LayerFinding:
    """A layer's place; scores and gains 0..1, `cost` the share of blocks that must run."""

    layer: int
    score: float | None
    score_low: float | None
    score_high: float | None
    rank: int | None
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    cost: float
    tasks: dict[str, float | None]


@dataclass(frozen=True)
class MetricValue:
    """A metric in one layer; `reason` says why there is no value."""

    layer: int
    value: float | None
    reason: str | None
    n_prompts: int
    n_undefined: int


@dataclass(frozen=True)
class Series:
    """A metric against the layer; `main` is the variant that stands for the metric."""

    dataset: str
    metric: str
    variant: str
    norm: str
    pooling: str
    main: bool
    values: list[MetricValue]


@dataclass(frozen=True)
class Encoded:
    """What went through the model: one dataset in one condition."""

    dataset: str
    condition: str
    prompts: int
    shards: int
    tokens: int
    truncated: int
    skipped_no_tokens: int
    model_seconds: float


@dataclass(frozen=True)
class DatasetFinding:
    """A corpus as it was prepared: unique prompts, and how many texts were left out and why."""

    name: str
    prompts: int
    shards: int
    skipped: dict[str, int]
    duplicates: int


@dataclass(frozen=True)
class SubjectFinding:
    """A model: its verdict, its layers, and what they were judged by."""

    name: str
    revision: str
    model: str
    blocks: int
    norm: str
    pooling: str
    verdict: Verdict
    tasks: list[TaskFinding]
    layers: list[LayerFinding]
    encoded: list[Encoded]
    metrics: list[Series]
    unmeasured: list[str]

    @property
    def last(self) -> int:
        """The last layer, which every gain is over."""
        return max((row.layer for row in self.layers), default=0)

    @property
    def is_scored(self) -> bool:
        """Whether any layer has a score."""
        return any(row.score is not None for row in self.layers)


@dataclass(frozen=True)
class Findings:
    """Everything that a report says."""

    schema_version: int
    run: str
    level: float
    draws: int
    seeds: dict[str, int]
    versions: dict[str, str | None]
    settings: dict[str, Any]
    datasets: list[DatasetFinding]
    subjects: list[SubjectFinding]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def collect(run: Run, rankings: Sequence[SubjectRanking]) -> Findings:
    """Gather the findings of a run from its rankings, manifests and tables."""
    config = run.config
    return Findings(
        schema_version=SCHEMA_VERSION,
        run=config.name,
        level=config.rank.level,
        draws=config.rank.draws,
        seeds={"run": config.seed, "probe": config.probe.seed},
        versions=_versions(),
        settings=_without_passwords(config.model_dump(mode="json", exclude={"storage"})),
        datasets=[_dataset(run, dataset) for dataset in config.datasets],
        subjects=[_subject(run, ranking) for ranking in rankings],
    )


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _without_passwords(value: Any) -> Any:  # noqa: ANN401  (any JSON value)
    if isinstance(value, Mapping):
        return {key: _without_passwords(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_passwords(each) for each in value]
    if isinstance(value, str) and "://" in value:
        value = _PASSWORD.sub("***@", value)
        # A ? in a bucket's address is a glob pattern; only web addresses have a query.
        return _SIGNATURE.sub("?***", value) if value.startswith("http") else value
    return value


def _dataset(run: Run, dataset: DatasetConfig) -> DatasetFinding:
    manifest = run.prompts(dataset)
    facts = manifest.facts()
    return DatasetFinding(
        dataset.name,
        manifest.rows,
        len(manifest.receipts),
        {reason: int(facts[f"skipped_{reason}"]) for reason in SKIPPED},
        int(facts["duplicates"]),
    )


def _subject(run: Run, ranking: SubjectRanking) -> SubjectFinding:
    subject, datasets = ranking.subject, run.config.datasets
    tasks = _tasks(run, ranking)
    measured = {dataset.name: _series(run, subject, dataset) for dataset in datasets}
    last = max((row.layer for row in ranking.layers), default=0)
    return SubjectFinding(
        name=subject.name,
        revision=subject.revision,
        model=_without_passwords(subject.model),
        blocks=last,
        norm=run.config.rank.norm,
        pooling=run.config.rank.pooling,
        verdict=ranking.verdict,
        tasks=tasks,
        layers=[
            _layer(row, last, dict(zip([task.label for task in tasks], scores, strict=True)))
            for row, scores in zip(ranking.layers, ranking.scores_LT.tolist(), strict=True)
        ],
        encoded=[each for dataset in datasets for each in _encoded(run, subject, dataset)],
        metrics=[series for found in measured.values() for series in found or []],
        unmeasured=[name for name, found in measured.items() if found is None],
    )


def _tasks(run: Run, ranking: SubjectRanking) -> list[TaskFinding]:
    """Return the tasks in the order of the ranking's columns: by dataset, then as configured."""
    pairs = [(dataset, task) for dataset in run.config.datasets for task in dataset.tasks]
    assert [task.name for _, task in pairs] == ranking.tasks, "the ranking is of another config"
    names = Counter(ranking.tasks)
    found = []
    for dataset, task in pairs:
        metric, folds = _scored_with(run, ranking.subject, dataset, task)
        label = task.name if names[task.name] == 1 else f"{dataset.name}/{task.name}"
        found.append(TaskFinding(label, task.name, dataset.name, task.type, metric, folds))
    return found


def _scored_with(
    run: Run, subject: Subject, dataset: DatasetConfig, task: Task
) -> tuple[str | None, int]:
    """Return the metric of a task and the number of its folds; None and 0 if it has no scores."""
    keys = (*partition("embeddings", subject, dataset).values, task.name)
    manifest = load(run.root, Partition("probe_scores", keys))
    if manifest is None or not manifest.rows:
        return None, 0
    scores = read_table(run.root, manifest.objects()[0], ["metric", "fold"])
    return str(scores["metric"][0].as_py()), len(scores["fold"].unique())


def _layer(row: LayerRank, last: int, tasks: dict[str, float]) -> LayerFinding:
    score = _defined(row.score)
    return LayerFinding(
        layer=row.layer,
        score=score,
        score_low=_defined(row.score_low),
        score_high=_defined(row.score_high),
        rank=None if score is None else row.rank,
        gain=_defined(row.gain),
        gain_low=_defined(row.gain_low),
        gain_high=_defined(row.gain_high),
        cost=cost(row.layer, last),
        tasks={label: _defined(value) for label, value in tasks.items()},
    )


def _defined(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _encoded(run: Run, subject: Subject, dataset: DatasetConfig) -> Iterator[Encoded]:
    for condition in (CLEAN, *map(view_name, range(run.config.views.count))):
        manifest = load(run.root, partition("embeddings", subject, dataset, condition))
        if manifest is None:
            continue
        facts = manifest.facts()
        yield Encoded(
            dataset.name,
            condition,
            int(facts["prompts"]),
            len(manifest.receipts),
            int(facts["tokens"]),
            int(facts["truncated"]),
            int(facts["skipped_no_tokens"]),
            round(float(facts["model_seconds"]), 3),
        )


def _series(run: Run, subject: Subject, dataset: DatasetConfig) -> list[Series] | None:
    """Return the measured metrics in the registry's order; None if nothing was measured."""
    manifest = load(run.root, partition("layer_metrics", subject, dataset))
    if manifest is None:
        return None
    found: dict[tuple[str, str, str, str], list[MetricValue]] = {}
    for key in manifest.objects():
        for row in read_table(run.root, key).to_pylist():
            name = (row["metric"], row["variant"], row["norm"], row["pooling"])
            found.setdefault(name, []).append(_value(row))
    known, asked = list(METRICS), parameters(run.config)
    order = sorted(found, key=lambda name: (known.index(name[0]) if name[0] in known else 99, name))
    return [
        Series(
            dataset.name,
            *(metric, variant, norm, pooling),
            main=metric in METRICS and variant == main_variant(metric, asked),
            values=sorted(found[metric, variant, norm, pooling], key=lambda value: value.layer),
        )
        for metric, variant, norm, pooling in order
    ]


def _value(row: Mapping[str, Any]) -> MetricValue:
    value = _defined(row["value"])
    reason = (row["reason"] or "undefined") if value is None else None
    return MetricValue(row["layer"], value, reason, row["n_prompts"], row["n_undefined"])
