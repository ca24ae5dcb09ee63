"""Scores from elsewhere: a table of scores or a folder of mteb results, ranked without a run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.prepare.files import parquet_tables
from layerrank.jobs.rank.ranking import ELSEWHERE, Option, RankedTask, Ranking, Settings, ranking_of
from layerrank.jobs.words import numbered
from layerrank.operators.model.subject import Subject
from layerrank.operators.ranking.scores import LARGEST, TaskScores
from layerrank.storage.root import resolve

_NEEDED = ("model", "layer", "task", "score")
_OPTIONAL = ("revision", "task_type", "fold")
_TEXTS = ("model", "revision", "task", "task_type", "fold")
_LAYER_PART = re.compile(r"layer-(\d+)")
_LAST_LAYER = 2**15 - 1  # that the tables hold
_LARGEST = 1 << 28  # bytes of a file of scores, decoded
_LARGEST_RESULT = 1 << 26  # bytes of a result of mteb
_MOST_ROWS = 1_000_000  # each is held as an object
_ABOUT_MODEL = "model_meta.json"  # beside the results, of mteb's own cache and the export
_Key = tuple[str, str]  # model, revision


class _ScoreRow(NamedTuple):
    """One score, NaN if there is none; `where` it stands, `hint` what else a duplicate may mean."""

    model: str
    revision: str
    layer: int
    task: str
    task_type: str
    fold: str
    score: float
    where: str
    hint: str = ""


def rank_file(path: str | Path, settings: Settings | None = None) -> list[Ranking]:
    """Rank the layers of every model in a Parquet or CSV file or a folder of mteb results.

    A file has the columns model, layer, task and score, and may have revision, task_type and fold;
    others are not read. Folds of a task are averaged, and show how it varies. Of mteb results
    (`<path>/…/layer-07/<org__model>/<revision>/<Task>.json`, local or on S3 like a file) the main
    score of the test split is taken, averaged over subsets. A null, empty or NaN score is no score.
    A grid may have holes: a layer without a score of a task lacks it. Folds that some layer of a
    task lacks are left out in all of them, and it is said. The last layer is the one with the
    largest number in the file. The same result for any order of rows. The cost of a layer is its
    number over the last one's: the share of the blocks that must run.

    ConfigError names the file and the column, row or task that cannot be read.
    """
    filesystem, inner = resolve(str(path), {})
    if filesystem.isdir(inner):
        rows, notes = _read_mteb(filesystem, inner, str(path))
    elif filesystem.isfile(inner):
        rows, notes = _read_table(filesystem, inner, str(path)), []
    else:
        raise ConfigError(f"there is no file or folder {path}")
    of_model = attrgetter("model", "revision")
    return [
        _ranked(str(path), [*of], [note for key, note in notes if key == model], settings)
        for model, of in groupby(sorted(rows, key=of_model), of_model)
    ]


def _ranked(
    path: str, rows: Sequence[_ScoreRow], notes: Sequence[str], settings: Settings | None
) -> Ranking:
    """Rank one model at a revision by the scores that there are."""
    layers = sorted({row.layer for row in rows})
    of_task = attrgetter("task")
    by_task = groupby(sorted(rows, key=of_task), of_task)
    tasks = [_task(path, [*found], layers) for _, found in by_task]
    model, revision = rows[0].model, rows[0].revision
    return ranking_of(
        Subject(model, revision, model),
        [Option(layer, ELSEWHERE) for layer in layers],
        tasks,
        np.array([layer / layers[-1] if layers[-1] else 1.0 for layer in layers]),
        settings or Settings(),
        notes=notes,
    )


def _task(path: str, rows: Sequence[_ScoreRow], layers: Sequence[int]) -> RankedTask:
    """Return a task with its scores, NaN where there is none.

    ConfigError if a score is there twice, or the task has several types.
    """
    seen: dict[tuple[int, str], _ScoreRow] = {}
    for row in rows:
        first = seen.setdefault((row.layer, row.fold), row)
        if first is not row:
            at = f" at {row.revision}" if row.revision else ""
            fold = f", fold {row.fold}" if row.fold else ""
            raise ConfigError(
                f"{path}: {row.model}{at}, layer {row.layer}, task {row.task}{fold} "
                f"has two scores, in {first.where} and {row.where}{row.hint}"
            )
    scores = {place: row.score for place, row in seen.items() if not math.isnan(row.score)}
    every = sorted({fold for _, fold in scores})
    # Numbered ones by number, before the others by name.
    every.sort(key=lambda fold: (not fold.isdecimal(), int(fold) if fold.isdecimal() else 0))
    there = [at for at in layers if any((at, fold) in scores for fold in every)]
    folds = [fold for fold in every if all((at, fold) in scores for at in there)]
    name, types = rows[0].task, sorted({row.task_type for row in rows})
    if len(types) > 1:
        raise ConfigError(f"{path}: task {name} has several task types: {', '.join(types)}")
    note = ""
    if len(folds) < len(every):
        lacking = {at for at in there for fold in every if (at, fold) not in scores}
        note = (
            f"Of task {name} {len(folds)} of {len(every)} folds count, as "
            f"{numbered(sorted(lacking))} lack{'s' if len(lacking) == 1 else ''} the others."
        )
    scores_LF = np.full((len(layers), max(len(folds), 1)), np.nan)
    for index, layer in enumerate(layers):
        if layer in there and folds:
            scores_LF[index] = [scores[layer, fold] for fold in folds]
    resampled_LF = scores_LF if len(folds) > 1 else scores_LF[:, :0]
    of_layers = TaskScores(name, types[0], scores_LF.mean(axis=1), resampled_LF, "folds")
    undefined = {} if folds else dict.fromkeys(there, "its layers have no fold in common")
    return RankedTask(name, name, "", "", len(folds), of_layers, undefined, note)


def _read_table(filesystem: Any, path: str, name: str) -> list[_ScoreRow]:  # noqa: ANN401  (fsspec)
    table = _table(filesystem, path, name)
    names = table.column_names
    if absent := [column for column in _NEEDED if column not in names]:
        raise ConfigError(
            f"{name} has no column {', '.join(map(repr, absent))}; it has: "
            f"{', '.join(names) or 'none'}. Needed: {', '.join(_NEEDED)}; "
            f"optional: {', '.join(_OPTIONAL)}"
        )
    if repeated := sorted({column for column in names if names.count(column) > 1}):
        raise ConfigError(f"{name} has two columns {', '.join(map(repr, repeated))}")
    if not table.num_rows:
        raise ConfigError(f"{name} has no rows")
    known = [column for column in (*_NEEDED, *_OPTIONAL) if column in names]
    others = [column for column in names if column not in known]
    hint = f"; columns that are not read: {', '.join(others)}" if others else ""
    rows = []
    for number, record in enumerate(table.select(known).to_pylist(), 1):
        where = f"row {number}"
        text = {column: _text(record.get(column)) for column in _TEXTS}
        for column in ("model", "task"):
            if not text[column]:
                raise ConfigError(f"{name}, {where}: column {column!r} is empty")
        layer = _number(record["layer"])
        if layer is None or not 0 <= layer <= _LAST_LAYER or not layer.is_integer():
            raise ConfigError(
                f"{name}, {where}: column 'layer' is {record['layer']!r}, not a whole number from "
                f"0 to {_LAST_LAYER}"
            )
        score = _score(record["score"], f"{name}, {where}: column 'score'")
        rows.append(_ScoreRow(**text, layer=int(layer), score=score, where=where, hint=hint))
    return rows


def _table(filesystem: Any, path: str, name: str) -> pa.Table:  # noqa: ANN401
    ending = path.rsplit(".", 1)[-1].lower()
    if ending not in ("parquet", "csv"):
        raise ConfigError(
            f"cannot tell the format of {name}: its name ends in neither .parquet nor .csv"
        )
    if (size := int(filesystem.size(path))) > _LARGEST:
        raise ConfigError(f"{name} has {size >> 20:,} MiB, scores at most {_LARGEST >> 20}")
    try:
        with filesystem.open(path, "rb") as stream:
            if ending == "parquet":
                return _parquet(stream, name)
            with pa_csv.open_csv(pa.BufferReader(stream.readline())) as reader:
                columns = reader.schema.names
            stream.seek(0)
            # Text as it stands: a guessed type would fail at a later row, or turn 07 into 7.
            convert = pa_csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()))
            parse = pa_csv.ParseOptions(newlines_in_values=True)
            table = pa_csv.read_csv(stream, parse_options=parse, convert_options=convert)
    except (pa.ArrowException, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot read {name} as {ending}: {reason}") from error
    _require_few(table.num_rows, name)
    return table


def _require_few(rows: int, name: str) -> None:
    if rows > _MOST_ROWS:
        raise ConfigError(
            f"{name} has {rows:,} rows, and at most {_MOST_ROWS:,} scores are ranked at once: give "
            "a file for each model"
        )


def _parquet(stream: Any, name: str) -> pa.Table:  # noqa: ANN401
    """Return the columns of an open file that are read, and of the others the names."""
    # Only this file: the folders above it may look like partitions.
    file = pq.ParquetFile(stream)
    schema = file.schema_arrow
    _require_few(file.metadata.num_rows, name)
    columns = [column for column in schema.names if column in (*_NEEDED, *_OPTIONAL)]
    found, decoded = list[pa.Table](), 0
    if len({*columns}) == len(columns):
        for table in parquet_tables(stream, columns, name):
            found.append(table)
            decoded += table.nbytes
            if decoded > _LARGEST:
                raise ConfigError(
                    f"{name} becomes more than {_LARGEST >> 20} MiB, too much for scores"
                )
    table = pa.concat_tables(found) if found else schema.empty_table()
    for column in (each for each in schema.names if each not in table.column_names):
        table = table.append_column(column, pa.nulls(table.num_rows))
    return table


def _score(value: object, what: str) -> float:
    """Return a score, NaN for none; ConfigError for anything but a number from -1 to 1."""
    if value is None or value == "":
        return float("nan")
    score = _number(value)
    if score is None:
        raise ConfigError(f"{what} is {value!r}, not a number")
    if abs(score) > LARGEST:
        raise ConfigError(
            f"{what} is {score:g}, outside -1..1; scores in percent must be divided by 100"
        )
    return score


def _text(value: object) -> str:
    """Return a cell as text; a whole number in a float column, as beside nulls, without its .0."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _read_mteb(
    filesystem: Any,  # noqa: ANN401  (fsspec ships no types)
    path: str,
    name: str,
) -> tuple[list[_ScoreRow], list[tuple[_Key, str]]]:
    """Return the rows of a folder of mteb results, and notes on the models; ConfigError if none.

    A result's score is the mean main score over the subsets of its split.
    """
    rows, notes = [], dict[tuple[_Key, str], None]()
    for file, facts in sorted(filesystem.find(path, detail=True).items()):
        parts = file.removeprefix(path).strip("/").split("/")
        layer = next((m for part in parts[:-3] if (m := _LAYER_PART.fullmatch(part))), None)
        if layer is None or not parts[-1].endswith(".json") or parts[-1] == _ABOUT_MODEL:
            continue
        where = "/".join(parts)
        at = f"{name}/{where}"
        if facts["size"] > _LARGEST_RESULT:
            raise ConfigError(f"{at} has {facts['size'] >> 20:,} MiB, which no result of mteb has")
        try:
            result = json.loads(filesystem.cat_file(file))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{at} is not JSON: {error}") from error
        splits = result.get("scores") if isinstance(result, Mapping) else None
        if not isinstance(splits, Mapping):
            raise ConfigError(f"{at} is not an mteb task result: it has no scores")
        split = "test" if "test" in splits or len(splits) != 1 else next(iter(splits))
        if not splits.get(split):
            raise ConfigError(f"{at} has no test split; it has: {', '.join(splits) or 'none'}")
        scores = []
        for subset in splits[split]:
            if not isinstance(subset, Mapping) or "main_score" not in subset:
                raise ConfigError(f"{at}: a subset of the test split has no main_score")
            what = f"{at}: main_score of {subset.get('hf_subset')}"
            scores.append(_score(subset["main_score"], what))
        task = str(result.get("task_name") or parts[-1].removesuffix(".json"))
        model, revision = parts[-3].replace("__", "/", 1), parts[-2]
        if split != "test":
            notes[(model, revision), f"task {task} has no test split: {split} was read"] = None
        mean = sum(scores) / len(scores)
        rows.append(_ScoreRow(model, revision, int(layer[1]), task, "", "", mean, where))
    if not rows:
        raise ConfigError(
            f"{name} holds no mteb results: expected files "
            "layer-07/<org__model>/<revision>/<Task>.json, one folder per layer"
        )
    return rows, list(notes)
