"""Traits of the prompts that are tested for two modes: `prompts, prompt_metrics -> prompt_traits`.

They are the tokenizer's view of a text, so they are computed once for all layers, shard by shard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.run import Run, partition
from jobs.subjects import TextReader, tokenizer_of
from operators.model.subject import Subject
from operators.model.tokenise import tokenise
from operators.prompts.traits import NO_WORD, repeated_share, unknown_word_shares
from storage import schema
from storage.manifest import Manifest, digest_of, missing
from storage.metrics import MetricRows, leading_rows
from storage.partition import Partition
from storage.root import Root
from storage.shards import Receipt, group_values, read_table, write_shard


def prompt_traits(
    run: Run, subject: Subject, measured: Manifest, shares: Mapping[str, int], metric: MetricRows
) -> Manifest:
    """Return `prompt_traits` of one dataset, made if it is not there yet.

    `shares` says how many leading prompts of which shards of `measured`, its `prompt_metrics`.
    """
    max_tokens = run.config.extract.max_tokens
    settings = {
        "subject": run.identity(subject),
        "prompt_metrics": measured.content,
        "max_tokens": max_tokens,
        "sample": sum(shares.values()),
    }
    where = measured.partition.sibling("prompt_traits")
    done = run.manifests.survey(where, settings, overwrite=run.overwrite)
    absent = missing(list(shares), done)
    present = run.manifests.load(where)
    if present is not None:
        return present
    tokenizer = partial(tokenizer_of, subject, max_tokens, run.config.storage)
    task = PromptTraits(run.root, tokenizer, measured.partition, metric, digest_of(settings))
    units = [(name, shares[name]) for name in absent]
    for receipt in run.cluster.each("measure", units, task):
        done[receipt.name] = receipt
    return run.publish(where, settings, [done[name] for name in shares], "measure")


@dataclass(frozen=True)
class PromptTraits:
    """Computes the traits of the leading prompts of one shard."""

    root: Root
    tokenizer: Callable[[], TextReader]
    measured: Partition
    metric: MetricRows
    digest: str

    def __call__(self, unit: tuple[str, int]) -> Receipt:
        """Read the leading texts of a shard, write traits in the order of `prompt_metrics`."""
        name, take = unit
        key = self.measured.shard(name)
        (layer, *_), *_ = group_values(self.root, key, ["layer"])
        prompt_ids = leading_rows(self.root, key, int(layer), self.metric, take)["prompt_id"]
        texts = prompt_texts(self.root, self.measured.keys["dataset"], name, prompt_ids)
        table = self._table(prompt_ids, texts)
        where = self.measured.sibling("prompt_traits").shard(name)
        blank = Receipt(name, 0, self.digest, "", facts={"prompts": len(texts)})
        return write_shard(self.root, where, [table], schema.PROMPT_TRAITS, blank)

    def _table(self, prompt_ids: pa.ChunkedArray, texts: list[str]) -> pa.Table:
        tokenizer, limit, _ = self.tokenizer()
        tokens = tokenise(tokenizer, texts, limit).ids
        unknown_N = unknown_word_shares(tokenizer, texts)
        columns = [
            prompt_ids,
            pa.array([len(ids) for ids in tokens], pa.int32()),
            pa.array([repeated_share(ids) for ids in tokens], pa.float64()),
            pa.array(unknown_N),
            pa.array([NO_WORD if nan else None for nan in np.isnan(unknown_N)], pa.string()),
        ]
        return pa.table(columns, names=schema.PROMPT_TRAITS.names)


def prompt_texts(
    root: Root, dataset: str, name: str, prompt_ids: pa.Array | pa.ChunkedArray
) -> list[str]:
    """Return the texts of some prompts of one shard; ValueError naming it if one is not there."""
    key = partition("prompts", dataset).shard(name)
    table = read_table(root, key, ["prompt_id", "text"])
    rows = pc.index_in(prompt_ids, value_set=table["prompt_id"])
    if rows.null_count:
        raise ValueError(f"{root.place(key)} lacks {rows.null_count} prompts that were measured")
    found: list[str] = table["text"].take(rows).to_pylist()
    return found
