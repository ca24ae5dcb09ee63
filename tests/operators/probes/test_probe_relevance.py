"""Probes of relevance, retrieval and reranking: closed forms, ties, and blocks."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import ndcg_score
from sklearn.preprocessing import normalize

from layerrank.operators.probes import relevance
from layerrank.operators.probes.relevance import average_precision, reranking, retrieval
from tests.support.simulated import values

Matrix = npt.NDArray[np.float32]


# Query along x; documents at 0, 60 and 90 degrees, in this order of rows: 90, 0, 60.
ANGLES = np.array([[0.0, 1.0], [2.0, 0.0], [1.0, math.sqrt(3)]])
SECOND, THIRD = 1 / math.log2(3), 1 / math.log2(4)  # discounts of the ranks


@pytest.mark.parametrize(
    ("relevant", "gains", "k", "expected"),
    [
        ([0], None, 2, 0.0),
        ([1, 2, 0], None, 1, 1.0),
        ([2, 2, 2], None, 10, SECOND),
        ([2, 0, 2], [1, 3, 1], 10, (SECOND + 3 * THIRD) / (3 + SECOND)),
        ([0, 2], [0, 2], 10, SECOND),
    ],
)
def test_ndcg_by_hand(
    relevant: list[int], gains: list[int] | None, k: int, expected: float
) -> None:
    (score,) = retrieval(
        np.array([[3.0, 0.0]]), ANGLES, [relevant], gains=None if gains is None else [gains], k=k
    )
    assert score.value == pytest.approx(expected)
    assert score.metric == f"ndcg_at_{k}"


@pytest.mark.parametrize("graded", [False, True])
def test_ndcg_agrees_with_scikit_learn(graded: bool) -> None:
    generator = np.random.default_rng(7)
    query, document = (generator.standard_normal((n, 8)).astype(np.float32) for n in (20, 40))
    gains = generator.integers(1, 5, size=(20, 40)) * (generator.random((20, 40)) < 0.2)
    gains[:, 3] = 2
    relevant = [np.flatnonzero(of_query) for of_query in gains]
    of_relevant = [of_query[rows] for of_query, rows in zip(gains, relevant, strict=True)]
    (score,) = retrieval(query, document, relevant, gains=of_relevant if graded else None)
    similarity = normalize(query) @ normalize(document).T
    expected = ndcg_score(gains if graded else gains > 0, similarity, k=10)
    assert score.value == pytest.approx(expected)


def test_equal_documents_rank_by_row_whatever_their_block(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(4)
    query = generator.standard_normal((7, 33)).astype(np.float32)
    document = np.repeat(generator.standard_normal((1, 33)), 101, axis=0).astype(np.float32)
    relevant = [[row] for row in range(7)]
    expected = [np.mean([1 / math.log2(row + 2) for row in range(7)])]
    other = generator.standard_normal((28, 6)), generator.standard_normal((50, 6)), relevant * 4
    whole = retrieval(*other)
    assert values(retrieval(query, document, relevant)) == pytest.approx(expected)
    monkeypatch.setattr(relevance, "BLOCK", 3)
    assert values(retrieval(query, document, relevant)) == pytest.approx(expected)
    assert retrieval(*other) == whole


def test_zero_vectors_are_similar_to_nothing() -> None:
    query = np.array([[1.0, 0.0], [0.0, 0.0]])
    document = np.array([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    # The first query: 1.0, then 0 for the zero row; the second: all equal, so row 0 is first.
    expected = [(1 / math.log2(3) + 1.0) / 2]
    assert values(retrieval(query, document, [[0], [0]])) == pytest.approx(expected)


# Documents at 0, 30, 60 and 90 degrees from the query.
DEGREES = np.radians([0.0, 30.0, 60.0, 90.0])
QUERY = np.array([[2.0, 0.0]])
DOCUMENTS = np.stack([np.cos(DEGREES), np.sin(DEGREES)], axis=1) * [[1.0], [3.0], [0.5], [2.0]]


@pytest.mark.parametrize(
    ("candidates", "gains", "k", "expected"),
    [
        ([3, 2, 1, 0], [1, 0, 0, 0], 1000, 1 / 4),
        ([0, 1, 2, 3], [1, 0, 1, 0], 1000, (1 / 1 + 2 / 3) / 2),
        ([0, 1, 2, 3], [1, 0, 1, 0], 2, (1 / 1) / 2),
        ([2], [1], 1000, 1.0),
    ],
)
def test_average_precision_by_hand(
    candidates: list[int], gains: list[int], k: int, expected: float
) -> None:
    (score,) = reranking(QUERY, DOCUMENTS, [candidates], [gains], k=k)
    assert score.value == pytest.approx(expected)
    assert (score.metric, score.n_train, score.n_test) == (f"map_at_{k}", 0, 1)


def test_equal_candidates_rank_the_irrelevant_first_in_any_order() -> None:
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        gains = np.array([1.0, 0.0, 1.0, 0.0])[order]
        assert average_precision(np.zeros(4), gains, 1000) == pytest.approx((1 / 3 + 2 / 4) / 2)
