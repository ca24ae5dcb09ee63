"""Cosine similarity in float64, for the probes that rank by it.

A layer's vectors can all lie within 1e-5 of one direction, which float32 hardly resolves.

Shapes: N rows or pairs, M rows of a side, Q queries or B pairs of one block, D dimensions.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from operators.probes.fold import PairRows, Values, Vectors

# Rows widened to float64 at a time, so that no second copy of a layer is made.
BLOCK_ROWS = 512

# Similarities that agree to this many decimals are ties. The error of a float64 product is some
# 1e-15 and depends on the shapes of the blocks; without rounding it would order equal documents.
DECIMALS = 12


def directions(vectors_ND: Vectors) -> npt.NDArray[np.float64]:
    """Rows of length 1 in float64; a zero row stays zero, so its cosine with anything is 0."""
    rows_ND = vectors_ND.astype(np.float64)
    norm_N1: npt.NDArray[np.float64] = np.linalg.norm(rows_ND, axis=1, keepdims=True)
    norm_N1[norm_N1 == 0] = 1
    rows_ND /= norm_N1
    return rows_ND


def cosines(query_QD: Vectors, document_ND: Vectors) -> npt.NDArray[np.float64]:
    """Cosine [Q, N] of every query with every document, rounded to `DECIMALS`."""
    unit_QD = directions(query_QD)
    cosine_QN = np.empty((len(query_QD), len(document_ND)))
    for start in range(0, len(document_ND), BLOCK_ROWS):
        stop = start + BLOCK_ROWS
        cosine_QN[:, start:stop] = unit_QD @ directions(document_ND[start:stop]).T
    return np.round(cosine_QN, DECIMALS, out=cosine_QN)


def pair_blocks(
    first_MD: Vectors, second_MD: Vectors, rows: PairRows | None, size: int
) -> Iterator[tuple[slice, Vectors, Vectors]]:
    """Yield which pairs a block of at most `size` holds, and the vectors [B, D] of both sides.

    Pair n is row n of both sides, or the n-th row of each that `rows` name: where a text stands in
    many pairs, its vector is copied for one block at a time.
    """
    for start in range(0, len(rows[0] if rows else first_MD), size):
        part = slice(start, start + size)
        first, second = (rows[0][part], rows[1][part]) if rows else (part, part)
        yield part, first_MD[first], second_MD[second]


def paired_cosines(first_MD: Vectors, second_MD: Vectors, rows: PairRows | None = None) -> Values:
    """Cosine [N] of both sides of every pair (see `pair_blocks`), rounded to `DECIMALS`."""
    cosine_N = np.empty(len(rows[0] if rows else first_MD))
    for part, first_BD, second_BD in pair_blocks(first_MD, second_MD, rows, BLOCK_ROWS):
        np.einsum("bd,bd->b", directions(first_BD), directions(second_BD), out=cosine_N[part])
    return np.round(cosine_N, DECIMALS, out=cosine_N)
