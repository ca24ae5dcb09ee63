"""Two kinds of prompts: the stage on a small root of tables made by hand, without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from layerrank.jobs.cluster.pool import Work
from layerrank.jobs.measure import modes
from layerrank.jobs.measure.pieces import work_on
from layerrank.jobs.report.facts import Facts
from layerrank.jobs.report.sections import modes as modes_section
from layerrank.jobs.run import Run, Seen, partition
from layerrank.operators.analysis.modes import UNDEFINED, find_modes
from layerrank.operators.metrics.registry import METRICS
from layerrank.operators.prompts.seeding import prompt_id
from layerrank.storage import schema
from layerrank.storage.layers import prompt_metrics_table
from layerrank.storage.manifest import Manifest, SettingsConflictError
from layerrank.storage.partition import Partition, shard_name
from tests.support import by_hand
from tests.support.machines.here import Here, run_here
from tests.support.stored import store

SHORT = [f"sea {n}" for n in range(40)]
LONG = [f"the layer of a model and {n} {'sea ' * (8 + n % 5)}" for n in range(40)]
# Two shards of one dataset and one of another, which has a text of the first again.
SHARDS = {"a": [[*SHORT[:20], *LONG[:10]], [*SHORT[20:], *LONG[10:20]]], "b": [LONG[19:]]}
UNIQUE = 80


@pytest.fixture
def run(tmp_path: Path, checkpoint: Path) -> Run:
    return _run(tmp_path, checkpoint)


def _run(folder: Path, checkpoint: Path, **measure: object) -> Run:
    datasets = [{"name": name} for name in SHARDS]
    return run_here(folder, checkpoint, datasets, side=Backwards(), measure=measure)


class Backwards(Here):
    """Runs units in this process, the last first, and keeps what they were."""

    def __init__(self) -> None:
        self.units: list[Any] = []

    def each(self, units: Sequence[Any], work: Work, *, cpus: float, gpus: float) -> Iterator[Any]:
        del cpus, gpus
        for unit in reversed(units):  # results come in any order
            self.units.append(unit)
            yield work(unit)


def _units(run: Run) -> list[Any]:
    assert isinstance(run.cluster.side, Backwards)
    units = [unit for _, unit in run.cluster.side.units]  # of which piece
    return [(each[0].receipt.name, each[2]) if isinstance(each, tuple) else each for each in units]


def _forget(run: Run) -> None:
    assert isinstance(run.cluster.side, Backwards)
    run.cluster.side.units.clear()


def _measured(run: Run, *, only: str = "") -> dict[str, Manifest]:
    """Store the prompts and their metrics; layer 0 has one mode, layer 1 two, layer 2 none."""
    found = {}
    for name, config in zip(SHARDS, run.config.datasets, strict=True):
        prompts, measured = [], []
        for number, texts in enumerate(SHARDS[name]):
            ids = np.array([prompt_id(text) for text in texts])
            rows = pa.table([ids, texts, [number] * len(ids)], schema=schema.PROMPTS)
            prompts.append(rows.take(pa.array(np.argsort(ids))))  # not the order of the metrics
            measured.append(pa.concat_tables(_layer(n, ids, texts, only) for n in range(3)))
        store(run.root, Partition("prompts", (name,)), prompts, {})
        # The shards of a dataset are equally long.
        where, facts = partition("prompt_metrics", run.subjects[0], config), {"prompts": len(ids)}
        found[name] = store(run.root, where, measured, {}, facts)
    return found


def _layer(layer: int, ids: npt.NDArray[np.int64], texts: Sequence[str], only: str) -> pa.Table:
    entropy = {
        0: np.array([_position(each) for each in texts]),
        1: np.array([2 + 0.01 * len(each) for each in texts]),
        2: np.full(len(ids), np.nan),
    }[layer]
    lengths = np.array([len(each.split()) for each in texts], dtype=np.int32)
    values = {
        ("prompt_entropy", "alpha=1"): entropy,
        ("prompt_entropy", "alpha=2"): -entropy,
        ("first_token_share", ""): 1 / lengths,
    }
    kept = {key: value for key, value in values.items() if only in key[0]}
    return prompt_metrics_table(layer, "none", ids, lengths, kept, dict.fromkeys(METRICS, "none"))


def _position(text: str) -> float:
    """Return a value that is spread evenly over all texts."""
    return 1 + (2 * SHORT.index(text) if text in SHORT else 2 * LONG.index(text) + 1) / UNIQUE


def _modes(run: Run, measured: dict[str, Manifest] | None = None) -> list[dict[str, Any]]:
    """Measure the modes of what was `measured`, or of everything, and return their rows."""
    given = run, run.subjects[0], _measured(run) if measured is None else measured
    work_on(run.cluster, [*modes.prompt_traits(*given)])
    work_on(run.cluster, modes.modes(*given))
    return run.rows(partition("modes", run.subjects[0], run.config))


def test_the_stage_finds_what_was_put_in(run: Run) -> None:
    even, two, none = _modes(run)
    assert [even["layer"], two["layer"], none["layer"]] == [0, 1, 2]
    assert {(row["norm"], row["metric"], row["variant"]) for row in (even, two, none)} == {
        ("none", "prompt_entropy", "alpha=1")
    }
    assert even["n_prompts"] == two["n_prompts"] == UNIQUE  # the text of both datasets once
    assert even["p_holm"] == 1
    assert two["p_value"] < 1e-3
    assert two["p_holm"] == pytest.approx(2 * two["p_value"])  # two layers were tested
    lengths = [len(text) for text in SHORT + LONG]
    assert max(map(len, SHORT)) < (two["split"] - 2) / 0.01 < min(map(len, LONG))
    assert two["share_high"] == 0.5
    assert (two["peaks"], none["peaks"]) == (2, 0)
    for row, values in (
        (even, map(_position, SHORT + LONG)),
        (two, (2 + 0.01 * n for n in lengths)),
    ):
        expected = find_modes(np.array([round(value, 6) for value in values]))
        found = row["dip"], row["p_value"], row["split"]
        np.testing.assert_allclose(found, [expected.dip, expected.p_value, expected.split])
    assert two["mode_low"] < two["split"] < two["mode_high"]
    assert sum(two["counts"]) == UNIQUE
    assert two["edges"][0] == pytest.approx(2 + 0.01 * min(lengths))
    assert two["edges"][-1] == pytest.approx(2 + 0.01 * max(lengths))
    effects = {each["trait"]: each for each in two["traits"]}
    assert [each["effect"] for each in two["traits"][:2]] == [1, -1]
    assert (effects["repeated_tokens"]["effect"], effects["unknown_words"]["n_prompts"]) == (1, 80)
    assert effects["dataset"]["measure"] == "cramers_v"
    assert 0.4 < effects["dataset"]["effect"] < 0.7  # every text of b is long, two thirds of a not
    assert none["reason"] == UNDEFINED
    assert (none["n_prompts"], none["n_undefined"], none["traits"]) == (0, UNIQUE, [])
    assert np.isnan([none["dip"], none["p_holm"], none["split"], none["share_high"]]).all()
    assert none["counts"] == none["examples"] == []


def test_examples_are_of_their_group_and_their_texts_are_found(run: Run) -> None:
    _modes(run)
    found = _data(run)
    assert [each["bimodal"] for each in found["layers"]] == [False, True, False]
    assert (found["layers"][0]["examples"], found["layers"][0]["traits"]) == ([], [])
    layer = found["layers"][1]
    low, high = (
        [each for each in layer["examples"] if each["mode"] == mode] for mode in ("low", "high")
    )
    assert len(low) == len(high) == 3
    assert {each["text"] for each in low} <= set(SHORT)
    assert all(" ".join(each["text"].split()[:3]) == "the layer of" for each in high)
    for each in layer["examples"]:
        assert abs(each["value"] - layer[f"mode_{each['mode']}"]) <= 0.05
        assert each["prompt_id"] in {prompt_id(text) for text in SHORT + LONG}


def _data(run: Run) -> Any:  # noqa: ANN401  (what report.json holds)
    """Return what a report says of the modes of a run."""
    facts = Facts(by_hand.ranking(subject=run.subjects[0]), run)
    return modes_section.section(facts).data["modes"]


def test_the_order_of_the_rows_and_of_the_layers_does_not_matter(
    run: Run, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = _modes(run)
    backwards = {name: [each[::-1] for each in shards[::-1]] for name, shards in SHARDS.items()}
    monkeypatch.setitem(globals(), "SHARDS", backwards)
    other = _run(tmp_path / "other", checkpoint)
    for row, turned in zip(rows, _modes(other), strict=True):
        for each in row["examples"] + turned["examples"]:
            del each["shard"]  # which holds the text is what was changed
        np.testing.assert_equal(turned, row)


def test_a_second_run_does_nothing_and_other_settings_are_refused(
    run: Run, tmp_path: Path, checkpoint: Path
) -> None:
    measured = _measured(run)
    _modes(run, measured)
    assert len(_units(run)) == 3 + 3  # shards, then layers
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    _modes(run, measured)
    _modes(_run(tmp_path, checkpoint, mode_sample=5000), measured)  # than there are prompts
    assert len(_units(run)) == 6
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == written
    fewer = _run(tmp_path, checkpoint, mode_sample=27)
    with pytest.raises(SettingsConflictError, match="sample: 60 there, 27 here"):
        _modes(fewer, measured)
    again = _modes(replace(fewer, overwrite=True), measured)
    assert {row["n_prompts"] + row["n_undefined"] for row in again} == {27}


def test_another_dataset_joins_without_a_conflict(run: Run) -> None:
    measured = _measured(run)
    rows = _modes(run, {"a": measured["a"]})
    assert {row["n_prompts"] + row["n_undefined"] for row in rows} == {60}
    _forget(run)
    rows = _modes(run, measured)
    assert _units(run) == [(shard_name(0), 21), 2, 1, 0]
    assert {row["n_prompts"] + row["n_undefined"] for row in rows} == {UNIQUE}


def test_a_killed_run_goes_on_with_the_missing_shards(run: Run) -> None:
    measured = _measured(run)
    before = _modes(run, measured)
    where = measured["a"].partition.sibling("prompt_traits")
    for key in (where.manifest, where.shard(shard_name(1))):
        run.root.delete(key)
    run.root.delete(partition("modes", run.subjects[0], run.config).manifest)
    _forget(run)
    after = _modes(replace(run, seen=Seen()), measured)
    assert _units(run) == [(shard_name(1), 30), 2, 1, 0]
    np.testing.assert_equal(after, before)


def test_a_trait_that_was_not_measured_has_no_effect(run: Run) -> None:
    rows = _modes(run, _measured(run, only="prompt_entropy"))
    effects = {each["trait"]: each for each in rows[1]["traits"]}
    assert np.isnan(effects["first_token_share"]["effect"])
    assert effects["first_token_share"]["reason"]
    assert effects["n_tokens"]["effect"] == 1


def test_a_sample_takes_leading_prompts_in_proportion() -> None:
    counts = {"a": {"0": 60, "1": 30}, "b": {"0": 10}, "c": {}}
    assert modes.sample_of(counts, 1000) == counts
    assert modes.sample_of(counts, 100) == counts
    assert modes.sample_of(counts, 50) == {"a": {"0": 45}, "b": {"0": 5}, "c": {}}
    assert modes.sample_of(counts, 80) == {"a": {"0": 60, "1": 12}, "b": {"0": 8}, "c": {}}
    assert modes.sample_of({"a": {}}, 10) == {"a": {}}


def test_a_run_without_entropies_tests_nothing(tmp_path: Path, checkpoint: Path) -> None:
    other = _run(tmp_path, checkpoint, metrics=["curvature"])
    assert not [*modes.prompt_traits(other, other.subjects[0], _measured(other))]
    assert not modes.modes(other, other.subjects[0], _measured(other))
    assert not modes.modes(_run(tmp_path, checkpoint), other.subjects[0], {})
