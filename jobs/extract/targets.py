"""What extraction should make: which partitions, which shards, and the units of work still missing.

Pure functions of the config, the prompts and what exists; nothing here computes or writes a shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobs.config.datasets import DatasetConfig
from jobs.config.metrics import token_metric_settings, token_plan
from jobs.config.run import RunConfig, graded_conditions
from jobs.run import leading, partition
from operators.model.subject import ModelShape, Subject
from operators.prompts.views import view_name
from storage.manifest import Manifest, Settings, digest_of, missing
from storage.partition import CLEAN, Partition, shard_name
from storage.shards import Receipt


@dataclass(frozen=True)
class Unit:
    """One shard of prompts under one condition, through one model.

    `take` limits it to the shard's share of the sample (None = every prompt). What is written is
    what is missing: the embeddings or not, the token states of the first `tokens` prompts, and the
    token metrics or not. `digests` names the settings of each table.
    """

    dataset: str
    condition: str
    shard: int
    prompts: int
    take: int | None
    embeddings: bool
    tokens: int
    metrics: bool
    digests: dict[str, str]


@dataclass(frozen=True)
class Target:
    """A partition to fill: its settings, and the share of each of its shards' prompts it takes."""

    partition: Partition
    settings: Settings
    shares: dict[str, int]

    @property
    def expected(self) -> list[str]:
        """The names of the shards it should have."""
        return list(self.shares)

    @property
    def digest(self) -> str:
        """The digest of its settings."""
        return digest_of(self.settings)


@dataclass(frozen=True)
class Sources:
    """What a model's activations depend on, and the sizes that it has."""

    identity: Settings
    shape: ModelShape


@dataclass(frozen=True)
class Pass:
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
        return [
            target
            for target in (self.embeddings, self.tokens, self.prompt_metrics)
            if target is not None
        ]


def sample_shares(prompts: Manifest, sample: int) -> dict[str, int]:
    """Return shard name -> prompts, so that the shards hold `sample` prompts between them.

    Shards are cut by a hash of the text, so the leading shards are a random sample, and a small
    sample touches few objects. A corpus smaller than the sample is taken whole.
    """
    return leading({receipt.name: receipt.rows for receipt in prompts.receipts}, sample)


def passes(
    config: RunConfig,
    subject: Subject,
    sources: Sources,
    dataset: DatasetConfig,
    prompts: Manifest,
) -> Iterator[Pass]:
    """Yield the passes of a subject over a dataset: the clean one, views, and conditions."""
    source = {
        "subject": dict(sources.identity),
        "prompts": prompts.content,
        "max_tokens": config.extract.max_tokens,
    }
    kept: dict[str, Any] = {
        **source,
        "seed": config.seed,  # rows lie in sample order
        "norms": sorted(config.extract.norms),
        "poolings": sorted(config.extract.poolings),
    }
    everything = {receipt.name: receipt.rows for receipt in prompts.receipts}
    planned = token_plan(config, sources.shape, prompts.rows)
    tokens = config.tokens
    states = {"seed": config.seed, "sample": planned.stored, "norm": tokens.norm}
    measured = {"norm": tokens.norm, **token_metric_settings(config)}
    yield Pass(
        dataset.name,
        CLEAN,
        Target(partition("embeddings", subject, dataset), kept, everything),
        Target(
            partition("tokens", subject, dataset),
            {**source, **states, "dtype": tokens.dtype},
            sample_shares(prompts, planned.stored),
        )
        if planned.stored
        else None,
        Target(partition("prompt_metrics", subject, dataset), {**source, **measured}, everything)
        if planned.fused and measured["metrics"]
        else None,
    )
    views = config.views
    drawn = {**kept, **views.model_dump(exclude={"count"})}
    shares = sample_shares(prompts, views.sample)
    for condition in map(view_name, range(views.count)):
        where = partition("embeddings", subject, dataset, condition)
        yield Pass(dataset.name, condition, Target(where, drawn, shares))
    compared = config.conditions.passes() if measured["metrics"] else []
    for graded in graded_conditions(config, dataset):
        where = partition("embeddings", subject, dataset, graded.name)
        settings = {**source, "seed": config.seed, **measured}
        yield Pass(
            dataset.name,
            graded.name,
            Target(where, kept, everything),
            prompt_metrics=Target(where.sibling("prompt_metrics"), settings, everything)
            if graded in compared
            else None,
        )


def missing_units(each: Pass, prompts: Manifest, done: dict[str, dict[str, Receipt]]) -> list[Unit]:
    """Return the units whose shards are not all in `done` (partition path -> name -> receipt)."""
    absent = {
        target.partition.table: set(missing(target.expected, done[target.partition.path]))
        for target in each.targets
    }
    digests: dict[str, str] = {target.partition.table: target.digest for target in each.targets}
    shares = each.embeddings.shares
    states = each.tokens.shares if each.tokens else {}
    found = []
    for number in range(len(prompts.receipts)):
        name = shard_name(number)
        tables = {table for table, names in absent.items() if name in names}
        if tables:
            found.append(
                Unit(
                    dataset=each.dataset,
                    condition=each.condition,
                    shard=number,
                    prompts=shares[name],
                    take=None if each.condition == CLEAN else shares[name],
                    embeddings="embeddings" in tables,
                    tokens=states[name] if "tokens" in tables else 0,
                    metrics="prompt_metrics" in tables,
                    digests=digests,
                )
            )
    return found
