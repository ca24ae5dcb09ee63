"""Conditions: what happens to tokens, that levels are nested, and what a config may ask for."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.run import load
from layerrank.jobs.config.settings import ConditionsConfig, StorageConfig
from layerrank.jobs.subjects import require_lengths
from layerrank.operators.model import tokenise
from layerrank.operators.model.subject import ModelShape, Subject
from layerrank.operators.prompts.conditions import (
    FAMILIES,
    Condition,
    Ids,
    Vocabulary,
    condition_text,
    condition_tokens,
    graded,
)
from layerrank.operators.prompts.views import ViewProbabilities
from tests.support.tiny import tiny_tokenizer

USUAL = ViewProbabilities(0.1, 0.1, 0.1)
CLS, SEP, MASK = 0, 1, 2
VOCABULARY = Vocabulary(
    ordinary=np.arange(10, 110, dtype=np.int32),
    special=np.array([CLS, SEP, MASK], np.int32),
    leading=np.array([CLS], np.int32),
    trailing=np.array([SEP], np.int32),
)
PROMPT = np.array([CLS, *range(20, 60), MASK, *range(60, 100), SEP], np.int32)
PLACES = np.isin(PROMPT, VOCABULARY.special)
ORDINARY = int((~PLACES).sum())


def under(name: str, prompt_id: int = 7, seed: int = 0, ids: Ids = PROMPT) -> Ids:
    return condition_tokens(ids, prompt_id, name, seed, VOCABULARY)


@pytest.mark.parametrize(
    ("condition", "name", "place"),
    [
        (Condition("random", 0.3), "random-0.30", 0.3),
        (Condition("repeat", 1.0), "repeat-1.00", 1.0),
        (Condition("noise", 0.05), "noise-0.05", 0.05),
        (Condition("truncate", 0.5), "truncate-0.50", 0.5),
        (Condition("length", 128), "length-128", 7.0),
    ],
)
def test_a_condition_is_named_by_family_and_level(
    condition: Condition, name: str, place: float
) -> None:
    assert condition.name == name
    assert graded(name) == condition
    assert condition.place == place


def test_the_level_that_changes_nothing_is_the_clean_pass() -> None:
    levels = {name: family.clean for name, family in FAMILIES.items()}
    names = [Condition(name, each).name for name, each in levels.items() if each is not None]
    assert names == ["clean"] * (len(FAMILIES) - 1)
    assert graded("clean") is graded("view-03") is None
    with pytest.raises(ValueError, match=r"unknown condition 'shuffle-0.30'; families: random, "):
        graded("shuffle-0.30")


def test_what_acts_on_the_text_leaves_tokens_alone_and_the_other_way_round() -> None:
    for name in ("clean", "view-00", "noise-0.50"):
        np.testing.assert_array_equal(under(name), PROMPT)
    text = "the layer of a model"
    for name in ("clean", "random-0.50", "length-16", "truncate-0.50"):
        assert condition_text(text, name, 0, USUAL) == text


def test_texts_are_typed_by_level() -> None:
    text = "the quick brown fox jumps over the lazy dog, and then it sleeps for a while"
    low, high = (condition_text(text, name, 3, USUAL) for name in ("noise-0.10", "noise-0.90"))
    assert text != low != high != text


@pytest.mark.parametrize("name", ["random-0.40", "repeat-0.40"])
def test_special_tokens_stay_and_are_never_drawn(name: str) -> None:
    for prompt_id in range(50):
        found = under(name, prompt_id)
        np.testing.assert_array_equal(np.isin(found, VOCABULARY.special), PLACES)
        np.testing.assert_array_equal(found[PLACES], PROMPT[PLACES])
    alone = np.array([CLS, SEP], np.int32)
    np.testing.assert_array_equal(under(name, ids=alone), alone)


@pytest.mark.parametrize("family", ["random", "repeat"])
def test_a_higher_probability_replaces_the_same_positions_and_more(family: str) -> None:
    levels = [under(f"{family}-{p:.2f}") for p in (0.1, 0.3, 0.6, 0.9, 1.0)]
    for low, high in pairwise(levels):
        changed = low != PROMPT
        assert changed.sum() < (high != PROMPT).sum()
        np.testing.assert_array_equal(high[changed], low[changed])


@pytest.mark.parametrize("family", ["random", "repeat"])
def test_a_probability_is_a_share_in_expectation(family: str) -> None:
    found = np.concatenate([under(f"{family}-0.30", each)[~PLACES] for each in range(400)])
    changed = np.mean(found != np.tile(PROMPT[~PLACES], 400))
    # A token that replaces itself is no change: 1 of 100 drawn ones, or 1 of the prompt's own.
    expected = 0.3 * (1 - (1 / 100 if family == "random" else 1 / ORDINARY))
    assert changed == pytest.approx(expected, abs=5 * np.sqrt(0.21 / len(found)))


def assert_uniform(found: npt.ArrayLike, expected_ids: Ids) -> None:
    """All of them, equally often: within 5 standard deviations of chi-squared."""
    ids, counts = np.unique(found, return_counts=True)
    np.testing.assert_array_equal(ids, expected_ids)
    mean, freedom = counts.mean(), len(ids) - 1
    assert ((counts - mean) ** 2 / mean).sum() < freedom + 5 * np.sqrt(2 * freedom)


def test_random_tokens_are_uniform_over_the_vocabulary() -> None:
    found = np.concatenate([under("random-1.00", each)[~PLACES] for each in range(500)])
    assert_uniform(found, VOCABULARY.ordinary)


def test_repetition_is_of_one_token_of_the_prompt_and_each_is_as_likely() -> None:
    repeated = [np.unique(under("repeat-1.00", each)[~PLACES]) for each in range(2000)]
    assert {len(each) for each in repeated} == {1}
    assert_uniform(repeated, PROMPT[~PLACES])


@pytest.mark.parametrize(("share", "kept"), [(0.01, 1), (0.1, 8), (0.5, 40), (0.99, 79)])
def test_truncation_keeps_the_first_share_and_the_special_tokens(share: float, kept: int) -> None:
    found = under(f"truncate-{share:.2f}")
    ordinary = found[~np.isin(found, VOCABULARY.special)]
    np.testing.assert_array_equal(ordinary, PROMPT[~PLACES][:kept])
    np.testing.assert_array_equal(found[np.isin(found, VOCABULARY.special)], [CLS, MASK, SEP])
    assert len(under(f"truncate-{share:.2f}", ids=np.array([CLS, 20, SEP], np.int32))) == 3


def test_a_length_counts_the_special_tokens_and_a_longer_prompt_begins_with_a_shorter() -> None:
    short, long = under("length-16"), under("length-64")
    assert (len(short), len(long)) == (16, 64)
    assert (short[0], short[-1], long[0], long[-1]) == (CLS, SEP, CLS, SEP)
    np.testing.assert_array_equal(short[:-1], long[:15])
    assert np.isin(long[1:-1], VOCABULARY.ordinary).all()
    assert len(under("length-3")) == VOCABULARY.shortest == 3


@pytest.mark.parametrize("name", ["random-0.50", "repeat-0.50", "truncate-0.50", "length-8"])
def test_a_prompt_without_tokens_stays_without(name: str) -> None:
    assert len(under(name, ids=np.array([], np.int32))) == 0


@pytest.mark.parametrize("name", ["random-0.50", "repeat-0.50", "length-40"])
def test_draws_depend_on_seed_and_prompt_and_on_nothing_else(name: str) -> None:
    first = [under(name, each).tolist() for each in (3, 1, 2)]
    again = [under(name, each).tolist() for each in (1, 2, 3)]
    assert first == [again[2], again[0], again[1]]
    assert len({tuple(each) for each in [*first, under(name, 3, seed=1).tolist()]}) == 4
    families = {tuple(under(each, 3)) for each in ("random-0.50", "repeat-0.50")}
    assert len(families) == 2


def test_a_prompt_that_is_cut_keeps_its_draws() -> None:
    @given(st.integers(1, len(PROMPT)), st.sampled_from(["random-0.40", "repeat-0.00"]))
    def check(length: int, name: str) -> None:
        np.testing.assert_array_equal(under(name, ids=PROMPT[:length]), under(name)[:length])

    check()


def framing_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that puts tokens around a text, and has others that are special."""
    words = {"[CLS]": 0, "[SEP]": 1, "[PAD]": 2, "[UNK]": 3, "layer": 4, "model": 5, "more": 6}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    special = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("cls", "sep", "pad", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special)


def test_the_vocabulary_of_a_tokenizer_tells_text_from_what_frames_it() -> None:
    framed = tokenise.vocabulary_of(framing_tokenizer(), ModelShape(3, 8, None, 6))
    assert framed.ordinary.tolist() == [4, 5]  # the model has no vector for 6
    assert framed.special.tolist() == [0, 1, 2, 3]
    assert (framed.leading.tolist(), framed.trailing.tolist()) == ([0], [1])
    plain = tokenise.vocabulary_of(tiny_tokenizer(), ModelShape(3, 8, None))
    assert len(plain.ordinary) == len(tiny_tokenizer())
    assert plain.shortest == 1


def test_a_run_has_one_pass_per_level_and_the_clean_one_for_those_that_change_nothing() -> None:
    config = ConditionsConfig(random=(0.5, 0, 0.1), truncate=(1, 0.5), length=(64, 8), noise=(0,))
    passes = "random-0.10 random-0.50 truncate-0.50 length-8 length-64"
    assert [each.name for each in config.passes()] == passes.split()
    families = {name: [each.name for each in same] for name, same in config.families().items()}
    assert families == {
        "random": ["clean", "random-0.10", "random-0.50"],
        "truncate": ["truncate-0.50", "clean"],
        "length": ["length-8", "length-64"],
    }
    assert ConditionsConfig().passes() == []


def test_lengths_fit_the_model_and_what_its_tokenizer_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenise, "load_tokenizer", lambda _: framing_tokenizer())
    subject = Subject("some/model", "main", "model")
    for lengths, most, words in [
        ((16, 48), 32, "conditions.length is 48, but model model at main allows 32 tokens"),
        ((16, 100), None, "conditions.length is 100, but model model at main allows 64 tokens"),
        ((2, 16), 32, "conditions.length is 2, but model model at main needs at least 3 tokens"),
    ]:
        shape = ModelShape(3, 8, most)
        monkeypatch.setattr("layerrank.jobs.subjects.read_shape", lambda _, shape=shape: shape)
        with pytest.raises(ConfigError, match=words):
            require_lengths(ConditionsConfig(length=lengths), subject, StorageConfig())
    monkeypatch.setattr("layerrank.jobs.subjects.read_shape", lambda _: ModelShape(3, 8, 64))
    require_lengths(ConditionsConfig(length=(3, 64)), subject, StorageConfig())


def test_the_recipe_has_the_grids_of_the_paper() -> None:
    config = load("perturbations").conditions
    tenths = tuple(number / 10 for number in range(10))
    assert config.random == config.repeat == tenths
    assert config.length == (64, 128, 256, 512, 1024)
    assert config.truncate[-1] == 1
