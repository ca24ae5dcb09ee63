"""What bad or odd input gets from the real command line: one clear line, or a run that works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from operators.seeding import prompt_id
from storage.manifest import Manifest, require
from storage.partition import KEYS, Partition, partitions
from storage.root import Root
from storage.sql import connect
from tests.conftest import Cli, write_config
from tests.tiny import save_tiny, tiny_tokenizer

pytestmark = pytest.mark.slow
NO_VIEWS: dict[str, Any] = {
    "views": {"count": 0},
    "measure": {
        "metrics": ["prompt_entropy", "curvature", "dataset_entropy"],
        "token_metrics": "stored",
    },
}
EXTRACTED = ("embeddings", "tokens")
# Metric -> every value NaN, every reason given, layers, for a corpus of one prompt.
ONE_PROMPT = {
    "alpha_req": (True, True, 2),
    "anisotropy": (True, True, 2),
    "cka_last": (True, True, 2),
    "cka_previous": (True, True, 1),
    "curvature": (False, False, 2),
    "dataset_entropy": (True, True, 2),
    "dime": (True, True, 2),
    "effective_rank": (False, False, 2),
    "first_token_share": (False, False, 2),
    "infonce": (True, True, 2),
    "largest_coordinate": (False, False, 2),
    "lidar": (True, True, 2),
    "mean_norm": (False, False, 2),
    "participation_ratio": (True, True, 2),
    "prompt_entropy": (False, False, 2),
    "rankme": (False, False, 2),
    "stable_rank": (True, True, 2),
    "twonn": (True, True, 2),
}


def _dataset(path: Path, rows: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return [{"name": "odd", "source": {"files": str(path)}, **changes}]


def _refused(cli: Cli, config: Path, output: Path, code: int = 2) -> str:
    """Run, expect the code, one line of error, no report, and return the line."""
    error = cli("run", str(config), "--output", str(output), expect=code).stderr.strip()
    lines = [line for line in error.splitlines() if line.startswith("layerrank: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    assert not (output / "report").exists()
    return lines[0]


def test_unloadable_model_and_unwritable_root_are_refused_before_anything(
    cli: Cli, tmp_path: Path, checkpoint: Path
) -> None:
    config = write_config(tmp_path, checkpoint, subjects=[{"model": "no/such-model"}])
    assert "cannot load model no/such-model" in _refused(cli, config, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    config = write_config(tmp_path, checkpoint)
    assert "cannot write to the output root" in _refused(cli, config, tmp_path / "file" / "out")


def test_missing_column_says_which_exist(cli: Cli, tmp_path: Path, checkpoint: Path) -> None:
    datasets = _dataset(tmp_path / "a.jsonl", [{"body": "x", "label": "y"}])
    line = _refused(cli, write_config(tmp_path, checkpoint, datasets=datasets), tmp_path / "out")
    assert "dataset odd" in line
    assert "has no column 'text'; it has: body, label" in line


def test_nothing_left_after_the_filters(cli: Cli, tmp_path: Path, checkpoint: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": None}, {"text": ""}, {"text": " \n"}, {"text": "short"}]
    datasets = _dataset(tmp_path / "a.jsonl", rows, min_chars=20)
    line = _refused(cli, write_config(tmp_path, checkpoint, datasets=datasets), tmp_path / "out")
    assert "no prompt is left after the filters" in line
    assert "skipped_null: 1" in line
    assert partitions(Root(str(tmp_path / "out")), "prompts") == []


def test_plan_that_can_never_be_scheduled_is_refused(
    cli: Cli, tmp_path: Path, checkpoint: Path
) -> None:
    datasets = _dataset(
        tmp_path / "a.jsonl", [{"text": f"text {n}"} for n in range(600)], shard_prompts=5
    )
    config = write_config(
        tmp_path, checkpoint, datasets=datasets, extract={"workers": 90}, **NO_VIEWS
    )
    assert "Lower extract.workers" in _refused(cli, config, tmp_path / "out")


def test_checkpoint_without_weights_fails_midway_and_publishes_nothing(
    cli: Cli, tmp_path: Path, checkpoint: Path
) -> None:
    folder = save_tiny(tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    datasets = _dataset(tmp_path / "a.jsonl", [{"text": "a text"}])
    config = write_config(
        tmp_path, checkpoint, datasets=datasets, subjects=[{"model": str(folder)}], **NO_VIEWS
    )
    line = _refused(cli, config, tmp_path / "out")
    assert "safetensors" in line
    assert str(folder) in line
    assert partitions(Root(str(tmp_path / "out")), "embeddings") == []


def test_non_finite_states_stop_the_run_and_say_where(cli: Cli, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "broken")
    model = AutoModel.from_pretrained(folder)
    (rare,) = tiny_tokenizer().encode("~")
    with torch.no_grad():
        model.embed_in.weight[rare] = float("inf")
    model.save_pretrained(folder)
    texts = [*(f"text {n}" for n in range(9)), "one ~ two ~"]
    datasets = _dataset(tmp_path / "a.jsonl", [{"text": text} for text in texts], shard_prompts=5)
    config = write_config(
        tmp_path, folder, datasets=datasets, subjects=[{"model": str(folder)}], **NO_VIEWS
    )
    line = _refused(cli, config, tmp_path / "out", code=1)
    where = r"broken at local, odd, clean, shard \d: layer 0 has non-finite states at 2 tokens of 1"
    assert re.search(where + f" prompts, first prompt_id {prompt_id(texts[-1])}; run", line)
    assert partitions(Root(str(tmp_path / "out")), "embeddings") == []


def test_odd_texts_work_and_are_counted(cli: Cli, tmp_path: Path, checkpoint: Path) -> None:
    good = ["emoji 🦜🌊 here", "nul \0 inside", "מימין לשמאל", "x" * 200_000, "x", "plain text"]
    bad = [None, "", " \t\n", "plain text"]
    datasets = _dataset(tmp_path / "a.jsonl", [{"text": text} for text in good + bad])
    config = write_config(tmp_path, checkpoint, datasets=datasets, views={"count": 2, "sample": 4})
    output = tmp_path / "out"
    cli("run", str(config), "--output", str(output))
    root = Root(str(output))
    with connect(root) as sql:
        assert sql.sql("SELECT count(*) FROM prompts").fetchall() == [(6,)]
        texts = sql.sql("SELECT text FROM prompts").fetchall()
        longest = sql.sql("SELECT max(n_tokens) FROM embeddings").fetchall()
        undefined = sql.sql(
            "SELECT metric, reason FROM prompt_metrics WHERE isnan(value) AND n_tokens = 1 "
            "AND NOT contains(variant, 'no_first') "
            "GROUP BY ALL ORDER BY ALL"
        ).fetchall()
    assert {text for (text,) in texts} == set(good)
    assert longest == [(64,)]
    assert [metric for metric, _ in undefined] == ["curvature", "prompt_entropy"]
    assert all(reason for _, reason in undefined)
    embeddings = Partition("embeddings", ("tiny", "local", "odd", "clean"))
    assert require(root, embeddings).facts()["truncated"] == 1
    report = json.loads(root.read("report/report.json"))
    written = json.dumps(report)
    for counted in ("whitespace", "empty", "null", "truncated"):
        assert counted in written
    assert report["subjects"][0]["verdict"]["kind"] == "not_enough_evidence"


def test_one_prompt_through_one_block(cli: Cli, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "one", blocks=1)
    task = {"name": "label", "type": "classification", "label_column": "label"}
    rows_in = [{"text": "the only text there is", "label": "a"}]
    datasets = _dataset(tmp_path / "a.jsonl", rows_in, tasks=[task])
    config = write_config(tmp_path, folder, datasets=datasets)
    cli("run", str(config), "--output", str(tmp_path / "out"))
    root = Root(str(tmp_path / "out"))
    assert all(partitions(root, table) for table in KEYS)
    with connect(root) as sql:
        rows = sql.sql(
            "SELECT metric, bool_and(isnan(value)), bool_and(reason IS NOT NULL), "
            "count(DISTINCT layer) FROM layer_metrics GROUP BY metric ORDER BY metric"
        ).fetchall()
        scores = sql.sql(
            "SELECT bool_and(isnan(value)), bool_and(reason IS NOT NULL) FROM probe_scores"
        ).fetchall()
    assert {row[0]: row[1:] for row in rows} == ONE_PROMPT
    assert scores == [(True, True)]

    # Other settings, asked for by name, replace the extraction and everything made from it.
    before = {m.partition: m.digest for m in _manifests(root)}
    config = write_config(
        tmp_path, folder, datasets=datasets, extract={"max_tokens": 3}, views={"count": 2}
    )
    cli("run", str(config), "--output", str(tmp_path / "out"), "--overwrite")
    after = {m.partition: m.digest for m in _manifests(root)}
    changed = {where.table for where, digest in before.items() if after[where] != digest}
    assert changed == {*EXTRACTED, "prompt_metrics", "layer_metrics", "probe_scores"}
    with connect(root) as sql:
        longest = sql.sql("SELECT max(n_tokens) FROM embeddings WHERE condition = 'clean'")
        assert longest.fetchall() == [(3,)]


def _manifests(root: Root) -> list[Manifest]:
    return [require(root, where) for table in KEYS for where in partitions(root, table)]
