"""What the stages share of a run, and the one table of what lies where, who writes it, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerrank.jobs.cluster.cluster import Cluster
from layerrank.jobs.cluster.console import say
from layerrank.jobs.config import Stage
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.candidates import other_vectors
from layerrank.jobs.config.datasets import DatasetConfig, OwnTask, Task
from layerrank.jobs.config.prompts import Prompted, Side, by_template
from layerrank.jobs.config.run import RunConfig
from layerrank.jobs.own import Own, find
from layerrank.jobs.subjects import (
    checked,
    require_lengths,
    require_prompts,
    resolve,
    sides_of,
    subject_identity,
    words_of,
)
from layerrank.operators.model.subject import Kind, ModelShape, ModelUnavailableError, Subject
from layerrank.storage import schema
from layerrank.storage.manifest import Manifest, Manifests, Settings, digest_of, require_format
from layerrank.storage.partition import CLEAN, KEYS, Partition, TableName
from layerrank.storage.root import AddressError, Root
from layerrank.storage.root import resolve as resolve_address
from layerrank.storage.shards import Facts, Receipt, write_shard

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A table of the root: the stage that writes a partition of it, and when that is visible.

    A partition has one object per shard of prompts, or the only `object`; the columns are those of
    its name in `storage.schema`. Its manifest is written last, and readers take a partition only
    through it.
    """

    stage: Stage
    visible: str
    object: str = ""


# Keys of a partition: storage.partition.KEYS. Columns and units: storage.schema. Beside the tables
# lie `report/NAME/` (by a run, at its end), `mteb/` (results as mteb writes them, by probe),
# `trend/` and `alerts/` (by a nightly, checkpoint by checkpoint), and `_layerrank/` (manifests,
# indexes of shards, configs of runs, what reports were made of, sizes and kinds of models, locks).
TABLES: dict[TableName, Table] = {
    "tasks": Table("prepare", "when all shards of a dataset are written, before its prompts"),
    "prompts": Table("prepare", "when all shards of a dataset are written"),
    "embeddings": Table("extract", "when all shards of a subject, of every condition, are written"),
    "tokens": Table("extract", "with the clean embeddings, where token states are stored"),
    "prompt_metrics": Table("extract", "with the embeddings; by measure where states are stored"),
    "layer_costs": Table("measure", "when a subject's layers are timed", "costs.parquet"),
    "layer_metrics": Table(
        "measure", "when all layers under a condition are measured", "metrics.parquet"
    ),
    "own_metrics": Table(
        "measure", "when a function is measured in all layers under a condition", "metrics.parquet"
    ),
    "prompt_traits": Table("measure", "when the sampled prompts of a dataset are described"),
    "sensitivity": Table("measure", "when a family of conditions is reduced", "slopes.parquet"),
    "modes": Table("measure", "when all datasets of a subject are measured", "modes.parquet"),
    "transforms": Table("probe", "before the scores of a subject", "transforms.parquet"),
    "probe_scores": Table("probe", "when a task is scored in all layers", "scores.parquet"),
    "learning_curves": Table(
        "probe", "when a task is scored at every number of examples", "scores.parquet"
    ),
    "candidate_scores": Table("probe", "when the tasks of a run are searched", "scores.parquet"),
    "choices": Table("rank", "before the ranking", "choices.parquet"),
    "correlations": Table("rank", "before the ranking", "correlations.parquet"),
    "candidates": Table("rank", "before the ranking", "candidates.parquet"),
    "ranking": Table("rank", "anew by every run; by a nightly once", "ranking.parquet"),
}


@dataclass(frozen=True)
class Seen:
    """What has been read of a root and of model files, and need not be read again."""

    manifests: dict[Partition, Manifest | None] = field(default_factory=dict)
    identities: dict[Subject, Settings] = field(default_factory=dict)
    shapes: dict[Subject, ModelShape] = field(default_factory=dict)
    sides: dict[tuple[Subject, str], list[Side]] = field(default_factory=dict)
    own: dict[str, Own] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One invocation: the config and where it happens."""

    config: RunConfig
    root: Root
    cluster: Cluster
    overwrite: bool = False
    given: RunConfig | None = None  # the config without the defaults of the root, if they differ
    chosen: tuple[Subject, ...] | None = None  # of the config's subjects; None: all of them
    seen: Seen = field(default_factory=Seen, repr=False, compare=False)
    folder: str = ""  # that of the config, where functions and classes of the user's may lie

    @cached_property
    def subjects(self) -> tuple[Subject, ...]:
        """The models of the run; what a sweep's `revisions` stand for is looked up once."""
        if self.chosen is not None:
            return self.chosen
        return resolve(self.config.subjects, self.config.storage)

    @cached_property
    def manifests(self) -> Manifests:
        """The manifests of the root, each read at most once."""
        return Manifests(self.root, self.seen.manifests, say)

    def identity(self, subject: Subject) -> Settings:
        """Return what a subject's activations depend on; its files are read once."""
        if subject not in self.seen.identities:
            self.seen.identities[subject] = subject_identity(subject, self.config.storage)
        return self.seen.identities[subject]

    def shape(self, subject: Subject) -> ModelShape:
        """Return the sizes of a subject, which is checked the first time a root sees its files."""
        if subject not in self.seen.shapes:
            given = self.identity(subject), self.config.storage, self.root, self.cluster.begin
            self.seen.shapes[subject] = checked(subject, *given)
        return self.seen.shapes[subject]

    def own(self, name: str) -> Own:
        """Return a function or a class of the user's; its source is read once."""
        if name not in self.seen.own:
            self.seen.own[name] = find(name, self.folder)
        return self.seen.own[name]

    def own_task(self, task: Task) -> Own | None:
        """Return the class of a task of the user's own; None for any other."""
        return self.own(task.type) if isinstance(task, OwnTask) else None

    def kind(self, subject: Subject) -> Kind | None:
        """Return what kind of model a subject is; None if its files are not there any more."""
        try:
            return self.shape(subject).kind
        except ModelUnavailableError:
            return None

    def require_readable(self) -> None:
        """Check every subject, and the lengths and templates asked of it, before any is run."""
        for each in self.subjects:
            self.shape(each)
            require_lengths(self.config.conditions, each, self.config.storage)
            found = [
                side for dataset in self.config.datasets for side in self._sides(each, dataset)
            ]
            require_prompts(self.config, each, found)

    def sides(self, each: Subject, dataset: DatasetConfig) -> list[Side]:
        """Return the sides of a dataset's tasks that a subject reads in a template."""
        found = self._sides(each, dataset)
        return [side for side in found if side.has_texts(self._items(dataset, side.task).facts())]

    def _sides(self, each: Subject, dataset: DatasetConfig) -> list[Side]:
        """Return the same before it is known what mteb asks for the texts of its tasks as."""
        key = each, dataset.name
        if key not in self.seen.sides:
            found = sides_of(each, dataset, self.config.storage, imports=True)
            self.seen.sides[key] = found
        return self.seen.sides[key]

    def prompted(self, each: Subject, dataset: DatasetConfig) -> list[Prompted]:
        """Return the templates that a subject reads texts of a dataset in, and which texts."""
        found, given = [], (self.config.extract.max_tokens, self.config.storage)
        for template, same in by_template(self.sides(each, dataset)).items():
            items = ((side, self._items(dataset, side.task).content) for side in same)
            texts = sorted([side.task.name, side.name, content] for side, content in items)
            found.append(Prompted(template, texts, words_of(each, template, *given)))
        return found

    def _items(self, dataset: DatasetConfig, task: Task) -> Manifest:
        return self.manifests.require(partition("tasks", task, dataset))

    def pairs(self) -> Iterator[tuple[Subject, DatasetConfig]]:
        """Yield every subject with every dataset."""
        for each in self.subjects:
            for dataset in self.config.datasets:
                yield each, dataset

    def prompts(self, dataset: DatasetConfig) -> Manifest:
        """Return the prompts of a dataset; FileNotFoundError if they are not prepared."""
        return self.manifests.require(partition("prompts", dataset))

    def embeddings(self, each: Subject, dataset: DatasetConfig) -> Manifest:
        """Return the clean embeddings of a subject; FileNotFoundError if not extracted."""
        return self.manifests.require(partition("embeddings", each, dataset))

    def rows(self, where: Partition) -> list[dict[str, Any]]:
        """Return the rows of a table of one object; FileNotFoundError if it is not there."""
        shard = self.manifests.require(where).only(self.root)
        rows: list[dict[str, Any]] = shard.read().to_pylist()
        return rows

    def rows_if_any(self, where: Partition) -> list[dict[str, Any]]:
        """Return the rows of a table of one object; [] if it is not there."""
        return self.rows(where) if self.manifests.load(where) else []

    def views_in(self, where: Partition) -> int:
        """Return in how many views prompts were compared for a partition of `layer_metrics`."""
        manifest = self.manifests.load(where)
        return len(manifest.settings.get("views", ())) if manifest else 0

    def scores_of(self, each: Subject, dataset: DatasetConfig, task: Task) -> list[Partition]:
        """Return where the scores of a task lie: of every layer, and of the run's candidates.

        What a run has no scores of yet is not among them, but for the layers'.
        """
        found = [partition("probe_scores", each, dataset, task)]
        if other_vectors(self.config):
            candidates = partition("candidate_scores", each, dataset, task, self.config)
            found += [candidates] if self.manifests.load(candidates) else []
        return found

    def ranked_rows(self, where: Partition) -> list[dict[str, Any]]:
        """Return the rows of scores of the vectors that are ranked."""
        rank = self.config.rank
        wanted = (rank.norm, rank.pooling, rank.variant)
        rows = self.rows(where)
        return [row for row in rows if (row["norm"], row["pooling"], row["variant"]) == wanted]

    def make(
        self,
        where: Partition,
        settings: Settings,
        rows: Callable[[], Iterable[Row]],
        *,
        overwrite: bool = False,
    ) -> tuple[Manifest, bool]:
        """Return a table of one object and whether it was made now, by `rows`, or was there.

        SettingsConflictError if it was made with other settings, unless it may be overwritten.
        """
        present = self.manifests.current(where, settings, overwrite=self.overwrite or overwrite)
        if present is not None:
            return present, False
        return self.write(where, settings, rows()), True

    def publish(
        self, where: Partition, settings: Settings, receipts: Iterable[Receipt], stage: Stage
    ) -> Manifest:
        """Make a partition visible whose shards the workers of a stage have written."""
        made = self.cluster.made.get(stage, "")
        return self.manifests.publish(where, settings, receipts, made=made)

    def write(
        self, where: Partition, settings: Settings, rows: Iterable[Row], facts: Facts | None = None
    ) -> Manifest:
        """Write a table of one object and make it visible."""
        made = self.cluster.made.get(TABLES[where.table].stage, "")
        return write_table(self.manifests, where, settings, rows, facts=facts, made=made)


def write_table(
    manifests: Manifests,
    where: Partition,
    settings: Settings,
    rows: Iterable[Row],
    *,
    facts: Facts | None = None,
    made: str = "",
) -> Manifest:
    """Write a table of one object and make it visible; `made` says what ran the work."""
    name, columns = TABLES[where.table].object, getattr(schema, where.table.upper())
    blank = Receipt(name, 0, digest_of(settings), "", facts=facts or {})
    content = [pa.Table.from_pylist([*rows], columns)]
    receipt = write_shard(manifests.root, where.shard(name), content, columns, blank)
    return manifests.publish(where, settings, [receipt], made=made)


def open_root(config: RunConfig, output: str | None) -> Root:
    """Return the writable output root of a run; ConfigError if there is none to use."""
    uri = output or config.output
    if not uri:
        raise ConfigError("no output: give --output, or `output:` in the config")
    try:
        resolve_address(uri, config.storage.options())
    except AddressError as error:
        raise ConfigError(f"output: {error}") from error
    # Workers have working directories of their own: a relative folder would be another one there.
    root = Root(uri if "://" in uri else str(Path(uri).resolve()), config.storage.options())
    require_format(root)
    root.check_writable()
    return root


def partition(table: TableName, *of: Subject | DatasetConfig | Task | RunConfig | str) -> Partition:
    """Return a partition of a table by what its keys stand for, in the order of KEYS.

    A subject is model and revision, anything else its name; without a condition it is the clean.
    """
    keys, values = KEYS[table], list[str]()
    for each in of:
        if isinstance(each, Subject):
            values += each.name, each.revision
        else:
            values.append(each if isinstance(each, str) else each.name)
    if "condition" in keys and len(values) == len(keys) - 1:
        values.insert(keys.index("condition"), CLEAN)
    return Partition(table, tuple(values))


def leading(prompts: Mapping[str, int], sample: int) -> dict[str, int]:
    """Return how many prompts of each shard are taken, in order, until there are `sample`.

    Shards are cut by a hash of the text, so the leading ones are a random sample, and a small
    sample touches few objects. A corpus smaller than the sample is taken whole.
    """
    shares: dict[str, int] = {}
    left = sample
    for name, count in prompts.items():
        take = min(count, left)
        if take:
            shares[name] = take
        left -= take
    return shares
