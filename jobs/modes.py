"""modes (CPU tasks): do the prompts' entropies fall into two groups? One task per layer.

`prompt_metrics, prompt_traits -> modes`, over a sample of all datasets of a subject together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.cluster import run_tasks
from jobs.console import Progress, say
from jobs.layer_modes import LayerModes, Part
from jobs.measurer import parameters
from jobs.run import Run
from jobs.targets import leading
from jobs.traits import prompt_traits
from operators.metrics.registry import main_variant
from operators.ranking.significance import holm
from operators.subject import Subject
from storage import schema
from storage.manifest import Manifest, Settings, current, digest_of, publish
from storage.metrics import MetricRows
from storage.partition import Partition
from storage.shards import Receipt, group_values, write_shard

METRIC = "prompt_entropy"
MODES = "modes.parquet"


def modes_partition(run: Run, subject: Subject) -> Partition:
    """Return the partition of `modes` that a run makes of a subject."""
    return Partition("modes", (subject.name, subject.revision, run.config.name))


def measure_modes(run: Run, subject: Subject, measured: Mapping[str, Manifest]) -> None:
    """Test every layer of a subject; `measured` is the `prompt_metrics` of each dataset by name."""
    if METRIC not in run.config.measure.metrics:
        return
    rows = MetricRows(METRIC, main_variant(METRIC, parameters(run.config)))
    parts = _parts(run, subject, measured, rows)
    if not parts:
        return
    where, settings = modes_partition(run, subject), _settings(parts, rows)
    # Like the ranking it is of all that the run has: made anew when a dataset joins.
    present = current(run.root, where, settings, overwrite=True)
    if present is not None:
        say(f"  modes of {present.rows} layers, present")
        return
    run.cluster.start()
    layers = _layers(run, parts)
    found: list[dict[str, Any]] = []
    task = LayerModes(run.root, tuple(parts), rows)
    with Progress("measure", len(layers), "layers' modes") as progress:
        for row in run_tasks([str(layer) for layer in layers], task.__call__):
            found.append(row)
            progress.add(1)
    found.sort(key=lambda row: row["layer"])
    for row, p_holm in zip(found, holm(np.array([row["p_value"] for row in found])), strict=True):
        row["p_holm"] = float(p_holm)
    table = pa.Table.from_pylist(found, schema.MODES)
    blank = Receipt(MODES, 0, digest_of(settings), "")
    receipt = write_shard(run.root, where.shard(MODES), [table], schema.MODES, blank)
    publish(run.root, where, settings, [receipt])
    say(f"  modes of {len(layers)} layers, {found[0]['n_prompts']:,} prompts")


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
