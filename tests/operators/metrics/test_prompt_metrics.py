"""Closed forms and invariances of the metrics of many prompts, and that shard cuts never matter."""

import itertools
import math
from collections.abc import Callable
from functools import reduce
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from layerrank.operators.metrics import population as population_module
from layerrank.operators.metrics import prompts as prompts_module
from layerrank.operators.metrics.population import Population, row_sums
from layerrank.operators.metrics.prompts import (
    alpha_req,
    effective_rank,
    participation_ratio,
    rankme,
    stable_rank,
    twonn,
)
from layerrank.operators.metrics.prompts import anisotropy as anisotropy_of
from layerrank.operators.metrics.similarity import Hsic, cka, hsic, hsic_sums, merge_hsic
from layerrank.operators.metrics.spectrum import matrix_entropy
from layerrank.operators.metrics.views import infonce_loss
from tests.support.whole import (
    dataset_entropy,
    draw,
    few,
    linear_cka,
    rotation,
    same,
    seeds,
    shuffled,
    spectrum_of,
)

RANKS = {each.__name__: each for each in (effective_rank, rankme, participation_ratio, stable_rank)}


def of_population(population: Population) -> dict[str, Tensor]:
    """Every metric that is made of a population's cached parts."""
    found = {"anisotropy": anisotropy_of(population.sums)}
    for center, word in ((False, ""), (True, "-centred")):
        spectrum = population.spectrum(center, unit=False)
        found |= {f"{name}{word}": rank(spectrum) for name, rank in RANKS.items()}
    for center, unit in itertools.product((True, False), repeat=2):
        spectrum = population.spectrum(center, unit)
        found |= {f"entropy-{center}-{unit}-{a}": matrix_entropy(spectrum, a) for a in (1.0, 2.0)}
    return found


def of_rows(rows_ND: Tensor) -> dict[str, Tensor]:
    return of_population(Population([rows_ND]))


def anisotropy(rows_ND: Tensor) -> Tensor:
    return anisotropy_of(row_sums(rows_ND))


def agree(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    for name, value in expected.items():
        assert same(got[name], value, tolerance), name


def in_blocks(rows: Tensor, size: int) -> list[Tensor]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@st.composite
def populations(drawn: st.DrawFn, fewest: int = 1) -> Tensor:
    """Rows with N below, at and above D, duplicates, a common offset, and the mean among them."""
    n, dim, seed = drawn(st.integers(fewest, 14)), drawn(st.integers(1, 8)), drawn(seeds)
    rows_ND = draw(n, dim, seed=seed) + drawn(st.sampled_from([0.0, 3.0, 100.0]))
    if drawn(st.booleans()):
        rows_ND = torch.cat([rows_ND, rows_ND[: (n + 1) // 2]])
    if drawn(st.booleans()):
        rows_ND = torch.cat([rows_ND, rows_ND.mean(dim=0, keepdim=True)])
    return rows_ND


@st.composite
def cuts(drawn: st.DrawFn, n: int) -> list[slice]:
    """Slices that cover n rows in order, some of them empty."""
    edges = sorted(drawn(st.lists(st.integers(0, n), max_size=5)))
    return [slice(*edge) for edge in itertools.pairwise([0, *edges, n])]


# --- closed forms


def test_small_singular_values_are_not_rounding() -> None:
    sizes_D = torch.tensor([1.0, 1e-3, 1e-7, 1e-8, 1e-9, 0.0], dtype=torch.float64)
    for n in (4, 6, 40):  # fewer prompts than features, as many, more
        basis_ND, _ = torch.linalg.qr(draw(n, min(n, 6)))
        rows_ND = basis_ND * sizes_D[: min(n, 6)] @ rotation(6)[: min(n, 6)]
        spectrum = Population([rows_ND]).spectrum(center=False, unit=False)
        assert torch.allclose(spectrum.sqrt().flip(0), sizes_D[: min(n, 6)], rtol=1e-4, atol=1e-12)


@few
@given(rows_ND=populations(), zeros=st.integers(0, 2))
def test_anisotropy_is_the_mean_over_pairs_that_have_a_cosine(rows_ND: Tensor, zeros: int) -> None:
    unit_ND = rows_ND / rows_ND.norm(dim=1, keepdim=True)
    pairs = [float(a @ b) for a, b in itertools.combinations(unit_ND, 2)]
    with_zeros_ND = torch.nn.functional.pad(rows_ND, (0, 0, 0, zeros))
    assert same(anisotropy(with_zeros_ND), sum(pairs) / len(pairs) if pairs else math.nan)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.7])
def test_power_law_has_its_exponent(exponent: float) -> None:
    spectrum = torch.arange(1, 301, dtype=torch.float64) ** -exponent
    for scale in (1.0, 1e-20, 1e20):
        assert same(alpha_req(scale * spectrum), exponent)
    assert same(alpha_req(spectrum.flip(0), 1, 20), exponent)
    # What lies outside the range of the fit never matters.
    bent = torch.cat([spectrum[:10] * 1e3, spectrum[10:100], spectrum[100:] * 0])
    assert same(alpha_req(bent), exponent)


def test_power_law_weighs_ranks_by_their_inverse() -> None:
    ranks = torch.arange(1, 31, dtype=torch.float64)
    spectrum = (ranks.log().square() * -0.5).exp()  # a slope that grows with the rank
    root = (1 / ranks).sqrt()
    design = torch.stack([root * ranks.log(), root], dim=1)
    slope = torch.linalg.lstsq(design, (root * spectrum.log())[:, None]).solution[0, 0]
    assert same(alpha_req(spectrum, 1, 30), -slope)


def test_power_law_needs_enough_ranks() -> None:
    spectrum = torch.arange(1, 21, dtype=torch.float64) ** -1.0
    assert same(alpha_req(spectrum), 1.0)
    for few_ranks in (
        spectrum[:19],
        torch.cat([spectrum[:19], torch.zeros(50)]),
        spectrum.new_full((30,), math.nan),
        spectrum_of(draw(20, 30), center=True),  # 19 directions around their mean
    ):
        assert alpha_req(few_ranks).isnan()
    assert not alpha_req(spectrum_of(draw(21, 30), center=True)).isnan()
    with pytest.raises(ValueError, match="ranks 0 to 5"):
        alpha_req(spectrum, 0, 5)


def line_of_the_paper(points_ND: Tensor, kept: int) -> Tensor:
    difference_NND = points_ND[:, None] - points_ND
    distance_NN = difference_NND.norm(dim=2).fill_diagonal_(math.inf)
    first_N, second_N = distance_NN.sort(dim=1).values[:, :2].unbind(dim=1)
    x = (second_N / first_N).log().sort().values[:kept]
    y = -torch.log(1 - torch.arange(1, kept + 1, dtype=torch.float64) / len(points_ND))
    slope: Tensor = (x @ y) / (x @ x)
    return slope


def test_twonn_is_the_line_of_the_paper_also_far_from_the_origin_and_in_clusters() -> None:
    points_ND, cluster_ND = draw(60, 3), draw(40, 2)
    repeated_ND = torch.cat([shuffled(points_ND, 3), points_ND[:20], points_ND[:9]])
    for scale in (1.0, 2.0**100, 2.0**-100):
        assert same(twonn(scale * repeated_ND), line_of_the_paper(points_ND, 54))
    # Neighbours so close, for their distance to the mean, that |x|^2 + |y|^2 - 2 x y confuses some.
    far_ND = torch.cat([3e-8 * cluster_ND, 3e-8 * cluster_ND.flip(1) + 1.0]) + 100.0
    assert same(twonn(far_ND), line_of_the_paper(far_ND, 72), 0.02)


def test_twonn_without_neighbourhoods_is_undefined() -> None:
    grid_ND = torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0))
    with_inf_ND = torch.cat([draw(30, 4), torch.full((1, 4), math.inf)])
    for rows_ND in (grid_ND, draw(19, 4), draw(19, 4).repeat(3, 1), draw(0, 4), with_inf_ND):
        assert twonn(rows_ND).isnan()
    assert not twonn(draw(20, 4)).isnan()


# --- similarity


def gram_cka(rows_ND: Tensor, other_NE: Tensor) -> tuple[Tensor, Tensor]:
    """Both forms from N x N matrices, as the papers write them."""
    n = len(rows_ND)

    def biased(gram_NN: Tensor, other_NN: Tensor) -> Tensor:
        center_NN = torch.eye(n) - torch.full((n, n), 1 / n, dtype=torch.float64)
        return (gram_NN @ center_NN @ other_NN @ center_NN).trace()

    def debiased(gram_NN: Tensor, other_NN: Tensor) -> Tensor:
        k, l = (each - each.diagonal().diag() for each in (gram_NN, other_NN))  # noqa: E741
        return (
            (k @ l).trace()
            + k.sum() * l.sum() / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (k.sum(dim=0) @ l.sum(dim=1))
        ) / (n * (n - 3))

    a, b = rows_ND @ rows_ND.T, other_NE @ other_NE.T
    return tuple(f(a, b) / (f(a, a) * f(b, b)).sqrt() for f in (biased, debiased))  # type: ignore[return-value]


@pytest.mark.parametrize(("n", "d", "e"), [(4, 3, 5), (9, 20, 2), (40, 6, 7), (12, 12, 12)])
def test_cka_equals_its_gram_form(n: int, d: int, e: int) -> None:
    rows_ND, other_NE = draw(n, d) + 2, draw(n, e, seed=1) - 3
    other_NE[:, :2] += rows_ND[:, :2]
    for scale in (1.0, 2.0**-100, 2.0**100):
        found = linear_cka(scale * rows_ND, other_NE)
        assert all(map(same, found, gram_cka(rows_ND, other_NE)))


def test_cka_without_differences_is_undefined() -> None:
    rows_ND, equal_NE = draw(6, 3), draw(1, 4).repeat(6, 1)
    for one, other in (
        (rows_ND, equal_NE),
        (equal_NE, equal_NE),
        (rows_ND[:1], rows_ND[:1]),
        (rows_ND[:0], rows_ND[:0]),
        (rows_ND.masked_fill(rows_ND > 1, math.inf), rows_ND),
    ):
        assert all(each.isnan() for each in linear_cka(one, other))
    for n in (2, 3):
        itself = linear_cka(rows_ND[:n], rows_ND[:n])
        assert same(itself.biased, 1.0)
        assert itself.debiased.isnan()
        means = rows_ND[:n].mean(dim=0)
        assert hsic(hsic_sums(rows_ND[:n], rows_ND[:n], means, means)).debiased.isnan()
    one = torch.tensor(1.0)
    for own in (0.0, -1.0):
        itself = Hsic(one, torch.tensor(own))
        assert cka(Hsic(one, one), itself, Hsic(one, one)).debiased.isnan()
        assert cka(Hsic(one, one), Hsic(one, one), itself).debiased.isnan()
    # One-hot rows share nothing but their own squares, which the debiased form leaves out.
    found = linear_cka(torch.eye(8), torch.eye(8))
    assert same(found.biased, 1.0)
    assert found.debiased.isnan()


# --- undefined values and invariances of everything else


def test_metrics_without_a_value_are_nan() -> None:
    rows_ND = draw(6, 4)
    undefined = [torch.zeros(5, 4), torch.zeros(0, 4)]
    for bad in (math.nan, math.inf, -math.inf):
        undefined.append(rows_ND.index_fill(0, torch.tensor([2]), bad))
        undefined.append(undefined[-1][:3])
    for each_ND in undefined:
        for name, value in of_rows(each_ND).items():
            assert value.isnan(), name


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_equal_rows_leave_no_rounding_to_measure(n: int) -> None:
    equal_ND = torch.tensor([[0.1, 0.2, 0.3, 0.7]], dtype=torch.float64).repeat(n, 1)
    for cut in range(n):
        population = Population([equal_ND[:cut], equal_ND[cut:]])
        assert float(population.sums.squares) == 0
        for unit in (False, True):
            assert not population.spectrum(center=True, unit=unit).any()
    found = of_rows(equal_ND)
    for name, value in found.items():
        if "centred" in name or "entropy-True" in name:
            assert value.isnan(), name
    assert same(found["entropy-False-True-1.0"], 0.0)
    assert same(found["effective_rank"], 1.0)
    assert found["anisotropy"].isnan() if n == 1 else same(found["anisotropy"], 1.0)


@settings(max_examples=60, deadline=None)
@given(rows_ND=populations(), seed=seeds, scale=st.sampled_from([2.0**-100, 0.3, 2.0**100]))
def test_metrics_ignore_scale_rotation_and_order(rows_ND: Tensor, seed: int, scale: float) -> None:
    expected = of_rows(rows_ND)
    agree(of_rows(scale * rows_ND), expected)
    turn_DD = rotation(rows_ND.shape[1], seed)
    # Row by row: the product of a matrix may round equal rows in different ways.
    agree(of_rows(torch.stack([row_D @ turn_DD for row_D in rows_ND])), expected, 1e-7)
    agree(of_rows(shuffled(rows_ND, seed)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_metrics_are_computed_in_float64(dtype: torch.dtype) -> None:
    rows_ND = (draw(9, 5) + 1).to(dtype)
    found = of_rows(rows_ND)
    assert {value.dtype for value in found.values()} == {torch.float64}
    agree(found, of_rows(rows_ND.to(torch.float64)), 0.0)


@few
@given(rows_ND=populations(2), center=st.booleans(), unit=st.booleans())
def test_gram_side_equals_covariance_side(rows_ND: Tensor, center: bool, unit: bool) -> None:
    # Features that are always 0 change nothing but the smaller side.
    wide_ND = torch.nn.functional.pad(rows_ND, (0, 2 * len(rows_ND)))
    spectra = [Population([each]).spectrum(center, unit).flip(0) for each in (rows_ND, wide_ND)]
    count = min(map(len, spectra))
    assert len(spectra[0]) == min(rows_ND.shape)
    scale = spectra[0].max().clamp(min=1e-300)
    assert same(spectra[0][:count] / scale, spectra[1][:count] / scale)
    assert not spectra[1][count:].any()


@few
@given(seed=seeds, offset=st.sampled_from([0.0, 1.0, 1e6]))
def test_a_row_equal_to_the_mean_is_no_direction(seed: int, offset: float) -> None:
    half_ND = draw(9, 5, seed=seed)
    around_ND = torch.cat([half_ND, -half_ND])
    with_mean_ND = torch.cat([around_ND, torch.zeros(1, 5)]) + offset * draw(5, seed=seed + 1)
    expected = dataset_entropy(around_ND)
    for size in (1, 4, 19):  # each rounds the mean in its own way
        spectrum = Population(in_blocks(with_mean_ND, size)).spectrum(center=True, unit=True)
        assert same(matrix_entropy(spectrum), expected, 1e-12 + 1e-15 * offset)


# --- shard cuts


@settings(max_examples=60, deadline=None)
@given(rows_ND=populations(2), data=st.data())
def test_cuts_of_a_population_never_matter(rows_ND: Tensor, data: st.DataObject) -> None:
    blocks = [rows_ND[cut] for cut in data.draw(cuts(len(rows_ND)))]
    population = Population(lambda: blocks)
    assert (population.n_prompts, population.dim) == tuple(rows_ND.shape)
    assert same(population.sums.squares, (rows_ND - rows_ND.mean(dim=0)).square().sum())
    agree(of_population(population), of_rows(rows_ND))
    for at_most in (0, 1, len(rows_ND) // 2, len(rows_ND), len(rows_ND) + 3):
        assert torch.equal(population.sample(at_most), rows_ND[:at_most])
        assert torch.equal(Population(blocks).sample(at_most), rows_ND[:at_most])


@few
@given(rows_ND=populations(4), data=st.data(), seed=seeds)
def test_cuts_of_similarity_never_matter(rows_ND: Tensor, data: st.DataObject, seed: int) -> None:
    other_NE = draw(len(rows_ND), 3, seed=seed) + rows_ND[:, :1]
    parts = data.draw(cuts(len(rows_ND)))
    order = torch.randperm(len(parts), generator=torch.Generator().manual_seed(seed)).tolist()

    def streamed(x_ND: Tensor, y_NE: Tensor) -> Hsic:
        means = [Population([z[cut] for cut in parts]).sums.mean_D for z in (x_ND, y_NE)]
        sums = [hsic_sums(x_ND[parts[i]], y_NE[parts[i]], *means) for i in order]
        return hsic(reduce(merge_hsic, sums))

    own = streamed(rows_ND, rows_ND), streamed(other_NE, other_NE)
    found = cka(streamed(rows_ND, other_NE), *own)
    expected = linear_cka(rows_ND, other_NE)
    assert same(found.biased, expected.biased)
    assert same(found.debiased, expected.debiased, 1e-8)


# --- passes and memory


def counted(stored: list[Tensor]) -> Mock:
    """Blocks that count how often they are read from the beginning."""
    return Mock(side_effect=lambda: iter(stored))


def test_passes_over_the_blocks_are_few() -> None:
    stored = in_blocks(draw(40, 5), 7)
    reading = iter(stored)
    assert len(Population(lambda: reading).sample(10)) == 10
    assert len(list(reading)) == len(stored) - 2
    blocks = counted(stored)
    population = Population(blocks)
    assert blocks.call_count == 0
    of_population(population)
    # Means; centred moments; small singular values do not occur; uncentred unit rows.
    assert blocks.call_count == 3
    of_population(population)
    population.sample(10**6)
    assert blocks.call_count == 4


def test_few_prompts_need_one_pass() -> None:
    blocks = counted(in_blocks(draw(12, 30), 5))
    population = Population(blocks)
    of_population(population)
    assert len(population.sample(10)) == 10
    assert blocks.call_count == 1
    assert population.gram(center=True, unit=True).shape == (12, 12)


def test_blocks_must_be_readable_again() -> None:
    with pytest.raises(AssertionError, match="cannot be read again"):
        Population(iter([draw(3, 2)]))
    nothing = Population([])
    assert (nothing.n_prompts, nothing.dim) == (0, 0)
    assert all(value.isnan() for value in of_population(nothing).values())
    assert nothing.sample(5).shape == (0, 0)


def test_memory_does_not_grow_with_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor that is made along the way is larger than a block or a matrix of features."""
    monkeypatch.setattr(population_module, "CHUNK_ELEMENTS", 24)
    largest = 0

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Callable[..., object], *call: Any) -> object:  # noqa: ANN401
            nonlocal largest
            _, args, kwargs = call
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    stored = in_blocks(draw(240, 6), 8)
    with Watch():  # type: ignore[no-untyped-call]
        of_population(Population(stored))
        means = row_sums(stored[0])
        sums = [hsic_sums(x, x, means.mean_D, means.mean_D) for x in stored]
        hsic(reduce(merge_hsic, sums))
    assert largest <= 8 * 6


def test_chunks_never_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    def computed() -> dict[str, Tensor]:
        similar = linear_cka(draw(9, 4), draw(9, 2, seed=1))
        return {**of_rows(draw(9, 4) + 3), **similar._asdict(), "twonn": twonn(draw(40, 4))}

    expected = computed()
    for elements in (1, 7, 50):
        monkeypatch.setattr(population_module, "CHUNK_ELEMENTS", elements)
        monkeypatch.setattr(prompts_module, "BLOCK_ELEMENTS", elements)
        agree(computed(), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_device_gives_the_same_values() -> None:
    for n in (20, 90):
        rows_ND, other_NE = draw(n, 40) + 1, draw(n, 30, seed=1)
        there = of_rows(rows_ND.cuda())
        agree({name: value.cpu() for name, value in there.items()}, of_rows(rows_ND))
        similar = linear_cka(rows_ND.cuda(), other_NE.cuda())
        assert all(map(same, (each.cpu() for each in similar), linear_cka(rows_ND, other_NE)))
        assert same(twonn(rows_ND.cuda()).cpu(), twonn(rows_ND))
        spectra = [spectrum_of(each, center=True) for each in (rows_ND, rows_ND.cuda())]
        assert same(alpha_req(spectra[1]).cpu(), alpha_req(spectra[0]))
        a_ND, b_ND = draw(n, 8), draw(n, 8, seed=1)
        assert same(infonce_loss(a_ND.cuda(), b_ND.cuda()).cpu(), infonce_loss(a_ND, b_ND))
