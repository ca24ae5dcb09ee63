"""A finished run that lost tables: the same command makes them again, with the same bytes."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from jobs.run import TABLES
from storage.checkpoint import Checkpoint
from storage.partition import KEYS, MANIFEST, TableName, partitions
from storage.root import Root
from tests.conftest import Cli, edited, write_config
from tests.support.stored import content

pytestmark = pytest.mark.slow
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
        values["measure"] = {"metrics": ["prompt_entropy", "rankme", "infonce"]}
        values["conditions"] = {"random": [0, 0.5]}
        values["curves"] = {"examples": [2], "noise": [0.2]}
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
        read.update([key] if key.endswith(MANIFEST) else [])
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
    expected = {table: count for table, count in left.items() if table not in made_anew}
    assert Counter(key.split("/")[0] for key in read) == {**expected, "layer_costs": 1}
    assert list(printed.values()) == [1]
