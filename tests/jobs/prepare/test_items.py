"""Items: what a source row becomes in each type of task, and which data is refused, and how."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import DatasetConfig
from layerrank.jobs.prepare.records import items_of, records_of
from layerrank.jobs.tasks.items import Given
from layerrank.jobs.tasks.types import TYPES, check_items
from layerrank.operators.benchmark import tasks as benchmark_tasks
from layerrank.operators.prompts.seeding import prompt_id
from layerrank.storage import schema
from layerrank.storage.layers import LayerVectors
from tests.jobs.prepare.test_records import FIND, GROUPS, TOPIC, dataset, shards_of, source

PART = {"split_column": "part"}
FEW: dict[str, Any] = {**TOPIC, **PART, "samples_per_label": 2}
MULTI: dict[str, Any] = {**FEW, "multi_label": True}
PRICE: dict[str, Any] = {"name": "price", "type": "regression", "value_column": "cost"}
TEXTS = {"first_column": "one", "second_column": "two"}
SAME = {"name": "same", "type": "pair_classification", **TEXTS, "label_column": "alike"}
ALIKE = {"name": "alike", "type": "sts", **TEXTS, "score_column": "score"}
ORDER: dict[str, Any] = {"name": "order", "type": "reranking", "relevance_column": "gain"}
ORDER |= {"query_column": "query", "candidate_column": "answer"}
GRADED: dict[str, Any] = {**FIND, "relevance_column": "gain"}

Cells = Sequence[str | None]
Task = dict[str, Any]


def table_of(config: DatasetConfig, rows: pa.Table) -> pa.Table:
    """Return the items of the first task, from every row in one shard."""
    return items_of(records_of(config, rows, 1, 0, {}), config.tasks[0])[0]


def items(task: Task, **columns: Cells) -> pa.Table:
    return table_of(dataset(task), source(**columns))


def texts(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


def check(task: Task, **columns: Cells) -> None:
    check_items(dataset(task).tasks[0], items(task, **columns))


def refusal(task: Task, **columns: Cells) -> str:
    with pytest.raises(ConfigError) as caught:
        check(task, **columns)
    return str(caught.value)


def labelled(count: int, labels: Cells, parts: Cells = ("train", "test")) -> dict[str, Cells]:
    """Return columns of `count` different texts whose labels and splits repeat."""
    return {
        "text": texts(count),
        "topic": [labels[number % len(labels)] for number in range(count)],
        "part": [parts[number // len(labels) % len(parts)] for number in range(count)],
    }


# From rows to items.


def test_labels_lie_with_their_text_and_split() -> None:
    found = items(
        FEW,
        text=["a", "b", "c", None, " ", "d"],
        topic=["sea", "", None, "sky", "sky", "0"],
        part=["train", "train", "test", "test", "test", "dev"],
    )
    assert found.to_pylist() == [
        {"row": 0, "prompt_id": prompt_id("a"), "label": "sea", "split": "train"},
        {"row": 5, "prompt_id": prompt_id("d"), "label": "0", "split": "dev"},
    ]
    assert items(FEW, text=["a"], topic=["sea"], part=[None]).num_rows == 0
    costs = {"cost": ["-2.5", "1e3", ""], "part": ["train", "test", "train"]}
    found = items({**PRICE, **PART}, text=texts(3), **costs)
    assert found["value"].to_pylist() == [-2.5, 1000.0]
    assert found["split"].to_pylist() == ["train", "test"]
    groups = items(GROUPS, text=["a", "b"], topic=["x", None])
    assert groups.select(["label", "split"]).to_pylist() == [{"label": "x", "split": "test"}]


def test_labels_of_a_cell_are_a_sorted_list() -> None:
    expected = {
        "b, a ,b": ["a", "b"],
        "one label": ["one label"],
        " , ": [],
        '["b", "a, c"]': ["a, c", "b"],
        " []": [],
        "[2, null, 1.5]": ["1.5", "2"],
        '["sky", "sky"]': ["sky"],
        "é,ü": ["é", "ü"],
    }
    cells, count = [*expected, "", None], len(expected)
    found = items(MULTI, text=texts(count + 2), topic=cells, part=["train"] * (count + 2))
    labels = [json.loads(label) for label in found["label"].to_pylist()]
    assert dict(zip(expected, labels, strict=True)) == expected
    task = {**MULTI, "label_separator": "||"}
    (item,) = items(task, text=["a"], topic=["x, y||z"], part=["train"]).to_pylist()
    assert json.loads(item["label"]) == ["x, y", "z"]


def test_pairs_are_rows_with_both_texts_and_a_value() -> None:
    found = items(
        {**ALIKE, **PART},
        one=["a", "b", None, "d", "e", "f"],
        two=["p", "", "r", "s", "t", "a"],
        score=["4.5", "1", "1", None, "2", "0"],
        part=["test", "test", "test", "test", "train", "test"],
    )
    a, f, p = (prompt_id(text) for text in "afp")
    assert found.to_pylist() == [
        {"row": 0, "first_id": a, "second_id": p, "value": 4.5},
        {"row": 5, "first_id": f, "second_id": a, "value": 0.0},
    ]
    cells = ["1", "0", "1.0", "0.0", "true", "False", "YES", " no "]
    found = items(SAME, one=texts(8), two=texts(8), alike=cells)
    assert found["value"].to_pylist() == [1.0, 0.0] * 4


def test_candidates_lie_with_their_query_and_gain() -> None:
    found = items(
        {**ORDER, **PART},
        query=["q", "q", "q", None, "r", "q"],
        answer=["a", "b", None, "c", "a", "d"],
        gain=["2", "0", "1", "1", "1", None],
        part=["test"] * 4 + ["train", "test"],
    )
    assert found.to_pylist() == [
        {"row": 0, "query_id": prompt_id("q"), "candidate_id": prompt_id("a"), "relevance": 2},
        {"row": 1, "query_id": prompt_id("q"), "candidate_id": prompt_id("b"), "relevance": 0},
    ]


def test_a_pair_of_query_and_candidate_is_one_item_however_often_it_is_given() -> None:
    found = items(ORDER, query=["q"] * 3, answer=["a", "b", "a"], gain=["1", "0", "1"])
    assert found["row"].to_pylist() == [0, 1]
    found = items(FIND, text=["a", "a", "b"], query=["q", "q", "q"])
    assert (found["row"].to_pylist(), found["relevance"].to_pylist()) == ([0, 2], [1, 1])


def test_documents_are_relevant_unless_a_column_says_otherwise() -> None:
    columns: dict[str, Cells] = {"text": ["a", "b", None], "query": ["q", "q", "r"]}
    assert items(FIND, **columns)["relevance"].to_pylist() == [1, 1]
    assert items(GRADED, **columns, gain=["0", "3", "1"])["relevance"].to_pylist() == [0, 3]
    assert items(GRADED, **columns, gain=["32767", None, ""])["relevance"].to_pylist() == [32767]
    found = items({**FIND, "document_column": "note"}, **columns, note=["m", "", "n"])
    q, r, m, n = map(prompt_id, "qrmn")
    assert [*zip(*found.to_pydict().values(), strict=True)] == [(0, q, m, 1), (2, r, n, 1)]


def test_texts_of_mteb_are_items_of_their_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_tasks, "task_names", lambda spec, _modules: list(spec))
    config = DatasetConfig.model_validate({"name": "data", "source": {"mteb": ["One", "Two"]}})
    asked = ["none", "query", "document"]
    columns = {"text": ["a", "", "b"], "task": ["Two", "One", "One"], "prompt_type": asked}
    found = table_of(config, source(**columns))
    assert found.schema == schema.MTEB_ITEMS
    assert found["prompt_type"].to_pylist() == asked[1:]
    assert found["prompt_id"].to_pylist() == [prompt_id(""), prompt_id("b")]
    check_items(config.tasks[0], found)


def test_items_are_the_same_for_any_shards_and_order_of_rows() -> None:
    task = dataset(ORDER)
    cells = st.sampled_from([None, "", "a", "b", "c"])

    @given(st.lists(st.tuples(cells, cells, st.sampled_from([None, "0"])), max_size=20), st.data())
    def check_rows(given_rows: list[tuple[str | None, ...]], data: st.DataObject) -> None:
        query, answer, gain = zip(*given_rows, strict=True) if given_rows else ((), (), ())
        rows = source(query=query, answer=answer, gain=gain)
        order = data.draw(st.permutations(range(len(given_rows))))
        try:
            whole = table_of(task, rows).to_pylist()
        except ConfigError:
            return
        shards = shards_of(task, rows.take(pa.array(order, pa.int64())), 3)
        cut = [item for part in shards for item in items_of(part, task.tasks[0])[0].to_pylist()]
        assert sorted(cut, key=lambda item: item["row"]) == whole

    check_rows()


# What is refused, with task, column, what is there and what is needed.


@pytest.mark.parametrize(
    ("task", "column", "cells"),
    [
        (PRICE, "cost", ["cheap", "nan"]),
        (ALIKE, "score", ["4,5"]),
        (SAME, "alike", ["2"]),
        (ORDER, "gain", ["0.5", "-1"]),
        (GRADED, "gain", ["32768", "high"]),
        (MULTI, "topic", ["['sea']"]),
    ],
)
def test_a_cell_that_cannot_be_used_names_task_column_value_and_row(
    task: Task, column: str, cells: list[str]
) -> None:
    columns: dict[str, Cells] = {name: ["a", "b"] for name in dataset(task).columns}
    where = f"task {task['name']}, column {column}"
    for cell in cells:
        message = refusal(task, **{**columns, column: ["1", cell]})
        assert message.startswith(f"{where}: {cell!r} in row 2 is not ")


@pytest.mark.parametrize(
    ("task", "row"),
    [
        (TOPIC, {"text": "a", "topic": ""}),
        (FEW, {"text": "a", "topic": "x"}),
        ({**ALIKE, **PART}, {"one": "a", "two": "b", "score": "1", "part": "dev"}),
        (SAME, {"one": "a", "alike": "1"}),
        (FIND, {"query": "a", "text": ""}),
    ],
)
def test_no_item_at_all_says_what_a_row_needs(task: Task, row: dict[str, str]) -> None:
    needed = [task["name"], *(task[key] for key in task if key.endswith("_column"))]
    message = refusal(task, **{name: [row.get(name)] for name in dataset(task).columns})
    assert [name for name in needed if name not in message] == [], message


PAIR = {"one": texts(3), "two": texts(3)}
SEEN = {"query": "qrqs", "answer": "abcd", "text": "abcd"}
THIRTY: dict[str, Cells] = {"query": texts(30), "answer": ["a", "b"] + [" "] * 28}
SPLIT: list[str | None] = ["train", "test"] * 4
CONSTANT = "1, 2 different ones"


def costs(constant: str) -> dict[str, Cells]:
    """Return eight values in two splits, one of which has the same value throughout."""
    cells = ["1" if part == constant else str(n) for n, part in enumerate(SPLIT)]
    return {"text": texts(8), "cost": cells, "part": SPLIT}


@pytest.mark.parametrize(
    ("task", "columns", "words"),
    [
        (ORDER, {"query": "qrq", "answer": "aba", "gain": "110"}, "gain|row 1|row 3|1 and 0"),
        # The first in source order, though shards hold queries by their ids.
        (ORDER, {**THIRTY, "gain": ["1"] * 30}, "answer|row 3"),
        # One value.
        (ALIKE, {**PAIR, "score": "111"}, f"score|all items (3)|{CONSTANT}"),
        (SAME, {**PAIR, "alike": ["true"] * 3}, f"alike|all items (3)|{CONSTANT}"),
        ({**PRICE, **PART}, costs("train"), f"cost|training items (4)|{CONSTANT}"),
        ({**PRICE, **PART}, costs("test"), f"cost|test items (4)|{CONSTANT}"),
        # One class in training, whatever there is to test on.
        (FEW, {**labelled(8, ["sea"]), "topic": ["sea", "sky"] * 4}, "topic|1 label (sea), 2 are"),
        # Clusters.
        (GROUPS, labelled(12, ["sea"]), "topic|items have 1 label (sea), 2 are"),
        (GROUPS, labelled(12, ["a", "-1"]), "topic|the label -1"),
        ({**GROUPS, "documents_per_fold": 2}, labelled(12, "abc"), "topic|3 labels|fold has 2"),
        ({**GROUPS, "max_documents": 2}, labelled(12, "abc"), "topic|3 labels|fold has 2"),
        ({**GROUPS, **PART}, labelled(2, "xy", ["dev"]), "part|no test row|dev"),
        # Queries without a relevant candidate.
        (ORDER, {**SEEN, "gain": "1000"}, "gain|2 of 3 queries|row 2"),
        (GRADED, {**SEEN, "gain": "1000"}, "gain|2 of 3 queries|row 2"),
        # Fewer examples than a fold draws.
        ({**FEW, "samples_per_label": 5}, labelled(8, ["sea", "sky"]), "'sea' has 2 training|is 5"),
        ({**MULTI, "samples_per_label": 2}, labelled(24, ["sea", "sky"]), "topic|most 4|5 neigh"),
        ({**MULTI, "samples_per_label": 9}, labelled(8, ["sea", "sky"]), "topic|most 4|5 neighb"),
    ],
)
def test_what_cannot_be_scored_names_task_column_value_and_row(
    task: Task, columns: dict[str, Cells], words: str
) -> None:
    message = refusal(task, **columns)
    assert message.startswith(f"task {task['name']}")
    assert [each for each in words.split("|") if each not in message] == [], message


@pytest.mark.parametrize("task", [FEW, {**PRICE, **PART}])
def test_both_splits_are_needed(task: Task) -> None:
    columns: dict[str, Cells] = {"text": texts(4), "topic": ["x", "y"] * 2, "cost": ["1", "2"] * 2}
    where = f"task {task['name']}:"
    for parts, absent in (
        (["train", "dev"], "no test row; it has: dev, train"),
        (["Train", "validation"], "no train and no test row; it has: Train, validation"),
    ):
        assert refusal(task, **columns, part=parts * 2) == f"{where} column part has {absent}"
    message = refusal({**task, "split_column": None, "test_fraction": 1e-9}, **columns)
    assert message.startswith(f"{where} test_fraction 1e-09 leaves no test item among 4")


def test_labels_only_in_test_are_named_with_those_of_the_training_items() -> None:
    columns = labelled(8, ["sea", "sky"])
    columns["topic"] = [*columns["topic"][:7], "moon"]
    message = refusal(FEW, **columns)
    assert "column topic: the test items have 1 label (moon)" in message
    assert "2 labels (sea, sky)" in message
    new = [f"new {number:02d}" for number in range(40)]
    more: dict[str, Cells] = {"topic": [*columns["topic"], *new]}
    more |= {"text": texts(48), "part": [*columns["part"], *["test"] * 40]}
    assert "41 labels (moon, new 00, new 01, new 02, new 03 and 36 more)" in refusal(FEW, **more)
    # A label that only training items have is no obstacle.
    columns = labelled(12, ["sea", "sky", "moon"])
    columns["topic"] = ["sky" if n % 6 == 5 else each for n, each in enumerate(columns["topic"])]
    check(FEW, **columns)


def test_a_task_of_many_labels_needs_two_of_them_in_both_splits() -> None:
    columns = labelled(24, ["sea,salt", "sky", " , "])
    check(MULTI, **columns)
    where, parts = "task topic, column topic: the", columns["part"]

    def tested(labels: str) -> list[str | None]:
        return [labels if p == "test" else columns["topic"][n] for n, p in enumerate(parts)]

    for topic, expected in (
        (["sea", "[]"] * 12, "training items have 1 label (sea)"),
        (["[]"] * 24, "training items have 0 labels"),
        (tested("sky"), "test items have 1 label (sky)"),
        (tested("sky,moon"), "test items have 1 label (moon)"),
    ):
        assert refusal(MULTI, **{**columns, "topic": topic}).startswith(f"{where} {expected}")


def test_as_many_as_a_fold_draws_are_enough() -> None:
    check({**FEW, "samples_per_label": 2}, **labelled(8, ["sea", "sky"]))
    check({**MULTI, "samples_per_label": 3}, **labelled(24, ["sea", "sky"]))
    columns = {**labelled(48, ["a"]), "cost": [*map(str, range(48))]}
    for samples in (12, 24, 2048):
        check({**PRICE, **PART, "samples": samples}, **columns)
    message = refusal({**PRICE, **PART, "samples": 5}, **columns)
    assert message.startswith("task price, column cost: train: 5 of 24 rows ")


@pytest.mark.parametrize("kind", [FEW, MULTI, GROUPS, PRICE])
def test_what_is_accepted_can_be_scored(kind: Task) -> None:
    counts = st.lists(st.integers(0, 6), min_size=1, max_size=3)
    accepted = []

    @settings(deadline=None, max_examples=25)
    @given(counts, counts, st.integers(1, 4))
    @example([4, 4], [2, 2], 3)
    def check_items_of(train: list[int], test: list[int], few: int) -> None:
        cells = [(str(label), "train") for label, count in enumerate(train) for _ in range(count)]
        cells += [(str(label), "test") for label, count in enumerate(test) for _ in range(count)]
        topic, part = zip(*cells, strict=True) if cells else ((), ())
        # More than any value has, so that no sample has one value only: that has no score.
        own = {"samples": few + 6} if kind is PRICE else {"documents_per_fold": few}
        task = {**kind, **PART, **({"samples_per_label": few} if kind in (FEW, MULTI) else own)}
        columns = {"text": texts(len(cells)), "topic": topic, "cost": topic, "part": part}
        (made,), found = dataset(task).tasks, items(task, **columns)
        try:
            check_items(made, found)
        except ConfigError:
            return
        # Vectors that say nothing: where an item is in its split.
        ids, place = found["prompt_id"].to_numpy(), [*range(sum(train)), *range(sum(test))]
        order = np.argsort(ids)
        matrix_ND = 3 * np.array(place)[order, None] + np.arange(3)
        vectors = LayerVectors(ids[order], matrix_ND.astype(np.float32))
        score = TYPES[type(made)].score
        assert score is not None
        assert score(made, Given(found, vectors, vectors, 42, 0, 0, folds=2))
        accepted.append((train, test))

    check_items_of()
    assert ([4, 4], [2, 2]) in accepted
