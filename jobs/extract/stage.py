"""extract (model actors): every prompt goes through the model once, and every layer is kept.

`tokenise (readers) -> extract (workers that hold the model) -> receipts`. A worker writes its own
shards and returns receipts, so no tensor travels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from jobs.cluster.console import Progress, say
from jobs.extract.targets import Sources, Target, Unit, missing_units, passes
from jobs.extract.worker import Extractor, Reader
from jobs.run import Run
from operators.model.subject import Subject
from operators.prompts.views import ViewProbabilities
from storage.manifest import missing
from storage.shards import Receipt

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
                if run.manifests.current(target.partition, target.settings) is None:
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
                done[target.partition.path] = run.manifests.survey(
                    target.partition, target.settings, overwrite=run.overwrite
                )
            absent = missing_units(each, prompts, done)
            units += absent
            unpublished += [
                target
                for target in each.targets
                if absent or not run.manifests.load(target.partition)
            ]
    if units:
        _extract_units(run, subject, units, done)
    for target in unpublished:
        _publish(run, target, done)


def _sources(run: Run, subject: Subject) -> Sources:
    return Sources(run.identity(subject), run.shape(subject))


def _extract_units(run: Run, subject: Subject, units: Sequence[Unit], done: Done) -> None:
    config, views = run.config.extract, run.config.views
    pool = run.cluster.pool(
        config.device, len(units), workers=config.workers, threads=config.threads
    )
    probabilities = ViewProbabilities(views.keyboard, views.random_char, views.split)
    reader = Reader(
        run.root, subject, run.config.seed, probabilities, config.max_tokens, run.config.storage
    )
    make = partial(Extractor, run.root, subject, run.config, pool.device, pool.threads)
    total = sum(unit.prompts for unit in units)
    conditions = len({unit.condition for unit in units})
    say(f"  {total:,} texts to encode: {len(units)} shards, {conditions} conditions")
    with Progress("extract", total, "texts") as progress:
        for encoded in run.cluster.actors("extract", units, make, pool, feed=reader.read):
            for path, receipt in encoded.receipts.items():
                done[path][receipt.name] = receipt
            progress.add(encoded.texts, encoded.tokens)
    say(f"  {progress.tokens:,} tokens in {progress.seconds:.0f} s, loading the model included")


def _publish(run: Run, target: Target, done: Done) -> None:
    receipts = done[target.partition.path]
    absent = missing(target.expected, receipts)
    if absent:
        raise RuntimeError(
            f"{target.partition}: {len(absent)} shards are missing, first {absent[0]}"
        )
    receipts_in_order = [receipts[name] for name in target.expected]
    run.publish(target.partition, target.settings, receipts_in_order, "extract")
