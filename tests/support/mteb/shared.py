"""The shared datasets as tasks of mteb, by the protocols of `tests.support.shared_data`.

Imported by name (`modules: [tests.support.mteb.shared]`), as a user's own tasks are.
"""

from __future__ import annotations

from typing import ClassVar

import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskClustering, AbsTaskSTS

from tests.support.mteb.local import metadata_of
from tests.support.shared_data import FOLDER, TASKS


class SharedFile:
    """Fills a task with the splits of a shared file, its columns under the names mteb expects."""

    file: str
    columns: ClassVar[dict[str, str]]  # in the file -> for mteb
    splits: tuple[str, ...] = ("test",)
    dataset: DatasetDict
    data_loaded: bool

    def load_data(self, *_: object, **__: object) -> None:
        table = pq.read_table(FOLDER / f"{self.file}.parquet")
        parts = {}
        for split in self.splits:
            rows = table.filter(pc.field("split") == split).select([*self.columns])
            parts[split] = Dataset(rows.rename_columns([*self.columns.values()]))
        self.dataset = DatasetDict(parts)
        self.data_loaded = True


class SharedBanking77(SharedFile, AbsTaskClassification):
    metadata = metadata_of("SharedBanking77", "Classification", "accuracy")
    file, splits = "banking77", ("train", "test")
    columns: ClassVar = {"text": "text", "label": "label"}
    samples_per_label = TASKS["banking77"].config["samples_per_label"]


class SharedEmotion(SharedBanking77):
    metadata = metadata_of("SharedEmotion", "Classification", "accuracy")
    file = "tweeteval_emotion"
    samples_per_label = TASKS["tweeteval_emotion"].config["samples_per_label"]


class SharedSTS(SharedFile, AbsTaskSTS):
    metadata = metadata_of("SharedSTS", "STS", "cosine_spearman")
    file = "stsbenchmark"
    columns: ClassVar = {"sentence1": "sentence1", "sentence2": "sentence2", "score": "score"}
    min_score, max_score = 0, 5


class SharedTitles(SharedFile, AbsTaskClustering):
    metadata = metadata_of("SharedTitles", "Clustering", "v_measure")
    file = "stackoverflow_titles"
    columns: ClassVar = {"text": "sentences", "label": "labels"}
    max_fraction_of_documents_to_embed = None
    max_document_to_embed = TASKS["stackoverflow_titles"].config["max_documents"]
    max_documents_per_cluster = TASKS["stackoverflow_titles"].config["documents_per_fold"]


BY_FILE: dict[str, type[AbsTask]] = {
    each.file: each for each in (SharedBanking77, SharedEmotion, SharedSTS, SharedTitles)
}
