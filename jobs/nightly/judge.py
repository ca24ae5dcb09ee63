"""Which rules of the config a checkpoint breaks against the ones before it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

import numpy as np

from jobs import words
from jobs.nightly.alerts import Broken
from jobs.rank.ranking import Checkpoint
from jobs.rank.stage import ranked_tasks
from jobs.report.wording import title
from jobs.run import Run
from operators.analysis.regression import Jump, ScoreChange, has_moved, jumps, score_change
from operators.model.subject import Subject
from operators.ranking.scores import TaskScores

_MOST_NAMED = 8  # layers in a sentence


def judge(run: Run, earlier: Sequence[Checkpoint], new: Checkpoint) -> list[Broken]:
    """Return the rules that a checkpoint breaks against the last of the earlier ones."""
    if not earlier:
        return []
    previous = earlier[-1]
    return [
        *_score_drop(run, previous, new),
        *_layer_moved(run, previous, new),
        *_metric_jumps(run, earlier, new),
    ]


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


def _score_drop(run: Run, previous: Checkpoint, new: Checkpoint) -> Iterator[Broken]:
    limit = run.config.nightly.score_drop
    change = None if limit is None else change_at(run, previous, new)
    if limit is None or change is None or not change.fell_by_more_than(limit):
        return
    layer = previous.recommended
    says = (
        f"Layer {layer}, which {previous.revision} recommended, scores "
        f"{words.points(change.now)} points, {words.points(-change.change)} less than there "
        f"({100 * run.config.rank.level:g} % interval "
        f"{words.span(-change.high, -change.low)}; limit {words.points(limit)})."
    )
    numbers = {"layer": layer, **asdict(change), "limit": limit, "level": run.config.rank.level}
    yield Broken("score_drop", says, numbers)


def _layer_moved(run: Run, previous: Checkpoint, new: Checkpoint) -> Iterator[Broken]:
    limit = run.config.nightly.layer_moved
    if limit is None or not has_moved(previous.recommended, new.recommended, limit):
        return
    says = (
        f"The recommended layer moved from {previous.recommended} to {new.recommended} "
        f"(limit {limit})."
    )
    numbers = {"before": previous.recommended, "now": new.recommended, "limit": limit}
    yield Broken("layer_moved", says, numbers)


def _metric_jumps(run: Run, earlier: Sequence[Checkpoint], new: Checkpoint) -> Iterator[Broken]:
    config = run.config.nightly
    if config.metric_jump is None:
        return
    for (dataset, metric), values in new.metrics.items():
        layers = sorted(values)
        table_CL = np.array(
            [
                [each.metrics.get((dataset, metric), {}).get(layer, math.nan) for layer in layers]
                for each in (*earlier, new)
            ]
        )
        found = jumps(table_CL, limit=config.metric_jump, fewest=config.changes)
        if found:
            named = [replace(jump, layer=layers[jump.layer]) for jump in found]
            yield _broken_metric(dataset, metric, named, config.metric_jump)


def _broken_metric(dataset: str, metric: str, found: Sequence[Jump], limit: float) -> Broken:
    most = max(found, key=lambda jump: jump.deviations)
    where = f"layer {most.layer}"
    if len(found) > 1:
        named = ", ".join(str(jump.layer) for jump in found[:_MOST_NAMED])
        rest = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
        where = f"layers {named}{rest}, most in {where}:"
    says = (
        f"{title(metric)} on {dataset} jumped in {where} "
        f"from {words.number(most.before)} to "
        f"{words.number(most.now)}, {most.deviations:,.0f} median absolute deviations from its "
        f"usual change (limit {limit:g})."
    )
    numbers = {
        "dataset": dataset,
        "metric": metric,
        "layers": [asdict(jump) for jump in found],
        "limit": limit,
    }
    return Broken("metric_jump", says, numbers)
