"""Closed forms and invariances of spectra and of the metrics of tokens."""

import itertools
import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from layerrank.operators.metrics import SpectrumMethod
from layerrank.operators.metrics import rows as rows_module
from layerrank.operators.metrics.registry import METRICS, Parameters, Tokens, of_kind, token_metrics
from layerrank.operators.metrics.rows import Kernel, length_chunks, prepare_rows, unit_grams
from layerrank.operators.metrics.spectrum import (
    gram_entropies,
    matrix_entropy,
    normalize_entropy,
    psd_spectrum,
    small_gram,
)
from layerrank.operators.metrics.tokens import (
    curvatures,
    first_token_shares,
    largest_coordinates,
    mean_norms,
)
from tests.support.whole import (
    ALPHAS,
    curvature,
    dataset_entropy,
    draw,
    few,
    float64,
    of_prompts,
    prompt_entropy,
    rotation,
    same,
    seeds,
    shuffled,
    small_sizes,
    whole,
)

EVERYTHING = Parameters(alphas=tuple(ALPHAS))
TOKEN_METRICS = of_kind(METRICS, Tokens)
Values = dict[tuple[str, str], Tensor]
NORMS: tuple[Kernel, ...] = (
    lambda tokens, mask: mean_norms(tokens, mask)[""],
    lambda tokens, mask: largest_coordinates(tokens, mask)[""],
    first_token_shares,
)
many = settings(max_examples=80, deadline=None)


def gram_spectrum(rows_ND: Tensor) -> Tensor:
    return psd_spectrum(small_gram(rows_ND))


# --- spectrum and matrix entropy


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6), (2, 3, 8, 5)])
def test_the_spectrum_is_of_squared_singular_values(shape: tuple[int, ...]) -> None:
    rows_ND = draw(*shape)
    assert same(gram_spectrum(rows_ND), torch.linalg.svdvals(rows_ND).flip(-1) ** 2)
    assert gram_spectrum(rows_ND.to(torch.float32)).dtype == torch.float64


def test_non_finite_rows_mark_only_their_own_matrix() -> None:
    rows_ND = draw(3, 4, 5)
    expected = gram_spectrum(rows_ND)
    rows_ND[1, 2, 3] = math.inf
    expected[1] = math.nan
    assert same(gram_spectrum(rows_ND), expected)


@pytest.mark.parametrize("alpha", [0.0, *ALPHAS, 50.0])
def test_equal_eigenvalues_give_log_of_their_count(alpha: float) -> None:
    spectrum = torch.tensor([[0.0, 3.0, 3.0, 3.0], [7.0, 7.0, 7.0, 7.0], [0.0, 0.0, 0.0, 1.0]])
    assert same(matrix_entropy(spectrum, alpha), float64([3.0, 4.0, 1.0]).log())


@few
@given(dim=small_sizes, seed=seeds, alpha=st.sampled_from([0.0, *ALPHAS]))
def test_single_direction_is_zero_and_not_below(dim: int, seed: int, alpha: float) -> None:
    rows_ND = draw(3, 1, seed=seed) @ draw(1, dim, seed=seed + 1)
    for gram_KK in (rows_ND @ rows_ND.T, torch.ones(2, 2)):
        (value,) = gram_entropies(gram_KK, [alpha])
        assert float(value) == pytest.approx(0, abs=1e-14)
        assert math.copysign(1, float(value)) == 1


@pytest.mark.parametrize("alpha", [-1.0, math.inf, math.nan])
def test_unusable_order_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="finite and at least 0"):
        matrix_entropy(torch.ones(3), alpha)


# --- prompt and dataset entropy


def test_entropy_ignores_a_common_offset_and_how_far_each_token_lies_from_the_mean() -> None:
    half_TD = draw(4, 6)
    stretched_TD = half_TD * torch.logspace(-3, 3, 4)[:, None]
    plain_TD, far_TD = (torch.cat([each, -each]) for each in (half_TD, stretched_TD))
    for other_TD in (plain_TD + 1e6, far_TD):
        assert same(prompt_entropy(*whole(other_TD)), prompt_entropy(*whole(plain_TD)), 1e-8)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_undefined_entropy_is_nan(alpha: float) -> None:
    hidden_NTD = draw(7, 5, 4)
    hidden_NTD[1] = torch.tensor([0.1, 0.2, 0.3, 0.7])
    hidden_NTD[2] = 0
    hidden_NTD[3, 2, 1] = math.nan
    hidden_NTD[4, 2, 1] = -math.inf
    lengths_N = torch.tensor([1, 5, 5, 5, 5, 0, 5])
    assert prompt_entropy(hidden_NTD, lengths_N, alpha).isnan().tolist() == [True] * 6 + [False]
    assert dataset_entropy(hidden_NTD[0, :1], alpha).isnan()
    assert dataset_entropy(hidden_NTD[1], alpha).isnan()


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("tokens", [3, 40])
def test_both_variants_from_one_product_are_as_exact_as_each_alone(
    tokens: int, scale: float
) -> None:
    """Whatever the first token is: massive, and so far away that another lies at the mean."""
    tokens_TD = draw(tokens, 50)
    tokens_TD[0] = scale * draw(50, seed=1)
    near_TD = tokens_TD.clone()
    near_TD[-1] = tokens_TD[:-1].mean(dim=0) * (1 + 1e-4)
    for each_TD in (tokens_TD, near_TD):
        tokens_1TD, mask_1T = whole(each_TD)[0], torch.ones(1, tokens, dtype=torch.bool)
        got = unit_grams(tokens_1TD, mask_1T, without_first=True)
        for gram_1TT, cut in zip(got, (0, 1), strict=True):
            rows_1TD = prepare_rows(tokens_1TD[:, cut:], mask_1T[:, cut:])
            assert same(gram_1TT, small_gram(rows_1TD), 1e-10)


def test_an_entropy_is_normalized_by_what_its_prompt_could_reach() -> None:
    per_prompt = normalize_entropy(torch.tensor([1.5, 0.0]), torch.tensor([8, 1]), 4, "logN")
    assert same(per_prompt, float64([1.5 / math.log(8), math.nan]))
    with pytest.raises(ValueError, match="raw, maxEntropy, logN, logD, logNlogD"):
        normalize_entropy(1.5, 8, 4, "logT")  # type: ignore[arg-type]


# --- curvature


def test_undefined_curvature_is_nan_and_skip_leaves_zero_differences_out() -> None:
    a, b, c, d = torch.eye(4)
    paths = [[a, b], [a], [a, a, a], [a, b, b], [a, b, b, a, b], [a, b, c, c, d]]
    hidden_NTD = torch.nn.utils.rnn.pad_sequence([torch.stack(path) for path in paths], True)
    lengths_N = torch.tensor([len(path) for path in paths])
    assert curvature(hidden_NTD, lengths_N).isnan().all()
    expected = float64([math.nan] * 4 + [math.pi, 2 * math.pi / 3])
    assert same(curvature(hidden_NTD, lengths_N, "skip"), expected)
    hidden_NTD[5, 0, 0] = math.nan
    assert curvature(hidden_NTD, lengths_N, "skip")[5].isnan()


# --- token metrics in batches


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_float_type_is_computed_in_float64(dtype: torch.dtype) -> None:
    lengths_N = torch.tensor([5, 2, 9, 3, 1, 7])
    state_NTD = draw(6, 9, 4).to(dtype)
    found = in_chunks([state_NTD], lengths_N)
    assert {values.dtype for values in found.values()} == {torch.float64}
    expected = in_chunks([state_NTD.to(torch.float64)], lengths_N)
    assert all(same(found[name], values, 0.0) for name, values in expected.items())


# --- any prompt


@st.composite
def prompts(draw_one: st.DrawFn) -> Tensor:
    """One prompt of 1 to 12 tokens: random, with repeats, with its own mean, or all equal."""
    shape = st.one_of(st.sampled_from([1, 2, 3]), st.integers(4, 12))
    tokens_TD = draw(draw_one(shape), draw_one(shape), seed=draw_one(seeds))
    kind = draw_one(st.sampled_from(["random", "repeats", "mean", "equal"]))
    if kind == "repeats":
        rows = st.integers(0, len(tokens_TD) - 1)
        tokens_TD = tokens_TD[draw_one(st.lists(rows, min_size=1, max_size=12))]
    elif kind == "mean":
        tokens_TD = torch.cat([tokens_TD, tokens_TD.mean(dim=0, keepdim=True)])
    elif kind == "equal":
        tokens_TD = tokens_TD[:1].repeat(len(tokens_TD), 1)
    return tokens_TD * 2.0 ** draw_one(st.sampled_from([-100, 0, 100]))


def all_equal(tokens_TD: Tensor) -> bool:
    return bool((tokens_TD == tokens_TD[0]).all())


@many
@given(tokens_TD=prompts())
def test_entropy_of_any_prompt_is_defined_bounded_and_decreasing(tokens_TD: Tensor) -> None:
    orders = [0.5, 0.999999, 1.0, 1.000001, 2.0, 3.0, 10.0]
    values_A = torch.cat([prompt_entropy(*whole(tokens_TD), alpha) for alpha in orders])
    if all_equal(tokens_TD):
        assert values_A.isnan().all()
        return
    tokens, dim = tokens_TD.shape
    assert (values_A >= 0).all()
    assert (values_A <= math.log(min(tokens - 1, dim)) + 1e-9).all()
    assert (values_A.diff() <= 1e-9).all()
    assert same(values_A[1], values_A[3], 1e-5)


@many
@given(tokens_TD=prompts(), seed=seeds)
def test_entropy_of_any_prompt_ignores_scale_rotation_and_order(
    tokens_TD: Tensor, seed: int
) -> None:
    turned_TD = tokens_TD @ rotation(tokens_TD.shape[1], seed)
    for alpha in (1.0, 2.0):
        expected = prompt_entropy(*whole(tokens_TD), alpha)
        assert same(dataset_entropy(tokens_TD, alpha), expected[0])
        for scale in (2.0**-100, 1e-20, 0.1, 1e20):
            assert same(prompt_entropy(*whole(tokens_TD * scale), alpha), expected)
        assert same(prompt_entropy(*whole(shuffled(tokens_TD, seed)), alpha), expected)
        if not all_equal(tokens_TD):  # rounding tells turned copies apart
            assert same(prompt_entropy(*whole(turned_TD), alpha), expected)


@many
@given(tokens_TD=prompts())
def test_curvature_of_any_prompt_is_the_mean_of_its_turns(tokens_TD: Tensor) -> None:
    """Of the turns one by one, NaN at a zero difference, whatever the scale."""
    units = [step / step.norm() for step in tokens_TD.diff(dim=0)]
    angles = float64(
        [
            2 * math.atan2(float((after - before).norm()), float((after + before).norm()))
            for before, after in itertools.pairwise(units)
        ]
    )
    assert same(curvature(*whole(tokens_TD)), angles.mean()[None])
    defined = angles[~angles.isnan()]
    assert same(curvature(*whole(tokens_TD), "skip"), defined.mean()[None])


@many
@given(tokens_TD=prompts())
def test_norms_of_any_prompt(tokens_TD: Tensor) -> None:
    norm_T = torch.linalg.vector_norm(tokens_TD, dim=1)
    largest = float(norm_T.max())
    mean, coordinate, share = (of_prompts(each, *whole(tokens_TD)) for each in NORMS)
    assert same(mean / largest, norm_T.mean()[None] / largest)
    assert same(coordinate, tokens_TD.abs().max()[None], 0.0)
    power_T = (norm_T / largest) ** 2
    assert same(share, (power_T[0] / power_T.sum())[None])


@pytest.mark.parametrize(
    ("kernel", "start"),
    [
        *zip(NORMS, ([2**0.5, 0.0], [1.0, 0.0], [1 / 3, math.nan]), strict=True),
    ],
)
def test_undefined_norms_are_nan(kernel: Kernel, start: list[float]) -> None:
    hidden_NTD = torch.ones(5, 3, 2)
    hidden_NTD[1] = 0
    hidden_NTD[2, 1, 0] = math.inf
    hidden_NTD[3, 2, 1] = math.nan
    values_N = of_prompts(kernel, hidden_NTD, torch.tensor([3, 3, 3, 3, 0]))
    assert same(values_N, float64([*start, math.nan, math.nan, math.nan]))


def test_a_non_finite_token_beside_a_repeat_is_not_skipped() -> None:
    a, b, c = torch.eye(3)
    path_TD = torch.stack([a, b, c, c, torch.full((3,), math.inf)])
    assert curvature(*whole(path_TD), "skip").isnan()
    values = curvatures(path_TD.flip(0)[None], torch.ones(1, 5, dtype=torch.bool))
    assert values["skip"].isnan()
    assert same(values["skip,no_first"], 2 * math.pi / 3)


# --- several layers, chunks and workers


def test_a_lone_prompt_is_read_where_it_is_and_without_tokens_is_zero() -> None:
    hidden_NTD = torch.full((1, 3, 2), math.nan)
    (lone,) = length_chunks([hidden_NTD], torch.tensor([3]))
    assert lone.tokens_MTD.data_ptr() == hidden_NTD.data_ptr()
    (nothing,) = length_chunks([hidden_NTD], torch.tensor([0]))
    assert not nothing.mask_MT.any()
    assert not nothing.tokens_MTD.any()


def in_chunks(states: list[Tensor], lengths_N: Tensor) -> Values:
    """Values [L, N] of every metric."""
    found = token_metrics(states, lengths_N, [*TOKEN_METRICS], EVERYTHING)
    return {key: torch.from_numpy(values_LN) for key, values_LN in found.items()}


def alone(states: list[Tensor], lengths_N: Tensor, first: int = 0) -> Values:
    """The same without padding, one prompt of one layer at a time, which begins at a token."""
    found: dict[tuple[str, str], list[Tensor]] = {}
    for state in states:
        for hidden_TD, length in zip(state, lengths_N.tolist(), strict=True):
            tokens_1TD = hidden_TD[None, first : max(length, first + 1)]
            left_1 = torch.tensor([max(length - first, 0)])
            for key, value in in_chunks([tokens_1TD], left_1).items():
                found.setdefault(key, []).append(value)
    return {key: torch.cat(values).view(len(states), -1) for key, values in found.items()}


def agree(got: Values, expected: Values) -> bool:
    return got.keys() == expected.keys() and all(same(got[key], expected[key]) for key in got)


@many
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=7),
    dim=st.integers(1, 9),
    seed=seeds,
    sizes=st.sampled_from([(2**24, 2**21, 2**16), (1, 1, 1), (60, 30, 10), (300, 2**21, 8)]),
    ratio=st.sampled_from([0.0, 1.15, 9.0]),
    garbage=st.sampled_from([0.0, 1e30, math.nan, math.inf]),
)
def test_any_padding_and_cut_into_layers_chunks_blocks_and_parts_is_equal(
    lengths: list[int],
    dim: int,
    seed: int,
    sizes: tuple[int, int, int],
    ratio: float,
    garbage: float,
) -> None:
    lengths_N = torch.tensor(lengths)
    states = [draw(len(lengths), 9, dim, seed=seed + layer) for layer in range(3)]
    expected = alone(states, lengths_N)
    padding_NT = torch.arange(9) >= lengths_N[:, None]
    states = [state.masked_fill(padding_NT[..., None], garbage) for state in states]
    wider = [torch.nn.functional.pad(state, (0, 0, 0, 23), value=garbage) for state in states]
    with pytest.MonkeyPatch.context() as patch:
        for name, size in zip(("CHUNK", "BLOCK", "PART"), sizes, strict=True):
            patch.setattr(rows_module, f"{name}_ELEMENTS", {"cpu": size})
        patch.setattr(rows_module, "WIDTH_RATIO", ratio)
        patch.setattr(rows_module, "SHORT", int(ratio))
        for given_states in (states, wider):
            before = [state.clone() for state in given_states]
            assert agree(in_chunks(given_states, lengths_N), expected)
            assert all(map(same, given_states, before))
    assert list(length_chunks([states[0][:0]], lengths_N[:0])) == []


@few
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=7), dim=small_sizes, seed=seeds)
def test_without_the_first_token_is_the_prompt_that_begins_later(
    lengths: list[int], dim: int, seed: int
) -> None:
    lengths_N = torch.tensor(lengths)
    states = [draw(len(lengths), 9, dim, seed=seed + layer) for layer in range(2)]
    states[0][:, 0] = math.inf
    states[1][:, 3] = states[1][:, 4]
    expected, values = alone(states, lengths_N, first=1), in_chunks(states, lengths_N)
    compared = [(name, variant) for name, variant in values if "no_first" in variant]
    assert {name for name, _ in compared} == {*TOKEN_METRICS} - {"first_token_share"}
    for name, variant in compared:
        whole_name = variant.removesuffix("no_first").removesuffix(",")
        assert same(values[name, variant], expected[name, whole_name]), (name, variant)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_chunks_hold_every_prompt_once_and_nothing_else(dtype: torch.dtype) -> None:
    lengths_N = torch.tensor([40, 200, 0, 5, 210, 31, 100, 205, 33, 1])
    states = [draw(len(lengths_N), 220, 3, seed=layer).to(dtype) for layer in range(2)]
    seen: list[int] = []
    for index_n, tokens_MTD, mask_MT, _ in length_chunks(states, lengths_N):
        chosen_n = lengths_N[index_n]
        assert int(chosen_n.max()) <= max(rows_module.SHORT, 1.15 * int(chosen_n.min()))
        assert tokens_MTD.shape[1] == max(1, chosen_n.max())
        assert tokens_MTD.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        expected = torch.cat([state[index_n, : tokens_MTD.shape[1]] for state in states])
        assert torch.equal(mask_MT.sum(dim=1), chosen_n.repeat(2))
        assert torch.equal(tokens_MTD, (expected * mask_MT[..., None]).to(tokens_MTD.dtype))
        seen += index_n.tolist()
    assert sorted(seen) == list(range(len(lengths_N)))


# --- devices


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", get_args(SpectrumMethod))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_device_gives_the_same_token_metrics(dtype: torch.dtype, method: SpectrumMethod) -> None:
    """Of short and long prompts, more tokens than features and fewer, all in one batch."""
    lengths_N = torch.tensor([1, 3, 40, 450, 700])
    states = [draw(5, 700, 512, seed=seed).to(dtype) for seed in (0, 1)]
    parameters = Parameters(alphas=(0.5, 1.0, 2.0), method=method)
    here = token_metrics(states, lengths_N, [*TOKEN_METRICS], parameters)
    on_gpu = [state.cuda() for state in states]
    there = token_metrics(on_gpu, lengths_N, [*TOKEN_METRICS], parameters)
    # The quadrature is float32, and orthogonal bases of one space differ with the solver.
    tolerance = 1e-9 if method == "exact" else 1e-4
    for key, values_LN in here.items():
        np.testing.assert_allclose(there[key], values_LN, rtol=0, atol=tolerance, err_msg=str(key))
