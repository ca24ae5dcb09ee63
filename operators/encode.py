"""One forward pass per prompt, every layer, every norm and pooling.

Shapes: N prompts, T tokens (right-padded), S tokens of several prompts one after another,
D features, G groups, where a group is one (layer, norm, pooling).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from operators.batching import Ids, pad, token_budget_batches
from operators.model import LayerModel, Norm
from operators.pooling import Pooling, pool, token_mask

Group = tuple[int, Norm, Pooling]
TokenSink = Callable[[int, npt.NDArray[np.int64], npt.NDArray[np.float32]], None]


@dataclass(frozen=True)
class Representations:
    """What to keep of each layer, and how many padded tokens go through the model at once."""

    norms: tuple[Norm, ...]
    poolings: tuple[Pooling, ...]
    batch_tokens: int

    def groups(self, layers: int) -> list[Group]:
        """Return the (layer, norm, pooling) groups of a model with `layers` blocks, sorted."""
        return [
            (layer, norm, pooling)
            for layer in range(layers + 1)
            for norm in sorted(self.norms)
            for pooling in sorted(self.poolings)
        ]


@dataclass(frozen=True)
class TokenRequest:
    """Which prompts' token states are wanted, in which norm, and what takes them.

    The sink is called once per batch and layer with (layer, prompt indices, states_SD): the states
    of the prompts' real tokens in the order of the indices.
    """

    wanted_N: npt.NDArray[np.bool_]
    norm: Norm
    sink: TokenSink


def encode(
    model: LayerModel,
    sequences: Sequence[Ids],
    keep: Representations,
    tokens: TokenRequest | None = None,
) -> npt.NDArray[np.float32]:
    """Return the pooled vectors [G, N, D] of every group of `keep.groups(model.layers)`.

    The result does not depend on the batches beyond float rounding (DESIGN 10). ValueError that
    names layer and count if a pooled vector is not finite. `sequences` must not be empty, nor hold
    an empty one.
    """
    groups = keep.groups(model.layers)
    vectors_GND: npt.NDArray[np.float32] | None = None
    lengths = [len(ids) for ids in sequences]
    for rows in token_budget_batches(lengths, keep.batch_tokens):
        ids_NT, mask_NT = pad([sequences[row] for row in rows])
        lengths_N = mask_NT.sum(dim=1).to(model.device)
        states = model.forward(ids_NT, mask_NT)
        batch_GND = _pool_groups(model, states, lengths_N, keep).cpu().numpy()
        if vectors_GND is None:
            vectors_GND = np.empty((len(groups), len(sequences), batch_GND.shape[2]), np.float32)
        vectors_GND[:, rows] = batch_GND
        if tokens is not None and tokens.wanted_N[rows].any():
            _sink_tokens(model, states, lengths_N, rows, tokens)
    assert vectors_GND is not None, "no sequences"
    _check_finite(vectors_GND, groups)
    return vectors_GND


def _pool_groups(
    model: LayerModel, states: Sequence[Tensor], lengths_N: Tensor, keep: Representations
) -> Tensor:
    pooled = []
    for state_NTD in states:
        raw = [pool(state_NTD, lengths_N, how) for how in sorted(keep.poolings)]
        for norm in sorted(keep.norms):
            if norm == "none" or not model.has_final_norm:
                pooled.extend(raw)
            else:
                final_NTD = model.final_norm(state_NTD)
                pooled.extend(pool(final_NTD, lengths_N, how) for how in sorted(keep.poolings))
    return torch.stack(pooled)


def _sink_tokens(
    model: LayerModel,
    states: Sequence[Tensor],
    lengths_N: Tensor,
    rows: npt.NDArray[np.int64],
    tokens: TokenRequest,
) -> None:
    wanted_N = torch.from_numpy(tokens.wanted_N[rows]).to(model.device)
    mask_NT = token_mask(lengths_N, states[0].shape[1]) & wanted_N.unsqueeze(1)
    chosen = rows[tokens.wanted_N[rows]]
    for layer, state_NTD in enumerate(states):
        kept_NTD = state_NTD if tokens.norm == "none" else model.final_norm(state_NTD)
        tokens.sink(layer, chosen, kept_NTD[mask_NT].float().cpu().numpy())


def _check_finite(vectors_GND: npt.NDArray[np.float32], groups: Sequence[Group]) -> None:
    for group, vectors_ND in zip(groups, vectors_GND, strict=True):
        bad = int((~np.isfinite(vectors_ND)).any(axis=1).sum())
        if bad:
            raise ValueError(
                f"layer {group[0]} (norm {group[1]}, pooling {group[2]}) has non-finite values in "
                f"{bad} of {len(vectors_ND)} prompts; run the model in float32"
            )
