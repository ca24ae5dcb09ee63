"""Every metric by name: what it is measured on, what it says, and how it is computed.

Adding a metric: a function in the file of its kind (`tokens.py`, `prompts.py`, `views.py`), an
entry of METRICS, a section and a row of docs/metrics.md, and a test.

Shapes: L layers, N prompts, T tokens (right-padded), V views, D features; a lower-case n is the
prompts of one chunk, and M = L x n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from layerrank.operators.later import Later
from layerrank.operators.metrics import (
    FEWEST_DEBIASED,
    FEWEST_POINTS,
    FEWEST_RANKS,
    FIRST_RANK,
    WITHOUT_FIRST,
    EntropyNorm,
    SpectrumMethod,
)
from layerrank.storage.schema import entropy_variant

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from layerrank.operators.metrics import prompts, rows, spectrum, tokens, views
    from layerrank.operators.metrics.population import Population
    from layerrank.operators.metrics.rows import Chunk
else:  # whoever reads what a metric is called computes none
    torch = Later("torch")
    prompts, rows, spectrum, tokens, views = (
        Later(f"layerrank.operators.metrics.{name}")
        for name in ("prompts", "rows", "spectrum", "tokens", "views")
    )

FEWEST_VIEWS = 2  # that can be told apart
TokenValues = dict[tuple[str, str], npt.NDArray[np.float64]]


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
    dime_sample: int | None = 1_000
    seed: int = 0


OfTokens: TypeAlias = "Callable[[Tensor, Tensor, bool], dict[str, Tensor]]"
OfChunk: TypeAlias = "Callable[[Chunk, Parameters], dict[str, Tensor]]"


@dataclass(frozen=True)
class Tokens:
    """Measured on the tokens of each prompt: variant -> one value per prompt and layer [M]."""

    compute: OfChunk


@dataclass(frozen=True)
class Prompts:
    """Measured on the pooled vectors of the prompts in one layer: variant -> value.

    `at_most` names the parameter that limits how many prompts are looked at.
    """

    compute: Callable[[Population, Parameters], dict[str, float]]
    at_most: str = ""


@dataclass(frozen=True)
class Views:
    """Measured on blocks [N, V, D] of views, read as often as needed: variant -> value.

    `at_most` is as for prompts; a value of `every` view depends on how many there are.
    """

    compute: Callable[[Iterable[Tensor], Parameters], dict[str, float]]
    at_most: str = ""
    every: bool = True


@dataclass(frozen=True)
class Layers:
    """Measured on the same prompts in two layers, by linear CKA; see `similarity`."""

    other: Literal["previous", "last"]


Kind = TypeVar("Kind", Tokens, Prompts, Views, Layers)


@dataclass(frozen=True)
class Metric:
    """What people need to know of a metric, and how it is measured.

    A value is usable from `enough` prompts on, and from `enough_per_feature` times the features;
    `fewest` are needed for any. `main` is the variant that stands for the metric, `perturbed` the
    one that does under conditions, if these leave the main one undefined for many prompts; `units`
    are those of its other variants, by a word of their name. `read_as` is the end that people take
    for better: docs/metrics.md says so, and that nobody has shown it for layers of such models.
    """

    measured: Tokens | Prompts | Views | Layers
    title: str
    unit: str
    says: str
    undefined: str
    paper: str
    enough: int
    enough_per_feature: int = 0
    read_as: Literal["high", "low", ""] = ""
    main: str = ""
    perturbed: str = ""
    units: tuple[tuple[str, str], ...] = ()
    fewest: int = 1


def of_kind(names: Iterable[str], kind: type[Kind]) -> dict[str, Kind]:
    """Return those of the named metrics that are measured on one kind of thing, none but ours."""
    ours = ((name, METRICS[name].measured) for name in names if name in METRICS)
    return {name: measured for name, measured in ours if isinstance(measured, kind)}


def unit_of(metric: str, variant: str) -> str:
    """Return the unit of a metric's values in one of its variants."""
    units = dict(METRICS[metric].units)
    return next((units[w] for w in variant.split(",") if w in units), METRICS[metric].unit)


def of_every_view(metric: str) -> bool:
    """Whether a metric's values depend on the number of views, and say nothing without it."""
    known = METRICS.get(metric)
    return known is not None and isinstance(known.measured, Views) and known.measured.every


def prompts_used(measured: Prompts | Views, parameters: Parameters, prompts: int) -> int:
    """Return how many of so many prompts a metric looks at."""
    at_most = getattr(parameters, measured.at_most) if measured.at_most else None
    return prompts if at_most is None else min(prompts, at_most)


def main_variant(metric: str, parameters: Parameters) -> str:
    """Return the variant that stands for a metric, as a plot or a ranking rule takes it."""
    alpha = parameters.alphas[0]
    entropy = entropy_variant(alpha, parameters.normalizations[0])
    return METRICS[metric].main.format(order=entropy_variant(alpha), entropy=entropy)


def enough_prompts(metric: str, features: int) -> int:
    """Return how many prompts make a metric's value usable in a layer of so many features."""
    known = METRICS[metric]
    return max(known.enough, known.enough_per_feature * features)


def token_metrics(
    states: Sequence[Tensor], lengths_N: Tensor, names: Sequence[str], parameters: Parameters
) -> TokenValues:
    """Return (metric, variant) -> values [L, N] of the named metrics that are of tokens.

    `states` holds one [N, T, D] per layer, on any device and of any float type; what stands in
    padded positions never matters. A value that does not exist is NaN.
    """
    measures = of_kind(names, Tokens)
    found: dict[tuple[str, str], Tensor] = {}
    shape = (len(states), len(lengths_N))
    for chunk in rows.length_chunks(states, lengths_N):
        for name, measure in measures.items():
            for variant, values_M in measure.compute(chunk, parameters).items():
                values_LN = found.setdefault((name, variant), values_M.new_full(shape, math.nan))
                values_LN[chunk.layers, chunk.index_n] = values_M.reshape(-1, len(chunk.index_n))
    return {key: values_LN.cpu().numpy() for key, values_LN in found.items()}


def token_variants(names: Sequence[str], parameters: Parameters) -> list[tuple[str, str]]:
    """Return the (metric, variant) that `token_metrics` gives values of."""
    states, lengths_N = [torch.randn(2, 4, 4)], torch.tensor([4, 4])
    return [*token_metrics(states, lengths_N, names, parameters)]


def by_variant(compute: OfTokens) -> Tokens:
    """Return a token metric that has its values with and, if asked for, without the first token."""
    return Tokens(lambda chunk, p: compute(chunk.tokens_MTD, chunk.mask_MT, p.without_first))


def prompt_entropies(chunk: Chunk, p: Parameters) -> dict[str, Tensor]:
    """Return the prompt entropies of a chunk, in each normalisation that is asked for."""
    tokens_MTD, mask_MT = chunk.tokens_MTD, chunk.mask_MT
    found = {}
    by_name = tokens.entropies(tokens_MTD, mask_MT, p.alphas, p.method, p.without_first)
    for name, values_AM in by_name.items():
        length_M = mask_MT[:, int(name == WITHOUT_FIRST) :].sum(dim=1)
        size = length_M, tokens_MTD.shape[2]
        variants = spectrum.entropy_variants(values_AM, *size, p.alphas, p.normalizations)
        for variant, values_M in variants.items():
            found[f"{variant},{name}".rstrip(",")] = values_M
    return found


def of_spectrum(compute: Callable[[Tensor], Tensor], centered: dict[str, bool]) -> Prompts:
    """Return a metric of the vectors' spectrum, by variant around their mean or as they are."""
    return Prompts(
        lambda vectors, _: {
            variant: float(compute(vectors.spectrum(center=center, unit=False)))
            for variant, center in centered.items()
        }
    )


_BOTH = {"centered": True, "uncentered": False}
_NORMALIZED = (
    ("maxEntropy", "share of the maximum"),
    ("logNlogD", "nats^-1"),
    ("logN", "share of log N"),
    ("logD", "share of log D"),
)

METRICS: dict[str, Metric] = {
    "prompt_entropy": Metric(
        Tokens(prompt_entropies),
        "Prompt entropy",
        "nats",
        "How evenly the tokens of one prompt spread over directions: low means compressed.",
        "fewer than 2 tokens, or all tokens equal",
        "Skean et al. 2024, arXiv 2412.09563",
        enough=100,
        read_as="low",
        main="{entropy}",
        units=_NORMALIZED,
    ),
    "curvature": Metric(
        by_variant(tokens.curvatures),
        "Curvature",
        "radians",
        "How sharply the path from token to token turns; 2π/3 is what unrelated tokens give.",
        "fewer than 3 tokens, or two equal neighbours",
        "Hosseini & Fedorenko 2023, arXiv 2311.04930",
        enough=50,
        read_as="low",
        perturbed="skip",
    ),
    "mean_norm": Metric(
        by_variant(tokens.mean_norms),
        "Mean norm",
        "activation units",
        "How long the token vectors are on average: in most models it grows with depth.",
        "no token",
        "Sun et al. 2024, arXiv 2402.17762",
        enough=50,
    ),
    "largest_coordinate": Metric(
        by_variant(tokens.largest_coordinates),
        "Largest coordinate",
        "activation units",
        "The largest absolute value of any feature: a sudden rise is a massive activation.",
        "no token",
        "Sun et al. 2024, arXiv 2402.17762",
        enough=50,
    ),
    "first_token_share": Metric(
        Tokens(lambda chunk, _: {"": tokens.first_token_shares(chunk.tokens_MTD, chunk.mask_MT)}),
        "First-token share",
        "share",
        "How much of a prompt's squared norm its first token holds: near 1 is an attention sink.",
        "no token, or only zeros",
        "Queipo-de-Llano et al. 2025, arXiv 2510.06477",
        enough=100,
    ),
    "dataset_entropy": Metric(
        Prompts(lambda vectors, p: prompts.dataset_entropies(vectors, p.alphas, p.normalizations)),
        "Dataset entropy",
        "nats",
        "How evenly the prompts spread over directions: high means diverse vectors.",
        "fewer than 2 prompts, or all vectors equal",
        "Skean et al. 2025, arXiv 2502.02013",
        enough=2,
        read_as="high",
        enough_per_feature=2,
        main="{entropy}",
        units=_NORMALIZED,
        fewest=2,
    ),
    "effective_rank": Metric(
        of_spectrum(prompts.effective_rank, {"": False}),
        "Effective rank",
        "directions",
        "How many directions the vectors use, each weighed by its singular value.",
        "all vectors zero",
        "Roy & Vetterli 2007, EUSIPCO",
        enough=1,
        read_as="high",
        enough_per_feature=4,
    ),
    "rankme": Metric(
        of_spectrum(prompts.rankme, {"": False}),
        "RankMe",
        "directions",
        "The effective rank as RankMe smooths it, a label-free guess at downstream quality.",
        "all vectors zero",
        "Garrido et al. 2023, arXiv 2210.02885",
        enough=1,
        read_as="high",
        enough_per_feature=4,
    ),
    "participation_ratio": Metric(
        of_spectrum(prompts.participation_ratio, _BOTH),
        "Participation ratio",
        "directions",
        "How many directions share the variance of the vectors: 1 when one of them has it all.",
        "fewer than 2 prompts, or all vectors equal",
        "Gao et al. 2017, bioRxiv 214262",
        enough=2,
        enough_per_feature=4,
        main="centered",
        fewest=2,
    ),
    "stable_rank": Metric(
        of_spectrum(prompts.stable_rank, _BOTH),
        "Stable rank",
        "directions",
        "Total variance over that of the strongest direction: 1 when one direction dominates.",
        "fewer than 2 prompts, or all vectors equal",
        "Rudelson & Vershynin 2007, arXiv math/0503442",
        enough=2,
        enough_per_feature=2,
        main="centered",
        fewest=2,
    ),
    "alpha_req": Metric(
        of_spectrum(prompts.alpha_req, {"": True}),
        "alpha-ReQ",
        "exponent",
        "How fast the variance falls from one direction to the next: high means few carry it.",
        f"fewer than {FEWEST_RANKS} directions to fit, from rank {FIRST_RANK} on",
        "Agrawal et al. 2022, NeurIPS",
        enough=800,
        fewest=FIRST_RANK + FEWEST_RANKS,
    ),
    "twonn": Metric(
        Prompts(
            lambda vectors, p: {"": float(prompts.twonn(vectors.sample(p.neighbour_sample)))},
            at_most="neighbour_sample",
        ),
        "Intrinsic dimension",
        "dimensions",
        "How many coordinates describe the vectors locally, from two nearest neighbours.",
        f"fewer than {FEWEST_POINTS} distinct vectors",
        "Facco et al. 2017, doi 10.1038/s41598-017-11873-y",
        enough=1600,  # none is safe, but single samples scatter by 5 % from here on
        fewest=FEWEST_POINTS,
    ),
    "anisotropy": Metric(
        Prompts(lambda vectors, _: {"": float(prompts.anisotropy(vectors.sums))}),
        "Anisotropy",
        "cosine",
        "Mean cosine of two different prompts: near 1 means that all point the same way.",
        "fewer than 2 vectors that are not zero",
        "Ethayarajh 2019, arXiv 1909.00512",
        enough=400,
        read_as="low",
        fewest=2,
    ),
    "cka_previous": Metric(
        Layers("previous"),
        "CKA to the previous layer",
        "similarity",
        "How alike this layer and the one before arrange the prompts: a dip is where it changes.",
        "fewer than 4 prompts, or all vectors equal",
        "Kornblith et al. 2019, arXiv 1905.00414",
        enough=200,
        main="debiased",
        fewest=FEWEST_DEBIASED,
    ),
    "cka_last": Metric(
        Layers("last"),
        "CKA to the last layer",
        "similarity",
        "How alike this layer and the last arrange the prompts: 1 for the same geometry.",
        "fewer than 4 prompts, or all vectors equal",
        "Kornblith et al. 2019, arXiv 1905.00414",
        enough=200,
        main="debiased",
        fewest=FEWEST_DEBIASED,
    ),
    "infonce": Metric(
        Views(lambda blocks, p: views.infonce(blocks, p.temperature)),
        "InfoNCE",
        "nats",
        "How hard it is to tell which two augmented views are of one prompt: low is invariant.",
        "fewer than 2 prompts",
        "van den Oord et al. 2018, arXiv 1807.03748; Chen et al. 2020, arXiv 2002.05709",
        enough=400,
        read_as="low",
        main="loss",
        fewest=2,
    ),
    "lidar": Metric(
        Views(lambda blocks, p: views.lidar(blocks, p.delta, p.alphas, p.normalizations)),
        "LiDAR",
        "nats",
        "In how many directions prompts differ more than the views of one prompt do.",
        "fewer than 2 prompts, or equal class means",
        "Thilak et al. 2023, arXiv 2312.04000",
        enough=1000,
        read_as="high",
        main="{entropy}",
        units=(*_NORMALIZED, ("rank", "directions")),
        fewest=2,
    ),
    "dime": Metric(
        Views(
            lambda blocks, p: views.dime(blocks, p.permutations, p.seed, p.alphas, p.dime_sample),
            at_most="dime_sample",
            every=False,
        ),
        "DiME",
        "nats",
        "How much two views of the prompts share, over what a shuffled pairing would.",
        "fewer than 2 prompts",
        "Skean et al. 2023, arXiv 2301.08164",
        enough=1000,  # none is known: the most that were measured
        read_as="high",
        main="{order}",
        fewest=2,
    ),
}
