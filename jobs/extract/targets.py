"""What extraction should make: which partitions, which shards, and the units of work still missing.

Pure functions of the config, the prompts and what exists; nothing here computes or writes a shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from layerrank.jobs.config.candidates import kept_vectors
from layerrank.jobs.config.datasets import DatasetConfig
from layerrank.jobs.config.metrics import token_metric_settings, token_plan
from layerrank.jobs.config.prompts import Prompted
from layerrank.jobs.config.run import RunConfig, graded_conditions
from layerrank.jobs.run import leading, partition
from layerrank.operators.model.subject import ModelShape, Subject
from layerrank.operators.prompts.views import view_name
from layerrank.storage.manifest import Manifest, Settings, digest_of
from layerrank.storage.pages import most_rows
from layerrank.storage.partition import CLEAN, Partition, TableName, part_name
from layerrank.storage.shards import Receipt

_STRETCH = "stretch"  # the fact of a receipt


class Part(NamedTuple):
    """A stretch of a unit's prompts, from `start` to before `stop`, whose vectors are an object."""

    name: str
    start: int
    stop: int
    is_missing: bool = True


class Unit(NamedTuple):
    """One shard of prompts under one condition, through one model.

    `shard` is the receipt of the shard, and the unit its first `prompts` in sample order. What is
    written is what is missing: `digests` names the settings of each such table, and `tokens` says
    of how many of the first prompts the token states are stored. `parts` is how its vectors are
    encoded and written, one after another. Of the prompts of a `prompted` unit only those have
    vectors whose texts are read in its template.
    """

    dataset: str
    condition: str
    shard: Receipt
    prompts: int
    tokens: int
    digests: dict[TableName, str]
    parts: tuple[Part, ...]
    prompted: Prompted | None = None


class Target(NamedTuple):
    """A partition to fill: its settings, and the share of each of its shards' prompts it takes.

    An object holds `most` prompts at most; a shard of more is several. Of how many does not matter
    afterwards: a receipt says which stretch of the shard's prompts it is of.
    """

    partition: Partition
    settings: Settings
    shares: dict[str, int]
    most: int | None = None

    def parts(self, name: str) -> tuple[Part, ...]:
        """Return how a shard is cut into objects, by the position of its prompts alone."""
        return cut(name, self.shares[name], self.most)

    def made(self, name: str, done: Mapping[str, Receipt]) -> list[Receipt]:
        """Return the receipts of a whole shard, however it was cut; none if it is not whole."""
        if name in done:
            return [done[name]]
        found, at = list[Receipt](), 0
        while part := done.get(part_name(name, len(found) + 1)):
            start, stop = stretch_of(part)
            if start != at:
                break
            found.append(part)
            if stop == self.shares[name]:
                return found
            at = stop
        return []


class Pass(NamedTuple):
    """One pass over a dataset under one condition.

    Every pass gives embeddings; the clean one can give token states and token metrics too, and
    that of a condition token metrics. One in a template is `prompted`.
    """

    dataset: str
    condition: str
    embeddings: Target
    tokens: Target | None = None
    prompt_metrics: Target | None = None
    prompted: Prompted | None = None

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
    prompted: Sequence[Prompted] = (),
) -> Iterator[Pass]:
    """Yield the passes of a subject over a dataset: the clean one, views, conditions, templates.

    `identity` is what the model's activations depend on.
    """
    everything = {receipt.name: receipt.rows for receipt in prompts.receipts}
    source = {
        "subject": dict(identity),
        "prompts": prompts.content,
        "max_tokens": config.extract.max_tokens,
    }

    def kept(condition: str) -> dict[str, Any]:
        norms, poolings = map(list, kept_vectors(config, condition))
        # Rows lie in sample order.
        return {**source, "seed": config.seed, "norms": norms, "poolings": poolings}

    planned, tokens = token_plan(config, shape, prompts.rows), config.tokens
    states = {"seed": config.seed, "sample": planned.stored, "norm": tokens.norm}
    measured = {**source, "norm": tokens.norm, **token_metric_settings(config)}

    def target(
        table: TableName, condition: str, settings: Settings, shares: dict[str, int] = everything
    ) -> Target:
        where = partition(table, subject, dataset, condition)
        norms, poolings = kept_vectors(config, condition)
        most = most_rows(shape.hidden_size, (shape.layers + 1) * len(norms) * len(poolings))
        return Target(where, settings, shares, most if table == "embeddings" else None)

    clean = Pass(dataset.name, CLEAN, target("embeddings", CLEAN, kept(CLEAN)))
    if planned.stored:
        stored = {**source, **states, "dtype": tokens.dtype}
        shares = leading(everything, planned.stored)
        clean = clean._replace(tokens=target("tokens", CLEAN, stored, shares))
    if planned.fused and measured["metrics"]:
        clean = clean._replace(prompt_metrics=target("prompt_metrics", CLEAN, measured))
    yield clean
    edits = config.views.settings(exclude={"count"})
    shares = leading(everything, config.views.sample)
    for name in map(view_name, range(config.views.count)):
        yield Pass(dataset.name, name, target("embeddings", name, {**kept(name), **edits}, shares))
    compared = config.conditions.passes() if measured["metrics"] else []
    settings = {**measured, "seed": config.seed}
    for graded in graded_conditions(config, dataset):
        metrics = target("prompt_metrics", graded.name, settings) if graded in compared else None
        embeddings = target("embeddings", graded.name, kept(graded.name))
        yield Pass(dataset.name, graded.name, embeddings, prompt_metrics=metrics)
    for each in prompted:
        read = {"template": each.template.written, "texts": [*each.sides]}
        if each.template.is_chat:
            read["words"] = each.words
        name = each.template.condition
        yield Pass(
            dataset.name, name, target("embeddings", name, {**kept(name), **read}), prompted=each
        )


def cut(name: str, prompts: int, most: int | None) -> tuple[Part, ...]:
    """Return the parts of so many prompts, of at most `most` each: one has the shard's own name."""
    if most is None or prompts <= most:
        return (Part(name, 0, prompts),)
    stretches = enumerate(range(0, prompts, most), start=1)
    return tuple(
        Part(part_name(name, number), start, min(start + most, prompts))
        for number, start in stretches
    )


def stretch_facts(part: Part, shard: str) -> dict[str, str]:
    """Return what the receipt of a part says of its place; nothing if it is the whole shard."""
    return {} if part.name == shard else {_STRETCH: f"{part.start}-{part.stop}"}


def stretch_of(receipt: Receipt) -> tuple[int, int]:
    """Return from which to before which prompt of a shard the object of a receipt is."""
    start, _, stop = str(receipt.facts[_STRETCH]).partition("-")
    return int(start), int(stop)


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
            if name in target.shares and not target.made(name, done[target.partition.path])
        }
        if absent:
            count = each.embeddings.shares[name]
            stored = each.tokens.shares[name] if each.tokens and "tokens" in absent else 0
            there = done[each.embeddings.partition.path] if "embeddings" in absent else None
            parts = tuple(
                part._replace(is_missing=there is not None and not _is_made(part, there))
                for part in each.embeddings.parts(name)
            )
            unit = Unit(each.dataset, each.condition, receipt, count, stored, absent, parts)
            found.append(unit._replace(prompted=each.prompted))
    return found


def _is_made(part: Part, done: Mapping[str, Receipt]) -> bool:
    return part.name in done and stretch_of(done[part.name]) == (part.start, part.stop)
