"""The cost of a layer: parameters and operations by closed forms, time at the block boundaries."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from layerrank.operators.model import cost
from layerrank.operators.model.cost import LayerCost, layer_costs
from layerrank.operators.model.on_transformers import LayerModel
from tests.support.tiny import ARCHITECTURES, BLOCKS, VOCABULARY, WIDTH, tiny_model

TOKENS = 64


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models lose more to waiting threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _costs(architecture: str, tokens: int = TOKENS, repeats: int = 1) -> list[LayerCost]:
    return layer_costs(LayerModel(tiny_model(architecture)), tokens, repeats)


def test_llama_has_the_operations_of_its_matrices() -> None:
    width, inner, keys = WIDTH, 64, 16  # two of four key-value heads
    matrices = 2 * width * width + 2 * width * keys + 3 * width * inner
    attention = 2 * TOKENS * width  # queries with keys, then weights with values
    expected = [layer * 2 * (matrices + attention) for layer in range(BLOCKS + 1)]
    assert [each.flops_per_token for each in _costs("llama")] == expected


def test_gpt_neox_has_the_parameters_of_its_modules() -> None:
    width, inner = WIDTH, 64
    norm = 2 * width
    attention = 3 * width * width + 3 * width + width * width + width
    block = 2 * norm + attention + 2 * width * inner + inner + width
    expected = [VOCABULARY * width + norm + layer * block for layer in range(BLOCKS + 1)]
    assert [each.parameters for each in _costs("gpt_neox")] == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_costs_grow_with_the_layer_and_end_with_the_whole_model(architecture: str) -> None:
    model = LayerModel(tiny_model(architecture))
    costs = layer_costs(model, TOKENS, repeats=1)
    assert [each.layer for each in costs] == list(range(BLOCKS + 1))
    assert costs[0].flops_per_token == 0
    for before, after in pairwise(costs):
        assert after.parameters > before.parameters
        assert after.flops_per_token > before.flops_per_token
        assert after.latency_ms > before.latency_ms
    whole = sum(p.numel() for n, p in model.module.named_parameters() if "pooler" not in n)
    assert costs[-1].parameters == whole


def test_shared_weights_count_once() -> None:
    module: Any = tiny_model("llama")
    alone = LayerModel(module).layer_parameters()
    first, second = module.layers[0].mlp, module.layers[1].mlp
    second.up_proj.weight = first.up_proj.weight
    shared = LayerModel(module).layer_parameters()
    size = first.up_proj.weight.numel()
    assert [a - s for a, s in zip(alone, shared, strict=True)] == [0, 0, size, size]


def test_latency_is_that_of_the_blocks_before_the_layer() -> None:
    module: Any = tiny_model("gpt_neox")
    model = LayerModel(module)
    module.layers[1].register_forward_pre_hook(lambda *_: time.sleep(0.05))
    costs = layer_costs(model, TOKENS, repeats=3)
    assert costs[0].latency_ms > 0
    assert costs[2].latency_ms - costs[1].latency_ms >= 50
    assert costs[1].latency_ms - costs[0].latency_ms < 50


def test_latencies_are_the_quartiles_of_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven passes of 1 to 7 ms a layer, and a warm-up that does not count."""
    layers = np.arange(BLOCKS + 1)
    passes = iter([1000.0, 5, 3, 7, 1, 2, 6, 4])
    monkeypatch.setattr(cost, "_latency", lambda *_: next(passes) * layers)
    for layer, found in enumerate(_costs("gpt2", repeats=7)):
        quartiles = found.latency_low_ms, found.latency_ms, found.latency_high_ms
        assert quartiles == (2.5 * layer, 4 * layer, 5.5 * layer)
    assert next(passes, None) is None
    monkeypatch.setattr(cost, "_latency", lambda *_: 2.0 * layers)
    (_, one, *_) = _costs("gpt2", repeats=1)
    assert one.latency_low_ms == one.latency_ms == one.latency_high_ms == 2


def test_long_prompts_are_cut_to_the_positions_of_the_model() -> None:
    assert {each.tokens for each in _costs("bert", 1000)} == {128}


def test_the_model_is_as_it_was() -> None:
    model = LayerModel(tiny_model("gpt2"))
    hooks = [len(each._forward_hooks) for each in model.module.modules()]
    layer_costs(model, 8, repeats=1)
    assert [len(each._forward_hooks) for each in model.module.modules()] == hooks


def test_weights_that_are_inputs_of_modules_can_be_counted() -> None:
    sizes = {**ARCHITECTURES["bert"], "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
    model = LayerModel(AutoModel.from_config(AutoConfig.for_model("deberta-v2", **sizes)).eval())
    assert layer_costs(model, 8, repeats=1)[-1].flops_per_token > 0
    assert all(parameter.requires_grad for parameter in model.module.parameters())


@pytest.mark.parametrize(("tokens", "repeats"), [(0, 1), (8, 0)])
def test_nothing_to_measure_is_refused(tokens: int, repeats: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        _costs("gpt2", tokens, repeats)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_costs_on_a_gpu() -> None:
    there = layer_costs(LayerModel(tiny_model("llama").to("cuda")), TOKENS, repeats=3)
    here = _costs("llama", repeats=3)
    assert [c.flops_per_token for c in there] == [c.flops_per_token for c in here]
    assert all(b.latency_ms > a.latency_ms > 0 for a, b in pairwise(there))
