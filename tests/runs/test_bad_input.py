"""What bad or odd input gets from the real command line: one clear line, or a run that works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from layerrank.operators.metrics.registry import METRICS
from layerrank.operators.prompts.seeding import prompt_id
from layerrank.storage.manifest import require
from layerrank.storage.partition import KEYS, Partition, partitions
from layerrank.storage.root import Root
from tests.conftest import Cli, edited, write_config
from tests.operators.model.shrunk import tiny_of
from tests.support.stored import ask, manifests
from tests.support.tiny import save_tiny, tiny_tokenizer

pytestmark = pytest.mark.slow
# Of a corpus of one prompt these have values; the others are NaN for a reason, in every layer.
OF_ONE_PROMPT = {
    *("curvature", "effective_rank", "first_token_share", "largest_coordinate", "mean_norm"),
    *("prompt_entropy", "rankme"),
}


def _dataset(path: Path, rows: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return [{"name": "odd", "source": {"files": str(path)}, **changes}]


LABELS, SIMILAR, ORDER = yaml.safe_load("""
- {name: labels, type: classification, samples_per_label: 4, label_column: two, split_column: part}
- {name: similar, type: sts, first_column: text, second_column: query, score_column: score}
- {name: order, type: reranking, query_column: query, candidate_column: text,
   relevance_column: score}
""")
FEW = {**LABELS, "name": "few", "samples_per_label": 9}
FINE = {"name": "fine", "type": "clustering", "label_column": "two"}


def _rows(column: str = "score", row: int = 0, value: object = 1) -> list[dict[str, Any]]:
    """Return 40 rows, one cell of which is another."""
    rows = []
    for n in range(40):
        own: dict[str, Any] = {"key": f"row-{n}", "text": f"text {n}", "query": f"query {n}"}
        own |= {"two": "even" if n % 2 else "odd", "part": "train" if n < 20 else "test"}
        rows.append({**own, "score": n + 1})
    rows[row][column] = value
    return rows


def _prepared(
    cli: Cli,
    folder: Path,
    checkpoint: Path,
    rows: list[dict[str, Any]],
    tasks: list[dict[str, Any]],
    *options: str,
    code: int = 0,
) -> tuple[str, set[str]]:
    """Prepare, expect the code, and return what was told and what is published."""
    odd = {"shard_prompts": 8, "id_column": "key", "tasks": tasks}
    config = write_config(folder, checkpoint, datasets=_dataset(folder / "rows.jsonl", rows, **odd))
    out = folder / "out"
    told = cli("prepare", str(config), "--output", str(out), *options, expect=code)
    return told.stderr, {
        path.relative_to(out).parts[3].removesuffix(".json") for path in out.rglob("dataset=*.json")
    }


@pytest.mark.parametrize(
    ("rows", "tasks", "expected"),
    [
        (
            _rows("two", 30, "new"),
            [{**FEW, "samples_per_label": 35, "split_column": None}, FINE, LABELS],
            [
                "task few, column two: label 'new' has 1 training item, samples_per_label is 35; ",
                "task labels, column two: the test items have 1 label (new) that no training item",
            ],
        ),
        (_rows("score", 6, "high"), [SIMILAR], ["score: 'high' in row 7 is not a number"]),
        (_rows("key", 7, "row-3"), [SIMILAR], ["row 4 and row 8 have the same id 'row-3'"]),
        (_rows("text", 8, None), [SIMILAR, ORDER], ["query of row 9 has no candidate; leave it"]),
    ],
)
def test_data_that_a_task_cannot_use_is_one_line_until_it_is_mended(
    cli: Cli,
    tmp_path: Path,
    checkpoint: Path,
    rows: list[dict[str, Any]],
    tasks: list[dict[str, Any]],
    expected: list[str],
) -> None:
    """Nothing is published, and what was written stands in nobody's way without `--overwrite`."""
    given = cli, tmp_path, checkpoint
    error, published = _prepared(*given, rows, tasks, code=2)
    assert re.fullmatch(r"layerrank: dataset odd[,:] [^\n]+\n", error)
    for words in expected:
        assert words in error
    assert "fine" not in error
    assert published == set()
    made = {"task=labels", "task=few", "task=similar", "task=order", "dataset=odd"}
    assert _prepared(*given, _rows(), [FEW, LABELS, SIMILAR, ORDER]) == ("", made)
    out = tmp_path / "out"
    shards = [*out.glob("prompts/**/*.parquet"), *out.glob("tasks/**/*.parquet")]
    assert {path.relative_to(out).parts[1] for path in shards} == made


def test_what_is_published_conflicts_with_other_settings_and_shards_alone_do_not(
    cli: Cli, tmp_path: Path, checkpoint: Path
) -> None:
    given = cli, tmp_path, checkpoint, _rows()
    _prepared(*given, [SIMILAR])
    assert "['text', 'query'] there, ['text'] here" in _prepared(*given, [FEW], code=2)[0]
    assert _prepared(*given, [FEW], "--overwrite")[0] == ""
    for path in tmp_path.rglob("dataset=*.json"):
        path.unlink()
    assert _prepared(*given, [SIMILAR])[0] == ""


@pytest.mark.parametrize("engine", ["ray", "process"])
def test_a_file_without_a_column_ends_the_run_while_others_are_looked_at(
    tmp_path: Path, checkpoint: Path, fresh_cli: Cli, engine: str
) -> None:
    config = write_config(tmp_path, checkpoint)
    lines = (tmp_path / "texts.jsonl").read_text().splitlines(keepends=True)
    for number in range(8):
        (tmp_path / f"part-{number}.jsonl").write_text("".join(lines))
    (tmp_path / "part-0.jsonl").write_text('{"text": "a text without a topic"}\n')
    with edited(config) as values:
        values["datasets"][0]["source"]["files"] = str(tmp_path / "part-*.jsonl")
    output = ("--output", str(tmp_path / "out"), "--engine", engine)
    refused = fresh_cli("run", str(config), *output, expect=2)
    assert refused.stderr.startswith("layerrank: dataset topics: ")
    assert "part-0.jsonl has no column" in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("engine", ["ray", "process"])
def test_a_model_that_a_worker_refuses_is_one_line_and_nothing_else(
    tmp_path: Path, fresh_cli: Cli, engine: str
) -> None:
    model = tiny_of("albert")
    model.save_pretrained(tmp_path / "albert")
    tiny_tokenizer().save_pretrained(tmp_path / "albert")
    config = write_config(tmp_path, tmp_path / "albert")
    output = ("--output", str(tmp_path / "out"), "--engine", engine)
    told = fresh_cli("run", str(config), *output, expect=2)
    *progress, last = told.stderr.splitlines()
    assert last.startswith("layerrank: model tiny at local: AlbertModel has no list of 4 blocks")
    assert all(each.startswith("  ") for each in progress)
    assert "Traceback" not in told.stdout


def test_non_finite_states_stop_the_run_and_say_where(cli: Cli, tmp_path: Path) -> None:
    (rare,) = tiny_tokenizer().encode("~")

    def change(model: Any) -> None:  # noqa: ANN401
        model.embed_in.weight[rare] = float("inf")

    folder = save_tiny(tmp_path / "broken", change=change)
    texts = [*(f"text {n}" for n in range(9)), "one ~ two ~"]
    datasets = _dataset(tmp_path / "a.jsonl", [{"text": text} for text in texts], shard_prompts=5)
    config = write_config(
        tmp_path,
        folder,
        datasets=datasets,
        subjects=[{"model": str(folder)}],
        views={"count": 0},
        measure={"metrics": ["prompt_entropy"], "token_metrics": "stored"},
    )
    line = cli("run", str(config), "--output", str(tmp_path / "out"), expect=1).stderr
    where = r"broken at local, odd, clean, shard-0000\d\.parquet: layer 0 has non-finite states"
    assert re.search(
        where + f" at 2 tokens of 1 prompts, first prompt_id {prompt_id(texts[-1])}; ", line
    )
    assert partitions(Root(str(tmp_path / "out")), "embeddings") == []


def test_what_separates_the_columns_of_a_csv_and_what_is_not_read_is_said(
    cli: Cli, tmp_path: Path, checkpoint: Path
) -> None:
    for name, delimiter in {"a.csv": ";", "b.csv": ";", "c.csv": "|"}.items():
        (tmp_path / name).write_text(f"text{delimiter}n\n{name}{delimiter}1\n")
    datasets = [{"name": "odd", "source": {"files": str(tmp_path / "*.csv")}}]
    (tmp_path / "mixed").mkdir()
    for name in ("a.txt", "index.tsv"):
        (tmp_path / "mixed" / name).write_text("a passage")
    datasets.append({"name": "mixed", "source": {"folder": str(tmp_path / "mixed")}})
    config = write_config(tmp_path, checkpoint, datasets=datasets)
    told = cli("prepare", str(config), "--output", str(tmp_path / "out")).stdout
    assert "mixed: not read: index.tsv (the folder has .txt" in told
    assert "odd: CSV with `;` (2 files) and `|` (1 file) between columns" in told
    assert "odd: 3 unique prompts" in told
    assert re.search(r"mixed: 1 unique prompt in 1 shard$", told, re.M)


def test_odd_texts_work_and_are_counted(cli: Cli, tmp_path: Path, checkpoint: Path) -> None:
    good = ["emoji 🦜🌊 here", "nul \0 inside", "מימין לשמאל", "x" * 200_000, "x", "plain text"]
    bad = [None, "", " \t\n", "plain text"]
    datasets = _dataset(tmp_path / "a.jsonl", [{"text": text} for text in good + bad])
    config = write_config(tmp_path, checkpoint, datasets=datasets, views={"count": 2, "sample": 4})
    output = tmp_path / "out"
    cli("run", str(config), "--output", str(output))
    root = Root(str(output))
    texts = ask(root, "SELECT text FROM prompts ORDER BY text")
    longest = ask(root, "SELECT max(n_tokens) FROM embeddings")
    undefined = ask(
        root,
        "SELECT DISTINCT isnan(curvature), isnan(prompt_entropy_alpha_1), isnan(mean_norm), "
        "isnan(prompt_entropy_alpha_2_maxentropy), reasons FROM prompt_metrics WHERE n_tokens = 1",
    )
    assert [text for (text,) in texts] == sorted(good)
    assert longest == [(64,)]
    ((*nan, reasons),) = undefined
    assert nan == [True, True, False, True]
    named = ["curvature", "largest_coordinate", "mean_norm", "prompt_entropy"]
    assert sorted(each.partition(":")[0] for each in reasons.split("; ")) == named
    embeddings = Partition("embeddings", ("tiny", "local", "odd", "clean"))
    assert require(root, embeddings).facts()["truncated"] == 1
    report = json.loads(root.read("report/small/report.json"))
    counted = ("whitespace", "empty", "null", "truncated")
    assert [word for word in counted if word not in json.dumps(report)] == []
    assert report["subjects"][0]["verdict"]["kind"] == "no_labels"


def test_one_prompt_through_one_block(cli: Cli, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "one", blocks=1)
    task = {"name": "itself", "type": "retrieval", "query_column": "text"}
    datasets = _dataset(tmp_path / "a.jsonl", [{"text": "the only text there is"}], tasks=[task])
    config = write_config(tmp_path, folder, datasets=datasets)
    cli("run", str(config), "--output", str(tmp_path / "out"))
    root = Root(str(tmp_path / "out"))
    absent = [table for table in KEYS if not partitions(root, table)]
    assert absent == ["own_metrics", "sensitivity", "learning_curves", "transforms"]
    rows = ask(
        root,
        "SELECT metric, bool_and(isnan(value)), bool_and(reason IS NOT NULL), "
        "count(DISTINCT layer) FROM layer_metrics GROUP BY metric ORDER BY metric",
    )
    scores = ask(root, "SELECT bool_and(value = 1), bool_and(reason IS NULL) FROM probe_scores")
    layers = {name: 1 if name == "cka_previous" else 2 for name in METRICS}
    assert rows == [
        (name, *[name not in OF_ONE_PROMPT] * 2, layers[name]) for name in sorted(METRICS)
    ]
    assert scores == [(True, True)]

    # Other settings, asked for by name, replace the extraction and everything made from it.
    before = {m.partition: m.digest for m in manifests(root)}
    changes: dict[str, Any] = {"extract": {"max_tokens": 3, "workers": 1}, "views": {"count": 2}}
    config = write_config(tmp_path, folder, datasets=datasets, **changes)
    cli("run", str(config), "--output", str(tmp_path / "out"), "--overwrite")
    after = {m.partition: m.digest for m in manifests(root)}
    changed = {where.table for where, digest in before.items() if after[where] != digest}
    measured = {"prompt_metrics", "layer_metrics", "prompt_traits", "modes"}
    assert changed == {"embeddings", "tokens", *measured, "probe_scores", "candidate_scores"}
    longest = ask(root, "SELECT max(n_tokens) FROM embeddings WHERE condition = 'clean'")
    assert longest == [(3,)]
