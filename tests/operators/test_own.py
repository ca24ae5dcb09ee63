"""What a metric and a task of the user's own may return, and what is said of anything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from layerrank.operators.own import Items, Task, measured, scored
from layerrank.operators.probes.fold import FoldScore, NoScoreError

VECTORS = np.eye(4, 3, dtype=np.float32)


@pytest.mark.parametrize(
    ("given", "values"),
    [
        (0.5, {"": 0.5}),
        (np.float32(0.5), {"": 0.5}),
        (np.int64(3), {"": 3.0}),
        ({"a": 1, "b": np.float64(2)}, {"a": 1.0, "b": 2.0}),
    ],
)
def test_a_metric_gives_a_number_or_several(given: Any, values: dict[str, float]) -> None:  # noqa: ANN401
    assert measured(lambda _: given, VECTORS) == (values, None)


def test_a_metric_says_why_there_is_no_value() -> None:
    def undefined(_: object) -> float:
        raise NoScoreError("too few")

    values, why = measured(undefined, VECTORS)
    assert [*values] == [""]
    assert np.isnan(values[""])
    assert why == "too few"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (np.zeros(3), r"array of shape \(3,\), where a number"),
        ([1.0], r"\[1.0\] \(list\), where a number"),
        (None, "None"),
        (True, "bool"),
        ("0.5", "'0.5'"),
        ({"a": np.zeros((2, 2))}, r"shape \(2, 2\) under 'a'"),
        ({1: 0.5}, "under 1"),
        ({}, "no value"),
    ],
)
def test_a_metric_that_gives_no_number_is_told(given: Any, problem: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=problem):
        measured(lambda _: given, VECTORS)


class Gives:
    """A task that gives what it was made with."""

    metric = "share"

    def __init__(self, *scores: Any) -> None:  # noqa: ANN401
        self._scores = list(scores)

    def score(self, items: Items) -> Sequence[FoldScore]:
        del items
        return self._scores


def items(**changes: Any) -> Items:  # noqa: ANN401
    return Items(VECTORS, {}, 0, **changes)


def test_scores_are_plain_numbers() -> None:
    task = Gives(FoldScore(0, "share", np.float32(0.5), np.int64(2), 4, (np.float64(0.25), 1)))  # type: ignore[arg-type]
    assert isinstance(task, Task)
    (found,) = scored(task, items(replicates=2))
    assert found == FoldScore(0, "share", 0.5, 2, 4, (0.25, 1.0))
    assert {type(found.value), type(found.replicates[0])} == {float}
    assert type(found.n_train) is int


@pytest.mark.parametrize(
    ("scores", "problem"),
    [
        ([0.5], r"\[0.5\] \(list\), where a list of FoldScore"),
        ([], "folds none, where `folds` of the config is 1"),
        ([FoldScore(1, "share", 0.5, 0, 4)], "folds 1,"),
        ([FoldScore(0, "share", 0.5, 0, 4), FoldScore(1, "share", 0.5, 0, 4)], "folds 0, 1,"),
        ([FoldScore(0, "other", 0.5, 0, 4)], "'other' in fold 0, where its metric is 'share'"),
        ([FoldScore(0, "share", float("nan"), 0, 4)], "nan .*NoScoreError"),
        ([FoldScore(0, "share", 37.5, 0, 4)], "37.5 .*from -1 to 1"),
        ([FoldScore(0, "share", np.zeros(2), 0, 4)], r"shape \(2,\)"),  # type: ignore[arg-type]
        ([FoldScore(0, "share", 0.5, 0, 0)], "n_test .*0.* 1 to 4"),
        ([FoldScore(0, "share", 0.5, 0, 5)], "n_test .*5.* 1 to 4"),
        ([FoldScore(0, "share", 0.5, -1, 4)], "n_train .*-1.* 0 to 4"),
        ([FoldScore(0, "share", 0.5, 0, 4, (0.5,))], "1 replicates .*none or 2"),
    ],
)
def test_what_a_task_may_not_give_is_told(scores: list[Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        scored(Gives(*scores), items(replicates=2))
