"""Tables with a row per prompt, weighed at their real width before there is any row.

A partition is weighed from small shards of it that its own writers write (`jobs.plan.weigh`), with
ids, lengths and values that take as much room as real ones. A new table of prompts is one entry of
PROMPT_TABLES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from jobs.config.metrics import REASONS, TokenPlan, parameters, token_metrics, token_plan
from jobs.config.run import RunConfig
from jobs.extract.targets import Pass, Sources, Target, passes
from jobs.measure.modes import METRIC
from jobs.plan.sampling import Corpus
from jobs.plan.weigh import Weight, scratch, weigh_manifest, weigh_shards, weight
from jobs.run import leading
from operators.metrics.token.tokens import token_metrics as measure_tokens
from operators.model.encode import Representations
from operators.model.subject import ModelShape, Subject
from storage import schema
from storage.metrics import prompt_metrics_table
from storage.partition import shard_name
from storage.root import Root
from storage.shards import Facts, Receipt, write_shard
from storage.spool import TokenSpool
from storage.vectors import embeddings_table

_FEATURES, _TOKENS = 32, 8  # of the states that are measured to see which metrics there are
Lengths = npt.NDArray[np.int32]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """A subject over a dataset: what is known of it before it is run.

    `lengths` are tokens per prompt, of a sample or the most there can be.
    """

    config: RunConfig
    subject: Subject
    shape: ModelShape
    corpus: Corpus
    lengths: Lengths

    @property
    def layers(self) -> int:
        """Layers that are kept, the input among them."""
        return self.shape.layers + 1

    @cached_property
    def passes(self) -> list[Pass]:
        """The passes of the subject over the dataset, as extraction plans them."""
        return passes_of(self.config, self.subject, self.shape, self.corpus)

    @cached_property
    def tokens(self) -> TokenPlan:
        """What becomes of token states."""
        return token_plan(self.config, self.shape, self.corpus.prompts.rows)

    @cached_property
    def groups(self) -> list[tuple[int, str, str]]:
        """The (layer, norm, pooling) groups that are kept."""
        extract = self.config.extract
        return [*Representations(extract.norms, extract.poolings, 1).groups(self.shape.layers)]

    @cached_property
    def metrics(self) -> dict[tuple[str, str], Array]:
        """The (metric, variant) that token states are measured with, and values of random ones."""
        states = torch.randn(
            _TOKENS, _TOKENS, _FEATURES, generator=torch.Generator().manual_seed(0)
        )
        lengths, wanted = torch.full((_TOKENS,), _TOKENS), token_metrics(self.config)
        found = measure_tokens([states], lengths, wanted, parameters(self.config))
        return {key: values_LN[0] for key, values_LN in found.items()}


def passes_of(config: RunConfig, subject: Subject, shape: ModelShape, corpus: Corpus) -> list[Pass]:
    """Return the passes of a subject over a dataset; the content of its files plays no part."""
    sources = Sources({"files": "0" * 32, "dtype": subject.dtype}, shape)
    return [*passes(config, subject, sources, corpus.dataset, corpus.prompts)]


def _embeddings(pair: Pair) -> Iterator[Weight]:
    """Weigh the embeddings of every pass."""
    weigh = _Weigh(len(pair.groups), 4.0 * pair.shape.hidden_size)
    for each in pair.passes:
        target = each.embeddings

        def write(root: Root, prompts: int, groups: int, target: Target = target) -> Receipt:
            zeros_GND = np.zeros((groups, prompts, pair.shape.hidden_size), np.float32)
            return write_embeddings(root, pair, target, prompt_ids(prompts), zeros_GND)

        yield weigh(target, write)


def write_embeddings(
    root: Root,
    pair: Pair,
    target: Target,
    ids: npt.NDArray[np.int64],
    vectors_GND: npt.NDArray[np.float32],
) -> Receipt:
    """Write vectors [G, N, D] of the first G groups as the only shard of a target."""
    lengths = _some(pair.lengths, len(ids))
    tables = (
        embeddings_table(group, ids, lengths, vectors_ND)
        for group, vectors_ND in zip(pair.groups, vectors_GND, strict=False)
    )
    facts = {
        "prompts": len(ids),
        "tokens": int(lengths.sum()),
        "skipped_no_tokens": 0,
        "truncated": 0,
        "model_seconds": 1.234,
    }
    return _write(root, target, tables, schema.embeddings(vectors_GND.shape[2]), facts)


def _tokens(pair: Pair) -> Iterator[Weight]:
    """Weigh the stored token states."""
    tokens, width = pair.config.tokens, pair.shape.hidden_size
    prompt_bytes = float(pair.lengths.mean()) * width * np.dtype(tokens.dtype).itemsize
    weigh = _Weigh(pair.layers, prompt_bytes)
    for target in (each.tokens for each in pair.passes if each.tokens):

        def write(root: Root, prompts: int, groups: int, target: Target = target) -> Receipt:
            ids, lengths = prompt_ids(prompts), _some(pair.lengths, prompts)
            states_SD = np.zeros((int(lengths.sum()), width), np.float32)
            facts = {"prompts": prompts, "dtype": tokens.dtype}
            with TokenSpool(ids, lengths.tolist(), tokens.dtype) as spool:
                for layer in range(groups):
                    spool.add(layer, np.arange(prompts), states_SD)
                return _write(root, target, spool.groups(tokens.norm), schema.TOKENS, facts)

        yield weigh(target, write)


def _prompt_metrics(pair: Pair) -> Iterator[Weight]:
    """Weigh the token metrics of the model actors and of the stored states."""
    weigh = _Weigh(pair.layers, 16.0 * len(pair.metrics))
    for target in metric_targets(pair):

        def write(root: Root, prompts: int, groups: int, target: Target = target) -> Receipt:
            return write_metrics(root, pair, target, prompt_ids(prompts), groups)

        yield weigh(target, write)


def metric_targets(pair: Pair) -> list[Target]:
    """Return every partition of `prompt_metrics`: of stored states too, unless they are fused."""
    targets = [each.prompt_metrics for each in pair.passes if each.prompt_metrics]
    if pair.metrics and not pair.tokens.fused:
        stored = (each.tokens for each in pair.passes if each.tokens)
        targets += [replace(t, partition=t.partition.sibling("prompt_metrics")) for t in stored]
    return targets


def write_metrics(
    root: Root, pair: Pair, target: Target, ids: npt.NDArray[np.int64], layers: int
) -> Receipt:
    """Write the token metrics of some prompts in some layers as the only shard of a target."""
    rng, lengths_N = np.random.default_rng(1), _some(pair.lengths, len(ids))
    tables = (
        prompt_metrics_table(
            layer,
            pair.config.tokens.norm,
            ids,
            lengths_N,
            _metric_values(pair, rng, len(ids)),
            REASONS,
        )
        for layer in range(layers)
    )
    facts = {"prompts": len(ids), "undefined": 0, "metric_seconds": 1.234}
    return _write(root, target, tables, schema.PROMPT_METRICS, facts)


def _metric_values(pair: Pair, rng: np.random.Generator, count: int) -> dict[Any, Array]:
    """Return values that compress as real ones do: as precise, and the same where variants are."""
    drawn: dict[bytes, Array] = {}
    values: dict[tuple[str, str], Array] = {}
    for key, known_N in pair.metrics.items():
        own_N = rng.random(count)
        if (known_N == known_N.astype(np.float32)).all():
            own_N = own_N.astype(np.float32).astype(np.float64)
        values[key] = drawn.setdefault(known_N.tobytes(), own_N)
    return values


def _prompt_traits(pair: Pair) -> Iterator[Weight]:
    """Weigh the traits of the prompts that are tested for modes."""
    if METRIC not in pair.config.measure.metrics:
        return
    clean = metric_targets(pair)[:1]
    weigh = _Weigh(1, 64.0)
    for target in clean:
        shares = leading(target.shares, pair.config.measure.mode_sample)
        traits = Target(target.partition.sibling("prompt_traits"), target.settings, shares)

        def write(root: Root, prompts: int, groups: int, traits: Target = traits) -> Receipt:
            rng = np.random.default_rng(6)
            lengths = _some(pair.lengths, prompts)
            columns = [
                pa.array(prompt_ids(prompts)),
                pa.array(lengths),
                pa.array(rng.integers(0, lengths, endpoint=True) / lengths),
                pa.array(rng.integers(0, lengths, endpoint=True) / lengths),
                pa.nulls(prompts, pa.string()),
            ]
            table = pa.table(columns, names=schema.PROMPT_TRAITS.names)
            facts = {"prompts": prompts}
            return _write(root, traits, [table] * groups, schema.PROMPT_TRAITS, facts)

        yield weigh(traits, write)


PROMPT_TABLES: dict[str, Callable[[Pair], Iterator[Weight]]] = {
    "embeddings": _embeddings,
    "tokens": _tokens,
    "prompt_metrics": _prompt_metrics,
    "prompt_traits": _prompt_traits,
}


@dataclass(frozen=True)
class _Weigh:
    """Weighs partitions whose shards have `groups` row groups; equal ones once."""

    groups: int
    prompt_bytes: float
    known: dict[tuple[int, ...], tuple[list[float], Receipt]] = field(default_factory=dict)

    def __call__(self, target: Target, write: Callable[[Root, int, int], Receipt]) -> Weight:
        """Return the weight of a partition with a shard of each share, and its manifest."""
        counts = tuple(target.shares.values())
        if not counts:
            return Weight()
        if counts not in self.known:
            with scratch() as root:
                self.known[counts] = weigh_shards(
                    lambda prompts, groups: write(root, prompts, groups),
                    counts,
                    self.groups,
                    self.prompt_bytes,
                )
        sizes, receipt = self.known[counts]
        return weight(
            [*sizes, weigh_manifest(target.partition, target.settings, receipt, len(counts))]
        )


def _write(
    root: Root, target: Target, groups: Iterable[pa.Table], columns: pa.Schema, facts: Facts
) -> Receipt:
    blank = Receipt(shard_name(0), 0, target.digest, "", facts=facts)
    return write_shard(root, target.partition.shard(blank.name), groups, columns, blank)


def prompt_ids(count: int, corpus: Corpus | None = None) -> npt.NDArray[np.int64]:
    """Return prompt ids, as hashes are, or those of the texts of a corpus that has some."""
    if corpus is not None and corpus.texts.num_rows:
        ids: npt.NDArray[np.int64] = corpus.texts["prompt_id"].to_numpy()[:count]
        return ids
    bounds = np.iinfo(np.int64)
    return np.random.default_rng(5).integers(bounds.min, bounds.max, count, dtype=np.int64)


def _some(lengths: Lengths, count: int) -> Lengths:
    """Return lengths that are spread as those of the sample are, whatever the count."""
    places = (np.arange(count) + 0.5) / count
    return np.quantile(lengths, places, method="nearest").astype(np.int32)
