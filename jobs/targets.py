"""What extraction should make: which partitions, which shards, and the units of work still missing.

Pure functions of the config, the prompts and what exists; nothing here computes or writes a shard.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from jobs.config import DatasetConfig, RunConfig
from jobs.run import partition
from operators.subject import Subject
from operators.views import view_name
from storage.manifest import Manifest, Settings, digest_of, missing
from storage.partition import CLEAN, Partition, shard_name
from storage.shards import Receipt


@dataclass(frozen=True)
class Unit:
    """One shard of prompts under one condition, through one model.

    `take` limits it to the shard's share of the sample (None = every prompt). What is written is
    what is missing: the embeddings or not, and the token states of the first `tokens` prompts. The
    digests name the settings of the two tables.
    """

    dataset: str
    condition: str
    shard: int
    prompts: int
    take: int | None
    embeddings: bool
    tokens: int
    digest: str
    tokens_digest: str

    def to_json(self) -> str:
        """Return the unit as JSON, the form in which it travels."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Unit:
        """Return the unit that `to_json` gave."""
        return cls(**json.loads(text))


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
class Pass:
    """One pass over a dataset under one condition: embeddings, and for `clean` token states too."""

    dataset: str
    condition: str
    embeddings: Target
    tokens: Target | None

    @property
    def targets(self) -> list[Target]:
        """Every partition that the pass fills."""
        return [self.embeddings] if self.tokens is None else [self.embeddings, self.tokens]


def sample_shares(prompts: Manifest, sample: int) -> dict[str, int]:
    """Return shard name -> prompts, so that the shards hold `sample` prompts between them.

    Shards are cut by a hash of the text, so the leading shards are a random sample, and a small
    sample touches few objects. A corpus smaller than the sample is taken whole.
    """
    shares: dict[str, int] = {}
    left = sample
    for receipt in prompts.receipts:
        take = min(receipt.rows, left)
        if take:
            shares[receipt.name] = take
        left -= take
    return shares


def passes(
    config: RunConfig,
    subject: Subject,
    identity: Settings,
    dataset: DatasetConfig,
    prompts: Manifest,
) -> Iterator[Pass]:
    """Yield the passes of a subject over a dataset: the clean one, then each view."""
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
    tokens = config.tokens
    token_shares = sample_shares(prompts, tokens.sample)
    yield Pass(
        dataset.name,
        CLEAN,
        Target(
            partition("embeddings", subject, dataset),
            kept,
            {receipt.name: receipt.rows for receipt in prompts.receipts},
        ),
        Target(
            partition("tokens", subject, dataset),
            {**source, "seed": config.seed, **tokens.model_dump()},
            token_shares,
        )
        if token_shares
        else None,
    )
    views = config.views
    drawn = {**kept, **views.model_dump(exclude={"count"})}
    shares = sample_shares(prompts, views.sample)
    for condition in map(view_name, range(views.count)):
        where = partition("embeddings", subject, dataset, condition)
        yield Pass(dataset.name, condition, Target(where, drawn, shares), None)


def missing_units(each: Pass, prompts: Manifest, done: dict[str, dict[str, Receipt]]) -> list[Unit]:
    """Return the units whose shards are not all in `done` (partition path -> name -> receipt)."""
    vectors, states = (
        set(missing(target.expected, done[target.partition.path])) if target else set()
        for target in (each.embeddings, each.tokens)
    )
    shares = each.embeddings.shares
    return [
        Unit(
            dataset=each.dataset,
            condition=each.condition,
            shard=number,
            prompts=shares[shard_name(number)],
            take=None if each.condition == CLEAN else shares[shard_name(number)],
            embeddings=shard_name(number) in vectors,
            tokens=each.tokens.shares[shard_name(number)]
            if each.tokens and shard_name(number) in states
            else 0,
            digest=each.embeddings.digest,
            tokens_digest=each.tokens.digest if each.tokens else "",
        )
        for number in range(len(prompts.receipts))
        if shard_name(number) in vectors | states
    ]
