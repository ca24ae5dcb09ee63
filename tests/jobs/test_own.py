"""Metrics and tasks of the user's own: found, carried, computed, and what is wrong with them."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from layerrank.jobs import cli
from layerrank.jobs.cluster.errors import DONE, FAILED, USAGE, explain
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import OwnTextTask
from layerrank.jobs.config.run import RunConfig
from layerrank.jobs.config.stored import record
from layerrank.jobs.extract.stage import extract
from layerrank.jobs.measure.stage import measure
from layerrank.jobs.own import find
from layerrank.jobs.prepare.stage import prepare
from layerrank.jobs.probe.stage import TasksFailedError, probe
from layerrank.jobs.run import Run, partition
from layerrank.jobs.tasks.items import Given
from layerrank.jobs.tasks.own import score
from layerrank.own import FoldScore, Items, NoScoreError
from layerrank.storage.layers import LayerVectors
from layerrank.storage.manifest import Manifest, Manifests, SettingsConflictError
from layerrank.storage.partition import Partition
from layerrank.storage.root import Root
from tests.conftest import Cli, edited, write_config, write_texts
from tests.support.machines.here import run_here
from tests.support.places import PROJECT
from tests.support.stored import ask, content, manifests

# What the guide shows, a module and a config.
PYTHON, YAML = re.findall(
    r"```(?:python|yaml)\n(.*?)```", (PROJECT / "docs/own.md").read_text(), re.DOTALL
)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Forget the modules that a test has imported."""
    modules = {*sys.modules}
    yield
    for name in {*sys.modules} - modules:
        if not name.startswith("layerrank"):
            sys.modules.pop(name)


def write(folder: Path, **modules: str) -> None:
    """Write modules into a folder; `a__b` is the module b of the package a."""
    for name, source in modules.items():
        file = folder.joinpath(*name.split("__")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source), encoding="utf-8")


# where it is found, and how it travels


def test_a_module_travels_with_what_it_imports_beside_it(tmp_path: Path) -> None:
    write(
        tmp_path,
        pkg__metrics="""
            import json, numpy, other
            from . import near
            from .deep.down import VALUE
            from layerrank.own import Items
            def f(vectors_ND): return near.one() + VALUE + other.TEN
            """,
        pkg__near="def one():\n    from .late import ONE\n    return ONE",
        pkg__late="ONE = 1",
        pkg__deep__down="VALUE = 100",
        pkg__unused="raise SystemError",
        other="TEN = 10",
        layerrank__own="raise SystemError",
    )
    own = find("pkg.metrics:f", str(tmp_path))
    names = ["other", "pkg", "pkg.deep", "pkg.deep.down", "pkg.late", "pkg.metrics", "pkg.near"]
    assert [each.name for each in own.modules] == names
    assert "pkg" not in sys.modules  # found, and not imported
    carried = pickle.dumps(own)
    for file in tmp_path.rglob("*.py"):
        file.unlink()
    assert pickle.loads(carried).load()(None) == 111


def test_another_version_is_another_digest_and_is_imported_anew(tmp_path: Path) -> None:
    write(tmp_path, versioned="from helping import N\ndef f(v): return N", helping="N = 1")
    first = find("versioned:f", str(tmp_path))
    assert first.load()(None) == 1
    write(tmp_path, helping="N = 2")
    second = find("versioned:f", str(tmp_path))
    assert second.digest != first.digest
    assert [each.load()(None) for each in (second, first, second)] == [2, 1, 2]
    write(tmp_path, beside="N = 3")  # which it does not import
    assert find("versioned:f", str(tmp_path)) == second


def test_the_folder_of_the_config_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config", "shell"):
        write(tmp_path / name, placed=f"def f(v): return {name!r}")
    monkeypatch.chdir(tmp_path / "shell")
    assert find("placed:f", str(tmp_path / "config")).load()(None) == "config"
    assert find("placed:f", str(tmp_path)).load()(None) == "shell"


def test_what_is_installed_does_not_travel(tmp_path: Path) -> None:
    (tmp_path / "numpy").mkdir()  # without the module it is not what is meant
    own = find("numpy.linalg:norm", str(tmp_path))
    assert own.modules == ()
    assert own.load()([3.0, 4.0]) == 5.0
    assert find("layerrank.own:mean_score", str(tmp_path)).modules == ()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("absent.module:f", r"no module absent.module in .*beside.*nor|installed"),
        ("__main__:f", "no module __main__"),
        ("broken:f", "broken.py is no Python"),
    ],
)
def test_what_is_not_found_is_told(tmp_path: Path, name: str, problem: str) -> None:
    write(tmp_path, broken="def f(")
    with pytest.raises(ConfigError, match=problem):
        find(name, str(tmp_path))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("raising:f", "raising:f.*RuntimeError: at import"),
        ("lacking:f", "lacking.py.* no function or class f"),
        ("lacking:number", "an? int, no function, number"),
        ("yaml:f", "name of one that is needed here"),
    ],
)
def test_what_cannot_be_loaded_is_told(tmp_path: Path, name: str, problem: str) -> None:
    shadow = "def f(v): return 0"
    write(tmp_path, raising="raise RuntimeError('at import')", lacking="number = 3", yaml=shadow)
    with pytest.raises(ConfigError, match=problem):
        find(name, str(tmp_path)).load()
    assert sys.modules["yaml"] is yaml


def test_the_contract_is_imported_quickly() -> None:
    heavy = "{'torch', 'ray', 'sklearn', 'pyarrow', 'pydantic', 'transformers'} & {*sys.modules}"
    code = f"import sys, layerrank.own; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)


# in a run


def config_of(folder: Path, checkpoint: Path) -> Path:
    """Write the example of the guide over small texts, and a task on pairs."""
    write(folder, mine=PYTHON + PAIRED)
    given = yaml.safe_load(YAML)
    (task,) = given["datasets"][0]["tasks"]
    task |= {"label_column": "topic", "part_column": "part"}
    config = write_config(folder, checkpoint, measure=given["measure"], views={"count": 0})
    paired = {"name": "paired", "type": "mine:Alike", "folds": 2, "same_column": "same"}
    with edited(config) as values:
        columns = {"first_column": "query", "second_column": "other"}
        values["datasets"][0]["tasks"] = [task, {**paired, **columns}]
        values["extract"]["poolings"] = ["mean"]
        values["tokens"] = {"sample": 0}
    return config


PAIRED = '''

class Alike:
    """The mean cosine of pairs that are the same over that of all, by halves."""

    metric = "cosine"

    def score(self, items):
        sides = (items.vectors_ND, items.second_ND)
        a_ND, b_ND = (side / np.linalg.norm(side, axis=1)[:, None] for side in sides)
        same_N = np.array(items.columns["same"]) == "true"
        cosine_N, found = np.sum(a_ND * b_ND, axis=1), []
        for fold in range(items.folds):
            part_N = same_N & (np.arange(len(same_N)) * items.folds // len(same_N) == fold)
            value, count = float(cosine_N[part_N].mean()), int(part_N.sum())
            found.append(FoldScore(fold, self.metric, value, 0, count))
        return found
'''


def run_of(folder: Path, checkpoint: Path, **changes: Any) -> Run:  # noqa: ANN401
    """Return a run in this process over small texts, with what is the user's own in `mine.py`."""
    texts = str(write_texts(folder / "texts.jsonl"))
    dataset = {"name": "topics", "source": {"files": texts}, "tasks": changes.pop("tasks", [])}
    blocks = {"views": {"count": 0}, "tokens": {"sample": 0}, "candidates": None, **changes}
    run = run_here(folder / "out", checkpoint, [dataset], **blocks)
    return replace(run, folder=str(folder))


def computed(run: Run) -> Run:
    """Take a run through the stages up to the scores."""
    for stage in (prepare, extract, measure, probe):
        stage(run)
    return run


def test_a_metric_of_ones_own_is_as_the_one_of_ours(tmp_path: Path, checkpoint: Path) -> None:
    write(tmp_path, mine=PYTHON + "\n\ndef undefined(vectors_ND): return float('nan')\n")
    asked = ["effective_rank", "mine:effective_rank", "mine:undefined"]
    run = computed(
        run_of(tmp_path, checkpoint, measure={"metrics": asked}, conditions={"noise": [0.5]})
    )
    both = ask(
        run.root,
        "SELECT l.value, o.value, l.n_prompts, o.n_prompts FROM layer_metrics l JOIN own_metrics o "
        "USING (model, revision, dataset, condition, layer, norm, pooling) "
        "WHERE l.metric = 'effective_rank' AND o.metric = 'mine:effective_rank' "
        "AND o.variant = 'rank'",
    )
    assert len(both) == 2 * 4  # conditions and layers
    for ours, own, *counts in both:
        assert own == pytest.approx(ours, rel=1e-5)
        assert counts == [60, 60]
    undefined = "SELECT DISTINCT isnan(value), reason FROM own_metrics WHERE metric LIKE '%undef%'"
    assert ask(run.root, undefined) == [(True, "the function gave nan")]


def test_functions_are_made_one_by_one(tmp_path: Path, checkpoint: Path) -> None:
    def again(*names: str, overwrite: bool = False) -> dict[Partition, Manifest]:
        asked = {"measure": {"metrics": ["anisotropy", *names]}, "conditions": {"noise": [0.5]}}
        run = run_of(tmp_path, checkpoint, **asked)
        computed(replace(run, overwrite=overwrite))
        return {each.partition: each for each in manifests(run.root)}

    write(tmp_path, mine=PYTHON, second="def count(vectors_ND): return len(vectors_ND)")
    before = again("mine:effective_rank")
    after = again("mine:effective_rank", "second:count")
    assert {where.keys["metric"] for where in after.keys() - before.keys()} == {"second:count"}
    assert {where: after[where] for where in before} == before  # what is ours too
    write(tmp_path, second="def count(vectors_ND): return -len(vectors_ND)")
    with pytest.raises(SettingsConflictError, match=r"metric second:count .*--overwrite"):
        again("mine:effective_rank", "second:count")
    now = again("mine:effective_rank", "second:count", overwrite=True)
    assert {where: now[where] for where in before} == before
    asked = "SELECT DISTINCT value FROM own_metrics WHERE metric = 'second:count'"
    assert ask(Root(str(tmp_path / "out")), asked) == [(-60.0,)]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("return vectors_ND.mean(axis=0)", r"mine:f, layer 0 of dataset topics: .*shape \(32,\)"),
        ("return vectors_ND['x']", "mine:f, layer 0 of dataset topics: IndexError"),
        ("vectors_ND[0] = 0", "read-only"),
    ],
)
def test_a_metric_that_fails_is_told_with_its_place(
    tmp_path: Path, checkpoint: Path, source: str, problem: str
) -> None:
    write(tmp_path, mine=f"def f(vectors_ND):\n    {source}")
    run = run_of(tmp_path, checkpoint, measure={"metrics": ["effective_rank", "mine:f"]})
    prepare(run)
    extract(run)
    with pytest.raises(ValueError, match=problem) as raised:
        measure(run)
    assert explain(raised.value)[1] == FAILED
    assert run.manifests.load(partition("layer_metrics", *next(run.pairs())))  # the rest stands


def test_what_is_wrong_with_a_task_is_told_before_any_model_is_run(
    tmp_path: Path, checkpoint: Path
) -> None:
    write(tmp_path, mine=PYTHON)
    task = {"name": "t", "type": "mine:NearestCentre", "label_column": "topic"}
    both = {**task, "part_column": "part"}
    for wrong, problem in (
        ({**both, "lest": 3}, "task t: mine:NearestCentre .*options .lest.: TypeError"),
        ({**both, "least": 100}, "task t: label 'kitchen' has fewer than 100"),
        (task, "task t: KeyError: 'part'"),
        ({**task, "type": "mine:effective_rank"}, "cannot be made with its options"),
        ({**task, "type": "mine:Items"}, "options .none.: TypeError"),
        ({**task, "type": "mine:dict_"}, "no function or class dict_"),
    ):
        run = run_of(tmp_path, checkpoint, tasks=[wrong])
        with pytest.raises(ConfigError, match=problem) as raised:
            prepare(run)
        assert explain(raised.value)[1] == USAGE
        assert not run.manifests.load(partition("tasks", "t", "topics"))


def test_a_metric_that_is_not_there_is_told_before_any_text_is_read(
    tmp_path: Path, checkpoint: Path
) -> None:
    write(tmp_path, mine=PYTHON)
    run = run_of(tmp_path, checkpoint, measure={"metrics": ["mine:efective_rank"]})
    with pytest.raises(ConfigError, match="no function or class efective_rank"):
        prepare(run)
    assert not manifests(run.root)


def test_items_without_a_vector_are_not_scored() -> None:
    class Sees:
        metric = "share"

        def score(self, items: Items) -> list[FoldScore]:
            cells = [float(cell) for cell in items.columns["n"]]
            assert items.vectors_ND[:, 0].tolist() == cells
            return [FoldScore(0, self.metric, 1.0, 0, len(cells))]

    task = OwnTextTask.model_validate({"name": "t", "type": "m:C", "n_column": "c"})
    labels = [json.dumps({"n": str(n)}) for n in (5, 3, 4)]
    items = pa.table({"row": [0, 1, 2], "prompt_id": [5, 3, 4], "label": labels})
    for known, count in (([3, 4, 5], 3), ([3, 5], 2), ([], 0)):
        vectors = LayerVectors(np.array(known, np.int64), np.array(known, np.float32)[:, None])
        given = Given(items, vectors, vectors, seed=0, replicates=0, first=0, folds=1)
        if count:
            assert [each.n_test for each in score(Sees(), task, given)] == [count]
        else:
            with pytest.raises(NoScoreError, match="no item has a vector"):
                score(Sees(), task, given)


def test_a_task_that_fails_is_named_and_the_others_are_scored(
    tmp_path: Path, checkpoint: Path
) -> None:
    write(
        tmp_path,
        mine="""
            from layerrank.own import FoldScore, NoScoreError
            class Wrong:
                metric = "share"
                def score(self, items):
                    return [FoldScore(0, "share", 37.5, 0, len(items.vectors_ND))]
            class Undefined(Wrong):
                def score(self, items):
                    raise NoScoreError("nothing to see")
            """,
    )
    names = ("wrong", "undefined")
    tasks = [{"name": name, "type": f"mine:{name.title()}"} for name in names]
    run = run_of(tmp_path, checkpoint, tasks=tasks, measure={"metrics": []})
    with pytest.raises(
        TasksFailedError, match=r"wrong: layer 0: mine:Wrong: .*37.5 .*from -1 to 1"
    ):
        computed(run)
    found = ask(run.root, "SELECT DISTINCT task, metric, isnan(value), reason FROM probe_scores")
    assert found == [("undefined", "share", True, "nothing to see")]


def test_a_report_is_made_again_without_the_source(
    tmp_path: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path, mine=PYTHON)
    task = {"name": "nearest", "type": "mine:NearestCentre", "label_column": "topic"}
    run = run_of(tmp_path, checkpoint, tasks=[{**task, "part_column": "part"}])
    record(run.config, run.config, run.root)
    (tmp_path / "shell").mkdir()
    monkeypatch.chdir(tmp_path / "shell")
    computed(run)
    (tmp_path / "mine.py").unlink()
    assert cli.main(["report", run.root.uri]) == DONE, capsys.readouterr().err
    assert "mine:NearestCentre" in (tmp_path / "out/report/small/index.html").read_text()
    where = partition("probe_scores", *next(run.pairs()), "nearest")
    Manifests(run.root).erase(where)
    assert cli.main(["report", run.root.uri]) != DONE
    assert "nearest is not scored yet" in capsys.readouterr().err


def test_without_anything_of_ones_own_settings_are_as_they_were() -> None:
    task = {"name": "a", "type": "clustering", "label_column": "c"}
    values: dict[str, Any] = {
        "name": "n",
        "subjects": [{"model": "m"}],
        "datasets": [{"name": "d", "source": {"files": "f"}, "tasks": [task]}],
    }
    config = RunConfig.model_validate(values)
    (found,) = config.datasets[0].tasks
    assert found.of_items() == {
        "name": "a",
        "type": "clustering",
        "label_column": "c",
        "split_column": None,
    }
    with_own = {**task, "type": "m:C", "folds": 3, "depth": [1, 2], "embeddings": "x"}
    values["datasets"] = [{**values["datasets"][0], "tasks": [with_own]}]
    (own,) = RunConfig.model_validate(values).datasets[0].tasks
    # What the class does with the items is no setting of theirs.
    assert own.of_items() == {
        "own": {"name": "a", "type": "m:C", "label_column": "c", "text_column": None}
    }
    assert own.options == {"depth": [1, 2], "embeddings": "x"}  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_run_is_the_same_on_both_engines_and_is_resumed(
    tmp_path: Path, checkpoint: Path, cli: Cli
) -> None:
    config = config_of(tmp_path, checkpoint)
    roots = {}
    for engine in ("process", "ray"):
        root = roots[engine] = Root(str(tmp_path / engine))
        cli("run", str(config), "--output", root.uri, "--engine", engine)
    assert content(roots["process"]) == content(roots["ray"])
    root = roots["process"]
    scores = dict(
        ask(
            root,
            "SELECT task, count(*) FROM probe_scores WHERE NOT isnan(value) AND variant = 'raw' "
            "GROUP BY ALL",
        )
    )
    assert scores == {"nearest": 2 * 4, "paired": 2 * 4 * 2}  # norms, layers, folds
    assert ask(
        root, "SELECT DISTINCT len(replicates) FROM probe_scores WHERE task = 'nearest'"
    ) == [(200,)]
    page = (tmp_path / "process/report/small/index.html").read_text()
    assert "mine:NearestCentre" in page
    assert "mine:effective_rank" in page
    before = content(root)
    of_task = "SELECT COLUMNS(* EXCLUDE replicates) FROM probe_scores WHERE task = "
    asked = ["FROM own_metrics", f"{of_task}'paired'", f"{of_task}'nearest'"]
    told_by = {each: ask(root, f"{each} ORDER BY ALL") for each in asked}
    cli("run", str(config), "--output", root.uri, "--engine", "process")
    cli("repair", root.uri, "--prune")
    assert content(root) == before
    assert "own_metrics" in cli("plan", str(config), "--output", str(tmp_path / "new")).stdout
    source = tmp_path / "mine.py"
    source.write_text(source.read_text().replace("argmin", "argmax"))
    told = cli("run", str(config), "--output", root.uri, "--engine", "process", expect=2).stderr
    assert "mine:effective_rank" in told  # which is of the same module
    cli("run", str(config), "--output", root.uri, "--engine", "process", "--overwrite")
    after = content(root)
    changed = {where.partition("/")[0] for where in before if before[where] != after[where]}
    assert changed >= {"own_metrics", "probe_scores", "candidate_scores", "ranking"}
    assert not changed & {"prompts", "tasks", "embeddings", "layer_metrics", "transforms"}
    assert [ask(root, f"{each} ORDER BY ALL") == values for each, values in told_by.items()] == [
        True,
        True,
        False,
    ]
    source.unlink()
    told = cli("run", str(config), "--output", root.uri, "--engine", "process", expect=2).stderr
    assert f"no module mine in {tmp_path}" in told
    cli("status", root.uri)
    cli("query", root.uri, "SELECT count(*) FROM own_metrics")
