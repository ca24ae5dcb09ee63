"""A finished run that lost tables: the same command makes them again, with the same bytes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from layerrank.jobs.cli import main
from layerrank.jobs.run import TABLES
from layerrank.storage.checkpoint import Checkpoint
from layerrank.storage.partition import KEYS, TableName, partitions
from layerrank.storage.root import BOOKS, Root
from tests.conftest import Cli, edited, offline_environment, write_config
from tests.support.places import PROJECT
from tests.support.stored import content, manifests

pytestmark = pytest.mark.slow
# What takes seconds to import.
HEAVY = {"torch", "transformers", "sklearn", "matplotlib", "datasets", "ray", "mteb"}
PAIRS = [
    ("prompts", "embeddings"),
    ("embeddings", "probe_scores"),
    ("prompt_metrics", "modes"),
    ("prompt_traits", "sensitivity"),
    ("layer_costs", "ranking"),
]


@dataclass(frozen=True)
class Finished:
    """A finished run of every table, and what is in it."""

    config: Path
    root: Root
    content: dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, cli: Cli) -> Finished:
    folder = tmp_path_factory.mktemp("resumed")
    config = write_config(folder, checkpoint)
    with edited(config) as values:
        values["datasets"][0] |= {"limit": 40, "tasks": values["datasets"][0]["tasks"][:2]}
        values["extract"] = {"max_tokens": 32, "workers": 1}
        values["views"] = {"count": 2, "sample": 12}
        values["tokens"] = {"sample": 8}
        metrics = ["prompt_entropy", "rankme", "infonce", "mine:largest"]
        values["measure"] = {"metrics": metrics, "token_metrics": "both"}
        values["conditions"] = {"random": [0, 0.5]}
        values["curves"] = {"examples": [2], "noise": [0.2]}
    (folder / "mine.py").write_text(
        "def largest(vectors_ND):\n    return float(vectors_ND.max())\n"
    )
    root = Root(str(folder / "out"))
    cli("run", str(config), "--output", root.uri)
    return Finished(config, root, content(root))


def _lose(finished: Finished, *tables: TableName) -> None:
    for table in tables:
        shutil.rmtree(Path(finished.root.uri) / table)


@pytest.mark.parametrize("tables", [*((table,) for table in KEYS), *PAIRS], ids="-".join)
def test_what_is_lost_is_made_again(
    finished: Finished, cli: Cli, tables: tuple[TableName, ...]
) -> None:
    assert partitions(finished.root, tables[0])
    _lose(finished, *tables)
    cli("run", str(finished.config), "--output", finished.root.uri)
    assert content(finished.root) == finished.content
    assert partitions(finished.root, "layer_costs")


def _damage(path: Path, how: str) -> None:
    """Damage a file as storage does it: its time of change tells nothing."""
    content, before = bytearray(path.read_bytes()), path.stat()
    if how == "flipped":
        content[len(content) // 3] ^= 4
    elif how == "foreign":
        content = bytearray(next(p for p in path.parent.iterdir() if p != path).read_bytes())
    else:
        del content[len(content) // 2 :]
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("table", "how", "readers", "engine"),
    [
        ("embeddings", "flipped", ("layer_metrics",), "process"),
        ("embeddings", "foreign", ("probe_scores",), "ray"),
        ("prompts", "flipped", ("tokens",), "process"),
        ("tasks", "cut", ("probe_scores",), "process"),
        ("prompt_metrics", "flipped", ("modes", "sensitivity"), "ray"),
        ("probe_scores", "flipped", ("ranking",), "process"),
    ],
)
def test_what_is_damaged_is_named_when_it_is_read_and_made_again(
    finished: Finished,
    cli: Cli,
    table: TableName,
    how: str,
    readers: tuple[TableName, ...],
    engine: str,
) -> None:
    root = Path(finished.root.uri)
    shard = sorted((root / table).rglob("*.parquet"))[0]
    _damage(shard, how)
    named = str(shard.relative_to(root))
    assert named in cli("status", str(root), "--verify", expect=1).stdout
    _lose(finished, *readers)
    told = cli("run", str(finished.config), "--output", str(root), "--engine", engine).stdout
    assert re.search(rf"damaged: {re.escape(named)}: .*made again", told)
    assert content(finished.root) == finished.content
    cli("status", str(root), "--verify")


def test_what_is_damaged_before_it_is_published_is_found_too(finished: Finished, cli: Cli) -> None:
    root = Path(finished.root.uri)
    (clean,) = root.glob("embeddings/*/*/*/condition=clean")
    _damage(sorted(clean.iterdir())[0], "flipped")
    (root / BOOKS / "manifests" / f"{clean.relative_to(root)}.json").unlink()
    _lose(finished, "layer_metrics")
    told = cli("run", str(finished.config), "--output", str(root)).stdout
    assert "damaged: embeddings/" in told
    assert content(finished.root) == finished.content


def test_torn_books_are_made_again(finished: Finished, cli: Cli) -> None:
    books = Path(finished.root.uri) / BOOKS
    torn = [
        *sorted((books / "manifests" / "embeddings").rglob("condition=*.json"))[:3],
        *(books / "manifests" / "layer_metrics").rglob("condition=clean.json"),
        *sorted((books / "shards" / "prompts").rglob("*.parquet"))[:1],
        books / "runs" / "small.yaml",
    ]
    assert len(torn) == 6
    for path in torn:
        _damage(path, "cut")
    assert "cannot be read" in cli("status", finished.root.uri, "--verify", expect=1).stdout
    _lose(finished, "prompt_metrics")
    cli("run", str(finished.config), "--output", finished.root.uri)
    assert content(finished.root) == finished.content
    cli("status", finished.root.uri, "--verify")


def test_repair_deletes_what_is_damaged_and_what_came_of_it_and_prune_what_nobody_asks_for(
    finished: Finished, cli: Cli, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished.root.uri, output)
    root = Root(str(output))
    (clean,) = output.glob("embeddings/*/*/*/condition=clean")
    _damage(next(clean.iterdir()), "flipped")
    cli("repair", root.uri)
    assert not [*clean.iterdir()][1:]  # of two shards one is whole
    left = {each.partition.path for each in manifests(root)}
    gone = {path.split("/")[0] for path in finished.content.keys() - left}
    measured = {"layer_metrics", "own_metrics", "sensitivity"}
    made_of_it = {*measured, "probe_scores", "learning_curves"}
    ranked = {"choices", "correlations", "candidates", "ranking"}
    assert gone == {"embeddings", *made_of_it, "candidate_scores", "transforms", *ranked}
    cli("repair", root.uri)
    cli("run", str(finished.config), "--output", root.uri)
    assert content(root) == finished.content
    shutil.copy(finished.config.with_name("mine.py"), tmp_path)
    with edited(finished.config, tmp_path / "less.yaml") as values:
        values["curves"] = {"examples": [2]}
    other = (output / BOOKS / "runs" / "small.yaml").read_text()
    assert "repeat: []" in other  # every default is there
    cli("repair", root.uri, "--prune")
    assert content(root) == finished.content
    cli("run", str(tmp_path / "less.yaml"), "--output", root.uri)
    told = cli("repair", root.uri, "--prune").stdout
    assert "noise-0.20" in told
    assert {each.partition.keys.get("condition") for each in manifests(root)} == {
        *(None, "clean", "random-0.50", "view-00", "view-01")
    }


@pytest.mark.parametrize("table", list(KEYS))
def test_other_programs_read_every_table_without_an_option(
    finished: Finished, table: TableName
) -> None:
    folder = f"{finished.root.uri}/{table}"
    rows = sum(
        receipt.rows
        for each in manifests(finished.root)
        for receipt in each.receipts
        if each.partition.table == table and not each.removed
    )
    assert rows == len(pd.read_parquet(folder))
    assert rows == pl.read_parquet(folder).height
    assert rows == pq.read_table(folder).num_rows
    assert rows == len(duckdb.execute(f"SELECT * FROM '{folder}/**/*.parquet'").fetchall())


_IN_RAY = """
import json, sys, ray
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
root, *tables = sys.argv[1:]
print(json.dumps({each: ray.data.read_parquet(f"{root}/{each}").count() for each in tables}))
"""


def test_ray_data_reads_every_table_without_an_option(finished: Finished) -> None:
    expected = Counter[str]()
    for each in manifests(finished.root):
        expected[each.partition.table] += 0 if each.removed else each.rows
    told = subprocess.run(
        [sys.executable, "-c", _IN_RAY, finished.root.uri, *KEYS],
        env=offline_environment(),
        capture_output=True,
        text=True,
        timeout=400,
        check=True,
    )
    assert json.loads(told.stdout.splitlines()[-1]) == expected


def test_the_stages_after_extraction_start_their_own_cluster(
    finished: Finished, fresh_cli: Cli
) -> None:
    """Nothing before them has work, so nobody has started one for them."""
    _lose(finished, "modes", "prompt_traits", "sensitivity")
    fresh_cli("run", str(finished.config), "--output", finished.root.uri, "--engine", "ray")
    assert content(finished.root) == finished.content


def test_a_warm_run_writes_nothing_and_reads_manifests_and_a_models_files_once(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_anew = {name for name, table in TABLES.items() if table.stage == "rank"}

    def state() -> dict[Path, int]:
        folders = [Path(finished.root.uri, table) for table in set(KEYS) - made_anew]
        paths = [path for folder in folders for path in folder.rglob("*.*")]
        return {path: path.stat().st_mtime_ns for path in paths}

    before = state()
    assert len({path.relative_to(finished.root.uri).parts[0] for path in before}) > 8
    read, printed = Counter[str](), Counter[str]()
    plain_read, plain_prints = Root.read, Checkpoint.prints

    def counted_read(self: Root, key: str) -> bytes:
        read.update([key] if key.startswith(f"{BOOKS}/manifests/") else [])
        return plain_read(self, key)

    def counted_prints(self: Checkpoint) -> dict[str, str]:
        printed.update([self.root.uri])
        return plain_prints(self)

    monkeypatch.setattr(Root, "read", counted_read)
    monkeypatch.setattr(Checkpoint, "prints", counted_prints)
    nowhere = "127.0.0.1:1"  # joining this cluster would fail
    run = ["run", str(finished.config), "--output", finished.root.uri]
    assert main([*run, "--address", nowhere]) == 0
    assert state() == before
    assert set(read.values()) == {1}
    left = Counter(where.split("/")[0] for where in finished.content)
    assert Counter(key.split("/")[2] for key in read) == {**left, "layer_costs": 1}
    assert list(printed.values()) == [1]


def test_a_finished_run_is_looked_at_without_what_is_slow_to_import(
    finished: Finished, cli: Cli
) -> None:
    command = ["run", str(finished.config), "--output", finished.root.uri]
    cli(*command)
    program = f"""
import sys
from layerrank.jobs.cli import main
code = main({command!r})
sys.exit(code or " ".join({HEAVY!r} & sys.modules.keys()) or 0)
"""
    python = [sys.executable, "-c", program]
    done = subprocess.run(
        python, env=offline_environment(), cwd=PROJECT, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_report_is_drawn_again_when_a_file_or_a_table_of_it_changed(
    finished: Finished, cli: Cli
) -> None:
    command = ["run", str(finished.config), "--output", finished.root.uri]
    cli(*command)
    page = Path(finished.root.uri, "report", "small", "index.html")
    drawn, before = page.read_bytes(), page.stat().st_mtime_ns
    cli(*command)
    assert page.stat().st_mtime_ns == before
    page.write_bytes(drawn[:-1])
    cli(*command)
    assert page.read_bytes() == drawn
    (page.parent / "report.json").unlink()
    cli(*command)
    assert (page.parent / "report.json").exists()
    before = page.stat().st_mtime_ns
    _lose(finished, "layer_costs")  # measured anew, with other latencies
    cli(*command)
    assert page.stat().st_mtime_ns != before
    before = page.stat().st_mtime_ns
    cli("report", *command[1:])  # whoever asks for it gets it
    assert page.stat().st_mtime_ns != before
