"""One forward pass per prompt, every layer, every norm and pooling, in batches of like lengths.

Shapes: L layers, N prompts, T tokens (right-padded), S tokens of several prompts one after another,
D features, G groups, where a group is one (layer, norm, pooling).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from layerrank.operators.model.backend import Backend
from layerrank.operators.model.subject import Norm, Pooling

Ids = npt.NDArray[np.int32]
_BATCH_COST = 1 / 32  # of a batch of whatever size, in budgets of padded tokens
_MOST_ENDS = 512  # of batches that are weighed against each other
Group = tuple[int, Norm, Pooling]
# Takes token states on their way, once per batch: the prompts' indices [N], the states [N, T, D] of
# every layer on the model's device (anything may stand in the padding), and the lengths [N].
TokenTap = Callable[[npt.NDArray[np.int64], Sequence[Tensor], Tensor], None]


def token_budget_batches(
    lengths: Sequence[int], budget: int, *, pads: bool = True
) -> list[npt.NDArray[np.int64]]:
    """Cut prompts into batches of at most `budget` padded tokens and return their indices.

    Prompts are taken from short to long (ties in the given order) and parted where that costs
    least, padding and `_BATCH_COST` for each batch; none is padded unless it `pads`. A prompt
    longer than the budget is a batch of its own. Every length is
    at least 1, and every index appears exactly once.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    length_N = np.asarray(lengths)[order]
    count, longest = len(order), max(int(length_N.max(initial=1)), 1)
    # Where a batch may end: after so many prompts that all of them take no time to think about.
    step = max(min(count // _MOST_ENDS, budget // longest), 1) if pads else 1
    end_E = np.array([*range(0, count, step), count])
    cost_E, begin_E = np.zeros(len(end_E)), np.zeros(len(end_E), np.int64)
    for place in range(1, len(end_E)):
        end, longest = end_E[place], max(length_N[end_E[place] - 1], 1)
        first = np.searchsorted(end_E, end - budget // longest)
        if not pads:
            first = max(first, np.searchsorted(length_N, longest))
        first = min(int(first), place - 1)
        padded = cost_E[first:place] + (end - end_E[first:place]) * longest
        begin_E[place] = first + padded.argmin()
        cost_E[place] = padded.min() + budget * _BATCH_COST
    batches: list[npt.NDArray[np.int64]] = []
    place = len(end_E) - 1 if count else 0
    while place:
        begin = begin_E[place]
        batches.append(order[end_E[begin] : end_E[place]])
        place = int(begin)
    return batches[::-1]


def pad(sequences: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Return token ids [N, T] padded on the right with 0, and the attention mask [N, T].

    The mask makes the padding id irrelevant: a tokenizer without a pad token is no special case.
    """
    rows = [torch.from_numpy(ids.astype(np.int64)) for ids in sequences]
    ids_NT = pad_sequence(rows, batch_first=True)
    return ids_NT, token_mask(torch.tensor([*map(len, rows)]), ids_NT.shape[1]).long()


def token_mask(lengths_N: Tensor, n_tokens: int) -> Tensor:
    """Return the boolean mask [N, T] of real tokens."""
    return torch.arange(n_tokens, device=lengths_N.device) < lengths_N.unsqueeze(1)


def pool(hidden_NTD: Tensor, lengths_N: Tensor, how: Pooling, *, padded: bool = True) -> Tensor:
    """Return one float32 vector per prompt [N, D], from real tokens only.

    `mean` weighs every real token equally, special tokens counted; `weighted_mean` weighs token t
    (from 1) by t / (1 + ... + T), so that later tokens of a causal model, which have seen more,
    count more (Muennighoff 2022, SGPT, arXiv 2202.08904, eq. 2); `last` and `first` take one token.
    `mean_no_first` leaves out the first token, whose state is huge in many decoders (Xiao et al.
    2024, arXiv 2309.17453), unless a prompt has no other.
    What stands in padded positions never matters; there are none where nothing is `padded`.
    ValueError on an unknown pooling.
    """
    lengths_N = lengths_N.to(hidden_NTD.device)
    if how == "first":
        return hidden_NTD[:, 0].float()
    if how == "last":
        rows = torch.arange(len(lengths_N), device=hidden_NTD.device)
        return hidden_NTD[rows, lengths_N - 1].float()
    mask_NT = token_mask(lengths_N, hidden_NTD.shape[1])
    if how == "mean":
        weight_NT = mask_NT
    elif how == "mean_no_first":
        weight_NT = mask_NT.clone()
        weight_NT[:, 0] = lengths_N == 1
    elif how == "weighted_mean":
        weight_NT = torch.cumsum(mask_NT.float(), dim=1) * mask_NT
    else:
        raise ValueError(f"unknown pooling {how!r}; choose from {', '.join(get_args(Pooling))}")
    if padded and hidden_NTD.is_cuda:  # to look at the means first would be to wait for them
        hidden_NTD = hidden_NTD.masked_fill(~mask_NT.unsqueeze(-1), 0.0)
    pooled_ND = _weighted_mean(weight_NT, hidden_NTD)
    # Padding weighs nothing, but 0 times infinity is no number. The copy without it takes longer
    # than the means, so it is made where they show that it matters.
    if padded and not hidden_NTD.is_cuda and not pooled_ND.isfinite().all():
        return _weighted_mean(weight_NT, hidden_NTD.masked_fill(~mask_NT.unsqueeze(-1), 0.0))
    return pooled_ND


def _weighted_mean(weight_NT: Tensor, hidden_NTD: Tensor) -> Tensor:
    """Return the weighted means of states over tokens [N, D], added up in float32."""
    total_N1 = weight_NT.sum(dim=1, keepdim=True)
    if hidden_NTD.is_cuda and hidden_NTD.dtype == torch.bfloat16 and weight_NT.dtype == torch.bool:
        # Products with 1 are exact in 16 bits, so the states need no copy in 32.
        ones_N1T = weight_NT.unsqueeze(1).to(hidden_NTD.dtype)
        return torch.bmm(ones_N1T, hidden_NTD, torch.float32).squeeze(1) / total_N1
    return torch.bmm((weight_NT / total_N1).unsqueeze(1), hidden_NTD.float()).squeeze(1)


class NonFiniteError(ValueError):
    """A layer's states are not all finite; `rows` are the prompts' positions."""

    def __init__(self, message: str, rows: Sequence[int]) -> None:
        super().__init__(message)
        self.rows = rows


@dataclass(frozen=True)
class Representations:
    """What to keep of each layer, and how many padded tokens go through the model at once."""

    norms: tuple[Norm, ...]
    poolings: tuple[Pooling, ...]
    batch_tokens: int

    def groups(self, layers: int) -> list[Group]:
        """Return the (layer, norm, pooling) groups of a model with `layers` blocks, sorted."""
        return [*product(range(layers + 1), sorted(self.norms), sorted(self.poolings))]


def encode(
    model: Backend,
    sequences: Sequence[Ids],
    keep: Representations,
    taps: Sequence[TokenTap] = (),
    tapped: Norm = "none",
    landed: Callable[[npt.NDArray[np.int64]], object] = lambda _rows: None,
) -> npt.NDArray[np.float32]:
    """Return the pooled vectors [G, N, D] of every group of `keep.groups` of the model's layers.

    Every tap takes the token states of every batch, in the norm `tapped`; `landed` is called with
    the prompts' indices [N] when their vectors are there. The result does not
    depend on the batches beyond float rounding. NonFiniteError if the state of a real token is not
    finite. `sequences` must not be empty, nor hold an empty one.
    """
    vectors_GND: npt.NDArray[np.float32] | None = None
    # Puts the last batch in its place and returns its rows.
    land: Callable[[], npt.NDArray[np.int64]] | None = None
    lengths = [len(ids) for ids in sequences]
    for rows in token_budget_batches(lengths, keep.batch_tokens, pads=model.pads):
        ids_NT, mask_NT = pad([sequences[row] for row in rows])
        lengths_N = mask_NT.sum(dim=1).to(model.device)
        states = model.forward(ids_NT, mask_NT)
        if land:
            landed(land())  # while a GPU computes
        bad_LN = _non_finite(states, lengths_N)
        if taps:
            _require_finite(bad_LN, rows)
        padded = lengths[rows[0]] < lengths[rows[-1]]
        batch_GnD = _pool_groups(model, states, lengths_N, keep, padded=padded)
        if vectors_GND is None:
            groups, _, features = batch_GnD.shape
            vectors_GND = np.empty((groups, len(sequences), features), np.float32)
        land = _on_its_way(batch_GnD, bad_LN, vectors_GND, rows)
        if taps and tapped == "final" and model.has_final_norm:
            states = [*map(model.final_norm, states)]
        for tap in taps:
            tap(rows, states, lengths_N)
    assert land is not None, "no sequences"
    assert vectors_GND is not None
    landed(land())
    return vectors_GND


def _on_its_way(
    batch_GnD: Tensor,
    bad_LN: Tensor,
    vectors_GND: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
) -> Callable[[], npt.NDArray[np.int64]]:
    """Begin to copy a batch to host memory; return what waits for it and puts it in its place.

    That returns the rows, and raises NonFiniteError if the batch has a bad token.
    """
    host, copied = [batch_GnD, bad_LN], None
    if batch_GnD.is_cuda:  # pinned memory is copied to at once, and ten times faster
        stream = torch.cuda.current_stream(batch_GnD.device)
        host = [torch.empty_like(each, device="cpu", pin_memory=True) for each in host]
        for here, there in zip(host, (batch_GnD, bad_LN), strict=True):
            here.copy_(there, non_blocking=True)
        copied = stream.record_event()

    def land() -> npt.NDArray[np.int64]:
        if copied:
            copied.synchronize()
        _require_finite(host[1], rows)
        vectors_GND[:, rows] = host[0].numpy()
        return rows

    return land


def _pool_groups(
    model: Backend,
    states: Sequence[Tensor],
    lengths_N: Tensor,
    keep: Representations,
    *,
    padded: bool,
) -> Tensor:
    pooled = []
    for state_NTD in states:
        found = dict[bool, list[Tensor]]()
        for norm in sorted(keep.norms):
            is_raw = norm == "none" or not model.has_final_norm
            if is_raw not in found:
                normed_NTD = state_NTD if is_raw else model.final_norm(state_NTD)
                found[is_raw] = [
                    pool(normed_NTD, lengths_N, how, padded=padded) for how in sorted(keep.poolings)
                ]
            pooled.extend(found[is_raw])
    return torch.stack(pooled)


def wanted_tokens(
    wanted_N: npt.NDArray[np.bool_],
    take: Callable[[int, npt.NDArray[np.int64], npt.NDArray[np.float32]], None],
) -> TokenTap:
    """Return a tap that hands on the states of some prompts, without the padding.

    `take` is called once per batch and layer with (layer, prompt indices, states_SD): the real
    tokens of the wanted prompts one after another, in the order of the indices.
    """

    def tap(rows: npt.NDArray[np.int64], states: Sequence[Tensor], lengths_N: Tensor) -> None:
        chosen = wanted_N[rows]
        if not chosen.any():
            return
        wanted = torch.from_numpy(chosen).to(lengths_N.device)
        mask_NT = token_mask(lengths_N, states[0].shape[1]) & wanted.unsqueeze(1)
        for layer, state_NTD in enumerate(states):
            take(layer, rows[chosen], state_NTD[mask_NT].float().cpu().numpy())

    return tap


def _non_finite(states: Sequence[Tensor], lengths_N: Tensor) -> Tensor:
    """Return how many real tokens of each prompt are not finite in each layer, [L, N].

    One sum per token, no copy, and a GPU is not waited for.
    """
    mask_NT = token_mask(lengths_N, states[0].shape[1])
    sums_LNT = torch.stack([state_NTD.sum(dim=-1, dtype=torch.float32) for state_NTD in states])
    return (~sums_LNT.isfinite() & mask_NT).sum(dim=2)


def _require_finite(bad_LN: Tensor, rows: npt.NDArray[np.int64]) -> None:
    """Raise NonFiniteError for the first layer with a bad token."""
    bad_LN = bad_LN.cpu()
    if bad_LN.any():
        layer = int(bad_LN.sum(dim=1).nonzero()[0])
        prompts = rows[bad_LN[layer].nonzero().flatten().numpy()].tolist()
        count = int(bad_LN[layer].sum())
        told = f"layer {layer} has non-finite states at {count} tokens of {len(prompts)} prompts"
        raise NonFiniteError(told, prompts)
