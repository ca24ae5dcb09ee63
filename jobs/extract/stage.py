"""extract (model actors): every prompt goes through the model once, and every layer is kept.

`tokenise (readers) -> extract (workers that hold the model) -> receipts`. A worker writes its own
shards and returns receipts, so no tensor travels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from jobs.cluster.console import Progress, say
from jobs.extract.targets import Pass, Target, Unit, missing_units, passes
from jobs.extract.worker import Extractor, read
from jobs.run import Run
from operators.model.subject import Subject
from storage.manifest import Manifest, missing
from storage.shards import Receipt

Done = dict[str, dict[str, Receipt]]  # receipts by name, by the path of their partition


def extract(run: Run) -> None:
    """Extract every subject over every dataset and condition of the run; what exists stays."""
    for subject in run.subjects:
        shape = run.shape(subject)
        say(f"  {subject}: {shape.layers} blocks, {shape.hidden_size:,} features")
        unpublished: list[Target] = []
        units: list[Unit] = []
        done: Done = {}
        for prompts, each in _passes(run, subject):
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
            receipts = done[target.partition.path]
            lost = missing(list(target.shares), receipts)
            if lost:
                raise RuntimeError(
                    f"{target.partition}: {len(lost)} shards are missing, first {lost[0]}"
                )
            in_order = [receipts[name] for name in target.shares]
            run.publish(target.partition, target.settings, in_order, "extract")


def require_extracted(run: Run) -> None:
    """Raise if a partition is not there, or was extracted with other settings."""
    for subject in run.subjects:
        for target in (target for _, each in _passes(run, subject) for target in each.targets):
            if run.manifests.current(target.partition, target.settings) is None:
                raise FileNotFoundError(
                    f"{target.partition} is not extracted: run `layerrank extract` first"
                )


def _passes(run: Run, subject: Subject) -> Iterator[tuple[Manifest, Pass]]:
    """Yield every pass of a subject with the prompts that go through it."""
    identity, shape = run.identity(subject), run.shape(subject)
    for dataset in run.config.datasets:
        prompts = run.prompts(dataset)
        for each in passes(run.config, subject, identity, shape, dataset, prompts):
            yield prompts, each


def _extract_units(run: Run, subject: Subject, units: Sequence[Unit], done: Done) -> None:
    config, total = run.config.extract, sum(unit.prompts for unit in units)
    count = {"workers": config.workers, "threads": config.threads}
    pool = run.cluster.pool(config.device, len(units), **count)
    feed = partial(read, run.root, subject, run.config)
    make = partial(Extractor, run.root, subject, run.config, pool.device, pool.threads)
    conditions = len({unit.condition for unit in units})
    say(f"  {total:,} texts to encode: {len(units)} shards, {conditions} conditions")
    with Progress("extract", total, "texts") as progress:
        for encoded in run.cluster.actors("extract", units, make, pool, feed=feed):
            for path, receipt in encoded.receipts.items():
                done[path][receipt.name] = receipt
            progress.add(encoded.texts, encoded.tokens)
    say(f"  {progress.tokens:,} tokens in {progress.seconds:.0f} s, loading the model included")
