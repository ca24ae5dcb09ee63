"""What extraction should make: which partitions, which shards, and the units of work still missing.

Pure functions of the config, the prompts and what exists; nothing here computes or writes a shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jobs.config.datasets import DatasetConfig
from jobs.config.metrics import token_metric_settings, token_plan
from jobs.config.run import RunConfig, graded_conditions
from jobs.run import leading, partition
from operators.model.subject import ModelShape, Subject
from operators.prompts.views import view_name
from storage.manifest import Manifest, Settings, digest_of
from storage.partition import CLEAN, Partition, TableName
from storage.shards import Receipt


class Unit(NamedTuple):
    """One shard of prompts under one condition, through one model.

    `shard` is the receipt of the shard, and the unit its first `prompts` in sample order. What is
    written is what is missing: `digests` names the settings of each such table, and `tokens` says
    of how many of the first prompts the token states are stored.
    """

    dataset: str
    condition: str
    shard: Receipt
    prompts: int
    tokens: int
    digests: dict[TableName, str]


class Target(NamedTuple):
    """A partition to fill: its settings, and the share of each of its shards' prompts it takes."""

    partition: Partition
    settings: Settings
    shares: dict[str, int]


class Pass(NamedTuple):
    """One pass over a dataset under one condition.

    Every pass gives embeddings; the clean one can give token states and token metrics too, and
    that of a condition token metrics.
    """

    dataset: str
    condition: str
    embeddings: Target
    tokens: Target | None = None
    prompt_metrics: Target | None = None

    @property
    def targets(self) -> list[Target]:
        """Every partition that the pass fills."""
        return [each for each in (self.embeddings, self.tokens, self.prompt_metrics) if each]


def passes(
    config: RunConfig,
    subject: Subject,
    identity: Settings,
    shape: ModelShape,
    dataset: DatasetConfig,
    prompts: Manifest,
) -> Iterator[Pass]:
    """Yield the passes of a subject over a dataset: the clean one, views, and conditions.

    `identity` is what the model's activations depend on.
    """
    everything = {receipt.name: receipt.rows for receipt in prompts.receipts}
    source = {
        "subject": dict(identity),
        "prompts": prompts.content,
        "max_tokens": config.extract.max_tokens,
    }
    kept: dict[str, Any] = {
        **source,
        "seed": config.seed,  # rows lie in sample order
        "norms": sorted(config.extract.norms),
        "poolings": sorted(config.extract.poolings),
    }
    planned, tokens = token_plan(config, shape, prompts.rows), config.tokens
    states = {"seed": config.seed, "sample": planned.stored, "norm": tokens.norm}
    measured = {**source, "norm": tokens.norm, **token_metric_settings(config)}

    def target(
        table: TableName, condition: str, settings: Settings, shares: dict[str, int] = everything
    ) -> Target:
        return Target(partition(table, subject, dataset, condition), settings, shares)

    clean = Pass(dataset.name, CLEAN, target("embeddings", CLEAN, kept))
    if planned.stored:
        stored = {**source, **states, "dtype": tokens.dtype}
        shares = leading(everything, planned.stored)
        clean = clean._replace(tokens=target("tokens", CLEAN, stored, shares))
    if planned.fused and measured["metrics"]:
        clean = clean._replace(prompt_metrics=target("prompt_metrics", CLEAN, measured))
    yield clean
    drawn = {**kept, **config.views.settings(exclude={"count"})}
    shares = leading(everything, config.views.sample)
    for name in map(view_name, range(config.views.count)):
        yield Pass(dataset.name, name, target("embeddings", name, drawn, shares))
    compared = config.conditions.passes() if measured["metrics"] else []
    settings = {**measured, "seed": config.seed}
    for graded in graded_conditions(config, dataset):
        metrics = target("prompt_metrics", graded.name, settings) if graded in compared else None
        embeddings = target("embeddings", graded.name, kept)
        yield Pass(dataset.name, graded.name, embeddings, prompt_metrics=metrics)


def missing_units(
    each: Pass, prompts: Manifest, done: Mapping[str, Mapping[str, Receipt]]
) -> list[Unit]:
    """Return the units whose shards are not all in `done` (partition path -> name -> receipt)."""
    digests, found = [digest_of(target.settings) for target in each.targets], []
    for receipt in prompts.receipts:
        name = receipt.name
        absent = {
            target.partition.table: digest
            for target, digest in zip(each.targets, digests, strict=True)
            if name in target.shares and name not in done[target.partition.path]
        }
        if absent:
            count = each.embeddings.shares[name]
            stored = each.tokens.shares[name] if each.tokens and "tokens" in absent else 0
            found.append(Unit(each.dataset, each.condition, receipt, count, stored, absent))
    return found
