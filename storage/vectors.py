"""Vectors of one layer, gathered from the shards of a partition.

Shapes: N prompts, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from storage import schema
from storage.manifest import Manifest
from storage.root import Root
from storage.shards import group_values, read_group, vector_column, vectors

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, order=True)
class Group:
    """What selects one vector per prompt: a layer, its norm and the pooling."""

    layer: int
    norm: str
    pooling: str

    @property
    def match(self) -> dict[str, int | str]:
        """The column values of the group's rows."""
        return {"layer": self.layer, "norm": self.norm, "pooling": self.pooling}


def embeddings_table(
    group: tuple[int, str, str],
    prompt_ids: Ids,
    lengths: npt.NDArray[np.int32],
    vectors_ND: npt.NDArray[np.float32],
) -> pa.Table:
    """Return the rows of one (layer, norm, pooling) group, ready to be a row group of a shard."""
    layer, norm, pooling = group
    count = len(prompt_ids)
    columns = [
        pa.array(prompt_ids),
        pa.array(np.full(count, layer, dtype=np.int16)),
        pa.array([norm] * count),
        pa.array([pooling] * count),
        pa.array(lengths),
        vector_column(vectors_ND),
    ]
    return pa.Table.from_arrays(columns, schema=schema.embeddings(vectors_ND.shape[1]))


@dataclass(frozen=True)
class LayerVectors:
    """The vectors [N, D] of some prompts in one layer, sorted by prompt id."""

    prompt_ids: Ids
    matrix_ND: npt.NDArray[np.float32]

    def rows_of(self, wanted: Ids) -> npt.NDArray[np.int64]:
        """Return the row of each wanted prompt, -1 where the prompt has no vector."""
        if not len(self.prompt_ids):
            return np.full(len(wanted), -1, dtype=np.int64)
        place = np.searchsorted(self.prompt_ids, wanted)
        place = np.minimum(place, len(self.prompt_ids) - 1)
        return np.where(self.prompt_ids[place] == wanted, place, -1)


def groups(root: Root, embeddings: Manifest) -> list[Group]:
    """Return the groups that a partition of embeddings holds, in shard order."""
    for key, receipt in zip(embeddings.objects(), embeddings.receipts, strict=True):
        if receipt.rows:
            found = group_values(root, key, ["layer", "norm", "pooling"])
            return [Group(int(layer), str(norm), str(pooling)) for layer, norm, pooling in found]
    return []


def shard_vectors(root: Root, key: str, group: Group) -> LayerVectors:
    """Read the vectors of a group in one shard: one row group of one object."""
    table = read_group(root, key, group.match)
    ids, matrix_ND = table["prompt_id"].to_numpy(), vectors(table)
    order = np.argsort(ids, kind="stable")
    return LayerVectors(ids[order], matrix_ND[order])


def read_vectors(root: Root, embeddings: Manifest, group: Group, wanted: Ids) -> LayerVectors:
    """Read the vectors of the `wanted` prompts in a group: one row group per shard.

    Each shard's go straight to their place: no more than the result and a shard are in memory.
    """
    wanted = np.unique(wanted)
    matrix_ND = np.empty((0, 0), np.float32)
    present_N = np.zeros(len(wanted), dtype=bool)
    for key, receipt in zip(embeddings.objects(), embeddings.receipts, strict=True):
        if not receipt.rows or not len(wanted):
            continue
        shard = shard_vectors(root, key, group)
        if not len(matrix_ND):
            matrix_ND = np.empty((len(wanted), shard.matrix_ND.shape[1]), np.float32)
        place = np.searchsorted(wanted, shard.prompt_ids)
        place[place == len(wanted)] = 0
        keep = wanted[place] == shard.prompt_ids
        matrix_ND[place[keep]] = shard.matrix_ND[keep]
        present_N[place[keep]] = True
    if present_N.all():
        return LayerVectors(wanted, matrix_ND)
    if not present_N.any():
        return LayerVectors(np.empty(0, np.int64), np.empty((0, 0), np.float32))
    return LayerVectors(wanted[present_N], matrix_ND[present_N])


def features(root: Root, embeddings: Manifest) -> int:
    """Return the length D of the vectors of a partition; 0 if it holds none."""
    for key, receipt in zip(embeddings.objects(), embeddings.receipts, strict=True):
        if receipt.rows:
            with root.reader(key) as stream:
                return int(pq.read_schema(stream).field("vector").type.list_size)
    return 0
