"""Load any text model and read the raw output of every block; all of transformers is here.

Shapes: N prompts, T tokens (right-padded), D features, L blocks.

Layers are collected with forward hooks because the library's own `hidden_states` mean different
things for different architectures: for GPT-NeoX, Llama, Qwen2, OPT and GPT-2 the last entry is the
final norm of the last block's output and the raw one is absent; for Mamba the embeddings are absent
and every index is shifted by one.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModel

from operators.model.subject import ModelUnavailableError, Subject, explained, read_shape

Norm = Literal["none", "final"]
NORMS: tuple[Norm, ...] = ("none", "final")
_PROBE_TOKENS = 8
_PROBE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


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
    absent = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if absent:
        raise ModelUnavailableError(
            f"model {subject}: the checkpoint lacks {len(absent)} weights, first {absent[0]}"
        )
    return LayerModel(model.to(device).eval())


class LayerModel:
    """A model whose every layer can be read: ids and mask in, one state per layer out.

    Layer 0 is the input of the first block, layer k the raw output of block k. Which modules are
    the final norm is verified on a short input: what follows the last block must reproduce the
    model's own last hidden state.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._states: list[Tensor] = []
        self.name = type(model).__name__
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self._parent, self._blocks = _find_blocks(model)
        self._blocks[0].register_forward_pre_hook(self._keep_input, with_kwargs=True)
        for block in self._blocks:
            block.register_forward_hook(self._keep_output)
        self._tail = self._find_tail()

    @property
    def module(self) -> nn.Module:
        """The transformers model itself; run it with `forward`, which empties its hooks."""
        return self._model

    @property
    def blocks(self) -> nn.ModuleList:
        """The L blocks; block k is `blocks[k - 1]`."""
        return self._blocks

    @property
    def blocks_name(self) -> str:
        """What the names of the blocks' weights begin with: `layers`, `encoder.layer`."""
        modules = self._model.named_modules()
        name: str = next(name for name, each in modules if each is self._blocks)
        return name

    @property
    def layers(self) -> int:
        """L: the number of blocks; layers are numbered 0..L."""
        return len(self._blocks)

    @property
    def hidden_size(self) -> int:
        """D: the number of features of a raw state."""
        config: Any = self._model.config
        size: int = config.get_text_config().hidden_size
        return size

    def forward(self, ids_NT: Tensor, mask_NT: Tensor) -> list[Tensor]:
        """Return the L+1 raw states [N, T, D] of right-padded `ids_NT`, in the model's dtype."""
        self._run(ids_NT, mask_NT)
        states, self._states = self._states, []
        return states

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

    @property
    def has_final_norm(self) -> bool:
        """Whether `final_norm` changes anything."""
        return self._tail is None or len(self._tail) > 0

    def _run(self, ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        self._states = []
        # Decoders would otherwise build a key-value cache that nobody reads.
        cache = {"use_cache": False} if hasattr(self._model.config, "use_cache") else {}
        with torch.inference_mode():
            output = self._model(
                input_ids=ids_NT.to(self.device), attention_mask=mask_NT.to(self.device), **cache
            )
        if len(self._states) != self.layers + 1:
            raise ModelUnavailableError(
                f"{self.name} ran {len(self._states) - 1} of its {self.layers} blocks once each"
            )
        last: Tensor = output.last_hidden_state
        return last

    def _keep_input(self, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._states.append(args[0] if args else kwargs["hidden_states"])

    def _keep_output(self, _block: nn.Module, _args: Any, output: Any) -> None:  # noqa: ANN401
        self._states.append(output[0] if isinstance(output, tuple) else output)

    def _find_tail(self) -> list[nn.Module] | None:
        """Return the modules beside the blocks that run after the last one, in order.

        None if they do not reproduce the model's last hidden state.
        """
        called: list[tuple[int, nn.Module]] = []
        hooks = [
            child.register_forward_hook(
                lambda module, _args, _out: called.append((len(self._states), module))
            )
            for child in self._parent.children()
            if not isinstance(child, nn.ModuleList)
        ]
        ids_NT = torch.arange(1, 1 + _PROBE_TOKENS).unsqueeze(0)
        try:
            last_NTD = self._run(ids_NT, torch.ones_like(ids_NT))
        finally:
            for hook in hooks:
                hook.remove()
        state_NTD = self._states[-1]
        tail = [module for seen, module in called if seen == self.layers + 1]
        self._states = []
        with torch.inference_mode():
            for module in tail:
                state_NTD = module(state_NTD)
        tolerance = _PROBE_TOLERANCE[self.dtype]
        same = state_NTD.shape == last_NTD.shape and torch.allclose(
            state_NTD, last_NTD, rtol=tolerance, atol=tolerance
        )
        return tail if same else None


def _find_blocks(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """Return the stack of blocks and the module that holds it."""
    config: Any = model.config
    depth = config.get_text_config().num_hidden_layers
    for parent in model.modules():
        for child in parent.children():
            if isinstance(child, nn.ModuleList) and len(child) == depth:
                return parent, child
    raise ModelUnavailableError(
        f"{type(model).__name__} has no list of {depth} blocks that LayerRank can read"
    )
