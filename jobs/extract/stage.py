"""extract (model actors): every prompt goes through the model once, and every layer is kept.

`tokenise (CPU tasks) -> extract (actor pool) -> receipts`. An actor writes its own shards and
returns receipts, so tensors never enter the object store.
"""

from __future__ import annotations

from collections.abc import Sequence

import ray.data

from jobs.cluster.cluster import from_units, results
from jobs.cluster.console import Progress, say
from jobs.cluster.pool import TASK_CPUS, Pool, plan_pool
from jobs.extract.targets import Sources, Target, Unit, missing_units, passes
from jobs.extract.worker import Extractor, Reader
from jobs.run import Run
from jobs.subjects import shape_of, subject_identity
from operators.model.subject import Subject
from operators.prompts.views import ViewProbabilities
from storage.manifest import current, load, missing, publish, survey
from storage.shards import Receipt

# Per actor: one in the model, the others being written. A GPU makes vectors several times faster
# than one thread writes them.
_CONCURRENT_UNITS = {"cpu": 2, "cuda": 4}
Done = dict[str, dict[str, Receipt]]


def extract(run: Run) -> None:
    """Extract every subject over every dataset and condition of the run; what exists stays."""
    for subject in run.subjects:
        _extract_subject(run, subject)


def require_extracted(run: Run) -> None:
    """Raise if a partition is not there, or was extracted with other settings."""
    for subject, dataset in run.pairs():
        for each in passes(
            run.config, subject, _sources(run, subject), dataset, run.prompts(dataset)
        ):
            for target in each.targets:
                if current(run.root, target.partition, target.settings) is None:
                    raise FileNotFoundError(
                        f"{target.partition} is not extracted: run `layerrank extract` first"
                    )


def _extract_subject(run: Run, subject: Subject) -> None:
    sources = _sources(run, subject)
    shape = sources.shape
    say(f"  {subject}: {shape.layers} blocks, {shape.hidden_size:,} features")
    unpublished: list[Target] = []
    units: list[Unit] = []
    done: Done = {}
    for dataset in run.config.datasets:
        prompts = run.prompts(dataset)
        for each in passes(run.config, subject, sources, dataset, prompts):
            for target in each.targets:
                done[target.partition.path] = survey(
                    run.root, target.partition, target.settings, overwrite=run.overwrite
                )
            absent = missing_units(each, prompts, done)
            units += absent
            unpublished += [t for t in each.targets if absent or not load(run.root, t.partition)]
    if units:
        _extract_units(run, subject, units, done)
    for target in unpublished:
        _publish(run, target, done)


def _sources(run: Run, subject: Subject) -> Sources:
    storage = run.config.storage
    return Sources(subject_identity(subject, storage), shape_of(subject, storage))


def _extract_units(run: Run, subject: Subject, units: Sequence[Unit], done: Done) -> None:
    config = run.config.extract
    pool = plan_pool(
        run.cluster.resources(config.device),
        config.device,
        len(units),
        workers=config.workers,
        threads=config.threads,
        may_grow=run.cluster.may_grow,
    )
    total = sum(unit.prompts for unit in units)
    conditions = len({unit.condition for unit in units})
    say(
        f"  {total:,} texts to encode: {len(units)} shards, {conditions} conditions, "
        f"{pool.size} x {pool.device}"
    )
    with Progress("extract", total, "texts") as progress:
        for result in results(_plan(run, subject, units, pool)):
            for path, receipt in result["receipts"].items():
                written = Receipt.from_json(receipt)
                done[path][written.name] = written
            progress.add(result["texts"], result["tokens"])
    say(f"  {progress.tokens:,} tokens in {progress.seconds:.0f} s, loading the model included")


def _plan(run: Run, subject: Subject, units: Sequence[Unit], pool: Pool) -> ray.data.Dataset:
    config, views = run.config, run.config.views
    probabilities = ViewProbabilities(views.keyboard, views.random_char, views.split)
    reader = Reader(
        run.root, subject, config.seed, probabilities, config.extract.max_tokens, config.storage
    )
    return (
        from_units([unit.to_json() for unit in units])
        .map_batches(
            reader.read,
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=TASK_CPUS,
            compute=ray.data.TaskPoolStrategy(size=pool.readers),
        )
        .map_batches(
            Extractor,
            fn_constructor_args=(run.root, subject, config, pool),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
            compute=ray.data.ActorPoolStrategy(
                min_size=pool.size,
                max_size=pool.most,
                max_concurrent_calls_per_actor=_CONCURRENT_UNITS[pool.device],
                max_tasks_in_flight_per_actor=_CONCURRENT_UNITS[pool.device],
                enable_true_multi_threading=True,
            ),
        )
    )


def _publish(run: Run, target: Target, done: Done) -> None:
    receipts = done[target.partition.path]
    absent = missing(target.expected, receipts)
    if absent:
        raise RuntimeError(
            f"{target.partition}: {len(absent)} shards are missing, first {absent[0]}"
        )
    publish(run.root, target.partition, target.settings, [receipts[n] for n in target.expected])
