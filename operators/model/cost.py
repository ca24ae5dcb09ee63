"""What it costs to use a layer: parameters, operations and time of the model cut after it.

Shapes: N prompts, T tokens, L blocks, R runs.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from operators.model.backend import Backend
from operators.model.subject import LayerCost, ModelUnavailableError

_MEASURE_SECONDS = 1.0


def layer_costs(model: Backend, tokens: int = 128, repeats: int = 7) -> list[LayerCost]:
    """Return the cost of every layer 0..L, for one prompt of `tokens` tokens on the model's device.

    `parameters` are those of the embeddings, blocks 1..k and the final norm, shared ones counted
    once. `flops_per_token` are the operations of one forward pass divided by its tokens, 2 per
    multiply-add of every matrix product and convolution, all T x T products of attention among
    them: the value holds for that length and grows with it. Norms, activations and the elementwise
    part of a state-space scan are not counted, and a fused scan kernel on a GPU not at all, so the
    count of Mamba models is too low, and lower on a GPU than on a CPU. Both are the same in every
    run.

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
    low_L, median_L, high_L = np.percentile(latency_RL, (25, 50, 75), axis=0)
    return [
        LayerCost(
            layer=layer,
            parameters=parameters,
            flops_per_token=operations[layer] / tokens,
            latency_ms=float(median_L[layer]),
            tokens=tokens,
            device=model.device.type,
            latency_low_ms=float(low_L[layer]),
            latency_high_ms=float(high_L[layer]),
        )
        for layer, parameters in enumerate(model.layer_parameters())
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
    with suppress(ModelUnavailableError):  # such a model can only be cut without its final norm
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
