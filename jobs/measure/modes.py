"""modes (CPU tasks): do the prompts' entropies fall into two groups? One task per layer.

`prompt_metrics, prompt_traits -> modes`, over a sample of all datasets of a subject together. A
worker tests one layer's entropies of the sampled prompts, and finds what separates them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.cluster.console import Progress, say
from jobs.config.metrics import parameters
from jobs.measure.traits import prompt_traits
from jobs.run import Run, leading, partition
from operators.analysis.effects import separations
from operators.analysis.modes import (
    NOTHING,
    UNDEFINED,
    Modes,
    find_modes,
    histogram,
    middle,
    nearest,
)
from operators.metrics.registry import main_variant
from operators.model.subject import Subject
from operators.ranking.significance import holm
from storage.manifest import Manifest, Settings
from storage.metrics import MetricRows, Values, select_rows
from storage.root import Root
from storage.shards import group_values, read_group, read_table

DECIMALS = 6  # of an entropy in nats: what differs by less came out of another batch
EXAMPLES = 3  # prompts nearest to each mode
FIRST_TOKEN = MetricRows("first_token_share", "")
NUMBERS = ("n_tokens", FIRST_TOKEN.metric, "repeated_tokens", "unknown_words")
DATASET = "dataset"


@dataclass(frozen=True)
class Part:
    """The prompts of one dataset that are tested: how many leading ones of which shards."""

    measured: Manifest
    traits: Manifest
    shares: Mapping[str, int]

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self.measured.partition.keys["dataset"]


@dataclass(frozen=True)
class LayerModes:
    """Tests one layer: its row of `modes`, but for the correction over the layers."""

    root: Root
    parts: tuple[Part, ...]
    rows: MetricRows

    def __call__(self, layer: int) -> dict[str, Any]:
        """Read one layer's row groups and test them."""
        table = _each_text_once(pa.concat_tables(self._tables(layer)))
        norm = table["norm"][0].as_py()
        return {"layer": layer, "norm": norm, **self.rows._asdict(), **_described(table)}

    def _tables(self, layer: int) -> Iterator[pa.Table]:
        """Yield every shard's prompts with their value and their traits."""
        for part in self.parts:
            for name, take in part.shares.items():
                key = part.measured.partition.shard(name)
                group = read_group(self.root, key, {"layer": layer})
                measured, first = (
                    select_rows(group, rows, take) for rows in (self.rows, FIRST_TOKEN)
                )
                traits = read_table(self.root, part.traits.partition.shard(name)).slice(0, take)
                assert measured["prompt_id"].equals(traits["prompt_id"]), f"{part.traits}, {name}"
                shares = first["value"] if len(first) else pa.nulls(len(traits), pa.float64())
                columns = {
                    "norm": measured["norm"],
                    "value": measured["value"],
                    FIRST_TOKEN.metric: shares,
                    DATASET: pa.array([part.dataset] * len(traits)),
                    "shard": pa.array([name] * len(traits)),
                }
                table = traits.drop_columns(["reason"])
                for column, values in columns.items():
                    table = table.append_column(column, values)
                yield table


def _each_text_once(table: pa.Table) -> pa.Table:
    """Return the rows without the texts that an earlier dataset has already."""
    _, first = np.unique(table["prompt_id"].to_numpy(), return_index=True)
    return table.take(np.sort(first))


def _described(table: pa.Table) -> dict[str, Any]:
    """Return the test of a layer's values, and what the prompts of the two groups are like."""
    values_N = np.round(table["value"].to_numpy(), DECIMALS)
    defined_N = ~np.isnan(values_N)
    table, values_N = table.filter(pa.array(defined_N)), values_N[defined_N]
    modes = find_modes(values_N)
    edges, counts = histogram(values_N)
    return {
        "n_prompts": len(values_N),
        "n_undefined": int((~defined_N).sum()),
        "dip": modes.dip,
        "p_value": modes.p_value,
        "peaks": modes.peaks,
        "split": modes.split,
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        **_groups(table, values_N, modes),
        "reason": UNDEFINED if modes is NOTHING else None,
    }


def _groups(table: pa.Table, values_N: Values, modes: Modes) -> dict[str, Any]:
    """Return the columns about the two groups; empty if there are none."""
    is_high_N = values_N > modes.split
    places = {"low": middle(values_N, modes.low), "high": middle(values_N, modes.high)}
    found: dict[str, Any] = {f"mode_{mode}": place for mode, place in places.items()}
    if modes is NOTHING:
        return {**found, "share_high": float("nan"), "traits": [], "examples": []}
    numbers = {name: table[name].to_numpy().astype(np.float64) for name in NUMBERS}
    traits = separations(is_high_N, numbers, {DATASET: table[DATASET].to_pylist()})
    return {
        **found,
        "share_high": float(is_high_N.mean()),
        "traits": [asdict(each) for each in traits],
        "examples": [
            {"mode": mode, **example}
            for mode, place in places.items()
            for example in _examples(table, values_N, place)
        ],
    }


def _examples(table: pa.Table, values_N: Values, place: float) -> list[dict[str, Any]]:
    rows = nearest(values_N, table["prompt_id"].to_numpy(), place, EXAMPLES)
    found = table.select(["prompt_id", DATASET, "shard", "n_tokens"]).take(rows).to_pylist()
    return [{**row, "value": float(values_N[at])} for row, at in zip(found, rows, strict=True)]


METRIC = "prompt_entropy"


def measure_modes(run: Run, subject: Subject, measured: Mapping[str, Manifest]) -> None:
    """Test every layer of a subject; `measured` is the `prompt_metrics` of each dataset by name."""
    if METRIC not in run.config.measure.metrics:
        return
    rows = MetricRows(METRIC, main_variant(METRIC, parameters(run.config)))
    parts = _parts(run, subject, measured, rows)
    if not parts:
        return
    # Like the ranking it is of all that the run has: made anew when a dataset joins.
    manifest, made = run.make(
        partition("modes", subject, run.config),
        _settings(parts, rows),
        partial(_tested, run, parts, rows),
        overwrite=True,
    )
    if not made:
        say(f"  modes of {manifest.rows} layers, present")


def _tested(run: Run, parts: list[Part], rows: MetricRows) -> list[dict[str, Any]]:
    """Return the row of every layer, with the p-values corrected for their number."""
    layers = _layers(run, parts)
    found: list[dict[str, Any]] = []
    with Progress("measure", len(layers), "layers' modes") as progress:
        for row in run.cluster.each("measure", layers, LayerModes(run.root, tuple(parts), rows)):
            found.append(row)
            progress.add(1)
    found.sort(key=lambda row: row["layer"])
    for row, p_holm in zip(found, holm(np.array([row["p_value"] for row in found])), strict=True):
        row["p_holm"] = float(p_holm)
    say(f"  modes of {len(layers)} layers, {found[0]['n_prompts']:,} prompts")
    return found


def _parts(
    run: Run, subject: Subject, measured: Mapping[str, Manifest], rows: MetricRows
) -> list[Part]:
    """Return what is tested of each dataset, with the traits of its prompts.

    Traits are of as many prompts as are tested if the dataset is the only one, so that they stay as
    they are when another dataset joins.
    """
    sample = run.config.measure.mode_sample
    counts = {
        name: {each.name: int(each.facts["prompts"]) for each in manifest.receipts if each.rows}
        for name, manifest in measured.items()
    }
    found = []
    for name, shares in sample_of(counts, sample).items():
        if shares:
            most = leading(counts[name], sample)
            traits = prompt_traits(run, subject, measured[name], most, rows)
            found.append(Part(measured[name], traits, shares))
    return found


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


def _settings(parts: list[Part], rows: MetricRows) -> Settings:
    return {
        "prompt_metrics": {part.dataset: part.measured.content for part in parts},
        "prompt_traits": {part.dataset: part.traits.content for part in parts},
        "variant": rows.variant,
    }


def _layers(run: Run, parts: list[Part]) -> list[int]:
    part = parts[0]
    key = part.measured.partition.shard(next(iter(part.shares)))
    return [int(layer) for (layer,) in group_values(run.root, key, ["layer"])]
