"""Everything that a run found, gathered from its rankings, manifests and tables."""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jobs.config.datasets import DatasetConfig
from jobs.config.metrics import parameters
from jobs.config.run import graded_conditions
from jobs.prepare.records import SKIPPED
from jobs.rank.stage import RankedTask, SubjectRanking, ranked_rows
from jobs.report.findings import (
    SCHEMA_VERSION,
    DatasetFinding,
    Encoded,
    Findings,
    LayerFinding,
    MetricValue,
    Series,
    SubjectFinding,
    TaskFinding,
)
from jobs.report.sections.choices import choices, metric_correlations
from jobs.report.sections.conditions import responses
from jobs.report.sections.curves import curves
from jobs.report.sections.modes import modes_of
from jobs.report.sections.side_by_side import side_by_side
from jobs.report.sections.training import sweeps
from jobs.run import TABLES, Run, partition
from operators.metrics.registry import METRICS, main_variant
from operators.model.subject import Subject
from operators.prompts.views import view_name
from storage.partition import CLEAN

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


def collect(run: Run, rankings: Sequence[SubjectRanking]) -> Findings:
    """Gather the findings of a run from its rankings, manifests and tables."""
    config = run.config
    subjects = [_subject(run, ranking) for ranking in rankings]
    return Findings(
        schema_version=SCHEMA_VERSION,
        run=config.name,
        level=config.rank.level,
        draws=config.rank.draws,
        seeds={"run": config.seed, "probe": config.probe.seed},
        versions=_versions(),
        settings=_without_passwords(config.model_dump(mode="json", exclude={"storage"})),
        datasets=[_dataset(run, dataset) for dataset in config.datasets],
        subjects=subjects,
        made=_made(run),
        sweeps=sweeps(subjects, config.rank.level),
        side_by_side=side_by_side(subjects),
    )


def _made(run: Run) -> dict[str, list[str]]:
    """Return what ran the work of each stage, as its tables say; several after a resumed run."""
    tables = [partition("prompts", dataset.name) for dataset in run.config.datasets]
    for subject, dataset in run.pairs():
        tables += [partition(name, subject, dataset) for name in ("embeddings", "layer_metrics")]
        tables += [partition("probe_scores", subject, dataset, task) for task in dataset.tasks]
    found: dict[str, list[str]] = {}
    for where in tables:
        manifest = run.manifests.load(where)
        known = found.setdefault(TABLES[where.table].stage, [])
        if manifest and manifest.made and manifest.made not in known:
            known.append(manifest.made)
    return {stage: made for stage, made in found.items() if made}


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
    subject, datasets, config = ranking.subject, run.config.datasets, run.config.rank
    measured = {dataset.name: _series(run, subject, dataset) for dataset in datasets}
    series = [each for found in measured.values() for each in found or []]
    return SubjectFinding(
        name=subject.name,
        revision=subject.revision,
        model=_without_passwords(subject.model),
        blocks=max(ranking.layers),
        norm=config.norm,
        pooling=config.pooling,
        variant=config.variant,
        policy=config.policy,
        verdict=ranking.verdict,
        oracle=_defined(ranking.evidence.oracle),
        search_share=_search_share(run, ranking),
        tasks=[_task(run, ranking, task) for task in ranking.tasks],
        layers=_layers(ranking),
        measured_on=_measured_on(ranking),
        choices=choices(run, subject),
        correlations=metric_correlations(run, subject),
        curves=curves(run, ranking),
        encoded=[each for dataset in datasets for each in _encoded(run, subject, dataset)],
        metrics=series,
        unmeasured=[name for name, found in measured.items() if found is None],
        responses=[each for dataset in datasets for each in responses(run, subject, dataset)],
        modes=modes_of(run, subject),
    )


def _task(run: Run, ranking: SubjectRanking, task: RankedTask) -> TaskFinding:
    rows = ranked_rows(run, partition("probe_scores", ranking.subject, task.dataset, task.task))
    folds = len({row["fold"] for row in rows})
    name, kind = task.task.name, task.scores.task_type
    return TaskFinding(task.label, name, task.dataset.name, kind, task.metric, folds)


def _search_share(run: Run, ranking: SubjectRanking) -> float | None:
    """Return the share of a full sweep that a search scored; None if there was none."""
    for task in ranking.tasks:
        manifest = run.manifests.require(
            partition("probe_scores", ranking.subject, task.dataset, task.task)
        )
        share = manifest.receipts[0].facts.get("search_share")
        if share is not None:
            return float(share)
    return None


def _layers(ranking: SubjectRanking) -> list[LayerFinding]:
    labels, scores = [task.label for task in ranking.tasks], ranking.scores_LT.tolist()
    found = []
    for index, row in enumerate(ranking.evidence.layers):
        values = {name: _defined(value) for name, value in asdict(row).items()}
        cost = ranking.costs[row.layer]
        tasks = zip(labels, scores[index] if labels else [], strict=True)
        own: dict[str, Any] = {
            **values,
            "layer": row.layer,
            "rank": None if values["score"] is None else row.rank,
        }
        found.append(
            LayerFinding(
                **own,
                cost=float(ranking.cost_L[index]),
                front=bool(ranking.front_L[index]),
                parameters=cost.parameters,
                flops_per_token=cost.flops_per_token,
                latency_ms=cost.latency_ms,
                tasks={label: _defined(value) for label, value in tasks},
            )
        )
    return found


def _measured_on(ranking: SubjectRanking) -> str:
    """Return what the latencies were measured with, in words."""
    cost = ranking.costs[ranking.layers[-1]]
    return f"one prompt of {cost.tokens} tokens on a {'GPU' if cost.device == 'cuda' else 'CPU'}"


def _defined(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _encoded(run: Run, subject: Subject, dataset: DatasetConfig) -> Iterator[Encoded]:
    views = map(view_name, range(run.config.views.count))
    graded = (each.name for each in graded_conditions(run.config, dataset))
    for condition in (CLEAN, *views, *graded):
        manifest = run.manifests.load(partition("embeddings", subject, dataset, condition))
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
    where = partition("layer_metrics", subject, dataset)
    if run.manifests.load(where) is None:
        return None
    found: dict[tuple[str, str, str, str], list[MetricValue]] = {}
    for row in run.rows(where):
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
