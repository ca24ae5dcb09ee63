"""What a dataset will come to, before it is prepared: a sample of its rows, prepared in memory.

The rows pass the filters of `jobs.prepare.records` and meet in shards of the size that the run's
would have, so duplicates, short texts and labels count as they will. Of a source that is read in
part, texts that repeat one outside the sample are counted as prompts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Literal
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import (
    BuiltinSource,
    DatasetConfig,
    FileSource,
    HubSource,
    MtebSource,
)
from layerrank.jobs.config.run import RunConfig
from layerrank.jobs.prepare import docstrings, sources
from layerrank.jobs.prepare.files import Options, estimate_rows, size
from layerrank.jobs.prepare.records import (
    PROMPT,
    Rows,
    check_ids,
    items_of,
    markers,
    named,
    prompts_of,
    records_of,
    shards_of,
)
from layerrank.jobs.run import partition
from layerrank.jobs.tasks.types import count_labels, refusal
from layerrank.storage import schema
from layerrank.storage.manifest import Manifest, digest_of, load
from layerrank.storage.partition import Partition, shard_name
from layerrank.storage.root import Root
from layerrank.storage.s3 import PART_BYTES, WHOLE_BYTES
from layerrank.storage.schema import ROW_BITS
from layerrank.storage.shards import Receipt, write_shard

Basis = Literal["prepared", "counted", "sampled", "bound"]
_ROWS = 20_000  # source rows that are read
_BYTES = 1 << 27  # of their texts, about
_SHARDS = 8  # shards of them that are written to be weighed
_FILES = 32  # files, evenly spaced, that are opened to count and to sample
_COUNTED_BYTES = 1 << 26  # of a file without a footer; the lines of a longer one are estimated
_TEXTS = 1024  # that the tokenizer sees
# Bytes of a manifest, of what it says of a shard, of the index of a shard, and of a group there.
_MANIFEST, _RECEIPT, _INDEX, _GROUP = 700, 215, 1100, 35


@dataclass(frozen=True)
class Weight:
    """Objects, their bytes, and the requests that put them into object storage."""

    objects: int = 0
    bytes: float = 0.0
    puts: int = 0

    def __add__(self, other: Weight) -> Weight:
        return Weight(
            self.objects + other.objects, self.bytes + other.bytes, self.puts + other.puts
        )

    def times(self, count: int) -> Weight:
        """Return the weight of the same `count` times."""
        return Weight(self.objects * count, self.bytes * count, self.puts * count)


def weight(sizes: Sequence[float]) -> Weight:
    """Return the weight of objects of these sizes in bytes."""
    # A large one is put in parts, with two requests around them.
    puts = (1 if size <= WHOLE_BYTES else -int(-size // PART_BYTES) + 2 for size in sizes)
    return Weight(len(sizes), sum(sizes), sum(puts))


def partition_weight(shards: Sequence[float], groups: int = 1, features: int = 0) -> Weight:
    """Return the weight of a partition: its shards, as `shards_weight`, and its manifest."""
    manifest = weight([_MANIFEST + _RECEIPT * len(shards)])
    return shards_weight(shards, groups, features) + manifest


def shards_weight(shards: Sequence[float], groups: int = 1, features: int = 0) -> Weight:
    """Return the weight of shards of these bytes and of their indexes.

    An index has the sum of every feature in each of the `groups` of a shard of vectors.
    """
    return weight([*shards, *[_INDEX + (_GROUP + 8.0 * features) * groups] * len(shards)])


@contextmanager
def scratch() -> Iterator[Root]:
    """Give an empty root in the memory of this process."""
    root = Root(f"memory://layerrank-{uuid4().hex}")
    try:
        yield root
    finally:
        if root.exists(""):
            root.filesystem.rm(root.path(), recursive=True)


@dataclass(frozen=True)
class Corpus:
    """The prompts of a dataset, counted or estimated, and what its tables weigh.

    `prompts` has the number of prompts of every shard, `texts` some of them (none of a `bound`:
    a source that is not read, of which the largest number of prompts is known and nothing else).
    """

    dataset: DatasetConfig
    basis: Basis
    prompts: Manifest
    texts: pa.Table
    weights: dict[str, Weight]
    tasks: dict[str, Counter[str]] = field(default_factory=dict)  # items, labels and the like
    sampled: Receipt | None = None  # of the shard of those texts, where they are written
    delimiters: Sequence[str] = ()  # of its CSV, where no config names them
    aside: str = ""  # which of its files are not read


def read_corpus(config: RunConfig, dataset: DatasetConfig, root: Root | None) -> Corpus:
    """Return what is known of a dataset; ConfigError if not even its size is."""
    found = _prepared(dataset, root) if root else None
    if found is not None:
        return found
    if isinstance(dataset.source, MtebSource):
        raise ConfigError(
            f"dataset {dataset.name}: which texts mteb's tasks encode is unknown before they are "
            "enumerated; run `layerrank prepare` first"
        )
    if not isinstance(dataset.source, HubSource):
        return _sampled(config, dataset)
    if dataset.limit is None:
        raise ConfigError(
            f"dataset {dataset.name}: the number of rows is unknown before it is read; "
            "set limit, or run `layerrank prepare` first"
        )
    most = _manifest(dataset, dataset.limit * len(dataset.text_columns), dataset.limit)
    return Corpus(dataset, "bound", most, schema.PROMPTS.empty_table(), {})


def _prepared(dataset: DatasetConfig, root: Root) -> Corpus | None:
    """Return the corpus as it lies in the root; None if prompts or tasks are not there."""
    tasks = [partition("tasks", task, dataset) for task in dataset.tasks]
    found = [load(root, each) for each in (partition("prompts", dataset), *tasks)]
    present = [each for each in found if each is not None]
    if len(present) < len(found):
        return None
    weights: dict[str, Weight] = defaultdict(Weight)
    for manifest in present:
        sizes = [receipt.bytes for receipt in manifest.receipts]
        weights[manifest.partition.table] += partition_weight(sizes)
    prompts = present[0]
    filled = prompts.filled(root)
    texts = filled[0].read()[:_TEXTS] if filled else schema.PROMPTS.empty_table()
    counts = {
        task.name: Counter({**each.facts(), "items": each.rows})
        for task, each in zip(dataset.tasks, present[1:], strict=True)
    }
    return Corpus(dataset, "prepared", prompts, texts, weights, counts)


def _sampled(config: RunConfig, dataset: DatasetConfig) -> Corpus:
    """Return the corpus as a sample of its rows has it, prepared in memory.

    ConfigError for rows that prepare refuses, and if all are read for tasks that it does.
    """
    delimiters: list[str] = []
    if isinstance(dataset.source, BuiltinSource):
        rows, total = _passages(dataset, dataset.source)
    else:
        rows, total, delimiters = _rows(dataset, config.storage.options())
    if not total:
        raise ConfigError(f"dataset {dataset.name}: its source has no rows")
    shards = shards_of(dataset, total)
    read = sum(table.num_rows for table in rows)
    everything = read == total
    small = shards if everything else max(round(shards * read / total), 1)
    with named(dataset):
        seen = dict[int, int]()
        found = [records_of(dataset, each, small, config.seed, seen) for each in rows]
    gathered = pa.concat_tables([markers(small), *found])
    if PROMPT not in gathered["kind"].unique().to_pylist():
        raise ConfigError(f"dataset {dataset.name}: no prompt is left of {read:,} sampled rows")
    of_shard = [gathered.filter(pc.equal(gathered["shard"], number)) for number in range(small)]
    for each in of_shard:
        check_ids(dataset, each)
    prompts = [prompts_of(each, number) for number, each in enumerate(of_shard)]
    counts = [each[0].num_rows for each in prompts]
    manifest = _manifest(dataset, max(round(sum(counts) * total / read), 1), total)
    if everything:
        receipts = zip(manifest.receipts, counts, strict=True)
        manifest = replace(manifest, receipts=tuple(replace(r, rows=n) for r, n in receipts))
    texts = pa.concat_tables([each[0] for each in prompts[:_SHARDS]])[:_TEXTS]
    weights: dict[str, Weight] = defaultdict(Weight)
    weights["prompts"] = _weigh(manifest.partition, prompts, sum(counts), manifest)
    refused, of_tasks = [], dict[str, Counter[str]]()
    for task in dataset.tasks:
        with named(dataset):
            items = [items_of(each, task) for each in of_shard]
        where = partition("tasks", task, dataset)
        rows = [_as_tasks(*each) for each in items]
        weights["tasks"] += _weigh(where, rows, sum(counts), manifest)
        table = pa.concat_tables([each[0] for each in items])
        if everything and (why := refusal(task, table)):
            refused.append(why)
        counted = sum((Counter(facts) for _, _, facts in items), Counter(items=table.num_rows))
        of_tasks[task.name] = Counter({k: round(n * total / read) for k, n in counted.items()})
        of_tasks[task.name]["labels"] = count_labels(task, table)
    if refused:
        raise ConfigError(f"dataset {dataset.name}, {'; '.join(refused)}")
    basis: Basis = "counted" if everything else "sampled"
    aside = sources.KINDS[type(dataset.source)].aside(dataset.source, config.storage.options())
    return Corpus(dataset, basis, manifest, texts, weights, of_tasks, None, delimiters, aside)


def _passages(dataset: DatasetConfig, source: BuiltinSource) -> tuple[list[pa.Table], int]:
    """Return rows of the built-in corpus, and how many a run reads of it."""
    tables, total = [], 0
    for index, library in enumerate(docstrings.LIBRARIES):
        left = source.per_library if dataset.limit is None else dataset.limit - total
        found, count = docstrings.sample_library(library, min(source.per_library, left))
        rows = [{**asdict(each), "row": index << ROW_BITS | at} for at, each in enumerate(found)]
        tables.append(pa.Table.from_pylist(rows))
        total += count
        if total == dataset.limit:
            break
    return tables, total


def _rows(dataset: DatasetConfig, options: Options) -> tuple[list[pa.Table], int, list[str]]:
    """Return the first rows of some files, of each in proportion to its length, and all there are.

    Rows are counted where that is quick; elsewhere a byte holds as many as in the other files. What
    separates the columns of those that are CSV comes last.
    """
    fragments = sources.discover(dataset, options)
    delimiters = [
        each for fragment in _spread(fragments) for each in sources.sniffed(fragment, options)
    ]
    if not isinstance(dataset.source, FileSource):
        lengths = [_inspected(dataset, fragment, options) for fragment in fragments]
    else:
        looked: dict[int, int] = {}
        for fragment in _spread(fragments):
            if fragment.file.kind != "parquet" and size(fragment.file, options) > _COUNTED_BYTES:
                looked[fragment.index] = estimate_rows(fragment.file, options)
                continue
            looked[fragment.index] = _inspected(dataset, fragment, options)
        lengths = [*looked.values()]
        if len(looked) < len(fragments):
            sizes = [size(fragment.file, options) for fragment in fragments]
            density = sum(lengths) / max(sum(sizes[index] for index in looked), 1)
            lengths = [looked.get(n, round(each * density)) for n, each in enumerate(sizes)]
    parts, total = sources.cut(fragments, lengths, dataset.limit)
    some = _spread(parts)
    taken = sum((part.stop or 0) - part.start for part in some)
    tables: list[pa.Table] = []
    for part in some:
        take = -(-((part.stop or 0) - part.start) * _ROWS // max(taken, _ROWS))
        first, decoded = replace(part, stop=part.start + take), 0
        for table in sources.read(first, dataset.columns, options):
            tables.append(table)
            decoded += table.nbytes
            if decoded > _BYTES // len(some):
                break
    return tables, total, delimiters


def _inspected(dataset: DatasetConfig, fragment: sources.Fragment, options: Options) -> int:
    """Return the rows of a fragment; ConfigError if it lacks a column."""
    length, columns = sources.inspect(fragment, options)
    if length:
        sources.require_columns(dataset, fragment, columns)
    return length


def _spread(fragments: Sequence[sources.Fragment]) -> list[sources.Fragment]:
    """Return some of the fragments, evenly spaced, or all of few."""
    count = min(_FILES, len(fragments))
    return [fragments[index * len(fragments) // count] for index in range(count)]


def _weigh(where: Partition, shards: Sequence[Rows], unique: int, prompts: Manifest) -> Weight:
    """Return the weight of a table of a dataset, from some of the shards of the sample.

    `unique` prompts are in the sample, and the table grows with the prompts as the sample does.
    """
    settings = {"dataset": where.keys, "sampled": True}
    receipts = []
    with scratch() as root:
        for number, (table, columns, facts) in enumerate(shards[:_SHARDS]):
            name = shard_name(number)
            blank = Receipt(name, 0, digest_of(settings), "", facts=facts)
            groups = [table] if table.num_rows else []
            receipts.append(write_shard(root, where.shard(name), groups, columns, blank))
    mean = sum(receipt.bytes for receipt in receipts) / len(receipts)
    count = len(prompts.receipts)
    # As many rows per shard as in the sample, up to the rounding of the sample's shards.
    larger = (prompts.rows / count) / max(unique / len(shards), 1e-9)
    return partition_weight([mean * larger] * count)


def _as_tasks(items: pa.Table, _: pa.Schema, facts: dict[str, int]) -> Rows:
    return schema.as_tasks(items), schema.TASKS, facts


def _manifest(dataset: DatasetConfig, prompts: int, rows: int) -> Manifest:
    """Return the prompts of so many rows of a dataset, spread evenly over its shards."""
    shards, settings = shards_of(dataset, rows), {"planned": dataset.name}
    receipts = (
        Receipt(shard_name(n), (prompts + shards - 1 - n) // shards, digest_of(settings), "")
        for n in range(shards)
    )
    return Manifest(partition("prompts", dataset.name), settings, tuple(receipts))
