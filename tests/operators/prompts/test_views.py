"""Seeds and views: pinned values, what each edit may do, and properties over any text."""

import math
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerrank.operators.prompts import seeding, views
from layerrank.operators.prompts.conditions import condition_text
from layerrank.operators.prompts.views import ViewProbabilities, augment, view_name

PLAIN = "The quick brown fox jumps over the lazy dog, and Ünïcode stays."
KEYBOARD = ViewProbabilities(keyboard=1, random_char=0, split=0)
RANDOM_CHAR = ViewProbabilities(keyboard=0, random_char=1, split=0)
SPLIT = ViewProbabilities(keyboard=0, random_char=0, split=1)
NOTHING = ViewProbabilities(keyboard=0, random_char=0, split=0)
USUAL = ViewProbabilities(keyboard=0.1, random_char=0.1, split=0.1)

texts = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["", " ", "\x00", "a", "é", "👩‍👩‍👧", "שלום עולם", "aa aa", "\t\n\u3000", "e\u0301"]
    ),
)


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_prompt_id_is_pinned_signed_and_of_the_exact_text() -> None:
    # The 8-byte blake2b of no bytes begins e4a6a0577479b2b4.
    assert seeding.prompt_id("") == -0x4B4D868BA85F591C
    ids = [seeding.prompt_id(str(n)) for n in range(200)]
    assert min(ids) < 0 < max(ids)
    assert all(-(2**63) <= one < 2**63 for one in ids)
    alike = ["a", "a ", "é", unicodedata.normalize("NFD", "é")]
    assert len(set(map(seeding.prompt_id, alike))) == 4


def test_a_generator_depends_on_each_argument_and_nothing_else() -> None:
    asked = [(1, -2, "view-00"), (2, -2, "view-00"), (1, -3, "view-00"), (1, -2, "view-01")]
    first, again = (
        [tuple(seeding.generator(*each).random(4).tolist()) for each in asked] for _ in range(2)
    )
    assert first == again
    assert len(set(first)) == 4


def test_sample_order_is_a_permutation_that_follows_the_ids() -> None:
    ids = draws().integers(-(2**63), 2**63, size=500, dtype=np.int64)
    order = seeding.sample_order(3, ids)
    assert sorted(order.tolist()) == list(range(500))
    shuffle = draws(1).permutation(500)
    assert ids[shuffle][seeding.sample_order(3, ids[shuffle])].tolist() == ids[order].tolist()
    assert ids[seeding.sample_order(4, ids)].tolist() != ids[order].tolist()


def test_the_sample_of_a_part_is_what_the_sample_of_the_whole_keeps_of_it() -> None:
    ids = np.arange(-50, 50, dtype=np.int64)
    whole = ids[seeding.sample_order(0, ids)]
    part = ids[::3]
    assert part[seeding.sample_order(0, part)].tolist() == [
        one for one in whole.tolist() if one in set(part.tolist())
    ]


def test_consecutive_ids_are_sampled_evenly() -> None:
    ids = np.arange(20_000, dtype=np.int64)
    sample = seeding.sample_order(7, ids)[:2_000]
    # A tenth of 20,000: mean 9,999.5 with a standard error of 122; 200 per twentieth, give or take.
    assert abs(sample.mean() - 9_999.5) < 4 * 122
    counts = np.bincount(sample // 1_000, minlength=20)
    assert counts.min() > 45
    assert counts.max() < 160


def test_a_view_is_pinned_and_names_sort_as_numbers() -> None:
    view = condition_text(PLAIN, view_name(3), 0, USUAL)
    assert view == "The quick brown fox jumps evsr the lazy dog, and Üqïcode stays."
    names = [view_name(i) for i in range(16)]
    assert (names[0], names[15], names) == ("view-00", "view-15", sorted(names))


def test_a_view_depends_on_seed_view_and_text_alone() -> None:
    text = PLAIN * 5
    first = condition_text(text, "view-00", 0, USUAL)
    assert condition_text(text, "view-00", 0, USUAL) == first
    generator = seeding.generator(0, seeding.prompt_id(text), "view-00")
    assert augment(text, USUAL, generator) == first
    views = {
        condition_text(text, view_name(i), seed, USUAL) for i in range(16) for seed in range(2)
    }
    assert len(views | {text}) == 33


@given(text=texts, seed=st.integers(0, 50))
@settings(deadline=None)
def test_no_probability_no_change(text: str, seed: int) -> None:
    assert augment(text, NOTHING, draws(seed)) == text


@given(
    text=texts, seed=st.integers(0, 50), rates=st.tuples(*[st.sampled_from([0.0, 0.3, 1.0])] * 3)
)
@settings(deadline=None, max_examples=300)
def test_a_view_is_never_empty_and_keeps_the_spaces(
    text: str, seed: int, rates: tuple[float, float, float]
) -> None:
    view = augment(text, ViewProbabilities(*rates), draws(seed))
    assert bool(view.strip()) == bool(text.strip())
    unsplit = augment(text, ViewProbabilities(rates[0], rates[1], 0), draws(seed))
    assert re.findall(r"\s+", unsplit) == re.findall(r"\s+", text)


@given(text=texts, seed=st.integers(0, 50))
@settings(deadline=None)
def test_keyboard_changes_one_letter_of_each_word(text: str, seed: int) -> None:
    view = augment(text, KEYBOARD, draws(seed))
    assert len(view) == len(text)
    for word in re.finditer(r"\S+", text):
        typed = view[word.start() : word.end()]
        changed = [(a, b) for a, b in zip(word.group(), typed, strict=True) if a != b]
        assert len(changed) == int(bool(re.search("[a-zA-Z\u212a]", word.group())))
        assert all(a.isupper() == b.isupper() and b.isascii() for a, b in changed)


def test_keyboard_presses_keys_that_touch() -> None:
    typed = {letter: set() for letter in "qgm"}  # type: dict[str, set[str]]
    for seed in range(100):
        for letter, keys in typed.items():
            keys.add(augment(letter, KEYBOARD, draws(seed)))
    assert typed == {"q": set("wa"), "g": set("tyfhvb"), "m": set("njk")}
    assert augment("Q", KEYBOARD, draws()) in ("W", "A")


def test_random_char_makes_the_four_edits_equally_often() -> None:
    n = 4_000
    words = augment(" ".join(["abcd"] * n), RANDOM_CHAR, draws()).split(" ")
    assert len(words) == n
    assert "abcd" not in words
    swaps = sum(sorted(word) == list("abcd") for word in words)
    by_length = [sum(len(word) == length for word in words) for length in (3, 5, 4)]
    counts = [by_length[0], by_length[1], swaps, by_length[2] - swaps]
    spread = 4 * math.sqrt(n * 0.25 * 0.75)
    assert all(abs(count - n / 4) < spread for count in counts)


def test_random_char_reaches_every_place() -> None:
    views = {augment("abc", RANDOM_CHAR, draws(seed)) for seed in range(2_000)}
    assert {"bc", "ac", "ab", "bac", "acb"} <= views
    inserted = {view.translate({97: 46, 98: 46, 99: 46}) for view in views if len(view) == 4}
    assert {re.sub("[a-z]", "x", view) for view in inserted} >= {"x...", ".x..", "..x.", "...x"}


@pytest.mark.parametrize("word", ["a", "aaa", "😀", "\x00", "\u0301"])
def test_random_char_always_changes_a_word(word: str) -> None:
    views = [augment(word, RANDOM_CHAR, draws(seed)) for seed in range(200)]
    assert all(view and view != word for view in views)


def test_split_cuts_words_of_four_characters_or_more_anywhere_inside() -> None:
    assert augment("a of the", SPLIT, draws()) == "a of the"
    views = {augment("word", SPLIT, draws(seed)) for seed in range(100)}
    assert views == {"w ord", "wo rd", "wor d"}
    assert augment(PLAIN, SPLIT, draws()).replace(" ", "") == PLAIN.replace(" ", "")


def test_each_edit_reaches_its_share_of_the_words() -> None:
    n, rate = 5_000, 0.2
    text = " ".join(["wordy"] * n)
    spread = 4 * math.sqrt(n * rate * (1 - rate))
    for rates in ((rate, 0, 0), (0, rate, 0)):
        words = augment(text, ViewProbabilities(*rates), draws()).split(" ")
        assert abs(sum(word != "wordy" for word in words) - n * rate) < spread
    cut = augment(text, ViewProbabilities(0, 0, rate), draws())
    assert abs(cut.count(" ") - text.count(" ") - n * rate) < spread


def test_a_higher_probability_edits_the_same_words_and_more() -> None:
    words = (PLAIN * 20).split()
    low, high = (
        augment(" ".join(words), ViewProbabilities(rate, 0, 0), draws()).split()
        for rate in (0.1, 0.5)
    )
    edited = [at for at, word in enumerate(words) if low[at] != word]
    assert 0 < len(edited) < sum(a != b for a, b in zip(words, high, strict=True))
    assert all(low[at] == high[at] for at in edited)


def test_a_text_is_drawn_for_in_pieces_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(f"word{n}\tof text" for n in range(200))
    found = []
    for at_once in (7, 1 << 16):
        monkeypatch.setattr(views, "_WORDS", at_once)
        found.append(augment(text, ViewProbabilities(0.3, 0.3, 0.3), np.random.default_rng(3)))
    assert found[0] == found[1] != text
