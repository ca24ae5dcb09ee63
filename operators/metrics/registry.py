"""Every metric by name: what it is measured on, what it says, and how it is computed.

Adding a metric is one file, one entry of METRICS, one section of docs/metrics.md, and one test.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from operators.metrics.linear.anisotropy import mean_cosine
from operators.metrics.linear.powerlaw import FEWEST_RANKS, FIRST_RANK, power_law_exponent
from operators.metrics.linear.rank import (
    effective_rank_of,
    participation_ratio_of,
    rankme_of,
    stable_rank_of,
)
from operators.metrics.linear.similarity import FEWEST_DEBIASED
from operators.metrics.token.norms import first_token_shares, largest_coordinates, mean_norms
from operators.metrics.twonn import FEWEST_POINTS, twonn
from operators.metrics.variants import (
    Layers,
    Parameters,
    Prompts,
    Tokens,
    Views,
    centered_or_not,
    curvature_variants,
    dataset_entropy_variants,
    dime_variants,
    infonce_variants,
    lidar_variants,
    order_name,
    prompt_entropy_variants,
    variant_name,
    with_and_without_first,
)

Kind = TypeVar("Kind", Tokens, Prompts, Views, Layers)


@dataclass(frozen=True)
class Metric:
    """What people need to know of a metric, and how it is measured.

    `main` is the variant that stands for the metric, `perturbed` the one that does under
    conditions, if these leave the main one undefined for many prompts; `units` are those of its
    other variants, by a word of their name; `fewest` prompts are needed for a value.
    """

    measured: Tokens | Prompts | Views | Layers
    title: str
    unit: str
    says: str
    undefined: str
    paper: str
    main: str = ""
    perturbed: str = ""
    units: tuple[tuple[str, str], ...] = ()
    fewest: int = 1


def of_kind(names: Iterable[str], kind: type[Kind]) -> dict[str, Kind]:
    """Return those of the named metrics that are measured on one kind of thing."""
    found = ((name, METRICS[name].measured) for name in names)
    return {name: measured for name, measured in found if isinstance(measured, kind)}


def unit_of(metric: str, variant: str) -> str:
    """Return the unit of a metric's values in one of its variants."""
    words = variant.split(",")
    special = [unit for word, unit in METRICS[metric].units if word in words]
    return special[0] if special else METRICS[metric].unit


def main_variant(metric: str, parameters: Parameters) -> str:
    """Return the variant that stands for a metric, as a plot or a ranking rule takes it."""
    order = order_name(parameters.alphas[0])
    entropy = variant_name(order, parameters.normalizations[0])
    return METRICS[metric].main.format(order=order, entropy=entropy)


_NORMALIZED = (
    ("maxEntropy", "share of the maximum"),
    ("logNlogD", "nats^-1"),
    ("logN", "share of log N"),
    ("logD", "share of log D"),
)

METRICS: dict[str, Metric] = {
    "prompt_entropy": Metric(
        Tokens(prompt_entropy_variants),
        "Prompt entropy",
        "nats",
        "How evenly the tokens of one prompt spread over directions: low means compressed.",
        "fewer than 2 tokens, or all tokens equal",
        "Skean et al. 2024, arXiv 2412.09563",
        main="{entropy}",
        units=_NORMALIZED,
    ),
    "curvature": Metric(
        Tokens(curvature_variants),
        "Curvature",
        "radians",
        "How sharply the path from token to token turns; 2π/3 is what unrelated tokens give.",
        "fewer than 3 tokens, or two equal neighbours",
        "Hosseini & Fedorenko 2023, arXiv 2311.04930",
        perturbed="skip",
    ),
    "mean_norm": Metric(
        with_and_without_first(mean_norms),
        "Mean norm",
        "activation units",
        "How long the token vectors are on average: in most models it grows with depth.",
        "no token",
        "Sun et al. 2024, arXiv 2402.17762",
    ),
    "largest_coordinate": Metric(
        with_and_without_first(largest_coordinates),
        "Largest coordinate",
        "activation units",
        "The largest absolute value of any feature: a sudden rise is a massive activation.",
        "no token",
        "Sun et al. 2024, arXiv 2402.17762",
    ),
    "first_token_share": Metric(
        Tokens(lambda chunk, _: {"": first_token_shares(chunk.tokens_MTD, chunk.mask_MT)}),
        "First-token share",
        "share",
        "How much of a prompt's squared norm its first token holds: near 1 is an attention sink.",
        "no token, or only zeros",
        "Queipo-de-Llano et al. 2025, arXiv 2510.06477",
    ),
    "dataset_entropy": Metric(
        Prompts(dataset_entropy_variants),
        "Dataset entropy",
        "nats",
        "How evenly the prompts spread over directions: high means diverse vectors.",
        "fewer than 2 prompts, or all vectors equal",
        "Skean et al. 2025, arXiv 2502.02013",
        main="{entropy}",
        units=_NORMALIZED,
        fewest=2,
    ),
    "effective_rank": Metric(
        Prompts(lambda prompts, _: {"": float(effective_rank_of(prompts.spectrum(False, False)))}),
        "Effective rank",
        "directions",
        "How many directions the vectors use, each weighed by its singular value.",
        "all vectors zero",
        "Roy & Vetterli 2007, EUSIPCO",
    ),
    "rankme": Metric(
        Prompts(lambda prompts, _: {"": float(rankme_of(prompts.spectrum(False, False)))}),
        "RankMe",
        "directions",
        "The effective rank as RankMe smooths it, a label-free guess at downstream quality.",
        "all vectors zero",
        "Garrido et al. 2023, arXiv 2210.02885",
    ),
    "participation_ratio": Metric(
        centered_or_not(participation_ratio_of),
        "Participation ratio",
        "directions",
        "How many directions share the variance of the vectors: 1 when one of them has it all.",
        "fewer than 2 prompts, or all vectors equal",
        "Gao et al. 2017, bioRxiv 214262",
        main="centered",
        fewest=2,
    ),
    "stable_rank": Metric(
        centered_or_not(stable_rank_of),
        "Stable rank",
        "directions",
        "Total variance over that of the strongest direction: 1 when one direction dominates.",
        "fewer than 2 prompts, or all vectors equal",
        "Rudelson & Vershynin 2007, arXiv math/0503442",
        main="centered",
        fewest=2,
    ),
    "alpha_req": Metric(
        Prompts(lambda prompts, _: {"": float(power_law_exponent(prompts.spectrum(True, False)))}),
        "alpha-ReQ",
        "exponent",
        "How fast the variance falls from one direction to the next: high means few carry it.",
        f"fewer than {FEWEST_RANKS} directions to fit, from rank {FIRST_RANK} on",
        "Agrawal et al. 2022, NeurIPS",
        fewest=FIRST_RANK + FEWEST_RANKS,
    ),
    "twonn": Metric(
        Prompts(
            lambda prompts, p: {"": float(twonn(prompts.sample(p.neighbour_sample)))},
            at_most="neighbour_sample",
        ),
        "Intrinsic dimension",
        "dimensions",
        "How many coordinates describe the vectors locally, from two nearest neighbours.",
        f"fewer than {FEWEST_POINTS} distinct vectors",
        "Facco et al. 2017, doi 10.1038/s41598-017-11873-y",
        fewest=FEWEST_POINTS,
    ),
    "anisotropy": Metric(
        Prompts(lambda prompts, _: {"": float(mean_cosine(prompts.directions))}),
        "Anisotropy",
        "cosine",
        "Mean cosine of two different prompts: near 1 means that all point the same way.",
        "fewer than 2 vectors that are not zero",
        "Ethayarajh 2019, arXiv 1909.00512",
        fewest=2,
    ),
    "cka_previous": Metric(
        Layers("previous"),
        "CKA to the previous layer",
        "similarity",
        "How alike this layer and the one before arrange the prompts: a dip is where it changes.",
        "fewer than 4 prompts, or all vectors equal",
        "Kornblith et al. 2019, arXiv 1905.00414",
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
        main="debiased",
        fewest=FEWEST_DEBIASED,
    ),
    "infonce": Metric(
        Views(infonce_variants),
        "InfoNCE",
        "nats",
        "How hard it is to tell which two augmented views are of one prompt: low is invariant.",
        "fewer than 2 prompts",
        "van den Oord et al. 2018, arXiv 1807.03748; Chen et al. 2020, arXiv 2002.05709",
        main="loss",
        fewest=2,
    ),
    "lidar": Metric(
        Views(lidar_variants),
        "LiDAR",
        "nats",
        "In how many directions prompts differ more than the views of one prompt do.",
        "fewer than 2 prompts, or equal class means",
        "Thilak et al. 2023, arXiv 2312.04000",
        main="{entropy}",
        units=(*_NORMALIZED, ("rank", "directions")),
        fewest=2,
    ),
    "dime": Metric(
        Views(dime_variants),
        "DiME",
        "nats",
        "How much two views of the prompts share, over what a shuffled pairing would.",
        "fewer than 2 prompts",
        "Skean et al. 2023, arXiv 2301.08164",
        main="{order}",
        fewest=2,
    ),
}
