"""The two workers of extraction: a task that reads and tokenises, an actor that runs the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from layerrank.jobs.cluster import tally
from layerrank.jobs.cluster.pool import TorchDevice
from layerrank.jobs.config.candidates import kept_vectors
from layerrank.jobs.config.metrics import REASONS, parameters
from layerrank.jobs.config.run import RunConfig
from layerrank.jobs.extract.targets import Part, Unit, stretch_facts
from layerrank.jobs.run import partition
from layerrank.jobs.subjects import local, tokenizer_of
from layerrank.operators.metrics.registry import TokenValues, token_metrics
from layerrank.operators.model.backend import Backend, load_backend
from layerrank.operators.model.encode import (
    Ids,
    NonFiniteError,
    Representations,
    TokenTap,
    encode,
    wanted_tokens,
)
from layerrank.operators.model.subject import Dtype, ModelUnavailableError, Subject
from layerrank.operators.model.tokenise import tokenise
from layerrank.operators.prompts.conditions import condition_text, condition_tokens
from layerrank.operators.prompts.seeding import sample_order
from layerrank.operators.prompts.views import ViewProbabilities
from layerrank.storage import schema
from layerrank.storage.layers import (
    TokenSpool,
    embeddings_table,
    metric_column,
    prompt_metrics_table,
)
from layerrank.storage.manifest import require
from layerrank.storage.partition import CLEAN, TableName
from layerrank.storage.root import Root
from layerrank.storage.shards import Facts, Receipt, Shard, write_shard

# What states beyond a number of their dtype ask for.
_REMEDIES: dict[Dtype, str] = {
    "float16": "float16 overflows at 65,504: run the model in float32 or bfloat16",
    "bfloat16": "run the model in float32",
    "float32": "the model's own weights give them: leave those texts out, or take other weights",
}


class Batch(NamedTuple):
    """A unit as it was read: its prompts in sample order [N], the token ids of each."""

    unit: Unit
    prompt_ids: npt.NDArray[np.int64]
    token_ids: list[Ids]
    cut: npt.NDArray[np.bool_]  # which were longer
    wanted: npt.NDArray[np.bool_]  # which are to have vectors, if they have a token


class Encoded(NamedTuple):
    """What became of a unit: the receipts of its objects, with the path of their partition."""

    receipts: list[tuple[str, Receipt]]
    texts: int
    tokens: int


def read(root: Root, subject: Subject, config: RunConfig, unit: Unit) -> Batch:
    """Read a unit's prompts, apply its condition and tokenise: the CPU side of extraction."""
    shard = Shard(root, partition("prompts", unit.dataset), unit.shard)
    prompts = shard.read(["prompt_id", "text"])
    ids, views = prompts["prompt_id"].to_numpy(), config.views
    order = sample_order(config.seed, ids)[: unit.prompts]
    probabilities = ViewProbabilities(views.keyboard, views.random_char, views.split)
    wanted, template = np.ones(len(order), bool), None
    if unit.prompted:
        template = unit.prompted.template
        of_sides = [side_ids(root, unit.dataset, unit.shard.name, *s) for s in unit.prompted.sides]
        wanted = np.isin(ids[order], np.concatenate(of_sides)) if of_sides else wanted
    texts = [
        condition_text(text, unit.condition, config.seed, probabilities)
        for text in prompts["text"].take(pa.array(order[wanted])).to_pylist()
    ]
    reader = tokenizer_of(subject, config.extract.max_tokens, config.storage)
    tokens = tokenise(reader.tokenizer, texts, reader.limit, template)
    most = max((int(ids.max()) for ids in tokens.ids if len(ids)), default=0)
    if most >= reader.known_ids:
        token = reader.tokenizer.convert_ids_to_tokens(most)
        raise ModelUnavailableError(
            f"model {subject} has no vector for the token {token!r} (id {most}) that a text of "
            f"{unit.dataset}, {unit.shard.name} has"
        )
    sequences, cut = [np.zeros(0, np.int32)] * len(order), np.zeros(len(order), bool)
    cut[wanted] = tokens.cut
    for place, each in zip(np.flatnonzero(wanted).tolist(), tokens.ids, strict=True):
        drawn_for = int(ids[order[place]]), unit.condition, config.seed
        sequences[place] = condition_tokens(each, *drawn_for, reader.vocabulary)
    tally.expect(unit.prompts, sum(map(len, sequences)))  # perhaps before a model is loaded
    return Batch(unit, ids[order], sequences, cut, wanted)


def side_ids(
    root: Root, dataset: str, shard: str, task: str, side: str, content: str
) -> npt.NDArray[np.int64]:
    """Return the ids of a shard's prompts that are texts of a side of a task, and maybe others.

    An item lies in the shard of its first text, so those of a second may lie in any.
    """
    is_second = side in ("second_id", "candidate_id")
    return _side_ids(root, dataset, "" if is_second else shard, task, side, content)


@lru_cache(maxsize=4)
def _side_ids(
    root: Root, dataset: str, shard: str, task: str, side: str, _content: str
) -> npt.NDArray[np.int64]:
    """Return the ids of a side in a shard of items, or in all of them."""
    found, columns = [np.zeros(0, np.int64)], [side]
    if by_mteb := not side.endswith("_id"):
        columns = ["prompt_id", "prompt_type"]
    for each in require(root, partition("tasks", task, dataset)).shards(root):
        if shard in ("", each.receipt.name):
            items = each.read(columns)
            if by_mteb:
                items = items.filter(pc.equal(items["prompt_type"], side))
            found.append(items[columns[0]].to_numpy())
    return np.unique(np.concatenate(found))


def load(subject: Subject, config: RunConfig, device: TorchDevice) -> Backend:
    """Load a model, which checks that it is read right; ModelUnavailableError if it is not.

    Or if its two norms have other numbers of features and both are wanted.
    """
    model = load_backend(local(subject, config.storage, wait=tally.wait), torch.device(device))
    raw, final = model.shape.hidden_size, model.final_size
    norms, _ = kept_vectors(config, CLEAN)
    if len(norms) > 1 and raw != final:
        raise ModelUnavailableError(
            f"model {subject} has {raw} features with norm none and {final} with norm final, which "
            "one table cannot hold: give one of them as extract.norms, and as candidates.norms"
        )
    return model


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
        self._model = load(subject, config, device)
        raw = "none" in kept_vectors(config, CLEAN)[0]
        self._features = self._model.shape.hidden_size if raw else self._model.final_size
        self._config = config
        self._batch_tokens = config.extract.batch_tokens or self._model.shape.batch_tokens(device)
        self._in_model = threading.Lock()

    def __call__(self, batch: Batch) -> Encoded:
        """Extract one unit and return its receipts and counts."""
        unit = batch.unit
        kept = np.flatnonzero([len(ids) for ids in batch.token_ids])  # with a token
        prompt_ids = batch.prompt_ids[kept]
        where = f"{self._subject}, {unit.dataset}, {unit.condition}, {unit.shard.name}"
        tally.count(unit.prompts - len(kept))  # that will have no vector
        try:
            return self._extract(batch, kept, prompt_ids)
        except ModelUnavailableError:
            raise
        except ValueError as error:
            remedy = ""
            if isinstance(error, NonFiniteError):
                first = prompt_ids[error.rows[0]]
                remedy = f", first prompt_id {first}; {_REMEDIES[self._subject.dtype]}"
            raise ValueError(f"{where}: {error}{remedy}") from error

    def _extract(
        self, batch: Batch, kept: npt.NDArray[np.int64], prompt_ids: npt.NDArray[np.int64]
    ) -> Encoded:
        unit, norm, layers = batch.unit, self._tokens.norm, self._model.shape.layers
        texts = [batch.token_ids[index] for index in kept]
        lengths = np.array([len(text) for text in texts], dtype=np.int32)
        stored = kept < unit.tokens
        measured: TokenValues = {}
        receipts = list[tuple[str, Receipt]]()
        metric_seconds = 0.0

        def measure(
            rows: npt.NDArray[np.int64], states: Sequence[torch.Tensor], lengths_N: torch.Tensor
        ) -> None:
            nonlocal metric_seconds
            began = time.perf_counter()
            found = token_metrics(states, lengths_N, self._metrics, self._parameters)
            for key, values_Ln in found.items():
                of_all = measured.setdefault(key, np.full((layers + 1, len(texts)), np.nan))
                of_all[:, rows] = values_Ln
            metric_seconds += time.perf_counter() - began

        def write(
            table: TableName,
            groups: Iterable[pa.Table],
            columns: pa.Schema,
            facts: Facts,
            name: str = unit.shard.name,
        ) -> None:
            where = partition(table, self._subject, unit.dataset, unit.condition)
            blank = Receipt(name, 0, unit.digests[table], "", facts=facts)
            made = write_shard(self._root, where.shard(name), groups, columns, blank)
            receipts.append((where.path, made))

        def write_part(
            part: Part, these: slice, vectors_GND: npt.NDArray[np.float32], seconds: float
        ) -> None:
            groups = self._keep(unit).groups(layers) if vectors_GND.shape[1] else []
            tables = (
                embeddings_table(group, prompt_ids[these], lengths[these], vectors_ND)
                for group, vectors_ND in zip(groups, vectors_GND, strict=True)
            )
            facts = {
                "prompts": vectors_GND.shape[1],
                "tokens": int(lengths[these].sum()),
                "skipped_no_tokens": int(batch.wanted[part.start : part.stop].sum())
                - vectors_GND.shape[1],
                "truncated": int(batch.cut[part.start : part.stop].sum()),
                "model_seconds": round(seconds, 3),
                **stretch_facts(part, unit.shard.name),
            }
            columns = schema.embeddings(vectors_GND.shape[2])
            write("embeddings", tables, columns, facts, part.name)

        with TokenSpool(prompt_ids, lengths.tolist(), self._tokens.dtype) as spool:
            taps = [wanted_tokens(stored, spool.add)] if stored.any() else []
            measures = "prompt_metrics" in unit.digests
            taps += [measure] if measures else []
            for part in unit.parts:
                these = slice(*np.searchsorted(kept, (part.start, part.stop)).tolist())
                if not (part.is_missing or measures or stored[these].any()):
                    continue
                vectors_GND = np.empty((0, 0, self._features), np.float32)
                with self._in_model:
                    began, measuring = time.perf_counter(), metric_seconds
                    if texts[these]:
                        vectors_GND = self._encoded(unit, texts[these], these.start, taps)
                    seconds = time.perf_counter() - began - (metric_seconds - measuring)
                if part.is_missing:
                    write_part(part, these, vectors_GND, seconds)
            if "tokens" in unit.digests:
                counts = {"prompts": int(stored.sum()), "dtype": self._tokens.dtype}
                write("tokens", spool.groups(norm), schema.TOKENS, counts)
        if measures:
            by_layer = zip(*measured.values(), strict=True)
            of_layers = (dict(zip(measured, each, strict=True)) for each in by_layer)
            tables = (
                prompt_metrics_table(layer, norm, prompt_ids, lengths, values, REASONS)
                for layer, values in enumerate(of_layers)
            )
            known = {
                "prompts": len(texts),
                "undefined": sum(int(np.isnan(each).sum()) for each in measured.values()),
                "metric_seconds": round(metric_seconds, 3),
            }
            columns = schema.prompt_metrics([metric_column(*key) for key in measured])
            write("prompt_metrics", tables, columns, known)
        return Encoded(receipts, unit.prompts, int(lengths.sum()))

    def _keep(self, unit: Unit) -> Representations:
        return Representations(*kept_vectors(self._config, unit.condition), self._batch_tokens)

    def _encoded(
        self, unit: Unit, texts: Sequence[Ids], start: int, taps: Sequence[TokenTap]
    ) -> npt.NDArray[np.float32]:
        """Encode texts of a unit from the position `start` on, as which taps and errors know it."""

        def shifted(tap: TokenTap) -> TokenTap:
            return lambda rows, states, lengths_N: tap(rows + start, states, lengths_N)

        lengths = np.array([*map(len, texts)])

        def landed(rows: npt.NDArray[np.int64]) -> None:
            tally.count(len(rows), int(lengths[rows].sum()))

        try:
            keep, norm = self._keep(unit), self._tokens.norm
            return encode(self._model, texts, keep, [*map(shifted, taps)], norm, landed)
        except NonFiniteError as error:
            raise NonFiniteError(str(error), [row + start for row in error.rows]) from error
