"""Every metric by name: what it is measured on, what it says, and how it is computed.

Shapes: N prompts, T tokens (right-padded), V views, D features. Adding a metric is one file, one
entry here, and one test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from operators.metrics.curvature import curvature
from operators.metrics.dime import dime
from operators.metrics.entropy import dataset_entropy, prompt_entropy
from operators.metrics.infonce import infonce_bound, infonce_loss
from operators.metrics.lidar import lidar

Family = Literal["tokens", "dataset", "views"]
FEWEST = 2  # prompts, and views, that can be told apart


@dataclass(frozen=True)
class Parameters:
    """What the metrics can be asked with; see the functions for meaning and source."""

    alpha: float = 1.0
    temperature: float = 0.1
    delta: float = 1e-4
    permutations: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Metric:
    """What people need to know of a metric."""

    family: Family
    title: str
    unit: str
    says: str
    undefined: str
    paper: str


METRICS: dict[str, Metric] = {
    "prompt_entropy": Metric(
        "tokens",
        "Prompt entropy",
        "nats",
        "How evenly the tokens of one prompt spread over directions: low means compressed.",
        "one token, or all tokens equal",
        "Skean et al., arXiv 2412.09563",
    ),
    "curvature": Metric(
        "tokens",
        "Curvature",
        "radians",
        "How sharply the path from token to token turns; 2π/3 is what unrelated tokens give.",
        "fewer than 3 tokens, or two equal neighbours",
        "Hosseini & Fedorenko 2023, arXiv 2311.04930",
    ),
    "dataset_entropy": Metric(
        "dataset",
        "Dataset entropy",
        "nats",
        "How evenly the prompts spread over directions: high means diverse vectors.",
        "fewer than 2 prompts, or all vectors equal",
        "Skean et al., arXiv 2412.09563",
    ),
    "infonce": Metric(
        "views",
        "InfoNCE",
        "nats",
        "How hard it is to tell which two augmented views are of one prompt: low is invariant.",
        "fewer than 2 prompts",
        "van den Oord et al. 2018, arXiv 1807.03748; Chen et al. 2020, arXiv 2002.05709",
    ),
    "lidar": Metric(
        "views",
        "LiDAR",
        "nats",
        "In how many directions prompts differ more than the views of one prompt do.",
        "fewer than 2 prompts, or equal class means",
        "Thilak et al. 2023, arXiv 2312.04000",
    ),
    "dime": Metric(
        "views",
        "DiME",
        "nats",
        "How much two views of the prompts share, over what a shuffled pairing would.",
        "fewer than 2 prompts",
        "Skean et al. 2023, arXiv 2301.08164",
    ),
}

TOKEN_METRICS: dict[str, Callable[[Tensor, Tensor, Parameters], Tensor]] = {
    "prompt_entropy": lambda hidden, lengths, p: prompt_entropy(hidden, lengths, p.alpha),
    "curvature": lambda hidden, lengths, _p: curvature(hidden, lengths),
}

DATASET_METRICS: dict[str, Callable[[Tensor, Parameters], dict[str, float]]] = {
    "dataset_entropy": lambda pooled, p: {
        _order(p): float(dataset_entropy(pooled, p.alpha)),
    },
}


def unit_of(metric: str, variant: str) -> str:
    """Return the unit of a metric's values in one of its variants."""
    return "directions" if (metric, variant) == ("lidar", "rank") else METRICS[metric].unit


def variant_of(metric: str, parameters: Parameters) -> str:
    """Return the `variant` of a token metric's rows."""
    return _order(parameters) if metric == "prompt_entropy" else ""


def _order(parameters: Parameters) -> str:
    return f"alpha={parameters.alpha:g}"


def _unit(rows_ND: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows_ND.double(), dim=-1)


def _infonce(views_NVD: Tensor, parameters: Parameters) -> dict[str, float]:
    """Mean loss over disjoint pairs of views, on unit vectors (cosine similarity)."""
    if len(views_NVD) < FEWEST:
        return {"loss": math.nan, "bound": math.nan}
    count = views_NVD.shape[1] // 2
    losses = [
        float(
            infonce_loss(
                _unit(views_NVD[:, 2 * i]), _unit(views_NVD[:, 2 * i + 1]), parameters.temperature
            )
        )
        for i in range(count)
    ]
    loss = sum(losses) / count
    return {"loss": loss, "bound": infonce_bound(loss, views_NVD.shape[0])}


def _lidar(views_NVD: Tensor, parameters: Parameters) -> dict[str, float]:
    if len(views_NVD) < FEWEST:
        return {"entropy": math.nan, "rank": math.nan}
    entropy = float(lidar(views_NVD, parameters.delta, parameters.alpha))
    return {"entropy": entropy, "rank": math.exp(entropy)}


def _dime(views_NVD: Tensor, parameters: Parameters) -> dict[str, float]:
    """DiME of the first two views, on unit vectors."""
    prompts = len(views_NVD)
    if prompts < FEWEST:
        return {_order(parameters): math.nan}
    draw = np.random.default_rng(parameters.seed)
    shuffles = np.stack([draw.permutation(prompts) for _ in range(parameters.permutations)])
    value = dime(
        _unit(views_NVD[:, 0]), _unit(views_NVD[:, 1]), torch.from_numpy(shuffles), parameters.alpha
    )
    return {_order(parameters): float(value)}


VIEW_METRICS: dict[str, Callable[[Tensor, Parameters], dict[str, float]]] = {
    "infonce": _infonce,
    "lidar": _lidar,
    "dime": _dime,
}
