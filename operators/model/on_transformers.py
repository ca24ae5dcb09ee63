"""The backend of transformers: any text model of it, and the raw output of every block.

Shapes: N prompts, T tokens (right-padded), D features, L blocks.

Layers are collected with forward hooks because the library's own `hidden_states` mean different
things for different architectures: for GPT-NeoX, Llama, Qwen2, OPT and GPT-2 the last entry is the
final norm of the last block's output and the raw one is absent; for Mamba the embeddings are absent
and every index is shifted by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from operators.model.subject import (
    ModelShape,
    ModelUnavailableError,
    Subject,
    config_shape,
    explained,
    read_shape,
)

_PROBE_TOKENS = 8
_PROBE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
# Not part of what gives a layer: the heads that turn the last hidden state into something else.
_HEAD = "pooler"


def load_model(subject: Subject, device: torch.device) -> LayerModel:
    """Load the weights onto `device` and find the model's blocks and final norm.

    ModelUnavailableError if the model cannot be loaded, or if the checkpoint lacks weights: a layer
    that would be ranked with random weights is an error, not a warning.
    """
    read_shape(subject)
    with explained(subject):
        model, info = AutoModel.from_pretrained(
            subject.source,
            dtype=getattr(torch, subject.dtype),
            use_safetensors=None if subject.allow_pickle else True,
            output_loading_info=True,
            **subject.hub_options,
        )
    absent = sorted(key for key in info["missing_keys"] if _HEAD not in key)
    if absent:
        raise ModelUnavailableError(
            f"model {subject}: the checkpoint lacks {len(absent)} weights, first {absent[0]}"
        )
    return LayerModel(model.to(device).eval())


class LayerModel:
    """A model of transformers as a `Backend`: ids and mask in, one state per layer out.

    Which modules are the final norm is verified on a short input: what follows the last block must
    reproduce the model's own last hidden state.
    """

    def __init__(self, model: nn.Module) -> None:
        self.module = model  # run it with `forward`, which empties its hooks
        self._states: list[Tensor] = []
        self._reached: Callable[[], None] | None = None
        self.name = type(model).__name__
        self.shape: ModelShape = config_shape(model.config)
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        stacks = (
            # The name is what those of the blocks' weights begin with: `layers`, `encoder.layer`.
            (f"{place}.{name}".removeprefix("."), parent, child)
            for place, parent in model.named_modules()
            for name, child in parent.named_children()
            if isinstance(child, nn.ModuleList) and len(child) == self.shape.layers
        )
        found = next(stacks, None)
        if found is None:
            raise ModelUnavailableError(
                f"{self.name} has no list of {self.shape.layers} blocks that LayerRank can read"
            )
        self.blocks_name, self._parent, blocks = found
        blocks[0].register_forward_pre_hook(
            lambda _block, args, given: self._keep(args[0] if args else given["hidden_states"]),
            with_kwargs=True,
        )
        for block in blocks:
            block.register_forward_hook(
                lambda _block, _args, out: self._keep(out[0] if isinstance(out, tuple) else out)
            )
        self._tail: list[nn.Module] | None = self._find_tail()

    @property
    def has_final_norm(self) -> bool:
        """Whether `final_norm` changes anything."""
        return self._tail is None or len(self._tail) > 0

    def forward(
        self, ids_NT: Tensor, mask_NT: Tensor, reached: Callable[[], None] | None = None
    ) -> list[Tensor]:
        """Return the L+1 raw states [N, T, D] of right-padded `ids_NT`, in the model's dtype."""
        return self._run(ids_NT, mask_NT, reached)[0]

    def final_norm(self, state_NTD: Tensor) -> Tensor:
        """Return what the model would output if it were cut after the block that gave this state.

        Identity for models without a final norm, such as BERT.
        """
        if self._tail is None:
            raise ModelUnavailableError(
                f"{self.name} computes its output in a way that its final norm alone does not "
                "reproduce, so norm: final is not defined for it; use norms: [none]"
            )
        with torch.inference_mode():
            for module in self._tail:
                state_NTD = module(state_NTD)
        return state_NTD

    def layer_parameters(self) -> list[int]:
        """Return the parameters up to each layer 0..L: the embeddings, blocks 1..k, the final norm.

        A weight that several modules share counts once.
        """
        inside = self.blocks_name + "."
        counts = [0] * (self.shape.layers + 1)
        for name, parameter in self.module.named_parameters():
            if name.startswith(inside):
                counts[1 + int(name.removeprefix(inside).split(".")[0])] += parameter.numel()
            elif _HEAD not in name:
                counts[0] += parameter.numel()
        return [int(total) for total in np.cumsum(counts)]

    def layer_operations(self, ids_NT: Tensor) -> list[int]:
        """Return the operations of a pass up to and with the final norm of each layer 0..L.

        Norms, activations and the elementwise part of a state-space scan are not counted, and a
        fused scan kernel on a GPU not at all, so the count of Mamba models is too low, and lower on
        a GPU than on a CPU.
        """
        counter, seen = FlopCounterMode(display=False), list[int]()
        trained = [each for each in self.module.parameters() if each.requires_grad]
        # The counter fails where a weight with gradients is a module's input, as in DeBERTa.
        self.module.requires_grad_(False)
        try:
            # Attention as plain matrix products: what the counter knows of the fused kernels
            # differs between devices.
            with counter, sdpa_kernel(SDPBackend.MATH):
                whole = torch.ones_like(ids_NT)
                states = self.forward(ids_NT, whole, lambda: seen.append(counter.get_total_flops()))
                before = counter.get_total_flops()
                if self._tail:
                    self.final_norm(states[-1])
                tail = counter.get_total_flops() - before
        finally:
            # They choose the kernels of a pass, whether gradients are asked for or not.
            for each in trained:
                each.requires_grad_(True)
        return [operations + tail for operations in seen]

    def _run(
        self, ids_NT: Tensor, mask_NT: Tensor, reached: Callable[[], None] | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Return the raw states, and the model's own last hidden state."""
        self._states, self._reached = [], reached
        # Decoders would otherwise build a key-value cache that nobody reads.
        cache = {"use_cache": False} if hasattr(self.module.config, "use_cache") else {}
        with torch.inference_mode():
            output = self.module(
                input_ids=ids_NT.to(self.device), attention_mask=mask_NT.to(self.device), **cache
            )
        states, self._states = self._states, []
        if len(states) != self.shape.layers + 1:
            raise ModelUnavailableError(
                f"{self.name} ran {len(states) - 1} of its {self.shape.layers} blocks once each"
            )
        return states, output.last_hidden_state

    def _keep(self, state_NTD: Tensor) -> None:
        self._states.append(state_NTD)
        if self._reached:
            self._reached()

    def _find_tail(self) -> list[nn.Module] | None:
        """Return what runs after the last block, in order; None if more makes the output of it."""
        tail: list[nn.Module] = []

        def after_the_blocks(module: nn.Module, _args: Any, _output: Any) -> None:  # noqa: ANN401
            if len(self._states) == self.shape.layers + 1:
                tail.append(module)

        beside = [each for each in self._parent.children() if not isinstance(each, nn.ModuleList)]
        hooks = [each.register_forward_hook(after_the_blocks) for each in beside]
        ids_NT = torch.arange(1, 1 + _PROBE_TOKENS).unsqueeze(0)
        try:
            states, last_NTD = self._run(ids_NT, torch.ones_like(ids_NT))
        finally:
            for hook in hooks:
                hook.remove()
        self._tail = tail
        found_NTD, tolerance = self.final_norm(states[-1]), _PROBE_TOLERANCE[self.dtype]
        same = found_NTD.shape == last_NTD.shape and torch.allclose(
            found_NTD, last_NTD, rtol=tolerance, atol=tolerance
        )
        return tail if same else None
