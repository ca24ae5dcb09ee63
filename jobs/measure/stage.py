"""measure (CPU or GPU tasks): what each layer costs, and representation metrics over the shards.

`tokens -> prompt_metrics` shard by shard, unless the model actors have made them already, then
`prompt_metrics, embeddings -> layer_metrics` layer by layer, of the clean pass and of every
condition, then how the metrics change with the conditions, and last `prompt_metrics -> modes` over
all datasets of a subject. No text is encoded again.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from operator import itemgetter

import torch

from jobs.cluster.console import Progress, say
from jobs.cluster.pool import Pool
from jobs.config.datasets import DatasetConfig
from jobs.config.metrics import (
    left_out,
    metrics_of,
    parameters,
    token_metric_settings,
    token_metrics,
    token_plan,
)
from jobs.config.settings import StorageConfig
from jobs.measure.modes import measure_modes
from jobs.measure.sensitivity import measure_sensitivity
from jobs.measure.worker import (
    LayerMetrics,
    Measured,
    Row,
    layer_rows,
    measure_group,
    measure_shard,
)
from jobs.run import Run, partition
from jobs.subjects import local
from operators.metrics.registry import Views, of_kind
from operators.model.backend import load_backend
from operators.model.cost import layer_costs
from operators.model.subject import Subject
from operators.prompts.views import view_name
from storage.layers import Group, groups
from storage.manifest import Manifest, Settings, digest_of
from storage.partition import CLEAN
from storage.shards import RemovedError

_TOKENS = 128  # of the prompt whose forward passes are measured
# Parameters of metrics that compare views.
_OF_VIEWS = {"temperature", "delta", "permutations", "dime_sample"}
_NOT_OF_LAYERS = {"device", "token_metrics", "mode_sample"}


def measure(run: Run) -> None:
    """Measure the cost of every layer, then every dataset; what is measured stays."""
    measure_costs(run)
    if without := left_out(run.config):
        say(f"  {without}")
    for subject in run.subjects:
        found = {each.name: _measure_tokens(run, subject, each) for each in run.config.datasets}
        measured = {name: each for name, each in found.items() if each}
        for dataset in run.config.datasets:
            _measure_layers(run, subject, dataset, measured.get(dataset.name))
            measure_sensitivity(run, subject, dataset)
            for name in () if run.config.keep.views else _views(run):
                run.manifests.remove(partition("embeddings", subject, dataset, name), "keep.views")
        measure_modes(run, subject, measured)


def measure_costs(run: Run) -> None:
    """Measure the layers of every subject whose costs are not there yet: one worker, once."""
    config = run.config.extract

    def measured(subject: Subject) -> list[Row]:
        pool = run.cluster.pool(config.device, 1, threads=config.threads)
        work = partial(_costs, run.config.storage, pool)
        units = run.cluster.each("measure", [subject], work, device=pool.device, cpus=pool.num_cpus)
        return [row for rows in units for row in rows]

    for subject in run.subjects:
        settings = {
            # The device decides how long a pass takes; which machine it was is not known before.
            "subject": run.identity(subject),
            "tokens": _TOKENS,
            "device": config.device,
        }
        where = partition("layer_costs", subject)
        manifest, made = run.make(where, settings, partial(measured, subject))
        if made:
            last = max(run.rows(where), key=itemgetter("layer"))["latency_ms"]
            say(f"  {subject}: cost of {manifest.rows} layers, {last:.1f} ms the last")


def _costs(storage: StorageConfig, pool: Pool, subject: Subject) -> list[Row]:
    torch.set_num_threads(pool.threads)
    model = load_backend(local(subject, storage), torch.device(pool.device))
    return [asdict(cost) for cost in layer_costs(model, _TOKENS)]


def _views(run: Run) -> list[str]:
    return [*map(view_name, range(run.config.views.count))]


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
    present = run.manifests.load(where)
    if present is not None:
        return present
    units = [each for each in tokens.shards(run.root) if each.receipt.name not in done]
    device = run.cluster.device(config.measure.device)
    work = partial(measure_shard, wanted, parameters(config), digest_of(settings), device)
    with Progress("measure", len(units), "token shards") as progress:
        for receipt in run.cluster.each("measure", units, work, device=device):
            done[receipt.name] = receipt
            progress.add(1)
    return run.publish(where, settings, done.values(), "measure")


def _measure_layers(
    run: Run, subject: Subject, dataset: DatasetConfig, prompt_metrics: Manifest | None
) -> None:
    """Measure the clean pass and every condition, all of their layers in one plan."""
    conditions = [CLEAN, *(each.name for each in run.config.conditions.passes())]
    wanted = {name: _task(run, subject, dataset, name, prompt_metrics) for name in conditions}
    current = partial(run.manifests.current, overwrite=run.overwrite)
    present = {name: current(task.target, task.settings) for name, task in wanted.items()}
    if rows := sum(manifest.rows for manifest in present.values() if manifest):
        say(f"  {dataset.name}: {rows:,} layer metrics, present")
    absent = [name for name in conditions if present[name] is None]
    if not absent:
        return
    if removed := [each for name in absent for each in wanted[name].views if each.removed]:
        for each in removed:
            run.manifests.withdraw(each.partition)
        raise RemovedError(removed[0].partition, "", removed[0].removed)
    device = run.cluster.device(run.config.measure.device)
    tasks = {name: replace(wanted[name], device=device) for name in absent}
    units = [(name, group) for name, task in tasks.items() for group in task.groups]
    found: dict[str, dict[Group, Measured]] = {name: {} for name in absent}
    metrics: set[str] = set()
    with Progress("measure", len(units), "layers") as progress:
        work = partial(measure_group, tasks)
        for name, measured in run.cluster.each("measure", units, work, device=device):
            found[name][measured.group] = measured
            task = tasks[name]
            if len(found[name]) == len(task.groups):
                written = [*layer_rows(task, found.pop(name))]
                written.sort(key=itemgetter("metric", "variant", "layer", "norm", "pooling"))
                run.write(task.target, task.settings, written)
                metrics |= {row["metric"] for row in written}
            progress.add(1)
    others = f" under {len(absent)} conditions" if len(absent) > 1 else ""
    say(f"  {dataset.name}: {', '.join(sorted(metrics))} for {len(units)} layers{others}")


def _task(
    run: Run,
    subject: Subject,
    dataset: DatasetConfig,
    condition: str,
    prompt_metrics: Manifest | None,
) -> LayerMetrics:
    """Return what is measured under a condition.

    Views are of the clean pass alone; so are `prompt_metrics`, of which a condition has its own.
    """
    config = run.config.measure
    of_views = of_kind(config.metrics, Views)
    embeddings = run.manifests.require(partition("embeddings", subject, dataset, condition))
    own = config.settings(exclude=_NOT_OF_LAYERS) | {"metrics": [*metrics_of(run.config)]}
    names = _views(run) if of_views and condition == CLEAN else ()
    views = [run.manifests.require(partition("embeddings", subject, dataset, n)) for n in names]
    if condition != CLEAN:
        own = {name: value for name, value in own.items() if name not in _OF_VIEWS}
        own["metrics"] = [name for name in config.metrics if name not in of_views]
        prompt_metrics = None
        if token_metrics(run.config):
            where = embeddings.partition.sibling("prompt_metrics")
            prompt_metrics = run.manifests.require(where)
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
    given, measured = (run.root, embeddings, views, prompt_metrics), own["metrics"]
    return LayerMetrics(*given, measured, parameters(run.config), units, settings)
