"""What a metric is measured on, and what the metrics can be asked with.

Shapes: N prompts, M prompts in several layers, V views, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from operators.metrics.population import Population
from operators.metrics.spectrum import EntropyNorm, SpectrumMethod
from operators.metrics.token.rows import WITHOUT_FIRST, Chunk, Kernel

FEWEST_VIEWS = 2  # that can be told apart


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


OfChunk = Callable[[Chunk, Parameters], dict[str, Tensor]]


def single(kernel: Kernel) -> OfChunk:
    """Return what gives a kernel's values of a chunk, in one variant."""
    return lambda chunk, _: {"": kernel(chunk.tokens_MTD, chunk.mask_MT)}


def with_and_without_first(compute: OfChunk) -> Tokens:
    """Return a token metric that has its values with and, if asked for, without the first token."""

    def both(chunk: Chunk, parameters: Parameters) -> dict[str, Tensor]:
        found = compute(chunk, parameters)
        later = compute(chunk.without_first(), parameters) if parameters.without_first else {}
        for variant, values_M in later.items():
            found[f"{variant},{WITHOUT_FIRST}".lstrip(",")] = values_M
        return found

    return Tokens(both)


def centered_or_not(compute: Callable[[Tensor], Tensor]) -> Prompts:
    """Return a metric of the spectrum of the vectors around their mean, and as they are."""
    return Prompts(
        lambda prompts, _: {
            name: float(compute(prompts.spectrum(center=center, unit=False)))
            for name, center in (("centered", True), ("uncentered", False))
        }
    )
