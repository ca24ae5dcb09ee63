"""Records: what becomes a prompt or a task item, in which shard, and what is left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.config.blocks import ConfigError
from jobs.config.datasets import DatasetConfig
from jobs.prepare import records
from jobs.prepare.records import check_ids, items_of, markers, prompts_of, records_of
from jobs.tasks.types import TYPES
from operators.prompts.seeding import prompt_id
from storage import schema

TOPIC = {"name": "topic", "type": "classification", "label_column": "topic"}
GROUPS = {"name": "groups", "type": "clustering", "label_column": "topic"}
FIND = {"name": "find", "type": "retrieval", "query_column": "query"}


def dataset(*tasks: dict[str, Any], **changes: Any) -> DatasetConfig:  # noqa: ANN401
    values = {"name": "data", "source": {"files": "x.csv"}, "tasks": list(tasks), **changes}
    return DatasetConfig.model_validate(values)


def source(**columns: Sequence[str | None]) -> pa.Table:
    """Return source rows as `sources.read` gives them."""
    count = len(next(iter(columns.values())))
    strings = {name: pa.array(values, pa.large_string()) for name, values in columns.items()}
    return pa.table({**strings, "row": pa.array(range(count), pa.int64())})


def shards_of(config: DatasetConfig, rows: pa.Table, shards: int, seed: int = 0) -> list[pa.Table]:
    """Return the records of each shard, as Ray's groupby brings them together."""
    every = pa.concat_tables([markers(shards), records_of(config, rows, shards, seed)])
    numbers = every["shard"].to_numpy()
    return [every.filter(pa.array(numbers == number)) for number in range(shards)]


def items(
    config: DatasetConfig, rows: pa.Table, *, shards: int = 1, seed: int = 0, task: int = 0
) -> list[dict[str, Any]]:
    found = []
    for group in shards_of(config, rows, shards, seed):
        table, columns, facts = items_of(group, config.tasks[task])
        assert table.cast(columns).schema == TYPES[type(config.tasks[task])].columns
        assert facts == {}
        found += table.to_pylist()
    return found


@pytest.mark.parametrize(
    ("text", "min_chars", "reason"),
    [
        (None, 1, "null"),
        ("", 1, "empty"),
        ("", 0, None),
        (None, 0, "null"),
        (" ", 0, None),
        (" \t\n\u2003", 1, "whitespace"),
        ("ab", 3, "too_short"),
        ("abc", 3, None),
        (" a ", 3, None),
        ("\0", 1, None),
        ("a", 0, None),
    ],
)
def test_every_skipped_text_has_one_reason(
    text: str | None, min_chars: int, reason: str | None
) -> None:
    config = dataset(FIND, min_chars=min_chars)
    assert config.skipped("text", text) == reason
    assert config.skipped("query", text) == (None if reason == "too_short" else reason)


def prompts(config: DatasetConfig, rows: pa.Table) -> tuple[list[str], dict[str, int]]:
    """Return the prompts of a shard that has all, and what was left out."""
    table, columns, facts = prompts_of(shards_of(config, rows, 1)[0], 0)
    assert columns == schema.PROMPTS
    counts = {name.removeprefix("skipped_"): count for name, count in facts.items() if count}
    return sorted(table["text"].to_pylist()), counts


def test_skipped_and_repeated_texts_are_counted() -> None:
    texts = ["abc", None, "", " ", "ab", "abc", "abd", "abc", None]
    found, counts = prompts(dataset(min_chars=3), source(text=texts))
    assert found == ["abc", "abd"]
    each = {"null": 2, "empty": 1, "whitespace": 1, "too_short": 1}
    assert counts == {**each, "duplicates": 2}
    # `min_chars` is of the text column alone.
    rows = source(text=["a long passage", "short"], query=["ab", ""])
    expected = (["a long passage", "ab"], {"too_short": 1, "empty": 1})
    assert prompts(dataset(FIND, min_chars=6), rows) == expected


def test_min_chars_0_makes_prompts_of_blank_texts_in_every_text_column() -> None:
    rows = source(text=["", " ", None, "a"], query=["q", "", "\t", None])
    config = dataset(FIND, min_chars=0)
    assert prompts(config, rows) == (["", "\t", " ", "a", "q"], {"null": 2, "duplicates": 1})
    found = [(item["query_id"], item["candidate_id"]) for item in items(config, rows)]
    assert found == [(prompt_id("q"), prompt_id("")), (prompt_id(""), prompt_id(" "))]


def test_prompts_lie_sorted_in_the_shard_that_their_id_names() -> None:
    texts = [f"text {n}" for n in range(200)]
    ids = {prompt_id(text): text for text in texts}
    assert min(ids) < 0 < max(ids)
    seen = []
    for number, group in enumerate(shards_of(dataset(), source(text=texts), 7)):
        table = prompts_of(group, number)[0]
        own = table["prompt_id"].to_pylist()
        assert own == sorted(key for key in ids if key % 7 == number)
        assert table["text"].to_pylist() == [ids[key] for key in own]
        assert set(table["shard"].to_pylist()) == {number}
        seen += own
    assert len(seen) == 200


def test_shards_without_a_prompt_exist_and_are_empty() -> None:
    config = dataset(TOPIC)
    groups = shards_of(config, source(text=["only one"], topic=["sea"]), 5)
    assert all(group.num_rows for group in groups)
    tables = [prompts_of(group, number) for number, group in enumerate(groups)]
    sizes = [table.cast(schema.PROMPTS).num_rows for table, _, _ in tables]
    assert sorted(sizes) == [0, 0, 0, 0, 1]
    assert [items_of(group, config.tasks[0])[0].num_rows for group in groups] == sizes
    assert {count for _, _, facts in tables for count in facts.values()} == {0}


def test_two_labels_of_one_text_are_two_items_in_source_order() -> None:
    rows = source(text=["same", "other", "same", "same"], topic=["sky", "sea", "sea", "air"])
    shuffled = rows.take([3, 1, 2, 0])
    found = [item for item in items(dataset(TOPIC), shuffled) if item["row"] != 1]
    assert [(item["row"], item["label"]) for item in found] == [(0, "sky"), (2, "sea"), (3, "air")]
    assert {item["prompt_id"] for item in found} == {prompt_id("same")}


def test_a_drawn_split_depends_on_seed_task_and_text_alone() -> None:
    texts = [f"text {n}" for n in range(2000)]
    rows = source(text=texts, topic=["x"] * len(texts))
    config = dataset({**TOPIC, "test_fraction": 0.3})

    def tests_of(of: DatasetConfig, data: pa.Table, seed: int, shards: int = 1) -> set[int]:
        found = items(of, data, seed=seed, shards=shards)
        assert len(found) == len(texts)
        assert {item["split"] for item in found} == {"train", "test"}
        return {item["prompt_id"] for item in found if item["split"] == "test"}

    drawn = tests_of(config, rows, 1)
    assert 0.27 < len(drawn) / len(texts) < 0.33  # 3 standard deviations
    backwards = source(text=list(reversed(texts)), topic=["x"] * len(texts))
    assert tests_of(config, backwards, 1, shards=3) == drawn
    independent = 0.3 * 0.3 * len(texts)
    assert abs(len(tests_of(config, rows, 2) & drawn) - independent) < 50
    renamed = dataset({**TOPIC, "name": "other", "test_fraction": 0.3})
    assert abs(len(tests_of(renamed, rows, 1) & drawn) - independent) < 50
    assert drawn < tests_of(dataset({**TOPIC, "test_fraction": 0.6}), rows, 1)


def test_retrieval_pairs_queries_with_documents() -> None:
    rows = source(
        text=["text 0", "text 1", None, "text 3"],
        query=["query 0", None, "query 2", "query 3"],
        note=["note 0", "note 1", "note 2", ""],
    )
    for column, places in (("text", [0, 3]), ("note", [0, 2])):
        task = FIND if column == "text" else {**FIND, "document_column": column}
        found = items(dataset(task), rows)
        assert [(item["row"], item["relevance"]) for item in found] == [(n, 1) for n in places]
        pairs = [(item["query_id"], item["candidate_id"]) for item in found]
        assert pairs == [(prompt_id(f"query {n}"), prompt_id(f"{column} {n}")) for n in places]
    config = dataset(FIND)
    for number, group in enumerate(shards_of(config, rows, 4)):
        queries = items_of(group, config.tasks[0])[0]["query_id"].to_pylist()
        assert {query % 4 for query in queries} <= {number}


def test_tasks_do_not_see_each_others_items() -> None:
    rows = source(text=["a", "b"], topic=["x", "y"], query=["q", "r"])
    config = dataset(TOPIC, FIND, GROUPS)
    counts = [len(items(config, rows, shards=3, task=number)) for number in range(3)]
    assert counts == [2, 2, 2]
    assert items(config, rows, task=2)[0]["label"] == "x"


def test_two_texts_with_one_id_are_an_error_that_shows_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "prompt_id", lambda _text: 77)
    with pytest.raises(ValueError, match=r"share the prompt_id 77: 'first' and 'second'"):
        prompts(dataset(), source(text=["first", "second"]))
    assert prompts(dataset(), source(text=["first"] * 2)) == (["first"], {"duplicates": 1})


def test_shards_cover_the_valid_texts_without_overlap() -> None:
    texts = st.one_of(st.none(), st.sampled_from(["", " ", "a", "aa", "\n"]), st.text(max_size=12))

    @given(st.lists(texts, max_size=30), st.integers(1, 9), st.integers(0, 3))
    def check(given_texts: list[str | None], shards: int, min_chars: int) -> None:
        config = dataset(min_chars=min_chars)
        groups = shards_of(config, source(text=given_texts), shards)
        tables = [prompts_of(group, number) for number, group in enumerate(groups)]
        found = [text for table, _, _ in tables for text in table["text"].to_pylist()]
        valid = {t for t in given_texts if t is not None}
        if min_chars:  # 0 keeps blank texts
            valid = {t for t in valid if t.strip() and len(t) >= min_chars}
        assert len(found) == len(set(found))
        assert set(found) == valid
        left_out = sum(sum(facts.values()) for _, _, facts in tables)
        assert len(found) + left_out == len(given_texts)

    check()


def refused_ids(rows: pa.Table) -> list[str]:
    """Return what is wrong with the ids of each shard."""
    config, refused = dataset(id_column="key"), []
    for group in shards_of(config, rows, 5):
        try:
            check_ids(config, group)
        except ConfigError as error:
            refused.append(str(error))
    return refused


def test_ids_that_differ_or_are_not_given_are_fine() -> None:
    texts = [f"text {n}" for n in range(40)]
    assert refused_ids(source(text=texts, key=[f"row-{n}" for n in range(40)])) == []
    assert refused_ids(source(text=texts, key=[None, ""] * 20)) == []
    rows = source(text=["a", "b"], key=["k", "l"])
    assert prompts(dataset(id_column="key"), rows) == (["a", "b"], {})  # an id is no prompt


def test_an_id_of_two_rows_names_both_wherever_they_are() -> None:
    keys = [f"row-{n}" for n in range(40)]
    keys[31] = keys[4]
    rows = source(text=[f"text {n}" for n in range(40)], key=keys)
    places = [n if n < 20 else (1 << schema.ROW_BITS) + n - 20 for n in range(40)]
    second_file = rows.drop_columns("row").append_column("row", pa.array(places, pa.int64()))
    for table, second in (
        (rows, "row 32"),
        (rows.take([*reversed(range(40))]), "row 32"),
        (second_file, "row 12 of source part 2"),
    ):
        expected = f"dataset data, column key: row 5 and {second} have the same id 'row-4'"
        assert refused_ids(table) == [expected]
