"""The backend of transformers: any text model of it, and the raw output of every block.

Shapes: N prompts, T tokens (right-padded), D features, L blocks.

Layers are collected with forward hooks because the library's own `hidden_states` mean different
things for different architectures: for GPT-NeoX, Llama, Qwen2, OPT and GPT-2 the last entry is the
final norm of the last block's output and the raw one is absent; for Mamba the embeddings are absent
and every index is shifted by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence
from torch.utils.flop_counter import FlopCounterMode

from layerrank.operators.model.blocks import (
    call,
    entering_state,
    find_layers,
    probe_ids,
    state_of,
    through,
)
from layerrank.operators.model.subject import (
    ModelShape,
    ModelUnavailableError,
    Subject,
    config_shape,
    quiet,
    read_config,
    read_shape,
)
from layerrank.operators.model.weights import load_weights

_PROBE_TOKENS, _LONGER = 8, 8
# Of the largest number of a state so far. Convolutions of a GPU round to TF32, a massive activation
# makes rounding larger (1.2e-4 in SmolLM2), and in 16 bits a mixture of experts may choose another
# expert by it; padding that is seen is no such trifle: 0.15 and more in every type that sees it.
_ALIKE, _ALIKE_IN_16_BITS = 5e-3, 1e-1
# Not part of what gives a layer: the heads that turn the last hidden state into something else.
_HEAD = "pooler"


def load_model(subject: Subject, device: torch.device) -> LayerModel:
    """Load the weights onto `device` and find the model's blocks and final norm.

    ModelUnavailableError if the model cannot be loaded or read right, or if the checkpoint lacks
    weights: a layer that would be ranked with random weights is an error, not a warning.
    """
    config = read_config(subject)
    read_shape(subject, config)
    model, missing = load_weights(subject, config)
    if absent := [name for name in missing if _HEAD not in name]:
        raise ModelUnavailableError(
            f"model {subject}: the checkpoint lacks {len(absent)} weights, first {absent[0]}"
        )
    try:
        with quiet():
            return LayerModel(model.to(device).eval())
    except ModelUnavailableError as error:
        raise ModelUnavailableError(f"model {subject}: {error}") from error


class LayerModel:
    """A model of transformers as a `Backend`: ids and mask in, one state per layer out.

    Its blocks and its final norm are found, and confirmed, on a short text (`find_layers`), and so
    is whether texts of different lengths may share a batch. ModelUnavailableError if the model
    cannot be read right.
    """

    def __init__(self, model: nn.Module) -> None:
        self.module = model  # run it with `forward`, which empties its hooks
        self._states: list[Tensor] = []
        self._reached: Callable[[], None] | None = None
        self.name = type(model).__name__
        self.shape: ModelShape = config_shape(model.config)
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        short, long, other = self._probes()
        before = self._versions()
        stack, entering, self._tail = find_layers(model, self.shape.layers, short.unsqueeze(0))
        self.is_changed = self._versions() != before  # its weights, by being run
        self.blocks_name, blocks = stack.name, stack.blocks
        for layer, before_block in enumerate(entering):
            if before_block:
                blocks[layer].register_forward_pre_hook(self._entered, with_kwargs=True)
            else:
                blocks[layer - 1].register_forward_hook(self._left)
        alone = self._states_of([short])
        self.shape = replace(self.shape, hidden_size=alone[-1].shape[2])
        self.final_size = self.final_norm(alone[-1]).shape[2]
        self.pads = self._is_alike(alone, [short, long])
        if not self.pads and not self._is_alike(alone, [short, other]):
            raise ModelUnavailableError(
                f"{self.name} gives a text other states beside another text of the same length"
            )

    @property
    def has_final_norm(self) -> bool:
        """Whether `final_norm` changes anything."""
        return len(self._tail) > 0

    def forward(
        self, ids_NT: Tensor, mask_NT: Tensor, reached: Callable[[], None] | None = None
    ) -> list[Tensor]:
        """Return the L+1 raw states [N, T, D] of right-padded `ids_NT`, in the model's dtype."""
        self._states, self._reached = [], reached
        call(self.module, ids_NT, mask_NT)
        states, self._states = self._states, []
        if len(states) != self.shape.layers + 1:
            raise ModelUnavailableError(
                f"{self.name} ran {len(states) - 1} of its {self.shape.layers} blocks once each"
            )
        # Some models pad to a multiple of their window.
        return [state_NTD[:, : ids_NT.shape[1]] for state_NTD in states]

    def final_norm(self, state_NTD: Tensor) -> Tensor:
        """Return what the model would output if it were cut after the block that gave this state.

        Identity for models without a final norm, such as BERT.
        """
        return through(self._tail, state_NTD)

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

    def _entered(self, _block: nn.Module, args: Any, given: Any) -> None:  # noqa: ANN401
        self._keep(entering_state(args, given))

    def _left(self, _block: nn.Module, _args: Any, output: Any) -> None:  # noqa: ANN401
        self._keep(state_of(output))

    def _keep(self, state_NTD: Tensor) -> None:
        self._states.append(state_NTD)
        if self._reached:
            self._reached()

    def _versions(self) -> list[int]:
        """Return how often each weight was written to."""
        return [each._version for each in self.module.parameters()]

    def _probes(self) -> list[Tensor]:
        """Return the ids of a short text, a longer one, and another short one."""
        most = self.shape.max_tokens or _PROBE_TOKENS + _LONGER
        short = max(min(_PROBE_TOKENS, most - 1), 1)
        lengths = short, min(short + _LONGER, most), short
        return probe_ids(self.module.config, lengths)

    def _states_of(self, texts: Sequence[Tensor]) -> list[Tensor]:
        masks = [torch.ones_like(each) for each in texts]
        ids_NT, mask_NT = (pad_sequence([*each], batch_first=True) for each in (texts, masks))
        return self.forward(ids_NT, mask_NT)

    def _is_alike(self, alone: Sequence[Tensor], texts: Sequence[Tensor]) -> bool:
        """Whether the first of some texts has the states beside the others that it has alone."""
        tolerance = _ALIKE if self.dtype == torch.float32 else _ALIKE_IN_16_BITS
        scale_T1: Tensor | float = 1e-6
        for one_NTD, several_NTD in zip(alone, self._states_of(texts), strict=True):
            found_NTD = several_NTD[:1, : one_NTD.shape[1]]
            # What is not finite is named by the texts that it befalls, when they are encoded.
            one_TD, found_TD = (each[0].float().nan_to_num() for each in (one_NTD, found_NTD))
            # What was rounded in a large state stays in those after it.
            scale_T1 = one_TD.abs().amax(1, keepdim=True).clamp_min(scale_T1)
            if not bool(((one_TD - found_TD).abs() <= tolerance * scale_T1).all()):
                return False
        return True
