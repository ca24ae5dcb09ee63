"""Two modes of some values, effect sizes, and traits of prompts: the operators alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from layerrank.operators.analysis.modes import (
    CLIFFS_DELTA,
    CRAMERS_V,
    FEWEST,
    NO_VALUE,
    NOTHING,
    ONE_KIND,
    cliffs_delta,
    cramers_v,
    excess_mass,
    find_modes,
    histogram,
    holm,
    middle,
    nearest,
    repeated_share,
    separations,
    unknown_word_shares,
)

Array = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Array]
UNIMODAL: dict[str, Draw] = {
    "uniform": lambda g, n: g.random(n),
    "normal": lambda g, n: g.standard_normal(n),
    "exponential": lambda g, n: g.standard_exponential(n),
}


def _two(n: int, share: float = 0.5, apart: float = 8.0, seed: int = 0) -> Array:
    """Return two normal groups, `share` of the values in the lower one, 0 between them."""
    g = np.random.default_rng(seed)
    return np.where(g.random(n) < share, -apart / 2, apart / 2) + g.standard_normal(n)


@pytest.mark.parametrize("kind", UNIMODAL)
@pytest.mark.parametrize("n", [40, 200])
def test_one_mode_is_rejected_no_more_often_than_the_level_says(kind: str, n: int) -> None:
    g = np.random.default_rng(1)
    p = np.array([find_modes(UNIMODAL[kind](g, n)).p_value for _ in range(300)])
    for level in (0.01, 0.05, 0.2):
        assert (p <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / len(p))
    if kind == "uniform":  # the test is exact there, not only careful
        assert (p <= 0.2).mean() >= 0.2 - 3 * np.sqrt(0.2 * 0.8 / len(p))


@pytest.mark.parametrize("n", [10, 17, 100, 1000])
@pytest.mark.parametrize("kind", [*UNIMODAL, "two", "tied"])
def test_the_dip_is_half_of_the_excess_mass(kind: str, n: int) -> None:
    """Two algorithms that share nothing: the package's dip, and ranges of largest excess mass."""
    draws: dict[str, Draw] = {
        **UNIMODAL,
        "two": lambda _, n: _two(n),
        "tied": lambda g, n: g.integers(0, 9, n) / 8,
    }
    values = np.sort(draws[kind](np.random.default_rng(n), n))
    mass, low, high, peaks = excess_mass(values)
    assert mass / 2 == pytest.approx(find_modes(values).dip, abs=1e-12)
    assert peaks >= 2
    assert values[0] <= low[0] <= low[1] < high[0] <= high[1] <= values[-1]


def test_two_points_have_the_largest_dip() -> None:
    modes = find_modes(np.repeat([1.0, 3.0], 20))
    assert modes.dip == pytest.approx(0.25)
    assert (modes.low, modes.high, modes.split) == ((1.0, 1.0), (3.0, 3.0), 2.0)
    assert modes.p_value == 1e-5  # where the table ends


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
def test_groups_of_any_size_are_told_apart(share: float) -> None:
    values = _two(4000, share)
    modes = find_modes(values)
    assert modes.p_value <= 1e-4
    assert (values < modes.split).mean() == pytest.approx((values < 0).mean(), abs=0.003)
    assert middle(values, modes.low) == pytest.approx(-4, abs=0.15)
    assert middle(values, modes.high) == pytest.approx(4, abs=0.15)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_peaks_that_stand_out_are_counted(count: int) -> None:
    """Equal normal groups in a row, and a comb of points, one tooth per whole number."""
    g = np.random.default_rng(0)
    at = g.permutation(np.arange(3000) % count)
    assert find_modes(8 * at + g.standard_normal(3000)).peaks == count
    assert find_modes(at.astype(float)).peaks == count


def test_far_values_are_no_group() -> None:
    values = _two(1000)
    modes = find_modes(np.append(values, [1e3, -1e6]))
    plain = find_modes(values)
    assert modes.split == pytest.approx(plain.split, abs=0.05)
    assert modes.dip == pytest.approx(plain.dip, abs=0.003)


@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 5.0), (250.0, -7.0), (-2.0, 1.0)])
def test_modes_follow_the_scale_and_not_the_order(scale: float, shift: float) -> None:
    values = _two(300, 0.4)
    plain = find_modes(values)
    moved = find_modes(np.random.default_rng(3).permutation(scale * values + shift))
    assert moved.dip == pytest.approx(plain.dip, abs=1e-9)
    assert moved.p_value == pytest.approx(plain.p_value, abs=1e-9)
    ends = np.array([*plain.low, *plain.high]) * scale + shift
    np.testing.assert_allclose([*moved.low, *moved.high], np.sort(ends), rtol=1e-9)
    assert moved.split == pytest.approx(scale * plain.split + shift)


@pytest.mark.parametrize("values", [[], [1.0], np.arange(FEWEST - 1.0), np.full(50, 2.5)])
def test_nothing_to_test_has_no_value(values: list[float]) -> None:
    found = find_modes(np.array(values))
    assert found is NOTHING
    assert np.isnan([found.dip, found.p_value, found.split]).all()
    assert np.isfinite(find_modes(np.arange(float(FEWEST))).dip)


def test_a_histogram_holds_every_value() -> None:
    for n in (1, 16, 1000, 50_000):
        values = np.random.default_rng(n).standard_normal(n)
        edges, counts = histogram(values)
        assert 8 <= len(counts) <= 40
        assert len(edges) == len(counts) + 1
        assert counts.sum() == n
        if n > 1:
            assert (edges[0], edges[-1]) == (values.min(), values.max())
    assert [len(each) for each in histogram(np.empty(0))] == [0, 0]


def test_the_nearest_values_come_in_order_and_ties_by_id() -> None:
    values, ids = np.array([5.0, 1.0, 2.0, 4.0, 2.0]), np.array([1, 2, 9, 4, 3])
    assert nearest(values, ids, 2.0, 3).tolist() == [4, 2, 1]
    assert nearest(values, ids, 2.0, 99).tolist() == [4, 2, 1, 3, 0]


def test_cliffs_delta_is_the_share_of_pairs() -> None:
    g = np.random.default_rng(0)
    low, high = g.integers(0, 6, 40).astype(float), g.integers(2, 8, 25).astype(float)
    three, four = np.array([1.0, 2, 3]), np.array([4.0, 5])
    for a, b in ((low, high), (high, low), (three, four), (four, three), (three, three)):
        signs = np.sign(b[None, :] - a[:, None])
        assert cliffs_delta(a, b) == pytest.approx(signs.mean(), abs=1e-12)
        assert cliffs_delta(np.exp(a), np.exp(b)) == pytest.approx(signs.mean(), abs=1e-12)
    assert (cliffs_delta(three, four), cliffs_delta(four, three)) == (1, -1)
    assert cliffs_delta(np.zeros(4), np.zeros(7)) == 0
    assert np.isnan(cliffs_delta(np.empty(0), four))


def test_cramers_v_of_tables_that_are_known() -> None:
    is_high = np.repeat([False, True], 10)
    assert cramers_v(is_high, ["a"] * 10 + ["b"] * 10) == pytest.approx(1)
    assert cramers_v(is_high, ["a", "b"] * 10) == 0
    assert np.isnan(cramers_v(is_high, ["a"] * 20))
    assert np.isnan(cramers_v(np.zeros(20, bool), ["a", "b"] * 10))
    assert np.isnan(cramers_v(is_high, [str(n) for n in range(20)]))


def test_cramers_v_of_unrelated_names_is_about_0_however_many_there_are() -> None:
    g = np.random.default_rng(0)
    names = [str(each) for each in g.integers(0, 20, 400)]
    is_high = g.random(400) < 0.3
    assert cramers_v(is_high, names) < 0.1
    order = g.permutation(400)
    shuffled = cramers_v(is_high[order], [names[at] for at in order])
    assert shuffled == pytest.approx(cramers_v(is_high, names), abs=1e-12)


def test_separations_leave_out_what_has_no_value() -> None:
    is_high = np.array([False, False, True, True, True])
    nan = float("nan")
    numbers = {"length": np.array([1.0, 3, 7, nan, 9]), "unknown": np.array([nan, nan, 1, 1, 1])}
    length, unknown, dataset = separations(is_high, numbers, {"dataset": ["a"] * 5})
    assert (length.measure, length.effect, length.n_prompts) == (CLIFFS_DELTA, 1.0, 4)
    assert (length.low, length.high, length.reason) == (2.0, 8.0, None)
    assert np.isnan([unknown.effect, unknown.low]).all()
    assert (unknown.reason, unknown.high, unknown.n_prompts) == (NO_VALUE, 1.0, 3)
    assert np.isnan(dataset.effect)
    assert (dataset.measure, dataset.reason) == (CRAMERS_V, ONE_KIND)


def test_repeated_tokens_are_those_that_were_there_before() -> None:
    assert repeated_share(np.array([7], np.int32)) == 0
    assert repeated_share(np.array([1, 2, 3, 4], np.int32)) == 0
    assert repeated_share(np.array([5, 5, 5, 5], np.int32)) == 0.75
    assert repeated_share(np.array([1, 2, 1, 2, 3], np.int32)) == pytest.approx(0.4)


def test_unknown_words_are_those_that_are_no_single_token() -> None:
    words = ["[UNK]", "sea", "salt", "##y", "un", "##salt", "."]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    loaded = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    texts = ["sea, salt. Sea", "salty sea", "unsalt", "sea sea sea oven", "42 .", ""]
    found = unknown_word_shares(loaded, texts)
    np.testing.assert_allclose(found, [1 / 3, 1 / 2, 1, 1 / 4, np.nan, np.nan])
    alone = [unknown_word_shares(loaded, [text])[0] for text in texts]
    np.testing.assert_array_equal(alone, found)


def test_a_word_with_its_blank_in_the_token_is_known() -> None:
    """Byte-level tokenizers write the blank into the token, but not at the start of a text."""
    from tests.support.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    single = [word for word in ("layer", "model") if len(tokenizer(f" {word}").input_ids) == 1]
    assert single
    assert unknown_word_shares(tokenizer, [f"{single[0]} {single[0]}"]).tolist() == [0]
    assert unknown_word_shares(tokenizer, ["harbour"]).tolist() == [1]


def test_holm_by_hand() -> None:
    # Sorted 0.005 0.01 0.03 0.04 times 4 3 2 1, then never falling; the NaN is no test.
    corrected = holm(np.array([0.01, 0.04, np.nan, 0.03, 0.005]))
    assert corrected == pytest.approx([0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True)
    assert holm(np.array([0.9, 0.6])) == pytest.approx([1, 1])
    assert holm(np.array([np.nan])) == pytest.approx([np.nan], nan_ok=True)
