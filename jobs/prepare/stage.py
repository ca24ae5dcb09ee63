"""prepare (CPU): a dataset becomes numbered shards of unique prompts, and the tables of its tasks.

A prompt's shard follows from its id, so duplicates meet in one shard and no task needs to see the
whole corpus; and because ids are hashes, the first shards are a random sample of the prompts.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from layerrank.jobs.cluster.console import Progress, say
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import DatasetConfig, FittedTask, Task
from layerrank.jobs.config.prompts import templates_of
from layerrank.jobs.config.run import RunConfig, graded_conditions
from layerrank.jobs.own import Own
from layerrank.jobs.prepare import records, sources
from layerrank.jobs.prepare.files import Options, told_delimiters
from layerrank.jobs.prepare.records import PROMPT, SKIPPED
from layerrank.jobs.run import Run, partition
from layerrank.jobs.tasks.types import count_labels, read_items, refusal, type_of
from layerrank.jobs.words import counted
from layerrank.storage import schema
from layerrank.storage.manifest import Manifest, Manifests
from layerrank.storage.partition import shard_name
from layerrank.storage.root import Root
from layerrank.storage.shards import Receipt, Shard, write_shard


def prepare(run: Run) -> None:
    """Prepare what is not there yet of every dataset of the run, and say what there is."""
    _require_own(run)
    for dataset in run.config.datasets:
        wanted = {
            name: target
            for name, target in _targets(run.config, dataset, _identity(run, dataset)).items()
            if not _is_complete(run, target, overwrite=run.overwrite)
        }
        if wanted:
            made = _write(run, dataset, wanted)
            try:
                made = _checked(run, dataset, made)
            except ConfigError:
                for each in made.values():
                    run.manifests.erase(each.partition)
                raise
            # The prompts last: whoever finds them finds the tasks too.
            for each in sorted(made.values(), key=lambda each: each.partition.table == "prompts"):
                run.publish(each.partition, each.settings, each.receipts, "prepare")
        prompts = run.prompts(dataset)
        facts, words = prompts.facts(), {f"skipped_{why}": why for why in SKIPPED}
        left_out = [
            f"{facts[fact]:,} {word}"
            for fact, word in {**words, "duplicates": "repeated"}.items()
            if facts[fact]
        ]
        say(
            f"  {dataset.name}: {counted(prompts.rows, 'unique prompt')} in "
            + counted(len(prompts.receipts), "shard")
            + (f" (left out: {', '.join(left_out)})" if left_out else "")
        )
        for task in dataset.tasks:
            items = run.manifests.require(partition("tasks", task, dataset))
            say(f"    {task.name}: {records.told(items.rows, items.facts())}")


def _require_own(run: Run) -> None:
    """Import and make what is the user's own and not used yet, before any model is run.

    A worker does: what can be found here alone is found out too.
    """
    unused = list[tuple[Task | None, Own]]()
    for dataset in run.config.datasets:
        for task in dataset.tasks:
            own = run.own_task(task)
            if own and run.manifests.load(partition("tasks", task, dataset)) is None:
                unused.append((task, own))
    for name in run.config.measure.own:
        measured = (partition("own_metrics", *pair, name) for pair in run.pairs())
        if not all(map(run.manifests.load, measured)):
            unused.append((None, run.own(name)))
    deque(run.cluster.each("prepare", unused, _made), maxlen=0)


def _made(unit: tuple[Task | None, Own]) -> None:
    task, own = unit
    if task is None:
        own.load()
    else:
        type_of(task, own)


def require_agreement(config: RunConfig, manifests: Manifests) -> None:
    """Raise SettingsConflictError if something prepared was made with other settings.

    What the sources hold is not compared: that takes reading them.
    """
    for dataset in config.datasets:
        for target in _targets(config, dataset, None).values():
            known = manifests.load(target.partition)
            if known is not None and "source" in known.settings:
                settings = {**target.settings, "source": known.settings["source"]}
                manifests.stands(target.partition, settings)


def require_prepared(run: Run) -> None:
    """Raise if prompts or tasks are not there, or were prepared with other settings."""
    for dataset in run.config.datasets:
        for target in _targets(run.config, dataset, _identity(run, dataset)).values():
            if not _is_complete(run, target):
                raise FileNotFoundError(
                    f"{target.partition} is not prepared: run `layerrank prepare` first"
                )


def most_tokens(config: RunConfig, manifests: Manifests, checkpoints: int) -> float | None:
    """Return about how many tokens the models of a run read at most; None if that is not known.

    Rows x passes x tokens: of what is prepared the prompts count, else what the sources say.
    """
    total, options = 0, config.storage.options()
    for dataset in config.datasets:
        known = manifests.load(partition("prompts", dataset.name))
        rows = None if known else sources.most_rows(dataset, options)
        if known is None and rows is None:
            return None
        prompts = known.rows if known else (rows or 0) * len(dataset.text_columns)
        total += prompts * (1 + len(graded_conditions(config, dataset)) + templates_of(dataset))
        total += config.views.count * min(config.views.sample, prompts)
    return float(checkpoints * total * config.extract.max_tokens)


def _identity(run: Run, dataset: DatasetConfig) -> dict[str, Any]:
    return sources.identity(dataset, run.config.storage.options())


def _targets(
    config: RunConfig, dataset: DatasetConfig, identity: dict[str, Any] | None
) -> dict[str, Manifest]:
    """Return what is to be of the prompts and of every task, without a shard yet."""
    source = {
        "source": identity,
        "text_columns": list(dataset.text_columns),
        "limit": dataset.limit,
        "min_chars": 0 if dataset.keeps_blank else dataset.min_chars,
        "id_column": dataset.id_column,
        **dataset.settings(include={"shard_prompts", "fewest_shards"}),
    }
    targets = {PROMPT: Manifest(partition("prompts", dataset), source, ())}
    for task in dataset.tasks:
        settings = {**source, **task.of_items()}
        if isinstance(task, FittedTask) and task.split_column is None:
            settings |= {"seed": config.seed, "test_fraction": task.test_fraction}
        targets[task.name] = Manifest(partition("tasks", task, dataset), settings, ())
    return targets


def _is_complete(run: Run, target: Manifest, *, overwrite: bool = False) -> bool:
    """Whether a partition is published and was made with these settings.

    Shards without a manifest are written again in any case, so whatever made them is no conflict: a
    source that was refused can be mended and run again.
    """
    return run.manifests.load(target.partition) is not None and (
        run.manifests.current(target.partition, target.settings, overwrite=overwrite) is not None
    )


def _write(run: Run, dataset: DatasetConfig, wanted: Mapping[str, Manifest]) -> dict[str, Manifest]:
    """Read, split into records, bring the records of a shard together, and write the shards."""
    options = run.config.storage.options()
    whole = sources.discover(dataset, options)
    rows, look = [0] * len(whole), partial(_look, options)
    kind, delimiters = sources.KINDS[type(dataset.source)], list[str]()
    for index, length, columns, sniffed in (
        map(look, whole) if kind.stated else run.cluster.each("prepare", whole, look)
    ):
        rows[index] = length
        delimiters += sniffed
        if length:
            sources.require_columns(dataset, whole[index], columns)
    if not sum(rows):
        raise ConfigError(f"dataset {dataset.name}: its source has no rows")
    if delimiters:
        say(f"  {dataset.name}: {told_delimiters(delimiters)}")
    if aside := kind.aside(dataset.source, options):
        say(f"  {dataset.name}: {aside}")
    parts, total = sources.cut(whole, rows, dataset.limit)
    shards = records.shards_of(dataset, total)
    split = partial(_records, dataset, shards, run.config.seed, options, parts[0])
    write = partial(_write_shards, run.root, dataset, wanted)
    found: list[dict[str, Receipt]] = []
    with Progress("prepare", shards, "shards") as progress:
        for receipts in run.cluster.shuffle(
            "prepare", parts, split, write, key="shard", groups=shards
        ):
            found.append(receipts)
            progress.add(1)
    assert len(found) == shards, f"{len(found)} of {shards} shards were written"
    return {
        name: replace(target, receipts=tuple(receipts[name] for receipts in found))
        for name, target in wanted.items()
    }


def _look(options: Options, fragment: sources.Fragment) -> tuple[int, int, list[str], list[str]]:
    """Return index, rows, columns and delimiters of a fragment, looked up where it is read."""
    found = sources.inspect(fragment, options)
    return (fragment.index, *found, sources.sniffed(fragment, options))


def _records(
    dataset: DatasetConfig,
    shards: int,
    seed: int,
    options: Options,
    first: sources.Fragment,
    fragment: sources.Fragment,
) -> Iterator[pa.Table]:
    """Yield the records of the rows of a fragment; the first one marks every shard."""
    if fragment == first:
        yield records.markers(shards)
    seen, sizes = dict[int, int](), Counter[int]()
    for rows in sources.read(fragment, dataset.columns, options):
        with records.named(dataset):
            found = records.records_of(dataset, rows, shards, seed, seen)
            records.require_small(dataset, found, sizes, fragment.location)
        yield found


def _write_shards(
    root: Root, dataset: DatasetConfig, wanted: Mapping[str, Manifest], found: pa.Table
) -> dict[str, Receipt]:
    number = found["shard"][0].as_py()
    with records.named(dataset):  # of all fragments, of each of which it was found small
        records.require_small(dataset, found, Counter(), shard_name(number))
    records.check_ids(dataset, found)
    tasks = {task.name: task for task in dataset.tasks}
    receipts = {}
    for name, target in wanted.items():
        if name == PROMPT:
            table, columns, facts = records.prompts_of(found, number)
        else:
            with records.named(dataset):
                table, _, facts = records.items_of(found, tasks[name])
            table, columns = schema.as_tasks(table), schema.TASKS
        key = shard_name(number)
        blank = Receipt(key, 0, target.digest, "", facts=facts)
        groups = [table] if table.num_rows else []
        receipts[name] = write_shard(root, target.partition.shard(key), groups, columns, blank)
    return receipts


def _checked(run: Run, dataset: DatasetConfig, made: Mapping[str, Manifest]) -> dict[str, Manifest]:
    """Return what was made with the number of a task's labels, which no shard knows alone.

    ConfigError for prompts and tasks of which nothing can be made, naming all of the tasks.
    """
    if PROMPT in made and not made[PROMPT].rows:
        reasons = sorted((+made[PROMPT].facts()).items())
        raise ConfigError(
            f"dataset {dataset.name}: no prompt is left after the filters "
            f"({', '.join(f'{reason}: {count}' for reason, count in reasons)})"
        )
    units = [
        (task, made[task.name].shards(run.root), run.own_task(task))
        for task in dataset.tasks
        if task.name in made
    ]
    seen = {name: found for name, *found in run.cluster.each("prepare", units, _seen)}
    refused = [why for task, *_ in units if (why := seen[task.name][0])]
    if refused:
        raise ConfigError(f"dataset {dataset.name}, {'; '.join(refused)}")
    counted = dict(made)
    for name, (_, labels) in seen.items():
        first, *rest = made[name].receipts
        facts = {**first.facts, "labels": labels}
        counted[name] = replace(made[name], receipts=(replace(first, facts=facts), *rest))
    return counted


def _seen(unit: tuple[Task, list[Shard], Own | None]) -> tuple[str, str | None, int]:
    """Return the name of a task, why it is refused if it is, and how many labels it has."""
    task, shards, own = unit
    items = read_items(task, shards)
    return task.name, refusal(task, items, own), count_labels(task, items)
