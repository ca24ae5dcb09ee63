"""What it costs to use a layer: parameters, operations and time of the model cut after it.

Shapes: N prompts, T tokens, D features, L blocks, R runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from operators.model.load import LayerModel
from operators.model.subject import ModelUnavailableError

_MEASURE_SECONDS = 1.0
# Not part of what gives a layer: the heads that turn the last hidden state into something else.
_HEAD = "pooler"


@dataclass(frozen=True)
class LayerCost:
    """The model cut after block `layer`, with its final norm; measured with `tokens` tokens."""

    layer: int
    parameters: int
    flops_per_token: float
    latency_ms: float
    tokens: int


def layer_costs(model: LayerModel, tokens: int = 128, repeats: int = 7) -> list[LayerCost]:
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
    model, after two passes that are not counted. It holds for this process's threads on an
    otherwise idle machine. A model with fewer positions than `tokens` is measured with as many as
    it has; `LayerCost.tokens` says so. ValueError if `tokens` or `repeats` is below 1.
    """
    if tokens < 1 or repeats < 1:
        raise ValueError(f"tokens is {tokens} and repeats is {repeats}; both must be at least 1")
    config: Any = model.module.config
    text = config.get_text_config()
    tokens = min(tokens, getattr(text, "max_position_embeddings", None) or tokens)
    ids_NT = (torch.arange(1, 1 + tokens) % text.vocab_size).unsqueeze(0)
    flops = _flops(model, ids_NT)
    latency_L = _median_latency(model, ids_NT, repeats)
    return [
        LayerCost(layer, parameters, flops[layer] / tokens, float(latency_L[layer]), tokens)
        for layer, parameters in enumerate(layer_parameters(model))
    ]


def layer_parameters(model: LayerModel) -> list[int]:
    """Return the number of parameters of the model cut after each layer 0..L.

    The embeddings, blocks 1..k and the final norm; a weight that several modules share counts once.
    """
    inside = model.blocks_name + "."
    counts = [0] * (model.layers + 1)
    for name, parameter in model.module.named_parameters():
        if name.startswith(inside):
            counts[1 + int(name.removeprefix(inside).split(".")[0])] += parameter.numel()
        elif _HEAD not in name:
            counts[0] += parameter.numel()
    return [int(total) for total in np.cumsum(counts)]


def _flops(model: LayerModel, ids_NT: Tensor) -> list[int]:
    """Return the operations of one forward pass up to and with the final norm of each layer."""
    seen: list[int] = []
    # Attention as plain matrix products: what the counter knows of the fused kernels differs
    # between devices.
    counter = FlopCounterMode(display=False)
    with _frozen(model), counter, sdpa_kernel(SDPBackend.MATH):
        with _at_boundaries(model, lambda: seen.append(counter.get_total_flops())):
            states = model.forward(ids_NT, torch.ones_like(ids_NT))
        before = counter.get_total_flops()
        _finish(model, states[-1])
        tail = counter.get_total_flops() - before
    return [flops + tail for flops in seen]


def _median_latency(model: LayerModel, ids_NT: Tensor, repeats: int) -> npt.NDArray[np.float64]:
    _latency(model, ids_NT)  # with the pass that counted operations, the second warm-up
    began = time.perf_counter()
    latency_RL: list[npt.NDArray[np.float64]] = []
    while len(latency_RL) < repeats:
        latency_RL.append(_latency(model, ids_NT))
        if time.perf_counter() - began > _MEASURE_SECONDS:
            break
    return np.asarray(np.median(latency_RL, axis=0), dtype=np.float64)


def _latency(model: LayerModel, ids_NT: Tensor) -> npt.NDArray[np.float64]:
    """Return the milliseconds of one forward pass up to and with the final norm of each layer."""
    marks: list[Any] = []
    start = _mark(model.device)
    with _at_boundaries(model, lambda: marks.append(_mark(model.device))):
        states = model.forward(ids_NT, torch.ones_like(ids_NT))
    before = _mark(model.device)
    _finish(model, states[-1])
    after = _mark(model.device)
    tail = _milliseconds(before, after)
    return np.array([_milliseconds(start, mark) + tail for mark in marks])


def _finish(model: LayerModel, state_NTD: Tensor) -> None:
    try:
        model.final_norm(state_NTD)
    except ModelUnavailableError:
        return  # such a model can only be cut without its final norm


def _mark(device: torch.device) -> Any:  # noqa: ANN401  (a point in time, of either kind)
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # of torch
    event.record()
    return event


def _milliseconds(start: Any, end: Any) -> float:  # noqa: ANN401
    if isinstance(start, float):
        return float(end - start) * 1e3
    end.synchronize()
    return float(start.elapsed_time(end))


@contextmanager
def _frozen(model: LayerModel) -> Iterator[None]:
    """Ask no gradients: the counter fails where a weight is a module's input, as in DeBERTa."""
    trained = [each for each in model.module.parameters() if each.requires_grad]
    for each in trained:
        each.requires_grad_(False)
    try:
        yield
    finally:
        for each in trained:
            each.requires_grad_(True)


@contextmanager
def _at_boundaries(model: LayerModel, note: Callable[[], None]) -> Iterator[None]:
    """Call `note` when a forward pass reaches each of the L+1 layers, in order."""

    def reached(*_: Any) -> None:  # noqa: ANN401
        note()

    hooks = [model.blocks[0].register_forward_pre_hook(reached)]
    hooks += [block.register_forward_hook(reached) for block in model.blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
