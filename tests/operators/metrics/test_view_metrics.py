"""Closed forms and invariances of the metrics of views, and that cuts never matter."""

import math
from functools import reduce

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from operators.metrics import views as views_module
from operators.metrics.registry import METRICS, Parameters, Views, of_kind
from operators.metrics.spectrum import matrix_entropy
from operators.metrics.views import (
    dime_entropies,
    infonce_loss,
    lda_spectrum,
    lidar_scatter,
    merge_scatters,
)
from tests.support.whole import (
    ALPHAS,
    draw,
    few,
    float64,
    rotation,
    same,
    seeds,
    shuffled,
    small_sizes,
)


def lidar(views_NVD: Tensor, delta: float = 1e-4, alpha: float = 1.0) -> Tensor:
    return matrix_entropy(lda_spectrum(lidar_scatter(views_NVD), delta), alpha)


def dime(a_ND: Tensor, b_ND: Tensor, permutations_PN: Tensor, alpha: float = 1.0) -> Tensor:
    joint_A, permuted_AP = dime_entropies(a_ND, b_ND, permutations_PN, [alpha])
    return permuted_AP.mean() - joint_A[0]


# --- InfoNCE


@pytest.mark.parametrize("n", [1, 2, 7])
def test_all_equal_views_sit_at_chance(n: int) -> None:
    view_ND = draw(5).repeat(n, 1)
    assert same(infonce_loss(view_ND, view_ND), math.log(2 * n - 1))
    found = views_module.infonce([view_ND[:, None].repeat(1, 4, 1)], 0.1)
    assert same(found["loss"], math.log(2 * n - 1))
    assert same(found["bound"], 0.0)


def test_one_hot_views_have_a_closed_form() -> None:
    # The positive has logit 1 / t, the 2N - 2 others 0.
    expected = math.log(math.exp(1 / 0.5) + 14) - 1 / 0.5
    assert same(infonce_loss(torch.eye(8), torch.eye(8), 0.5), expected)


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


@few
@given(n=st.integers(1, 9), dim=small_sizes, seed=seeds)
def test_infonce_ignores_order_views_and_rotation(n: int, dim: int, seed: int) -> None:
    a_ND, b_ND = draw(n, dim, seed=seed), draw(n, dim, seed=seed + 1)
    turn_DD = rotation(dim, seed)
    expected = infonce_loss(a_ND, b_ND)
    assert same(infonce_loss(b_ND, a_ND), expected)
    assert same(infonce_loss(shuffled(a_ND, seed), shuffled(b_ND, seed)), expected)
    assert same(infonce_loss(a_ND @ turn_DD, b_ND @ turn_DD), expected)


def test_matching_views_beat_mismatched_views() -> None:
    view_ND = draw(20, 16)
    bounds = [
        views_module.infonce([torch.stack([view_ND, view_ND.roll(by, 0)], dim=1)], 0.1)["bound"]
        for by in (0, 1)
    ]
    assert bounds[0] > 2
    assert bounds[1] < 0


# --- LiDAR


def test_lidar_of_orthogonal_prompts_counts_their_differences() -> None:
    views_NVD = torch.eye(6)[:, None].repeat(1, 4, 1)
    for alpha in ALPHAS:
        assert same(lidar(views_NVD, alpha=alpha), math.log(5))


def test_lda_spectrum_has_a_closed_form_on_axes() -> None:
    # Axis 0: means +-3, views +-2 around them; axis 1: means +-1, views equal.
    centres = torch.tensor([[3.0, 1.0], [-3.0, 1.0], [3.0, -1.0], [-3.0, -1.0]])
    views_NVD = centres[:, None] + torch.tensor([[2.0, 0.0], [-2.0, 0.0]])
    expected = float64([9 / (4 + 0.25), 1 / 0.25])
    assert same(lda_spectrum(lidar_scatter(views_NVD), delta=0.25), expected)


@few
@given(n=st.integers(2, 9), views=st.integers(1, 5), dim=small_sizes, seed=seeds)
def test_lidar_ignores_order_rotation_offset_and_shard_cuts(
    n: int, views: int, dim: int, seed: int
) -> None:
    views_NVD = draw(n, views, dim, seed=seed)
    expected = lidar(views_NVD, delta=0.1)
    for changed in (shuffled(views_NVD, seed), views_NVD.flip(1), views_NVD @ rotation(dim, seed)):
        assert same(lidar(changed, delta=0.1), expected)
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


def test_lidar_without_differences_between_prompts_is_undefined() -> None:
    views_VD = draw(6, 8) + 3
    rotated = [views_VD.roll(shift, 0) for shift in range(6)]
    assert lidar(views_VD[None]).isnan()
    assert lidar(views_VD.repeat(5, 1, 1)).isnan()
    assert lidar(torch.zeros(5, 4, 8)).isnan()
    # Equal means up to the rounding of another order of summation.
    assert lidar(torch.stack(rotated)).isnan()
    views_NVD = draw(5, 4, 8)
    views_NVD[2, 1, 0] = math.inf
    assert lidar(views_NVD).isnan()


# --- DiME


def test_dime_of_two_clusters_has_a_closed_form() -> None:
    view_ND = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    permutations_PN = torch.tensor([[0, 2, 1, 3], [0, 1, 2, 3]])
    for alpha in ALPHAS:
        joint_A, permuted_AP = dime_entropies(view_ND, view_ND, permutations_PN, [alpha])
        assert same(joint_A, math.log(2))
        assert same(permuted_AP, float64([4.0, 2.0]).log())
        assert same(dime(view_ND, view_ND, permutations_PN, alpha), math.log(2) / 2)


@few
@given(n=st.integers(2, 9), dim=small_sizes, seed=seeds, alpha=st.sampled_from([1.0, 2.0]))
def test_dime_ignores_scale_rotation_and_view_order(
    n: int, dim: int, seed: int, alpha: float
) -> None:
    a_ND, b_ND = draw(n, dim, seed=seed), draw(n, dim, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    permutations_PN = torch.stack([torch.randperm(n, generator=generator) for _ in range(4)])
    expected = dime(a_ND, b_ND, permutations_PN, alpha)
    assert same(dime(3 * a_ND, 0.2 * b_ND, permutations_PN, alpha), expected)
    turned_ND = a_ND @ rotation(dim, seed)
    assert same(dime(turned_ND, b_ND, permutations_PN, alpha), expected)
    inverse_PN = permutations_PN.argsort(dim=1)
    assert same(dime(b_ND, a_ND, inverse_PN, alpha), expected)
    assert same(dime(a_ND, b_ND, torch.arange(n)[None], alpha), 0.0)


# --- bounded memory


@pytest.mark.parametrize("elements", [1, 50])
@pytest.mark.parametrize("name", of_kind(METRICS, Views))
def test_blocks_never_matter(name: str, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    views_NVD, measure = draw(9, 4, 5), of_kind([name], Views)[name]
    expected = measure.compute([views_NVD], Parameters())
    monkeypatch.setattr(views_module, "BLOCK_ELEMENTS", elements)
    cut = [views_NVD[:2], views_NVD[2:3], views_NVD[3:]]
    assert measure.compute(cut, Parameters()) == pytest.approx(expected, rel=1e-9)
