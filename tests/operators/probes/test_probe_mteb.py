"""Every probe gives the scores of mteb's own task class on the same vectors."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from datasets import Dataset, DatasetDict
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import v_measure_score
from torch.utils.data import DataLoader

from layerrank.operators.probes.clusters import mini_batch_k_means
from layerrank.operators.probes.fold import FoldScore
from layerrank.operators.probes.labelled import (
    classification,
    clustering,
    multilabel_classification,
    regression,
    stratified_rows,
)
from layerrank.operators.probes.pairs import pair_classification, sts
from layerrank.operators.probes.relevance import reranking, retrieval
from tests.support.simulated import values

pytest.importorskip("mteb", reason="the comparison's other side is the extra `mteb`")
Matrix = npt.NDArray[np.float32]
GENERATOR_SEED = 6

# Of float32 similarities there and float64 ones here.
ROUNDING = 1e-6
# mteb rounds the means over queries to five decimals.
FIVE_DECIMALS = 6e-6


def encoder(rows: Matrix) -> Any:  # noqa: ANN401 - mteb may not be there, nor its types
    """A model of mteb's that gives the texts "0", "1", … the matrix's rows."""
    import mteb
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction

    class Rows(AbsEncoder):
        mteb_model_meta = mteb.models.ModelMeta.create_empty(
            overwrites={"name": "test/rows", "similarity_fn_name": ScoringFunction.COSINE}
        )

        def __init__(self) -> None:
            pass

        def encode(self, inputs: DataLoader[Any], **_: object) -> Matrix:
            return rows[[int(text) for text in inputs.dataset["text"]]]

    return Rows()


def mteb_scores(
    kind: str, main_score: str, dataset: object, rows: Matrix, **settings: object
) -> dict[str, Any]:
    """Scores of mteb's own class of a probe on texts "0", "1", … for the matrix's rows."""
    import mteb

    from tests.support.mteb.local import metadata_of

    name = "STS" if kind == "sts" else kind.title().replace("_", "")
    base = "Retrieval" if kind == "reranking" else name
    metadata = metadata_of("Synthetic", name.removesuffix("Legacy"), main_score)
    form = getattr(mteb.abstasks, f"AbsTask{base}")
    task = type("Synthetic", (form,), {"metadata": metadata, **settings})()
    task.dataset = dataset
    task.data_loaded = True
    with warnings.catch_warnings():
        # Raised there for the iteration limit that is mteb's own choice.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = task.evaluate(encoder(rows), "test", encode_kwargs={"show_progress_bar": False})
    scores: dict[str, Any] = found["default"]
    return scores


def splits(**columns: dict[str, list[Any]]) -> DatasetDict:
    return DatasetDict({split: Dataset.from_dict(part) for split, part in columns.items()})


def texts(start: int, stop: int) -> list[str]:
    return [str(row) for row in range(start, stop)]


def both(
    probe: Callable[..., list[FoldScore]],
    rows: Matrix,
    given: list[Any],
    n_train: int,
    ours: dict[str, int],
    theirs: dict[str, int] | None = None,
) -> tuple[list[float], list[float]]:
    """Scores by the probe, and by mteb's class, of rows of which the first are for training."""
    column = "value" if probe is regression else "label"
    dataset = splits(
        train={"text": texts(0, n_train), column: given[:n_train]},
        test={"text": texts(n_train, len(given)), column: given[n_train:]},
    )
    scores = probe(rows[:n_train], given[:n_train], rows[n_train:], given[n_train:], **ours)
    assert {score.n_test for score in scores} == {len(given) - n_train}
    metric = scores[0].metric
    found = mteb_scores(probe.__name__, metric, dataset, rows, **(theirs or ours))
    return values(scores), [fold[metric] for fold in found["scores_per_experiment"]]


def noisy_groups(n_rows: int, n_labels: int, spread: float) -> tuple[Matrix, list[int]]:
    generator = np.random.default_rng(GENERATOR_SEED)
    labels = generator.permutation(n_rows) % n_labels
    rows = np.eye(n_labels, 20)[labels] + spread * generator.standard_normal((n_rows, 20))
    return rows.astype(np.float32), labels.tolist()


@pytest.mark.parametrize("samples_per_label", [8, 16])
def test_classification_is_mtebs(samples_per_label: int) -> None:
    rows, labels = noisy_groups(500, 4, spread=0.6)
    # Dimensions of very different sizes, as in language models: the fit ends before it converges.
    rows = (rows * np.logspace(-2, 2, 20)).astype(np.float32)
    how = {"samples_per_label": samples_per_label}
    ours, theirs = both(classification, rows, labels, 300, how)
    assert ours == theirs
    assert len(set(ours)) > 1


@pytest.mark.parametrize("max_documents", [None, 150, 300, 900])
def test_clustering_is_mtebs(max_documents: int | None) -> None:
    rows, labels = noisy_groups(300, 4, spread=0.4)
    theirs = mteb_scores(
        "clustering",
        "v_measure",
        splits(test={"sentences": texts(0, 300), "labels": labels}),
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


def test_clustering_with_its_own_defaults_is_mtebs() -> None:
    rows, labels = noisy_groups(2500, 4, spread=0.6)
    dataset = splits(test={"sentences": texts(0, 2500), "labels": labels})
    theirs = mteb_scores("clustering", "v_measure", dataset, rows, n_clusters=2)
    ours = clustering(rows, labels, folds=2, max_documents=int(0.04 * 2500))
    assert values(ours) == theirs["v_measures"]["Level 0"]


@pytest.mark.parametrize("n_labels", [4, 40])
def test_clustering_of_whole_sets_is_mtebs(n_labels: int) -> None:
    rows, labels = noisy_groups(900, n_labels, spread=0.4)
    parts = (slice(0, 450), slice(450, 900))
    sentences = [texts(part.start, part.stop) for part in parts]
    dataset = splits(test={"sentences": sentences, "labels": [labels[part] for part in parts]})
    theirs = mteb_scores("clustering_legacy", "v_measure", dataset, rows)
    how = {"n_clusters": n_labels, "batch_size": 500, "seed": 42}
    ours = [v_measure_score(labels[part], mini_batch_k_means(rows[part], **how)) for part in parts]
    assert ours == theirs["v_measures"]
    assert ours[0] != ours[1]


@pytest.mark.parametrize("samples_per_label", [3, 8])
def test_multilabel_classification_is_mtebs(samples_per_label: int) -> None:
    rows, first = noisy_groups(260, 5, spread=0.3)
    generator = np.random.default_rng(9)
    # One to three labels per row, some training rows with none: a test row without a label makes
    # another of mteb's metrics divide by 0.
    labels = [
        []
        if row % 17 == 0 and row < 160
        else sorted({"abcde"[label], *generator.choice([*"abcde"], row % 3)})
        for row, label in enumerate(first)
    ]
    how = {"samples_per_label": samples_per_label}
    ours, theirs = both(multilabel_classification, rows, labels, 160, how)
    assert ours == theirs
    assert len(set(ours)) > 1


@pytest.mark.parametrize(("samples", "decimals"), [(90, 6), (64, 0), (200, 6), (2048, 6)])
def test_regression_is_mtebs(samples: int, decimals: int) -> None:
    rows, _ = noisy_groups(300, 4, spread=0.5)
    noise = np.random.default_rng(11).standard_normal(300)
    number = np.round(3 * (rows[:, 0] - rows[:, 5]) + noise, decimals).astype(float).tolist()
    how = {"samples": samples}, {"n_samples": samples}
    ours, theirs = both(regression, rows, number, 200, *how)
    if samples >= 200:
        assert len(set(theirs)) == 1
        theirs = theirs[:1]
    else:
        assert len(set(ours)) > 1
    assert ours == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("decimals", [6, 1, 0])
def test_rows_for_regression_are_mtebs_in_its_order(decimals: int) -> None:
    from mteb.abstasks import AbsTaskRegression

    number = np.round(np.random.default_rng(15).standard_normal(333), decimals)
    dataset = Dataset.from_dict({"row": [*range(333)], "value": number.tolist()})
    for seed in range(42, 52):
        theirs = AbsTaskRegression.stratified_subsampling(
            DatasetDict(train=dataset), seed=seed, splits=["train"], n_samples=77
        )
        rows = stratified_rows(number, seed=seed, samples=77)
        assert rows.tolist() == [*theirs["train"]["row"]]


@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_pair_classification_is_mtebs(scale: float) -> None:
    rows, labels = noisy_groups(400, 4, spread=0.5)
    # Lengths differ, and at the small scale all rows point nearly one way, so that the similarities
    # disagree and not always the same one is best.
    lengths = np.random.default_rng(12).uniform(0.5, 2, (400, 1))
    rows = ((scale * rows + (1 - scale)) * lengths).astype(np.float32)
    together = [int(labels[row] == labels[row + 200]) for row in range(200)]
    theirs = mteb_scores(
        "pair_classification",
        "max_ap",
        splits(test={"sentence1": texts(0, 200), "sentence2": texts(200, 400), "labels": together}),
        rows,
    )
    ours = pair_classification(rows[:200], rows[200:], together)
    assert values(ours) == pytest.approx([theirs["max_ap"]], abs=ROUNDING)
    assert len({theirs[f"{name}_ap"] for name in ("cosine", "dot", "euclidean")}) == 3


def test_sts_is_mtebs() -> None:
    rows, _ = noisy_groups(400, 4, spread=0.5)
    generator = np.random.default_rng(13)
    scores = np.round(
        2.5 + 2 * (rows[:200] * rows[200:]).sum(axis=1) + generator.standard_normal(200), 1
    ).astype(float)
    pairs = {"sentence1": texts(0, 200), "sentence2": texts(200, 400), "score": scores.tolist()}
    theirs = mteb_scores("sts", "cosine_spearman", splits(test=pairs), rows)
    ours = sts(rows[:200], rows[200:], scores)
    assert values(ours) == pytest.approx([theirs["cosine_spearman"]], abs=ROUNDING)


@pytest.mark.parametrize("ranked", [False, True], ids=["retrieval", "reranking"])
def test_retrieval_and_reranking_are_mtebs(ranked: bool) -> None:
    rows, labels = noisy_groups(160, 8, spread=0.4)
    generator = np.random.default_rng(14)
    queries, documents = range(30), range(30, 160)
    candidates = [generator.choice(130, size=60, replace=False).tolist() for _ in queries]
    gains = [
        [int(labels[row + 30] == labels[query]) * (1 + row % 3) for row in candidates[query]]
        for query in queries
    ]
    assert all(any(of_query) for of_query in gains)
    ids = [[f"d{row + 30}" for row in rows] for rows in candidates]
    dataset = {
        "queries": Dataset.from_dict({"id": [f"q{q}" for q in queries], "text": texts(0, 30)}),
        "corpus": Dataset.from_dict({"id": [f"d{d}" for d in documents], "text": texts(30, 160)}),
        "relevant_docs": {f"q{q}": dict(zip(ids[q], gains[q], strict=True)) for q in queries},
        "top_ranked": {f"q{q}": ids[q] for q in queries} if ranked else None,
    }
    kind = ("reranking", "map_at_1000") if ranked else ("retrieval", "ndcg_at_10")
    theirs = mteb_scores(*kind, {"default": {"test": dataset}}, rows)
    if ranked:
        ours = reranking(rows[:30], rows[30:], candidates, gains)
    else:
        ours = retrieval(rows[:30], rows[30:], candidates, gains=gains)
    assert values(ours) == pytest.approx([theirs["main_score"]], abs=FIVE_DECIMALS)


def test_every_querys_ndcg_is_mtebs_with_equal_documents_and_grades() -> None:
    from mteb._evaluators import RetrievalEvaluator
    from mteb.models.search_wrappers import SearchEncoderWrapper
    from mteb.timing import TimingStack

    from tests.support.mteb.local import metadata_of

    # Halves and powers of 2, so float32 is exact: the cosines with a query are 5 different ones.
    generator = np.random.default_rng(16)
    lengths = 2.0 ** generator.integers(5, size=(340, 1))
    rows = ((generator.integers(2, size=(340, 4)) - 0.5) * lengths).astype(np.float32)
    relevant = [generator.choice(300, size=1 + query % 30, replace=False) for query in range(40)]
    gains = [generator.integers(4, size=len(named)) for named in relevant]
    for of_query in gains:
        of_query[0] = 2
    # Where equal documents rank by descending id, the first row has the last one.
    ids = [f"d{999 - row}" for row in range(300)]
    evaluator = RetrievalEvaluator(
        Dataset.from_dict({"id": ids, "text": texts(40, 340)}),
        Dataset.from_dict({"id": texts(0, 40), "text": texts(0, 40)}),
        task_metadata=metadata_of("Synthetic", "Retrieval", "ndcg_at_10"),
        hf_split="test",
        hf_subset="default",
        top_k=1000,
        timer=TimingStack(),
    )
    found = evaluator(SearchEncoderWrapper(encoder(rows)), {"show_progress_bar": False})
    judged = {
        str(query): {ids[row]: int(gain) for row, gain in zip(*each, strict=True)}
        for query, each in enumerate(zip(relevant, gains, strict=True))
    }
    theirs = evaluator.evaluate(judged, found, [10]).all_scores
    expected = [theirs[str(query)]["ndcg_cut_10"] for query in range(40)]
    ours = [
        retrieval(rows[query : query + 1], rows[40:], relevant[query : query + 1], gains=[gain])
        for query, gain in enumerate(gains)
    ]
    assert [score.value for (score,) in ours] == pytest.approx(expected, abs=1e-12)
    assert len({round(value, 9) for value in expected}) > 10
    (mean,) = retrieval(rows[:40], rows[40:], relevant, gains=gains)
    assert mean.value == pytest.approx(np.mean(expected), abs=1e-12)
