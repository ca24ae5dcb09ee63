"""mteb's tasks over stored vectors give the scores of live encoding, and mteb reads the results."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from sklearn.preprocessing import normalize

from layerrank.operators.benchmark import tasks as tasks_module
from layerrank.operators.benchmark.score import (
    META_FILE,
    Lookup,
    LookupEncoder,
    Recorder,
    TaskOutcome,
    Vectors,
    model_meta,
    model_meta_json,
    recorded,
    result_path,
    score_task,
)
from layerrank.operators.benchmark.tasks import (
    PAPER_31,
    PAPER_32,
    eager_columns,
    load_task,
    parse,
    task_names,
)
from layerrank.operators.model.subject import Transform
from tests.support.published import PUBLISHED
from tests.support.simulated import text_table

if TYPE_CHECKING:
    from mteb import AbsTask

OWN = ["tests.support.mteb.local"]
# The type, the main metric and the repetitions of each task.
FORMS = {
    "LocalClassification": ("Classification", "accuracy", 4),
    "LocalLanguages": ("Classification", "accuracy", 8),
    "LocalMultilabel": ("MultilabelClassification", "accuracy", 3),
    "LocalRegression": ("Regression", "kendalltau", 3),
    "LocalClusteringFast": ("Clustering", "v_measure", 3),
    "LocalClusteringLegacy": ("Clustering", "v_measure", 2),
    "LocalPairs": ("PairClassification", "max_ap", 0),
    "LocalSTS": ("STS", "cosine_spearman", 0),
    "LocalReranking": ("Reranking", "map_at_1000", 0),
    "LocalRetrieval": ("Retrieval", "ndcg_at_10", 0),
}


@pytest.fixture(scope="module", autouse=True)
def mteb() -> ModuleType:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    library: ModuleType = pytest.importorskip("mteb", reason="the extra mteb is not installed")
    return library


def toy_vectors(texts: Sequence[str], layer: int) -> Vectors:
    """Encode texts as sums of word vectors; a word's vector depends on the word and the layer."""
    words = {word for text in texts for word in text.split()}
    known = {
        word: Recorder()([f"{layer} {part} {word}" for part in (0, 1)]).ravel() for word in words
    }
    sums = [sum((known[word] for word in text.split()), np.zeros(16, np.float32)) for text in texts]
    return np.stack(sums).astype(np.float32)


def live_scores(mteb: ModuleType, name: str, layer: int) -> dict[str, Any]:
    """Score as mteb does on its own: a new task, its lazy columns, an encoder that encodes."""
    from mteb.models.abs_encoder import AbsEncoder

    class Toy(AbsEncoder):
        mteb_model_meta = model_meta("toy", f"layer-{layer}")

        def encode(self, inputs: Any, **_: object) -> Vectors:  # noqa: ANN401
            return toy_vectors([text for batch in inputs for text in batch["text"]], layer)

    from tests.support.mteb import local

    task = getattr(local, name)()
    if "test" in task.eval_splits:
        task.filter_eval_splits(["test"])
    results = mteb.evaluate(Toy(), task, cache=None, co2_tracker=False, show_progress_bar=False)
    scores: dict[str, Any] = results.task_results[0].scores
    return scores


def scored(task: AbsTask, lookup: Lookup, variant: Transform = "raw") -> TaskOutcome:
    return score_task(task, lookup, model_name="toy", revision="r1", variant=variant)


def recorded_texts(task: str | AbsTask, modules: Sequence[str] = ()) -> list[str]:
    return [*dict.fromkeys(text for text, _ in recorded(task, modules))]


def served(name: str, layer: int) -> TaskOutcome:
    task = load_task(name, OWN)
    texts = recorded_texts(task)
    return scored(task, text_table(texts, toy_vectors(texts, layer)))


def numbers(value: Any, path: str = "") -> dict[str, float]:  # noqa: ANN401
    """Return every number of nested scores by its path."""
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(key), item) for key, item in enumerate(value)]
    else:
        return {path: float(value)} if isinstance(value, int | float | np.number) else {}
    return {k: v for key, item in items for k, v in numbers(item, f"{path}/{key}").items()}


@pytest.mark.parametrize("name", FORMS)
def test_served_scores_equal_live_encoding(name: str, mteb: ModuleType) -> None:
    outcomes = [served(name, layer) for layer in (0, 1)]
    for layer, outcome in enumerate(outcomes):
        live = numbers(live_scores(mteb, name, layer))
        stored = numbers(json.loads(outcome.json)["scores"])
        assert stored.keys() == live.keys()
        tolerance = 5e-3 if "Clustering" in name else 1.5e-6  # the file has 6 decimals
        for path, value in live.items():
            assert stored[path] == pytest.approx(value, abs=tolerance, nan_ok=True), path
        main = [value for path, value in live.items() if path.endswith("/main_score")]
        assert outcome.score == pytest.approx(np.mean(main), abs=min(tolerance, 1e-6))
        found = outcome.task_type, outcome.main_metric, len(outcome.experiments)
        assert (*found, outcome.split) == (*FORMS[name], "test")
        if outcome.experiments:
            assert np.mean(outcome.experiments) == pytest.approx(outcome.score)
    assert outcomes[0].score != outcomes[1].score, "two layers were given one score"


def test_a_task_draws_the_same_documents_every_time(mteb: ModuleType) -> None:
    task = load_task("LocalClusteringFast", OWN)
    texts = recorded_texts(task)
    assert len(texts) == 45, "half of 90 documents"
    table = text_table(texts, toy_vectors(texts, 0))
    first, second = (scored(task, table) for _ in range(2))
    assert first.experiments == second.experiments
    assert recorded_texts(task) == texts == recorded_texts("LocalClusteringFast", OWN)

    # What the copies are for: mteb's own second evaluation of one instance draws other documents.
    instance = copy.deepcopy(task)
    recorders = [Recorder(), Recorder()]
    for recorder in recorders:
        encoder = LookupEncoder("t", recorder, model_meta("t", "r"))
        mteb.evaluate(encoder, instance, cache=None, co2_tracker=False, show_progress_bar=False)
    assert list(recorders[0].texts) == texts
    assert list(recorders[1].texts) != texts


def test_texts_are_unique_and_in_first_seen_order() -> None:
    task = load_task("LocalSTS", OWN)
    assert task.dataset is not None
    rows = task.dataset["test"]
    assert recorded_texts(task) == list(dict.fromkeys([*rows["sentence1"], *rows["sentence2"]]))


def test_a_lookup_without_a_vector_for_every_text_raises() -> None:
    task = load_task("LocalSTS", OWN)
    with pytest.raises(ValueError, match=r"30 texts need one vector each, .* returned \(1, 3\)"):
        scored(task, lambda *_: np.ones((1, 3), np.float32))
    texts = recorded_texts(task)
    lost = texts.pop(7)
    with pytest.raises(ValueError, match=r"LocalSTS: no stored vector for '") as caught:
        scored(task, text_table(texts, toy_vectors(texts, 0)))
    assert repr(lost[:60]) in str(caught.value)


def test_half_precision_is_widened() -> None:
    def halves(texts: Sequence[str], _: str) -> Any:  # noqa: ANN401
        return np.ones((len(texts), 2), np.float16)

    encoder = LookupEncoder("t", halves, model_meta("t", "r"))
    loader = SimpleNamespace(dataset=Dataset.from_dict({"text": ["a", "b"]}))
    assert encoder.encode(loader).dtype == np.float32


def test_the_l2_variant_scores_normalised_vectors() -> None:
    task = load_task("LocalClassification", OWN)
    texts = recorded_texts(task)
    # Longer vectors for some texts: a difference that only the raw variant sees.
    vectors = toy_vectors(texts, 0) * np.linspace(0.05, 20, len(texts), dtype=np.float32)[:, None]

    def experiments(vectors: Vectors, variant: Transform) -> tuple[float, ...]:
        return scored(task, text_table(texts, vectors), variant).experiments

    assert experiments(vectors, "l2") == experiments(normalize(vectors), "raw")
    assert experiments(vectors, "l2") != experiments(vectors, "raw")


@pytest.mark.parametrize("name", ["LocalClassification", "LocalLanguages[de]"])
def test_mteb_reads_the_folder_of_a_layer(name: str, mteb: ModuleType, tmp_path: Path) -> None:
    task = parse(name).task
    outcomes = [served(name, layer) for layer in (0, 1)]
    for layer, outcome in enumerate(outcomes):
        path = tmp_path / result_path("toy", "r1", layer, outcome.name)
        assert path.name == f"{task}.json"
        path.parent.mkdir(parents=True)
        path.write_text(outcome.json, encoding="utf-8")
        path.with_name(META_FILE).write_text(model_meta_json("toy", "r1"), encoding="utf-8")
    for layer, outcome in enumerate(outcomes):
        cache = mteb.ResultCache(tmp_path / "mteb" / f"layer-{layer:02d}")
        loaded = cache.load_results(include_remote=False)
        assert [(m.model_name, m.model_revision) for m in loaded] == [("layerrank/toy", "r1")]
        (result,) = loaded[0].task_results
        assert result.task_name == task
        assert result.get_score() == pytest.approx(outcome.score, abs=1e-6)
        assert cache.load_task_result(task, model_meta("toy", "r1")) is not None


def test_paths_have_one_folder_per_model_and_revision() -> None:
    for odd in (".", "..", "../.."):
        path = result_path("..", odd, 1, odd)
        assert not {".", ".."} & {*path.split("/")}, path
    assert result_path("org/a model", "refs/pr/1", 12, "STS17[en-en]") == (
        "mteb/layer-12/results/org__a_model/refs__pr__1/STS17.json"
    )


def test_the_paper_has_32_tasks() -> None:
    assert task_names("paper-32") == list(PAPER_32)
    assert len(set(PAPER_32)) == 32
    assert set(PAPER_32) - set(task_names("paper-31")) == {"MindSmallReranking"}
    assert set(PAPER_32) < set(task_names("MTEB(eng, v1)"))


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="no shared/published beside the checkout")
def test_the_paper_lists_the_tasks_of_its_published_scores() -> None:
    import pyarrow.parquet as pq

    published = pq.read_table(PUBLISHED, columns=["task"]).column("task").to_pylist()
    assert set(published) == set(PAPER_32)


def test_names_expand_once_each() -> None:
    assert task_names(["STS12", "LocalSTS", "STS12"], OWN) == ["STS12", "LocalSTS"]
    english = task_names("MTEB(eng, v1)")
    assert "STS22[en]" in english
    assert "STS17" in english, "a name alone is the paper's English subset"
    assert "CQADupstackRetrieval" not in english, "a mean over tasks stands for them"
    assert "CQADupstackTexRetrieval" in english
    assert "MassiveIntentClassification[de@validation,test]" in task_names("MTEB(deu, v1)")


def test_a_name_means_the_test_split_and_can_mean_more() -> None:
    alone = served("LocalLanguages", 0)
    german = served("LocalLanguages[de]", 0)
    english = served("LocalLanguages[en]", 0)
    assert alone.split == german.split == "test"
    assert alone.score == pytest.approx((german.score + english.score) / 2)
    assert alone.experiments == (*english.experiments, *german.experiments)
    both = served("LocalLanguages[de@validation,test]", 0)
    assert both.split == "validation+test"
    assert both.name == "LocalLanguages[de@validation,test]"
    # The two splits share their training texts.
    assert len(recorded_texts(both.name, OWN)) == len(recorded_texts(german.name, OWN)) + 15


def test_data_are_loaded_once_whatever_the_task_says_of_it() -> None:
    task = load_task("LocalLanguages", OWN)
    assert task.data_loaded, "mteb would load them again, before every evaluation"
    assert task.dataset is not None
    assert type(task.dataset["de"]["train"]["label"]) is list


@pytest.mark.parametrize(
    ("name", "subset"),
    [
        ("STS17", "en-en"),
        ("AmazonCounterfactualClassification", "en"),
        ("STS17[es-es]", "es-es"),
        ("BIOSSES", "default"),
    ],
)
def test_the_paper_tasks_are_loaded_in_english(name: str, subset: str) -> None:
    task = tasks_module._named(name, {})
    assert (task.hf_subsets, list(task.eval_splits)) == ([subset], ["test"])


def test_a_star_means_all_subsets() -> None:
    assert len(tasks_module._named("STS17[*]", {}).hf_subsets) == 11


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (lambda: task_names("Banking77Clasification"), r"'Banking77Clasification'.*Banking77Cla"),
        (lambda: task_names(["STS12", "paper-33"]), r"'paper-33'.*paper-3"),
        (lambda: task_names("STS17[en]"), r"STS17 has no subset 'en'; it has .*en-en"),
        (lambda: task_names("STS17[en-en@dev]"), r"no evaluation split 'dev'; it has test"),
        (lambda: task_names("STS17[en"), r"expected NAME, NAME\[SUBSET"),
        (lambda: task_names("LocalSTS"), "LocalSTS"),
        (lambda: task_names("Birdsnap"), "reads image; only tasks of text"),
        (lambda: load_task("LocalBroken", OWN), "LocalBroken: cannot load its data: no such fol"),
        (lambda: load_task("LocalSTS", ["tests.no"]), r"module tests\.no of own mteb tasks cannot"),
        (lambda: load_task("CQADupstackRetrieval"), r"over other tasks: name those \(CQADupstackA"),
    ],
)
def test_a_name_without_a_task_or_data_is_named(asked: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        asked()


def test_without_the_extra_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    assert task_names("paper-31") == list(PAPER_31)
    with pytest.raises(ValueError, match=r"need the extra: pip install 'layerrank\[mteb\]'"):
        task_names("STS12")


def test_eager_columns_are_lists_with_the_same_values() -> None:
    rows = {"text": ["a", "b", "c", "d"], "label": [0, 1, 1, 0]}
    lazy = DatasetDict(test=Dataset.from_dict(rows))
    eager = eager_columns(lazy)
    assert isinstance(eager, DatasetDict)
    selections: list[Callable[[Any], Any]] = [
        lambda data: data.select([3, 0, 1]),
        lambda data: data.select(range(2)).select_columns(["label"]),
        lambda data: data.rename_columns({"text": "other"}),
    ]
    for select in selections:
        column = select(eager["test"])["label"]
        assert type(column) is list
        assert column == list(select(lazy["test"])["label"])
        assert type(select(lazy["test"])["label"]) is not list, "nothing to do any more"
    assert eager["test"][1] == {"text": "b", "label": 1}
    assert type(lazy["test"]) is Dataset, "the given data stay as they are"
    nested = eager_columns({"default": {"test": {"corpus": lazy["test"], "relevant_docs": rows}}})
    assert type(nested["default"]["test"]["corpus"]["text"]) is list
    assert nested["default"]["test"]["relevant_docs"] is rows
