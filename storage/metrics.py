"""Rows of `prompt_metrics`, built column by column: there are many of them.

Shapes: N prompts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage import schema

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
