"""Pairs named by rows of a shared matrix: the same scores as pairs laid out, without their copy."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from operators.probes.fold import FoldScore
from operators.probes.pair_classification import pair_classification
from operators.probes.sts import sts

PAIRS = 3000
Probe = Callable[..., list[FoldScore]]
PROBES = pytest.mark.parametrize("probe", [sts, pair_classification])


def texts(n_texts: int, dim: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((n_texts, dim), dtype=np.float32)


def pairs_of(
    n_texts: int, count: int = PAIRS
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    first, second = np.random.default_rng(1).integers(0, n_texts, (2, count))
    return first, second


@PROBES
def test_rows_stand_for_their_vectors(probe: Probe) -> None:
    vectors_MD, (first, second) = texts(200, 16), pairs_of(200)
    together = np.random.default_rng(2).integers(0, 2, PAIRS)
    laid_out = probe(vectors_MD[first], vectors_MD[second], together)
    assert probe(vectors_MD, vectors_MD, together, rows=(first, second)) == laid_out
    assert laid_out != probe(vectors_MD, vectors_MD, together, rows=(second, second[::-1]))


@PROBES
def test_memory_grows_by_less_than_the_pairs_vectors(probe: Probe) -> None:
    vectors_MD = texts(500, 256)
    peaks = []
    for count in (PAIRS, 4 * PAIRS):
        together = np.arange(count) % 2
        tracemalloc.start()
        probe(vectors_MD, vectors_MD, together, rows=pairs_of(500, count), replicates=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    laid_out = 2 * 3 * PAIRS * 256 * vectors_MD.itemsize
    assert peaks[1] - peaks[0] < 0.2 * laid_out


@PROBES
def test_rows_of_different_counts(probe: Probe) -> None:
    rows = (np.arange(5), np.arange(4))
    with pytest.raises(ValueError, match=r"one shape, got \(5, 16\) and \(4, 16\)"):
        probe(texts(9, 16), texts(9, 16), [0, 1, 0, 1, 0], rows=rows)
