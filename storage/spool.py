"""Token states on their way into one shard: gathered by batch, written by layer.

A batch brings every layer of a few prompts; a shard wants every prompt of one layer. The bytes wait
in one temporary file per layer, so memory holds a single layer however many there are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage import schema

_FLOAT16_MAX = 65504.0


class TokenSpool:
    """Takes token states batch by batch and gives the row groups of a `tokens` shard."""

    def __init__(
        self, prompt_ids: npt.NDArray[np.int64], lengths: Sequence[int], dtype: str
    ) -> None:
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

    def add(
        self, layer: int, rows: npt.NDArray[np.int64], states_SD: npt.NDArray[np.float32]
    ) -> None:
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
            yield pa.table(
                {
                    "prompt_id": self._prompt_ids[rows],
                    "layer": np.full(count, layer, dtype=np.int16),
                    "norm": pa.array([norm] * count),
                    "n_tokens": np.array(lengths, dtype=np.int32),
                    "dim": np.full(count, self._dim, dtype=np.int32),
                    "states": pa.array(
                        [stream.read(length * width) for length in lengths], pa.large_binary()
                    ),
                }
            ).cast(schema.TOKENS)


def token_states(table: pa.Table, dtype: str) -> list[npt.NDArray[np.floating]]:
    """Return the states [n_tokens, dim] of each row of a `tokens` row group."""
    dims = table["dim"].to_pylist()
    blobs = table["states"].to_pylist()
    return [
        np.frombuffer(blob, dtype=dtype).reshape(-1, dim)
        for blob, dim in zip(blobs, dims, strict=True)
    ]
