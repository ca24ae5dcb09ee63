"""The labelled probes: closed forms, invariances, and the same scores as mteb's own tasks."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import ndcg_score
from torch.utils.data import DataLoader

from operators.probes import MAIN_METRICS
from operators.probes import retrieval as retrieval_module
from operators.probes.classification import classification, few_shot_rows
from operators.probes.clustering import clustering
from operators.probes.fold import FoldScore, finite_vectors
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
    assert probes.keys() == MAIN_METRICS.keys()
    for probe, scores in probes.items():
        assert [score.fold for score in scores] == list(range(10))
        assert {score.metric for score in scores} == {MAIN_METRICS[probe]}
        assert values(scores) == pytest.approx([1.0] * 10)


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
    ranked = retrieval(rows[:5], rows, [[0]] * 5, folds=2)
    assert [(score.n_train, score.n_test) for score in ranked] == [(0, 3), (0, 2)]


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
    (score,) = retrieval(query, ANGLES, [relevant], folds=1, k=k)
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
    expected = [1 / math.log2(row + 2) for row in range(7)]
    assert values(retrieval(query, document, relevant, folds=7)) == pytest.approx(expected)
    monkeypatch.setattr(retrieval_module, "BLOCK_ENTRIES", 202)
    monkeypatch.setattr(retrieval_module, "BLOCK_DOCUMENTS", 3)
    assert values(retrieval(query, document, relevant, folds=7)) == pytest.approx(expected)


def test_blocks_do_not_change_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    query = generator.standard_normal((30, 8)).astype(np.float32)
    document = generator.standard_normal((50, 8)).astype(np.float32)
    relevant = [generator.choice(50, size=3, replace=False) for _ in range(30)]
    whole = retrieval(query, document, relevant)
    monkeypatch.setattr(retrieval_module, "BLOCK_ENTRIES", 200)
    monkeypatch.setattr(retrieval_module, "BLOCK_DOCUMENTS", 7)
    assert retrieval(query, document, relevant) == whole


def test_zero_vectors_are_similar_to_nothing() -> None:
    query = np.array([[1.0, 0.0], [0.0, 0.0]])
    document = np.array([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    scores = values(retrieval(query, document, [[0], [0]], folds=2))
    # The first query: 1.0, then 0 for the zero row; the second: all equal, so row 0 is first.
    assert scores == pytest.approx([1 / math.log2(3), 1.0])


def test_folds_partition_the_queries() -> None:
    document = np.eye(6)
    relevant = [[0], [0], [2], [0], [4], [0]]
    scores = values(retrieval(document, document, relevant, folds=2))
    # Even queries find their own document first; odd ones find row 0 first among the equal rest
    # behind their own.
    assert scores == pytest.approx([1.0, 1 / math.log2(3)])


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
        (lambda: retrieval(ROWS[:4], ROWS, [[0]] * 4), "4 cannot fill 10 folds"),
        (lambda: retrieval(ROWS[:, :3], ROWS, [[0]] * 40), "queries 3, of documents 16"),
    ],
)
def test_values_that_do_not_exist_are_errors(
    call: Callable[[], list[FoldScore]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def mteb_scores(
    kind: str, dataset: dict[str, Any], rows: Matrix, **settings: object
) -> dict[str, Any]:
    """Scores of mteb's own task class on texts "0", "1", … that stand for the matrix's rows."""
    mteb = pytest.importorskip("mteb")
    from datasets import Dataset, DatasetDict
    from mteb.models.abs_encoder import AbsEncoder

    metadata = mteb.TaskMetadata(
        name="Synthetic",
        description="rows of a matrix",
        type=kind,
        dataset={"path": "none", "revision": "none"},
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score={"Classification": "accuracy", "Clustering": "v_measure"}[kind],
    )

    class Rows(AbsEncoder):
        mteb_model_meta = mteb.models.ModelMeta.create_empty()

        def __init__(self) -> None:
            pass

        def encode(self, inputs: DataLoader[Any], **_: object) -> Matrix:
            return rows[[int(text) for text in inputs.dataset["text"]]]

    base = getattr(mteb.abstasks, f"AbsTask{kind}")
    task = type("Synthetic", (base,), {"metadata": metadata, **settings})()
    task.dataset = DatasetDict({split: Dataset.from_dict(part) for split, part in dataset.items()})
    task.data_loaded = True
    with warnings.catch_warnings():
        # Raised there for the iteration limit that is mteb's own choice.
        warnings.simplefilter("ignore", ConvergenceWarning)
        scores: dict[str, Any] = task.evaluate(Rows(), "test", encode_kwargs={})["default"]
    return scores


@pytest.mark.parametrize("samples_per_label", [8, 16])
def test_classification_is_mtebs(samples_per_label: int) -> None:
    rows, labels = blobs(500, spread=0.6)
    order = np.random.default_rng(6).permutation(500)
    # Dimensions of very different sizes, as in language models: the fit ends before it converges.
    rows = (rows[order] * np.logspace(-2, 2, 16)).astype(np.float32)
    labels = labels[order]
    texts = [str(row) for row in range(500)]
    theirs = mteb_scores(
        "Classification",
        {
            "train": {"text": texts[:300], "label": labels[:300].tolist()},
            "test": {"text": texts[300:], "label": labels[300:].tolist()},
        },
        rows,
        samples_per_label=samples_per_label,
    )
    ours = classification(
        rows[:300], labels[:300], rows[300:], labels[300:], samples_per_label=samples_per_label
    )
    assert values(ours) == [fold["accuracy"] for fold in theirs["scores_per_experiment"]]
    assert len(set(values(ours))) > 1


@pytest.mark.parametrize("max_documents", [None, 150, 300, 900])
def test_clustering_is_mtebs(max_documents: int | None) -> None:
    rows, labels = blobs(300, spread=0.4)
    theirs = mteb_scores(
        "Clustering",
        {"test": {"sentences": [str(row) for row in range(300)], "labels": labels.tolist()}},
        rows,
        max_fraction_of_documents_to_embed=None,
        max_document_to_embed=max_documents,
        max_documents_per_cluster=120,
        k_mean_batch_size=64,
    )
    ours = clustering(
        rows, labels, max_documents=max_documents, documents_per_fold=120, batch_size=64
    )
    assert values(ours) == theirs["v_measures"]["Level 0"]
    assert len(set(values(ours))) > 1
