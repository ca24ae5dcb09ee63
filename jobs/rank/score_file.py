"""Scores from elsewhere: a table of scores or a folder of mteb results, ranked without a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.config.blocks import ConfigError
from jobs.rank.ranking import ELSEWHERE, RankedTask, Ranking, Settings, Vectors, ranking_of
from jobs.rank.score_rows import ScoreRow, read_mteb, read_table
from operators.model.subject import Subject
from operators.ranking.scores import TaskScores
from storage.root import resolve

_Cells = dict[int, dict[str, float]]  # layer -> fold -> score


@dataclass(frozen=True)
class Scored:
    """The scores of one model at a revision: tasks that have a score in every one of `layers`.

    `notes` are sentences on what was left out, or read in another way than usual; `left_out` says
    why of every task that is not among `tasks`.
    """

    model: str
    revision: str
    layers: list[int]
    tasks: list[TaskScores]
    notes: list[str]
    left_out: dict[str, str]


def read_scores(path: str | Path) -> list[Scored]:
    """Read the scores of a Parquet or CSV file, or of a folder of mteb results, local or on S3.

    A file has the columns model, layer, task and score, and may have revision, task_type and fold;
    others are not read. Folds of a task are averaged, and vary in the bootstrap. Of mteb results
    (`<path>/…/layer-07/<org__model>/<revision>/<Task>.json`) the main score of the test split is
    taken, averaged over subsets. A null, empty or NaN score is no score. A task without a score in
    some layer or fold of its model is left out with a note. The same result for any order of rows.

    ConfigError names the file and the column, row or task that cannot be read.
    """
    filesystem, inner = resolve(str(path), {})
    if filesystem.isdir(inner):
        rows, notes = read_mteb(filesystem, inner, str(path))
    elif filesystem.isfile(inner):
        rows, notes = read_table(filesystem, inner, str(path)), []
    else:
        raise ConfigError(f"there is no file or folder {path}")
    subjects: dict[tuple[str, str], list[ScoreRow]] = {}
    for row in rows:
        subjects.setdefault((row.model, row.revision), []).append(row)
    return [
        _subject(str(path), key, subjects[key], [note for of, note in notes if of == key])
        for key in sorted(subjects)
    ]


def rank_file(path: str | Path, settings: Settings | None = None) -> list[Ranking]:
    """Rank the layers of every model in a file of scores; errors are those of `read_scores`.

    The cost of a layer is its number over the last one's: the share of the blocks that must run.
    """
    ranked = []
    for scored in read_scores(path):
        last = max(scored.layers)
        cost_L = np.array([layer / last if last else 1.0 for layer in scored.layers])
        tasks = [
            RankedTask(each.task, each.task, "", "", max(each.resampled_LR.shape[1], 1), each)
            for each in scored.tasks
        ]
        ranking = ranking_of(
            Subject(scored.model, scored.revision, scored.model),
            Vectors(ELSEWHERE, ELSEWHERE, "raw"),
            tasks,
            scored.layers,
            cost_L,
            settings or Settings(),
            left_out=scored.left_out,
            notes=scored.notes,
        )
        ranked.append(ranking)
    return ranked


def _subject(
    path: str, key: tuple[str, str], rows: Sequence[ScoreRow], notes: Sequence[str]
) -> Scored:
    layers = sorted({row.layer for row in rows})
    by_task: dict[str, list[ScoreRow]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    tasks, left_out = [], {}
    for name in sorted(by_task):
        cells = _cells(path, by_task[name])
        reason = _incomplete(cells, layers)
        if reason:
            left_out[name] = reason
        else:
            tasks.append(_task(path, name, by_task[name], cells))
    told = [f"task {name} is left out: {reason}" for name, reason in left_out.items()]
    return Scored(*key, layers, tasks, [*notes, *told], left_out)


def _cells(path: str, rows: Sequence[ScoreRow]) -> _Cells:
    """Return the scores of a task by layer and fold; ConfigError if one is there twice."""
    cells: _Cells = {}
    seen: dict[tuple[int, str], ScoreRow] = {}
    for row in rows:
        first = seen.setdefault((row.layer, row.fold), row)
        if first is not row:
            fold = f", fold {row.fold}" if row.fold else ""
            raise ConfigError(
                f"{path}: {row.model}{_at(row.revision)}, layer {row.layer}, task {row.task}{fold} "
                f"has two scores, in {first.where} and {row.where}{row.hint}"
            )
        if not np.isnan(row.score):
            cells.setdefault(row.layer, {})[row.fold] = row.score
    return cells


def _incomplete(cells: _Cells, layers: Sequence[int]) -> str:
    """Return why a task cannot be compared over the layers; empty if it can."""
    absent = [layer for layer in layers if layer not in cells]
    if absent:
        count = f"{len(layers) - len(absent)} of {len(layers)} layers"
        return f"it has a score in {count}, not in {_named('layer', absent)}"
    folds = sorted({fold for by_fold in cells.values() for fold in by_fold}, key=_fold_order)
    partial = [layer for layer in layers if len(cells[layer]) < len(folds)]
    if partial:
        lacking = next(fold for fold in folds if fold not in cells[partial[0]])
        return (
            f"folds that other layers have are missing in {_named('layer', partial)}, such as "
            f"fold {lacking or '(empty)'} in layer {partial[0]}"
        )
    return ""


def _task(path: str, name: str, rows: Sequence[ScoreRow], cells: _Cells) -> TaskScores:
    types = sorted({row.task_type for row in rows})
    if len(types) > 1:
        raise ConfigError(f"{path}: task {name} has several task types: {', '.join(types)}")
    folds = sorted(next(iter(cells.values())), key=_fold_order)
    scores_LF = np.array([[cells[layer][fold] for fold in folds] for layer in sorted(cells)])
    resampled_LF = scores_LF if len(folds) > 1 else scores_LF[:, :0]
    return TaskScores(name, types[0], scores_LF.mean(axis=1), resampled_LF, "folds")


def _fold_order(fold: str) -> tuple[bool, int, str]:
    """Sort key: numbered folds by number, before the others by name."""
    return not fold.isdecimal(), int(fold) if fold.isdecimal() else 0, fold


def _named(noun: str, numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:5])
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""  # noqa: PLR2004
    return f"{noun}{'' if len(numbers) == 1 else 's'} {shown}{more}"


def _at(revision: str) -> str:
    return f" at {revision}" if revision else ""
