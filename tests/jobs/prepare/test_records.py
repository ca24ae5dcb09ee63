"""Records: what becomes a prompt or a task item, in which shard, and what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import DatasetConfig
from layerrank.jobs.prepare import records
from layerrank.jobs.prepare.records import check_ids, items_of, markers, prompts_of, records_of
from layerrank.operators.prompts.seeding import prompt_id
from layerrank.storage import schema

TOPIC = {"name": "topic", "type": "classification", "label_column": "topic"}
GROUPS = {"name": "groups", "type": "clustering", "label_column": "topic"}
FIND = {"name": "find", "type": "retrieval", "query_column": "query"}


def dataset(*tasks: dict[str, Any], **changes: Any) -> DatasetConfig:  # noqa: ANN401
    values = {"name": "data", "source": {"files": "x.csv"}, "tasks": list(tasks), **changes}
    return DatasetConfig.model_validate(values)


def source(**columns: Sequence[str | None]) -> pa.Table:
    """Return source rows as `sources.read` gives them."""
    count = len(next(iter(columns.values())))
    strings = {name: pa.array([*values], pa.large_string()) for name, values in columns.items()}
    return pa.table({**strings, "row": pa.array(range(count), pa.int64())})


def shards_of(config: DatasetConfig, rows: pa.Table, shards: int, seed: int = 0) -> list[pa.Table]:
    """Return the records of each shard, as Ray's groupby brings them together."""
    every = pa.concat_tables([markers(shards), records_of(config, rows, shards, seed, {})])
    numbers = every["shard"].to_numpy()
    return [every.filter(pa.array(numbers == number)) for number in range(shards)]


@pytest.mark.parametrize(
    ("rows", "changes", "shards"),
    [
        (10, {}, 1),  # none of fewer than 50 prompts
        (128, {}, 2),
        (500, {}, 8),
        (5_000, {}, 8),
        (20_000, {}, 10),  # of 2,048
        (5_000, {"fewest_shards": 1}, 3),
        (5_000, {"shard_prompts": 100}, 50),
    ],
)
def test_a_small_corpus_has_shards_for_every_core(
    rows: int, changes: dict[str, int], shards: int
) -> None:
    assert records.shards_of(dataset(**changes), rows) == shards


@pytest.mark.parametrize(
    ("text", "min_chars", "reason"),
    [
        (None, 1, "null"),
        ("", 1, "empty"),
        ("", 0, None),
        (None, 0, "null"),
        (" \t\n\u2003", 1, "whitespace"),
        ("ab", 3, "too_short"),
        ("abc", 3, None),
        (" a ", 3, None),
        ("\0", 1, None),
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


def test_a_drawn_split_depends_on_seed_task_and_text_alone() -> None:
    texts = [f"text {n}" for n in range(2000)]
    rows = source(text=texts, topic=["x"] * len(texts))
    config = dataset({**TOPIC, "test_fraction": 0.3})

    def tests_of(of: DatasetConfig, data: pa.Table, seed: int, shards: int = 1) -> set[int]:
        groups = shards_of(of, data, shards, seed)
        found = [item for group in groups for item in items_of(group, of.tasks[0])[0].to_pylist()]
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


def test_two_texts_with_one_id_are_an_error_that_shows_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "prompt_id", lambda _text: 77)
    with pytest.raises(ValueError, match=r"share the prompt_id 77: 'first' and 'second'"):
        prompts(dataset(), source(text=["first", "second"]))
    assert prompts(dataset(), source(text=["first"] * 2)) == (["first"], {"duplicates": 1})


@given(
    st.lists(
        st.one_of(st.none(), st.sampled_from(["", " ", "a", "aa", "\n"]), st.text(max_size=12)),
        max_size=30,
    ),
    st.integers(1, 9),
    st.integers(0, 3),
)
@example([f"text {n}" for n in range(200)], 7, 1)
@example(["only one"], 5, 1)
def test_shards_hold_what_their_ids_name_and_count_what_is_left_out(
    texts: list[str | None], shards: int, min_chars: int
) -> None:
    config = dataset(TOPIC, GROUPS, min_chars=min_chars)
    groups = shards_of(config, source(text=texts, topic=["x"] * len(texts)), shards)
    reasons = [config.skipped("text", text) for text in texts]
    kept = {n: (prompt_id(t), t) for n, t in enumerate(texts) if t is not None and not reasons[n]}
    expected = Counter(f"skipped_{reason}" for reason in reasons if reason)
    expected["duplicates"] = len(kept) - len(set(kept.values()))
    left_out = Counter[str]()
    for number, group in enumerate(groups):
        assert group.num_rows  # a shard without a prompt is written too
        table, columns, facts = prompts_of(group, number)
        assert columns == schema.PROMPTS
        own = {row: (key, text) for row, (key, text) in kept.items() if key % shards == number}
        rows = [(key, text, number) for key, text in sorted(set(own.values()))]
        assert [tuple(row.values()) for row in table.cast(columns).to_pylist()] == rows
        left_out.update(facts)
        items = items_of(group, config.tasks[0])[0]  # and none of another task
        assert items["row"].to_pylist() == [*own]
        assert items["prompt_id"].to_pylist() == [key for key, _ in own.values()]
    assert len(groups) == shards
    assert +left_out == +expected


def facts_of(task: dict[str, Any], **columns: Sequence[str | None]) -> dict[str, int]:
    """Return what is counted of a task beside its items, over shards and batches of rows."""
    config, rows = dataset(task), source(**columns)
    batches = [records_of(config, rows[n : n + 2], 3, 0, {}) for n in range(0, rows.num_rows, 2)]
    every = pa.concat_tables([markers(3), *batches])
    total = Counter[str]()
    for number in range(3):
        shard = every.filter(pa.array(every["shard"].to_numpy() == number))
        total.update(items_of(shard, config.tasks[0])[2])
    return +total


def test_rows_that_are_no_item_of_a_task_are_counted_and_texts_that_repeat() -> None:
    texts = ["a", "a", "a", "b", None, "c", "c", " ", "d", "e", "e"]
    topics = ["x", "x", "y", "x", "x", None, "y", None, "", "y", None]
    counts = {"no_text": 2, "no_label": 3, "repeated": 1, "contradicted": 1}
    assert facts_of(GROUPS, text=texts, topic=topics) == counts
    parts = ["train", None, *["test"] * 9]
    found = facts_of({**TOPIC, "split_column": "p"}, text=texts, topic=topics, p=parts)
    assert found == {"no_text": 2, "no_label": 4, "contradicted": 1}


def test_pairs_repeat_as_pairs_and_another_split_is_no_loss() -> None:
    alike = {"name": "alike", "type": "sts", "first_column": "one", "second_column": "two"}
    alike |= {"score_column": "score", "split_column": "p"}
    one, two = ["a", "a", "a", "a", "b", "b"], ["x", "y", "x", "x", None, "x"]
    score, p = ["1", "1", "2", "1", "3", ""], ["test"] * 6
    expected = {"no_text": 1, "no_label": 1, "repeated": 1, "contradicted": 1}
    assert facts_of(alike, one=one, two=two, score=score, p=p) == expected
    assert facts_of(alike, one=one, two=two, score=score, p=["train"] * 6) == {
        "no_text": 1,
        "no_label": 1,
    }
    found = facts_of(FIND, query=["q", "q", "q", None], text=["t", "u", "t", "v"])
    assert found == {"no_text": 1, "repeated": 1}


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
