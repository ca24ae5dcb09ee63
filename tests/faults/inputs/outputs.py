"""Score files, roots, questions to a root, and commands that are none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.faults.inputs.case import SECRET, Case, Content, config
from tests.faults.inputs.datasets import NOBODY, STRANGER

HEAD = "model,layer,task,score\n"
GOOD = "".join(f"m,{n},{task},{0.1 * n + 0.05}\n" for n in range(3) for task in "ab")


def _scores(
    name: str, content: Content, *says: str, file: str = "s.csv", stored: bool = False
) -> Case:
    stored_at = ("--output", "FOLDER/out") if stored else ()
    command = ("rank", "--scores", f"FOLDER/{file}", *stored_at)
    return Case(f"scores: {name}", command, says, {file: content})


ODD = HEAD + GOOD.replace("m,", "\x1b]0;pwned\x07\x1b[31mred,")
SCORES: list[Case] = [
    Case("scores: no such file", ("rank", "--scores", "/no/such.csv"), ("/no/such.csv",)),
    _scores("good", HEAD + GOOD),
    _scores("empty", "", "s.csv", "mpty"),
    _scores("no rows", HEAD, "s.csv", "no rows"),
    _scores("no column score", "model,layer,task\nm,0,a\n", "s.csv", "'score'", "layer, task"),
    _scores("in percent", HEAD + "m,0,a,45.0\nm,1,a,50\n", "s.csv", "row 1", "'score'", "45"),
    _scores("layer a word", HEAD + "m,last,a,0.5\n", "row 1", "'layer'", "'last'"),
    _scores("layer negative", HEAD + "m,-1,a,0.5\n", "row 1", "'layer'", "'-1'"),
    _scores("layer 1e300", HEAD + "m,1e300,a,0.5\nm,0,a,0.1\n", "row 1", "'layer'", "1e300"),
    _scores("one twice", HEAD + "m,0,a,0.5\nm,0,a,0.6\n", "layer 0", "task a", "row 2"),
    _scores("all NaN", HEAD + "m,0,a,nan\nm,1,a,nan\n"),
    _scores("one layer", HEAD + "m,0,a,0.5\n"),
    _scores("infinite", HEAD + "m,0,a,inf\nm,1,a,0.1\n", "row 1", "'score'", "inf"),
    _scores("text called Parquet", "hello", "s.parquet", "5 bytes", file="s.parquet"),
    _scores("unknown ending", HEAD + GOOD, "s.xlsx", ".parquet", file="s.xlsx"),
    _scores("escape codes in a model's name", ODD),
    _scores("escape codes in a task's name", HEAD + GOOD.replace("a,", "\u202e\x1b[31m,")),
    _scores("empty folder", Path.mkdir, "FOLDER/s", "mteb", file="s"),
    Case(
        "scores: mteb folder with broken JSON",
        ("rank", "--scores", "FOLDER/s"),
        ("r/T.json", "JSON"),
        {"s/layer-00/o__m/r/T.json": "{"},
    ),
    _scores("model ../../evil, stored", HEAD + GOOD.replace("m,", "../../evil,"), stored=True),
    _scores("model .., stored", HEAD + GOOD.replace("m,", "..,"), stored=True),
    _scores("called ..csv", HEAD + GOOD, "FOLDER/..csv", "name", file="..csv", stored=True),
    Case("scores: with a config", ("rank", "demo", "--scores", "x"), ("demo", "--scores")),
    Case("scores: rank of nothing", ("rank",), ("--scores",)),
]


def _root(name: str, output: str, *says: str, **known: Any) -> Case:  # noqa: ANN401
    made = config("", {}, *says, output=output, **known)
    return Case(f"root: {name}", made.command, made.says, made.files, environment=made.environment)


_NO_ROOTS = {"nothing": "/no/such/root", "an empty folder": "FOLDER", "a file": "FOLDER/file"}
IN_THE_WAY: dict[str, Content] = {"file": "x"}
S3 = "s3://bucket/x"
LINK = {"link": lambda path: path.symlink_to(path.with_name("nowhere"))}
OF_ANOTHER_FORM = {"out/_layerrank/manifests/embeddings/x.json": "[1, 2]"}
NO_ROOT = ("query", "/no/such/root", "SELECT 1")
HELD = '{"holder": "process 1 on elsewhere", "token": "x", "since": 0, "until": 1e300'
NIGHT = {"out/_layerrank/locks/nightly-000001.json": HELD + ', "released": false}'}
CLAIM = {"out/_layerrank/locks/run-x.json": HELD + ', "released": false, "about": {"name": "bad"}}'}
ROOTS: list[Case] = [
    _root("a file", "FOLDER/file", "FOLDER/file", "a file", files=IN_THE_WAY),
    _root("under a file", "FOLDER/file/out", "FOLDER/file/out", files=IN_THE_WAY),
    _root("/proc", "/proc/layerrank", "/proc/layerrank"),
    _root("empty", "", "no output", "--output"),
    _root("unknown scheme", "foo://bar", "output", "foo://bar", "foo"),
    _root("s3 with nothing behind", S3, S3, "127.0.0.1:9", environment=STRANGER),
    _root("s3 without credentials", S3, S3, "credentials", environment=NOBODY),
    _root("odd characters", "FOLDER/a b%20#?*[x]'\"é"),
    _root("file:// address", "file://FOLDER/out"),
    _root("with a newline", "FOLDER/a\nb"),
    _root("a dangling link", "FOLDER/link", files=LINK),
    _root("a manifest of another form", "FOLDER/out", files=OF_ANOTHER_FORM),
    Case("root: query, none", NO_ROOT, ("/no/such/root",)),
    _root("a claim until 1e300", "FOLDER/out", files=CLAIM),
    _root("a night until 1e300", "FOLDER/out", command="nightly", files=NIGHT),
    *(
        Case(f"root: {command} of {what}", (command, place), (place,), IN_THE_WAY)
        for command in ("status", "report", "repair", "open")
        for what, place in _NO_ROOTS.items()
    ),
]


def _sql(name: str, sql: str, *says: str, canary: str = "", never: str = SECRET) -> Case:
    return Case(f"SQL: {name}", ("query", "ROOT", sql), says, canary=canary, never=never)


CANARY = "FOLDER/canary"
READ = "SELECT content FROM read_text('/etc/passwd')"
SHARD = "ROOT/prompts/x.parquet"
CHANGE = f"COPY (SELECT 1 AS prompt_id) TO '{SHARD}'"
ENDLESS = "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n FROM t) SELECT count(*) FROM t"
RECURSIVE = ("query", "ROOT", ENDLESS, "--seconds", "2")
QUERIES: list[Case] = [
    _sql("good", "SELECT count(*) FROM prompts"),
    _sql("syntax error", "SELEKT 1", "SELEKT"),
    _sql("unknown table", "SELECT * FROM prompt", "prompt", '"prompts"'),
    _sql("empty", "", "SQL", "nothing"),
    _sql("only a comment", "-- nothing", "SQL", "nothing"),
    _sql("two statements", "SELECT 1; SELECT 2", "2 statements"),
    _sql("write a file", f"COPY (SELECT 1) TO '{CANARY}'", "COPY", canary=CANARY),
    _sql("read /etc/passwd", READ, "/etc/passwd", never="root:"),
    _sql("another CSV", "SELECT * FROM '/etc/passwd'", "/etc/passwd", never="root:"),
    _sql("attach a database", f"ATTACH '{CANARY}' AS x", "ATTACH", canary=CANARY),
    _sql("install an extension", "INSTALL httpfs", "LOAD"),
    _sql("reach the network", "SELECT * FROM read_text('http://127.0.0.1:9/x')", "127.0.0.1:9"),
    _sql("drop a view", "DROP VIEW prompts", "DROP"),
    _sql("change the shards", CHANGE, "COPY", canary=SHARD),
    _sql("environment", "SELECT getenv('PATH')", "getenv"),
    _sql("secrets", "SELECT * FROM duckdb_secrets()"),
    _sql("100 million rows", "SELECT * FROM range(100000000)"),
    Case("SQL: endless recursion", RECURSIVE, ("2",)),
]


def _export(
    name: str,
    more: tuple[str, ...],
    *says: str,
    to: str = "FOLDER/cut",
    files: Mapping[str, Content] | None = None,
) -> Case:
    command = ("export", to, "--subject", "MODEL", *more)
    return Case(f"export: {name}", command, says, files or {})


MADE = config("", {}).files
RUN, PLAN = ("run", "FOLDER/run.yaml", "--output", "FOLDER/out"), ("plan", "FOLDER/run.yaml")


def _told(name: str, command: tuple[str, ...], *says: str, **known: Any) -> Case:  # noqa: ANN401
    return Case(f"usage: {name}", command, says, MADE, **known)


SPEED = "--tokens-per-second"
ON_RAY = ("--engine", "ray")
NOBODY_THERE = "127.0.0.1:1"
LAYER = ("--layer", "1")
OTHER: dict[str, Content] = {"other/a.txt": "x"}
OVERWRITE = (*LAYER, "--overwrite")
WITHOUT = ("--ranking", "ROOT", "--name", "other")
HOSTILE = "a\n---\nlicense: x\n# {b} `c` <script>"
USAGE: list[Case] = [
    _told("nothing", ()),
    _told("unknown command", ("rn",), "'rn'", "mean run?"),
    _told("unknown option", ("run", "demo", "--wrong"), "--wrong"),
    _told("--max-bytes abc", (*PLAN, "--max-bytes", "abc"), "--max-bytes", "abc"),
    _told("--max-bytes -5GB", (*PLAN, "--max-bytes=-5GB"), "--max-bytes", "-5GB"),
    _told("--max-gpu-hours 0", (*PLAN, "--max-gpu-hours", "0"), "--max-gpu-hours", "0"),
    _told(f"{SPEED} nan", (*PLAN, SPEED, "nan"), SPEED, "nan"),
    _told("--address nonsense", (*RUN, *ON_RAY, "--address", "nonsense"), "nonsense"),
    _told(
        "--address of nobody",
        (*RUN, *ON_RAY, "--address", NOBODY_THERE),
        NOBODY_THERE,
        environment={"RAY_ADDRESS": ""},
    ),
    _told(
        "RAY_ADDRESS of nobody",
        (*RUN, *ON_RAY),
        NOBODY_THERE,
        environment={"RAY_ADDRESS": NOBODY_THERE},
    ),
    _export("no layer", (), "--layer"),
    _export("layer 99", ("--layer", "99"), "99", "3"),
    _export("layer -1", ("--layer", "-1"), "-1"),
    _export("to s3", LAYER, "s3://b/x", to="s3://b/x"),
    _export("onto the model", (*LAYER, "--overwrite"), "MODEL", to="MODEL"),
    _export("onto something else", OVERWRITE, "FOLDER/other", to="FOLDER/other", files=OTHER),
    _export("--max-tokens 0", (*LAYER, "--max-tokens", "0"), "--max-tokens", "0"),
    _export("ranking without the model", WITHOUT, "other"),
    _export("name with markup", (*LAYER, "--name", HOSTILE), to='FOLDER/q"x'),
    Case("nightly: a config that is none", ("nightly", "nosuch.yaml"), ("nosuch.yaml",)),
]
