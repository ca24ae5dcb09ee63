"""prepare (CPU): a dataset becomes numbered shards of unique prompts, and the tables of its tasks.

A prompt's shard follows from its id, so duplicates meet in one shard and no task needs to see the
whole corpus; and because ids are hashes, the first shards are a random sample of the prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from jobs.cluster.console import Progress, say
from jobs.config.blocks import ConfigError
from jobs.config.datasets import BuiltinSource, DatasetConfig
from jobs.config.run import RunConfig, graded_conditions
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
from jobs.run import Run, partition
from jobs.tasks.items import check_items
from jobs.tasks.types import PROTOCOL, ClassificationTask, RegressionTask, Task
from storage.manifest import Manifest, Manifests, digest_of
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
        total += prompts * (1 + len(graded_conditions(config, dataset)))
        total += config.views.count * min(config.views.sample, prompts)
    return float(checkpoints * total * config.extract.max_tokens)


def _prepare(run: Run, dataset: DatasetConfig) -> None:
    options = run.config.storage.options()
    targets = _targets(run, dataset, options)
    wanted = {
        name: target
        for name, target in targets.items()
        if not _is_complete(run, target, overwrite=run.overwrite)
    }
    if wanted:
        fragments, rows = _cut_source(run, dataset, options)
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
    targets: dict[str, _Target] = {PROMPT: _Target(partition("prompts", dataset.name), source)}
    for task in dataset.tasks:
        settings = {**source, **task.model_dump(exclude=PROTOCOL)}
        if isinstance(task, (ClassificationTask, RegressionTask)) and task.split_column is None:
            settings |= {"seed": run.config.seed, "test_fraction": task.test_fraction}
        targets[task.name] = _Target(partition("tasks", task, dataset), settings)
    return targets


def _is_complete(run: Run, target: _Target, *, overwrite: bool = False) -> bool:
    """Whether a partition is published and was made with these settings.

    Shards without a manifest are written again in any case, so whatever made them is no conflict: a
    source that was refused can be mended and run again.
    """
    if run.manifests.load(target.partition) is None:
        return False
    found = run.manifests.current(target.partition, target.settings, overwrite=overwrite)
    return found is not None


def _cut_source(
    run: Run, dataset: DatasetConfig, options: Options
) -> tuple[list[sources.Fragment], int]:
    """Return the fragments to read and their rows, after a look at columns and lengths."""
    whole = sources.discover(dataset, options)
    rows = [0] * len(whole)
    look = partial(_look, options)
    looked: Iterator[tuple[int, int, list[str]]] = (
        map(look, whole)
        if isinstance(dataset.source, BuiltinSource)  # states its size; nothing to open
        else run.cluster.each("prepare", whole, look)
    )
    for index, length, columns in looked:
        rows[index] = length
        if length:
            sources.require_columns(dataset, whole[index], columns)
    if not sum(rows):
        raise ConfigError(f"dataset {dataset.name}: its source has no rows")
    return sources.cut(whole, rows, dataset.limit)


def _look(options: Options, fragment: sources.Fragment) -> tuple[int, int, list[str]]:
    """Return index, rows and columns of a fragment, looked up where it is read."""
    return (fragment.index, *sources.inspect(fragment, options))


def _write(
    run: Run,
    dataset: DatasetConfig,
    wanted: dict[str, _Target],
    fragments: Sequence[sources.Fragment],
    shards: int,
) -> dict[str, list[Receipt]]:
    """Read, split into records, bring the records of a shard together, and write the shards."""
    options = run.config.storage.options()
    split = _Split(dataset, fragments[0], shards, run.config.seed, options)
    write = partial(_write_shards, run.root, dataset, wanted)
    found: dict[str, list[Receipt]] = {name: [] for name in wanted}
    with Progress("prepare", shards, "shards") as progress:
        for receipts in run.cluster.shuffle(
            "prepare", fragments, split.records, write, key="shard", groups=shards
        ):
            for name, receipt in receipts.items():
                found[name].append(receipt)
            progress.add(1)
    return found


@dataclass(frozen=True)
class _Split:
    """Splits the rows of a fragment into records; the first one marks every shard."""

    dataset: DatasetConfig
    first: sources.Fragment
    shards: int
    seed: int
    options: Options

    def records(self, fragment: sources.Fragment) -> Iterator[pa.Table]:
        """Yield the records of a fragment, with the shard of each."""
        if fragment == self.first:
            yield markers(self.shards)
        for rows in sources.read(fragment, self.dataset.columns, self.options):
            with _named(self.dataset):
                yield records_of(self.dataset, rows, self.shards, self.seed)


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
    units = [
        (task, _keys(wanted, {task.name: found[task.name]}))
        for task in dataset.tasks
        if task.name in wanted
    ]
    checked = run.cluster.each("prepare", units, partial(_refusal, run.root))
    reasons = {name: why for name, why in checked if why}
    if reasons:
        refused = [reasons[task.name] for task, _ in units if task.name in reasons]
        raise ConfigError(f"dataset {dataset.name}, {'; '.join(refused)}")


def _refusal(root: Root, unit: tuple[Task, list[str]]) -> tuple[str, str | None]:
    """Return the name of a task, and why its items in some shards cannot be scored."""
    task, keys = unit
    try:
        check_items(task, read_tables(root, keys))
    except ConfigError as error:
        return task.name, str(error)
    return task.name, None


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
        run.publish(wanted[name].partition, wanted[name].settings, found[name], "prepare")


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
