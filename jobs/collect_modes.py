"""What a run found about two kinds of prompts, from the table `modes`."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from jobs.findings_modes import ExampleFinding, LayerModesFinding, ModesFinding, TraitFinding
from jobs.modes import modes_partition
from jobs.run import Run
from jobs.traits import prompt_texts
from operators.subject import Subject
from storage.manifest import load
from storage.shards import read_table

_SHOWN = 160  # characters of an example
_Row = Mapping[str, Any]


def modes(run: Run, subject: Subject) -> ModesFinding | None:
    """Return the tested layers of a subject; None if none was tested.

    Of layers that are bimodal at the run's level the examples are looked up: a few texts each.
    """
    manifest = load(run.root, modes_partition(run, subject))
    if manifest is None:
        return None
    rows = read_table(run.root, manifest.objects()[0]).to_pylist()
    bimodal = {row["layer"] for row in rows if row["p_holm"] <= 1 - run.config.rank.level}
    texts = _texts(run, [row for row in rows if row["layer"] in bimodal])
    first = rows[0]
    found = [_layer(row, row["layer"] in bimodal, texts) for row in rows]
    return ModesFinding(first["metric"], first["variant"], first["norm"], found)


def _layer(row: _Row, bimodal: bool, texts: Mapping[int, str]) -> LayerModesFinding:
    names = ("dip", "p_value", "p_holm", "split", "mode_low", "mode_high", "share_high")
    plain = ("layer", "n_prompts", "n_undefined", "peaks", "edges", "counts", "reason")
    known: dict[str, Any] = {
        **{name: row[name] for name in plain},
        **{name: _defined(row[name]) for name in names},
        "traits": [_trait(each) for each in row["traits"]] if bimodal else [],
        "examples": [_example(each, texts) for each in row["examples"]] if bimodal else [],
    }
    return LayerModesFinding(bimodal=bimodal, **known)


def _trait(row: _Row) -> TraitFinding:
    values = {name: _defined(row[name]) for name in ("effect", "low", "high")}
    return TraitFinding(**{**row, **values})


def _example(row: _Row, texts: Mapping[int, str]) -> ExampleFinding:
    known = {name: row[name] for name in ("mode", "value", "prompt_id", "dataset", "n_tokens")}
    return ExampleFinding(**known, text=texts[row["prompt_id"]])


def _texts(run: Run, rows: Iterable[_Row]) -> dict[int, str]:
    """Return the shortened texts of the examples in some rows; every shard is read once."""
    wanted: dict[tuple[str, str], dict[int, None]] = {}
    for row in rows:
        for each in row["examples"]:
            wanted.setdefault((each["dataset"], each["shard"]), {})[each["prompt_id"]] = None
    found: dict[int, str] = {}
    for (dataset, shard), ids in wanted.items():
        texts = prompt_texts(run.root, dataset, shard, pa.array([*ids]))
        found.update(zip(ids, map(_shortened, texts), strict=True))
    return found


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    short = textwrap.shorten(line, _SHOWN, placeholder=" ...")
    return short if len(short) > len(" ...") else f"{line[: _SHOWN - 4]} ..."


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
