"""The approximate entropies against the exact ones, and what must not change them."""

import math
from collections.abc import Callable
from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from layerrank.operators.metrics import SpectrumMethod
from layerrank.operators.metrics import rows as rows_module
from layerrank.operators.metrics.quadrature import SMALLEST_SIDE, quadrature_entropies
from layerrank.operators.metrics.registry import Parameters, token_metrics
from layerrank.operators.metrics.rows import length_chunks
from layerrank.operators.metrics.tokens import entropies
from tests.support.whole import draw, prompt_entropy, rotation

TOKENS, FEATURES = 520, 430
RELATIVE = {0.5: 1e-2, 1.0: 1e-3, 1.5: 1e-3, 2.0: 1e-6, 3.0: 1e-3}
ABSOLUTE = {0.5: 1e-1, 1.0: 2e-4, 1.5: 1e-5, 2.0: 1e-5, 3.0: 1e-5}  # where the entropy is near 0


def power_law(tokens: int, dim: int, exponent: float) -> Tensor:
    return draw(tokens, dim) * torch.arange(1, dim + 1) ** (-exponent / 2)


def massive_first(tokens: int, dim: int) -> Tensor:
    tokens_TD = power_law(tokens, dim, 1.0) + 5 * draw(dim, seed=1)
    tokens_TD[0] *= 1000
    return tokens_TD


SPECTRA: dict[str, Callable[[int, int], Tensor]] = {
    "flat": draw,
    **{f"power-{each}": partial(power_law, exponent=each) for each in (0.5, 1.0, 1.5, 2.0, 3.0)},
    "rank-10": lambda t, d: draw(t, 10) @ draw(10, d, seed=1),
    "rank-100": lambda t, d: draw(t, 100) @ draw(100, d, seed=1),
    "one-direction": lambda t, d: draw(t, d) + 20 * draw(t, 1, seed=1) @ draw(1, d, seed=2),
    "clusters": lambda t, d: draw(20, d).repeat(t // 20 + 1, 1)[:t] + 0.3 * draw(t, d, seed=1),
    "massive-first": massive_first,
    "walk": lambda t, d: draw(t, d).cumsum(dim=0),
}
each_spectrum = pytest.mark.parametrize("make", SPECTRA.values(), ids=SPECTRA.keys())


def measured(
    tokens_TD: Tensor, alphas: list[float], method: SpectrumMethod = "approximate"
) -> Tensor:
    (chunk,) = length_chunks([tokens_TD[None]], torch.tensor([len(tokens_TD)]))
    return entropies(chunk.tokens_MTD, chunk.mask_MT, alphas, method)[""][:, 0]


@pytest.mark.parametrize("tokens", [SMALLEST_SIDE, FEATURES])
def test_equal_eigenvalues(tokens: int) -> None:
    """A product with the matrix then gives no new direction, only rounding."""
    gram_mKK = torch.eye(tokens)[None] / tokens
    values = quadrature_entropies(gram_mKK, torch.tensor([tokens]), [0.5, 1.0, 3.0])
    assert values.flatten().tolist() == pytest.approx([math.log(tokens)] * 3, rel=1e-6)


@pytest.mark.parametrize("shape", [(TOKENS, FEATURES), (FEATURES, TOKENS)], ids=["tall", "wide"])
@each_spectrum
def test_close_to_exact(make: Callable[[int, int], Tensor], shape: tuple[int, int]) -> None:
    tokens_TD = make(*shape)
    for states in (tokens_TD, tokens_TD.to(torch.float32)):
        exact_A = measured(states, list(RELATIVE), "exact")
        for value, exact, alpha in zip(
            measured(states, list(RELATIVE)).tolist(), exact_A.tolist(), RELATIVE, strict=True
        ):
            nearly_one_direction = exact < 0.1 if alpha >= 1 else exact_A[1] < 0.1
            limit = ABSOLUTE[alpha] if nearly_one_direction else RELATIVE[alpha] * exact
            assert abs(value - exact) <= limit, (alpha, value, exact)


def test_scale_changes_nothing_and_rotation_and_order_less_than_the_error() -> None:
    tokens_TD = power_law(TOKENS, FEATURES, 1.0) + 0.5 * draw(FEATURES, seed=1)
    expected = measured(tokens_TD, [1.0], "exact")
    for changed_TD in (tokens_TD, tokens_TD @ rotation(FEATURES, 3), tokens_TD.flip(0)):
        assert measured(changed_TD, [1.0]) == pytest.approx(expected, rel=1e-3)
    for scale in (2.0**100, 2.0**-100):
        assert torch.equal(measured(tokens_TD * scale, [1.0]), measured(tokens_TD, [1.0]))


def test_short_prompts_are_exact() -> None:
    assert SMALLEST_SIDE > 300
    for hidden_NTD, lengths in ((draw(3, 300, 500), [300, 20, 1]), (draw(1, 600, 50), [600])):
        exact_N, approximate_N = (
            prompt_entropy(hidden_NTD, torch.tensor(lengths), method=method).nan_to_num()
            for method in get_args(SpectrumMethod)
        )
        assert torch.equal(approximate_N, exact_N)


@pytest.mark.parametrize("block", [1, 2**26], ids=["a block a row", "one block"])
def test_padding_batch_layers_and_order_never_matter(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "BLOCK_ELEMENTS", {"cpu": block})
    monkeypatch.setattr(rows_module, "WIDTH_RATIO", 9.0)
    lengths_N = torch.tensor([440, 25, 420, 410, 399])
    states = [
        power_law(5 * 460, 425, exponent).view(5, 460, 425).to(torch.float32)
        for exponent in (0.7, 1.3)
    ]
    alone = [[measured(state[n, : lengths_N[n]], [1.0]) for n in range(5)] for state in states]
    padding_NT1 = (torch.arange(460) >= lengths_N[:, None])[..., None]
    order = torch.tensor([3, 1, 0, 4, 2])
    filled = [state.masked_fill(padding_NT1, math.nan)[order] for state in states]
    asked = Parameters((1.0,), without_first=False, method="approximate")
    (found_LN,) = token_metrics(filled, lengths_N[order], ["prompt_entropy"], asked).values()
    assert found_LN == pytest.approx(np.array(alone)[:, order, 0], rel=1e-5)


def test_values_repeat_and_touch_no_global_random_state() -> None:
    tokens_TD = power_law(TOKENS, FEATURES, 1.0)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first_A = measured(tokens_TD, [1.0, 3.0])
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(measured(tokens_TD, [1.0, 3.0]), first_A)
    assert torch.equal(measured(tokens_TD, [3.0, 2.0, 1.0])[[2, 0]], first_A)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_undefined_as_the_exact_entropy_is(alpha: float) -> None:
    hidden_NTD = draw(6, 450, 440)
    hidden_NTD[1] = hidden_NTD[1, :1].clone()
    hidden_NTD[2] = 0
    hidden_NTD[3, 200, 1] = math.nan
    hidden_NTD[4, 200, 1] = -math.inf
    lengths_N = torch.tensor([450] * 6)
    exact_N = prompt_entropy(hidden_NTD, lengths_N, alpha)
    values_N = prompt_entropy(hidden_NTD, lengths_N, alpha, "approximate")
    assert torch.equal(values_N.isnan(), exact_N.isnan())
    assert values_N.isnan().tolist() == [False, True, True, True, True, False]


def test_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="exact, approximate"):
        prompt_entropy(draw(1, 3, 2), torch.tensor([3]), method="fast")  # type: ignore[arg-type]
