"""What metrics and tasks of your own are made of; docs/own.md has an example of each."""

from layerrank.operators.own import Items, Metric, Task
from layerrank.operators.probes.fold import (
    FoldScore,
    NoScoreError,
    Vectors,
    item_resamples,
    mean_score,
)

__all__ = [
    "FoldScore",
    "Items",
    "Metric",
    "NoScoreError",
    "Task",
    "Vectors",
    "item_resamples",
    "mean_score",
]
