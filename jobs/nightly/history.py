"""What a root holds of a model's checkpoints: rankings and metrics, in the order of their steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from jobs.config.metrics import parameters
from jobs.config.run import RunConfig
from jobs.rank.stage import ranking_settings
from jobs.run import Run, named_partition, ranking_partition
from jobs.subjects import by_step
from operators.metrics.registry import METRICS, main_variant
from operators.model.subject import Subject
from storage.manifest import digest_of
from storage.partition import Partition, partitions

_READERS = 16
Values = dict[int, float]  # layer -> value, NaN where it is undefined


@dataclass(frozen=True)
class Checkpoint:
    """A ranked checkpoint: the rows of its ranking by layer, and the main variant of each metric.

    `metrics` is keyed by dataset and metric, in the order of the config and of the registry.
    """

    model: str
    revision: str
    ranking: list[dict[str, Any]]
    metrics: dict[tuple[str, str], Values]

    @property
    def layers(self) -> list[int]:
        """The layers that were ranked."""
        return [row["layer"] for row in self.ranking]

    @property
    def recommended(self) -> int:
        """The layer that the ranking recommends."""
        layer: int = next(row["layer"] for row in self.ranking if row["recommended"])
        return layer

    def row(self, layer: int) -> dict[str, Any]:
        """Return the row of a layer."""
        return next(row for row in self.ranking if row["layer"] == layer)


def without_ranking(run: Run, subjects: Iterable[Subject]) -> list[Subject]:
    """Return the subjects that this run has not ranked yet, in the order of their steps.

    A ranking made with other settings is a SettingsConflictError that names them, as its scores
    cannot be compared with new ones; if the run may overwrite, it counts as not made.
    """
    settings = ranking_settings(run.config)
    return [
        each
        for each in sorted(subjects, key=lambda each: (each.name, by_step(each.revision)))
        if run.manifests.current(
            ranking_partition(run.config.name, each.name, each.revision),
            settings,
            overwrite=run.overwrite,
        )
        is None
    ]


def ranked(run: Run) -> list[Checkpoint]:
    """Return every checkpoint that this run has ranked with its settings, by model and step.

    They are those of the root's tables: a checkpoint counts when its files are long gone.
    """
    found = partitions(run.root, "ranking")
    own = [each for each in found if each.keys["group"] == run.config.name]
    with ThreadPoolExecutor(_READERS) as pool:
        read = list(pool.map(lambda where: _read(run, where), own))
    return in_order(each for each in read if each is not None)


def in_order(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Return checkpoints by model, then by step."""
    return sorted(checkpoints, key=lambda each: (each.model, by_step(each.revision)))


def before(checkpoints: Sequence[Checkpoint], model: str, revision: str) -> list[Checkpoint]:
    """Return the checkpoints of a model that come before one of its revisions, in order."""
    last = by_step(revision)
    return [each for each in checkpoints if each.model == model and by_step(each.revision) < last]


def _read(run: Run, where: Partition) -> Checkpoint | None:
    manifest = run.manifests.load(where)
    if manifest is None or manifest.digest != digest_of(ranking_settings(run.config)):
        return None
    model, revision = where.keys["model"], where.keys["revision"]
    rows = sorted(run.rows(where), key=lambda row: row["layer"])
    return Checkpoint(model, revision, rows, main_metrics(run, model, revision))


def main_metrics(run: Run, model: str, revision: str) -> dict[tuple[str, str], Values]:
    """Return the main variant of every metric of a checkpoint, by dataset and metric.

    Of a metric of pooled vectors it is that of the vectors that are ranked.
    """
    found: dict[tuple[str, str], Values] = {}
    for dataset in run.config.datasets:
        rows = run.rows_if_any(named_partition("layer_metrics", model, revision, dataset.name))
        for metric in METRICS if rows else ():
            values = _main_values(run.config, metric, rows)
            if values:
                found[dataset.name, metric] = values
    return found


def _main_values(config: RunConfig, metric: str, rows: Sequence[dict[str, Any]]) -> Values:
    main = main_variant(metric, parameters(config))
    same = [row for row in rows if (row["metric"], row["variant"]) == (metric, main)]
    kinds = sorted({(row["norm"], row["pooling"]) for row in same})
    wanted = (config.rank.norm, config.rank.pooling)
    kind = wanted if wanted in kinds else next(iter(kinds), wanted)
    return {row["layer"]: row["value"] for row in same if (row["norm"], row["pooling"]) == kind}
