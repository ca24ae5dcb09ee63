"""What every stage shares of a run: its config, its root, its cluster, and its partitions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.cluster import Cluster
from jobs.config import ConfigError, RunConfig, SubjectConfig
from jobs.corpora import DatasetConfig
from operators.subject import Subject
from storage.manifest import Manifest, require
from storage.partition import CLEAN, Partition
from storage.root import Root, fingerprint

_FILES = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model", "*.py")


@dataclass(frozen=True)
class Run:
    """One invocation: the config and where it happens."""

    config: RunConfig
    root: Root
    cluster: Cluster
    overwrite: bool = False

    @property
    def subjects(self) -> list[Subject]:
        """The models of the run; ConfigError if two would share their partitions."""
        found = [subject(config) for config in self.config.subjects]
        names = [str(each) for each in found]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"two subjects are called {twice[0]}: give each its own name")
        return found

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


def subject(config: SubjectConfig) -> Subject:
    """Return the subject that a config describes, its defaults filled in."""
    bare = Subject(
        config.model,
        config.revision or "main",
        config.name or config.model.rstrip("/").removeprefix("package:"),
        config.dtype,
        config.trust_remote_code,
        config.allow_pickle,
    )
    if not bare.is_folder:
        return bare
    name = config.name or Path(bare.source).resolve().name
    return Subject(
        config.model if config.model.startswith("package:") else str(Path(bare.source).resolve()),
        config.revision or "local",
        name,
        config.dtype,
        config.trust_remote_code,
        config.allow_pickle,
    )


def subject_identity(each: Subject) -> dict[str, Any]:
    """Return what a subject's activations depend on: its files, or its hub id and revision."""
    if not each.is_folder:
        return {"model": each.model, "revision": each.revision, "dtype": each.dtype}
    folder = Path(each.source)
    files = sorted(file for pattern in _FILES for file in folder.glob(pattern))
    prints = json.dumps({file.name: fingerprint(str(file), {}) for file in files})
    digest = hashlib.blake2b(prints.encode(), digest_size=16).hexdigest()
    return {"files": digest, "dtype": each.dtype}


def partition(
    table: str, each: Subject, dataset: DatasetConfig, condition: str = CLEAN
) -> Partition:
    """Return a partition of one of the tables that belong to a subject."""
    return Partition(table, (each.name, each.revision, dataset.name, condition))
