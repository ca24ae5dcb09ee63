"""Where a partition of a table lies: `table/key=value/…`, Hive style, values URI-encoded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, unquote

from layerrank.storage.root import BOOKS, Root

TableName = Literal[
    "prompts",
    "tasks",
    "embeddings",
    "tokens",
    "prompt_metrics",
    "layer_metrics",
    "own_metrics",
    "sensitivity",
    "prompt_traits",
    "modes",
    "probe_scores",
    "learning_curves",
    "candidate_scores",
    "layer_costs",
    "transforms",
    "choices",
    "correlations",
    "candidates",
    "ranking",
]
SUBJECT_KEYS = ("model", "revision", "dataset", "condition")
KEYS: dict[TableName, tuple[str, ...]] = {
    "prompts": ("dataset",),
    "tasks": ("task", "dataset"),
    "embeddings": SUBJECT_KEYS,
    "tokens": SUBJECT_KEYS,
    "prompt_metrics": SUBJECT_KEYS,
    "layer_metrics": SUBJECT_KEYS,
    "own_metrics": (*SUBJECT_KEYS, "metric"),
    "sensitivity": ("model", "revision", "dataset", "family"),
    "prompt_traits": SUBJECT_KEYS,
    "modes": ("model", "revision", "group"),
    "probe_scores": (*SUBJECT_KEYS, "task"),
    "learning_curves": (*SUBJECT_KEYS, "task"),
    "candidate_scores": (*SUBJECT_KEYS, "task", "group"),
    "layer_costs": ("model", "revision"),
    "transforms": ("model", "revision", "group"),
    "choices": ("model", "revision", "group"),
    "correlations": ("model", "revision", "group"),
    "candidates": ("model", "revision", "group"),
    "ranking": ("model", "revision", "group"),
}
CLEAN = "clean"
ALERTS = "alerts"  # RUN/MODEL/REVISION.json: the rules of a nightly that a checkpoint broke
RUNS = f"{BOOKS}/runs"  # the config of each run, NAME.yaml
_MANIFESTS, _SUFFIX = f"{BOOKS}/manifests", ".json"


@dataclass(frozen=True, order=True)
class Partition:
    """One partition of one table: the unit that has a manifest and is visible as a whole."""

    table: TableName
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        assert len(self.values) == len(KEYS[self.table]), (self.table, self.values)

    @property
    def path(self) -> str:
        """The key prefix of the partition under the root."""
        named = zip(KEYS[self.table], self.values, strict=True)
        return "/".join([self.table, *(f"{key}={quote(value, safe='')}" for key, value in named)])

    @property
    def manifest(self) -> str:
        """The key of its manifest."""
        return f"{_MANIFESTS}/{self.path}{_SUFFIX}"

    @property
    def keys(self) -> dict[str, str]:
        """Partition key -> value."""
        return dict(zip(KEYS[self.table], self.values, strict=True))

    def __str__(self) -> str:
        return f"{self.table} of " + ", ".join(f"{key} {value}" for key, value in self.keys.items())

    def shard(self, name: str) -> str:
        """Return the key of the object `name` in this partition."""
        return f"{self.path}/{name}"

    def sibling(self, table: TableName) -> Partition:
        """Return the partition with the same keys in another table of the same subject."""
        return Partition(table, self.values)


def one_name(name: str) -> str:
    """Return a name as that of one file or folder: URI-encoded, and none that leads elsewhere."""
    encoded = quote(name, safe="")
    return encoded.replace(".", "%2E") if set(name) == {"."} else encoded


def shard_name(number: int) -> str:
    """Return the object name of shard `number`, the same in every table."""
    return f"shard-{number:05d}.parquet"


def part_name(name: str, number: int) -> str:
    """Return the object name of a part, from 1, of a shard that is several objects."""
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}.part-{number}{dot}{suffix}"


def whole_name(name: str) -> str:
    """Return the name of the shard that an object is, or is a part of."""
    return re.sub(r"\.part-[0-9]+(\.[^.]+)$", r"\1", name)


def step_of(revision: str) -> int | None:
    """Return the training step that a revision names: its last number; None if it has none."""
    numbers = re.findall(r"\d+", revision)
    return int(numbers[-1]) if numbers else None


def by_step(revision: str) -> tuple[bool, int, str]:
    """Order revisions by their step; those without one come first."""
    step = step_of(revision)
    return step is not None, step or 0, revision


def partitions(root: Root, table: TableName, *first: str) -> list[Partition]:
    """Return the partitions of `table` that have a manifest, sorted; those of some `first` values.

    Walks the folders level by level, so the number of shards in them does not matter.
    """
    *upper, last = KEYS[table]
    named = [f"{key}={quote(value, safe='')}" for key, value in zip(upper, first, strict=False)]
    below = "/".join([_MANIFESTS, table, *named])
    return sorted(
        Partition(
            table, (*first, *values, unquote(name.removeprefix(f"{last}=").removesuffix(_SUFFIX)))
        )
        for prefix, values in _walk(root, below, upper[len(first) :])
        for name in root.sizes(prefix)
        if name.startswith(f"{last}=") and name.endswith(_SUFFIX)
    )


def all_partitions(root: Root, table: TableName) -> list[Partition]:
    """Return the partitions of `table` that have a manifest or an object, sorted."""
    found = {*partitions(root, table)}
    folders = {Partition(table, values): path for path, values in _walk(root, table, KEYS[table])}
    left = [each for each, path in folders.items() if each not in found and root.sizes(path)]
    return sorted({*found, *left})


def _walk(root: Root, prefix: str, keys: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the folders that lie `keys` deep under a prefix, with the values of the keys."""
    found: list[tuple[str, tuple[str, ...]]] = [(prefix, ())]
    for key in keys:
        found = [
            (f"{above}/{folder}", (*values, unquote(folder.removeprefix(f"{key}="))))
            for above, values in found
            for folder in root.folders(above)
            if folder.startswith(f"{key}=")
        ]
    return found
