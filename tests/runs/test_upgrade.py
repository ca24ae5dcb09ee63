"""A root of the first version that wrote format 2 is continued by every later one.

`golden/nights.tar.gz` is what it left of a nightly over two checkpoints, with config and texts. It
is never made anew: what fails here would fail in everybody's roots.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import yaml

from layerrank.storage.manifest import everything, load
from layerrank.storage.root import Root
from tests.conftest import Cli, edited
from tests.support.stored import ask
from tests.support.tiny import save_tiny, trained_on

pytestmark = pytest.mark.slow
STORED = Path(__file__).parents[1] / "golden" / "nights.tar.gz"


def test_a_stored_nightly_root_is_continued(tmp_path: Path, cli: Cli) -> None:
    with tarfile.open(STORED) as archive:
        archive.extractall(tmp_path, filter="data")
    root, config = Root(str(tmp_path / "out")), tmp_path / "run.yaml"
    before = {each.partition: each for each in everything(root)}
    assert {where.keys["revision"] for where in before if where.table == "ranking"} == {
        "step0",
        "step2",
    }
    cli("status", root.uri, "--verify")
    # The old checkpoints are long gone, and a new one is there.
    save_tiny(tmp_path / "tiny" / "step4", change=trained_on(4))
    with edited(config) as values:
        values["subjects"][0]["model"] = str(tmp_path / "tiny")
        values["datasets"][0]["source"]["files"] = str(tmp_path / "texts.jsonl")
    told = cli("nightly", str(config), "--output", root.uri).stdout
    assert "1 checkpoint, 1 without a ranking" in told
    assert "there is no earlier checkpoint" not in told
    # Nothing was made again, and the new night fits to the old ones.
    assert {where: load(root, where) for where in before} == before
    ranked = ask(root, "SELECT revision, count(*) FROM ranking GROUP BY ALL ORDER BY ALL")
    assert ranked == [("step0", 4), ("step2", 4), ("step4", 4)]
    (trend,) = yaml.safe_load(root.read("trend/small/trend.json"))["models"]
    assert [each["revision"] for each in trend["checkpoints"]] == ["step0", "step2", "step4"]
    cli("status", root.uri, "--verify")
