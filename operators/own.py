"""What a metric and a task of the user's own are: the contract, and what holds them to it.

`layerrank.own` has it for whoever writes one. Shapes: N texts or pairs, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Protocol, runtime_checkable

from layerrank.operators.probes.fold import FoldScore, NoScoreError, Vectors

_SHOWN = 60  # characters of a wrong value


class Metric(Protocol):
    """A function of the pooled vectors of all texts in one layer: a number, or several by name."""

    def __call__(self, vectors_ND: Vectors, /) -> float | Mapping[str, float]:
        """Return the value; NaN, or NoScoreError with the reason, where it does not exist."""


@dataclass(frozen=True)
class Items:
    """What a task is scored on: the vectors of a layer, a row each item, and the items' cells.

    `columns` has the cells of every column that the task's block names, as text, by the key without
    `_column`. Of a task on pairs `second_ND` are the vectors of the second texts. Whatever is drawn
    comes from `seed`; `folds` scores are wanted, and of a lone one its `replicates`.
    """

    vectors_ND: Vectors
    columns: Mapping[str, Sequence[str]]
    seed: int
    folds: int = 1
    replicates: int = 0
    second_ND: Vectors | None = None


@runtime_checkable
class Task(Protocol):
    """A class that is made with the options of its block, and scores one layer's vectors.

    It may have a method `check(columns)`: a ValueError says what is wrong with the data, before any
    model is run.
    """

    metric: str  # the name of its score

    def score(self, items: Items) -> Sequence[FoldScore]:
        """Return a score for each fold, -1..1, higher is better.

        NoScoreError with the reason if there is none.
        """


def measured(metric: Metric, vectors_ND: Vectors) -> tuple[dict[str, float], str | None]:
    """Return the values of a metric by variant, and why there is none if the metric says so.

    ValueError for what is no number.
    """
    try:
        found = metric(vectors_ND)
    except NoScoreError as error:
        return {"": float("nan")}, str(error)
    named = found if isinstance(found, Mapping) else {"": found}
    if not named:
        raise ValueError("it gave no value")
    values = {}
    for variant, value in named.items():
        of = f" under {variant!r}" if found is named else ""
        if not isinstance(variant, str):
            raise ValueError(f"it gave a value under {variant!r}, whose name is no text")
        if not _is_number(value):
            raise ValueError(f"it gave {_described(value)}{of}, where a number is wanted")
        values[variant] = float(value)
    return values, None


def scored(task: Task, items: Items) -> list[FoldScore]:
    """Return the scores of a task; ValueError for what the contract does not allow."""
    found, count = task.score(items), len(items.vectors_ND)
    if not isinstance(found, (list, tuple)) or not all(isinstance(s, FoldScore) for s in found):
        raise ValueError(f"it gave {_described(found)}, where a list of FoldScore is wanted")
    folds = [each.fold for each in found]
    if folds != [*range(items.folds)]:
        given = ", ".join(map(str, folds)) or "none"
        raise ValueError(f"it gave the folds {given}, where `folds` of the config is {items.folds}")
    return [_checked(task, each, count, items.replicates) for each in found]


def _checked(task: Task, score: FoldScore, count: int, replicates: int) -> FoldScore:
    in_fold = f"in fold {score.fold}"
    if score.metric != task.metric:
        raise ValueError(f"it gave {score.metric!r} {in_fold}, where its metric is {task.metric!r}")
    if not _is_number(score.value) or not -1 <= score.value <= 1:
        raise ValueError(
            f"its score {in_fold} is {_described(score.value)}, where a number from -1 to 1 is "
            "wanted; one that does not exist is a NoScoreError with the reason"
        )
    for name, least in (("n_train", 0), ("n_test", 1)):
        value = getattr(score, name)
        if not isinstance(value, Integral) or not least <= int(value) <= count:
            raise ValueError(
                f"its {name} {in_fold} is {_described(value)}, where {least} to {count} is wanted, "
                "the items that there are"
            )
    if len(score.replicates) not in (0, replicates):
        raise ValueError(
            f"it gave {len(score.replicates)} replicates {in_fold}, where none or {replicates} are "
            "wanted"
        )
    drawn = tuple(map(float, score.replicates))
    numbers = float(score.value), int(score.n_train), int(score.n_test)
    return FoldScore(score.fold, score.metric, *numbers, drawn)


def told(error: Exception) -> str:
    """Say what code of the user's raised; a ValueError is in words for people."""
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _described(value: object) -> str:
    """Say what came instead of what was wanted."""
    kind = type(value).__name__
    if shape := getattr(value, "shape", None):
        return f"an array of shape {tuple(shape)}"
    shown = repr(value)
    return f"{shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '…'} ({kind})"
