"""What has no score, or was asked wrongly, says so: which rows, and whether any data would do."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from layerrank.operators.probes.fold import FoldScore, NoScoreError
from layerrank.operators.probes.labelled import (
    classification,
    clustering,
    multilabel_classification,
    regression,
)
from layerrank.operators.probes.pairs import pair_classification, sts
from layerrank.operators.probes.relevance import reranking, retrieval

ROWS = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
OTHER = ROWS[::-1] + 1
LABELS = np.arange(40) % 4
NUMBERS = ROWS[:, 0].astype(float)
EACH = [[0]] * 40  # a list of every query
BROKEN = ROWS.copy()
BROKEN[3, :2] = np.nan
BROKEN[5, 0] = np.inf
COLLAPSED = np.full_like(ROWS, 0.1)
SETS = [["a"], ["b"], ["a", "c"], ["b", "c"]] * 10
COUNTED = np.arange(10) / 10

Call = Callable[[], list[FoldScore]]
WRONG: list[tuple[Call, str]] = [
    (lambda: classification(BROKEN, LABELS, ROWS, LABELS), "train: 3 non-finite.* 2 of 40"),
    (lambda: classification(ROWS, LABELS[:9], ROWS, LABELS), "train: 40 rows need 40 labels"),
    (lambda: classification(ROWS, LABELS, ROWS, LABELS, folds=0), "folds .* got 0"),
    (lambda: clustering(BROKEN, LABELS), "clustering: 3 non-finite entries in 2 of 40 rows"),
    (lambda: clustering(ROWS[0], LABELS), r"clustering: .* got \(16,\)"),
    (lambda: clustering(ROWS, LABELS[:9]), "clustering: 40 rows need 40 labels"),
    (lambda: clustering(ROWS, LABELS, documents_per_fold=3), "3 documents .* 4 clusters"),
    (lambda: clustering(ROWS, LABELS - 1), "10 of 40 rows have the label -1"),
    (
        lambda: multilabel_classification(ROWS, SETS[:9], ROWS, SETS),
        "train: 40 rows need 40 lists of labels, got 9",
    ),
    (
        lambda: multilabel_classification(ROWS, SETS, ROWS, [*SETS[:7], "a,b", *SETS[8:]]),
        "test: row 7 has 'a,b', a list of labels is needed",
    ),
    (lambda: regression(ROWS, NUMBERS, ROWS, NUMBERS[:9]), "test: 40 rows need 40 values"),
    (lambda: regression(ROWS, ["1"] * 40, ROWS, NUMBERS), "train: the value of row 0 is '1'"),
    (lambda: regression(ROWS, NUMBERS > 0, ROWS, NUMBERS), "the value of row 0 is (Tru|Fals)e"),
    (lambda: regression(ROWS, NUMBERS, ROWS, NUMBERS * np.nan), "test: 40 of 40 .* not finite"),
    (lambda: regression(ROWS, NUMBERS, ROWS, NUMBERS, samples=0), "samples .* got 0"),
    (lambda: sts(BROKEN, OTHER, NUMBERS), "first: 3 non-finite entries in 2 of 40 rows"),
    (lambda: sts(ROWS, BROKEN, NUMBERS), "second: 3 non-finite"),
    (lambda: sts(ROWS, OTHER[:39], NUMBERS), r"pairs: .* \(40, 16\) and \(39, 16\)"),
    (lambda: sts(ROWS, OTHER, NUMBERS[:9]), "scores: 40 rows need 40 values"),
    (lambda: sts(ROWS, OTHER, [*NUMBERS[:39], "high"]), "scores: the value of row 0 is '"),
    (lambda: sts(ROWS, OTHER, [*NUMBERS[:39], None]), "scores: the value of row 39 is None"),
    (lambda: sts(ROWS, OTHER, [*NUMBERS[:39], np.inf]), "1 of 40 .* first inf in row 39"),
    (
        lambda: sts(ROWS, ROWS, COUNTED, rows=(np.arange(5), np.arange(4))),
        r"one shape, got \(5, 16\) and \(4, 16\)",
    ),
    (lambda: pair_classification(ROWS, OTHER, LABELS), "the label 2 is neither 0"),
    (lambda: pair_classification(ROWS, OTHER, ["0", "1"] * 20), "the label '0' is neither"),
    (lambda: pair_classification(ROWS, OTHER, [0, 1]), "pairs: 40 rows need 40 labels"),
    (lambda: retrieval(ROWS, BROKEN, EACH), "documents: 3 non-finite .* 2 of 40 rows"),
    (lambda: retrieval(ROWS, ROWS, [*EACH[1:], [40]]), "query 39 .* 40 documents"),
    (lambda: retrieval(ROWS, ROWS, EACH[1:]), "one list per query, got 39 for 40"),
    (lambda: retrieval(ROWS, ROWS, EACH, gains=[[1]] * 39), "gains: one list per query"),
    (lambda: retrieval(ROWS, ROWS, EACH, gains=[[1, 2]] * 40), "1 documents and 2 gains"),
    (lambda: retrieval(ROWS, ROWS, EACH, gains=[[0]] * 40), "query 0 needs .* above 0"),
    (lambda: retrieval(ROWS, ROWS, EACH, gains=[[math.nan]] * 40), "finite gains"),
    (
        lambda: retrieval(ROWS, ROWS, [[2, 2]] * 40, gains=[[1, 2]] * 40),
        "query 0 gives document 2 different gains",
    ),
    (lambda: retrieval(ROWS, ROWS, EACH, replicates=-1), "replicates .* got -1"),
    (lambda: retrieval(ROWS[:, :3], ROWS, EACH), "queries 3, of documents 16"),
    (lambda: reranking(ROWS, ROWS, EACH[1:], [[1]] * 40), "candidates: .* got 39 for 40"),
    (lambda: reranking(ROWS, ROWS, EACH, [[1]] * 41), "relevance: .* got 41 for 40"),
    (lambda: reranking(ROWS, ROWS, [[0, 1]] * 40, [[1]] * 40), "2 candidates and 1 gains"),
    (lambda: reranking(ROWS, ROWS, [[0, 50]] * 40, [[1, 0]] * 40), r"rows 0\.\.50, .* 40 d"),
    (lambda: reranking(ROWS, ROWS, EACH, [[np.inf]] * 40), "query 0 .* not finite"),
    (lambda: reranking(ROWS, ROWS[:, :3], EACH, EACH), "queries 16, of documents 3"),
    (lambda: reranking(ROWS * np.nan, ROWS, EACH, EACH), "queries: 640 non-finite"),
    (lambda: reranking(ROWS, ROWS, EACH, EACH, k=0), "k must be .* got 0"),
]
WITHOUT_SCORE: list[tuple[Call, str]] = [
    (lambda: classification(ROWS, LABELS * 0, ROWS, LABELS), "train: 40 rows have 1 label"),
    (lambda: classification(ROWS, LABELS, ROWS[:0], []), r"test: .* got \(0, 16\)"),
    (
        lambda: classification(ROWS, LABELS, ROWS, LABELS + 2),
        "test: 2 of 4 labels do not appear in train.*: 4, 5$",
    ),
    (
        lambda: classification(ROWS, LABELS, ROWS, [f"l{row:02}" for row in range(40)]),
        "test: 40 of 40 labels.*: 'l00', 'l01', 'l02', 'l03', 'l04', …$",
    ),
    (lambda: clustering(ROWS[:0], []), r"clustering: .* got \(0, 16\)"),
    (lambda: clustering(ROWS, LABELS, max_documents=1), "1 rows have 1 label"),
    (
        lambda: multilabel_classification(ROWS, [["a"]] * 40, ROWS, SETS),
        "train: 40 rows have 1 labels, .* 2 or more",
    ),
    (
        lambda: multilabel_classification(ROWS, SETS, ROWS, [["a", "z"], *SETS[1:]]),
        "test: 1 of 4 labels do not appear in train.*: 'z'$",
    ),
    (
        lambda: multilabel_classification(ROWS[:4], SETS[:4], ROWS, SETS, samples_per_label=1),
        "train: fold 0 draws . rows, 5 neighbours need as many",
    ),
    (lambda: regression(ROWS, NUMBERS * 0 + 3, ROWS, NUMBERS), "train: all 40 values are 3"),
    (lambda: regression(ROWS, NUMBERS, ROWS, NUMBERS, samples=35), "35 of 40 .* 10..30"),
    (lambda: regression(COLLAPSED, NUMBERS, COLLAPSED, NUMBERS), "predictions are all equal"),
    (lambda: sts(ROWS, OTHER, NUMBERS * 0), "scores: all 40 values are 0, 2 different"),
    (lambda: sts(ROWS, ROWS, NUMBERS), "pairs: all 40 have the cosine 1"),
    (lambda: pair_classification(ROWS, OTHER, [1] * 40), "all 40 have the label 1, .* both"),
    (lambda: retrieval(ROWS, ROWS, [*EACH[:12], [], *EACH[13:]]), "query 12 has no relevant"),
    (lambda: reranking(ROWS, ROWS, [*EACH[:3], [], *EACH[4:]], [[1]] * 40), "query 3 has no c"),
    (lambda: reranking(ROWS, ROWS, EACH, [[1], [0], *[[1]] * 38]), "query 1 has no r"),
]


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [(ValueError, *each) for each in WRONG] + [(NoScoreError, *each) for each in WITHOUT_SCORE],
)
def test_a_wrong_call_is_told_from_data_without_a_score(
    error: type[ValueError], call: Call, message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert caught.type is error
