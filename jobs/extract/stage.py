"""extract (model actors): every prompt goes through the model once, and every layer is kept.

`tokenise (readers) -> extract (workers that hold the model) -> receipts`. A worker writes its own
shards and returns receipts, so no tensor travels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from layerrank.jobs.cluster.console import Pace, Progress, say
from layerrank.jobs.cluster.pool import Pool
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.candidates import require_texts
from layerrank.jobs.config.datasets import MtebTask
from layerrank.jobs.config.prompts import ASKED, asked_fact, told
from layerrank.jobs.extract.targets import Pass, Target, Unit, missing_units, passes
from layerrank.jobs.run import Run, partition
from layerrank.jobs.subjects import remember
from layerrank.jobs.words import counted
from layerrank.operators.later import Later
from layerrank.operators.model.subject import Subject
from layerrank.storage.manifest import Manifest, load
from layerrank.storage.partition import CLEAN, partitions
from layerrank.storage.shards import ENCODED, Receipt

if TYPE_CHECKING:
    from layerrank.jobs.extract import worker
else:
    worker = Later("layerrank.jobs.extract.worker")

_ON = {"cpu": " on CPU", "cuda": " on GPU"}  # of what ran the work, as a manifest has it
Done = dict[str, dict[str, Receipt]]  # by the path of their partition, by name


def extract(run: Run) -> None:
    """Extract every subject over every dataset and condition of the run; what exists stays."""
    config = run.config.extract
    for subject in run.subjects:
        shape = run.shape(subject)
        texts = {dataset.name: run.prompts(dataset).rows for dataset in run.config.datasets}
        require_texts(run.config, texts, shape.hidden_size)
        say(f"  {subject}: {shape.layers} blocks, {shape.hidden_size:,} features")
        _say_templates(run, subject)
        unpublished: list[Target] = []
        units: list[Unit] = []
        done: Done = {}
        for prompts, each in _passes(run, subject):
            for to in each.targets:
                found = run.manifests.survey(to.partition, to.settings, overwrite=run.overwrite)
                done[to.partition.path] = found
            absent = missing_units(each, prompts, done)
            units += absent
            known = run.manifests.load
            unpublished += [to for to in each.targets if absent or not known(to.partition)]
        if units:
            total, conditions = sum(unit.prompts for unit in units), {u.condition for u in units}
            count = {"workers": config.workers, "threads": config.threads}
            pool = run.cluster.pool(config.device, len(units), **count)
            feed = partial(worker.read, run.root, subject, run.config)
            make = partial(
                worker.Extractor, run.root, subject, run.config, pool.device, pool.threads
            )
            shards = f"{counted(len(units), 'shard')}, {counted(len(conditions), 'condition')}"
            most = ", at most" if any(unit.prompted for unit in units) else ""
            pace = _pace(run, subject, pool, total, done)
            time = f"; about {pace}" if pace else ""
            say(f"  {counted(total, 'text')} to encode{most}: {shards}{time}")
            ticks = run.cluster.counted
            with Progress("extract", total, "texts", counted=ticks, pace=pace) as progress:
                for encoded in run.cluster.actors("extract", units, make, pool, feed=feed):
                    for path, receipt in encoded.receipts:
                        done[path][receipt.name] = receipt
                    progress.add(encoded.texts, encoded.tokens)
            seconds = f"{progress.seconds:.0f} s, loading the model included"
            say(f"  {progress.tokens:,} tokens in {seconds}")
        for to in unpublished:
            where = to.partition
            made_of = {name: to.made(name, done[where.path]) for name in to.shares}
            lost = [name for name, receipts in made_of.items() if not receipts]
            if lost:
                raise RuntimeError(f"{where}: {len(lost)} shards are missing, first {lost[0]}")
            made = run.publish(where, to.settings, [*chain(*made_of.values())], "extract")
            for why in sorted({str(each.facts.get(ENCODED, "")) for each in made.receipts} - {""}):
                say(f"  {where}: written by an encoder, several times slower, because {why}")
            cut = made.facts()["truncated"]
            if cut and where.keys["condition"] == CLEAN:
                most = f"{config.max_tokens} tokens, or the model's most"
                say(f"  {where.keys['dataset']}: {counted(cut, 'text')} cut to {most}")
        remember(shape, run.identity(subject), run.root)


def require_extracted(run: Run) -> None:
    """Raise if a partition is not there, or was extracted with other settings."""
    for subject in run.subjects:
        for to in (to for _, each in _passes(run, subject) for to in each.targets):
            if run.manifests.current(to.partition, to.settings) is None:
                raise FileNotFoundError(
                    f"{to.partition} is not extracted: run `layerrank extract` first"
                )


def _pace(run: Run, subject: Subject, pool: Pool, texts: int, done: Done) -> Pace | None:
    """Return how long so many texts will take, by what the root has of the model already.

    Of these passes first, as of a run that was killed, else of any other.
    """
    found = [receipt for of_path in done.values() for receipt in of_path.values()]
    if not found:
        for where in partitions(run.root, "embeddings", subject.name, subject.revision):
            # Not by way of the run's manifests: these need not be whole for it.
            these = (load(run.root, each) for each in (where, where.sibling("prompt_metrics")))
            made = (each for each in these if each and _ON[pool.device] in each.made)
            found += [receipt for each in made for receipt in each.receipts]
    total = Counter[str]()
    for facts in (receipt.facts for receipt in found):
        kinds = ("prompts", "tokens", "model_seconds") if "tokens" in facts else ("metric_seconds",)
        total.update({kind: float(facts.get(kind, 0)) for kind in kinds})
    seconds = total["model_seconds"] + total["metric_seconds"]
    if not (seconds and total["tokens"]):
        return None
    tokens = total["tokens"] / total["prompts"] * texts
    return Pace(tokens, pool.size * total["tokens"] / seconds)


def _say_templates(run: Run, subject: Subject) -> None:
    """Say in which templates a subject reads texts.

    ConfigError if it was not noted what mteb asks for the texts of a task as.
    """
    for dataset in run.config.datasets:
        for task in dataset.tasks if dataset.prompts else ():
            facts = run.manifests.require(partition("tasks", task, dataset)).facts()
            if isinstance(task, MtebTask) and not any(facts[asked_fact(each)] for each in ASKED):
                raise ConfigError(
                    f"dataset {dataset.name}: which texts of task {task.name} are queries was not "
                    "noted when it was prepared, by an earlier version: prepare it again, with "
                    "--overwrite, or leave out its prompts"
                )
        for line in told(dataset, run.sides(subject, dataset)):
            say(f"  {line}")


def _passes(run: Run, subject: Subject) -> Iterator[tuple[Manifest, Pass]]:
    """Yield every pass of a subject with the prompts that go through it."""
    identity, shape = run.identity(subject), run.shape(subject)
    for dataset in run.config.datasets:
        prompts = run.prompts(dataset)
        prompted = run.prompted(subject, dataset)
        for each in passes(run.config, subject, identity, shape, dataset, prompts, prompted):
            yield prompts, each
