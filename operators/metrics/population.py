"""A population of pooled vectors, read block by block: what its metrics need, in mergeable sums.

Shape suffixes: N prompts, D features, K the smaller of both, S small eigenvalues; a lower-case n is
the prompts of one block or chunk.

The first pass over the blocks has the mean and the sum of unit vectors; the second, which needs the
mean of all, plain sums of second moments; a third one, for small singular values only, is described
at ``deflated_spectrum``. Memory is a few D x D matrices and one block, never the prompts. Up to D
prompts, the N x N Gram matrix is the smaller side: their rows are kept and one pass is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from layerrank.operators.metrics.spectrum import psd_spectrum, small_gram

# Blocks of rows [n, D] that can be read again, always in the same order: an iterable that begins
# anew each time, or a function that returns one.
Blocks = Iterable[Tensor] | Callable[[], Iterable[Tensor]]

# How rows are prepared for a Gram matrix: (center, unit).
Preparation = tuple[bool, bool]
SECOND_PASS: tuple[Preparation, ...] = ((True, False), (True, True))

# Elements of one chunk: 64 MiB in float64, of which a handful lives at a time.
CHUNK_ELEMENTS = 2**23
# A centred row shorter than this share of the size of the rows equals the mean up to rounding.
ZERO_ROW = 1e-12
# Eigenvalues below the first share of the largest are computed again on their own, with rounding
# that much smaller; below the second, singular values below 3e-10 of the largest, they are zeros.
DEFLATED = 1e-6
DEFLATED_FLOOR = 1e-19


class RowSums(NamedTuple):
    """Mean, spread and directions of some prompts; ``merge_rows`` adds two disjoint sets."""

    n_prompts: int
    mean_D: Tensor
    squares: Tensor  # sum over prompts of the squared distance to the mean
    n_directions: int  # prompts that have a direction, which zero rows have not
    direction_D: Tensor  # sum of their unit vectors


def row_chunks(*blocks: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same rows of each block as float64 chunks of bounded memory."""
    size = max(1, CHUNK_ELEMENTS // max(1, *(block_nD.shape[1] for block_nD in blocks)))
    for start in range(0, len(blocks[0]), size):
        yield tuple(block_nD[start : start + size].to(torch.float64) for block_nD in blocks)


def row_sums(block_nD: Tensor) -> RowSums:
    """Mean, spread and directions of one block, which may be empty."""
    zeros_D = block_nD.new_zeros(block_nD.shape[1], dtype=torch.float64)
    sums = RowSums(0, zeros_D, zeros_D.new_zeros(()), 0, zeros_D)
    for (rows_nD,) in row_chunks(block_nD):
        # Relative to the first row, so that equal rows leave an exact zero.
        shifted_nD = rows_nD - rows_nD[0]
        shift_D = shifted_nD.mean(dim=0)
        squares = (shifted_nD - shift_D).square().sum()
        norm_n1 = torch.linalg.vector_norm(rows_nD, dim=1, keepdim=True)
        direction_D = (rows_nD / norm_n1).masked_fill(norm_n1 == 0, 0.0).sum(dim=0)
        spread = len(rows_nD), rows_nD[0] + shift_D, squares
        sums = merge_rows(sums, RowSums(*spread, int((norm_n1 != 0).sum()), direction_D))
    return sums


def merge_rows(left: RowSums, right: RowSums) -> RowSums:
    """Sums of two disjoint sets of prompts (Chan, Golub & LeVeque 1983).

    Rows that are all equal keep a spread of exactly 0, and their mean is the row itself.
    """
    if not (left.n_prompts and right.n_prompts):
        return left if left.n_prompts else right
    n_prompts = left.n_prompts + right.n_prompts
    shift_D = right.mean_D - left.mean_D
    weight = left.n_prompts * right.n_prompts / n_prompts
    return RowSums(
        n_prompts=n_prompts,
        mean_D=left.mean_D + shift_D * (right.n_prompts / n_prompts),
        squares=left.squares + right.squares + weight * shift_D.square().sum(),
        n_directions=left.n_directions + right.n_directions,
        direction_D=left.direction_D + right.direction_D,
    )


def prepare_population(rows_nD: Tensor, sums: RowSums, center: bool, unit: bool) -> Tensor:
    """Centre rows by the mean of the population, then scale each to unit length, in float64.

    A row equal to the mean keeps a zero row. The bound for "equal" is relative to the root mean
    square of the rows, mean included, because that is what the rounding of the mean is relative to.
    """
    rows_nD = rows_nD.to(torch.float64)
    if center:
        rows_nD = rows_nD - sums.mean_D
    if unit:
        norm_n1 = torch.linalg.vector_norm(rows_nD, dim=1, keepdim=True)
        size = (sums.squares / max(1, sums.n_prompts) + sums.mean_D.square().sum()).sqrt()
        bound = size * ZERO_ROW if center else 0.0
        rows_nD = (rows_nD / norm_n1).masked_fill(norm_n1 <= bound, 0.0)
    return rows_nD


def second_moment(block_nD: Tensor, sums: RowSums, center: bool, unit: bool) -> Tensor:
    """``Z^T Z`` of the prepared rows of one block; the sum over blocks is that of the population.

    ``sums`` is of the whole population, not of the block.
    """
    total_DD = block_nD.new_zeros(2 * block_nD.shape[1:], dtype=torch.float64)
    for (chunk_nD,) in row_chunks(block_nD):
        rows_nD = prepare_population(chunk_nD, sums, center, unit)
        total_DD += rows_nD.mT @ rows_nD
    return total_DD


def deflated_spectrum(gram_KK: Tensor, columns: Iterable[Tensor]) -> Tensor:
    """Eigenvalues of ``Z^T Z`` as exact as the squared singular values of Z, ascending.

    A Gram matrix carries singular values down to 1e-8 of the largest, below which are the roots of
    its rounding. Therefore Z, in blocks ``[n, K]``, is read once more in the basis of the
    eigenvalues that are small, without the large ones and the rounding that goes with them.
    """
    if not gram_KK.isfinite().all():
        return gram_KK.new_full(gram_KK.shape[:1], torch.nan)
    value_K, basis_KK = torch.linalg.eigh(gram_KK)
    largest = value_K[-1].clamp(min=0)
    n_small = int((value_K < largest * DEFLATED).sum())
    if n_small:
        small_KS = basis_KK[:, :n_small]
        total_SS = gram_KK.new_zeros(n_small, n_small)
        for block_nK in columns:
            for (chunk_nK,) in row_chunks(block_nK):
                chunk_nS = chunk_nK @ small_KS
                total_SS += chunk_nS.mT @ chunk_nS
        value_K = torch.cat([torch.linalg.eigvalsh(total_SS), value_K[n_small:]]).sort().values
    floored_K: Tensor = value_K.masked_fill(value_K <= largest * DEFLATED_FLOOR, 0.0)
    return floored_K


class Population:
    """All pooled vectors of one layer, behind blocks that are read as seldom as possible.

    Nothing is read before it is asked for. The one second pass has the Gram matrices of
    SECOND_PASS; another one that is asked for later costs a pass of its own, except that the raw
    one follows from the centred one as ``Z^T Z + n m m^T``.
    """

    def __init__(self, blocks: Blocks) -> None:
        assert not isinstance(blocks, Iterator), "an iterator cannot be read again"
        self._source = blocks
        self._grams: dict[Preparation, Tensor] = {}
        self._spectra: dict[Preparation, Tensor] = {}

    def blocks(self) -> Iterator[Tensor]:
        """Yield the blocks once: one pass over the vectors."""
        yield from self._source() if callable(self._source) else self._source

    @property
    def n_prompts(self) -> int:
        """Number of rows (first pass)."""
        return self.sums.n_prompts

    @property
    def dim(self) -> int:
        """Number of features; 0 where there is not even an empty block (first pass)."""
        return self.sums.mean_D.shape[0]

    @property
    def sums(self) -> RowSums:
        """Mean, spread and directions of the raw rows (first pass)."""
        return self._first_pass[0]

    def gram(self, center: bool, unit: bool) -> Tensor:
        """Return ``Z Z^T`` or ``Z^T Z`` of the prepared rows, whichever is smaller: ``[K, K]``."""
        wanted = (center, unit)
        if wanted not in self._grams:
            sums, kept = self._first_pass
            if sums.n_prompts == 0:
                self._grams[wanted] = sums.mean_D.new_full((1, 1), torch.nan)
            elif kept is not None:
                rows_ND = prepare_population(torch.cat(kept), sums, center, unit)
                self._grams[wanted] = small_gram(rows_ND)
            elif wanted == (False, False):
                raised_DD = sums.n_prompts * torch.outer(sums.mean_D, sums.mean_D)
                self._grams[wanted] = self.gram(center=True, unit=False) + raised_DD
            else:  # one pass for every one that was announced and is not there yet
                missing = {wanted, *SECOND_PASS} - {(False, False), *self._grams}
                zeros_DD = sums.mean_D.new_zeros(self.dim, self.dim)
                totals = {each: zeros_DD.clone() for each in missing}
                for block_nD in self.blocks():
                    for each, total_DD in totals.items():
                        total_DD.add_(second_moment(block_nD, sums, *each))
                self._grams.update(totals)
        return self._grams[wanted]

    def spectrum(self, center: bool, unit: bool) -> Tensor:
        """Floored eigenvalues of ``gram``, ascending, min(N, D) of them; solved once.

        They are the squared singular values of the prepared rows; divided by N, with centring and
        without unit length, the variances along the principal components. Those of the raw rows are
        of a ``deflated_spectrum`` (third pass). One NaN without rows.
        """
        wanted = (center, unit)
        if wanted not in self._spectra:
            gram_KK, kept = self.gram(center, unit), self._first_pass[1]
            if wanted == (False, False):
                # Raw vectors in blocks with as many columns as the Gram matrix has.
                columns = [torch.cat(kept).mT] if kept else self.blocks()
                self._spectra[wanted] = deflated_spectrum(gram_KK, columns)
            else:
                self._spectra[wanted] = psd_spectrum(gram_KK)
        return self._spectra[wanted]

    def sample(self, at_most: int) -> Tensor:
        """Return the first rows, as they came; reads no more blocks than these lie in."""
        known = self._first_pass[1] if "_first_pass" in self.__dict__ else None
        found: list[Tensor] = []
        for block_nD in known or self.blocks():
            found.append(block_nD[: at_most - sum(map(len, found))])
            if sum(map(len, found)) >= at_most:
                break
        return torch.cat(found) if found else torch.empty(0, 0)

    @cached_property
    def _first_pass(self) -> tuple[RowSums, list[Tensor] | None]:
        """Read the blocks for their sums, and the rows unless they outnumber D."""
        nothing = torch.zeros(0, dtype=torch.float64)
        sums = RowSums(0, nothing, nothing.sum(), 0, nothing)
        kept: list[Tensor] | None = []
        for block_nD in self.blocks():
            sums = merge_rows(sums, row_sums(block_nD))
            if kept is not None:
                kept = [*kept, block_nD] if sums.n_prompts <= block_nD.shape[1] else None
        return sums, kept
