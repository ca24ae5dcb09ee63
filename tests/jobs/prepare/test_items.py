"""Items: what a source row becomes in each type of task, and which data is refused, and how."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs.config.blocks import ConfigError
from jobs.config.datasets import DatasetConfig
from jobs.prepare import sources
from jobs.prepare.records import items_of, records_of
from jobs.tasks.types import check_items
from operators.benchmark import tasks as benchmark_tasks
from operators.probes.classification import classification
from operators.probes.clustering import clustering
from operators.probes.multilabel import multilabel_classification
from operators.probes.regression import regression
from operators.prompts.seeding import prompt_id
from storage import schema
from tests.jobs.prepare.test_records import TOPIC, dataset, shards_of, source

PART = {"split_column": "part"}
FEW: dict[str, Any] = {**TOPIC, **PART, "samples_per_label": 2}
MULTI: dict[str, Any] = {**FEW, "multi_label": True}
GROUPS: dict[str, Any] = {"name": "groups", "type": "clustering", "label_column": "topic"}
PRICE: dict[str, Any] = {"name": "price", "type": "regression", "value_column": "cost"}
TEXTS = {"first_column": "one", "second_column": "two"}
SAME: dict[str, Any] = {
    "name": "same",
    "type": "pair_classification",
    **TEXTS,
    "label_column": "alike",
}
ALIKE: dict[str, Any] = {"name": "alike", "type": "sts", **TEXTS, "score_column": "score"}
ORDER: dict[str, Any] = {
    "name": "order",
    "type": "reranking",
    "query_column": "query",
    "candidate_column": "answer",
    "relevance_column": "gain",
}
FIND: dict[str, Any] = {"name": "find", "type": "retrieval", "query_column": "query"}
GRADED: dict[str, Any] = {**FIND, "relevance_column": "gain"}

Cells = Sequence[str | None]


def table_of(config: DatasetConfig, rows: pa.Table) -> pa.Table:
    """Return the items of the first task, from every row in one shard."""
    table, columns, _ = items_of(records_of(config, rows, 1, 0), config.tasks[0])
    return table.cast(columns)


def items(task: dict[str, Any], **columns: Cells) -> pa.Table:
    return table_of(dataset(task), source(**columns))


def texts(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


def check(task: dict[str, Any], **columns: Cells) -> None:
    check_items(dataset(task).tasks[0], items(task, **columns))


def refusal(task: dict[str, Any], **columns: Cells) -> str:
    with pytest.raises(ConfigError) as caught:
        check(task, **columns)
    return str(caught.value)


def labelled(count: int, labels: Cells, parts: Cells) -> dict[str, Cells]:
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


def test_values_are_numbers_in_any_notation() -> None:
    found = items(
        {**PRICE, **PART},
        text=texts(7),
        cost=["1", "-2.5", "1e3", " 4 ", "0", "", None],
        part=["train", "test"] * 3 + ["test"],
    )
    assert found["value"].to_pylist() == [1.0, -2.5, 1000.0, 4.0, 0.0]
    assert found["split"].to_pylist() == ["train", "test", "train", "test", "train"]
    drawn = items({**PRICE, "test_fraction": 0.5}, text=texts(60), cost=["1"] * 60)
    assert set(drawn["split"].to_pylist()) == {"train", "test"}


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("b, a ,b", ["a", "b"]),
        ("one label", ["one label"]),
        (" , ", []),
        ('["b", "a, c"]', ["a, c", "b"]),
        (" []", []),
        ("[2, null, 1.5]", ["1.5", "2"]),
        ("é,ü", ["é", "ü"]),
    ],
)
def test_labels_of_a_cell_are_a_sorted_list(cell: str, labels: list[str]) -> None:
    (item,) = items(MULTI, text=["a"], topic=[cell], part=["train"]).to_pylist()
    assert json.loads(item["label"]) == labels


def test_labels_are_separated_as_the_config_says() -> None:
    task = {**MULTI, "label_separator": "||"}
    (item,) = items(task, text=["a"], topic=["x, y||z"], part=["train"]).to_pylist()
    assert json.loads(item["label"]) == ["x, y", "z"]
    assert items(MULTI, text=["a", "b"], topic=["", None], part=["train"] * 2).num_rows == 0


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv"])
def test_lists_of_every_format_are_the_same_labels(form: str, tmp_path: Path) -> None:
    lists = [["sea", "sky"], ["sky", "sky"], [], ["salt, fine"]]
    path = tmp_path / f"labels.{form}"
    columns = {"text": texts(4), "topic": lists, "part": ["train"] * 4}
    if form == "parquet":
        pq.write_table(pa.table(columns), path)
    else:
        rows = [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
        lines = [json.dumps(row) for row in rows]
        if form == "csv":
            cells = [json.dumps(each).replace('"', '""') for each in lists]
            lines = ["text,topic,part"]
            lines += [f'text {number},"{cell}",train' for number, cell in enumerate(cells)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = dataset(MULTI, source={"files": str(path)})
    (fragment,) = sources.discover(config, {})
    found = [table_of(config, rows) for rows in sources.read(fragment, config.columns, {})]
    labels = [json.loads(label) for table in found for label in table["label"].to_pylist()]
    assert labels == [["sea", "sky"], ["sky"], [], ["salt, fine"]]


def test_pairs_are_rows_with_both_texts_and_a_value() -> None:
    found = items(
        {**ALIKE, **PART},
        one=["a", "b", None, "d", "e", "f"],
        two=["p", "", "r", "s", "t", "a"],
        score=["4.5", "1", "1", None, "2", "0"],
        part=["test", "test", "test", "test", "train", "test"],
    )
    first, last = [prompt_id(text) for text in "ap"], [prompt_id(text) for text in "fa"]
    assert found.to_pylist() == [
        {"row": 0, "first_id": first[0], "second_id": first[1], "value": 4.5},
        {"row": 5, "first_id": last[0], "second_id": last[1], "value": 0.0},
    ]


def test_pairs_belong_together_or_not_in_any_spelling() -> None:
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


def test_texts_of_mteb_are_items_of_their_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_tasks, "task_names", lambda spec, _modules: list(spec))
    config = DatasetConfig.model_validate({"name": "data", "source": {"mteb": ["One", "Two"]}})
    rows = source(text=["a", "", "b"], task=["Two", "One", "One"])
    found = table_of(config, rows)
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
            whole = items_of(records_of(task, rows, 1, 0), task.tasks[0])[0].to_pylist()
        except ConfigError:
            return
        shards = shards_of(task, rows.take(pa.array(order, pa.int64())), 3)
        cut = [item for part in shards for item in items_of(part, task.tasks[0])[0].to_pylist()]
        assert sorted(cut, key=lambda item: item["row"]) == whole

    check_rows()


# Cells that are refused, with task, column, value and row.


@pytest.mark.parametrize(
    ("task", "columns", "expected"),
    [
        (
            PRICE,
            {"text": ["a", "b"], "cost": ["1", "cheap"]},
            "task price, column cost: 'cheap' in row 2 is not a number",
        ),
        (
            PRICE,
            {"text": ["a"], "cost": ["nan"]},
            "task price, column cost: 'nan' in row 1 is not a finite number",
        ),
        (
            ALIKE,
            {"one": ["a"], "two": ["b"], "score": ["4,5"]},
            "task alike, column score: '4,5' in row 1 is not a number",
        ),
        (
            SAME,
            {"one": ["a"], "two": ["b"], "alike": ["2"]},
            "task same, column alike: '2' in row 1 is not 1 or 0, true or false",
        ),
        (
            ORDER,
            {"query": ["q"], "answer": ["a"], "gain": ["0.5"]},
            "task order, column gain: '0.5' in row 1 is not a whole number from 0 to 32767",
        ),
        (
            ORDER,
            {"query": ["q"], "answer": ["a"], "gain": ["-1"]},
            "task order, column gain: '-1' in row 1 is not a whole number from 0 to 32767",
        ),
        (
            GRADED,
            {"query": ["q"], "text": ["a"], "gain": ["32768"]},
            "task find, column gain: '32768' in row 1 is not a whole number from 0 to 32767",
        ),
        (
            GRADED,
            {"query": ["q"], "text": ["a"], "gain": ["high"]},
            "task find, column gain: 'high' in row 1 is not a number",
        ),
        (
            MULTI,
            {"text": ["a"], "topic": ["['sea']"], "part": ["train"]},
            "task topic, column topic: \"['sea']\" in row 1 is not a list of labels",
        ),
        (
            ORDER,
            {"query": ["q", "r", "q"], "answer": ["a", None, "b"], "gain": ["1", None, "0"]},
            "task order, column answer: the query of row 2 has no candidate; leave it out of the "
            "data",
        ),
        (
            ORDER,
            {"query": ["q", "r", "q"], "answer": ["a", "b", "a"], "gain": ["1", "1", "0"]},
            "task order, column gain: row 1 and row 3 have the same query and candidate, but "
            "relevance 1 and 0",
        ),
    ],
)
def test_a_cell_that_cannot_be_used_names_task_column_value_and_row(
    task: dict[str, Any], columns: dict[str, Cells], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        items(task, **columns)
    assert str(caught.value) == expected


def test_a_row_of_another_file_is_named_with_it() -> None:
    rows = source(text=["a"], cost=["cheap"])
    second = pa.array([(1 << schema.ROW_BITS) + 4], pa.int64())
    rows = rows.set_column(rows.column_names.index("row"), "row", second)
    with pytest.raises(ConfigError, match=r"'cheap' in row 5 of source part 2 is not a number"):
        table_of(dataset(PRICE), rows)


def test_a_query_without_candidates_is_the_first_in_source_order() -> None:
    queries = [f"query {number}" for number in range(30)]
    with pytest.raises(ConfigError, match=r"the query of row 3 has no candidate"):
        items(ORDER, query=queries, answer=["a", "b"] + [" "] * 28, gain=["1"] * 30)


# Tables of items that are refused, with task, column, what is there and what is needed.


@pytest.mark.parametrize(
    ("task", "columns", "needed"),
    [
        (TOPIC, {"text": ["a"], "topic": [""]}, "a text in the text column and a value in topic"),
        (
            FEW,
            {"text": ["a"], "topic": ["x"], "part": [None]},
            "a text in the text column and a value in topic and part",
        ),
        (
            PRICE,
            {"text": [" "], "cost": ["1"]},
            "a text in the text column and a value in cost",
        ),
        (
            {**ALIKE, **PART},
            {"one": ["a"], "two": ["b"], "score": ["1"], "part": ["dev"]},
            "a text in one and two and a value in score, and test in part",
        ),
        (
            SAME,
            {"one": ["a"], "two": [None], "alike": ["1"]},
            "a text in one and two and a value in alike",
        ),
        (
            {**ORDER, **PART},
            {"query": ["a"], "answer": ["b"], "gain": ["1"], "part": ["train"]},
            "a text in query and answer and a value in gain, and test in part",
        ),
        (FIND, {"query": ["a"], "text": [""]}, "a text in query and the text column"),
    ],
)
def test_no_item_at_all_says_what_a_row_needs(
    task: dict[str, Any], columns: dict[str, Cells], needed: str
) -> None:
    expected = f"task {task['name']}: no row of the source has {needed}"
    assert refusal(task, **columns) == expected


@pytest.mark.parametrize("task", [FEW, {**PRICE, **PART}])
def test_both_splits_are_needed(task: dict[str, Any]) -> None:
    columns: dict[str, Cells] = {"topic": ["x", "y"] * 2, "cost": ["1", "2"] * 2}
    name = task["name"]
    message = refusal(task, text=texts(4), **columns, part=["train", "dev"] * 2)
    assert message == f"task {name}: column part has no test row; it has: dev, train"
    message = refusal(task, text=texts(4), **columns, part=["Train", "validation"] * 2)
    expected = f"task {name}: column part has no train and no test row; it has: Train, validation"
    assert message == expected
    drawn = {key: value for key, value in task.items() if key != "split_column"}
    message = refusal({**drawn, "test_fraction": 1e-9}, text=texts(4), **columns)
    assert (
        message == f"task {name}: test_fraction 1e-09 leaves no test item among 4; give more rows"
    )


def test_a_single_class_is_refused() -> None:
    columns = labelled(8, ["sea"], ["train", "test"])
    expected = "task topic, column topic: the training items have 1 label (sea), 2 are needed"
    assert refusal(FEW, **columns) == expected
    columns["topic"] = ["sea" if part == "train" else "sky" for part in columns["part"]]
    assert refusal(FEW, **columns) == expected


def test_labels_only_in_test_are_named_with_those_of_the_training_items() -> None:
    columns = labelled(8, ["sea", "sky"], ["train", "test"])
    columns["topic"] = [*columns["topic"][:7], "moon"]
    assert refusal(FEW, **columns) == (
        "task topic, column topic: the test items have 1 label (moon) that no training item has; "
        "those have 2 labels (sea, sky)"
    )
    more: dict[str, Cells] = {
        "text": texts(48),
        "topic": [*columns["topic"], *(f"new {number:02d}" for number in range(40))],
        "part": [*columns["part"], *["test"] * 40],
    }
    shown = "have 41 labels (moon, new 00, new 01, new 02, new 03 and 36 more) that no training"
    assert shown in refusal(FEW, **more)
    # A label that only training items have is no obstacle.
    columns = labelled(12, ["sea", "sky", "moon"], ["train", "test"])
    columns["part"] = [
        "train" if topic == "moon" else part
        for topic, part in zip(columns["topic"], columns["part"], strict=True)
    ]
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
    columns = labelled(24, ["sea,salt", "sky", " , "], ["train", "test"])
    check(MULTI, **columns)
    one = {**columns, "topic": ["sea", "[]"] * 12}
    expected = "task topic, column topic: the training items have 1 label (sea), 2 are needed"
    assert refusal(MULTI, **one) == expected
    none = {**columns, "topic": ["[]"] * 24}
    expected = "task topic, column topic: the training items have 0 labels, 2 are needed"
    assert refusal(MULTI, **none) == expected
    parts = columns["part"]
    tested: Cells = ["sky" if p == "test" else columns["topic"][n] for n, p in enumerate(parts)]
    expected = "task topic, column topic: the test items have 1 label (sky), 2 are needed"
    assert refusal(MULTI, **{**columns, "topic": tested}) == expected
    tested = ["sky,moon" if p == "test" else columns["topic"][n] for n, p in enumerate(parts)]
    assert "the test items have 1 label (moon) that no training item has" in refusal(
        MULTI, **{**columns, "topic": tested}
    )


def test_a_task_of_many_labels_needs_its_neighbours() -> None:
    columns = labelled(24, ["sea", "sky"], ["train", "test"])
    assert refusal({**MULTI, "samples_per_label": 2}, **columns) == (
        "task topic, column topic: a fold draws at most 4 training items with a label, 5 "
        "neighbours need as many; samples_per_label is 2, the training items have 2 labels (sea, "
        "sky)"
    )
    check({**MULTI, "samples_per_label": 3}, **columns)
    few = labelled(8, ["sea", "sky"], ["train", "test"])
    assert "draws at most 4 training items" in refusal({**MULTI, "samples_per_label": 9}, **few)


@pytest.mark.parametrize(
    ("changes", "labels", "expected"),
    [
        ({}, ["sea"], "the items have 1 label (sea), 2 are needed"),
        ({}, ["sea", "-1"], "the label -1 means 'not labelled' in this protocol; rename it"),
        (
            {"documents_per_fold": 2},
            ["a", "b", "c"],
            "3 labels need as many documents, but a fold has 2",
        ),
        (
            {"max_documents": 2},
            ["a", "b", "c"],
            "3 labels need as many documents, but a fold has 2",
        ),
    ],
)
def test_clusters_that_cannot_be_found_are_refused(
    changes: dict[str, Any], labels: list[str], expected: str
) -> None:
    columns = {"text": texts(12), "topic": [labels[n % len(labels)] for n in range(12)]}
    message = refusal({**GROUPS, **changes}, **columns)
    assert message == f"task groups, column topic: {expected}"


def test_only_test_rows_are_clustered() -> None:
    columns = labelled(8, ["x", "y"], ["test", "train"])
    check({**GROUPS, **PART}, **columns)
    columns["part"] = ["dev"] * 8
    message = refusal({**GROUPS, **PART}, **columns)
    assert message == "task groups: column part has no test row; it has: dev"


@pytest.mark.parametrize(
    ("task", "column", "value"),
    [(ALIKE, "score", "2.5"), (SAME, "alike", "true")],
)
def test_pairs_of_one_value_are_refused(task: dict[str, Any], column: str, value: str) -> None:
    expected = f"task {task['name']}, column {column}: all items (3) have the value "
    columns: dict[str, Cells] = {"one": texts(3), "two": texts(3)}
    shown = {"true": "1"}.get(value, value)
    message = refusal(task, **columns, **{column: [value] * 3})
    assert message == f"{expected}{shown}, 2 different ones are needed"
    check(task, **columns, **{column: ["1", "0", value]})


@pytest.mark.parametrize(("constant", "kind"), [("train", "training"), ("test", "test")])
def test_values_must_differ_in_both_splits(constant: str, kind: str) -> None:
    parts = ["train", "test"] * 4
    cost = ["7" if part == constant else str(row) for row, part in enumerate(parts)]
    task = {**PRICE, **PART}
    assert refusal(task, text=texts(8), cost=cost, part=parts) == (
        f"task price, column cost: all {kind} items (4) have the value 7, 2 different ones are "
        "needed"
    )
    check(task, text=texts(8), cost=[str(row) for row in range(8)], part=parts)


def test_a_sample_that_cannot_be_drawn_from_the_values_is_refused() -> None:
    task = {**PRICE, **PART}
    columns = {
        "text": texts(48),
        "cost": [str(row) for row in range(48)],
        "part": (["train"] * 24 + ["test"] * 24),
    }
    for samples in (12, 24, 2048):
        check({**task, "samples": samples}, **columns)
    message = refusal({**task, "samples": 5}, **columns)
    assert message.startswith("task price, column cost: train: 5 of 24 rows cannot be drawn from ")


@pytest.mark.parametrize(("task", "texts_in"), [(ORDER, "answer"), (GRADED, "text")])
def test_queries_without_a_relevant_candidate_are_refused(
    task: dict[str, Any], texts_in: str
) -> None:
    columns: dict[str, Cells] = {"query": ["q", "r", "q", "s"], texts_in: ["a", "b", "c", "d"]}
    assert refusal(task, **columns, gain=["1", "0", "0", "0"]) == (
        f"task {task['name']}, column gain: 2 of 3 queries have no relevant candidate, first that "
        "of row 2; leave them out of the data"
    )
    check(task, **columns, gain=["0", "1", "3", "1"])


@pytest.mark.parametrize("kind", [FEW, MULTI, GROUPS, PRICE])
def test_what_is_accepted_can_be_scored(kind: dict[str, Any]) -> None:
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
        try:
            check(task, **columns)
        except ConfigError:
            return
        score(task, cells)
        accepted.append((train, test))

    check_items_of()
    assert ([4, 4], [2, 2]) in accepted


def score(task: dict[str, Any], cells: list[tuple[str, str]]) -> None:
    """Run the probe of a task on vectors that say nothing."""
    labels = {part: [label for label, each in cells if each == part] for part in ("train", "test")}
    matrix = {
        part: np.arange(3 * len(of_part), dtype=np.float32).reshape(-1, 3)
        for part, of_part in labels.items()
    }
    sides = matrix["train"], labels["train"], matrix["test"], labels["test"]
    if task["type"] == "clustering":
        documents = min(task["documents_per_fold"], len(labels["test"]))
        clustering(matrix["test"], labels["test"], folds=2, documents_per_fold=documents)
    elif task["type"] == "regression":
        train, test = ([float(label) for label in labels[part]] for part in matrix)
        regression(sides[0], train, sides[2], test, folds=2, samples=task["samples"], replicates=0)
    elif task.get("multi_label"):
        lists = {part: [[label] for label in labels[part]] for part in labels}
        multilabel_classification(
            sides[0],
            lists["train"],
            sides[2],
            lists["test"],
            folds=2,
            samples_per_label=task["samples_per_label"],
        )
    else:
        classification(*sides, folds=2, samples_per_label=task["samples_per_label"])
