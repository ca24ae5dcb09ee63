"""Padded tokens to clean rows: masking, chunks of similar length, centring, unit length.

Shape suffixes: N prompts, T tokens (right-padded), D features; M rows, each one prompt in one
layer; a lower-case n or m is those of one chunk or block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from layerrank.operators.metrics.spectrum import gram

# Elements of a chunk, of a block of its rows, which a kernel gets at a time, and of a part of a
# block, which it converts to float64; on the CPU for each thread. A chunk is still in the cache
# when the next metric reads it, the allocator keeps a float64 copy of a block for the next one (up
# to 32 MiB), and the caches of the cores hold a few copies of a part. A GPU needs more to be busy.
# A single prompt may need more, in one layer.
CHUNK_ELEMENTS = {"cpu": 2**21, "cuda": 2**26}
BLOCK_ELEMENTS = {"cpu": 2**21, "cuda": 2**26}
PART_ELEMENTS = {"cpu": 2**17, "cuda": 2**26}
# The longest prompt of a chunk is at most this much longer than the shortest, or is short itself.
WIDTH_RATIO = 1.15
SHORT = 32
NOT_CONVERTED = (torch.float32, torch.float64)
# A centred row shorter than this share of the prompt's longest equals the mean up to rounding.
ZERO_ROW = 1e-12
# A row keeps its digits where moving the mean leaves it more than this share of its squares.
CANCELLED = 0.1
Kernel = Callable[[Tensor, Tensor], Tensor]  # (tokens_mTD, mask_mT) -> values [..., m]


class Chunk(NamedTuple):
    """Prompts of similar length in some layers: row ``l * n + i`` is prompt index_n[i] in layer
    ``layers.start + l``.

    Tokens are zero in the padding, float64 where the states are, and float32 otherwise. They may be
    the states themselves: nobody writes to them.
    """

    index_n: Tensor
    tokens_MTD: Tensor
    mask_MT: Tensor
    layers: slice


def length_chunks(states: Sequence[Tensor], lengths_N: Tensor) -> Iterator[Chunk]:
    """Yield prompts of similar length from the ``[N, T, D]`` states of each layer, shortest first.

    Every chunk is cut to its longest prompt, so a long padding costs nothing and never reaches a
    metric, whatever is in it.
    """
    n_prompts, n_tokens, dim = states[0].shape
    if n_prompts * n_tokens * dim == 0:
        return
    lengths_N = lengths_N.to("cpu", torch.int64)
    assert 0 <= int(lengths_N.min()) <= int(lengths_N.max()) <= n_tokens
    order_N = lengths_N.argsort(stable=True)
    limit = _limit(CHUNK_ELEMENTS, states[0]) // dim
    for part in _similar(lengths_N[order_N].tolist(), limit // len(states)):
        index_n = order_N[part]
        lengths_n = lengths_N[index_n]
        step = max(1, limit // (len(index_n) * max(1, int(lengths_n[-1]))))
        for start in range(0, len(states), step):
            layers = slice(start, min(start + step, len(states)))
            yield _chunk(states, layers, index_n, lengths_n)


def _similar(lengths: list[int], tokens: int) -> Iterator[slice]:
    """Cut ascending lengths where they grow too much or where a chunk is full of tokens."""
    start = 0
    for end in range(1, len(lengths) + 1):
        if end < len(lengths):
            fits = (end + 1 - start) * lengths[end] <= tokens
            if fits and lengths[end] <= max(SHORT, WIDTH_RATIO * lengths[start]):
                continue
        yield slice(start, end)
        start = end


def _chunk(states: Sequence[Tensor], layers: slice, index_n: Tensor, lengths_n: Tensor) -> Chunk:
    states = states[layers]
    device, dtype, dim = states[0].device, states[0].dtype, states[0].shape[2]
    width = max(1, int(lengths_n.max()))
    mask_nT = (torch.arange(width) < lengths_n[:, None]).to(device)
    rows = index_n.tolist()
    if len(states) == len(rows) == 1 and lengths_n[0] == width and dtype in NOT_CONVERTED:
        tokens_MTD = states[0][rows[0] : rows[0] + 1, :width]  # nothing to change: no copy
        return Chunk(index_n.to(device), tokens_MTD, mask_nT, layers)
    tokens_LnTD = torch.empty(
        (len(states), len(index_n), width, dim),
        dtype=torch.float64 if dtype == torch.float64 else torch.float32,
        device=device,
    )
    for tokens_nTD, hidden_NTD in zip(tokens_LnTD, states, strict=True):
        for tokens_TD, row in zip(tokens_nTD, rows, strict=True):
            tokens_TD.copy_(hidden_NTD[row, :width])
    shortest = int(lengths_n.min())  # only beyond it is there padding
    tokens_LnTD[:, :, shortest:].masked_fill_(~mask_nT[:, shortest:, None], 0.0)
    mask_MT = mask_nT.repeat(len(states), 1)
    return Chunk(index_n.to(device), tokens_LnTD.flatten(0, 1), mask_MT, layers)


def map_rows(kernel: Kernel, tokens_MTD: Tensor, mask_MT: Tensor) -> Tensor:
    """Return the kernel's values of all rows, ``[..., M]``, from blocks cut to the longest row."""
    lengths = mask_MT.sum(dim=1).tolist()
    limit = _limit(BLOCK_ELEMENTS, tokens_MTD) // max(1, tokens_MTD[:1].numel())
    n_blocks = -(-len(lengths) // max(1, limit))
    size = -(-len(lengths) // n_blocks)
    values = []
    for start in range(0, len(lengths), size):
        width = max(1, *lengths[start : start + size])
        tokens_mTD = tokens_MTD[start : start + size, :width]
        values.append(kernel(tokens_mTD, mask_MT[start : start + size, :width]))
    return torch.cat(values, dim=-1)


def token_parts(tokens_NTD: Tensor) -> list[slice]:
    """Return slices of the tokens, each with about PART_ELEMENTS of all prompts."""
    n_prompts, n_tokens, dim = tokens_NTD.shape
    size = max(1, _limit(PART_ELEMENTS, tokens_NTD) // max(1, n_prompts * dim))
    return [slice(start, start + size) for start in range(0, n_tokens, size)]


def _limit(elements: dict[str, int], tensor: Tensor) -> int:
    kind = tensor.device.type
    return elements[kind] * (torch.get_num_threads() if kind == "cpu" else 1)


def prepare_rows(rows_NTD: Tensor, mask_NT: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Centre the rows of every prompt over its real tokens, then scale each row to unit length.

    Rows come as from ``length_chunks``, with zeros in the padding, which stays zero. Computed in
    float64, whatever the type of the result. A row equal to the mean becomes a zero row. The mean
    is that of the differences to the first token: tokens that are all equal then give exact zeros.
    """
    parts = token_parts(rows_NTD)
    first_N1D = rows_NTD[:, :1].to(torch.float64)
    total_N1D = torch.zeros_like(first_N1D)
    weight_N1T = mask_NT[:, None].to(torch.float64)
    for part in parts:
        from_first_NtD = rows_NTD[:, part].to(torch.float64, copy=True).sub_(first_N1D)
        total_N1D += weight_N1T[..., part] @ from_first_NtD
    mean_N1D = first_N1D + total_N1D / weight_N1T.sum(dim=-1, keepdim=True).clamp(min=1)
    prepared_NTD = torch.empty_like(rows_NTD, dtype=dtype)
    norm_NT1 = torch.ones_like(mask_NT, dtype=torch.float64)[..., None]
    for part in parts:
        part_NtD = rows_NTD[:, part].to(torch.float64, copy=True).sub_(mean_N1D)
        torch.linalg.vector_norm(part_NtD, dim=-1, keepdim=True, out=norm_NT1[:, part])
        part_NtD *= norm_NT1[:, part].reciprocal()  # several times faster than to divide
        prepared_NTD[:, part] = part_NtD
    zero_NT1 = ~mask_NT[..., None]
    largest_N11 = norm_NT1.masked_fill(zero_NT1, 0.0).amax(dim=1, keepdim=True)
    zero_NT1 |= norm_NT1 <= largest_N11 * ZERO_ROW
    return prepared_NTD.masked_fill_(zero_NT1, 0.0) if zero_NT1.any() else prepared_NTD


def unit_grams(tokens_NTD: Tensor, mask_NT: Tensor, without_first: bool) -> list[Tensor]:
    """``Z Z^T`` [N, T, T] of the prepared rows of every prompt; then that without its first token.

    One product of the tokens serves both: that around the mean of the later ones. What moves the
    mean to that of all tokens is done to the products, in K^2 instead of K^2 D steps, and the rows
    are scaled there too. Where moving cancels much of a row, the prompt has a product of its own.
    """
    if not without_first:
        return [_unit(_products(tokens_NTD, mask_NT, 0), mask_NT)]
    later_NTT = _products(tokens_NTD, mask_NT, 1)
    size_N1 = mask_NT.sum(dim=1, keepdim=True)
    first_NT = later_NTT[:, 0] / size_N1
    shift_N1 = first_NT[:, :1] / size_N1
    all_NTT = later_NTT - first_NT[:, None]
    all_NTT -= (first_NT - shift_N1)[..., None]
    before_NT, after_NT = (each.diagonal(dim1=1, dim2=2) for each in (later_NTT, all_NTT))
    cancelled_NT = (after_NT < CANCELLED * (before_NT + shift_N1)) & mask_NT
    cancelled_N = cancelled_NT.any(dim=1)
    if cancelled_N.any():
        all_NTT[cancelled_N] = _products(tokens_NTD[cancelled_N], mask_NT[cancelled_N], 0)
    return [_unit(all_NTT, mask_NT), _unit(later_NTT[:, 1:, 1:], mask_NT[:, 1:])]


def _products(tokens_NTD: Tensor, mask_NT: Tensor, first: int) -> Tensor:
    """``Y Y^T`` [N, T, T], with Y the tokens around the mean of those from ``first`` on."""
    weight_N1t = mask_NT[:, None, first:].to(torch.float64)
    weight_N1t /= weight_N1t.sum(dim=-1, keepdim=True).clamp(min=1)
    n_prompts, n_tokens, dim = tokens_NTD.shape
    products_NTT = weight_N1t.new_empty(n_prompts, n_tokens, n_tokens)
    size = max(1, _limit(PART_ELEMENTS, tokens_NTD) // (n_tokens * dim))
    for start in range(0, n_prompts, size):
        part = slice(start, start + size)
        # Relative to one of the tokens, so that equal ones leave exact zeros.
        part_nTD = tokens_NTD[part].to(torch.float64, copy=True)
        part_nTD -= tokens_NTD[part, first : first + 1]
        part_nTD -= weight_N1t[part] @ part_nTD[:, first:]
        products_NTT[part] = gram(part_nTD)
    return products_NTT


def _unit(products_NTT: Tensor, mask_NT: Tensor) -> Tensor:
    square_NT = products_NTT.diagonal(dim1=1, dim2=2)
    real_NT = square_NT.where(mask_NT, 0.0)
    zero_NT = ~mask_NT | (square_NT <= real_NT.amax(dim=1, keepdim=True) * ZERO_ROW**2)
    scale_NT = square_NT.rsqrt().masked_fill(zero_NT, 0.0)
    return products_NTT * scale_NT[:, None] * scale_NT[..., None]
