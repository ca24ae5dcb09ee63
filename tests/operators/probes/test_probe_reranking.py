"""The reranking probe: closed forms, ties, invariances, bad input."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from operators.probes.fold import FoldScore, item_resamples
from operators.probes.reranking import average_precision, reranking

Matrix = npt.NDArray[np.float32]

# Documents at 0, 30, 60 and 90 degrees from the query.
DEGREES = np.radians([0.0, 30.0, 60.0, 90.0])
QUERY = np.array([[2.0, 0.0]])
DOCUMENTS = np.stack([np.cos(DEGREES), np.sin(DEGREES)], axis=1) * [[1.0], [3.0], [0.5], [2.0]]


@pytest.mark.parametrize(
    ("candidates", "gains", "k", "expected"),
    [
        ([0, 1, 2, 3], [1, 0, 0, 0], 1000, 1.0),
        ([3, 2, 1, 0], [1, 0, 0, 0], 1000, 1 / 4),
        ([0, 1, 2, 3], [1, 0, 1, 0], 1000, (1 / 1 + 2 / 3) / 2),
        ([0, 1, 2, 3], [1, 0, 5, 0], 1000, (1 / 1 + 2 / 3) / 2),
        ([0, 1, 2, 3], [1, 0, 1, 0], 2, (1 / 1) / 2),
        ([1, 3], [0, 1], 1000, 1 / 2),
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


def lists(n_queries: int) -> tuple[Matrix, Matrix, list[npt.NDArray[np.int64]], list[Matrix]]:
    generator = np.random.default_rng(0)
    query = generator.standard_normal((n_queries, 6)).astype(np.float32)
    document = generator.standard_normal((50, 6)).astype(np.float32)
    candidates = [generator.choice(50, size=8 + row % 5, replace=False) for row in range(n_queries)]
    gains = [(rows % 4 == 0).astype(np.float32) for rows in candidates]
    for of_query in gains:
        of_query[0] = 1
    return query, document, candidates, gains


def test_order_and_lengths_do_not_matter() -> None:
    query, document, candidates, gains = lists(20)
    (score,) = reranking(query, document, candidates, gains)
    turned = [rows[::-1] for rows in candidates], [of_query[::-1] for of_query in gains]
    assert reranking(query, document, *turned) == [score]
    lengths = np.random.default_rng(1).uniform(0.1, 9, (50, 1)).astype(np.float32)
    assert reranking(query * 4, document * lengths, candidates, gains) == [score]
    order = np.random.default_rng(2).permutation(20)
    (shuffled,) = reranking(
        query[order], document, [candidates[row] for row in order], [gains[row] for row in order]
    )
    assert shuffled.value == pytest.approx(score.value)


def test_replicates_are_scores_of_the_resampled_queries() -> None:
    query, document, candidates, gains = lists(25)
    (score,) = reranking(query, document, candidates, gains, seed=5, replicates=20)
    for replicate, count_N in zip(
        score.replicates, item_resamples(25, seed=5, count=20), strict=True
    ):
        drawn = np.repeat(np.arange(25), count_N)
        (again,) = reranking(
            query[drawn],
            document,
            [candidates[row] for row in drawn],
            [gains[row] for row in drawn],
        )
        assert replicate == pytest.approx(again.value)
    assert len(set(score.replicates)) > 10


QUERIES, CORPUS, CANDIDATES, GAINS = lists(5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reranking(QUERIES, CORPUS, [*CANDIDATES[:3], [], [0]], GAINS), "query 3 has no c"),
        (lambda: reranking(QUERIES, CORPUS, [[0]] * 5, [[1], [0], *[[1]] * 3]), "query 1 has no r"),
        (lambda: reranking(QUERIES, CORPUS, [[0]] * 4, [[1]] * 5), "candidates: .* got 4 for 5"),
        (lambda: reranking(QUERIES, CORPUS, [[0]] * 5, [[1]] * 6), "relevance: .* got 6 for 5"),
        (lambda: reranking(QUERIES, CORPUS, [[0, 1]] * 5, [[1]] * 5), "2 candidates and 1 gains"),
        (lambda: reranking(QUERIES, CORPUS, [[0, 50]] * 5, [[1, 0]] * 5), r"rows 0\.\.50, .* 50 d"),
        (lambda: reranking(QUERIES, CORPUS, [[0]] * 5, [[np.inf]] * 5), "query 0 .* not finite"),
        (lambda: reranking(QUERIES, CORPUS[:, :3], CANDIDATES, GAINS), "queries 6, of documents 3"),
        (lambda: reranking(QUERIES * np.nan, CORPUS, CANDIDATES, GAINS), "queries: 30 non-finite"),
        (lambda: reranking(QUERIES, CORPUS, CANDIDATES, GAINS, k=0), "k must be .* got 0"),
    ],
)
def test_values_that_do_not_exist_are_errors(
    call: Callable[[], list[FoldScore]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call()
