"""Classification, clustering and retrieval: closed forms and invariances."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import ndcg_score
from sklearn.preprocessing import normalize

from operators.probes import MAIN_METRICS, cosine
from operators.probes import retrieval as retrieval_module
from operators.probes.classification import classification, few_shot_rows
from operators.probes.clustering import clustering
from operators.probes.fold import FoldScore, NoScoreError, finite_vectors, item_resamples, unit_rows
from operators.probes.reranking import reranking
from operators.probes.retrieval import ndcg, retrieval

N_LABELS = 4
Matrix = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def blobs(n_rows: int, *, spread: float, seed: int = 0) -> tuple[Matrix, Labels]:
    """Balanced groups around unit axes; `spread` is the standard deviation inside a group."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n_rows, dtype=np.int64) % N_LABELS
    centres = np.eye(N_LABELS, 16)
    rows = centres[labels] + spread * generator.standard_normal((n_rows, 16))
    return rows.astype(np.float32), labels


def values(scores: list[FoldScore]) -> list[float]:
    return [score.value for score in scores]


def test_separable_groups_score_one() -> None:
    rows, labels = blobs(200, spread=0.01)
    own_group = [[row] for row in range(200)]
    probes = {
        "classification": classification(10 * rows, labels, 10 * rows, labels),
        "clustering": clustering(rows, labels, documents_per_fold=200),
        "retrieval": retrieval(rows, rows, own_group),
    }
    for probe, scores in probes.items():
        n_folds = 1 if probe == "retrieval" else 10
        assert [score.fold for score in scores] == list(range(n_folds))
        assert {score.metric for score in scores} == {MAIN_METRICS[probe]}
        assert values(scores) == pytest.approx([1.0] * n_folds)


def test_shuffled_labels_score_near_chance() -> None:
    rows, labels = blobs(400, spread=0.01)
    shuffled = np.random.default_rng(1).permutation(labels)
    accuracy = np.mean(values(classification(10 * rows, shuffled, 10 * rows, shuffled)))
    assert accuracy == pytest.approx(1 / N_LABELS, abs=0.05)
    assert np.mean(values(clustering(rows, shuffled, documents_per_fold=400))) < 0.05


def test_counts_of_a_fold() -> None:
    rows, labels = blobs(203, spread=0.5)
    few = classification(rows, labels, rows[:50], labels[:50], folds=3, samples_per_label=5)
    assert [(score.n_train, score.n_test) for score in few] == [(5 * N_LABELS, 50)] * 3
    drawn = clustering(rows, labels, folds=2, documents_per_fold=300)
    assert [(score.n_train, score.n_test) for score in drawn] == [(0, 300)] * 2
    ranked = retrieval(rows[:5], rows, [[0]] * 5)
    assert [(score.n_train, score.n_test) for score in ranked] == [(0, 5)]
    assert all(score.replicates == () for score in few + drawn)


def test_resamples_depend_on_nothing_else_and_hold_as_many_items() -> None:
    first = [*item_resamples(7, seed=3, count=50)]
    assert len(first) == 50
    assert all(count_N.shape == (7,) and count_N.sum() == 7 for count_N in first)
    for again, longer in zip(first, item_resamples(7, seed=3, count=60), strict=False):
        np.testing.assert_array_equal(again, longer)
    # Each item is drawn once on average, with the variance 1 - 1/7 of a multinomial draw.
    drawn = np.stack([*item_resamples(7, seed=4, count=4000)])
    np.testing.assert_allclose(drawn.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(drawn.var(axis=0), 1 - 1 / 7, atol=0.08)
    assert [*item_resamples(7, seed=3, count=0)] == []


def test_unit_rows_are_those_of_scikit_learn() -> None:
    rows = np.random.default_rng(8).standard_normal((50, 16)).astype(np.float32) * 30
    rows[7] = 0
    before = rows.copy()
    unit = unit_rows(rows)
    assert unit.dtype == np.float32
    np.testing.assert_array_equal(unit, normalize(rows))
    np.testing.assert_array_equal(rows, before)
    norms = np.delete(np.linalg.norm(unit, axis=1), 7)
    np.testing.assert_allclose(norms, 1, rtol=1e-6)
    np.testing.assert_array_equal(unit[7], 0)
    assert unit_rows(rows.astype(np.float16)).dtype == np.float32


def test_few_shot_rows_differ_between_folds_and_take_what_a_rare_label_has() -> None:
    labels = ["common"] * 50 + ["rare"] * 3
    folds = few_shot_rows(labels, seed=42, folds=4, samples_per_label=8)
    for rows in folds:
        assert len(rows) == len(set(rows)) == 8 + 3
        assert set(range(50, 53)) <= set(rows)
    assert len({tuple(sorted(rows)) for rows in folds}) == 4


def test_scale_matters_to_the_classifier_and_not_to_retrieval_or_clustering() -> None:
    rows, labels = blobs(400, spread=0.5)
    train, test = slice(0, 200), slice(200, 400)

    def accuracy(scale: float) -> list[float]:
        scaled = (rows * np.float32(scale)).astype(np.float32)
        return values(classification(scaled[train], labels[train], scaled[test], labels[test]))

    assert accuracy(1.0) != accuracy(50.0)

    lengths = np.random.default_rng(2).uniform(0.1, 100, (400, 1)).astype(np.float32)
    relevant = [[row, row + 1] for row in range(100)]
    assert values(retrieval(rows[:100] * lengths[:100], rows * lengths[::-1], relevant)) == (
        values(retrieval(rows[:100], rows, relevant))
    )
    one_length = values(clustering(rows, labels, documents_per_fold=200))
    assert values(clustering(rows * 4, labels, documents_per_fold=200)) == one_length


def test_the_same_seed_gives_the_same_scores_and_another_one_others() -> None:
    rows, labels = blobs(200, spread=0.6)
    probes: list[Callable[[int], list[FoldScore]]] = [
        lambda seed: classification(rows, labels, rows, labels, seed=seed),
        lambda seed: clustering(rows, labels, seed=seed, documents_per_fold=150),
    ]
    for probe in probes:
        np.random.default_rng().random()
        assert probe(42) == probe(42)
        assert probe(42) != probe(43)
    assert len(set(values(probes[1](42)))) > 1


def test_float16_scores_as_the_same_numbers_in_float32() -> None:
    rows, labels = blobs(200, spread=0.6)
    half = rows.astype(np.float16)
    single = half.astype(np.float32)
    assert finite_vectors("half", half).dtype == np.float32
    assert classification(half, labels, half, labels) == (
        classification(single, labels, single, labels)
    )


def test_a_collapsed_layer_scores_chance_without_a_warning() -> None:
    _, labels = blobs(80, spread=0.5)
    same = np.full((80, 16), 0.1, dtype=np.float32)
    assert values(classification(same, labels, same, labels)) == [1 / N_LABELS] * 10
    assert values(clustering(same, labels, documents_per_fold=80)) == [0.0] * 10


# Query along x; documents at 0, 60 and 90 degrees, in this order of rows: 90, 0, 60.
ANGLES = np.array([[0.0, 1.0], [2.0, 0.0], [1.0, math.sqrt(3)]])


@pytest.mark.parametrize(
    ("relevant", "k", "expected"),
    [
        ([1], 10, 1.0),
        ([2], 10, 1 / math.log2(3)),
        ([0], 10, 1 / math.log2(4)),
        ([0], 2, 0.0),
        ([0, 2], 10, (1 / math.log2(3) + 1 / math.log2(4)) / (1 + 1 / math.log2(3))),
        ([0, 2], 1, 0.0),
        ([1, 2, 0], 1, 1.0),
        ([2, 2, 2], 10, 1 / math.log2(3)),
    ],
)
def test_ndcg_by_hand(relevant: list[int], k: int, expected: float) -> None:
    query = np.array([[3.0, 0.0]])
    (score,) = retrieval(query, ANGLES, [relevant], k=k)
    assert score.value == pytest.approx(expected)
    assert score.metric == f"ndcg_at_{k}"


def test_ndcg_agrees_with_scikit_learn() -> None:
    generator = np.random.default_rng(3)
    similarity = generator.standard_normal((40, 60))
    relevance = generator.random((40, 60)) < 0.1
    relevance[:, 0] = True
    ranked = np.argsort(-similarity, axis=1)
    ours = [
        ndcg(ranked[query], np.flatnonzero(relevance[query]).astype(np.int64), 10)
        for query in range(40)
    ]
    assert np.mean(ours) == pytest.approx(ndcg_score(relevance, similarity, k=10))


def test_equal_documents_rank_by_row_whatever_their_block(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(4)
    query = generator.standard_normal((7, 33)).astype(np.float32)
    document = np.repeat(generator.standard_normal((1, 33)), 101, axis=0).astype(np.float32)
    relevant = [[row] for row in range(7)]
    expected = [np.mean([1 / math.log2(row + 2) for row in range(7)])]
    assert values(retrieval(query, document, relevant)) == pytest.approx(expected)
    monkeypatch.setattr(retrieval_module, "BLOCK_ENTRIES", 202)
    monkeypatch.setattr(cosine, "BLOCK_ROWS", 3)
    assert values(retrieval(query, document, relevant)) == pytest.approx(expected)


def test_blocks_do_not_change_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    query = generator.standard_normal((30, 8)).astype(np.float32)
    document = generator.standard_normal((50, 8)).astype(np.float32)
    relevant = [generator.choice(50, size=3, replace=False) for _ in range(30)]
    whole = retrieval(query, document, relevant)
    monkeypatch.setattr(retrieval_module, "BLOCK_ENTRIES", 200)
    monkeypatch.setattr(cosine, "BLOCK_ROWS", 7)
    assert retrieval(query, document, relevant) == whole


def test_zero_vectors_are_similar_to_nothing() -> None:
    query = np.array([[1.0, 0.0], [0.0, 0.0]])
    document = np.array([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    # The first query: 1.0, then 0 for the zero row; the second: all equal, so row 0 is first.
    expected = [(1 / math.log2(3) + 1.0) / 2]
    assert values(retrieval(query, document, [[0], [0]])) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([1, 1], (1 / math.log2(3) + 1 / math.log2(4)) / (1 + 1 / math.log2(3))),
        ([3, 1], (1 / math.log2(3) + 3 / math.log2(4)) / (3 + 1 / math.log2(3))),
        ([0, 2], 1 / math.log2(3)),
    ],
)
def test_graded_gains_by_hand(gains: list[int], expected: float) -> None:
    (score,) = retrieval(np.array([[3.0, 0.0]]), ANGLES, [[0, 2]], gains=[gains])
    assert score.value == pytest.approx(expected)
    (turned,) = retrieval(
        np.array([[3.0, 0.0]]), ANGLES, [[2, 0, 2]], gains=[gains[::-1] + gains[1:]]
    )
    assert turned.value == score.value


def test_graded_gains_agree_with_scikit_learn() -> None:
    generator = np.random.default_rng(7)
    query, document = (generator.standard_normal((n, 8)).astype(np.float32) for n in (20, 40))
    gains = generator.integers(1, 5, size=(20, 40)) * (generator.random((20, 40)) < 0.2)
    gains[:, 3] = 2
    relevant = [np.flatnonzero(of_query) for of_query in gains]
    graded = [of_query[rows] for of_query, rows in zip(gains, relevant, strict=True)]
    (score,) = retrieval(query, document, relevant, gains=graded)
    similarity = normalize(query) @ normalize(document).T
    assert score.value == pytest.approx(ndcg_score(gains, similarity, k=10))


def test_replicates_are_scores_of_the_resampled_queries() -> None:
    rows, _ = blobs(60, spread=0.9)
    relevant = [[query + 30] for query in range(30)]
    (score,) = retrieval(rows[:30], rows, relevant, seed=5, replicates=20)
    for replicate, count_N in zip(
        score.replicates, item_resamples(30, seed=5, count=20), strict=True
    ):
        drawn = np.repeat(np.arange(30), count_N)
        (again,) = retrieval(rows[drawn], rows, [relevant[query] for query in drawn])
        assert replicate == pytest.approx(again.value)
    assert len(set(score.replicates)) > 10


ROWS, LABELS = blobs(40, spread=0.5)
BROKEN = ROWS.copy()
BROKEN[3, :2] = np.nan
BROKEN[5, 0] = np.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classification(BROKEN, LABELS, ROWS, LABELS), "train: 3 non-finite.* 2 of 40"),
        (lambda: clustering(BROKEN, LABELS), "clustering: 3 non-finite entries in 2 of 40 rows"),
        (lambda: retrieval(ROWS, BROKEN, [[0]] * 40), "documents: 3 non-finite .* 2 of 40 rows"),
        (lambda: classification(ROWS, LABELS * 0, ROWS, LABELS), "train: 40 rows have 1 label"),
        (lambda: classification(ROWS, LABELS, ROWS[:0], []), r"test: .* got \(0, 16\)"),
        (lambda: classification(ROWS, LABELS[:9], ROWS, LABELS), "train: 40 rows need 40 labels"),
        (lambda: classification(ROWS, LABELS, ROWS, LABELS, folds=0), "folds .* got 0"),
        (lambda: clustering(ROWS, LABELS, documents_per_fold=3), "3 documents .* 4 clusters"),
        (lambda: clustering(ROWS, LABELS, max_documents=1), "1 rows have 1 label"),
        (lambda: clustering(ROWS, LABELS - 1), "10 of 40 rows have the label -1"),
        (lambda: retrieval(ROWS, ROWS, [[0]] * 12 + [[]] + [[0]] * 27), "query 12 has no relevant"),
        (lambda: retrieval(ROWS, ROWS, [[0]] * 39 + [[40]]), "query 39 .* 40 documents"),
        (lambda: retrieval(ROWS, ROWS, [[0]] * 39), "one list per query, got 39 for 40"),
        (
            lambda: classification(ROWS, LABELS, ROWS, LABELS + 2),
            "test: 2 of 4 labels do not appear in train.*: 4, 5$",
        ),
        (
            lambda: classification(ROWS, LABELS, ROWS, [f"l{row:02}" for row in range(40)]),
            "test: 40 of 40 labels.*: 'l00', 'l01', 'l02', 'l03', 'l04', …$",
        ),
        (lambda: retrieval(ROWS, ROWS, [[0]] * 40, gains=[[1]] * 39), "gains: one list per query"),
        (lambda: retrieval(ROWS, ROWS, [[0]] * 40, gains=[[1, 2]] * 40), "1 documents and 2 gains"),
        (lambda: retrieval(ROWS, ROWS, [[0]] * 40, gains=[[0]] * 40), "query 0 needs .* above 0"),
        (lambda: retrieval(ROWS, ROWS, [[0]] * 40, gains=[[math.nan]] * 40), "finite gains"),
        (
            lambda: retrieval(ROWS, ROWS, [[2, 2]] * 40, gains=[[1, 2]] * 40),
            "query 0 gives document 2 different gains",
        ),
        (lambda: retrieval(ROWS, ROWS, [[0]] * 40, replicates=-1), "replicates .* got -1"),
        (lambda: retrieval(ROWS[:, :3], ROWS, [[0]] * 40), "queries 3, of documents 16"),
    ],
)
def test_values_that_do_not_exist_are_errors(
    call: Callable[[], list[FoldScore]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda: classification(ROWS, LABELS * 0, ROWS, LABELS), NoScoreError),
        (lambda: classification(ROWS, LABELS, ROWS, LABELS + 2), NoScoreError),
        (lambda: clustering(ROWS[:0], []), NoScoreError),
        (lambda: retrieval(ROWS, ROWS, [[]] * 40), NoScoreError),
        (lambda: reranking(ROWS, ROWS, [[0]] * 40, [[0]] * 40), NoScoreError),
        (lambda: clustering(BROKEN, LABELS), ValueError),
        (lambda: clustering(ROWS[0], LABELS), ValueError),
        (lambda: clustering(ROWS, LABELS[:9]), ValueError),
        (lambda: clustering(ROWS, LABELS, documents_per_fold=3), ValueError),
        (lambda: retrieval(ROWS[:, :3], ROWS, [[0]] * 40), ValueError),
    ],
)
def test_data_without_a_score_is_told_from_a_wrong_call(
    call: Callable[[], list[FoldScore]], kind: type[ValueError]
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    assert caught.type is kind
