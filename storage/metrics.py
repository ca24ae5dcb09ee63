"""Rows of `prompt_metrics`: built column by column, since there are many, and read again.

Shapes: N prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storage import schema
from storage.root import Root
from storage.shards import read_group

Values = npt.NDArray[np.float64]


def prompt_metrics_table(
    layer: int,
    norm: str,
    prompt_ids: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int32],
    values: Mapping[tuple[str, str], Values],
    undefined: Mapping[str, str],
) -> pa.Table:
    """Return the rows of one layer: every (metric, variant) of `values`, each for every prompt [N].

    `undefined` gives the reason that stands beside a NaN, by metric.
    """
    count = len(prompt_ids)
    parts = [
        pa.table(
            [
                pa.array(prompt_ids),
                pa.repeat(pa.scalar(layer, pa.int16()), count),
                pa.repeat(norm, count),
                pa.repeat(metric, count),
                pa.repeat(variant, count),
                pa.array(values_N),
                pa.array([undefined[metric] if nan else None for nan in np.isnan(values_N)]),
                pa.array(lengths),
            ],
            names=schema.PROMPT_METRICS.names,
        ).cast(schema.PROMPT_METRICS)
        for (metric, variant), values_N in values.items()
    ]
    return pa.concat_tables(parts) if parts else schema.PROMPT_METRICS.empty_table()


class MetricRows(NamedTuple):
    """Which rows of `prompt_metrics`: a metric in one of its variants."""

    metric: str
    variant: str


def leading_rows(root: Root, key: str, layer: int, rows: MetricRows, count: int) -> pa.Table:
    """Return the first `count` of a shard's rows of one layer and metric, in sample order.

    Empty if the shard does not have the metric. Only the layer's row group is read.
    """
    return select_rows(read_group(root, key, {"layer": layer}), rows, count)


def select_rows(layer: pa.Table, rows: MetricRows, count: int) -> pa.Table:
    """Return the first `count` rows of one metric among the rows of a layer."""
    wanted = (pc.field("metric") == rows.metric) & (pc.field("variant") == rows.variant)
    return layer.filter(wanted).slice(0, count)
