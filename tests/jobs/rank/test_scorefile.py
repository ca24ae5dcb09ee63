"""Scores from elsewhere: files and folders as people have them, and what is wrong with some."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from layerrank.jobs.cli import main
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.rank import score_file
from layerrank.jobs.rank.score_file import rank_file
from layerrank.storage.manifest import require
from layerrank.storage.partition import Partition
from layerrank.storage.root import Root
from tests.support.places import PROJECT

GOLDEN = PROJECT / "jobs/recipes/pythia-410m-scores.parquet"
HEAD = "model,revision,layer,task,task_type,fold,score"
ROWS = [
    f"org/tiny,main,{layer},{task},{kind},{fold},{0.5 + layer / 10 + fold / 100}"
    for task, kind in (("emotion", "classification"), ("topics", "clustering"))
    for layer in range(3)
    for fold in range(2)
]


def written(tmp_path: Path, lines: Sequence[str], head: str = HEAD) -> Path:
    path = tmp_path / "scores.csv"
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return path


def result(folder: Path, layer: str, task: str, scores: dict[str, Any]) -> Path:
    path = folder / layer / "org__tiny" / "main" / f"{task}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"task_name": task, "scores": scores}), encoding="utf-8")
    return path


def subsets(*scores: float | None) -> list[dict[str, Any]]:
    return [
        {"main_score": score, "hf_subset": f"s{n}", "languages": ["eng-Latn"]}
        for n, score in enumerate(scores)
    ]


def test_the_published_scores_of_pythia_410m_are_read_whole() -> None:
    (found,) = rank_file(GOLDEN)
    assert len(found.tasks) == 32
    assert {task.scores.task_type for task in found.tasks} == {
        "Classification", "Clustering", "PairClassification", "Reranking", "STS"
    }  # fmt: skip
    assert not found.notes


def test_the_command_tells_and_stores_the_ranking_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["rank", "--scores", str(GOLDEN)]
    assert main([*command, "--output", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    (chosen,) = [line.split() for line in told.splitlines() if line.startswith(">")]
    assert chosen[1:9] == ["17", "51.9", "+5.1", "71", "%", "3.7", "to", "6.5"]
    for number in ("53.4 points", "Use layer 17", "saves 29 %"):
        assert number in told
    assert (tmp_path / "report" / "index.html").exists()

    where = Partition("ranking", ("Pythia-410m", "main", GOLDEN.stem))
    root = Root(str(tmp_path))
    (shard,) = require(root, where).shards(root)
    table = shard.read()
    rows = {row["layer"]: row for row in table.to_pylist()}
    assert sorted(rows) == list(range(25))
    assert [layer for layer, row in rows.items() if row["recommended"]] == [17]
    assert (rows[17]["mean_rank"], rows[17]["p_max"]) == (5.6875, 1e-4)  # the least of 10,000 flips
    chosen_gains = {layer: row["gain_chosen"] for layer, row in rows.items()}
    assert chosen_gains.pop(17) == pytest.approx(rows[17]["gain"])  # 17 whichever task is out
    assert all(math.isnan(gain) for gain in chosen_gains.values())
    assert rows[17]["cost"] == pytest.approx(17 / 24)
    front = [layer for layer, row in rows.items() if row["pareto"]]
    assert (front[0], front[-1]) == (0, 17)
    assert sum(row["taken"] for row in rows.values()) == pytest.approx(1)

    assert main([*command, "--policy", "last_unless_significant"]) == 0
    assert "Use layer 17" in capsys.readouterr().out
    assert main(["rank", "--scores", str(tmp_path / "nowhere.csv")]) == 2
    assert "nowhere.csv" in capsys.readouterr().err


def test_csv_and_parquet_in_any_order_are_the_same(tmp_path: Path) -> None:
    path = written(tmp_path, ROWS)
    first = repr(rank_file(path))
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    assert repr(rank_file(written(tmp_path, shuffled))) == first
    typed = pa_csv.read_csv(path)
    assert typed.schema.field("layer").type == pa.int64()
    words = typed.cast(pa.schema([(name, pa.large_string()) for name in typed.column_names]))
    for table in (typed, words):
        pq.write_table(table, tmp_path / "scores.parquet")
        assert repr(rank_file(str(tmp_path / "scores.parquet"))) == first


def test_folds_are_averaged_and_kept_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    (scored,) = rank_file(written(tmp_path, ROWS))
    assert [(task.label, task.scores.task_type) for task in scored.tasks] == [
        ("emotion", "classification"),
        ("topics", "clustering"),
    ]
    task = scored.tasks[0].scores
    assert task.score_L == pytest.approx([0.505, 0.605, 0.705])
    assert task.resampled_LR == pytest.approx(np.array([[0.5, 0.51], [0.6, 0.61], [0.7, 0.71]]))
    assert task.resampled == "folds"
    lines = [f"m,0,t,{fold},{fold / 100}" for fold in (10, 9, 2, 11)]
    (scored,) = rank_file(written(tmp_path, lines, "model,layer,task,fold,score"))
    assert scored.tasks[0].scores.resampled_LR[0].tolist() == [0.02, 0.09, 0.1, 0.11]


def test_only_the_needed_columns_and_several_models(tmp_path: Path) -> None:
    lines = [f"{model},{layer},sts,{0.1 * layer}" for model in ("b", "a") for layer in (2, 10, 0)]
    ranked = rank_file(
        written(tmp_path, [*lines, "b,10,pairs,", "b,2,pairs,0.3"], "model,layer,task,score")
    )
    assert [(each.subject.name, each.subject.revision) for each in ranked] == [("a", ""), ("b", "")]
    for found in ranked:
        assert found.layers == [0, 2, 10]
        task = found.tasks[-1]
        assert task.scores.resampled_LR.shape == (3, 0)
        assert math.isnan(found.evidence.layers[0].gain_low)
        assert (found.verdict.kind, found.verdict.layer) == ("keep_last", 10)
    first, second = ranked
    assert (first.notes, first.gaps) == ([], [])
    assert second.evidence.without_last == ["pairs"]
    (gap,) = second.gaps
    assert all(words in gap for words in ("pairs", "(10)"))
    assert gap in second.sentence


def test_nulls_and_nan_are_no_scores_and_whole_floats_are_folds(tmp_path: Path) -> None:
    records = [
        {"model": "m", "layer": layer, "task": task, "score": score, "fold": fold}
        for layer in range(2)
        for task, fold, score in (
            ("good", None, 0.5),
            ("folds", 0.0, 0.2),
            ("folds", 1.0, 0.4 if layer else None),
            ("bad", None, 0.1 if layer else math.nan),
        )
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "scores.parquet")
    (scored,) = rank_file(tmp_path / "scores.parquet")
    scores = {task.label: task.scores.score_L.tolist() for task in scored.tasks}
    assert scores["good"] == [0.5, 0.5]
    assert scores["folds"] == [0.2, 0.2]  # fold 0, which both layers have
    assert math.isnan(scores["bad"][0])
    assert [row.n_tasks for row in scored.evidence.layers] == [2, 3]
    assert re.search("task folds 1 of 2 folds .* layer 0", scored.sentence)
    assert "bad in layer 0" in scored.sentence


@pytest.mark.parametrize(
    ("lines", "kind", "reason", "said"),
    [
        (["m,0,a,0.5", "m,1,a,0.4"], "not_enough_evidence", "single_score", "1 task "),
        (["m,3,a,0.5", "m,3,b,0.6"], "keep_last", "none_higher", "no other layer"),
        (["m,0,a,0.5", "m,1,b,0.5"], "keep_last", "none_higher", "1 task is not"),
        (["m,0,a,0.5", "m,0,b,0.5", "m,1,a,"], "not_enough_evidence", "no_last", "in 0 of 2"),
        (["m,0,a,0.5", "m,0,b,0.5", "m,0,c,1", "m,1,a,0.4"], "not_enough_evidence", "no_last",
         "in 1 of 3 tasks"),
        (["m,0,a,nan", "m,1,a,nan"], "not_enough_evidence", "no_score", "any layer"),
    ],
)  # fmt: skip
def test_what_hardly_can_be_ranked_has_an_honest_answer(
    tmp_path: Path, lines: list[str], kind: str, reason: str, said: str
) -> None:
    path = written(tmp_path, lines, "model,layer,task,score")
    (found,) = rank_file(path)
    assert (found.verdict.kind, found.verdict.reason) == (kind, reason)
    assert said in found.sentence
    assert main(["rank", "--scores", str(path), "--output", str(tmp_path / "out")]) == 0


def test_a_grid_with_holes_is_ranked_on_what_is_there(tmp_path: Path) -> None:
    # Layer 1 is the best on the one task that every layer has; layer 2 on all that it has.
    gains = {1: {"a": 0.3, "b": -0.1, "c": -0.1}, 2: {"a": 0.1, "b": 0.2, "c": 0.2, "d": 0.2}}
    lines = [f"m,3,{task},0.5" for task in "abcd"] + ["m,0,a,0.9"]
    lines += [f"m,{n},{task},{0.5 + g}" for n, of in gains.items() for task, g in of.items()]
    (found,) = rank_file(written(tmp_path, lines, "model,layer,task,score"))
    rows = {row.layer: row for row in found.evidence.layers}
    assert {layer: row.n_tasks for layer, row in rows.items()} == {0: 1, 1: 3, 2: 4, 3: 4}
    assert {layer: row.rank for layer, row in rows.items()} == {0: None, 1: 2, 2: 1, 3: 3}
    assert found.verdict.layer == 2
    assert (rows[1].gain, rows[2].gain) == pytest.approx((0.1 / 3, 0.7 / 4))
    for words in (
        "Layer 0 is not recommended",
        "1 of 4 tasks",
        "Layer 1 lacks tasks",
        "d in layer 1",
    ):
        assert words in found.sentence


def test_without_the_last_layer_no_other_is_called_thin_or_unlabelled(tmp_path: Path) -> None:
    lines = [f"m,{layer},{task},0.5" for layer in range(2) for task in "ab"] + ["m,2,a,", "m,2,b,"]
    path = written(tmp_path, lines, "model,layer,task,score")
    (found,) = rank_file(path)
    assert found.evidence.thin == []
    assert "not recommended" not in found.sentence
    assert main(["rank", "--scores", str(path), "--output", str(tmp_path / "out")]) == 0
    assert "Nothing is labelled" not in (tmp_path / "out/report/scores/index.html").read_text()


def test_a_mean_over_easier_tasks_is_not_drawn_higher(tmp_path: Path) -> None:
    # Layer 0 lacks the two tasks that are easy for every layer: it gains most with the lowest mean.
    last = {"a": 0.2, "b": 0.2, "c": 0.9, "d": 0.9}
    lines = [f"m,2,{task},{score}" for task, score in last.items()]
    lines += [f"m,0,{task},0.4" for task in "ab"]
    lines += [f"m,1,{task},{score + 0.05}" for task, score in last.items()]
    (found,) = rank_file(written(tmp_path, lines, "model,layer,task,score"))
    rows = {row["layer"]: row for row in found.rows}
    assert rows[0]["score"] == pytest.approx(0.4)
    assert rows[0]["aligned"] == pytest.approx(0.55 + 0.2)
    assert [row["layer"] for row in found.best_first] == [0, 1, 2]


def test_folds_that_no_two_layers_share_are_no_task(tmp_path: Path) -> None:
    lines = ["m,0,t,0,0.5", "m,1,t,1,0.6", "m,0,u,0,0.5", "m,1,u,0,0.6"]
    (found,) = rank_file(written(tmp_path, lines, "model,layer,task,fold,score"))
    assert found.evidence.tasks == ["u"]
    assert "no fold in common" in found.sentence


@pytest.mark.parametrize(
    ("lines", "head", "message"),
    [
        (ROWS, HEAD.replace("score", "value"),
         "no column 'score'; it has: model, .*, value. Needed: model, layer, task, score"),
        (["m,1,t,0.5"], "name,layer,task,score", "no column 'model'; it has: name, layer"),
        (["m,1,t,0.5,0.6"], "model,layer,task,score,score", "two columns 'score'"),
        ([], HEAD, "has no rows"),
        (["m,1,t"], "model,layer,task,score", "cannot read .* as csv: .*[Ee]xpected 4 columns"),
        ([*ROWS, "m,main,x,t,,0,0.5"], HEAD, "row 13: column 'layer' is 'x', not a whole number"),
        (["m,main,-1,t,,0,0.5"], HEAD, "row 1: column 'layer' is '-1'"),
        (["m,main,1.5,t,,0,0.5"], HEAD, "row 1: column 'layer' is '1.5'"),
        (["m,main,nan,t,,0,0.5"], HEAD, "row 1: column 'layer' is 'nan'"),
        (["m,main,1,t,,0,good"], HEAD, "row 1: column 'score' is 'good', not a number"),
        (["m,main,1,t,,0,51.9"], HEAD, "row 1: column 'score' is 51.9, outside -1..1; .* percent"),
        (["m,main,1,t,,0,inf"], HEAD, "row 1: column 'score' is inf, outside"),
        ([",main,1,t,,0,0.5"], HEAD, "row 1: column 'model' is empty"),
        (["m,main,1,,,0,0.5"], HEAD, "row 1: column 'task' is empty"),
        ([*ROWS, ROWS[3]], HEAD,
         "org/tiny at main, layer 1, task emotion, fold 1 has two scores, in row 4 and row 13$"),
        (["m,1,t,0.5,raw", "m,1,t,0.6,l2"], "model,layer,task,score,variant",
         "m, layer 1, task t has two scores, in row 1 and row 2; columns .* not read: variant"),
        (["m,0,t,0.5,sts", "m,1,t,0.6,pair"], "model,layer,task,score,task_type",
         "task t has several task types: pair, sts"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_ranked(
    tmp_path: Path, lines: list[str], head: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        rank_file(written(tmp_path, lines, head))
    assert "scores.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.csv", None, r"there is no file or folder .*absent\.csv"),
        ("scores.xlsx", b"x", r"scores\.xlsx: its name ends in neither"),
        ("scores.parquet", b"x", r"cannot read .*scores\.parquet as parquet"),
        ("empty.csv", b"", r"cannot read .*empty\.csv as csv: Empty"),
        ("", None, "holds no mteb results: expected files layer-07/"),
    ],
)
def test_places_that_cannot_be_read(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        rank_file(tmp_path / name)


def test_a_byte_order_mark_and_numbers_as_text(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_bytes("\ufeffmodel,revision,layer,task,score\r\nm,007,1,é,5e-1\r\n".encode())
    (scored,) = rank_file(path)
    assert (str(scored.subject), scored.tasks[0].label) == ("m at 007", "é")
    assert scored.tasks[0].scores.score_L.tolist() == [0.5]


def test_a_folder_of_mteb_results(tmp_path: Path) -> None:
    for layer in range(3):
        name = f"layer-{layer:02}"
        emotion = {"test": subsets(0.5, 0.3 + layer / 10), "dev": subsets(0.9)}
        result(tmp_path, name, "Emotion", emotion)
        result(tmp_path, f"{name}/results", "STS22", {"dev": subsets(-0.1)})
        result(tmp_path, name, "Sparse", {"test": subsets(None if layer == 1 else 0.5)})
        (tmp_path / name / "org__tiny" / "main" / "model_meta.json").write_text("{}")
    (tmp_path / "summary.json").write_text("not a result")
    (scored,) = rank_file(tmp_path)
    assert (str(scored.subject), scored.layers) == ("org/tiny at main", [0, 1, 2])
    assert [task.label for task in scored.tasks] == ["Emotion", "STS22", "Sparse"]
    assert scored.tasks[0].scores.score_L == pytest.approx([0.4, 0.45, 0.5])
    assert scored.tasks[1].scores.score_L == pytest.approx([-0.1] * 3)
    (split,) = scored.notes
    assert re.search("STS22 .*test.* dev", split)
    assert "Sparse in layer 1" in scored.sentence
    assert scored.verdict.layer == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"layer-01/org__tiny/main/Emotion\.json is not JSON"),
        ("[]", r"Emotion\.json is not an mteb task result: it has no scores"),
        ('{"scores": {"dev": [], "train": []}}', r"Emotion\.json has no test split; it has: dev"),
        ('{"scores": {"test": [{"f1": 1}]}}', r"Emotion\.json: a subset .* has no main_score"),
        ('{"scores": {"test": [{"main_score": 51, "hf_subset": "en"}]}}',
         r"Emotion\.json: main_score of en is 51, outside -1\.\.1"),
    ],
)  # fmt: skip
def test_mteb_results_that_cannot_be_ranked(tmp_path: Path, content: str, message: str) -> None:
    result(tmp_path, "layer-01", "Emotion", {}).write_text(content)
    with pytest.raises(ConfigError, match=message):
        rank_file(tmp_path)


def test_mteb_writes_what_is_read_once(tmp_path: Path) -> None:
    mteb = pytest.importorskip("mteb")
    about = {"dataset_revision": "1", "mteb_version": "2.26.24", "evaluation_time": 1.0}
    for layer in range(2):
        path = result(tmp_path, f"layer-{layer:02}", "Own", {})
        scores = {"test": subsets(0.25, 0.5 + layer / 4)}
        mteb.TaskResult(task_name="Own", scores=scores, **about).to_disk(path)
    (scored,) = rank_file(tmp_path)
    assert scored.tasks[0].scores.score_L == pytest.approx([0.375, 0.5])
    result(tmp_path, "other/layer-1", "Own", {"test": subsets(0.5)})
    with pytest.raises(ConfigError, match=r"two scores, in layer-01/.* and other/layer-1/.*json"):
        rank_file(tmp_path)


def test_a_file_that_becomes_too_large_for_scores_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = pa.DictionaryArray.from_arrays(pa.array([0] * 99, pa.int32()), ["m" * 100_000])
    columns = {"model": models, "layer": range(99), "task": ["a"] * 99, "score": [0.5] * 99}
    path = tmp_path / "scores.parquet"
    pq.write_table(pa.table(columns), path)
    monkeypatch.setattr(score_file, "_LARGEST", 1 << 20)
    with pytest.raises(ConfigError, match="becomes more than 1 MiB"):
        rank_file(path)
    monkeypatch.setattr(score_file, "_MOST_ROWS", 5)
    for given in (path, written(tmp_path, ROWS)):
        with pytest.raises(ConfigError, match="at most 5 scores"):
            rank_file(given)
