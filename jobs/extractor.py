"""The two workers of extraction: a task that reads and tokenises, an actor that runs the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from jobs.cluster import Pool, one_unit, result_table
from jobs.config import RunConfig
from jobs.targets import Unit
from operators.batching import Ids
from operators.encode import Representations, TokenRequest, encode
from operators.model import load_model
from operators.seeding import sample_order
from operators.subject import ModelUnavailableError, Subject, read_shape
from operators.tokenise import load_tokenizer, token_limit, tokenise
from operators.views import ViewProbabilities, view_text
from storage import schema
from storage.partition import CLEAN, Partition, shard_name
from storage.root import Root
from storage.shards import Receipt, read_table, write_shard
from storage.spool import TokenSpool
from storage.vectors import embeddings_table

_BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}


@dataclass(frozen=True)
class Reader:
    """Reads a unit's prompts, applies its condition and tokenises: the CPU side of extraction."""

    root: Root
    subject: Subject
    seed: int
    probabilities: ViewProbabilities
    max_tokens: int

    def read(self, batch: pa.Table) -> pa.Table:
        """Return one row: the unit, its prompt ids in sample order, and their token ids."""
        unit = Unit.from_json(one_unit(batch))
        where = Partition("prompts", (unit.dataset,)).shard(shard_name(unit.shard))
        prompts = read_table(self.root, where, ["prompt_id", "text"])
        ids = prompts["prompt_id"].to_numpy()
        order = sample_order(self.seed, ids)[: unit.take]
        texts = prompts["text"].take(pa.array(order)).to_pylist()
        if unit.condition != CLEAN:
            texts = [
                view_text(text, unit.condition, self.seed, self.probabilities) for text in texts
            ]
        tokenizer, limit = _tokenizer(self.subject, self.max_tokens)
        tokens = tokenise(tokenizer, texts, limit)
        return pa.table(
            {
                "unit": [unit.to_json()],
                "prompt_ids": pa.array([ids[order]], pa.list_(pa.int64())),
                "token_ids": pa.array([tokens.ids], pa.list_(pa.list_(pa.int32()))),
                "truncated": [tokens.truncated],
            }
        )


@lru_cache(maxsize=2)
def _tokenizer(subject: Subject, max_tokens: int) -> tuple[Any, int]:
    tokenizer = load_tokenizer(subject)
    return tokenizer, token_limit(tokenizer, read_shape(subject), max_tokens)


class Extractor:
    """A model actor: loads the model once, then turns units into shards and receipts.

    Two units may be inside at a time: one in the model, one being written, so that the upload of a
    shard costs no model time.
    """

    def __init__(self, root: Root, subject: Subject, config: RunConfig, pool: Pool) -> None:
        torch.set_num_threads(pool.threads)
        self._root, self._subject, self._tokens = root, subject, config.tokens
        self._model = load_model(subject, torch.device(pool.device))
        batch_tokens = config.extract.batch_tokens or _BATCH_TOKENS[pool.device]
        self._keep = Representations(config.extract.norms, config.extract.poolings, batch_tokens)
        self._in_model = threading.Lock()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Extract one unit and return its receipts and counts."""
        unit = Unit.from_json(one_unit(batch))
        prompt_ids = batch["prompt_ids"][0].values.to_numpy()
        sequences = [ids.values.to_numpy() for ids in batch["token_ids"][0]]
        facts = {"truncated": batch["truncated"][0].as_py()}
        try:
            return result_table(self._extract(unit, prompt_ids, sequences, facts))
        except ModelUnavailableError:
            raise
        except ValueError as error:
            where = f"{self._subject}, {unit.dataset}, {unit.condition}, shard {unit.shard}"
            raise ValueError(f"{where}: {error}") from error

    def _extract(
        self,
        unit: Unit,
        prompt_ids: npt.NDArray[np.int64],
        sequences: list[Ids],
        facts: dict[str, int | float | str],
    ) -> dict[str, Any]:
        kept = np.flatnonzero([len(ids) for ids in sequences])
        ids = prompt_ids[kept]
        texts = [sequences[index] for index in kept]
        lengths = np.array([len(text) for text in texts], dtype=np.int32)
        wanted = kept < unit.tokens
        with TokenSpool(ids, lengths.tolist(), self._tokens.dtype) as spool:
            request = TokenRequest(wanted, self._tokens.norm, spool.add) if wanted.any() else None
            with self._in_model:
                began = time.perf_counter()
                vectors = encode(self._model, texts, self._keep, request) if texts else None
                seconds = time.perf_counter() - began
            facts = {
                "prompts": len(texts),
                "tokens": int(lengths.sum()),
                "skipped_no_tokens": len(sequences) - len(texts),
                "model_seconds": round(seconds, 3),
                **facts,
            }
            key = shard_name(unit.shard)
            blank = Receipt(key, 0, unit.digest, "", facts=facts)
            receipts = {}
            if unit.tokens:
                where = self._partition("tokens", unit)
                counts = {"prompts": int(wanted.sum()), "dtype": self._tokens.dtype}
                own = replace(blank, digest=unit.tokens_digest, facts=counts)
                groups = spool.groups(self._tokens.norm)
                receipts[where.path] = write_shard(
                    self._root, where.shard(key), groups, schema.TOKENS, own
                )
        if unit.embeddings:
            where = self._partition("embeddings", unit)
            receipts[where.path] = self._write_embeddings(
                where.shard(key), blank, ids, lengths, vectors
            )
        return {
            "receipts": {path: receipt.to_json() for path, receipt in receipts.items()},
            "texts": unit.prompts,
            "tokens": facts["tokens"],
        }

    def _write_embeddings(
        self,
        key: str,
        blank: Receipt,
        ids: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int32],
        vectors_GND: npt.NDArray[np.float32] | None,
    ) -> Receipt:
        groups = self._keep.groups(self._model.layers)
        dim = self._model.hidden_size if vectors_GND is None else vectors_GND.shape[2]

        def tables() -> Iterator[pa.Table]:
            if vectors_GND is None:
                return
            for group, vectors_ND in zip(groups, vectors_GND, strict=True):
                yield embeddings_table(group, ids, lengths, vectors_ND)

        return write_shard(self._root, key, tables(), schema.embeddings(dim), blank)

    def _partition(self, table: str, unit: Unit) -> Partition:
        values = (self._subject.name, self._subject.revision, unit.dataset, unit.condition)
        return Partition(table, values)
