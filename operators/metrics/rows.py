"""Padded tokens to clean float64 rows: masking, chunks of bounded memory, centring, unit length.

Shape suffixes: N prompts, T tokens (right-padded), D features; a lower-case n is the prompts of one
chunk.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# Elements of one chunk: 64 MiB in float64, of which a metric holds a handful at a time.
CHUNK_ELEMENTS = 2**23

# A centred row shorter than this share of the prompt's longest equals the mean up to rounding.
ZERO_ROW = 1e-12


def length_chunks(hidden_NTD: Tensor, lengths_N: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield ``(index_n, tokens_nTD, mask_nT)``, shortest prompts first.

    Every chunk is cut to its longest prompt, so a long padding costs nothing and never reaches a
    metric. Tokens are float64 with zeros in the padding, whatever was there before.
    """
    n_prompts, n_tokens, dim = hidden_NTD.shape
    if hidden_NTD.numel() == 0:
        return
    lengths_N = lengths_N.to("cpu", torch.int64)
    assert 0 <= int(lengths_N.min()) <= int(lengths_N.max()) <= n_tokens
    order_N = lengths_N.argsort(stable=True)
    size = max(1, CHUNK_ELEMENTS // (n_tokens * dim))
    for start in range(0, n_prompts, size):
        index_n = order_N[start : start + size]
        width = max(1, int(lengths_N[index_n].max()))
        mask_nT = torch.arange(width) < lengths_N[index_n][:, None]
        index_n, mask_nT = index_n.to(hidden_NTD.device), mask_nT.to(hidden_NTD.device)
        tokens_nTD = hidden_NTD[:, :width].index_select(0, index_n).to(torch.float64)
        yield index_n, tokens_nTD.masked_fill(~mask_nT[..., None], 0.0), mask_nT


def prepare_rows(rows_NTD: Tensor, mask_NT: Tensor, center: bool, unit: bool) -> Tensor:
    """Centre the rows of every prompt over its real tokens, then scale each row to unit length.

    Rows come as from ``length_chunks``: float64, with zeros in the padding, which stays zero. A row
    equal to the mean becomes a zero row. The first token is subtracted before the mean is taken:
    tokens that are all equal then give exact zeros, and a common offset costs no digits.
    """
    padding_NT1 = ~mask_NT[..., None]
    if center:
        rows_NTD = (rows_NTD - rows_NTD[:, :1]).masked_fill(padding_NT1, 0.0)
        count_N11 = mask_NT.sum(dim=1).clamp(min=1)[:, None, None]
        mean_N1D = rows_NTD.sum(dim=1, keepdim=True) / count_N11
        rows_NTD = (rows_NTD - mean_N1D).masked_fill(padding_NT1, 0.0)
    if unit:
        norm_NT1 = torch.linalg.vector_norm(rows_NTD, dim=-1, keepdim=True)
        floor_N11 = norm_NT1.amax(dim=1, keepdim=True) * (ZERO_ROW if center else 0.0)
        rows_NTD = (rows_NTD / norm_NT1).masked_fill(norm_NT1 <= floor_N11, 0.0)
    return rows_NTD
