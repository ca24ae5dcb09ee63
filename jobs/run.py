"""What every stage shares of a run: its config, its root, its cluster, and its partitions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jobs.cluster.cluster import Cluster
from jobs.config.blocks import ConfigError
from jobs.config.datasets import DatasetConfig
from jobs.config.run import RunConfig
from jobs.subjects import resolve
from jobs.tasks.types import Task
from operators.model.subject import Subject
from storage.manifest import Manifest, require
from storage.partition import CLEAN, Partition
from storage.root import Root


@dataclass(frozen=True)
class Run:
    """One invocation: the config and where it happens."""

    config: RunConfig
    root: Root
    cluster: Cluster
    overwrite: bool = False
    chosen: tuple[Subject, ...] | None = None  # of the config's subjects; None: all of them

    @cached_property
    def subjects(self) -> tuple[Subject, ...]:
        """The models of the run; what a sweep's `revisions` stand for is looked up once."""
        return resolve(self.config) if self.chosen is None else self.chosen

    def pairs(self) -> Iterator[tuple[Subject, DatasetConfig]]:
        """Yield every subject with every dataset."""
        for each in self.subjects:
            for dataset in self.config.datasets:
                yield each, dataset

    def prompts(self, dataset: DatasetConfig) -> Manifest:
        """Return the prompts of a dataset; FileNotFoundError if they are not prepared."""
        return require(self.root, Partition("prompts", (dataset.name,)))

    def embeddings(self, each: Subject, dataset: DatasetConfig) -> Manifest:
        """Return the clean embeddings of a subject; FileNotFoundError if not extracted."""
        return require(self.root, partition("embeddings", each, dataset))


def open_root(config: RunConfig, output: str | None) -> Root:
    """Return the writable output root of a run; ConfigError if there is none to use."""
    uri = output or config.output
    if not uri:
        raise ConfigError("no output: give --output, or `output:` in the config")
    remote = "://" in uri
    # Workers have working directories of their own: a relative folder would be another one there.
    root = Root(uri, config.storage.options()) if remote else Root(str(Path(uri).resolve()))
    root.check_writable()
    return root


def partition(
    table: str, each: Subject, dataset: DatasetConfig, condition: str = CLEAN
) -> Partition:
    """Return a partition of one of the tables that belong to a subject."""
    return Partition(table, (each.name, each.revision, dataset.name, condition))


def task_partition(dataset: DatasetConfig, task: Task) -> Partition:
    """Return where the items of a task lie."""
    return Partition("tasks", (task.name, dataset.name))


def leading(prompts: Mapping[str, int], sample: int) -> dict[str, int]:
    """Return how many prompts of each shard are taken, in order, until there are `sample`."""
    shares: dict[str, int] = {}
    left = sample
    for name, count in prompts.items():
        take = min(count, left)
        if take:
            shares[name] = take
        left -= take
    return shares


def modes_partition(run: Run, subject: Subject) -> Partition:
    """Return the partition of `modes` that a run makes of a subject."""
    return Partition("modes", (subject.name, subject.revision, run.config.name))


def sensitivity_partition(subject: Subject, dataset: DatasetConfig, family: str) -> Partition:
    """Return where the slopes of a family lie."""
    return Partition("sensitivity", (subject.name, subject.revision, dataset.name, family))


def costs_partition(subject: Subject) -> Partition:
    """Return where the costs of a subject's layers lie."""
    return Partition("layer_costs", (subject.name, subject.revision))


def score_partition(
    subject: Subject,
    dataset: DatasetConfig,
    task: Task,
    condition: str = CLEAN,
    table: str = "probe_scores",
) -> Partition:
    """Return where the scores of a task lie."""
    values = partition("embeddings", subject, dataset, condition).values
    return Partition(table, (*values, task.name))


def ranking_partition(config: RunConfig, model: str, revision: str) -> Partition:
    """Return where a run's ranking of a model at a revision lies."""
    return Partition("ranking", (model, revision, config.name))
