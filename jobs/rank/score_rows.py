"""The rows of score files: a score of a model's layer in a task, checked, with where it stands."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from jobs.config.blocks import ConfigError

_NEEDED = ("model", "layer", "task", "score")
_OPTIONAL = ("revision", "task_type", "fold")
_LAYER_PART = re.compile(r"layer-(\d+)")
# Beside the results, mteb's own cache and the export keep files about the model.
_NOT_RESULTS = ("model_meta.json",)
Subject = tuple[str, str]  # model, revision


@dataclass(frozen=True)
class ScoreRow:
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


def read_table(filesystem: Any, path: str, name: str) -> list[ScoreRow]:  # noqa: ANN401  (fsspec)
    """Return the rows of a Parquet or CSV file; ConfigError names the file, column and row."""
    table = _table(filesystem, path, name)
    absent = [column for column in _NEEDED if column not in table.column_names]
    if absent:
        raise ConfigError(
            f"{name} has no column {', '.join(map(repr, absent))}; it has: "
            f"{', '.join(table.column_names) or 'none'}. Needed: {', '.join(_NEEDED)}; "
            f"optional: {', '.join(_OPTIONAL)}"
        )
    if not table.num_rows:
        raise ConfigError(f"{name} has no rows")
    repeated = sorted(
        {column for column in table.column_names if table.column_names.count(column) > 1}
    )
    if repeated:
        raise ConfigError(f"{name} has two columns {', '.join(map(repr, repeated))}")
    known = [column for column in (*_NEEDED, *_OPTIONAL) if column in table.column_names]
    others = [column for column in table.column_names if column not in known]
    hint = f"; columns that are not read: {', '.join(others)}" if others else ""
    rows = enumerate(table.select(known).to_pylist(), 1)
    return [_row(name, number, record, hint) for number, record in rows]


def read_mteb(
    filesystem: Any,  # noqa: ANN401  (fsspec ships no types)
    path: str,
    name: str,
) -> tuple[list[ScoreRow], list[tuple[Subject, str]]]:
    """Return the rows of a folder of mteb results, and notes on the subjects; ConfigError if none.

    A result lies at `…/layer-07/…/<org__model>/<revision>/<Task>.json`.
    """
    rows, notes = [], dict[tuple[Subject, str], None]()
    for file in sorted(filesystem.find(path)):
        parts = file.removeprefix(path).strip("/").split("/")
        layer = next((m for part in parts[:-3] if (m := _LAYER_PART.fullmatch(part))), None)
        if layer is None or not parts[-1].endswith(".json") or parts[-1] in _NOT_RESULTS:
            continue
        where = "/".join(parts)
        task, split, score = _main_score(_json(filesystem, file, f"{name}/{where}"), where, name)
        model, revision = parts[-3].replace("__", "/", 1), parts[-2]
        if split != "test":
            notes[(model, revision), f"task {task} has no test split: {split} was read"] = None
        rows.append(ScoreRow(model, revision, int(layer[1]), task, "", "", score, where))
    if not rows:
        raise ConfigError(
            f"{name} holds no mteb results: expected files "
            "layer-07/<org__model>/<revision>/<Task>.json, one folder per layer"
        )
    return rows, list(notes)


def _table(filesystem: Any, path: str, name: str) -> pa.Table:  # noqa: ANN401
    ending = path.rsplit(".", 1)[-1].lower()
    if ending not in ("parquet", "csv"):
        raise ConfigError(
            f"cannot tell the format of {name}: its name ends in neither .parquet nor .csv"
        )
    try:
        with filesystem.open(path, "rb") as stream:
            if ending == "parquet":
                # Only this file: the folders above it may look like partitions.
                return pq.ParquetFile(stream).read()
            columns = _csv_columns(stream)
            # Text as it stands: a guessed type would fail at a later row, or turn 07 into 7.
            convert = pa_csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()))
            parse = pa_csv.ParseOptions(newlines_in_values=True)
            return pa_csv.read_csv(stream, parse_options=parse, convert_options=convert)
    except (pa.ArrowException, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot read {name} as {ending}: {reason}") from error


def _csv_columns(stream: Any) -> list[str]:  # noqa: ANN401
    with pa_csv.open_csv(pa.BufferReader(stream.readline())) as reader:
        names: list[str] = reader.schema.names
    stream.seek(0)
    return names


def _row(name: str, number: int, record: Mapping[str, Any], hint: str) -> ScoreRow:
    where = f"row {number}"
    text = {
        column: _text(record.get(column))
        for column in ("model", "revision", "task", "task_type", "fold")
    }
    for column in ("model", "task"):
        if not text[column]:
            raise ConfigError(f"{name}, {where}: column {column!r} is empty")
    try:
        layer = _number(record["layer"])
        fits = layer >= 0 and layer == int(layer)
    except (ValueError, OverflowError):
        fits = False
    if not fits:
        raise ConfigError(
            f"{name}, {where}: column 'layer' is {record['layer']!r}, not a whole number from 0"
        )
    score = _score(record["score"], f"{name}, {where}: column 'score'")
    return ScoreRow(**text, layer=int(layer), score=score, where=where, hint=hint)


def _score(value: object, what: str) -> float:
    """Return a score, NaN for none; ConfigError for anything but a number from -1 to 1."""
    if value is None or value == "":
        return float("nan")
    try:
        score = _number(value)
    except ValueError:
        raise ConfigError(f"{what} is {value!r}, not a number") from None
    if abs(score) > 1:
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


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def _json(filesystem: Any, file: str, name: str) -> Mapping[str, Any]:  # noqa: ANN401
    try:
        content = json.loads(filesystem.cat_file(file))
    except ValueError as error:
        raise ConfigError(f"{name} is not JSON: {error}") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("scores"), Mapping):
        raise ConfigError(f"{name} is not an mteb task result: it has no scores")
    return content


def _main_score(result: Mapping[str, Any], where: str, name: str) -> tuple[str, str, float]:
    """Return task, split and mean main score over the split's subsets."""
    splits = result["scores"]
    split = "test" if "test" in splits or len(splits) != 1 else next(iter(splits))
    subsets = splits.get(split)
    if not subsets:
        raise ConfigError(
            f"{name}/{where} has no test split; it has: {', '.join(splits) or 'none'}"
        )
    scores = list(_subset_scores(subsets, f"{name}/{where}"))
    task = result.get("task_name") or where.rsplit("/", 1)[-1].removesuffix(".json")
    return str(task), split, sum(scores) / len(scores)


def _subset_scores(subsets: Any, name: str) -> Iterator[float]:  # noqa: ANN401
    for subset in subsets:
        if not isinstance(subset, Mapping) or "main_score" not in subset:
            raise ConfigError(f"{name}: a subset of the test split has no main_score")
        yield _score(subset["main_score"], f"{name}: main_score of {subset.get('hf_subset')}")
