"""Scoring through the real command line: tasks of mteb, a task that fails, a search, an export."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from layerrank.jobs.export import least_cosine
from layerrank.jobs.probe.worker import fits_of
from layerrank.operators.model.subject import Transform
from layerrank.operators.probes.transform import apply
from layerrank.storage.layers import Group
from layerrank.storage.manifest import require
from layerrank.storage.partition import Partition, partitions
from layerrank.storage.root import Root
from layerrank.storage.shards import index_key
from tests.conftest import Cli, edited, write_config
from tests.support.stored import ask, shard_rows, store
from tests.support.tiny import BLOCKS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # minutes of commands, on a busy machine
MTEB_TASKS = ("LocalSTS", "LocalClassification")


@dataclass(frozen=True)
class Extracted:
    """A run up to its scores, and where the items of one task lie."""

    config: Path
    root: Root

    def scores(self) -> dict[str, int]:
        """Return task -> time of change of its manifest, of what is published."""
        return {
            each.keys["task"]: Path(self.root.path(each.manifest)).stat().st_mtime_ns
            for each in partitions(self.root, "probe_scores")
        }


@contextmanager
def not_to_be_scored(root: Root) -> Iterator[None]:
    """Give the items of the task `groups` one label for a while: whole, and of no use."""
    where = Partition("tasks", ("groups", "topics"))
    made = require(root, where)
    (shard,) = made.shards(root)
    kept = {key: root.read(key) for key in (shard.key, index_key(shard.key), where.manifest)}
    items = shard.read()
    place = items.column_names.index("label")
    store(root, where, [items.set_column(place, "label", [["one"] * len(items)])], made.settings)
    yield
    for key, content in kept.items():
        root.write(key, content)


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, cli: Cli) -> Extracted:
    folder = tmp_path_factory.mktemp("scoring")
    config = write_config(
        folder,
        checkpoint,
        tasks={"mteb": list(MTEB_TASKS), "modules": ["tests.support.mteb.local"]},
        extract={"max_tokens": 64, "workers": 1},
        views={"count": 0},
        measure={"metrics": ["dataset_entropy"]},
        cluster={"engine": "process"},  # how much mteb's tasks hold is not known beforehand
    )
    with edited(config) as values:
        values["datasets"][0] |= {"shard_prompts": 500, "fewest_shards": 1}
    for stage in ("prepare", "extract", "measure"):
        cli(stage, str(config), "--output", str(folder / "out"))
    return Extracted(config, Root(str(folder / "out")))


def test_a_task_that_fails_is_named_and_alone_scored_again(extracted: Extracted, cli: Cli) -> None:
    with not_to_be_scored(extracted.root):
        failed = cli("probe", str(extracted.config), "--output", extracted.root.uri, expect=1)
    assert "the others are stored" in failed.stderr
    # On a busy machine lines of progress come before it.
    (told,) = (line for line in failed.stderr.splitlines() if line.startswith("layerrank: "))
    assert "groups" in told
    assert "Traceback" not in failed.stderr
    before = extracted.scores()
    assert sorted(before) == sorted(["topic", "find", *MTEB_TASKS])

    cli("probe", str(extracted.config), "--output", extracted.root.uri)
    after = extracted.scores()
    assert set(after) == {*before, "groups"}
    assert {task: after[task] for task in before} == before


def test_tasks_of_mteb_are_ranked_and_written_as_mteb_writes_them(
    extracted: Extracted, cli: Cli
) -> None:
    root = extracted.root
    cli("run", str(extracted.config), "--output", root.uri)
    found = ask(
        root,
        "SELECT task, layer, avg(value) FROM probe_scores WHERE variant = 'raw' AND norm = 'final' "
        "AND pooling = 'mean' AND dataset = 'mteb' GROUP BY ALL",
    )
    scores = {(task, layer): value for task, layer, value in found}
    assert set(scores) == {(task, layer) for task in MTEB_TASKS for layer in range(BLOCKS + 1)}
    for (task, layer), value in scores.items():
        path = f"mteb/layer-{layer:02d}/results/layerrank__tiny/local/{task}.json"
        result = json.loads(root.read(path))
        (part,) = result["scores"]["test"]
        assert part["main_score"] == pytest.approx(value, abs=1e-6)
    facts: dict[str, Any] = json.loads(root.read("report/small/report.json"))
    labels = [task["label"] for task in facts["subjects"][0]["tasks"]]
    assert labels == ["topic", "groups", "find", *MTEB_TASKS]


def test_a_search_recommends_the_layer_of_the_full_sweep(
    extracted: Extracted, cli: Cli, tmp_path: Path
) -> None:
    values = yaml.safe_load(extracted.config.read_text())
    del values["tasks"]
    tasks = values["datasets"][0]["tasks"]
    for task in tasks:
        if "folds" in task:
            task["folds"] = 6  # more than the first round scores
    root = Root(str(tmp_path / "out"))
    shutil.copytree(extracted.root.uri, root.uri)
    ranked = {}
    for search in ("full", "halving"):
        values["rank"] = {**values["rank"], "search": search}
        config = tmp_path / f"{search}.yaml"
        config.write_text(yaml.safe_dump(values))
        probe = ("probe", str(config), "--output", root.uri, "--overwrite")
        if search == "halving":  # begins with a task that fails, and drops no layer for that
            with not_to_be_scored(root):
                assert "groups" in cli(*probe, expect=1).stderr
        cli(*probe)
        told = cli("rank", str(config), "--output", root.uri).stdout
        where = Partition("ranking", ("tiny", "local", "small"))
        rows = shard_rows(root, where)
        ranked[search] = {row["layer"]: row for row in rows if not math.isnan(row["score"])}
    assert [layer for layer, row in ranked["halving"].items() if row["recommended"]] == [
        layer for layer, row in ranked["full"].items() if row["recommended"]
    ]
    assert len(ranked["halving"]) > 1
    for layer, row in ranked["halving"].items():
        assert row["score"] == ranked["full"][layer]["score"]
    facts = json.loads(root.read("report/small/report.json"))
    assert 0 < facts["subjects"][0]["search_share"] <= 1
    assert "layer" in told

    # Without one of its tasks the search may have kept other layers.
    values["datasets"][0]["tasks"] = tasks[1:]
    config.write_text(yaml.safe_dump(values))
    refused = cli("rank", str(config), "--output", root.uri, expect=2)
    assert "groups is not scored yet: run `layerrank probe` first" in refused.stderr


def test_the_recommended_layer_is_exported_with_its_evidence(
    extracted: Extracted, cli: Cli, checkpoint: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    root = extracted.root
    cli("run", str(extracted.config), "--output", root.uri)
    out = tmp_path / "cut"
    model = ("--subject", str(checkpoint), "--name", "tiny", "--max-tokens", "64")
    cli("export", str(out), *model, "--ranking", root.uri)
    asked = "SELECT score, layer, norm, pooling, transform FROM ranking WHERE recommended"
    (score, *group, how) = ask(root, asked)[0]
    assert f"{score:.4f}" in (out / "README.md").read_text()
    candidates: list[tuple[Transform, tuple[str, ...]]] = [
        (how, ()),
        ("z", ("--transform", "z", "--pooling", "mean_no_first")),
        ("abtt", ("--transform", "abtt", "--pooling", "mean")),
    ]
    for transform, flags in candidates:
        if flags:
            cli("export", str(out), *model, "--ranking", root.uri, "--overwrite", *flags)
            group[2] = flags[-1]
        texts = ask(
            root,
            "SELECT text, vector FROM embeddings JOIN prompts USING (dataset, prompt_id) WHERE "
            "dataset = 'topics' AND layer = ? AND norm = ? AND pooling = ? ORDER BY text LIMIT 5",
            *group,
        )
        (where,) = partitions(root, "transforms")
        fit = fits_of(root, require(root, where)).get(Group(*group))
        wanted_ND = apply(np.array([each for _, each in texts], np.float32), transform, fit)
        exported = SentenceTransformer(str(out), device="cpu", local_files_only=True)
        found_ND = exported.encode([text for text, _ in texts], show_progress_bar=False)
        np.testing.assert_allclose(found_ND, wanted_ND, atol=1e-5 * max(1, abs(wanted_ND).max()))
        assert least_cosine(found_ND, wanted_ND) >= 1 - 1e-6

    # The output knows its model, and where its run cut texts.
    told = cli("export", str(out), "--ranking", root.uri, "--overwrite").stdout
    assert f"layer {group[0]} of {BLOCKS}" in told
    assert "cut to 64 tokens" in (out / "README.md").read_text()
    refused = cli("export", str(out), "--ranking", root.uri, "--name", "nobody", expect=2)
    assert "ranks none" in refused.stderr
    refused = cli("export", str(out), "--layer", "1", expect=2)
    assert "give --subject MODEL, or --ranking OUTPUT" in refused.stderr

    refused = cli(
        "export", str(out), *model, "--layer", "1", "--transform", "z", "--overwrite", expect=2
    )
    assert "fitted on the texts of a run; give --ranking OUTPUT" in refused.stderr

    refused = cli("export", str(out), *model, "--layer", "99", "--overwrite", expect=2)
    assert f"0 (the embeddings) to {BLOCKS}" in refused.stderr
    assert (out / "README.md").is_file()
