"""own metrics (CPU tasks): functions of the user's, of the pooled vectors of each layer.

`embeddings -> own_metrics`, a partition for each function: one that is edited or joins leaves the
others as they are. A worker reads the vectors of one layer for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from layerrank.jobs.config.datasets import DatasetConfig
from layerrank.jobs.measure.pieces import Piece
from layerrank.jobs.own import Own
from layerrank.jobs.run import Run, partition
from layerrank.operators.model.subject import Subject
from layerrank.operators.own import measured, told
from layerrank.storage.layers import Group, by_prompts, groups, shard_vectors
from layerrank.storage.manifest import Manifest, Settings
from layerrank.storage.partition import CLEAN, Partition
from layerrank.storage.root import Root

Rows = dict[str, list[dict[str, Any]]]  # of each function


def measured_groups(run: Run, embeddings: Manifest) -> list[Group]:
    """Return the groups of some embeddings that are measured; ValueError if there is none."""
    kept = run.config.extract
    found = [
        each
        for each in groups(run.root, embeddings)
        if each.norm in kept.norms and each.pooling in kept.poolings  # not of candidates alone
    ]
    if not found:
        raise ValueError(f"{embeddings.partition}: no prompt has a vector; no text gave a token")
    return found


def own_metrics(run: Run, subject: Subject, dataset: DatasetConfig) -> Iterator[Piece]:
    """Yield what measures the functions of the user's that are not measured yet."""
    names = run.config.measure.own
    conditions = [CLEAN, *(each.name for each in run.config.conditions.passes())] if names else []
    for condition in conditions:
        embeddings = run.manifests.require(partition("embeddings", subject, dataset, condition))
        absent: dict[Partition, Settings] = {}
        for name in names:
            settings = {"embeddings": embeddings.content, "source": run.own(name).digest}
            where = partition("own_metrics", subject, dataset, condition, name)
            if run.manifests.current(where, settings, overwrite=run.overwrite) is None:
                absent[where] = settings
        if absent:
            functions = [run.own(where.keys["metric"]) for where in absent]
            work = partial(layer_values, run.root, embeddings, functions)
            done = partial(_write, run, absent)
            yield Piece(measured_groups(run, embeddings), work, done)


def _write(run: Run, absent: Mapping[Partition, Settings], found: Sequence[Rows]) -> str:
    for where, settings in absent.items():
        rows = [row for of_layer in found for row in of_layer[where.keys["metric"]]]
        rows.sort(key=itemgetter("variant", "layer", "norm", "pooling"))
        run.write(where, settings, rows)
    keys, names = where.keys, ", ".join(each.keys["metric"] for each in absent)
    under = "" if keys["condition"] == CLEAN else f", {keys['condition']}"
    return f"  {keys['dataset']}{under}: {names} for {len(found)} layers"


def layer_values(root: Root, embeddings: Manifest, functions: Sequence[Own], group: Group) -> Rows:
    """Return the rows of every function for the vectors of one group, in the order of the shards.

    ValueError names the function and the layer where it raised, or gave what is no number.
    """
    shards = by_prompts(root, embeddings).values()
    vectors_ND = np.concatenate([shard_vectors(each, group).matrix_ND for each in shards])
    vectors_ND.flags.writeable = False  # the next function gets the same
    found: Rows = {}
    for own in functions:
        function = own.load()
        try:
            with threadpool_limits(1):  # one core is one unit
                values, why = measured(function, vectors_ND)
        except Exception as error:
            where = f"layer {group.layer} of dataset {embeddings.partition.keys['dataset']}"
            raise ValueError(f"{own.name}, {where}: {told(error)}") from error
        found[own.name] = [
            {
                **asdict(group),
                "variant": variant,
                "value": value if np.isfinite(value) else float("nan"),
                "reason": None if np.isfinite(value) else why or f"the function gave {value}",
                "n_prompts": len(vectors_ND),
            }
            for variant, value in values.items()
        ]
    return found
