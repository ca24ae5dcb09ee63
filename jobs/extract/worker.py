"""The two workers of extraction: a task that reads and tokenises, an actor that runs the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from jobs.cluster.pool import TorchDevice
from jobs.config.metrics import REASONS, parameters
from jobs.config.run import RunConfig
from jobs.config.settings import StorageConfig
from jobs.extract.targets import Unit
from jobs.run import partition
from jobs.subjects import local, tokenizer_of
from operators.metrics.token.tokens import TokenValues, token_metrics
from operators.metrics.variants import Parameters
from operators.model.batching import Ids
from operators.model.encode import NonFiniteError, Representations, TokenTap, encode, wanted_tokens
from operators.model.load import load_model
from operators.model.subject import ModelUnavailableError, Subject
from operators.model.tokenise import tokenise
from operators.prompts.conditions import condition_text, condition_tokens
from operators.prompts.seeding import sample_order
from operators.prompts.views import ViewProbabilities
from storage import schema
from storage.metrics import prompt_metrics_table
from storage.partition import TableName, shard_name
from storage.root import Root
from storage.shards import Facts, Receipt, read_table, write_shard
from storage.spool import TokenSpool
from storage.vectors import embeddings_table

_BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}


@dataclass(frozen=True)
class Batch:
    """A unit as it was read: its prompts in sample order, the token ids of each."""

    unit: Unit
    prompt_ids: npt.NDArray[np.int64]
    token_ids: list[Ids]
    truncated: int


@dataclass(frozen=True)
class Encoded:
    """What became of a unit: the receipts of its shards by the path of their partition."""

    receipts: dict[str, Receipt]
    texts: int
    tokens: int


@dataclass(frozen=True)
class Reader:
    """Reads a unit's prompts, applies its condition and tokenises: the CPU side of extraction."""

    root: Root
    subject: Subject
    seed: int
    probabilities: ViewProbabilities
    max_tokens: int
    storage: StorageConfig

    def read(self, unit: Unit) -> Batch:
        """Return the unit with its prompt ids in sample order, and their token ids."""
        where = partition("prompts", unit.dataset).shard(shard_name(unit.shard))
        prompts = read_table(self.root, where, ["prompt_id", "text"])
        ids = prompts["prompt_id"].to_numpy()
        order = sample_order(self.seed, ids)[: unit.take]
        texts = [
            condition_text(text, unit.condition, self.seed, self.probabilities)
            for text in prompts["text"].take(pa.array(order)).to_pylist()
        ]
        tokenizer, limit, vocabulary = tokenizer_of(self.subject, self.max_tokens, self.storage)
        tokens = tokenise(tokenizer, texts, limit)
        sequences = [
            condition_tokens(each, prompt_id, unit.condition, self.seed, vocabulary)
            for each, prompt_id in zip(tokens.ids, ids[order].tolist(), strict=True)
        ]
        return Batch(unit, ids[order], sequences, tokens.truncated)


@dataclass(frozen=True)
class _Work:
    """A unit with its prompts that have tokens, and which of their states are to be stored."""

    unit: Unit
    prompt_ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    stored: npt.NDArray[np.bool_]


@dataclass
class _Measured:
    """Takes the states of every batch and fills in its token metrics, [L, N] each."""

    prompts: int
    metrics: Sequence[str]
    parameters: Parameters
    values: TokenValues = field(default_factory=dict)
    seconds: float = 0.0

    def take(
        self, rows: npt.NDArray[np.int64], states: Sequence[torch.Tensor], lengths_N: torch.Tensor
    ) -> None:
        """Measure one batch."""
        began = time.perf_counter()
        found = token_metrics(states, lengths_N, self.metrics, self.parameters)
        for key, values_Ln in found.items():
            if key not in self.values:
                self.values[key] = np.full((len(states), self.prompts), np.nan)
            self.values[key][:, rows] = values_Ln
        self.seconds += time.perf_counter() - began

    @property
    def facts(self) -> Facts:
        """How many values are undefined, and the time that measuring took."""
        undefined = sum(int(np.isnan(each).sum()) for each in self.values.values())
        return {"undefined": undefined, "metric_seconds": round(self.seconds, 3)}


class Extractor:
    """A model actor: loads the model once, then turns units into shards and receipts.

    Several units may be inside at a time: one in the model, the others being written, so that the
    upload of a shard costs no model time.
    """

    def __init__(
        self, root: Root, subject: Subject, config: RunConfig, device: TorchDevice, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        self._root, self._subject, self._tokens = root, subject, config.tokens
        self._metrics, self._parameters = config.measure.metrics, parameters(config)
        here = local(subject, config.storage)
        self._model = load_model(here, torch.device(device))
        batch_tokens = config.extract.batch_tokens or _BATCH_TOKENS[device]
        self._keep = Representations(config.extract.norms, config.extract.poolings, batch_tokens)
        self._in_model = threading.Lock()

    def __call__(self, batch: Batch) -> Encoded:
        """Extract one unit and return its receipts and counts."""
        unit, sequences = batch.unit, batch.token_ids
        kept = np.flatnonzero([len(ids) for ids in sequences])
        texts = [sequences[index] for index in kept]
        lengths = np.array([len(text) for text in texts], dtype=np.int32)
        work = _Work(unit, batch.prompt_ids[kept], lengths, kept < unit.tokens)
        facts: dict[str, int | float | str] = {
            "prompts": len(texts),
            "tokens": int(lengths.sum()),
            "skipped_no_tokens": len(sequences) - len(texts),
            "truncated": batch.truncated,
        }
        try:
            receipts = self._extract(work, texts, facts)
        except ModelUnavailableError:
            raise
        except NonFiniteError as error:
            first = work.prompt_ids[error.rows[0]]
            raise ValueError(
                f"{self._where(unit)}: {error}, first prompt_id {first}; run the model in float32"
            ) from error
        except ValueError as error:
            raise ValueError(f"{self._where(unit)}: {error}") from error
        return Encoded(receipts, unit.prompts, int(lengths.sum()))

    def _where(self, unit: Unit) -> str:
        return f"{self._subject}, {unit.dataset}, {unit.condition}, shard {unit.shard}"

    def _extract(
        self, work: _Work, texts: list[Ids], facts: dict[str, int | float | str]
    ) -> dict[str, Receipt]:
        unit = work.unit
        receipts: dict[str, Receipt] = {}
        measured = _Measured(len(texts), self._metrics, self._parameters)
        with TokenSpool(work.prompt_ids, work.lengths.tolist(), self._tokens.dtype) as spool:
            taps = []
            if work.stored.any():
                taps.append(TokenTap(self._tokens.norm, wanted_tokens(work.stored, spool.add)))
            if unit.metrics:
                taps.append(TokenTap(self._tokens.norm, measured.take))
            with self._in_model:
                began = time.perf_counter()
                vectors = encode(self._model, texts, self._keep, taps) if texts else None
                seconds = time.perf_counter() - began - measured.seconds
                facts["model_seconds"] = round(seconds, 3)
            if unit.tokens:
                counts = {"prompts": int(work.stored.sum()), "dtype": self._tokens.dtype}
                groups = spool.groups(self._tokens.norm)
                self._write(work, "tokens", groups, schema.TOKENS, counts, receipts)
        if unit.metrics:
            tables = self._metric_tables(work, measured.values)
            known = {"prompts": len(texts), **measured.facts}
            self._write(work, "prompt_metrics", tables, schema.PROMPT_METRICS, known, receipts)
        if unit.embeddings:
            dim = self._model.hidden_size if vectors is None else vectors.shape[2]
            tables = self._embedding_tables(work, vectors)
            self._write(work, "embeddings", tables, schema.embeddings(dim), facts, receipts)
        return receipts

    def _metric_tables(self, work: _Work, values: TokenValues) -> Iterator[pa.Table]:
        for layer in range(self._model.layers + 1) if values else ():
            of_layer = {key: values_LN[layer] for key, values_LN in values.items()}
            yield prompt_metrics_table(
                layer, self._tokens.norm, work.prompt_ids, work.lengths, of_layer, REASONS
            )

    def _embedding_tables(
        self, work: _Work, vectors_GND: npt.NDArray[np.float32] | None
    ) -> Iterator[pa.Table]:
        if vectors_GND is None:
            return
        groups = self._keep.groups(self._model.layers)
        for group, vectors_ND in zip(groups, vectors_GND, strict=True):
            yield embeddings_table(group, work.prompt_ids, work.lengths, vectors_ND)

    def _write(
        self,
        work: _Work,
        table: TableName,
        groups: Iterable[pa.Table],
        columns: pa.Schema,
        facts: Facts,
        receipts: dict[str, Receipt],
    ) -> None:
        """Write the unit's shard of a table and add its receipt by the partition's path."""
        unit, name = work.unit, shard_name(work.unit.shard)
        subject = self._subject
        where = partition(table, subject, unit.dataset, unit.condition)
        blank = Receipt(name, 0, unit.digests[table], "", facts=facts)
        receipts[where.path] = write_shard(self._root, where.shard(name), groups, columns, blank)
