"""What a dataset will come to, before it is prepared: a sample of its rows, prepared in memory.

The rows pass the filters of `jobs.prepare.records` and meet in shards of the size that the run's
would have, so duplicates, short texts and labels count as they will. Of a source that is read in
part, texts that repeat one outside the sample are counted as prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from jobs.config.blocks import ConfigError
from jobs.config.datasets import BuiltinSource, DatasetConfig, FileSource, HubSource, MtebSource
from jobs.config.run import RunConfig
from jobs.plan.weight import Weight, partition_weight, scratch, weight
from jobs.prepare import sources
from jobs.prepare.files import Options, estimate_rows, size
from jobs.prepare.records import PROMPT, Rows, items_of, prompts_of, records_of
from jobs.run import prompts_partition, task_partition
from storage import schema
from storage.manifest import Manifest, digest_of, load, publish
from storage.partition import MANIFEST, Partition, shard_name
from storage.root import Root
from storage.shards import Receipt, read_table, write_shard

Basis = Literal["prepared", "counted", "sampled", "bound"]
_ROWS = 20_000  # source rows that are read
_SHARDS = 8  # shards of them that are written to be weighed
_FILES = 32  # files, evenly spaced, that are opened to count and to sample
_LIBRARIES = 3  # of the built-in corpus: parsing one takes a second
_COUNTED_BYTES = 1 << 26  # of a file without a footer; the lines of a longer one are estimated
_TEXTS = 1024  # that the tokenizer sees


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
    if isinstance(dataset.source, HubSource):
        return _bound(dataset)
    return _sampled(config, dataset)


def publish_corpus(corpus: Corpus, root: Root) -> None:
    """Make the corpus stand in `root` as prepared, its first shard with some of its texts."""
    first = corpus.prompts.receipts[0]
    key = corpus.prompts.partition.shard(first.name)
    write_shard(root, key, [corpus.texts], schema.PROMPTS, first)
    publish(root, corpus.prompts.partition, corpus.prompts.settings, corpus.prompts.receipts)
    for task in corpus.dataset.tasks:
        publish(root, task_partition(corpus.dataset, task), {"task": task.name}, [])


def _prepared(dataset: DatasetConfig, root: Root) -> Corpus | None:
    """Return the corpus as it lies in the root; None if prompts or tasks are not there."""
    where = [
        prompts_partition(dataset.name),
        *(task_partition(dataset, task) for task in dataset.tasks),
    ]
    found = [manifest for each in where if (manifest := load(root, each)) is not None]
    if len(found) < len(where):
        return None
    weights: dict[str, Weight] = {}
    for manifest in found:
        table = manifest.partition.table
        own = len(root.read(manifest.partition.shard(MANIFEST)))
        sizes = [*(receipt.bytes for receipt in manifest.receipts), own]
        weights[table] = weights.get(table, Weight()) + weight(sizes)
    prompts = found[0]
    filled = [prompts.partition.shard(each.name) for each in prompts.receipts if each.rows]
    texts = read_table(root, filled[0])[:_TEXTS] if filled else schema.PROMPTS.empty_table()
    return Corpus(dataset, "prepared", prompts, texts, weights)


def _bound(dataset: DatasetConfig) -> Corpus:
    if dataset.limit is None:
        raise ConfigError(
            f"dataset {dataset.name}: the number of rows is unknown before it is read; "
            "set limit, or run `layerrank prepare` first"
        )
    prompts = dataset.limit * len(dataset.text_columns)
    manifest = _estimated(dataset, prompts, _shards(dataset, dataset.limit))
    return Corpus(dataset, "bound", manifest, schema.PROMPTS.empty_table(), {})


def _sampled(config: RunConfig, dataset: DatasetConfig) -> Corpus:
    options = config.storage.options()
    fragments = sources.discover(dataset, options)
    parts, total = sources.cut(fragments, _lengths(dataset, fragments, options), dataset.limit)
    if not total:
        raise ConfigError(f"dataset {dataset.name}: its source has no rows")
    shards = _shards(dataset, total)
    rows = [*_read(dataset, parts, options)]
    read = sum(table.num_rows for table in rows)
    everything = read == total
    small = shards if everything else max(round(shards * read / total), 1)
    records = [records_of(dataset, table, small, config.seed) for table in rows]
    gathered = pa.concat_tables(records) if records else None
    if gathered is None or PROMPT not in gathered["kind"].unique().to_pylist():
        raise ConfigError(f"dataset {dataset.name}: no prompt is left of {read:,} sampled rows")
    prompts = [prompts_of(_of_shard(gathered, n), n) for n in range(small)]
    unique = sum(each[0].num_rows for each in prompts)
    if everything:
        counts = [each[0].num_rows for each in prompts]
        manifest = _manifest(dataset, counts)
    else:
        manifest = _estimated(dataset, max(round(unique * total / read), 1), shards)
    texts = pa.concat_tables([each[0] for each in prompts[:_SHARDS]])[:_TEXTS]
    weights = {"prompts": _weigh(manifest.partition, prompts, unique, manifest)}
    for task in dataset.tasks:
        items = [items_of(_of_shard(gathered, n), task) for n in range(small)]
        where = task_partition(dataset, task)
        weights["tasks"] = weights.get("tasks", Weight()) + _weigh(where, items, unique, manifest)
    return Corpus(dataset, "counted" if everything else "sampled", manifest, texts, weights)


def _of_shard(records: pa.Table, number: int) -> pa.Table:
    """Return the records of a shard."""
    return records.filter(pc.equal(records["shard"], number))


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
    sizes = [mean * larger] * count
    return partition_weight(sizes)


def _read(
    dataset: DatasetConfig,
    parts: Sequence[sources.Fragment],
    options: Options,
) -> Iterator[pa.Table]:
    """Yield the first rows of some parts, of each in proportion to its length."""
    some = _spread(dataset, parts)
    lengths = [(part.stop or 0) - part.start for part in some]
    for part, length in zip(some, lengths, strict=True):
        take = -(-length * _ROWS // max(sum(lengths), _ROWS))
        yield from sources.read(replace(part, stop=part.start + take), dataset.columns, options)


def _lengths(
    dataset: DatasetConfig, fragments: Sequence[sources.Fragment], options: Options
) -> list[int]:
    """Return the rows of each fragment: counted, or of the same share of its bytes as elsewhere."""
    if not isinstance(dataset.source, FileSource):
        return [sources.inspect(fragment, options)[0] for fragment in fragments]
    looked: dict[int, int] = {}
    for fragment in _spread(dataset, fragments):
        if fragment.file.kind != "parquet" and size(fragment.file, options) > _COUNTED_BYTES:
            looked[fragment.index] = estimate_rows(fragment.file, options)
            continue
        rows, columns = sources.inspect(fragment, options)
        if rows:
            sources.require_columns(dataset, fragment, columns)
        looked[fragment.index] = rows
    if len(looked) == len(fragments):
        return [*looked.values()]
    sizes = [size(fragment.file, options) for fragment in fragments]
    density = sum(looked.values()) / max(sum(sizes[index] for index in looked), 1)
    return [looked.get(index, round(each * density)) for index, each in enumerate(sizes)]


def _spread(
    dataset: DatasetConfig, fragments: Sequence[sources.Fragment]
) -> list[sources.Fragment]:
    """Return some of the fragments, evenly spaced, or all of few."""
    most = _LIBRARIES if isinstance(dataset.source, BuiltinSource) else _FILES
    count = min(most, len(fragments))
    return [fragments[index * len(fragments) // count] for index in range(count)]


def _shards(dataset: DatasetConfig, rows: int) -> int:
    return max(-(-rows * len(dataset.text_columns) // dataset.shard_prompts), 1)


def _estimated(dataset: DatasetConfig, prompts: int, shards: int) -> Manifest:
    """Return the prompts of a dataset spread evenly over its shards."""
    return _manifest(dataset, [(prompts + shards - 1 - n) // shards for n in range(shards)])


def _manifest(dataset: DatasetConfig, counts: Sequence[int]) -> Manifest:
    settings: dict[str, Any] = {"planned": dataset.name}
    digest = digest_of(settings)
    receipts = (Receipt(shard_name(n), rows, digest, "") for n, rows in enumerate(counts))
    return Manifest(prompts_partition(dataset.name), settings, tuple(receipts))
