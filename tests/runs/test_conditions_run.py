"""Conditions through the real command line: passes, metrics, slopes and the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from layerrank.jobs.config.run import load
from layerrank.jobs.plan.plan import plan
from layerrank.operators.analysis.sensitivity import least_squares_slopes, mean_slope, slope_sums
from layerrank.operators.model.subject import Subject, read_shape
from layerrank.operators.model.tokenise import vocabulary_of
from layerrank.operators.prompts.conditions import Condition, condition_tokens
from layerrank.operators.prompts.seeding import prompt_id
from layerrank.storage.root import Root
from tests.conftest import Cli, edited, write_config
from tests.support.planned import assert_planned
from tests.support.stored import ask
from tests.support.tiny import BLOCKS
from tests.support.whole import prompt_entropy

pytestmark = pytest.mark.slow
PASSES = ("random-0.30", "random-0.60", "repeat-0.50", "noise-0.20", "noise-0.30", "truncate-0.50")
LENGTHS = ("length-8", "length-32")
COUNT = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, cli: Cli) -> tuple[Path, Root]:
    folder = tmp_path_factory.mktemp("conditions")
    config = write_config(folder, checkpoint)
    with edited(config) as values:
        values["datasets"][0] |= {"limit": COUNT, "shard_prompts": 25}
        values["datasets"][0]["tasks"] = values["datasets"][0]["tasks"][:1]
        values["extract"] = {"max_tokens": 64, "workers": 1}
        values["views"]["count"] = 2
        metrics = ["prompt_entropy", "curvature", "rankme", "cka_last", "infonce"]
        values["measure"] = {"metrics": metrics}
        values["curves"] = {"noise": [0.2]}
        values["conditions"] = {
            "random": [0, 0.3, 0.6],
            "repeat": [0.5],
            "noise": [0.2, 0.3],
            "truncate": [0.5, 1],
            "length": [8, 32],
        }
    cli("run", str(config), "--output", str(folder / "out"))
    return config, Root(str(folder / "out"))


def test_every_condition_is_measured_on_the_very_same_prompts(run: tuple[Path, Root]) -> None:
    root = run[1]
    embedded = ask(root, "SELECT condition, count(DISTINCT prompt_id) FROM embeddings GROUP BY ALL")
    measured = ask(
        root,
        "SELECT condition, count(DISTINCT prompt_id), count(DISTINCT layer), "
        "max(n_tokens) FROM prompt_metrics GROUP BY ALL ORDER BY 1",
    )
    metrics = ask(
        root,
        "SELECT condition, list(DISTINCT metric ORDER BY metric) FROM layer_metrics GROUP BY ALL",
    )
    others = ask(
        root,
        "SELECT count(*) FROM prompt_metrics p ANTI JOIN prompt_metrics c ON "
        "c.condition = 'clean' AND p.prompt_id = c.prompt_id",
    )
    scored = ask(root, "SELECT DISTINCT condition FROM probe_scores ORDER BY 1")
    graded = {"clean", *PASSES, *LENGTHS}
    assert dict(embedded) == {**dict.fromkeys(graded, COUNT), "view-00": 24, "view-01": 24}
    assert {row[:3] for row in measured} == {(each, COUNT, BLOCKS + 1) for each in graded}
    assert [row[3] for row in measured if row[0] in LENGTHS] == [32, 8]  # sorted by name
    assert others == [(0,)]
    under = ["cka_last", "curvature", "prompt_entropy", "rankme"]
    assert dict(metrics) == {**dict.fromkeys(graded, under), "clean": sorted([*under, "infonce"])}
    assert scored == [("clean",), ("noise-0.20",)]


def test_slopes_are_those_of_every_prompt_by_hand(run: tuple[Path, Root], checkpoint: Path) -> None:
    """One text at a time through the library gives the slope and the interval that were stored."""
    root, layer = run[1], 2
    texts = [text for (text,) in ask(root, "SELECT text FROM prompts")]
    (stored,) = ask(
        root,
        "SELECT slope, slope_low, slope_high, levels, n_prompts, n_undefined FROM sensitivity "
        "WHERE family = 'random' AND metric = 'prompt_entropy' AND layer = ? "
        "AND variant = 'alpha=1'",
        layer,
    )
    families = ask(
        root,
        "SELECT family, count(DISTINCT layer), bool_or(isnan(slope) <> (reason IS NOT NULL)), "
        "bool_or(isnan(slope_low) <> (pooling <> 'tokens')) FROM sensitivity "
        "WHERE metric <> 'curvature' GROUP BY ALL ORDER BY 1",
    )
    subject = Subject(str(checkpoint), "local", "tiny")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    library = AutoModel.from_pretrained(checkpoint)
    vocabulary = vocabulary_of(tokenizer, read_shape(subject))
    levels = [Condition("random", level) for level in (0.0, 0.3, 0.6)]
    values_PN = np.empty((len(levels), len(texts)))
    for row_N, condition in zip(values_PN, levels, strict=True):
        for index, text in enumerate(texts):
            ids = np.array(tokenizer(text, truncation=True, max_length=64)["input_ids"], np.int32)
            changed = condition_tokens(ids, prompt_id(text), condition.name, 0, vocabulary)
            with torch.inference_mode():
                given = torch.from_numpy(changed.astype(np.int64))[None]
                states = library(input_ids=given, output_hidden_states=True).hidden_states[layer]
            row_N[index] = float(prompt_entropy(states, torch.tensor([len(changed)])))
    places_P = np.array([each.place for each in levels])
    expected = mean_slope(slope_sums(least_squares_slopes(values_PN, places_P)), 0.95)
    assert stored[:3] == pytest.approx(tuple(expected), abs=1e-5)
    assert stored[3:] == (3, COUNT, 0)
    assert families == [
        (family, BLOCKS + 1, False, False)
        for family in ("length", "noise", "random", "repeat", "truncate")
    ]


def test_the_report_shows_every_family(run: tuple[Path, Root]) -> None:
    root = run[1]
    report = json.loads(root.read("report/small/report.json"))
    found = report["subjects"][0]["responses"]
    assert {(each["family"], each["metric"], each["variant"]) for each in found} == {
        (family, metric, variant)
        for family in ("random", "repeat", "noise", "truncate", "length")
        for metric, variant in (
            ("prompt_entropy", "alpha=1"),
            ("curvature", "skip"),
            ("rankme", ""),
            ("cka_last", "debiased"),
        )
    }
    by_family = {each["family"]: each for each in found}
    shown = {
        name: [level["condition"] for level in each["levels"]] for name, each in by_family.items()
    }
    assert shown["random"] == ["clean", "random-0.30", "random-0.60"]
    assert shown["truncate"] == ["clean", "truncate-0.50"]
    assert shown["length"] == list(LENGTHS)
    page = root.read("report/small/index.html").decode()
    assert "Under extreme input" in page


def test_a_plan_says_beforehand_what_the_run_wrote(run: tuple[Path, Root]) -> None:
    assert_planned(plan(load(str(run[0])), None), Path(run[1].uri))
