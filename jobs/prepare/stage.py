"""prepare (CPU): a dataset becomes numbered shards of unique prompts, and the tables of its tasks.

A prompt's shard follows from its id, so duplicates meet in one shard and no task needs to see the
whole corpus; and because ids are hashes, the first shards are a random sample of the prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jobs.cluster.cluster import from_units, one_unit, result_table, results, run_tasks
from jobs.cluster.console import Progress, say
from jobs.config.blocks import ConfigError
from jobs.config.datasets import BuiltinSource, DatasetConfig
from jobs.prepare import sources
from jobs.prepare.files import Options
from jobs.prepare.records import (
    PROMPT,
    SKIPPED,
    check_ids,
    items_of,
    markers,
    prompts_of,
    records_of,
)
from jobs.run import Run, task_partition
from jobs.tasks.items import check_items
from jobs.tasks.types import PROTOCOL, ClassificationTask, RegressionTask
from storage.manifest import Manifest, current, digest_of, load, publish
from storage.partition import Partition, shard_name
from storage.root import Root
from storage.shards import Receipt, read_tables, write_shard


@dataclass(frozen=True)
class _Target:
    """A partition to write, and the settings that it is made with."""

    partition: Partition
    settings: dict[str, Any]


def prepare(run: Run) -> None:
    """Prepare every dataset of the run whose prompts or tasks are not there yet."""
    for dataset in run.config.datasets:
        _prepare(run, dataset)


def require_prepared(run: Run) -> None:
    """Raise if prompts or tasks are not there, or were prepared with other settings."""
    for dataset in run.config.datasets:
        for target in _targets(run, dataset, run.config.storage.options()).values():
            if not _is_complete(run.root, target):
                raise FileNotFoundError(
                    f"{target.partition} is not prepared: run `layerrank prepare` first"
                )


def _prepare(run: Run, dataset: DatasetConfig) -> None:
    options = run.config.storage.options()
    targets = _targets(run, dataset, options)
    wanted = {
        name: target
        for name, target in targets.items()
        if not _is_complete(run.root, target, overwrite=run.overwrite)
    }
    if wanted:
        run.cluster.start()
        fragments, rows = _cut_source(dataset, options)
        shards = max(-(-rows * len(dataset.text_columns) // dataset.shard_prompts), 1)
        found = _write(run, dataset, wanted, fragments, shards)
        try:
            _check_prompts(dataset, found)
            _check_tasks(run, dataset, wanted, found)
        except ConfigError:
            for key in _keys(wanted, found):
                run.root.delete(key)
            raise
        _publish(run, wanted, found, shards)
    _tell(dataset, run.prompts(dataset))


def _targets(run: Run, dataset: DatasetConfig, options: Options) -> dict[str, _Target]:
    source = {
        "source": sources.identity(dataset, options),
        "text_columns": list(dataset.text_columns),
        "limit": dataset.limit,
        "min_chars": 0 if dataset.keeps_blank else dataset.min_chars,
        "id_column": dataset.id_column,
        "shard_prompts": dataset.shard_prompts,
    }
    targets: dict[str, _Target] = {PROMPT: _Target(Partition("prompts", (dataset.name,)), source)}
    for task in dataset.tasks:
        settings = {**source, **task.model_dump(exclude=PROTOCOL)}
        if isinstance(task, (ClassificationTask, RegressionTask)) and task.split_column is None:
            settings |= {"seed": run.config.seed, "test_fraction": task.test_fraction}
        targets[task.name] = _Target(task_partition(dataset, task), settings)
    return targets


def _is_complete(root: Root, target: _Target, *, overwrite: bool = False) -> bool:
    """Whether a partition is published and was made with these settings.

    Shards without a manifest are written again in any case, so whatever made them is no conflict: a
    source that was refused can be mended and run again.
    """
    if load(root, target.partition) is None:
        return False
    return current(root, target.partition, target.settings, overwrite=overwrite) is not None


def _cut_source(dataset: DatasetConfig, options: Options) -> tuple[list[sources.Fragment], int]:
    """Return the fragments to read and their rows, after a look at columns and lengths."""
    whole = sources.discover(dataset, options)
    rows = [0] * len(whole)
    for index, length, columns in _inspect(dataset, whole, options):
        rows[index] = length
        if length:
            sources.require_columns(dataset, whole[index], columns)
    if not sum(rows):
        raise ConfigError(f"dataset {dataset.name}: its source has no rows")
    return sources.cut(whole, rows, dataset.limit)


def _inspect(
    dataset: DatasetConfig, fragments: Sequence[sources.Fragment], options: Options
) -> Iterator[tuple[int, int, list[str]]]:
    """Yield index, rows and columns of each fragment, looked up where the fragment is read."""

    def look(fragment: sources.Fragment) -> tuple[int, int, list[str]]:
        return (fragment.index, *sources.inspect(fragment, options))

    def task(batch: pa.Table) -> pa.Table:
        return result_table(look(sources.Fragment.from_json(one_unit(batch))))

    if isinstance(dataset.source, BuiltinSource):  # states its size; nothing to open
        yield from map(look, fragments)
    else:
        yield from run_tasks([fragment.to_json() for fragment in fragments], task)


def _write(
    run: Run,
    dataset: DatasetConfig,
    wanted: dict[str, _Target],
    fragments: Sequence[sources.Fragment],
    shards: int,
) -> dict[str, list[Receipt]]:
    """Read, split into records, bring the records of a shard together, and write the shards."""
    root, seed, options = run.root, run.config.seed, run.config.storage.options()
    first = fragments[0].to_json()

    def split(batch: pa.Table) -> Iterator[pa.Table]:
        unit = one_unit(batch)
        if unit == first:
            yield markers(shards)
        for rows in sources.read(sources.Fragment.from_json(unit), dataset.columns, options):
            with _named(dataset):
                yield records_of(dataset, rows, shards, seed)

    def write(records: pa.Table) -> pa.Table:
        receipts = _write_shards(root, dataset, wanted, records)
        return result_table({name: receipt.to_json() for name, receipt in receipts.items()})

    plan = (
        from_units([fragment.to_json() for fragment in fragments])
        .map_batches(split, batch_size=1, batch_format="pyarrow", num_cpus=1)
        .groupby("shard", num_partitions=min(shards, 64))
        .map_groups(write, batch_format="pyarrow", num_cpus=1)
    )
    found: dict[str, list[Receipt]] = {name: [] for name in wanted}
    with Progress("prepare", shards, "shards") as progress:
        for receipts in results(plan):
            for name, receipt in receipts.items():
                found[name].append(Receipt.from_json(receipt))
            progress.add(1)
    return found


def _check_prompts(dataset: DatasetConfig, found: dict[str, list[Receipt]]) -> None:
    if PROMPT in found and not sum(receipt.rows for receipt in found[PROMPT]):
        reasons = Counter[str]()
        for receipt in found[PROMPT]:
            reasons.update({k: int(v) for k, v in receipt.facts.items() if v})
        raise ConfigError(
            f"dataset {dataset.name}: no prompt is left after the filters "
            f"({', '.join(f'{reason}: {count}' for reason, count in sorted(reasons.items()))})"
        )


def _check_tasks(
    run: Run,
    dataset: DatasetConfig,
    wanted: dict[str, _Target],
    found: dict[str, list[Receipt]],
) -> None:
    """Refuse tasks that cannot be scored before any model runs; name all of them."""
    root, tasks = run.root, {task.name: task for task in dataset.tasks if task.name in wanted}

    def check(batch: pa.Table) -> pa.Table:
        name = one_unit(batch)
        keys = _keys(wanted, {name: found[name]})
        try:
            check_items(tasks[name], read_tables(root, keys))
        except ConfigError as error:
            return result_table([name, str(error)])
        return result_table([name, None])

    reasons = dict(run_tasks(list(tasks), check)) if tasks else {}
    refused = [reasons[name] for name in tasks if reasons[name]]
    if refused:
        raise ConfigError(f"dataset {dataset.name}, {'; '.join(refused)}")


@contextmanager
def _named(dataset: DatasetConfig) -> Iterator[None]:
    """Say in errors which dataset a task is of."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"dataset {dataset.name}, {error}") from error


def _keys(wanted: dict[str, _Target], found: dict[str, list[Receipt]]) -> list[str]:
    return [
        wanted[name].partition.shard(receipt.name)
        for name, receipts in found.items()
        for receipt in receipts
    ]


def _publish(
    run: Run, wanted: dict[str, _Target], found: dict[str, list[Receipt]], shards: int
) -> None:
    for name, receipts in found.items():
        assert len(receipts) == shards, f"{name}: {len(receipts)} of {shards} shards were written"
    # The prompts last: whoever finds them finds the tasks too.
    for name in sorted(found, key=lambda name: name == PROMPT):
        publish(run.root, wanted[name].partition, wanted[name].settings, found[name])


def _write_shards(
    root: Root, dataset: DatasetConfig, wanted: dict[str, _Target], records: pa.Table
) -> dict[str, Receipt]:
    """Write one shard of every wanted table from its records."""
    check_ids(dataset, records)
    number = records["shard"][0].as_py()
    tasks = {task.name: task for task in dataset.tasks}
    receipts = {}
    for name, target in wanted.items():
        if name == PROMPT:
            table, columns, facts = prompts_of(records, number)
        else:
            with _named(dataset):
                table, columns, facts = items_of(records, tasks[name])
        key = shard_name(number)
        blank = Receipt(key, 0, digest_of(target.settings), "", facts=facts)
        groups = [table] if table.num_rows else []
        receipts[name] = write_shard(root, target.partition.shard(key), groups, columns, blank)
    return receipts


def _tell(dataset: DatasetConfig, manifest: Manifest) -> None:
    facts = manifest.facts()
    skipped = {reason: int(facts[f"skipped_{reason}"]) for reason in SKIPPED}
    notes = [f"{count:,} {reason}" for reason, count in skipped.items() if count]
    if facts["duplicates"]:
        notes.append(f"{int(facts['duplicates']):,} repeated")
    left_out = f" (left out: {', '.join(notes)})" if notes else ""
    say(
        f"  {dataset.name}: {manifest.rows:,} unique prompts in {len(manifest.receipts)} shards"
        f"{left_out}"
    )
