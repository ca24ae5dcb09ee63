"""Spectra of Gram matrices, the common ground of the entropies and ranks.

Shape suffixes: N rows (samples or tokens), D features, K the side of a Gram matrix; a leading
``...`` is any batch.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier

import torch
from torch import Tensor

# Eigenvalues below this share of the largest are rounding, not signal: float64 leaves zeros near
# 1e-15, and float32 states leave theirs near (6e-8)^2. It is one constant, not a function of the
# shape, so that padding a prompt cannot move an eigenvalue across it.
RELATIVE_FLOOR = 1e-12

# Where half of a symmetric product is left out: blocks of fewer rows would be slower than that.
LARGE_SIDE = 512
GRAM_BLOCKS = 4


def floor_spectrum(eigenvalues: Tensor) -> Tensor:
    """Set to exactly 0 what is negative or below RELATIVE_FLOOR of the largest; NaN stays NaN."""
    eigenvalues = eigenvalues.to(torch.float64)
    largest = eigenvalues.amax(dim=-1, keepdim=True)
    return eigenvalues.masked_fill(eigenvalues <= largest.clamp(min=0) * RELATIVE_FLOOR, 0.0)


def small_gram(rows_ND: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Z Z^T or Z^T Z, whichever is smaller: both have the same non-zero spectrum."""
    rows_ND = rows_ND.to(dtype)
    return _gram(rows_ND if rows_ND.shape[-2] <= rows_ND.shape[-1] else rows_ND.mT)


def _gram(left_KR: Tensor) -> Tensor:
    """Product with its own transpose; of a large one, only the blocks below the diagonal."""
    side = left_KR.shape[-2]
    if side < LARGE_SIDE:
        return left_KR @ left_KR.mT
    gram_KK = left_KR.new_empty((*left_KR.shape[:-1], side))
    step = -(-side // GRAM_BLOCKS)
    for start in range(0, side, step):
        end = start + step
        gram_KK[..., start:end, :end] = left_KR[..., start:end, :] @ left_KR[..., :end, :].mT
        gram_KK[..., :start, start:end] = gram_KK[..., start:end, :start].mT
    return gram_KK


def psd_spectrum(gram_KK: Tensor) -> Tensor:
    """Floored eigenvalues of positive semi-definite matrices, ascending; NaN for a non-finite one.

    The solver refuses a whole batch for one non-finite entry, so such matrices are solved as zeros
    and marked afterwards.
    """
    gram_KK = gram_KK.to(torch.float64)
    finite = gram_KK.sum(dim=(-2, -1)).isfinite()
    if not finite.all():
        gram_KK = gram_KK.where(finite[..., None, None], 0.0)
    (eigenvalues,) = solve_each(lambda part_KK: (torch.linalg.eigvalsh(part_KK),), gram_KK)
    return floor_spectrum(eigenvalues).where(finite[..., None], torch.nan)


def gram_spectrum(rows_ND: Tensor) -> Tensor:
    """Eigenvalues of the Gram matrix of the rows: their squared singular values.

    Formula: eigenvalues of ``Z Z^T`` (N x N), taken from ``Z^T Z`` (D x D) where that is smaller.
    Input is ``[..., N, D]`` of any float type, output ``[..., min(N, D)]`` in float64, ascending.
    Range: >= 0, in squared units of the rows; values below RELATIVE_FLOOR of the largest are 0, and
    a batch entry with a non-finite row is NaN.
    The released code clamps negative Gram entries to 0 before the solve; here nothing is clamped.
    """
    return psd_spectrum(small_gram(rows_ND))


def solve_each(solver: Callable[[Tensor], tuple[Tensor, ...]], matrices: Tensor) -> list[Tensor]:
    """Apply a solver of batches ``[..., K, K]`` to parts of the batch, one for each CPU thread.

    A solver takes the matrices of a batch one after the other, and several threads speed up the
    single one little; each thread for itself speeds them up in full.
    """
    flat_MKK = matrices.flatten(0, -3) if matrices.dim() > 2 else matrices[None]  # noqa: PLR2004
    threads = torch.get_num_threads() if matrices.device.type == "cpu" else 1
    if threads == 1 or len(flat_MKK) == 1:
        return list(solver(matrices))
    inference = torch.is_inference_mode_enabled()  # holds for the calling thread only

    def work(part_mKK: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode(inference), torch.no_grad():
            return solver(part_mKK)

    pool = _workers(threads, os.getpid())
    parts = zip(*pool.map(work, flat_MKK.tensor_split(min(threads, len(flat_MKK)))), strict=True)
    joined = [torch.cat(part) for part in parts]
    return [values.view(*matrices.shape[:-2], *values.shape[1:]) for values in joined]


@cache
def _workers(threads: int, _process: int) -> ThreadPoolExecutor:
    """Threads that run torch's operations on themselves alone; a forked process needs its own.

    torch.set_num_threads acts on the calling thread and on threads that torch gets to know later:
    so a worker first makes itself known, and the caller repeats its own number after the workers.
    """
    started = Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, "spectrum", start)
    for _ in range(threads):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(threads)
    return pool
