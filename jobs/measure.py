"""measure (CPU or GPU tasks): representation metrics over the shards.

`tokens -> prompt_metrics` shard by shard, unless the model actors have made them already, then
`prompt_metrics, embeddings -> layer_metrics` layer by layer, then `prompt_metrics -> modes` over
all datasets of a subject. No text is encoded again.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from jobs.checkpoints import shape_of
from jobs.cluster import plan_pool, run_tasks
from jobs.console import Progress, say
from jobs.corpora import DatasetConfig
from jobs.costs import measure_costs
from jobs.measurer import LayerMetrics, TokenMetrics, parameters, similarity_rows
from jobs.modes import measure_modes
from jobs.run import Run, partition
from jobs.targets import token_metric_settings, token_metrics, token_plan
from operators.metrics.registry import of_kind
from operators.metrics.variants import Views
from operators.subject import Subject
from operators.views import view_name
from storage import schema
from storage.manifest import (
    Manifest,
    Settings,
    current,
    digest_of,
    load,
    missing,
    publish,
    require,
    survey,
)
from storage.shards import Receipt, write_shard
from storage.vectors import Group, groups

LAYER_METRICS = "metrics.parquet"


def measure(run: Run) -> None:
    """Measure the cost of every layer, then every dataset; what is measured stays."""
    measure_costs(run)
    for subject in run.subjects:
        measured: dict[str, Manifest] = {}
        for dataset in run.config.datasets:
            prompt_metrics = _measure_tokens(run, subject, dataset)
            _measure_layers(run, subject, dataset, prompt_metrics)
            if prompt_metrics is not None:
                measured[dataset.name] = prompt_metrics
        measure_modes(run, subject, measured)


def _measure_tokens(run: Run, subject: Subject, dataset: DatasetConfig) -> Manifest | None:
    """Return `prompt_metrics`: as the model actors wrote it, or filled from the token states."""
    config, wanted = run.config, token_metrics(run.config)
    planned = token_plan(config, shape_of(subject, config.storage), run.prompts(dataset).rows)
    if not wanted or not (planned.fused or planned.stored):
        return None
    if planned.fused:
        return require(run.root, partition("prompt_metrics", subject, dataset))
    tokens = require(run.root, partition("tokens", subject, dataset))
    settings = {"tokens": tokens.content, **token_metric_settings(config)}
    where = tokens.partition.sibling("prompt_metrics")
    done = survey(run.root, where, settings, overwrite=run.overwrite)
    names = [receipt.name for receipt in tokens.receipts]
    units = missing(names, done)
    if not units:
        present = load(run.root, where)
        return present or publish(run.root, where, settings, done.values())
    device, cpus, gpus = _task_resources(run, len(units))
    task = TokenMetrics(
        run.root, tokens.partition, wanted, parameters(config), digest_of(settings), device
    )
    with Progress("measure", len(units), "token shards") as progress:
        for result in run_tasks(units, task.__call__, num_cpus=cpus, num_gpus=gpus):
            receipt = Receipt.from_json(result)
            done[receipt.name] = receipt
            progress.add(1)
    return publish(run.root, where, settings, done.values())


def _measure_layers(
    run: Run, subject: Subject, dataset: DatasetConfig, prompt_metrics: Manifest | None
) -> None:
    config = run.config.measure
    clean = run.embeddings(subject, dataset)
    views = _views(run, subject, dataset)
    settings: Settings = {
        "embeddings": clean.content,
        "views": [manifest.content for manifest in views],
        "prompt_metrics": prompt_metrics.content if prompt_metrics else None,
        "seed": run.config.seed,
        **config.model_dump(mode="json", exclude={"device", "token_metrics", "mode_sample"}),
    }
    where = partition("layer_metrics", subject, dataset)
    present = current(run.root, where, settings, overwrite=run.overwrite)
    if present is not None:
        say(f"  {dataset.name}: {present.rows} layer metrics, present")
        return
    units = groups(run.root, clean)
    if not units:
        raise ValueError(f"{subject}, {dataset.name}: no prompt has a vector; no text gave a token")
    device, cpus, gpus = _task_resources(run, len(units))
    task = LayerMetrics(
        run.root,
        clean,
        tuple(views),
        prompt_metrics,
        config.metrics,
        parameters(run.config),
        units[-1].layer,
        (units[0].norm, units[0].pooling),
        device,
    )
    work = [json.dumps(asdict(unit)) for unit in units]
    rows: list[dict[str, Any]] = []
    terms: dict[Group, dict[str, list[float]]] = {}
    with Progress("measure", len(units), "layers") as progress:
        for result in run_tasks(work, task.__call__, num_cpus=cpus, num_gpus=gpus):
            rows += result["rows"]
            terms[Group(**result["group"])] = result["terms"]
            progress.add(1)
    rows += similarity_rows(terms, config.metrics, int(clean.facts()["prompts"]))
    order = ("metric", "variant", "layer", "norm", "pooling")
    rows.sort(key=lambda row: [row[column] for column in order])
    table = pa.Table.from_pylist(rows, schema.LAYER_METRICS)
    blank = Receipt(LAYER_METRICS, 0, digest_of(settings), "")
    receipt = write_shard(
        run.root, where.shard(LAYER_METRICS), [table], schema.LAYER_METRICS, blank
    )
    publish(run.root, where, settings, [receipt])
    measured = sorted({row["metric"] for row in rows})
    say(f"  {dataset.name}: {', '.join(measured)} for {len(units)} layers")


def _views(run: Run, subject: Subject, dataset: DatasetConfig) -> list[Manifest]:
    if not of_kind(run.config.measure.metrics, Views):
        return []
    conditions = map(view_name, range(run.config.views.count))
    return [
        require(run.root, partition("embeddings", subject, dataset, condition))
        for condition in conditions
    ]


def _task_resources(run: Run, units: int) -> tuple[str, float, float]:
    """Return the device of a measuring task, and the CPUs and GPUs it takes."""
    device = run.config.measure.device
    pool = plan_pool(run.cluster.resources(device), device, units)
    return pool.device, 1.0, pool.num_gpus
