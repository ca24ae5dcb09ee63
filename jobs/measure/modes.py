"""modes (CPU tasks): do the prompts' entropies fall into two groups? One task per layer.

`prompts, prompt_metrics -> prompt_traits`, then `prompt_metrics, prompt_traits -> modes`, over a
sample of all datasets of a subject together. A worker describes the sampled prompts of one shard as
the tokenizer sees them, once for all layers; another tests one layer's entropies of all sampled
prompts, and finds what separates them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from layerrank.jobs.cluster.console import say
from layerrank.jobs.config.metrics import parameters
from layerrank.jobs.config.run import RunConfig
from layerrank.jobs.measure.pieces import Piece
from layerrank.jobs.run import Run, leading, partition
from layerrank.jobs.subjects import tokenizer_of
from layerrank.operators.analysis import modes as analysis
from layerrank.operators.later import Later
from layerrank.operators.metrics.registry import main_variant
from layerrank.operators.model.subject import Subject
from layerrank.storage import schema
from layerrank.storage.layers import metric_column
from layerrank.storage.manifest import Manifest, Settings, digest_of, missing
from layerrank.storage.partition import Partition
from layerrank.storage.root import Root
from layerrank.storage.shards import Receipt, Shard, write_shard

if TYPE_CHECKING:
    from layerrank.operators.model import tokenise
else:
    tokenise = Later("layerrank.operators.model.tokenise")

METRIC = "prompt_entropy"
_DECIMALS = 6  # of an entropy in nats: what differs by less came out of another batch
_EXAMPLES = 3  # prompts nearest to each mode
_FIRST_TOKEN = "first_token_share"
_NUMBERS = ("n_tokens", _FIRST_TOKEN, "repeated_tokens", "unknown_words")
_DATASET = "dataset"


class Part(NamedTuple):
    """The prompts of one dataset that are tested: how many leading ones of which shards."""

    dataset: str
    measured: Manifest
    traits: Manifest
    shares: Mapping[str, int]


def prompt_traits(run: Run, subject: Subject, measured: Mapping[str, Manifest]) -> Iterator[Piece]:
    """Yield what describes the sampled prompts of each dataset, where that is not done yet.

    `measured` is the `prompt_metrics` of each dataset by name.
    """
    for each, settings, shares in _traits(run, subject, measured).values():
        where = each.partition.sibling("prompt_traits")
        done = run.manifests.survey(where, settings, overwrite=run.overwrite)
        if run.manifests.load(where) is None:
            prompts = run.manifests.require(partition("prompts", where.keys["dataset"]))
            units = [
                (each.shard(run.root, name), prompts.shard(run.root, name), shares[name])
                for name in missing(list(shares), done)
            ]
            work = partial(shard_traits, subject, run.config, digest_of(settings))
            publish = partial(_publish_traits, run, where, settings, done, list(shares))
            if units:
                yield Piece(units, work, publish)
            else:  # all that was left to do
                publish([])


def _publish_traits(
    run: Run,
    where: Partition,
    settings: Settings,
    done: Mapping[str, Receipt],
    names: Sequence[str],
    made: Sequence[Receipt],
) -> str:
    found = {**done, **{each.name: each for each in made}}
    run.publish(where, settings, [found[name] for name in names], "measure")
    return ""


def modes(run: Run, subject: Subject, measured: Mapping[str, Manifest]) -> list[Piece]:
    """Return what tests every layer of a subject, if that is not done; the traits are there.

    `measured` is the `prompt_metrics` of each dataset by name.
    """
    traits, shares = _traits(run, subject, measured), _sampled(run, measured)
    parts = [
        Part(
            name,
            measured[name],
            run.manifests.require(measured[name].partition.sibling("prompt_traits")),
            shares[name],
        )
        for name in traits
    ]
    if not parts:
        return []
    variant = main_variant(METRIC, parameters(run.config))
    settings = {
        "prompt_metrics": {part.dataset: part.measured.content for part in parts},
        "prompt_traits": {part.dataset: part.traits.content for part in parts},
        "variant": variant,
    }
    where = partition("modes", subject, run.config)
    # Like the ranking it is of all that the run has: made anew when a dataset joins.
    if present := run.manifests.current(where, settings, overwrite=True):
        say(f"  modes of {present.rows} layers, present")
        return []
    shard = parts[0].measured.shard(run.root, next(iter(parts[0].shares)))
    layers = [int(layer) for (layer,) in shard.group_values(["layer"])]

    def done(found: list[dict[str, Any]]) -> str:
        found.sort(key=lambda row: row["layer"])
        p_values = np.array([row["p_value"] for row in found])
        for row, p_holm in zip(found, analysis.holm(p_values), strict=True):
            row["p_holm"] = float(p_holm)
        run.write(where, settings, found)
        return f"  modes of {len(found)} layers, {found[0]['n_prompts']:,} prompts"

    return [Piece(layers, partial(layer_modes, run.root, parts, variant), done)]


class _Traits(NamedTuple):
    """The `prompt_metrics` of a dataset, and what its traits are made with and of how many."""

    measured: Manifest
    settings: Settings
    shares: Mapping[str, int]


def _traits(run: Run, subject: Subject, measured: Mapping[str, Manifest]) -> dict[str, _Traits]:
    """Return what the traits of each dataset are to be that gives prompts to the sample.

    As many prompts as are tested if the dataset is the only one: its traits stay as they are when
    another dataset joins.
    """
    found = {}
    for name, shares in _sampled(run, measured).items():
        if shares:
            most = leading(_counts(measured[name]), run.config.measure.mode_sample)
            settings = {
                "subject": run.identity(subject),
                "prompt_metrics": measured[name].content,
                "max_tokens": run.config.extract.max_tokens,
                "sample": sum(most.values()),
            }
            found[name] = _Traits(measured[name], settings, most)
    return found


def _sampled(run: Run, measured: Mapping[str, Manifest]) -> dict[str, dict[str, int]]:
    if METRIC not in run.config.measure.metrics:
        return {}
    counts = {name: _counts(manifest) for name, manifest in measured.items()}
    return sample_of(counts, run.config.measure.mode_sample)


def _counts(measured: Manifest) -> dict[str, int]:
    """Return the prompts of each shard that has some."""
    return {each.name: int(each.facts["prompts"]) for each in measured.receipts if each.rows}


def sample_of(counts: Mapping[str, Mapping[str, int]], sample: int) -> dict[str, dict[str, int]]:
    """Return how many leading prompts to take of which shards of every dataset, `sample` at most.

    `counts` has the prompts of each shard of each dataset. Of more prompts than the sample each
    dataset gives in proportion to what it has: a random sample of all prompts, since shards are cut
    by hash and their rows lie in sample order.
    """
    of_dataset = {name: sum(shards.values()) for name, shards in counts.items()}
    total = sum(of_dataset.values())
    taken = min(sample, total)
    return {
        name: leading(shards, taken * of_dataset[name] // max(total, 1))
        for name, shards in counts.items()
    }


def layer_modes(root: Root, parts: Sequence[Part], variant: str, layer: int) -> dict[str, Any]:
    """Read one layer and test it: its row of `modes`, but for the correction over the layers."""
    tables, values = [], metric_column(METRIC, variant)
    for part in parts:
        for name, take in part.shares.items():
            measured = part.measured.shard(root, name).read_group({"layer": layer}).slice(0, take)
            traits = part.traits.shard(root, name).read().slice(0, take)
            assert measured["prompt_id"].equals(traits["prompt_id"]), f"{part.traits}, {name}"
            shares = measured[_FIRST_TOKEN]
            columns = {column: traits[column] for column in traits.column_names}
            columns |= {"norm": measured["norm"], "value": measured[values]}
            columns |= {_DATASET: pa.repeat(part.dataset, take), "shard": pa.repeat(name, take)}
            tables.append(pa.table({**columns, _FIRST_TOKEN: shares}))
    table = pa.concat_tables(tables)
    norm = table["norm"][0].as_py()
    # A text that an earlier dataset has already counts once.
    _, first = np.unique(table["prompt_id"].to_numpy(), return_index=True)
    table = table.take(np.sort(first))
    values_N = np.round(table["value"].to_numpy(), _DECIMALS)
    defined_N = ~np.isnan(values_N)
    undefined = int((~defined_N).sum())
    table, values_N = table.filter(pa.array(defined_N)), values_N[defined_N]
    both = analysis.find_modes(values_N)
    middles = (analysis.middle(values_N, each) for each in (both.low, both.high))
    places = dict(zip(("low", "high"), middles, strict=True))
    is_high_N = values_N > both.split
    traits, examples = [], []
    if both is not analysis.NOTHING:
        numbers = {name: table[name].to_numpy().astype(np.float64) for name in _NUMBERS}
        found = analysis.separations(is_high_N, numbers, {_DATASET: table[_DATASET].to_pylist()})
        traits = [asdict(each) for each in found]
        known = table.select(["prompt_id", _DATASET, "shard", "n_tokens"])
        for mode, place in places.items():
            near = analysis.nearest(values_N, table["prompt_id"].to_numpy(), place, _EXAMPLES)
            for row, at in zip(known.take(near).to_pylist(), near, strict=True):
                examples.append({"mode": mode, **row, "value": float(values_N[at])})
    edges, counts = analysis.histogram(values_N)
    return {
        "layer": layer,
        "norm": norm,
        "metric": METRIC,
        "variant": variant,
        "n_prompts": len(values_N),
        "n_undefined": undefined,
        "dip": both.dip,
        "p_value": both.p_value,
        "peaks": both.peaks,
        "split": both.split,
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        **{f"mode_{mode}": place for mode, place in places.items()},
        "share_high": float("nan") if both is analysis.NOTHING else float(is_high_N.mean()),
        "traits": traits,
        "examples": examples,
        "reason": analysis.UNDEFINED if both is analysis.NOTHING else None,
    }


def shard_traits(
    subject: Subject, config: RunConfig, digest: str, unit: tuple[Shard, Shard, int]
) -> Receipt:
    """Write the traits of a shard's leading prompts, in the order of `prompt_metrics`.

    The unit has that shard of `prompt_metrics`, that of `prompts`, and how many are described.
    """
    measured, prompts, take = unit
    (layer, *_), *_ = measured.group_values(["layer"])
    prompt_ids = measured.read_group({"layer": layer})["prompt_id"].slice(0, take)
    texts = prompt_texts(prompts, prompt_ids)
    reader = tokenizer_of(subject, config.extract.max_tokens, config.storage)
    tokenizer, limit = reader.tokenizer, reader.limit
    tokens = tokenise.tokenise(tokenizer, texts, limit).ids
    unknown_N = analysis.unknown_word_shares(tokenizer, texts)
    columns = [
        prompt_ids,
        pa.array([len(ids) for ids in tokens], pa.int32()),
        pa.array([analysis.repeated_share(ids) for ids in tokens], pa.float64()),
        pa.array(unknown_N),
        pa.array([analysis.NO_WORD if nan else None for nan in np.isnan(unknown_N)], pa.string()),
    ]
    table = pa.table(columns, names=schema.PROMPT_TRAITS.names)
    name = measured.receipt.name
    where = measured.partition.sibling("prompt_traits").shard(name)
    blank = Receipt(name, 0, digest, "", facts={"prompts": len(texts)})
    return write_shard(measured.root, where, [table], schema.PROMPT_TRAITS, blank)


def prompt_texts(prompts: Shard, prompt_ids: pa.Array | pa.ChunkedArray) -> list[str]:
    """Return the texts of some prompts of one shard; ValueError naming it if one is not there."""
    table = prompts.read(["prompt_id", "text"])
    rows = pc.index_in(prompt_ids, value_set=table["prompt_id"])
    if rows.null_count:
        raise ValueError(f"{prompts.key} lacks {rows.null_count} prompts that were measured")
    found: list[str] = table["text"].take(rows).to_pylist()
    return found
