"""measure (CPU or GPU tasks): what each layer costs, and representation metrics over the shards.

`tokens -> prompt_metrics` shard by shard, unless the model actors have made them already, then
`prompt_metrics, embeddings -> layer_metrics` layer by layer, of the clean pass and of every
condition, then how the metrics change with the conditions, and `prompt_metrics -> modes` over all
datasets of a subject. Last the user's own functions, `embeddings -> own_metrics`. No text is
encoded again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

from layerrank.jobs.cluster.console import Progress, say
from layerrank.jobs.cluster.pool import Pool
from layerrank.jobs.config.datasets import DatasetConfig
from layerrank.jobs.config.metrics import (
    left_out,
    metrics_of,
    parameters,
    token_metric_settings,
    token_metrics,
    token_plan,
)
from layerrank.jobs.config.settings import StorageConfig
from layerrank.jobs.measure.modes import modes, prompt_traits
from layerrank.jobs.measure.own import measured_groups, own_metrics
from layerrank.jobs.measure.pieces import Piece, work_on
from layerrank.jobs.measure.sensitivity import sensitivity
from layerrank.jobs.measure.worker import (
    LayerMetrics,
    Measured,
    Row,
    layer_rows,
    measure_shard,
)
from layerrank.jobs.run import Run, partition
from layerrank.jobs.subjects import local
from layerrank.operators.later import Later
from layerrank.operators.metrics.registry import Views, of_kind
from layerrank.operators.model.backend import load_backend
from layerrank.operators.model.cost import layer_costs
from layerrank.operators.model.subject import Subject
from layerrank.operators.prompts.views import view_name
from layerrank.storage.manifest import Manifest, Settings, digest_of
from layerrank.storage.partition import CLEAN
from layerrank.storage.shards import RemovedError

if TYPE_CHECKING:
    import torch
else:
    torch = Later("torch")

_TOKENS = 128  # of the prompt whose forward passes are measured
# Parameters of metrics that compare views.
_OF_VIEWS = {"temperature", "delta", "permutations", "dime_sample"}
_NOT_OF_LAYERS = {"device", "token_metrics", "mode_sample"}


def measure(run: Run) -> None:
    """Measure what is not measured yet, subject by subject; what is there stays.

    What can be measured side by side is one plan: the costs and every layer of all datasets. What
    is made of these tables comes after them, in another.
    """
    if without := left_out(run.config):
        say(f"  {without}")
    for subject in run.subjects:
        found = {each.name: _measure_tokens(run, subject, each) for each in run.config.datasets}
        measured = {name: each for name, each in found.items() if each}
        datasets = run.config.datasets
        work_on(
            run.cluster,
            [
                *costs(run, subject),
                *(p for each in datasets for p in _layers(run, subject, each, measured)),
                *prompt_traits(run, subject, measured),
            ],
        )
        for dataset in datasets:
            for name in () if run.config.keep.views else _views(run):
                run.manifests.remove(partition("embeddings", subject, dataset, name), "keep.views")
        slopes = (p for each in datasets for p in sensitivity(run, subject, each))
        work_on(run.cluster, [*slopes, *modes(run, subject, measured)])
    # Last, so that a function that fails leaves everything else.
    work_on(run.cluster, [piece for pair in run.pairs() for piece in own_metrics(run, *pair)])


def costs(run: Run, subject: Subject) -> list[Piece]:
    """Return the piece that measures the costs of a subject's layers, if they are not there."""
    config = run.config.extract
    settings = {
        # The device decides how long a pass takes; which machine it was is not known before.
        "subject": run.identity(subject),
        "tokens": _TOKENS,
        "device": config.device,
    }
    where = partition("layer_costs", subject)
    if run.manifests.current(where, settings, overwrite=run.overwrite):
        return []
    pool = run.cluster.pool(config.device, 1, threads=config.threads)

    def done(found: list[list[Row]]) -> str:
        (rows,) = found
        run.write(where, settings, rows)
        last = max(rows, key=itemgetter("layer"))["latency_ms"]
        return f"  {subject}: cost of {len(rows)} layers, {last:.1f} ms the last"

    work = partial(_costs, run.config.storage, pool)
    # Of one thread, it is like every other unit.
    cpus = 1.0 if pool.threads == 1 else pool.num_cpus
    return [Piece([subject], work, done, pool.device, cpus)]


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
    layers, counted = run.shape(subject).layers + 1, run.cluster.counted
    with Progress("measure", len(units) * layers, "layers", counted=counted) as progress:
        for receipt in run.cluster.each("measure", units, work, device=device):
            done[receipt.name] = receipt
            progress.add(layers)
    return run.publish(where, settings, done.values(), "measure")


def _layers(
    run: Run, subject: Subject, dataset: DatasetConfig, prompt_metrics: Mapping[str, Manifest]
) -> list[Piece]:
    """Return what measures the layers of a dataset: a piece for the clean pass and each condition.

    `prompt_metrics` has those of the clean pass, by the name of their dataset.
    """
    conditions = [CLEAN, *(each.name for each in run.config.conditions.passes())]
    clean = prompt_metrics.get(dataset.name)
    wanted = {name: _task(run, subject, dataset, name, clean) for name in conditions}
    current = partial(run.manifests.current, overwrite=run.overwrite)
    present = {name: current(task.target, task.settings) for name, task in wanted.items()}
    if rows := sum(manifest.rows for manifest in present.values() if manifest):
        say(f"  {dataset.name}: {rows:,} layer metrics, present")
    absent = [name for name in conditions if present[name] is None]
    if not absent:
        return []
    if removed := [each for name in absent for each in wanted[name].views if each.removed]:
        for each in removed:
            run.manifests.withdraw(each.partition)
        raise RemovedError(removed[0].partition, "", removed[0].removed)
    device = run.cluster.device(run.config.measure.device)

    def done(task: LayerMetrics, found: list[Measured]) -> str:
        written = [*layer_rows(task, {each.group: each for each in found})]
        written.sort(key=itemgetter("metric", "variant", "layer", "norm", "pooling"))
        run.write(task.target, task.settings, written)
        metrics = sorted({row["metric"] for row in written})
        condition = task.target.keys["condition"]
        under = "" if condition == CLEAN else f", {condition}"
        told = f"  {dataset.name}{under}: {', '.join(metrics)} for {len(found)} layers"
        return told if metrics else ""

    tasks = [replace(wanted[name], device=device) for name in absent]
    return [Piece(each.groups, each.measure, partial(done, each), device) for each in tasks]


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
        own["metrics"] = [name for name in metrics_of(run.config) if name not in of_views]
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
    units = measured_groups(run, embeddings)
    given, measured = (run.root, embeddings, views, prompt_metrics), own["metrics"]
    return LayerMetrics(*given, measured, parameters(run.config), units, settings)
