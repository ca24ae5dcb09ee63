"""What a root holds of a model's checkpoints: rankings and metrics, in the order of their steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from jobs.rank.ranking import Checkpoint
from jobs.rank.stage import main_metrics, ranking_settings
from jobs.run import Run, partition
from jobs.subjects import by_step
from operators.model.subject import Subject
from storage.manifest import digest_of
from storage.partition import Partition, partitions

_READERS = 16


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
            partition("ranking", each, run.config),
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
