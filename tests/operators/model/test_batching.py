"""Batches and token ids: every prompt once, within the budget, and what is cut is counted."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerrank.operators.model import tokenise as tokenise_module
from layerrank.operators.model.encode import pad, token_budget_batches
from layerrank.operators.model.subject import ModelShape
from layerrank.operators.model.tokenise import Tokenised, token_limit, tokenise
from layerrank.operators.prompts.templates import Template
from tests.support.tiny import tiny_tokenizer


@given(st.lists(st.integers(1, 60), max_size=50), st.integers(1, 200))
def test_batches_hold_every_prompt_once_and_cost_no_more_than_full_ones(
    lengths: list[int], budget: int
) -> None:
    batches = [batch.tolist() for batch in token_budget_batches(lengths, budget)]
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [(lengths[i], i) for i in order] == sorted((lengths[i], i) for i in order)
    for batch in batches:
        padded = len(batch) * max(lengths[index] for index in batch)
        assert padded <= budget or len(batch) == 1
    cut, full = 0, list[list[int]]()
    for end in range(1, len(order) + 1):
        if end == len(order) or (end - cut + 1) * lengths[order[end]] > budget:
            full.append(order[cut:end])
            cut = end

    def cost(cut: list[list[int]]) -> float:
        """A batch is worth a 32nd of the budget."""
        return sum(len(each) * max(lengths[i] for i in each) + budget / 32 for each in cut)

    assert cost(batches) <= cost(full)


def test_many_prompts_are_parted_as_well_and_never_beyond_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(4, 200, 5000).tolist()
    batches = token_budget_batches(lengths, 1024)
    assert sorted(index for batch in batches for index in batch) == list(range(5000))
    padded = [len(batch) * max(lengths[index] for index in batch) for batch in batches]
    assert max(padded) <= 1024
    assert sum(padded) < 1.01 * sum(lengths)


@given(st.lists(st.integers(1, 9), max_size=50), st.integers(1, 60))
def test_batches_without_padding_hold_one_length(lengths: list[int], budget: int) -> None:
    batches = token_budget_batches(lengths, budget, pads=False)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len({lengths[index] for index in batch}) == 1
    for length, count in Counter(lengths).items():
        most = max(budget // length, 1)
        assert sum(lengths[batch[0]] == length for batch in batches) == -(-count // most)


@pytest.mark.parametrize(
    ("features", "on_cpu"), [(32, 4096), (384, 1024), (768, 512), (1024, 384), (4096, 256)]
)
def test_batches_hold_fewer_tokens_the_wider_a_model_is(features: int, on_cpu: int) -> None:
    shape = ModelShape(12, features, 512)
    assert (shape.batch_tokens("cpu"), shape.batch_tokens("cuda")) == (on_cpu, 32_768)


@given(st.lists(st.lists(st.integers(0, 99), max_size=9), min_size=1, max_size=9))
def test_padding_is_on_the_right_and_masked(sequences: list[list[int]]) -> None:
    ids_NT, mask_NT = pad([np.array(ids, dtype=np.int32) for ids in sequences])
    padding = [[0] * (max(map(len, sequences)) - len(ids)) for ids in sequences]
    assert ids_NT.tolist() == [ids + rest for ids, rest in zip(sequences, padding, strict=True)]
    assert mask_NT.tolist() == [
        [1] * len(ids) + rest for ids, rest in zip(sequences, padding, strict=True)
    ]
    assert str(ids_NT.dtype) == str(mask_NT.dtype) == "torch.int64"


def test_only_texts_that_are_cut_count_as_truncated() -> None:
    tokenizer = tiny_tokenizer()
    whole = len(tokenizer("a text about the model")["input_ids"])
    texts = ["a text about the model", "a text about the model and more of it", "a"]
    found = tokenise(tokenizer, texts, whole)
    assert [len(ids) for ids in found.ids] == [whole, whole, 1]
    cut = [tokenise(tokenizer, texts, limit).truncated for limit in (whole - 1, whole, 100)]
    assert cut == [2, 1, 0]
    assert {ids.dtype for ids in found.ids} == {np.dtype(np.int32)}


def of_whole(texts: Sequence[str], most: int, template: Template | None, side: str) -> Tokenised:
    """Return what is read of texts that are tokenised whole."""
    tokenizer = tiny_tokenizer()
    tokenizer.truncation_side = side
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenise_module, "_FEWEST_CHARS", 1 << 30)
        return tokenise(tokenizer, texts, most, template)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("template", [None, Template('the "{text}" means')])
def test_a_long_text_is_read_as_far_as_its_tokens_go_and_gives_those_of_the_whole(
    side: str, template: Template | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = random.Random(0)
    words = [
        "the",
        "layer",
        "of",
        "a",
        "model",
        "text",
        "about",
        "ü",
        "日本",
        "🦜",
        "́",
        "\n",
        "\t",
        "...",
    ]
    texts = [
        " ".join(draws.choices(words, k=20_000)),
        "".join(draws.choices(words, k=20_000)),
        "ab" * 20_000,
        f"{' ' * 9000}{'a text about the layer ' * 2000}",
        f"model {'x' * 30_000}{' text' * 5000}",
        "short",
    ]
    wanted = of_whole(texts, 16, template, side)
    tokenizer = tiny_tokenizer()
    tokenizer.truncation_side = side
    longest, call = [0], type(tokenizer).__call__

    def noted(self: Any, texts: Any, **options: Any) -> Any:  # noqa: ANN401
        longest.append(max(map(len, [texts] if isinstance(texts, str) else texts)))
        return call(self, texts, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", noted)
    found = tokenise(tokenizer, texts, 16, template)
    assert found.cut.tolist() == wanted.cut.tolist()
    assert [each.tolist() for each in found.ids] == [each.tolist() for each in wanted.ids]
    longest[:] = []
    tokenise(tokenizer, texts[:1], 16, template)
    assert max(longest) < len(texts[0]) / 4


def test_a_text_whose_tokens_begin_too_late_ends_there_and_counts_as_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenise_module, "_READ_CHARS", 30_000)
    tokenizer = tiny_tokenizer()
    given = ["x" * 70_000, "x" * 50_000]
    (cut, whole), flags = tokenise(tokenizer, given, 8)
    assert flags.tolist() == [True, True]
    assert len(cut) == len(whole) == 8


def test_ids_are_those_of_the_text_and_of_nothing_there_are_none() -> None:
    tokenizer = tiny_tokenizer()
    texts = ["emoji 🦜", "مرحبا", "nul\0 inside", ""]
    found = tokenise(tokenizer, texts, 100)
    assert [tokenizer.decode(row) for row in found.ids] == texts
    assert (len(found.ids[3]), found.truncated) == (0, 0)
    assert (tokenise(tokenizer, [], 8).ids, tokenise(tokenizer, [], 8).truncated) == ([], 0)


@pytest.mark.parametrize(
    ("wanted", "of_tokenizer", "of_model", "expected"),
    [(64, 128, 256, 64), (512, 128, 256, 128), (512, int(1e30), 256, 256), (512, 999, None, 512)],
)
def test_the_token_limit_is_the_least_of_three(
    wanted: int, of_tokenizer: int, of_model: int | None, expected: int
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = of_tokenizer
    assert token_limit(tokenizer, ModelShape(3, 32, of_model), wanted) == expected
