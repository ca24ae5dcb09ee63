"""The approximate entropies against the exact ones, and what must not change them."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from operators.metrics.token import rows as rows_module
from operators.metrics.token.entropy import SpectrumMethod, entropies, prompt_entropy
from operators.metrics.token.quadrature import SMALLEST_SIDE
from operators.metrics.token.rows import length_chunks

TOKENS, FEATURES = 520, 430
RELATIVE = {0.5: 1e-2, 1.0: 1e-3, 1.5: 1e-3, 2.0: 1e-6, 3.0: 1e-3}
ABSOLUTE = {0.5: 1e-1, 1.0: 2e-4, 1.5: 1e-5, 2.0: 1e-5, 3.0: 1e-5}  # where the entropy is near 0


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def power_law(tokens: int, dim: int, exponent: float) -> Tensor:
    return normal(tokens, dim) * torch.arange(1, dim + 1) ** (-exponent / 2)


def massive_first(tokens: int, dim: int) -> Tensor:
    tokens_TD = power_law(tokens, dim, 1.0) + 5 * normal(dim, seed=1)
    tokens_TD[0] *= 1000
    return tokens_TD


SPECTRA: dict[str, Callable[[int, int], Tensor]] = {
    "flat": normal,
    "power-0.5": lambda t, d: power_law(t, d, 0.5),
    "power-1": lambda t, d: power_law(t, d, 1.0),
    "power-1.5": lambda t, d: power_law(t, d, 1.5),
    "power-2": lambda t, d: power_law(t, d, 2.0),
    "power-3": lambda t, d: power_law(t, d, 3.0),
    "rank-10": lambda t, d: normal(t, 10) @ normal(10, d, seed=1),
    "rank-100": lambda t, d: normal(t, 100) @ normal(100, d, seed=1),
    "one-direction": lambda t, d: normal(t, d) + 20 * normal(t, 1, seed=1) @ normal(1, d, seed=2),
    "clusters": lambda t, d: normal(20, d).repeat(t // 20 + 1, 1)[:t] + 0.3 * normal(t, d, seed=1),
    "massive-first": massive_first,
    "walk": lambda t, d: normal(t, d).cumsum(dim=0),
}
each_spectrum = pytest.mark.parametrize("make", SPECTRA.values(), ids=SPECTRA.keys())


def measured(
    tokens_TD: Tensor,
    alphas: list[float],
    method: SpectrumMethod = "approximate",
    center: bool = True,
    unit: bool = True,
) -> Tensor:
    (chunk,) = length_chunks([tokens_TD[None]], torch.tensor([len(tokens_TD)]))
    return entropies(chunk.tokens_MTD, chunk.mask_MT, alphas, center, unit, method)[:, 0]


@pytest.mark.parametrize("tokens", [SMALLEST_SIDE, FEATURES])
def test_equal_eigenvalues(tokens: int) -> None:
    """A product with the matrix then gives no new direction, only rounding."""
    values = measured(torch.eye(FEATURES)[:tokens], [0.5, 1.0, 3.0], center=False)
    assert values.tolist() == pytest.approx([math.log(tokens)] * 3, rel=1e-6)


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


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("unit", [True, False])
def test_close_to_exact_as_the_rows_are_prepared(center: bool, unit: bool) -> None:
    tokens_TD = power_law(TOKENS, FEATURES, 1.0) + 0.5 * normal(FEATURES, seed=1)
    exact = measured(tokens_TD, [1.0], "exact", center, unit)
    assert measured(tokens_TD, [1.0], "approximate", center, unit) == pytest.approx(exact, rel=1e-3)
    for scale in (2.0**100, 2.0**-100):
        scaled = measured(tokens_TD * scale, [1.0], "approximate", center, unit)
        assert torch.equal(scaled, measured(tokens_TD, [1.0], "approximate", center, unit))


def test_short_prompts_are_exact() -> None:
    assert SMALLEST_SIDE > 300
    hidden_NTD, lengths_N = normal(3, 300, 500), torch.tensor([300, 20, 1])
    exact_N = prompt_entropy(hidden_NTD, lengths_N)
    approximate_N = prompt_entropy(hidden_NTD, lengths_N, method="approximate")
    assert torch.equal(approximate_N.nan_to_num(), exact_N.nan_to_num())
    few_features_NTD = normal(1, 600, 50)
    lengths_N = torch.tensor([600])
    exact_N = prompt_entropy(few_features_NTD, lengths_N)
    assert torch.equal(prompt_entropy(few_features_NTD, lengths_N, method="approximate"), exact_N)


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
    alone = [
        [measured(row[:length], [1.0]) for row, length in zip(state, lengths_N, strict=True)]
        for state in states
    ]
    padding_NT1 = (torch.arange(460) >= lengths_N[:, None])[..., None]
    order = torch.tensor([3, 1, 0, 4, 2])
    filled = [state.masked_fill(padding_NT1, math.nan)[order] for state in states]
    found_LN = torch.zeros(2, 5, dtype=torch.float64)
    for index_n, tokens_MTD, mask_MT, layers in length_chunks(filled, lengths_N[order]):
        (values_M,) = entropies(tokens_MTD, mask_MT, [1.0], method="approximate")
        found_LN[layers, order[index_n]] = values_M.view(-1, len(index_n))
    assert found_LN.flatten().tolist() == pytest.approx(
        [float(value) for row in alone for value in row], rel=1e-5
    )


def test_values_repeat_and_touch_no_global_random_state() -> None:
    tokens_TD = power_law(TOKENS, FEATURES, 1.0)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first_A = measured(tokens_TD, [1.0, 3.0])
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(measured(tokens_TD, [1.0, 3.0]), first_A)
    assert torch.equal(measured(tokens_TD, [3.0, 2.0, 1.0])[[2, 0]], first_A)


def test_rotation_and_order_move_values_within_the_error() -> None:
    tokens_TD = power_law(TOKENS, FEATURES, 1.0)
    expected = measured(tokens_TD, [1.0], "exact")
    basis, _ = torch.linalg.qr(normal(FEATURES, FEATURES, seed=3))
    assert measured(tokens_TD @ basis, [1.0]) == pytest.approx(expected, rel=1e-3)
    assert measured(tokens_TD.flip(0), [1.0]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_undefined_as_the_exact_entropy_is(alpha: float) -> None:
    hidden_NTD = normal(6, 450, 440)
    hidden_NTD[1] = hidden_NTD[1, :1].clone()
    hidden_NTD[2] = 0
    hidden_NTD[3, 200, 1] = math.nan
    hidden_NTD[4, 200, 1] = -math.inf
    lengths_N = torch.tensor([450, 450, 450, 450, 450, 450])
    for center in (True, False):
        exact_N = prompt_entropy(hidden_NTD, lengths_N, alpha, center)
        values_N = prompt_entropy(hidden_NTD, lengths_N, alpha, center, method="approximate")
        assert torch.equal(values_N.isnan(), exact_N.isnan())
        equal, exact = float(values_N[1].nan_to_num()), float(exact_N[1].nan_to_num())
        assert equal == pytest.approx(exact, abs=ABSOLUTE[alpha])


def test_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="exact, approximate"):
        prompt_entropy(normal(1, 3, 2), torch.tensor([3]), method="fast")  # type: ignore[arg-type]
