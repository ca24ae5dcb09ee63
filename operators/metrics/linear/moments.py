"""Sums over the prompts of one block of vectors, which merge over blocks and shards in any order.

Shape suffixes: D features; a lower-case n is the prompts of one block or chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

# Elements of one chunk: 64 MiB in float64, of which a handful lives at a time.
CHUNK_ELEMENTS = 2**23
# A centred row shorter than this share of the size of the rows equals the mean up to rounding.
ZERO_ROW = 1e-12


class MeanSums(NamedTuple):
    """Mean and spread of some prompts; ``merge_means`` adds two disjoint sets of them."""

    n_prompts: int
    mean_D: Tensor
    squares: Tensor  # sum over prompts of the squared distance to the mean


class DirectionSums(NamedTuple):
    """Sum of the unit vectors of the rows that have a direction, which zero rows have not."""

    n_rows: int
    total_D: Tensor


def row_chunks(block_nD: Tensor) -> Iterator[Tensor]:
    """Yield the rows as float64 chunks of bounded memory."""
    size = max(1, CHUNK_ELEMENTS // max(1, block_nD.shape[1]))
    for start in range(0, block_nD.shape[0], size):
        yield block_nD[start : start + size].to(torch.float64)


def mean_sums(block_nD: Tensor) -> MeanSums:
    """Mean and spread of one block, which may be empty."""
    zeros_D = block_nD.new_zeros(block_nD.shape[1], dtype=torch.float64)
    nothing = MeanSums(0, zeros_D, zeros_D.new_zeros(()))
    return reduce(merge_means, map(_chunk_means, row_chunks(block_nD)), nothing)


def merge_means(left: MeanSums, right: MeanSums) -> MeanSums:
    """Mean and spread of two disjoint sets of prompts (Chan, Golub & LeVeque 1983).

    Rows that are all equal keep a spread of exactly 0, and their mean is the row itself.
    """
    if not (left.n_prompts and right.n_prompts):
        return left if left.n_prompts else right
    n_prompts = left.n_prompts + right.n_prompts
    shift_D = right.mean_D - left.mean_D
    weight = left.n_prompts * right.n_prompts / n_prompts
    return MeanSums(
        n_prompts=n_prompts,
        mean_D=left.mean_D + shift_D * (right.n_prompts / n_prompts),
        squares=left.squares + right.squares + weight * shift_D.square().sum(),
    )


def _chunk_means(rows_nD: Tensor) -> MeanSums:
    # Relative to the first row, so that equal rows leave an exact zero.
    shifted_nD = rows_nD - rows_nD[0]
    shift_D = shifted_nD.mean(dim=0)
    squares = (shifted_nD - shift_D).square().sum()
    return MeanSums(rows_nD.shape[0], rows_nD[0] + shift_D, squares)


def direction_sums(block_nD: Tensor) -> DirectionSums:
    """Sum of the unit vectors of one block, which may be empty."""
    sums = DirectionSums(0, block_nD.new_zeros(block_nD.shape[1], dtype=torch.float64))
    for rows_nD in row_chunks(block_nD):
        norm_n = torch.linalg.vector_norm(rows_nD, dim=1)
        unit_nD = (rows_nD / norm_n[:, None]).masked_fill(norm_n[:, None] == 0, 0.0)
        part = DirectionSums(int((norm_n != 0).sum()), unit_nD.sum(dim=0))
        sums = merge_directions(sums, part)
    return sums


def merge_directions(left: DirectionSums, right: DirectionSums) -> DirectionSums:
    """Sum of the unit vectors of two disjoint sets of prompts."""
    return DirectionSums(left.n_rows + right.n_rows, left.total_D + right.total_D)


def prepare_population(rows_nD: Tensor, means: MeanSums, center: bool, unit: bool) -> Tensor:
    """Centre rows by the mean of the population, then scale each to unit length, in float64.

    A row equal to the mean keeps a zero row. The bound for "equal" is relative to the root mean
    square of the rows, mean included, because that is what the rounding of the mean is relative to.
    """
    rows_nD = rows_nD.to(torch.float64)
    if center:
        rows_nD = rows_nD - means.mean_D
    if unit:
        norm_n1 = torch.linalg.vector_norm(rows_nD, dim=1, keepdim=True)
        size = (means.squares / max(1, means.n_prompts) + means.mean_D.square().sum()).sqrt()
        bound = size * ZERO_ROW if center else 0.0
        rows_nD = (rows_nD / norm_n1).masked_fill(norm_n1 <= bound, 0.0)
    return rows_nD


def second_moment(block_nD: Tensor, means: MeanSums, center: bool, unit: bool) -> Tensor:
    """``Z^T Z`` of the prepared rows of one block; the sum over blocks is that of the population.

    ``means`` is of the whole population, not of the block.
    """
    total_DD = block_nD.new_zeros(2 * block_nD.shape[1:], dtype=torch.float64)
    for chunk_nD in row_chunks(block_nD):
        rows_nD = prepare_population(chunk_nD, means, center, unit)
        total_DD += rows_nD.mT @ rows_nD
    return total_DD
