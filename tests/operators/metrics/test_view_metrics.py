"""Metrics of views: what they ignore, where they are undefined, and that cuts never matter."""

import math
from functools import reduce

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from layerrank.operators.metrics import views as views_module
from layerrank.operators.metrics.registry import METRICS, Parameters, Views, of_kind, prompts_used
from layerrank.operators.metrics.spectrum import matrix_entropy
from layerrank.operators.metrics.views import (
    infonce_loss,
    lda_spectrum,
    lidar_scatter,
    merge_scatters,
)
from tests.support.whole import draw, few, float64, same, seeds, small_sizes


def lidar(views_NVD: Tensor, delta: float = 1e-4) -> Tensor:
    return matrix_entropy(lda_spectrum(lidar_scatter(views_NVD), delta))


# --- InfoNCE


def test_infonce_of_what_is_not_finite_is_undefined() -> None:
    a_ND, b_ND = draw(7, 4), draw(7, 4, seed=1)
    for bad in (math.nan, math.inf, -math.inf):
        assert infonce_loss(a_ND.index_fill(0, torch.tensor([2]), bad), b_ND).isnan()
    assert infonce_loss(torch.tensor([[math.inf], [1.0]]), torch.tensor([[-1.0], [1.0]])).isnan()
    assert infonce_loss(a_ND[:0], b_ND[:0]).isnan()


def test_infonce_stays_finite_for_huge_norms() -> None:
    view_ND = draw(6, 4) * 1e4
    assert float(infonce_loss(view_ND, view_ND)) >= 0
    assert float(infonce_loss(view_ND, -view_ND)) > 1e6


def test_infonce_is_the_mean_loss_of_disjoint_pairs_of_unit_views() -> None:
    views_NVD = draw(9, 5, 4)
    unit_VND = (views_NVD / views_NVD.norm(dim=2, keepdim=True)).movedim(1, 0)
    losses = [infonce_loss(unit_VND[first], unit_VND[first + 1], 0.3) for first in (0, 2)]
    found = views_module.infonce([views_NVD], 0.3)
    assert same(found["loss"], sum(losses) / 2)
    assert same(found["bound"], math.log(17) - found["loss"])


# --- LiDAR


def test_lda_spectrum_has_a_closed_form_on_axes() -> None:
    # Axis 0: means +-3, views +-2 around them; axis 1: means +-1, views equal.
    centres = torch.tensor([[3.0, 1.0], [-3.0, 1.0], [3.0, -1.0], [-3.0, -1.0]])
    views_NVD = centres[:, None] + torch.tensor([[2.0, 0.0], [-2.0, 0.0]])
    expected = float64([9 / (4 + 0.25), 1 / 0.25])
    assert same(lda_spectrum(lidar_scatter(views_NVD), delta=0.25), expected)


@few
@given(n=st.integers(2, 9), views=st.integers(1, 5), dim=small_sizes, seed=seeds)
def test_lidar_ignores_offset_and_shard_cuts(n: int, views: int, dim: int, seed: int) -> None:
    views_NVD = draw(n, views, dim, seed=seed)
    expected = lidar(views_NVD, delta=0.1)
    assert same(lidar(views_NVD + 100.0, delta=0.1), expected, 1e-8)
    at_once = lidar_scatter(views_NVD)
    for cut in range(1, n):
        merged = merge_scatters(lidar_scatter(views_NVD[cut:]), lidar_scatter(views_NVD[:cut]))
        assert merged[:2] == at_once[:2]
        assert all(map(same, merged[2:], at_once[2:]))
    one_by_one = [lidar_scatter(each[None]) for each in views_NVD]
    for parts in (one_by_one, one_by_one[::-1]):
        merged = reduce(merge_scatters, parts)
        assert same(matrix_entropy(lda_spectrum(merged, 0.1)), expected)


def test_lidar_of_means_that_differ_by_rounding_or_of_what_is_not_finite_is_undefined() -> None:
    views_VD = draw(6, 8) + 3
    # Equal means up to the rounding of another order of summation.
    assert lidar(torch.stack([views_VD.roll(shift, 0) for shift in range(6)])).isnan()
    views_NVD = draw(5, 4, 8)
    views_NVD[2, 1, 0] = math.inf
    assert lidar(views_NVD).isnan()


def test_dime_draws_its_permutations_from_the_seed() -> None:
    compute = of_kind(METRICS, Views)["dime"].compute
    first, again, other = (compute([draw(9, 2, 5)], Parameters(seed=seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert compute([draw(9, 1, 5).expand(9, 2, 5)], Parameters())["alpha=1"] > 0.1  # all is shared


def test_dime_is_of_the_first_prompts_when_there_are_more_than_it_looks_at() -> None:
    measure, views_NVD = of_kind(METRICS, Views)["dime"], draw(9, 2, 5)
    few, everything = Parameters(dime_sample=6), Parameters(dime_sample=None)
    expected = measure.compute([views_NVD[:6]], everything)
    for cut in ([views_NVD], [views_NVD[:4], views_NVD[4:5], views_NVD[5:]]):
        assert measure.compute(cut, few) == expected
    assert measure.compute([views_NVD], everything) not in (
        expected,
        measure.compute([views_NVD], Parameters(dime_sample=8)),
    )
    counts = [prompts_used(measure, each, 9) for each in (few, everything, Parameters())]
    assert counts == [6, 9, 9]


# --- bounded memory


@pytest.mark.parametrize("elements", [1, 50])
@pytest.mark.parametrize("name", of_kind(METRICS, Views))
def test_blocks_never_matter(name: str, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    views_NVD, measure = draw(9, 4, 5), of_kind([name], Views)[name]
    expected = measure.compute([views_NVD], Parameters())
    monkeypatch.setattr(views_module, "BLOCK_ELEMENTS", elements)
    cut = [views_NVD[:2], views_NVD[2:3], views_NVD[3:]]
    assert measure.compute(cut, Parameters()) == pytest.approx(expected, rel=1e-9)
