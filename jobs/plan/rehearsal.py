"""A run in miniature, in memory: what it would write, written small and weighed.

Tables with a row per prompt are weighed at their real width (`jobs.plan.prompt_tables`). Everything
else is written by the stages themselves, on partitions of a few prompts and features, and weighs
what it will in the run, since it does not depend on how many prompts there are. So a new table
needs nothing here, unless it has a row per prompt.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from jobs.cluster.cluster import Cluster, Here
from jobs.config.run import RunConfig
from jobs.measure.stage import measure_layers
from jobs.plan.prompt_tables import (
    PROMPT_TABLES,
    Lengths,
    Pair,
    metric_targets,
    prompt_ids,
    write_embeddings,
    write_metrics,
)
from jobs.plan.sampling import Corpus, publish_corpus
from jobs.plan.weigh import Weight, scratch, weight
from jobs.probe.stage import score_targets, scored_groups
from jobs.probe.worker import SCALE_FREE, ScoreTarget, main_metric
from jobs.rank.stage import rank
from jobs.report.collect import collect
from jobs.report.findings import Findings
from jobs.report.page import render
from jobs.report.sections.side_by_side import side_by_side
from jobs.report.sections.training import sweeps
from jobs.run import Run, costs_partition, partition
from jobs.tasks.types import ClusteringTask, FittedTask, MtebTask
from operators.model.subject import ModelShape, Subject
from storage.manifest import Manifest, load, publish
from storage.partition import CLEAN, KEYS, partitions
from storage.root import Root

REPORT = "report"
_PROMPTS, _FEATURES = 64, 32  # of the miniature: enough for every metric to have a value
_BLOCKS, _SHALLOW = 8, (3, 5)  # deeper models are rehearsed with few blocks, twice
Row = dict[str, Any]


class Place(NamedTuple):
    """Where something is written: of which subject and dataset ("" = of the run), which table."""

    subject: str
    dataset: str
    table: str


@dataclass(frozen=True)
class Model:
    """A subject, its sizes, and the revisions of all checkpoints like it, its own first.

    `is_read` says whether its tokenizer is at hand; without it, or without texts, what measures
    whole layers cannot be rehearsed.
    """

    subject: Subject
    shape: ModelShape
    revisions: tuple[str, ...]
    is_read: bool = True

    @property
    def checkpoints(self) -> int:
        """How many checkpoints there are."""
        return len(self.revisions)

    def of(self, blocks: int) -> Model:
        """Return the model with another number of blocks."""
        return replace(self, shape=replace(self.shape, layers=blocks))


def rehearse(
    config: RunConfig,
    models: Sequence[Model],
    corpora: Sequence[Corpus],
    lengths: Callable[[Subject, Corpus], Lengths],
) -> Iterator[tuple[Place, Weight]]:
    """Yield where a run would write and how much that is, for every table and the report.

    What has a row per prompt is weighed at its real size. The rest is written by the stages
    themselves, of models with as many blocks, or, of many, of two numbers of few.
    """
    for corpus in corpora:
        for table, found in corpus.weights.items():
            yield Place("", corpus.dataset.name, table), found
    for model in models:
        for corpus in corpora:
            pair = Pair(config, model.subject, model.shape, corpus, lengths(model.subject, corpus))
            for table, weigh in PROMPT_TABLES.items():
                for each in weigh(pair):
                    place = Place(model.subject.name, corpus.dataset.name, table)
                    yield place, each.times(model.checkpoints)
    yield from _by_stages(config, models, corpora, lengths)


def _by_stages(
    config: RunConfig,
    models: Sequence[Model],
    corpora: Sequence[Corpus],
    lengths: Callable[[Subject, Corpus], Lengths],
) -> Iterator[tuple[Place, Weight]]:
    """Yield what the stages after extraction write, which of deep models grows with the depth."""
    depths = {model.subject.name: model.shape.layers for model in models}
    if max(depths.values()) <= _BLOCKS:
        yield from _staged(config, models, corpora, lengths).items()
        return
    few, more = (_staged(config, [m.of(n) for m in models], corpora, lengths) for n in _SHALLOW)
    mean = sum(depths.values()) / len(depths)
    for place, small in few.items():
        steps = (depths.get(place.subject, mean) - _SHALLOW[0]) / (_SHALLOW[1] - _SHALLOW[0])
        growth = more[place].bytes - small.bytes
        yield place, replace(small, bytes=small.bytes + growth * steps)


def _staged(
    config: RunConfig,
    models: Sequence[Model],
    corpora: Sequence[Corpus],
    lengths: Callable[[Subject, Corpus], Lengths],
) -> dict[Place, Weight]:
    """Run the stages after extraction on small partitions, and weigh what they write."""
    here = config.measure.model_copy(update={"device": "cpu"})
    config = config.model_copy(update={"measure": here})
    silence = contextlib.redirect_stdout(io.StringIO())
    with scratch() as root, silence:
        run = Run(config, root, Cluster(Here()), chosen=tuple(model.subject for model in models))
        for corpus in corpora:
            publish_corpus(corpus, root)
        for model in models:
            measured = {}
            for corpus in corpora:
                known = lengths(model.subject, corpus)
                pair = Pair(config, model.subject, model.shape, corpus, known)
                measured[corpus.dataset.name] = _publish_passes(root, pair)
            found = {name: each for name, each in measured.items() if each}
            if model.is_read and all(corpus.texts.num_rows for corpus in corpora):
                measure_layers(run, model.subject, found)
            _publish_costs(run, model)
        _publish_scores(run)
        rankings = rank(run)
        findings = collect(run, rankings)
        weights: dict[Place, Weight] = defaultdict(Weight)
        weights[Place("", "", REPORT)] = _report(findings, models)
        checkpoints = {(m.subject.name, m.subject.revision): m.checkpoints for m in models}
        for where in (each for table in KEYS for each in partitions(root, table)):
            if where.table in (*PROMPT_TABLES, "prompts", "tasks"):
                continue
            keys, sizes = where.keys, map(float, root.sizes(where.path).values())
            count = checkpoints[keys["model"], keys["revision"]]
            place = Place(keys["model"], keys.get("dataset", ""), where.table)
            weights[place] += weight([*sizes]).times(count)
    return weights


def _report(findings: Findings, models: Sequence[Model]) -> Weight:
    """Return the weight of the report of every checkpoint, each with the findings of the first."""
    subjects = [
        replace(found, revision=revision)
        for found, model in zip(findings.subjects, models, strict=True)
        for revision in model.revisions
    ]
    every = replace(
        findings,
        subjects=subjects,
        sweeps=sweeps(subjects, findings.level),
        side_by_side=side_by_side(subjects),
    )
    return weight([float(len(content)) for content in render(every).values()])


def _publish_passes(root: Root, pair: Pair) -> Manifest | None:
    """Fill the partitions of every pass with a few prompts; return the clean `prompt_metrics`."""
    rng = np.random.default_rng(0)
    ids = prompt_ids(_PROMPTS, pair.corpus)
    clean_GND = rng.normal(size=(len(pair.groups), len(ids), _FEATURES)).astype(np.float32)
    for each in pair.passes:
        target = each.embeddings
        noise_GND = rng.normal(size=clean_GND.shape).astype(np.float32)
        vectors_GND = clean_GND + (0 if each.condition == CLEAN else 0.3) * noise_GND
        receipt = write_embeddings(root, pair, target, ids, vectors_GND)
        publish(root, target.partition, target.settings, [receipt])
    for target in metric_targets(pair):
        receipt = write_metrics(root, pair, target, ids, pair.layers)
        publish(root, target.partition, target.settings, [receipt])
    return load(root, partition("prompt_metrics", pair.subject, pair.corpus.dataset))


def _publish_scores(run: Run) -> None:
    for target in score_targets(run):
        rows = [*_score_rows(run, target)]
        run.write(target.partition, target.settings, rows)


def _score_rows(run: Run, target: ScoreTarget) -> Iterator[Row]:
    rng, task = np.random.default_rng(3), target.task
    folded = isinstance(task, (FittedTask, ClusteringTask))
    drawn = 0 if folded or isinstance(task, MtebTask) else run.config.probe.replicates
    metric = "main_score" if isinstance(task, MtebTask) else main_metric(task)
    shared = {"task_type": task.type, "metric": metric, "reason": None}
    for group in scored_groups(run, target):
        replicates = rng.random(drawn).tolist()
        for variant in target.variants:
            if not isinstance(task, SCALE_FREE):
                replicates = rng.random(drawn).tolist()
            for examples in target.examples or (0,):
                for fold in range(target.folds if folded else 1):
                    yield {
                        **asdict(group),
                        **shared,
                        "variant": variant,
                        "examples": examples,
                        "fold": fold,
                        "value": rng.random(),
                        "n_train": _PROMPTS,
                        "n_test": _PROMPTS,
                        "replicates": replicates,
                    }


def _publish_costs(run: Run, model: Model) -> None:
    rng, width = np.random.default_rng(4), model.shape.hidden_size
    rows = [
        {
            "layer": layer,
            "parameters": (layer + 1) * width**2,
            "flops_per_token": float(layer * width**2),
            "latency_ms": rng.random(),
            "tokens": 128,
            "device": "cpu",
        }
        for layer in range(model.shape.layers + 1)
    ]
    settings = {"subject": asdict(model.subject), "tokens": 128, "device": "auto"}
    run.write(costs_partition(model.subject), settings, rows)
