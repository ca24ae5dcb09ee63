"""The worker of probing, called without Ray: what it scores, and what it says when it cannot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from pydantic import TypeAdapter

from layerrank.jobs.config.datasets import Task
from layerrank.jobs.probe.worker import Scorer, ScoreTarget, ScoreUnit
from layerrank.jobs.tasks.types import TYPES
from layerrank.operators.model.subject import Subject, Transform, Vectors
from layerrank.operators.probes import labelled as probes
from layerrank.storage.layers import Group, embeddings_table
from layerrank.storage.partition import CLEAN, Partition
from layerrank.storage.root import Root
from tests.support.stored import store

ROWS = 40
SUBJECT = Subject("none", "0", "by hand")
GROUP = Group(1, "final", "mean")
IDS = np.arange(ROWS)
SPLIT = np.where(IDS % 2 == 0, "test", "train")
TOPIC = {"type": "classification", "label_column": "c", "folds": 3}
LENGTH = {"type": "regression", "value_column": "c"}
_PAIRED = {"first_column": "a", "second_column": "b"}
ALIKE = {**_PAIRED, "type": "sts", "score_column": "c"}
PAIRS = {**_PAIRED, "type": "pair_classification", "label_column": "c"}


def vectors() -> npt.NDArray[np.float32]:
    """Rows of very different lengths, so that their variants have different scores."""
    draw = np.random.default_rng(0)
    rows_ND = draw.standard_normal((ROWS, 4)) + 2 * (IDS % 4 // 2)[:, None]
    return (rows_ND * draw.uniform(0.01, 10, (ROWS, 1))).astype(np.float32)


def items_of(kind: str, *, several: bool = False) -> dict[str, Any]:
    pairs = {"first_id": IDS, "second_id": np.roll(IDS, 1)}
    if kind == "sts":
        return {**pairs, "value": np.random.default_rng(1).random(ROWS)}
    if kind == "pair_classification":
        return {**pairs, "value": IDS % 2 * 1.0}
    labels = [f'["{each}"]' if several else f"{each}" for each in IDS % 4 // 2]
    return {"prompt_id": IDS, "split": SPLIT, "label": labels, "value": IDS % 7 + 0.5}


def scored(
    folder: Path,
    task: dict[str, Any],
    variants: Sequence[Transform] = ("raw", "l2"),
    *,
    kept: npt.NDArray[np.bool_] | None = None,
    vectors_ND: npt.NDArray[np.float32] | None = None,
    examples: tuple[int, ...] = (),
) -> tuple[list[dict[str, Any]], str | None]:
    """Return the rows of a task and why it failed; `kept` are the texts that have a vector.

    With `examples` they are of its learning curve.
    """
    root, values = Root(str(folder)), (SUBJECT.name, SUBJECT.revision, "texts", CLEAN)
    kept = np.ones(ROWS, dtype=np.bool_) if kept is None else kept
    vectors_ND = vectors() if vectors_ND is None else vectors_ND
    key, lengths = (GROUP.layer, GROUP.norm, GROUP.pooling), np.full(kept.sum(), 8, np.int32)
    table = embeddings_table(key, IDS[kept], lengths, vectors_ND[kept])
    embeddings = store(root, Partition("embeddings", values), [table], {})
    made: Task = TypeAdapter(Task).validate_python({"name": "it", **task})
    several = getattr(made, "multi_label", False)
    own, columns = TYPES[type(made)].columns, {"row": IDS, **items_of(made.type, several=several)}
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in own]
    table = pa.Table.from_arrays(arrays, schema=own)
    items = store(root, Partition("tasks", ("texts", "it")), [table], {})
    where = Partition("probe_scores", (*values, "it"))
    target = ScoreTarget(SUBJECT, made, items, embeddings, where, {}, examples=examples)
    unit = ScoreUnit(0, GROUP, 0, made.repeats, tuple(variants))
    ranked = Vectors(GROUP.norm, GROUP.pooling, "raw")
    _, rows, why = Scorer(root, (target,), ranked, 42, 20)(unit)
    return rows, why


@pytest.mark.parametrize("task", [TOPIC, LENGTH, ALIKE], ids=lambda task: task["type"])
def test_the_scores_of_a_variant_are_the_same_in_any_order(
    tmp_path: Path, task: dict[str, Any]
) -> None:
    both, why = scored(tmp_path / "both", task)
    assert why is None
    assert scored(tmp_path / "turned", task, ("l2", "raw")) == (both, None)
    for variant in ("raw", "l2"):
        alone = scored(tmp_path / variant, task, (variant,))
        assert alone == ([row for row in both if row["variant"] == variant], None)
    values = [[row["value"] for row in both if row["variant"] == each] for each in ("raw", "l2")]
    assert (values[0] == values[1]) == (task is ALIKE)


TAGS = {**TOPIC, "multi_label": True}


@pytest.mark.parametrize(
    ("task", "examples", "fits"),
    [
        # Two labels with 10 training items each: what is there is taken, and said.
        (TOPIC, (2, 8, 32), {2: [4] * 3, 8: [16] * 3, 32: [20] * 3}),
        (TAGS, (4, 32), {4: [8] * 3, 32: [20] * 3}),
        # 20 values: 10 of a fold drawn by tenths, and all of them in one fit.
        (LENGTH | {"folds": 3}, (1, 2, 9), {1: [10] * 3, 2: [20], 9: [20]}),
    ],
    ids=["one label", "several labels", "values"],
)
def test_a_learning_curve_says_how_many_items_were_fitted(
    tmp_path: Path, task: dict[str, Any], examples: tuple[int, ...], fits: dict[int, list[int]]
) -> None:
    rows, why = scored(tmp_path, task, ("raw",), examples=examples)
    assert why is None
    found: dict[int, list[int]] = {}
    for row in rows:
        found.setdefault(row["examples"], []).append(row["n_train"])
    assert found == fits
    # The protocol's own number of examples gives the protocol's scores.
    own = (
        {"samples": 10 * examples[0]}
        if "value_column" in task
        else {"samples_per_label": examples[0]}
    )
    protocol, _ = scored(tmp_path / "protocol", {**task, **own}, ("raw",))
    assert [r["value"] for r in protocol] == [
        r["value"] for r in rows if r["examples"] == examples[0]
    ]


SAME = np.ones((ROWS, 4), dtype=np.float32)
NO_TEXT, ONE_LABEL, NO_PAIR = IDS < 0, (SPLIT == "test") | (IDS % 4 < 2), IDS % 2 == 0
NO_TEST, FEW = SPLIT == "train", IDS < 20


@pytest.mark.parametrize(
    ("task", "given", "reason"),
    [
        (LENGTH, {"vectors_ND": SAME}, "test: the 20 predictions are all equal"),
        (ALIKE, {"vectors_ND": SAME}, "pairs: all 40 have the cosine 1"),
        (TOPIC, {"kept": ONE_LABEL}, "train: 10 rows have 1 label"),
        (TOPIC, {"kept": NO_TEST}, "test: expected a non-empty"),
        (TOPIC, {"kept": NO_TEXT}, "train: expected a non-empty"),
        (LENGTH, {"kept": NO_TEXT}, "train: expected a non-empty"),
        (LENGTH | {"samples": 9}, {"kept": FEW}, "train: 9 of 10 rows cannot be drawn"),
        (ALIKE, {"kept": NO_TEXT}, "first: expected a non-empty"),
        (ALIKE, {"kept": NO_PAIR}, "pairs: there are none"),
        (PAIRS, {"kept": NO_PAIR}, "pairs: there are none"),
    ],
)
def test_data_that_allows_no_score_is_undefined_for_a_reason(
    tmp_path: Path, task: dict[str, Any], given: dict[str, Any], reason: str
) -> None:
    rows, why = scored(tmp_path, task, **given)
    assert why is None
    assert [row["variant"] for row in rows] == ["raw", "l2"]
    for row in rows:
        assert math.isnan(row["value"])
        assert row["reason"].startswith(reason)


@pytest.mark.parametrize(
    "error", [ValueError("Input X contains NaN."), np.linalg.LinAlgError("no convergence")]
)
def test_an_error_of_a_library_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: ValueError
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(probes, "regression", fail)
    rows, why = scored(tmp_path, LENGTH)
    assert not rows
    assert why == f"layer {GROUP.layer}: {error}"


def test_vectors_that_are_not_finite_are_a_failure(tmp_path: Path) -> None:
    broken_ND = vectors()
    broken_ND[3] = np.nan
    rows, why = scored(tmp_path, LENGTH, ("raw",), vectors_ND=broken_ND)
    assert not rows
    assert why is not None
    assert "4 non-finite entries in 1 of 20 rows" in why
