"""What each metric is asked with, and the named variants of values that it gives.

Shapes: N prompts, M prompts in several layers, V views, D features, A entropy orders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from operators.metrics.population import Population
from operators.metrics.token.curvature import curvatures
from operators.metrics.token.entropy import (
    EntropyNorm,
    SpectrumMethod,
    entropies,
    matrix_entropy,
    normalize_entropy,
)
from operators.metrics.token.rows import Chunk
from operators.metrics.views.dime import dime
from operators.metrics.views.infonce import infonce_bound, infonce_loss
from operators.metrics.views.lidar import lda_spectrum, lidar_scatter, merge_scatters

FEWEST_VIEWS = 2  # that can be told apart
WITHOUT_FIRST = "no_first"  # variant: as if the prompt had no first token


@dataclass(frozen=True)
class Parameters:
    """What the metrics can be asked with; see the functions for meaning and source."""

    alphas: tuple[float, ...] = (1.0, 2.0)
    normalizations: tuple[EntropyNorm, ...] = ("raw",)
    without_first: bool = True
    method: SpectrumMethod = "exact"
    neighbour_sample: int = 5_000
    temperature: float = 0.1
    delta: float = 1e-4
    permutations: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Tokens:
    """Measured on the tokens of each prompt: variant -> one value per prompt and layer [M]."""

    compute: Callable[[Chunk, Parameters], dict[str, Tensor]]


@dataclass(frozen=True)
class Prompts:
    """Measured on the pooled vectors of the prompts in one layer: variant -> value.

    `at_most` names the parameter that limits how many prompts are looked at.
    """

    compute: Callable[[Population, Parameters], dict[str, float]]
    at_most: str = ""


@dataclass(frozen=True)
class Views:
    """Measured on blocks [N, V, D] of views, read as often as needed: variant -> value."""

    compute: Callable[[Iterable[Tensor], Parameters], dict[str, float]]


@dataclass(frozen=True)
class Layers:
    """Measured on the same prompts in two layers, by linear CKA; see `similarity`."""

    other: Literal["previous", "last"]


def variant_name(*words: str) -> str:
    """Return the name of a variant from its words; raw values and what is usual go unnamed."""
    return ",".join(word for word in words if word not in ("", "raw"))


def order_name(alpha: float) -> str:
    """Return the word for an entropy order."""
    return f"alpha={alpha:g}"


def _chunks(chunk: Chunk, parameters: Parameters) -> Iterator[tuple[str, Chunk]]:
    """Yield the prompts as they are and, if asked for, without their first token."""
    yield "", chunk
    if parameters.without_first:
        yield WITHOUT_FIRST, chunk.without_first()


def prompt_entropy_variants(chunk: Chunk, parameters: Parameters) -> dict[str, Tensor]:
    """Every order and normalisation, with and without the first token; one spectrum for each."""
    found = {}
    for word, part in _chunks(chunk, parameters):
        tokens_MTD, mask_MT = part.tokens_MTD, part.mask_MT
        values_AM = entropies(tokens_MTD, mask_MT, parameters.alphas, method=parameters.method)
        lengths_M, dim = mask_MT.sum(dim=1), tokens_MTD.shape[2]
        for alpha, values_M in zip(parameters.alphas, values_AM, strict=True):
            for how in parameters.normalizations:
                normalized_M = normalize_entropy(values_M, lengths_M, dim, how)
                found[variant_name(order_name(alpha), how, word)] = normalized_M
    return found


def curvature_variants(chunk: Chunk, parameters: Parameters) -> dict[str, Tensor]:
    """Both rules for equal neighbours, with and without the first token."""
    values = curvatures(chunk.tokens_MTD, chunk.mask_MT)
    rules = {"nan": "", "skip": "skip"}
    return {
        variant_name(rules[undefined], WITHOUT_FIRST if dropped else ""): values_M
        for (undefined, dropped), values_M in values.items()
        if parameters.without_first or not dropped
    }


def with_and_without_first(compute: Callable[[Tensor, Tensor], Tensor]) -> Tokens:
    """Return a token metric that has a value with and without the first token."""
    return Tokens(
        lambda chunk, parameters: {
            word: compute(part.tokens_MTD, part.mask_MT)
            for word, part in _chunks(chunk, parameters)
        }
    )


def entropy_variants(
    spectrum: Tensor, n: int, dim: int, parameters: Parameters
) -> dict[str, float]:
    """Every order and normalisation of the entropy of a spectrum of n rows of dim features."""
    return {
        variant_name(order_name(alpha), how): float(
            normalize_entropy(matrix_entropy(spectrum, alpha), n, dim, how)
        )
        for alpha in parameters.alphas
        for how in parameters.normalizations
    }


def dataset_entropy_variants(prompts: Population, parameters: Parameters) -> dict[str, float]:
    """Every order and normalisation."""
    spectrum = prompts.spectrum(center=True, unit=True)
    return entropy_variants(spectrum, prompts.n_prompts, prompts.dim, parameters)


def centered_or_not(compute: Callable[[Tensor], Tensor]) -> Prompts:
    """Return a metric of the spectrum of the vectors around their mean, and as they are."""
    return Prompts(
        lambda prompts, _: {
            name: float(compute(prompts.spectrum(center=center, unit=False)))
            for name, center in (("centered", True), ("uncentered", False))
        }
    )


def _unit(rows_ND: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows_ND.double(), dim=-1)


def infonce_variants(blocks: Iterable[Tensor], parameters: Parameters) -> dict[str, float]:
    """Mean loss over disjoint pairs of views, on unit vectors (cosine similarity)."""
    n_prompts, n_views = _size(blocks)
    losses = [
        float(
            infonce_loss(
                _unit(_view(blocks, 2 * pair)),
                _unit(_view(blocks, 2 * pair + 1)),
                parameters.temperature,
            )
        )
        for pair in range(n_views // 2)
    ]
    loss = sum(losses) / len(losses)
    return {"loss": loss, "bound": infonce_bound(loss, n_prompts)}


def lidar_variants(blocks: Iterable[Tensor], parameters: Parameters) -> dict[str, float]:
    """Every order and normalisation, and the paper's rank; scatters merge over the blocks."""
    scatter = reduce(merge_scatters, map(lidar_scatter, blocks))
    spectrum_D = lda_spectrum(scatter, parameters.delta)
    values = entropy_variants(spectrum_D, scatter.n_prompts, len(spectrum_D), parameters)
    return {**values, "rank": float(matrix_entropy(spectrum_D).exp())}


def dime_variants(blocks: Iterable[Tensor], parameters: Parameters) -> dict[str, float]:
    """DiME of the first two views, on unit vectors."""
    view_a_ND, view_b_ND = _unit(_view(blocks, 0)), _unit(_view(blocks, 1))
    draw = np.random.default_rng(parameters.seed)
    shuffles = [draw.permutation(len(view_a_ND)) for _ in range(parameters.permutations)]
    permutations_PN = torch.from_numpy(np.stack(shuffles))
    return {
        order_name(alpha): float(dime(view_a_ND, view_b_ND, permutations_PN, alpha))
        for alpha in parameters.alphas
    }


def _size(blocks: Iterable[Tensor]) -> tuple[int, int]:
    shapes = [block_NVD.shape for block_NVD in blocks]
    return sum(shape[0] for shape in shapes), shapes[0][1]


def _view(blocks: Iterable[Tensor], index: int) -> Tensor:
    return torch.cat([block_NVD[:, index] for block_NVD in blocks])
