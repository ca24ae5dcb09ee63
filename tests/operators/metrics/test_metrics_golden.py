"""The metrics against expected values that an independent NumPy implementation computed.

A case passes within its ``tol`` from float64 inputs and within its ``tol32`` from float32 inputs,
as ``|got - expected| <= tol * max(1, |expected|)``. Only cases of the papers' formulas are
asserted; what the released code gives is documented, not reproduced.
"""

import json
import math
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from layerrank.operators.analysis.correlates import distance_correlation, spearman
from layerrank.operators.metrics import EntropyNorm, views
from layerrank.operators.metrics.population import row_sums
from layerrank.operators.metrics.prompts import (
    anisotropy,
    effective_rank,
    participation_ratio,
    rankme,
    stable_rank,
)
from layerrank.operators.metrics.rows import prepare_rows
from layerrank.operators.metrics.spectrum import matrix_entropy, normalize_entropy
from tests.support.places import GOLDEN as GOLDEN_FOLDER
from tests.support.places import SHARED
from tests.support.whole import curvature, dataset_entropy, linear_cka, prompt_entropy, spectrum_of

SMALL = (GOLDEN_FOLDER, "metrics")
WHOLE = (SHARED / "golden", "golden")
IMPLEMENTATIONS = ("paper", "lidar_paper")

Case = dict[str, Any]
Params = dict[str, Any]
Inputs = list[Tensor]


@cache
def load(folder: Path, stem: str) -> tuple[list[Case], dict[str, np.ndarray]]:
    index = folder / ("golden_index.json" if stem == "golden" else f"{stem}.json")
    cases = json.loads(index.read_text())["cases"]
    cases = [case for case in cases if case["impl"] in IMPLEMENTATIONS]
    with np.load(folder / f"{stem}.npz") as arrays:
        return cases, {name: arrays[name] for case in cases for name in case["inputs"]}


def padded(tokens_SD: Tensor, offsets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Prompts stored one after the other, right-padded with NaN; without offsets there is one."""
    lengths_N = torch.tensor([len(tokens_SD)]) if offsets is None else offsets.diff()
    prompts = list(tokens_SD.split_with_sizes(lengths_N.tolist()))
    hidden_NTD = torch.nn.utils.rnn.pad_sequence(prompts, True, math.nan)
    return hidden_NTD, lengths_N


def prepared(hidden_NTD: Tensor, lengths_N: Tensor) -> Tensor:
    mask_NT = torch.arange(hidden_NTD.shape[1]) < lengths_N[:, None]
    clean_NTD = hidden_NTD.to(torch.float64).masked_fill(~mask_NT[..., None], 0.0)
    return prepare_rows(clean_NTD, mask_NT)


def normalised(value: Tensor, n: Tensor | int, d: int) -> dict[str, Tensor]:
    return {how: normalize_entropy(value, n, d, how) for how in get_args(EntropyNorm)}


def compute_prompt_entropy(inputs: Inputs, params: Params) -> dict[str, Tensor]:
    hidden_NTD, lengths_N = padded(*inputs)
    if params.get("zero_row") == "nan" and prepared(hidden_NTD, lengths_N).eq(0).all(dim=2).any():
        return {"raw": torch.tensor(math.nan)}
    values_N = prompt_entropy(hidden_NTD, lengths_N, params["alpha"])
    values = normalised(values_N, lengths_N, hidden_NTD.shape[2])
    return {how: value_N.mean() for how, value_N in values.items()}


def compute_curvature(inputs: Inputs, params: Params) -> dict[str, Tensor]:
    hidden_NTD, lengths_N = padded(*inputs)
    if params.get("on") == "centred+unit tokens":
        hidden_NTD = prepared(hidden_NTD, lengths_N)
    variant = "skip" if params.get("undefined") == "skip" else ""
    value = curvature(hidden_NTD, lengths_N, variant).mean()
    return {"raw": value, "logD": value / math.log(hidden_NTD.shape[2])}


def compute_dataset_entropy(inputs: Inputs, params: Params) -> dict[str, Tensor]:
    hidden_NTD, lengths_N = padded(*inputs)
    pooling = params["pooling"].split(",")
    if pooling == ["mean of centred+unit tokens"]:
        hidden_NTD = prepared(hidden_NTD, lengths_N)
    pooled_ND = hidden_NTD.nan_to_num().sum(dim=1) / lengths_N[:, None]
    center, unit = "center" in pooling, "unit" in pooling
    value = dataset_entropy(pooled_ND, params["alpha"], center=center, unit=unit)
    return normalised(value, *pooled_ND.shape)


def compute_infonce(inputs: Inputs, params: Params) -> dict[str, Tensor]:
    a_ND, b_ND = inputs
    if params["cosine"]:
        a_ND, b_ND = (view / view.norm(dim=1, keepdim=True) for view in inputs)
    n, temperature = len(a_ND), params["temperature"]
    if params["form"].startswith("N-way"):
        # Candidates are the other view only, among which no anchor stands.
        forward = views._cross_entropy(a_ND, b_ND, [b_ND], n, temperature)
        loss = (forward + views._cross_entropy(b_ND, a_ND, [a_ND], n, temperature)) / (2 * n)
        return {"loss": loss, "mi_bound_logN-loss": math.log(n) - loss}
    loss = views.infonce_loss(a_ND, b_ND, temperature)
    return {"loss": loss, "mi_bound_log(2N-1)-loss": math.log(2 * n - 1) - loss}


def compute_lidar(inputs: Inputs, params: Params) -> dict[str, Tensor]:
    (views_NVD,) = inputs
    spectrum_D = views.lda_spectrum(views.lidar_scatter(views_NVD), params["delta"])
    if "eps" in params:
        shares_D = spectrum_D / spectrum_D.sum() + params["eps"]
        return {"score": torch.exp(-torch.xlogy(shares_D, shares_D).sum())}
    value = matrix_entropy(spectrum_D, params["alpha"])
    return normalised(value, views_NVD.shape[0], views_NVD.shape[2])


def compute_dime(inputs: Inputs, params: Params) -> dict[str, Tensor]:
    view_a, view_b, permutations = inputs
    if params["kernel"] == "linear Gram DxD":
        view_a, view_b = view_a.T, view_b.T
    (joint,), (permuted_P,) = views.dime_entropies(view_a, view_b, permutations, [params["alpha"]])
    mean = permuted_P.mean()
    return {"dime": mean - joint, "H_joint": joint, "H_perm_mean": mean}


def compute_rank(inputs: Inputs, _: Params) -> dict[str, Tensor]:
    raw, centred = (spectrum_of(inputs[0], center) for center in (False, True))
    return {
        "effective_rank": effective_rank(raw),
        "rankme": rankme(raw),
        "participation_ratio_centered": participation_ratio(centred),
        "participation_ratio_uncentered": participation_ratio(raw),
        "stable_rank": stable_rank(raw),
        "stable_rank_centered": stable_rank(centred),
        "mean_cosine": anisotropy(row_sums(inputs[0])),
    }


def compute_cka(inputs: Inputs, _: Params) -> dict[str, Tensor]:
    found = linear_cka(*inputs)
    return {"linear_cka_biased": found.biased, "linear_cka_unbiased": found.debiased}


def compute_statistics(inputs: Inputs, _: Params) -> dict[str, Tensor]:
    x_N, y_N = (values.double().numpy() for values in inputs)
    return {
        "dcor_vstat": torch.tensor(distance_correlation(x_N, y_N), dtype=torch.float64),
        "spearman_rho": torch.tensor(spearman(x_N, y_N), dtype=torch.float64),
    }


COMPUTE: dict[str, Callable[[Inputs, Params], dict[str, Tensor]]] = {
    "prompt_entropy": compute_prompt_entropy,
    "curvature": compute_curvature,
    "prompt_entropy_mean": compute_prompt_entropy,
    "curvature_mean": compute_curvature,
    "dataset_entropy": compute_dataset_entropy,
    "infonce": compute_infonce,
    "lidar": compute_lidar,
    "dime": compute_dime,
    "rank": compute_rank,
    "cka": compute_cka,
    "statistics": compute_statistics,
}
HERE = pytest.mark.skipif(not WHOLE[0].is_dir(), reason="no shared/golden beside the checkout")
SOURCES = [pytest.param(SMALL, id="copied"), pytest.param(WHOLE, id="whole", marks=HERE)]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("metric", COMPUTE)
def test_values_are_those_of_the_reference(metric: str, source: tuple[Path, str]) -> None:
    cases, arrays = load(*source)
    failed: list[str] = []
    checked = 0
    for case, (dtype, tol) in product(cases, ((torch.float64, "tol"), (torch.float32, "tol32"))):
        tolerance = case[tol]
        if case["metric"] != metric or tolerance is None:
            continue
        inputs = [torch.from_numpy(arrays[name]) for name in case["inputs"]]
        inputs = [each.to(dtype) if each.is_floating_point() else each for each in inputs]
        got = COMPUTE[metric](inputs, case["params"])
        for output, raw in zip(case["outputs"], case["expected"], strict=True):
            value, expected = float(got[output]), float(raw)
            if value != pytest.approx(expected, rel=tolerance, abs=tolerance, nan_ok=True):
                where = f"case {case['id']} {case['inputs'][0]} {dtype} {case['params']} {output}"
                failed.append(f"{where}: got {value!r}, expected {expected!r}, within {tolerance}")
        checked += 1
    assert not failed, f"{len(failed)} values of {checked} cases:\n" + "\n".join(failed)
    assert checked, f"no {metric} case in {source[0]}"


@pytest.mark.parametrize("source", SOURCES)
def test_every_metric_of_the_reference_is_compared(source: tuple[Path, str]) -> None:
    """Every case of a paper's formula is of a metric that is compared here, and none is missing."""
    assert {case["metric"] for case in load(*source)[0]} == COMPUTE.keys()
