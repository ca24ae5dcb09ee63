"""The metrics against expected values that an independent NumPy implementation computed.

A case passes within its ``tol`` from float64 inputs and within its ``tol32`` from float32 inputs,
as ``|got - expected| <= tol * max(1, |expected|)``. Only cases of the papers' formulas are
asserted; what the released code gives is documented, not reproduced.
"""

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from operators.analysis.correlation import distance_correlation, spearman
from operators.metrics.linear.anisotropy import anisotropy
from operators.metrics.linear.rank import effective_rank, participation_ratio, rankme, stable_rank
from operators.metrics.linear.similarity import linear_cka
from operators.metrics.token.curvature import curvature
from operators.metrics.token.entropy import dataset_entropy, normalize_entropy, prompt_entropy
from operators.metrics.token.rows import prepare_rows
from operators.metrics.views.dime import dime, dime_entropies
from operators.metrics.views.infonce import cross_view_loss, infonce_bound, infonce_loss
from operators.metrics.views.lidar import lda_spectrum, lidar, lidar_scatter
from tests.support.places import GOLDEN as GOLDEN_FOLDER
from tests.support.places import SHARED

SMALL = (GOLDEN_FOLDER, "metrics")
WHOLE = (SHARED / "golden", "golden")
IMPLEMENTATIONS = ("paper", "lidar_paper")

Params = dict[str, Any]
Inputs = list[Tensor]


class Case(NamedTuple):
    case_id: int
    metric: str
    impl: str
    inputs: list[str]
    params: Params
    outputs: list[str]
    expected: list[float]
    tol: float
    tol32: float | None


def read_index(folder: Path, stem: str) -> list[dict[str, Any]]:
    index = folder / ("golden_index.json" if stem == "golden" else f"{stem}.json")
    cases: list[dict[str, Any]] = json.loads(index.read_text())["cases"]
    return cases


@cache
def load(folder: Path, stem: str) -> tuple[list[Case], dict[str, np.ndarray]]:
    cases = [
        Case(
            case_id=raw["id"],
            expected=[float(value) for value in raw["expected"]],
            **{name: raw[name] for name in Case._fields if name not in ("case_id", "expected")},
        )
        for raw in read_index(folder, stem)
        if raw["impl"] in IMPLEMENTATIONS and raw["metric"] in COMPUTE
    ]
    with np.load(folder / f"{stem}.npz") as arrays:
        return cases, {name: arrays[name] for case in cases for name in case.inputs}


def one_prompt(tokens_TD: Tensor) -> tuple[Tensor, Tensor]:
    return tokens_TD[None], torch.tensor([tokens_TD.shape[0]])


def padded(tokens_SD: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Prompts stored one after the other, right-padded with NaN."""
    lengths_N = offsets.diff()
    prompts = list(tokens_SD.split_with_sizes(lengths_N.tolist()))
    hidden_NTD = torch.nn.utils.rnn.pad_sequence(prompts, True, math.nan)
    return hidden_NTD, lengths_N


def prepared(hidden_NTD: Tensor, lengths_N: Tensor) -> Tensor:
    mask_NT = torch.arange(hidden_NTD.shape[1]) < lengths_N[:, None]
    clean_NTD = hidden_NTD.to(torch.float64).masked_fill(~mask_NT[..., None], 0.0)
    return prepare_rows(clean_NTD, mask_NT, center=True, unit=True)


def normalised(value: Tensor, n: Tensor | int, d: int) -> dict[str, Tensor]:
    return {
        "raw": normalize_entropy(value, n, d, "raw"),
        "maxEntropy": normalize_entropy(value, n, d, "maxEntropy"),
        "logN": normalize_entropy(value, n, d, "logN"),
        "logD": normalize_entropy(value, n, d, "logD"),
        "logNlogD": normalize_entropy(value, n, d, "logNlogD"),
    }


def compute_prompt_entropy(inputs: Inputs, params: Params) -> dict[str, Tensor]:
    hidden_NTD, lengths_N = one_prompt(inputs[0])
    if params["zero_row"] == "nan" and prepared(hidden_NTD, lengths_N).eq(0).all(dim=2).any():
        return {"raw": torch.tensor(math.nan)}
    value = prompt_entropy(hidden_NTD, lengths_N, params["alpha"])[0]
    return normalised(value, *inputs[0].shape)


def compute_curvature(inputs: Inputs, params: Params) -> dict[str, Tensor]:
    hidden_NTD, lengths_N = one_prompt(inputs[0])
    if params["on"] == "centred+unit tokens":
        hidden_NTD = prepared(hidden_NTD, lengths_N)
    value = curvature(hidden_NTD, lengths_N, params["undefined"])[0]
    return {"raw": value, "logD": value / math.log(inputs[0].shape[1])}


def compute_prompt_entropy_mean(inputs: Inputs, params: Params) -> dict[str, Tensor]:
    hidden_NTD, lengths_N = padded(*inputs)
    values_N = prompt_entropy(hidden_NTD, lengths_N, params["alpha"])
    values = normalised(values_N, lengths_N, hidden_NTD.shape[2])
    return {how: value_N.mean() for how, value_N in values.items()}


def compute_curvature_mean(inputs: Inputs, _: Params) -> dict[str, Tensor]:
    return {"raw": curvature(*padded(*inputs)).mean()}


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
    view_a, view_b = inputs
    if params["cosine"]:
        view_a, view_b = (view / view.norm(dim=1, keepdim=True) for view in inputs)
    n = view_a.shape[0]
    if params["form"].startswith("N-way"):
        loss = cross_view_loss(view_a, view_b, params["temperature"])
        return {"loss": loss, "mi_bound_logN-loss": math.log(n) - loss}
    loss = infonce_loss(view_a, view_b, params["temperature"])
    return {"loss": loss, "mi_bound_log(2N-1)-loss": infonce_bound(loss, n)}


def compute_lidar(inputs: Inputs, params: Params) -> dict[str, Tensor]:
    if "eps" in params:
        spectrum_D = lda_spectrum(lidar_scatter(inputs[0]), params["delta"])
        shares_D = spectrum_D / spectrum_D.sum() + params["eps"]
        return {"score": torch.exp(-torch.xlogy(shares_D, shares_D).sum())}
    value = lidar(inputs[0], params["delta"], params["alpha"])
    return normalised(value, inputs[0].shape[0], inputs[0].shape[2])


def compute_dime(inputs: Inputs, params: Params) -> dict[str, Tensor]:
    view_a, view_b, permutations = inputs
    if params["kernel"] == "linear Gram DxD":
        view_a, view_b = view_a.T, view_b.T
    joint, permuted_P = dime_entropies(view_a, view_b, permutations, params["alpha"])
    return {
        "dime": dime(view_a, view_b, permutations, params["alpha"]),
        "H_joint": joint,
        "H_perm_mean": permuted_P.mean(),
    }


def compute_rank(inputs: Inputs, params: Params) -> dict[str, Tensor]:
    (rows_ND,) = inputs
    return {
        "effective_rank": effective_rank(rows_ND),
        "rankme": rankme(rows_ND, eps=params["rankme_eps"]),
        "participation_ratio_centered": participation_ratio(rows_ND, center=True),
        "participation_ratio_uncentered": participation_ratio(rows_ND),
        "stable_rank": stable_rank(rows_ND),
        "stable_rank_centered": stable_rank(rows_ND, center=True),
        "mean_cosine": anisotropy(rows_ND),
    }


def compute_cka(inputs: Inputs, _: Params) -> dict[str, Tensor]:
    rows_ND, other_NE = inputs
    return {
        "linear_cka_biased": linear_cka(rows_ND, other_NE),
        "linear_cka_unbiased": linear_cka(rows_ND, other_NE, debiased=True),
    }


def compute_statistics(inputs: Inputs, _: Params) -> dict[str, Tensor]:
    x_N, y_N = (values.double().numpy() for values in inputs)
    return {
        "dcor_vstat": torch.tensor(distance_correlation(x_N, y_N), dtype=torch.float64),
        "spearman_rho": torch.tensor(spearman(x_N, y_N), dtype=torch.float64),
    }


COMPUTE: dict[str, Callable[[Inputs, Params], dict[str, Tensor]]] = {
    "prompt_entropy": compute_prompt_entropy,
    "curvature": compute_curvature,
    "prompt_entropy_mean": compute_prompt_entropy_mean,
    "curvature_mean": compute_curvature_mean,
    "dataset_entropy": compute_dataset_entropy,
    "infonce": compute_infonce,
    "lidar": compute_lidar,
    "dime": compute_dime,
    "rank": compute_rank,
    "cka": compute_cka,
    "statistics": compute_statistics,
}
WITHOUT_FLOAT32 = ("prompt_entropy_mean", "curvature_mean", "statistics")

RUNS = [pytest.param(metric, torch.float64, id=f"{metric}-float64") for metric in COMPUTE] + [
    pytest.param(metric, torch.float32, id=f"{metric}-float32")
    for metric in COMPUTE
    if metric not in WITHOUT_FLOAT32
]


def as_inputs(arrays: list[np.ndarray], dtype: torch.dtype) -> Inputs:
    tensors = [torch.from_numpy(array) for array in arrays]
    return [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors]


def agrees(got: float, expected: float, tolerance: float) -> bool:
    if math.isnan(expected):
        return math.isnan(got)
    return abs(got - expected) <= tolerance * max(1.0, abs(expected))


def failures(case: Case, inputs: Inputs, tolerance: float) -> list[str]:
    got = COMPUTE[case.metric](inputs, case.params)
    return [
        f"case {case.case_id} {case.inputs[0]} {case.params} {output}: "
        f"got {float(got[output])!r}, expected {expected!r}, tolerance {tolerance}"
        for output, expected in zip(case.outputs, case.expected, strict=True)
        if not agrees(float(got[output]), expected, tolerance)
    ]


def check(metric: str, dtype: torch.dtype, source: tuple[Path, str]) -> None:
    cases, arrays = load(*source)
    failed: list[str] = []
    checked = 0
    for case in cases:
        tolerance = case.tol if dtype == torch.float64 else case.tol32
        if case.metric != metric or tolerance is None:
            continue
        inputs = as_inputs([arrays[name] for name in case.inputs], dtype)
        failed += failures(case, inputs, tolerance)
        checked += 1
    assert not failed, f"{len(failed)} values of {checked} cases:\n" + "\n".join(failed)
    assert checked, f"no {metric} case in {source[0]}"


def check_coverage(source: tuple[Path, str]) -> None:
    """Every case of a paper's formula is of a metric that is compared here, and none is missing."""
    metrics = {raw["metric"] for raw in read_index(*source) if raw["impl"] in IMPLEMENTATIONS}
    unknown = sorted(metrics - COMPUTE.keys())
    assert not unknown, f"{source[0]}: nothing compares {', '.join(unknown)}"
    missing = sorted(COMPUTE.keys() - metrics)
    assert not missing, f"{source[0]}: no case of {', '.join(missing)}"


def test_copied_cases_cover_every_metric() -> None:
    check_coverage(SMALL)


@pytest.mark.skipif(not WHOLE[0].is_dir(), reason="no shared/golden beside the checkout")
def test_every_metric_of_the_reference_set_is_compared() -> None:
    check_coverage(WHOLE)


@pytest.mark.parametrize(("metric", "dtype"), RUNS)
def test_copied_cases(metric: str, dtype: torch.dtype) -> None:
    check(metric, dtype, SMALL)


@pytest.mark.skipif(not WHOLE[0].is_dir(), reason="no shared/golden beside the checkout")
@pytest.mark.parametrize(("metric", "dtype"), RUNS)
def test_whole_reference_set(metric: str, dtype: torch.dtype) -> None:
    check(metric, dtype, WHOLE)
