"""A population of pooled vectors, read block by block: what its metrics need, in mergeable sums.

Shape suffixes: N prompts, D features, K the smaller of both, S small eigenvalues; a lower-case n is
the prompts of one block or chunk.

The first pass over the blocks has the mean and the sum of unit vectors; the second, which needs the
mean of all, plain sums of second moments; a third one, for small singular values only, is described
at ``deflated_spectrum``. Memory is a few D x D matrices and one block, never the prompts. Up to D
prompts, the N x N Gram matrix is the smaller side: their rows are kept and one pass is enough.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from operators.metrics.linear.moments import (
    DirectionSums,
    MeanSums,
    direction_sums,
    mean_sums,
    merge_directions,
    merge_means,
    prepare_population,
    row_chunks,
    second_moment,
)
from operators.metrics.linear.spectrum import psd_spectrum, small_gram

# Blocks of rows [n, D] that can be read again, always in the same order: an iterable that begins
# anew each time, or a function that returns one.
Blocks = Iterable[Tensor] | Callable[[], Iterable[Tensor]]

# How rows are prepared for a Gram matrix: (center, unit).
Preparation = tuple[bool, bool]
SECOND_PASS: tuple[Preparation, ...] = ((True, False), (True, True))

# Eigenvalues below the first share of the largest are computed again on their own, with rounding
# that much smaller; below the second, singular values below 3e-10 of the largest, they are zeros.
DEFLATED = 1e-6
DEFLATED_FLOOR = 1e-19


def deflated_spectrum(gram_KK: Tensor, columns: Callable[[], Iterable[Tensor]]) -> Tensor:
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
        for block_nK in columns():
            for chunk_nK in row_chunks(block_nK):
                chunk_nS = chunk_nK @ small_KS
                total_SS += chunk_nS.mT @ chunk_nS
        value_K = torch.cat([torch.linalg.eigvalsh(total_SS), value_K[n_small:]]).sort().values
    floored_K: Tensor = value_K.masked_fill(value_K <= largest * DEFLATED_FLOOR, 0.0)
    return floored_K


class Population:
    """All pooled vectors of one layer, behind blocks that are read as seldom as possible.

    Nothing is read before it is asked for. ``preparations`` names the Gram matrices of the one
    second pass; another one that is asked for later costs a pass of its own, except that the raw
    one follows from the centred one as ``Z^T Z + n m m^T``. Blocks move to ``device`` if given.
    """

    def __init__(
        self,
        blocks: Blocks,
        device: torch.device | str | None = None,
        preparations: Iterable[Preparation] = SECOND_PASS,
    ) -> None:
        assert not isinstance(blocks, Iterator), "an iterator cannot be read again"
        self._source = blocks
        self._device = device
        self._preparations = frozenset(preparations)
        self._grams: dict[Preparation, Tensor] = {}
        self._spectra: dict[Preparation, Tensor] = {}

    def blocks(self) -> Iterator[Tensor]:
        """Yield the blocks once: one pass over the vectors."""
        blocks = self._source() if callable(self._source) else self._source
        for block_nD in blocks:
            yield block_nD if self._device is None else block_nD.to(self._device)

    @property
    def n_prompts(self) -> int:
        """Number of rows (first pass)."""
        return self.means.n_prompts

    @property
    def dim(self) -> int:
        """Number of features; 0 where there is not even an empty block (first pass)."""
        return self.means.mean_D.shape[0]

    @property
    def means(self) -> MeanSums:
        """Mean and spread of the rows (first pass)."""
        return self._first_pass[0]

    @property
    def directions(self) -> DirectionSums:
        """Sum of the unit vectors of the raw rows (first pass)."""
        return self._first_pass[1]

    def gram(self, center: bool, unit: bool) -> Tensor:
        """Return ``Z Z^T`` or ``Z^T Z`` of the prepared rows, whichever is smaller: ``[K, K]``."""
        wanted = (center, unit)
        if wanted not in self._grams:
            if self.n_prompts == 0:
                self._grams[wanted] = self.means.mean_D.new_full((1, 1), torch.nan)
            elif self._kept is not None:
                rows_ND = prepare_population(torch.cat(self._kept), self.means, center, unit)
                self._grams[wanted] = small_gram(rows_ND)
            elif wanted == (False, False):
                mean_D = self.means.mean_D
                raised_DD = self.n_prompts * torch.outer(mean_D, mean_D)
                self._grams[wanted] = self.gram(center=True, unit=False) + raised_DD
            else:
                self._second_pass(wanted)
        return self._grams[wanted]

    def spectrum(self, center: bool, unit: bool) -> Tensor:
        """Floored eigenvalues of ``gram``, ascending, min(N, D) of them; solved once.

        They are the squared singular values of the prepared rows; divided by N, with centring and
        without unit length, the variances along the principal components. Those of the raw rows are
        of a ``deflated_spectrum`` (third pass). One NaN without rows.
        """
        wanted = (center, unit)
        if wanted not in self._spectra:
            gram_KK = self.gram(center, unit)
            raw = wanted == (False, False)
            self._spectra[wanted] = (
                deflated_spectrum(gram_KK, self._columns) if raw else psd_spectrum(gram_KK)
            )
        return self._spectra[wanted]

    def sample(self, at_most: int) -> Tensor:
        """Return the first rows, as they came; reads no more blocks than these lie in."""
        found: list[Tensor] = []
        for block_nD in self._rows_known() or self.blocks():
            found.append(block_nD[: at_most - sum(map(len, found))])
            if sum(map(len, found)) >= at_most:
                break
        return torch.cat(found) if found else self.means.mean_D.new_empty(0, self.dim)

    def _rows_known(self) -> list[Tensor] | None:
        return self._first_pass[2] if "_first_pass" in self.__dict__ else None

    def _columns(self) -> Iterable[Tensor]:
        """Raw vectors as blocks with as many columns as the Gram matrix has."""
        return self.blocks() if self._kept is None else [torch.cat(self._kept).mT]

    @property
    def _kept(self) -> list[Tensor] | None:
        return self._first_pass[2]

    @cached_property
    def _first_pass(self) -> tuple[MeanSums, DirectionSums, list[Tensor] | None]:
        """Read the blocks for the means, the directions, and the rows unless they outnumber D."""
        nothing = torch.zeros(0, dtype=torch.float64, device=self._device)
        means = MeanSums(0, nothing, nothing.sum())
        directions: DirectionSums | None = None
        kept: list[Tensor] | None = []
        for block_nD in self.blocks():
            means = merge_means(means, mean_sums(block_nD))
            part = direction_sums(block_nD)
            directions = merge_directions(directions, part) if directions else part
            if kept is not None:
                kept = [*kept, block_nD] if means.n_prompts <= block_nD.shape[1] else None
        return means, directions or DirectionSums(0, nothing), kept

    def _second_pass(self, wanted: Preparation) -> None:
        """Read the blocks for every Gram matrix that was announced and is not there yet."""
        missing = {wanted, *self._preparations} - {(False, False), *self._grams}
        totals: dict[Preparation, Tensor] = {}
        for block_nD in self.blocks():
            for preparation in missing:
                part_DD = second_moment(block_nD, self.means, *preparation)
                total_DD = totals.get(preparation)
                totals[preparation] = part_DD if total_DD is None else total_DD.add_(part_DD)
        self._grams.update(totals)
