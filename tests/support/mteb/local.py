"""mteb tasks of every form over texts made here: small, offline, the same every time.

Imported by name (`modules=["tests.support.mteb.local"]`), as a user's own tasks are. A text is a
few words of its topic among words of all topics, so that encoders differ in how well they solve a
task.
"""

from __future__ import annotations

import random
from typing import Any

from datasets import Dataset, DatasetDict
from mteb import TaskMetadata
from mteb.abstasks import (
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskClusteringLegacy,
    AbsTaskMultilabelClassification,
    AbsTaskPairClassification,
    AbsTaskRegression,
    AbsTaskRetrieval,
    AbsTaskSTS,
)

from tests.conftest import TOPICS

WORDS = [word for words in TOPICS.values() for word in words]
TOPIC_NAMES = list(TOPICS)

# A task's data have the form that its type wants.
Data = Any


def sentence(draw: random.Random, topic: int, own: int = 3, other: int = 4) -> str:
    words = draw.choices(TOPICS[TOPIC_NAMES[topic]], k=own) + draw.choices(WORDS, k=other)
    draw.shuffle(words)
    return f"{' '.join(words)} {draw.randrange(10**6)}"


def labelled(seed: int, count: int) -> dict[str, list[Any]]:
    draw = random.Random(seed)
    labels = [row % len(TOPICS) for row in range(count)]
    return {"text": [sentence(draw, label) for label in labels], "label": labels}


def splits(**rows: dict[str, list[Any]]) -> DatasetDict:
    return DatasetDict({name: Dataset.from_dict(each) for name, each in rows.items()})


def metadata_of(name: str, kind: str, main_score: str, **changes: object) -> TaskMetadata:
    fields: dict[str, Any] = {
        "name": name,
        "description": "Texts made by a test.",
        "dataset": {"path": "local/none", "revision": "1"},
        "type": kind,
        "eval_splits": ["test"],
        "eval_langs": ["eng-Latn"],
        "main_score": main_score,
    }
    return TaskMetadata(**{**fields, **changes})


class Made:
    """Fills a task with what its `made` returns, as a user's own `load_data` does."""

    dataset: Data
    data_loaded: bool

    def load_data(self, *_: object, **__: object) -> None:
        self.dataset = self.made()
        self.data_loaded = True

    def made(self) -> Data:
        raise NotImplementedError


class LocalClassification(Made, AbsTaskClassification):
    metadata = metadata_of("LocalClassification", "Classification", "accuracy")
    samples_per_label = 4
    n_experiments = 4

    def made(self) -> Data:
        return splits(train=labelled(0, 45), test=labelled(1, 30))


class LocalLanguages(LocalClassification):
    """Two subsets and two splits; its `load_data` does not say that it is done."""

    metadata = metadata_of(
        "LocalLanguages",
        "Classification",
        "accuracy",
        eval_splits=["validation", "test"],
        eval_langs={"en": ["eng-Latn"], "de": ["deu-Latn"]},
    )

    def load_data(self, *_: object, **__: object) -> None:
        self.dataset = self.made()

    def made(self) -> Data:
        return {
            subset: splits(
                train=labelled(seed, 30),
                validation=labelled(seed + 1, 15),
                test=labelled(seed + 2, 15),
            )
            for subset, seed in (("en", 10), ("de", 20))
        }


class LocalMultilabel(Made, AbsTaskMultilabelClassification):
    metadata = metadata_of("LocalMultilabel", "MultilabelClassification", "accuracy")
    samples_per_label = 6
    n_experiments = 3

    def made(self) -> Data:
        made: dict[str, Any] = {}
        for split, seed, count in (("train", 30, 45), ("test", 31, 24)):
            rows = labelled(seed, count)
            second = [(label + row // 3) % len(TOPICS) for row, label in enumerate(rows["label"])]
            both = zip(rows["label"], second, strict=True)
            made[split] = {**rows, "label": [sorted({*labels}) for labels in both]}
        return splits(**made)


class LocalRegression(Made, AbsTaskRegression):
    metadata = metadata_of("LocalRegression", "Regression", "kendalltau")
    n_experiments = 3
    n_samples = 30

    def made(self) -> Data:
        made: dict[str, Any] = {}
        for split, seed, count in (("train", 40, 60), ("test", 41, 30)):
            draw = random.Random(seed)
            own = [draw.randrange(7) for _ in range(count)]
            texts = [sentence(draw, 0, words, 7 - words) for words in own]
            made[split] = {"text": texts, "value": [words / 7 for words in own]}
        return splits(**made)


class LocalClusteringFast(Made, AbsTaskClustering):
    """Embeds half of its documents, drawn from the task's own random state."""

    metadata = metadata_of("LocalClusteringFast", "Clustering", "v_measure")
    max_fraction_of_documents_to_embed = 0.5
    max_documents_per_cluster = 40
    n_clusters = 3

    def made(self) -> Data:
        rows = labelled(50, 90)
        return splits(test={"sentences": rows["text"], "labels": rows["label"]})


class LocalClusteringLegacy(Made, AbsTaskClusteringLegacy):
    metadata = metadata_of("LocalClusteringLegacy", "Clustering", "v_measure")

    def made(self) -> Data:
        sets = [labelled(seed, 30) for seed in (60, 61)]
        texts, labels = ([rows[name] for rows in sets] for name in ("text", "label"))
        return splits(test={"sentences": texts, "labels": labels})


def pairs(seed: int, count: int) -> tuple[list[str], list[str], list[int]]:
    draw = random.Random(seed)
    topics = [draw.randrange(len(TOPICS)) for _ in range(count)]
    same = [draw.randrange(2) for _ in range(count)]
    first = [sentence(draw, topic, own=5, other=2) for topic in topics]
    second = [
        sentence(draw, topic if equal else (topic + 1) % len(TOPICS), own=5, other=2)
        for topic, equal in zip(topics, same, strict=True)
    ]
    return first, second, same


class LocalPairs(Made, AbsTaskPairClassification):
    metadata = metadata_of("LocalPairs", "PairClassification", "max_ap")

    def made(self) -> Data:
        first, second, same = pairs(70, 30)
        return splits(test={"sentence1": first, "sentence2": second, "labels": same})


class LocalSTS(Made, AbsTaskSTS):
    metadata = metadata_of("LocalSTS", "STS", "cosine_spearman")

    def made(self) -> Data:
        first, second, same = pairs(80, 30)
        draw = random.Random(81)
        score = [4 * equal + draw.random() for equal in same]
        return splits(test={"sentence1": first, "sentence2": second, "score": score})


def search(seed: int, *, ranked: bool) -> dict[str, Any]:
    """Return queries, documents (with and without title) and which documents are relevant."""
    draw = random.Random(seed)
    topics = [row % len(TOPICS) for row in range(36)]
    corpus = {
        "id": [f"d{row}" for row in range(36)],
        "title": [TOPIC_NAMES[topic] if row % 2 else "" for row, topic in enumerate(topics)],
        "text": [f" {sentence(draw, topic)}" for topic in topics],
    }
    queries = {
        "id": [f"q{row}" for row in range(9)],
        "text": [sentence(draw, row % len(TOPICS), own=3, other=1) for row in range(9)],
    }
    relevant = {f"q{row}": {f"d{row + 9 * step}": 1 for step in range(0, 4, 3)} for row in range(9)}
    candidates = {
        query: [*documents, *draw.sample(corpus["id"][10:26], 6)]
        for query, documents in relevant.items()
    }
    return {
        "corpus": Dataset.from_dict(corpus),
        "queries": Dataset.from_dict(queries),
        "relevant_docs": relevant,
        "top_ranked": candidates if ranked else None,
    }


class LocalRetrieval(Made, AbsTaskRetrieval):
    metadata = metadata_of("LocalRetrieval", "Retrieval", "ndcg_at_10")

    def made(self) -> Data:
        return {"default": {"test": search(90, ranked=False)}}


class LocalReranking(Made, AbsTaskRetrieval):
    metadata = metadata_of("LocalReranking", "Reranking", "map_at_1000")

    def made(self) -> Data:
        return {"default": {"test": search(91, ranked=True)}}


class LocalBroken(LocalClassification):
    metadata = metadata_of("LocalBroken", "Classification", "accuracy")

    def made(self) -> Data:
        raise FileNotFoundError("no such folder: texts")
