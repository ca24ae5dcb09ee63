"""The checkpoints that a root has ranked, and which rules a new one breaks against them.

What counts of a checkpoint are its tables: its ranking and metrics, in the order of their steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import numpy as np

from jobs import words
from jobs.config.settings import NightlyConfig
from jobs.nightly.alerts import Broken
from jobs.rank.ranking import Checkpoint
from jobs.rank.stage import main_metrics, ranked_tasks, ranking_settings
from jobs.report.wording import title
from jobs.run import Run, partition
from jobs.subjects import by_step
from operators.analysis.regression import ScoreChange, has_moved, jumps, score_change
from operators.model.subject import Subject
from operators.ranking.scores import TaskScores
from storage.manifest import digest_of
from storage.partition import Partition, partitions

_READERS = 16
_MOST_NAMED = 8  # layers in a sentence


def without_ranking(run: Run, subjects: Iterable[Subject]) -> list[Subject]:
    """Return the subjects that this run has not ranked yet, in the order of their steps.

    A ranking made with other settings is a SettingsConflictError that names them, as its scores
    cannot be compared with new ones; if the run may overwrite, it counts as not made.
    """
    settings = ranking_settings(run.config)
    ordered = sorted(subjects, key=lambda each: (each.name, by_step(each.revision)))
    wheres = [partition("ranking", each, run.config) for each in ordered]
    found = [run.manifests.current(each, settings, overwrite=run.overwrite) for each in wheres]
    return [each for each, manifest in zip(ordered, found, strict=True) if manifest is None]


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


def judge(run: Run, earlier: Sequence[Checkpoint], new: Checkpoint) -> list[Broken]:
    """Return the rules that a checkpoint breaks against the last of the earlier ones."""
    config, level, previous = run.config.nightly, run.config.rank.level, earlier[-1]
    layer, broken = previous.recommended, list[Broken]()
    change = change_at(run, previous, new)
    limit = config.score_drop
    if limit is not None and change is not None and change.fell_by_more_than(limit):
        says = (
            f"Layer {layer}, which {previous.revision} recommended, scores "
            f"{words.points(change.now)} points, {words.points(-change.change)} less than there "
            f"({100 * level:g} % interval {words.span(-change.high, -change.low)}; "
            f"limit {words.points(limit)})."
        )
        numbers = {"layer": layer, **asdict(change), "limit": limit, "level": level}
        broken.append(Broken("score_drop", says, numbers))
    moved = config.layer_moved
    if moved is not None and has_moved(layer, new.recommended, moved):
        says = f"The recommended layer moved from {layer} to {new.recommended} (limit {moved})."
        numbers = {"before": layer, "now": new.recommended, "limit": moved}
        broken.append(Broken("layer_moved", says, numbers))
    return [*broken, *_metric_jumps(config, earlier, new)]


def change_at(run: Run, previous: Checkpoint, new: Checkpoint) -> ScoreChange | None:
    """Return how the score of the layer changed that the previous checkpoint's ranking recommended.

    None if the layer has no score in one of them.
    """
    layer = previous.recommended
    if layer not in new.layers:
        return None
    return score_change(
        _scores_at(run, previous, layer),
        _scores_at(run, new, layer),
        seed=run.config.seed,
        draws=run.config.rank.draws,
        level=run.config.rank.level,
    )


def _scores_at(run: Run, checkpoint: Checkpoint, layer: int) -> list[TaskScores]:
    subject = Subject(checkpoint.model, checkpoint.revision, checkpoint.model)
    row = [checkpoint.layers.index(layer)]
    return [
        replace(
            task.scores,
            score_L=task.scores.score_L[row],
            resampled_LR=task.scores.resampled_LR[row],
        )
        for task in ranked_tasks(run, subject, checkpoint.layers)
    ]


def _metric_jumps(
    config: NightlyConfig, earlier: Sequence[Checkpoint], new: Checkpoint
) -> Iterator[Broken]:
    limit = config.metric_jump
    if limit is None:
        return
    for key, values in new.metrics.items():
        layers = sorted(values)
        of_each = [each.metrics.get(key, {}) for each in (*earlier, new)]
        table_CL = np.array([[found.get(at, math.nan) for at in layers] for found in of_each])
        found = jumps(table_CL, limit=limit, fewest=config.changes)
        if not found:
            continue
        found = [replace(jump, layer=layers[jump.layer]) for jump in found]
        most = max(found, key=lambda jump: jump.deviations)
        where = f"layer {most.layer}"
        if len(found) > 1:
            named = ", ".join(str(jump.layer) for jump in found[:_MOST_NAMED])
            rest = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
            where = f"layers {named}{rest}, most in {where}:"
        dataset, metric = key
        says = (
            f"{title(metric)} on {dataset} jumped in {where} from {words.number(most.before)} to "
            f"{words.number(most.now)}, {most.deviations:,.0f} median absolute deviations from its "
            f"usual change (limit {limit:g})."
        )
        numbers = {"layers": [asdict(jump) for jump in found], "limit": limit}
        yield Broken("metric_jump", says, {"dataset": dataset, "metric": metric, **numbers})
