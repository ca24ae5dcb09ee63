"""What the types of tasks share: rows and items, what a score is made from, words of a refusal.

Data that a task cannot be scored on is a ConfigError that names task, column and value, before any
model runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pyarrow as pa

from layerrank.jobs.config.blocks import ConfigError
from layerrank.storage.layers import LayerVectors
from layerrank.storage.schema import ROW_BITS

Row = Mapping[str, Any]  # the columns of a source row as text, and its order key `row`
# Text column -> prompt_id of the row's text, None if it was skipped; under None the text column's.
Ids = Mapping[str | None, int | None]
Item = dict[str, Any]  # columns of a record of `jobs.prepare.records`
_SHOWN = 5
_WHOLE = 1e22  # up to here a whole float is written out, and above with an exponent


class Given(NamedTuple):
    """What a task is scored on: items in source order, the vectors of a layer, and what is drawn.

    The test items of a fitted task have the vectors `tested`: their own, or those of noisy texts.
    Of a task with folds those from `first` to before `folds` are wanted, others have `replicates`;
    of pairs or queries a `share` is scored, always the same ones.
    """

    items: pa.Table
    vectors: LayerVectors
    tested: LayerVectors
    seed: int
    replicates: int
    first: int
    folds: int
    share: float = 1.0

    @property
    def drawn(self) -> dict[str, Any]:
        """What a task without folds is resampled with."""
        return {"seed": self.seed, "replicates": self.replicates}


def spelled(value: object) -> str | None:
    """Return the text of a scalar, the same for every format, or None if it is missing.

    Missing are null and NaN. Whole numbers have no decimals, other floats the fewest digits that
    tell them apart; booleans are lower case.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        text = format(value, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return f"{value + 0:.0f}" if value.is_integer() and abs(value) < _WHOLE else str(value)
    return str(value)


def row_place(row: int) -> str:
    """Name a row of the source: its number from 1, and the file or split unless it is the first."""
    part, number = row >> ROW_BITS, (row & ((1 << ROW_BITS) - 1)) + 1
    return f"row {number} of source part {part + 1}" if part else f"row {number}"


def refuse(task: str, column: str, row: Row, wanted: str) -> NoReturn:
    """Raise for the cell of a row that is not what is wanted of it."""
    raise ConfigError(
        f"task {task}, column {column}: {row[column]!r} in {row_place(row['row'])} is not {wanted}"
    )


def number(task: str, column: str, row: Row) -> float:
    """Return the number of a cell; ConfigError if it is none, or not finite."""
    try:
        value = float(row[column])
    except ValueError:
        refuse(task, column, row, "a number")
    if not np.isfinite(value):
        refuse(task, column, row, "a finite number")
    return value


def require_different(where: str, kind: str, items: pa.Table) -> None:
    """ConfigError if all items have one value."""
    values = set(items["value"].to_pylist())
    if len(values) < 2:  # noqa: PLR2004 - nothing to tell apart
        raise ConfigError(
            f"{where}: all {kind} ({items.num_rows}) have the value {values.pop():g}, 2 different "
            "ones are needed"
        )


def listed(names: Mapping[str, int]) -> str:
    """List the first few names in order, and say how many more there are."""
    shown = sorted(names)[:_SHOWN]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def counted(names: Mapping[str, int]) -> str:
    """Say how many labels there are, and which."""
    shown = f" ({listed(names)})" if names else ""
    return f"{len(names)} label{'' if len(names) == 1 else 's'}{shown}"
