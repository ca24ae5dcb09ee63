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

from jobs.config.blocks import ConfigError
from jobs.config.datasets import DatasetConfig
from jobs.prepare.records import items_of, records_of
from jobs.tasks.items import Given
from jobs.tasks.types import TYPES, check_items
from operators.benchmark import tasks as benchmark_tasks
from operators.prompts.seeding import prompt_id
from storage import schema
from storage.layers import LayerVectors
from tests.jobs.prepare.test_records import FIND, GROUPS, TOPIC, dataset, shards_of, source

PART = {"split_column": "part"}
FEW: dict[str, Any] = {**TOPIC, **PART, "samples_per_label": 2}
MULTI: dict[str, Any] = {**FEW, "multi_label": True}
PRICE: dict[str, Any] = {"name": "price", "type": "regression", "value_column": "cost"}
TEXTS = {"first_column": "one", "second_column": "two"}
SAME = {"name": "same", "type": "pair_classification", **TEXTS, "label_column": "alike"}
ALIKE = {"name": "alike", "type": "sts", **TEXTS, "score_column": "score"}
ORDER: dict[str, Any] = {
    "name": "order",
    "type": "reranking",
    "query_column": "query",
    "candidate_column": "answer",
    "relevance_column": "gain",
}
GRADED: dict[str, Any] = {**FIND, "relevance_column": "gain"}

Cells = Sequence[str | None]
Task = dict[str, Any]


def table_of(config: DatasetConfig, rows: pa.Table) -> pa.Table:
    """Return the items of the first task, from every row in one shard."""
    return items_of(records_of(config, rows, 1, 0), config.tasks[0])[0]


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
    found = table_of(config, source(text=["a", "", "b"], task=["Two", "One", "One"]))
    assert found.schema == schema.MTEB_ITEMS
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

WHOLE = "a whole number from 0 to 32767"
CONSTANT = "have the value 1, 2 different ones are needed"
TRAIN_TEST = ["train", "test"] * 4


@pytest.mark.parametrize(
    ("task", "column", "cell", "wanted"),
    [
        (PRICE, "cost", "cheap", "a number"),
        (PRICE, "cost", "nan", "a finite number"),
        (ALIKE, "score", "4,5", "a number"),
        (SAME, "alike", "2", "1 or 0, true or false"),
        (ORDER, "gain", "0.5", WHOLE),
        (ORDER, "gain", "-1", WHOLE),
        (GRADED, "gain", "32768", WHOLE),
        (GRADED, "gain", "high", "a number"),
        (MULTI, "topic", "['sea']", "a list of labels"),
    ],
)
def test_a_cell_that_cannot_be_used_names_task_column_value_and_row(
    task: Task, column: str, cell: str, wanted: str
) -> None:
    columns: dict[str, Cells] = {name: ["a", "b"] for name in dataset(task).columns}
    message = refusal(task, **{**columns, column: ["1", cell]})
    assert message == f"task {task['name']}, column {column}: {cell!r} in row 2 is not {wanted}"


@pytest.mark.parametrize(
    ("task", "row", "needed"),
    [
        (TOPIC, {"text": "a", "topic": ""}, "the text column and a value in topic"),
        (FEW, {"text": "a", "topic": "x"}, "the text column and a value in topic and part"),
        (
            {**ALIKE, **PART},
            {"one": "a", "two": "b", "score": "1", "part": "dev"},
            "one and two and a value in score, and test in part",
        ),
        (SAME, {"one": "a", "alike": "1"}, "one and two and a value in alike"),
        (FIND, {"query": "a", "text": ""}, "query and the text column"),
    ],
)
def test_no_item_at_all_says_what_a_row_needs(task: Task, row: dict[str, str], needed: str) -> None:
    columns = {name: [row.get(name)] for name in dataset(task).columns}
    expected = f"task {task['name']}: no row of the source has a text in {needed}"
    assert refusal(task, **columns) == expected


PAIR = {"one": texts(3), "two": texts(3)}
SEEN = {"query": "qrqs", "answer": "abcd", "text": "abcd"}
ONE_LABEL = "have 1 label (sea), 2 are needed"
UNLABELLED = "the label -1 means 'not labelled' in this protocol; rename it"
MORE = ", column topic: 3 labels need as many documents, but a fold has 2"
BOTH = "row 1 and row 3 have the same query and candidate, but relevance 1 and 0"
EMPTY = "the query of row 3 has no candidate; leave it out of the data"
IRRELEVANT = (
    "2 of 3 queries have no relevant candidate, first that of row 2; leave them out of the data"
)


def costs(constant: str) -> dict[str, Cells]:
    """Return eight values in two splits, one of which has the same value throughout."""
    cells = ["1" if part == constant else str(n) for n, part in enumerate(TRAIN_TEST)]
    return {"text": texts(8), "cost": cells, "part": TRAIN_TEST}


@pytest.mark.parametrize(
    ("task", "columns", "expected"),
    [
        (ORDER, {"query": "qrq", "answer": "aba", "gain": "110"}, f", column gain: {BOTH}"),
        # The first in source order, though shards hold queries by their ids.
        (
            ORDER,
            {"query": texts(30), "answer": ["a", "b"] + [" "] * 28, "gain": ["1"] * 30},
            f", column answer: {EMPTY}",
        ),
        # One value.
        (ALIKE, {**PAIR, "score": "111"}, f", column score: all items (3) {CONSTANT}"),
        (SAME, {**PAIR, "alike": ["true"] * 3}, f", column alike: all items (3) {CONSTANT}"),
        ({**PRICE, **PART}, costs("train"), f", column cost: all training items (4) {CONSTANT}"),
        ({**PRICE, **PART}, costs("test"), f", column cost: all test items (4) {CONSTANT}"),
        # One class in training, whatever there is to test on.
        (
            FEW,
            {**labelled(8, ["sea"]), "topic": ["sea", "sky"] * 4},
            f", column topic: the training items {ONE_LABEL}",
        ),
        # Clusters.
        (GROUPS, labelled(12, ["sea"]), f", column topic: the items {ONE_LABEL}"),
        (GROUPS, labelled(12, ["a", "-1"]), f", column topic: {UNLABELLED}"),
        ({**GROUPS, "documents_per_fold": 2}, labelled(12, "abc"), MORE),
        ({**GROUPS, "max_documents": 2}, labelled(12, "abc"), MORE),
        (
            {**GROUPS, **PART},
            labelled(2, "xy", ["dev"]),
            ": column part has no test row; it has: dev",
        ),
        # Queries without a relevant candidate.
        (ORDER, {**SEEN, "gain": "1000"}, f", column gain: {IRRELEVANT}"),
        (GRADED, {**SEEN, "gain": "1000"}, f", column gain: {IRRELEVANT}"),
    ],
)
def test_what_cannot_be_scored_names_task_column_value_and_row(
    task: Task, columns: dict[str, Cells], expected: str
) -> None:
    assert refusal(task, **columns) == f"task {task['name']}{expected}"


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
    assert message == f"{where} test_fraction 1e-09 leaves no test item among 4; give more rows"


def test_labels_only_in_test_are_named_with_those_of_the_training_items() -> None:
    columns = labelled(8, ["sea", "sky"])
    columns["topic"] = [*columns["topic"][:7], "moon"]
    assert refusal(FEW, **columns) == (
        "task topic, column topic: the test items have 1 label (moon) that no training item has; "
        "those have 2 labels (sea, sky)"
    )
    new = [f"new {number:02d}" for number in range(40)]
    more: dict[str, Cells] = {"topic": [*columns["topic"], *new]}
    more |= {"text": texts(48), "part": [*columns["part"], *["test"] * 40]}
    shown = "have 41 labels (moon, new 00, new 01, new 02, new 03 and 36 more) that no training"
    assert shown in refusal(FEW, **more)
    # A label that only training items have is no obstacle.
    columns = labelled(12, ["sea", "sky", "moon"])
    columns["topic"] = ["sky" if n % 6 == 5 else each for n, each in enumerate(columns["topic"])]
    check(FEW, **columns)


def test_fewer_examples_than_samples_per_label_name_the_rarest_label() -> None:
    columns = labelled(12, ["sea", "sky"], ["train", "train", "test"])
    check({**FEW, "samples_per_label": 4}, **columns)
    assert refusal({**FEW, "samples_per_label": 5}, **columns) == (
        "task topic, column topic: label 'sea' has 4 training items, samples_per_label is 5; lower "
        "it, or leave the label out of the data"
    )
    columns["topic"] = ["moon", *columns["topic"][1:]]
    assert "label 'moon' has 1 training item, samples_per_label is 2;" in refusal(FEW, **columns)


def test_a_task_of_many_labels_needs_two_of_them_in_both_splits() -> None:
    columns = labelled(24, ["sea,salt", "sky", " , "])
    check(MULTI, **columns)
    where, parts = "task topic, column topic: the", columns["part"]

    def tested(labels: str) -> list[str | None]:
        return [labels if p == "test" else columns["topic"][n] for n, p in enumerate(parts)]

    for topic, expected in (
        (["sea", "[]"] * 12, "training items have 1 label (sea), 2 are needed"),
        (["[]"] * 24, "training items have 0 labels, 2 are needed"),
        (tested("sky"), "test items have 1 label (sky), 2 are needed"),
        (tested("sky,moon"), "test items have 1 label (moon) that no training item has"),
    ):
        assert refusal(MULTI, **{**columns, "topic": topic}).startswith(f"{where} {expected}")


def test_a_task_of_many_labels_needs_its_neighbours() -> None:
    columns = labelled(24, ["sea", "sky"])
    assert refusal({**MULTI, "samples_per_label": 2}, **columns) == (
        "task topic, column topic: a fold draws at most 4 training items with a label, 5 "
        "neighbours need as many; samples_per_label is 2, the training items have 2 labels (sea, "
        "sky)"
    )
    check({**MULTI, "samples_per_label": 3}, **columns)
    few = labelled(8, ["sea", "sky"])
    assert "draws at most 4 training items" in refusal({**MULTI, "samples_per_label": 9}, **few)


def test_a_sample_that_cannot_be_drawn_from_the_values_is_refused() -> None:
    task, parts = {**PRICE, **PART}, ["train"] * 24 + ["test"] * 24
    columns: dict[str, Cells] = {"text": texts(48), "cost": [*map(str, range(48))], "part": parts}
    for samples in (12, 24, 2048):
        check({**task, "samples": samples}, **columns)
    message = refusal({**task, "samples": 5}, **columns)
    assert message.startswith("task price, column cost: train: 5 of 24 rows cannot be drawn from ")


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
