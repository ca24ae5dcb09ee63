"""The layer scores of Pythia-410M that were published with arXiv 2502.02013."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tests.support.places import SHARED
from tests.support.simulated import Scores

PUBLISHED = SHARED / "published" / "layer_scores.parquet"


def layer_scores(path: Path, revision: str) -> dict[str, Scores]:
    """Return the scores of the 25 layers by task, NaN where there is none."""
    scores: dict[str, Scores] = {}
    for row in pq.read_table(path, filters=[("revision", "=", revision)]).to_pylist():
        scores.setdefault(row["task"], np.full(25, np.nan))[row["layer"]] = row["score"]
    return scores
