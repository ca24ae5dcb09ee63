"""measure (CPU or GPU tasks): representation metrics over the shards.

`tokens -> prompt_metrics` shard by shard, unless the model actors have made them already, then
`prompt_metrics, embeddings -> layer_metrics` layer by layer, of the clean pass and of every
condition, then how the metrics change with the conditions, and last `prompt_metrics -> modes` over
all datasets of a subject. No text is encoded again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jobs.cluster.console import Progress, say
from jobs.config.datasets import DatasetConfig
from jobs.config.metrics import parameters, token_metric_settings, token_metrics, token_plan
from jobs.measure.costs import measure_costs
from jobs.measure.modes import measure_modes
from jobs.measure.sensitivity import measure_sensitivity
from jobs.measure.worker import AllLayers, LayerMetrics, Measured, TokenMetrics, similarity_rows
from jobs.run import Run, partition
from operators.metrics.registry import of_kind
from operators.metrics.variants import Views
from operators.model.subject import Subject
from operators.prompts.views import view_name
from storage.manifest import Manifest, Settings, digest_of, missing
from storage.partition import CLEAN, Partition
from storage.vectors import Group, groups

_ORDER = ("metric", "variant", "layer", "norm", "pooling")
_OF_VIEWS = {"temperature", "delta", "permutations"}  # parameters of metrics that compare views
_NOT_OF_LAYERS = {"device", "token_metrics", "mode_sample"}


def measure(run: Run) -> None:
    """Measure the cost of every layer, then every dataset; what is measured stays."""
    measure_costs(run)
    for subject in run.subjects:
        datasets = run.config.datasets
        found = {dataset.name: _measure_tokens(run, subject, dataset) for dataset in datasets}
        measure_layers(run, subject, {name: each for name, each in found.items() if each})


def measure_layers(run: Run, subject: Subject, measured: Mapping[str, Manifest]) -> None:
    """Measure a subject's layers; `measured` is the `prompt_metrics` of each dataset by name."""
    for dataset in run.config.datasets:
        _measure_layers(run, subject, dataset, measured.get(dataset.name))
        measure_sensitivity(run, subject, dataset)
    measure_modes(run, subject, measured)


def _measure_tokens(run: Run, subject: Subject, dataset: DatasetConfig) -> Manifest | None:
    """Return `prompt_metrics`: as the model actors wrote it, or filled from the token states."""
    config, wanted = run.config, token_metrics(run.config)
    planned = token_plan(config, run.shape(subject), run.prompts(dataset).rows)
    if not wanted or not (planned.fused or planned.stored):
        return None
    if planned.fused:
        return run.manifests.require(partition("prompt_metrics", subject, dataset))
    tokens = run.manifests.require(partition("tokens", subject, dataset))
    settings = {"tokens": tokens.content, **token_metric_settings(config)}
    where = tokens.partition.sibling("prompt_metrics")
    done = run.manifests.survey(where, settings, overwrite=run.overwrite)
    names = [receipt.name for receipt in tokens.receipts]
    units = missing(names, done)
    present = run.manifests.load(where)
    if present is not None:
        return present
    device = run.cluster.device(config.measure.device)
    work = TokenMetrics(
        run.root, tokens.partition, wanted, parameters(config), digest_of(settings), device
    )
    with Progress("measure", len(units), "token shards") as progress:
        for receipt in run.cluster.each("measure", units, work, device=device):
            done[receipt.name] = receipt
            progress.add(1)
    return run.publish(where, settings, done.values(), "measure")


@dataclass(frozen=True)
class _Target:
    """The `layer_metrics` of one condition: where they go, and what makes them."""

    where: Partition
    settings: Settings
    task: LayerMetrics
    groups: list[Group]

    def rows(self, found: Mapping[Group, Measured]) -> list[dict[str, Any]]:
        """Return the sorted rows from what every group gave."""
        terms = {group: each.terms for group, each in found.items()}
        prompts = int(self.task.embeddings.facts()["prompts"])
        rows = [row for each in found.values() for row in each.rows]
        rows += similarity_rows(terms, self.task.metrics, prompts)
        return sorted(rows, key=lambda row: [row[column] for column in _ORDER])


def _measure_layers(
    run: Run, subject: Subject, dataset: DatasetConfig, prompt_metrics: Manifest | None
) -> None:
    """Measure the clean pass and every condition, all of their layers in one plan."""
    targets = {CLEAN: _clean_target(run, subject, dataset, prompt_metrics)}
    for condition in run.config.conditions.passes():
        targets[condition.name] = _condition_target(run, subject, dataset, condition.name)
    present = {
        name: run.manifests.current(each.where, each.settings, overwrite=run.overwrite)
        for name, each in targets.items()
    }
    rows = sum(manifest.rows for manifest in present.values() if manifest)
    absent = {name: target for name, target in targets.items() if present[name] is None}
    if rows:
        say(f"  {dataset.name}: {rows:,} layer metrics, present")
    if absent:
        _measure_targets(run, dataset, absent)


def _measure_targets(run: Run, dataset: DatasetConfig, targets: Mapping[str, _Target]) -> None:
    units = [(name, group) for name, each in targets.items() for group in each.groups]
    device = run.cluster.device(run.config.measure.device)
    work = AllLayers({name: replace(each.task, device=device) for name, each in targets.items()})
    found: dict[str, dict[Group, Measured]] = {name: {} for name in targets}
    metrics: set[str] = set()
    with Progress("measure", len(units), "layers") as progress:
        for name, measured in run.cluster.each("measure", units, work, device=device):
            found[name][measured.group] = measured
            target = targets[name]
            if len(found[name]) == len(target.groups):
                rows = target.rows(found.pop(name))
                run.write(target.where, target.settings, rows)
                metrics |= {row["metric"] for row in rows}
            progress.add(1)
    others = f" under {len(targets)} conditions" if len(targets) > 1 else ""
    say(f"  {dataset.name}: {', '.join(sorted(metrics))} for {len(units)} layers{others}")


def _clean_target(
    run: Run, subject: Subject, dataset: DatasetConfig, prompt_metrics: Manifest | None
) -> _Target:
    views = _views(run, subject, dataset)
    own = run.config.measure.model_dump(mode="json", exclude=_NOT_OF_LAYERS)
    clean = run.embeddings(subject, dataset)
    return _target(run, clean, prompt_metrics, tuple(views), own)


def _condition_target(
    run: Run, subject: Subject, dataset: DatasetConfig, condition: str
) -> _Target:
    """Return what is measured under a condition: everything but what needs views."""
    embeddings = run.manifests.require(partition("embeddings", subject, dataset, condition))
    prompt_metrics = (
        run.manifests.require(embeddings.partition.sibling("prompt_metrics"))
        if token_metrics(run.config)
        else None
    )
    config = run.config.measure
    own = config.model_dump(mode="json", exclude=_NOT_OF_LAYERS | _OF_VIEWS)
    views = of_kind(config.metrics, Views)
    own["metrics"] = [name for name in config.metrics if name not in views]
    return _target(run, embeddings, prompt_metrics, (), own)


def _target(
    run: Run,
    embeddings: Manifest,
    prompt_metrics: Manifest | None,
    views: tuple[Manifest, ...],
    own: dict[str, Any],
) -> _Target:
    """Return the target of one condition; `own` are the parameters that its metrics depend on."""
    settings: Settings = {
        "embeddings": embeddings.content,
        "views": [manifest.content for manifest in views],
        "prompt_metrics": prompt_metrics.content if prompt_metrics else None,
        "seed": run.config.seed,
        **own,
    }
    units = groups(run.root, embeddings)
    if not units:
        raise ValueError(f"{embeddings.partition}: no prompt has a vector; no text gave a token")
    task = LayerMetrics(
        run.root,
        embeddings,
        views,
        prompt_metrics,
        tuple(own["metrics"]),
        parameters(run.config),
        units[-1].layer,
        (units[0].norm, units[0].pooling),
    )
    return _Target(embeddings.partition.sibling("layer_metrics"), settings, task, units)


def _views(run: Run, subject: Subject, dataset: DatasetConfig) -> list[Manifest]:
    if not of_kind(run.config.measure.metrics, Views):
        return []
    conditions = map(view_name, range(run.config.views.count))
    return [
        run.manifests.require(partition("embeddings", subject, dataset, condition))
        for condition in conditions
    ]
