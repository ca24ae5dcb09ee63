"""What it costs to use a layer: parameters, operations and time of the model cut after it.

Shapes: N prompts, T tokens, L blocks, R runs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from layerrank.operators.later import Later
from layerrank.operators.model.backend import Backend

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:  # a cost is read without it
    torch = Later("torch")

_MEASURE_SECONDS = 1.0


@dataclass(frozen=True)
class LayerCost:
    """The model cut after block `layer`, with its final norm; measured with `tokens` tokens.

    Latencies are milliseconds: the median and the quartiles, NaN where they were not kept. The
    other units are those of the table `layer_costs`.
    """

    layer: int
    parameters: int
    flops_per_token: float
    latency_ms: float
    tokens: int
    device: str
    latency_low_ms: float = float("nan")
    latency_high_ms: float = float("nan")


def layer_costs(model: Backend, tokens: int = 128, repeats: int = 7) -> list[LayerCost]:
    """Return the cost of every layer 0..L, for one prompt of `tokens` tokens on the model's device.

    `parameters` are those of the embeddings, blocks 1..k and the final norm, shared ones counted
    once. `flops_per_token` are `Backend.layer_operations` divided by the tokens: the value holds
    for that length and grows with it. Both are the same in every run.

    `latency_ms` is measured: the median of `repeats` forward passes of a batch of one (fewer, at
    least one, where they would take more than a second), read at the block boundaries of the whole
    model, after two passes that are not counted; `latency_low_ms` and `latency_high_ms` are the
    quartiles of the same passes. They hold for this process's threads on an otherwise idle machine.
    A model with fewer positions than `tokens` is measured with as many as it has;
    `LayerCost.tokens` says so. ValueError if `tokens` or `repeats` is below 1.
    """
    if tokens < 1 or repeats < 1:
        raise ValueError(f"tokens is {tokens} and repeats is {repeats}; both must be at least 1")
    tokens = min(tokens, model.shape.max_tokens or tokens)
    ids_NT = (torch.arange(1, 1 + tokens) % (model.shape.vocabulary or 2)).unsqueeze(0)
    operations = model.layer_operations(ids_NT)
    _latency(model, ids_NT)  # with the pass that counted operations, the second warm-up
    began = time.perf_counter()
    latency_RL: list[npt.NDArray[np.float64]] = []
    while len(latency_RL) < repeats:
        latency_RL.append(_latency(model, ids_NT))
        if time.perf_counter() - began > _MEASURE_SECONDS:
            break
    quartiles = np.percentile(latency_RL, (25, 50, 75), axis=0).tolist()
    columns = zip(model.layer_parameters(), operations, *quartiles, strict=True)
    return [
        LayerCost(layer, parameters, flops / tokens, median, tokens, model.device.type, low, high)
        for layer, (parameters, flops, low, median, high) in enumerate(columns)
    ]


def _latency(model: Backend, ids_NT: Tensor) -> npt.NDArray[np.float64]:
    """Return the milliseconds of one forward pass up to and with the final norm of each layer."""
    on_gpu = model.device.type == "cuda"
    marks: list[Any] = []  # points in time, of either kind

    def mark() -> None:
        if on_gpu:
            marks.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
            marks[-1].record()
        else:
            marks.append(time.perf_counter())

    mark()
    states = model.forward(ids_NT, torch.ones_like(ids_NT), mark)
    mark()
    model.final_norm(states[-1])
    mark()
    if on_gpu:
        marks[-1].synchronize()
    start, *others = marks
    since: list[float] = [
        start.elapsed_time(each) if on_gpu else (each - start) * 1e3 for each in others
    ]
    *of_layers, before, after = since
    return np.array(of_layers, dtype=np.float64) + (after - before)
