"""What is kept of the prompts in each layer: pooled vectors, token states, values of metrics.

Tables are made here to be row groups of a shard, one of each layer, and read again by layer.

Shapes: N prompts, S tokens of several prompts one after another, D features.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from layerrank.storage import schema
from layerrank.storage.manifest import Manifest
from layerrank.storage.pages import vector_column, vectors
from layerrank.storage.partition import whole_name
from layerrank.storage.root import Root
from layerrank.storage.shards import Shard

Ids = npt.NDArray[np.int64]
_FLOAT16_MAX = 65504.0


@dataclass(frozen=True, order=True)
class Group:
    """What selects one vector per prompt: a layer, its norm and the pooling."""

    layer: int
    norm: str
    pooling: str


def embeddings_table(
    group: tuple[int, str, str],
    prompt_ids: Ids,
    lengths: npt.NDArray[np.int32],
    vectors_ND: npt.NDArray[np.float32],
) -> pa.Table:
    """Return the rows of one (layer, norm, pooling) group, ready to be a row group of a shard."""
    layer, norm, pooling = group
    columns, count = schema.embeddings(vectors_ND.shape[1]), len(prompt_ids)
    values = {"layer": layer, "norm": norm, "pooling": pooling}
    known = [pa.repeat(pa.scalar(v, columns.field(k).type), count) for k, v in values.items()]
    vector = vector_column(vectors_ND)
    return pa.table([prompt_ids, *known, lengths, vector], schema=columns)


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
    filled = embeddings.filled(root)
    found = filled[0].group_values(["layer", "norm", "pooling"]) if filled else []
    return [Group(int(layer), str(norm), str(pooling)) for layer, norm, pooling in found]


def by_prompts(root: Root, embeddings: Manifest) -> dict[str, list[Shard]]:
    """Return the objects that hold the vectors of each shard of prompts, of those that have any."""
    found: dict[str, list[Shard]] = {}
    for shard in embeddings.filled(root):
        found.setdefault(whole_name(shard.receipt.name), []).append(shard)
    return found


def shard_vectors(objects: Sequence[Shard], group: Group) -> LayerVectors:
    """Read the vectors of a group in one shard of prompts: one row group of each of its objects."""
    tables = [each.read_group(asdict(group)) for each in objects]
    ids = np.concatenate([table["prompt_id"].to_numpy() for table in tables])
    found = [vectors(table) for table in tables]
    matrix_ND = found[0] if len(found) == 1 else np.concatenate(found)
    order = np.argsort(ids, kind="stable")
    return LayerVectors(ids[order], matrix_ND[order])


def read_vectors(root: Root, embeddings: Manifest, group: Group, wanted: Ids) -> LayerVectors:
    """Read the vectors of the `wanted` prompts in a group: one row group per object.

    Each shard's go straight to their place: no more than the result and an object's are in memory.
    """
    wanted = np.unique(wanted)
    matrix_ND = np.empty((0, 0), np.float32)
    present_N = np.zeros(len(wanted), dtype=bool)
    for shard in embeddings.filled(root) if len(wanted) else []:
        table = shard.read_group(asdict(group))
        found_ND = vectors(table)
        if not len(matrix_ND):
            matrix_ND = np.empty((len(wanted), found_ND.shape[1]), np.float32)
        place = LayerVectors(wanted, matrix_ND).rows_of(table["prompt_id"].to_numpy())
        kept = place >= 0
        if kept.all():
            matrix_ND[place] = found_ND
        else:
            matrix_ND[place[kept]] = found_ND[kept]
        present_N[place[kept]] = True
    if present_N.all():
        return LayerVectors(wanted, matrix_ND)
    if not present_N.any():
        return LayerVectors(np.empty(0, np.int64), np.empty((0, 0), np.float32))
    return LayerVectors(wanted[present_N], matrix_ND[present_N])


def features(root: Root, embeddings: Manifest) -> int:
    """Return the length D of the vectors of a partition; 0 if it holds none."""
    for shard in embeddings.filled(root):
        return len(shard.sums()[0])
    return 0


class TokenSpool:
    """Takes token states batch by batch and gives the row groups of a `tokens` shard.

    A batch brings every layer of a few prompts; a shard wants every prompt of one layer. The bytes
    wait in one temporary file per layer, so memory holds a single layer however many there are.
    """

    def __init__(self, prompt_ids: Ids, lengths: Sequence[int], dtype: str) -> None:
        self._prompt_ids, self._lengths = prompt_ids, lengths
        self._dtype = np.dtype(dtype)
        self._order: dict[int, list[int]] = {}
        self._files: dict[int, IO[bytes]] = {}
        self._dim = 0
        self._stack = ExitStack()

    def __enter__(self) -> TokenSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, layer: int, rows: Ids, states_SD: npt.NDArray[np.float32]) -> None:
        """Take the token states of some prompts in one layer; `rows` are the prompts' positions.

        ValueError that names the layer if a value does not fit float16: real models have massive
        activations beyond 65,504.
        """
        if layer not in self._files:
            stream = tempfile.TemporaryFile()  # noqa: SIM115  (the stack closes it)
            self._files[layer] = self._stack.enter_context(stream)
            self._order[layer] = []
        if self._dtype == np.float16:
            largest = float(np.abs(states_SD).max(initial=0.0))
            if largest > _FLOAT16_MAX:
                raise ValueError(
                    f"layer {layer} holds a value of {largest:.6g}, which float16 cannot store; "
                    "set tokens.dtype: float32"
                )
        self._dim = states_SD.shape[1]
        self._order[layer].extend(rows.tolist())
        self._files[layer].write(np.ascontiguousarray(states_SD, dtype=self._dtype).data)

    def groups(self, norm: str) -> Iterator[pa.Table]:
        """Yield one table per layer, in layer order."""
        for layer in sorted(self._files):
            rows, stream = self._order[layer], self._files[layer]
            lengths, count = [self._lengths[row] for row in rows], len(rows)
            width = self._dim * self._dtype.itemsize
            stream.seek(0)
            blobs = [stream.read(length * width) for length in lengths]
            names, dims = ([layer] * count, [norm] * count), [self._dim] * count
            columns = [self._prompt_ids[rows], *names, lengths, dims, blobs]
            yield pa.table(columns, schema=schema.TOKENS)


def token_states(table: pa.Table, dtype: str) -> list[npt.NDArray[np.floating]]:
    """Return the states [n_tokens, dim] of each row of a `tokens` row group."""
    rows = zip(table["states"].to_pylist(), table["dim"].to_pylist(), strict=True)
    return [np.frombuffer(blob, dtype=dtype).reshape(-1, dim) for blob, dim in rows]


def prompt_metrics_table(
    layer: int,
    norm: str,
    prompt_ids: Ids,
    lengths: npt.NDArray[np.int32],
    values: Mapping[tuple[str, str], npt.NDArray[np.float64]],
    undefined: Mapping[str, str],
) -> pa.Table:
    """Return the `prompt_metrics` of one layer; each (metric, variant) of `values` is a column.

    `undefined` gives the reason of a NaN, by metric.
    """
    count = len(prompt_ids)
    of_columns = {metric_column(*key): values_N for key, values_N in values.items()}
    columns = schema.prompt_metrics([*of_columns])
    reasons: list[dict[str, None]] = [{} for _ in range(count)]
    for (metric, _), values_N in values.items():
        for row in np.flatnonzero(np.isnan(values_N)):
            reasons[row][f"{metric}: {undefined[metric]}"] = None
    known = {
        "prompt_id": prompt_ids,
        "layer": np.full(count, layer),
        "norm": [norm] * count,
        "n_tokens": lengths,
        "reasons": ["; ".join(each) or None for each in reasons],
        **of_columns,
    }
    nothing = np.full(count, np.nan)
    return pa.table([known.get(name, nothing) for name in columns.names], schema=columns)


def metric_column(metric: str, variant: str) -> str:
    """Return the column of `prompt_metrics` that a metric has in a variant.

    `prompt_entropy` in `alpha=1,maxEntropy` is in `prompt_entropy_alpha_1_maxentropy`.
    """
    return re.sub(r"\W+", "_", f"{metric}_{variant}" if variant else metric).lower()
