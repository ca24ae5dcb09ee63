"""What SQL may do in `layerrank query`: read the tables of the output, in a bounded time.

Each statement of `statements.sql` is asked where a canary would tell of what it has done: a file, a
request, a secret that is shown.
"""

from __future__ import annotations

import gzip
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from layerrank.jobs.cli import main
from layerrank.storage import schema
from layerrank.storage.partition import Partition
from layerrank.storage.root import Root
from layerrank.storage.sql import _Shards, answering
from tests.conftest import S3
from tests.support.places import PROJECT
from tests.support.stored import store

SECRET, ELSEWHERE, OURS = "value-of-nobody", "row of elsewhere", "a text"
STATEMENTS = re.findall(
    r"^-- (answered|refused): (.+)\n((?:.+\n)+?)(?=-- (?:answered|refused): |\n|\Z)",
    Path(__file__).with_name("statements.sql").read_text("utf-8"),
    flags=re.MULTILINE,
)
SHARD = "prompts/dataset=d/shard-00000.parquet"
RECURSION = "WITH RECURSIVE a AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM a) SELECT max(x) FROM a"


@dataclass
class Place:
    """An output, one beside it, a folder, and a server with what reached it."""

    root: Root
    other: Root
    work: Path
    port: int = 0
    reached: list[str] = field(default_factory=list)

    def said(self, statement: str) -> str:
        """Return a statement that names these."""
        names = {
            "ROOT": self.root.place(),
            "OTHER": self.other.place(),
            "WORK": str(self.work),
            "PORT": str(self.port),
        }
        return re.sub("|".join(names), lambda found: names[found[0]], statement)

    def lies(self) -> Mapping[str, bytes | None]:
        """Return all that lies in the outputs and the folder."""
        local = [each for each in self.work.rglob("*") if not each.is_symlink()]
        found = {str(each): each.read_bytes() if each.is_file() else None for each in local}
        for root in (self.root, self.other):
            filesystem = root.filesystem
            names = filter(filesystem.isfile, filesystem.find(root.path()))
            found |= {name: filesystem.cat_file(name) for name in names}
        return found


def _fill(root: Root, text: str) -> None:
    kind = schema.TABLES["prompts"][1]
    blank = {
        each.name: ["" if pa.types.is_string(each.type) else 0] * 3
        for each in kind
        if not each.nullable
    }
    rows = {**blank, "prompt_id": [0, 1, 2], "text": [text] * 3}
    columns = {each.name: rows.get(each.name, [None] * 3) for each in kind}
    store(root, Partition("prompts", ("d",)), [pa.table(columns, kind)], {})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    work = tmp_path / "work"
    work.mkdir()
    (work / "some.csv").write_text(f"a,b\n1,{ELSEWHERE}\n", encoding="utf-8")
    (work / "some.json").write_text(f'[{{"a": "{ELSEWHERE}"}}]', encoding="utf-8")
    (work / "bomb.csv.gz").write_bytes(gzip.compress(b"1,2\n" * (1 << 20)))
    ours, other = Root(str(tmp_path / "out")), Root(str(tmp_path / "other"))
    _fill(ours, OURS)
    _fill(other, ELSEWHERE)
    (tmp_path / "out" / "link").symlink_to(work)
    monkeypatch.setenv("LRSECRET", SECRET)
    monkeypatch.setenv("HOME", str(work))
    monkeypatch.chdir(work)
    found = Place(ours, other, work)

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            found.reached.append(f"{self.command} {self.path}")
            self.send_error(404)

        do_GET = do_HEAD = do_PUT = do_POST = handle_any

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.port = server.server_port
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def _hold(place: Place, right: str, statement: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Ask, and hold that it is answered or refused in one line, and nothing has come of it."""
    before = place.lies()
    code = main(["query", place.root.place(), place.said(statement)])
    told = capsys.readouterr()
    if right == "answered":
        assert (code, told.err) == (0, "")
    else:
        assert code == 2
        assert told.out == ""
        assert re.fullmatch(r"layerrank: .+\n", told.err)
    assert place.lies() == before
    assert place.reached == []
    for never in (SECRET, ELSEWHERE, "root:x:0", "uid="):
        assert never not in told.out + told.err


@pytest.mark.parametrize(
    ("right", "statement"),
    [pytest.param(right, sql, id=name) for right, name, sql in STATEMENTS],
)
def test_a_statement_reads_the_tables_and_leaves_nothing(
    place: Place, right: str, statement: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _hold(place, right, statement, capsys)


@pytest.mark.slow
def test_on_s3_nothing_else_is_read_with_what_reaches_the_output(
    place: Place,
    s3: S3,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(place.work))
    above = place.work.parent.name
    place.root, place.other = s3.root(f"{above}/out"), s3.root(f"{above}/other")
    _fill(place.root, OURS)
    _fill(place.other, ELSEWHERE)
    for right, statement in (
        ("answered", "SELECT count(*), min(text) FROM prompts"),
        ("answered", f"SELECT count(*) FROM 'ROOT/{SHARD}'"),
        ("refused", f"SELECT * FROM 'OTHER/{SHARD}'"),
        ("refused", f"SELECT * FROM 'ROOT/../other/{SHARD}'"),
        ("refused", "SELECT * FROM read_parquet('s3://layers/**/*.parquet')"),
        ("refused", "SELECT * FROM glob('s3://layers/*')"),
        ("refused", "SELECT * FROM read_text('/etc/passwd')"),
        ("refused", "SELECT * FROM read_text('ROOT/_layerrank/manifests/prompts/dataset=d.json')"),
        ("refused", "COPY (SELECT 1 a) TO 'ROOT/evil.parquet'"),
        ("refused", "WITH x AS (COPY (SELECT 1 a) TO 'ROOT/evil.csv') SELECT 1"),
        ("refused", f"WITH x AS (COPY (SELECT 1 a) TO 'ROOT/{SHARD}') SELECT 1"),
        ("refused", "COPY (SELECT 1 a) TO 'WORK/copy.csv'"),
        ("refused", "ATTACH 'ROOT/a.db'"),
        ("refused", "ATTACH 'WORK/a.db'"),
        ("refused", "SELECT * FROM 'http://127.0.0.1:PORT/x.csv'"),
    ):
        _hold(place, right, statement, capsys)


def test_the_filesystem_of_an_output_gives_its_shards_and_takes_nothing(s3: S3) -> None:
    root = s3.root("alone")
    root.write("a", b"0123456789")
    root.write("b", b"not a shard")
    shards = _Shards(root, {"a": 10})
    assert shards.glob(root.place("a")) == [root.path("a")]
    with shards.open(root.place("a")) as file:
        file.seek(3)
        assert file.read(4) == b"3456"
        assert file.read() == b"789"
    for look in (shards.open, shards.info, shards.exists, shards.modified, shards.glob):
        for name in ("b", "../alone/b", "*", ""):
            with pytest.raises(duckdb.PermissionException):
                look(root.place(name))
    for mode in ("wb", "ab", "r+b"):
        with pytest.raises(duckdb.PermissionException):
            shards.open(root.place("a"), mode)
    for change in (shards.rm, shards.touch):
        with pytest.raises((duckdb.PermissionException, NotImplementedError)):
            change(root.place("a"))
    assert (root.read("a"), [*root.sizes("")]) == (b"0123456789", ["a", "b"])


def test_threads_that_read_one_file_have_their_own_place_in_it(s3: S3) -> None:
    content = bytes(range(256)) * 2048
    root = s3.root("threads")
    root.write("a", content)
    file, wrong = _Shards(root, {"a": len(content)}).open(root.place("a")), list[int]()

    def look(offset: int) -> None:
        for start in range(offset, len(content), 100_003):
            file.seek(start)
            time.sleep(0.001)
            if file.read(50) != content[start : start + 50]:
                wrong.append(start)

    threads = [threading.Thread(target=look, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert wrong == []


def test_a_shard_that_is_a_link_is_not_followed(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = tmp_path / "out" / SHARD
    shard.unlink()
    shard.symlink_to(tmp_path / "other" / SHARD)
    _hold(place, "refused", "SELECT * FROM prompts", capsys)
    shard.unlink()
    shard.parent.rmdir()
    shard.parent.symlink_to(tmp_path / "other" / SHARD.rpartition("/")[0])
    _hold(place, "refused", "SELECT * FROM prompts", capsys)


def test_an_output_behind_a_link_is_asked(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short").symlink_to(tmp_path / "out")
    place.root = Root(str(tmp_path / "short"))
    _hold(place, "answered", "SELECT * FROM prompts", capsys)


@pytest.mark.parametrize("form", ["table", "csv", "json", "markdown"])
def test_no_form_of_an_answer_commands_a_terminal(
    place: Place, form: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "\x1b[31m\x9b2J\x07\r\u202eabc\u2028\x7f"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    sql = f"SELECT '{evil}' AS \"{evil}\", ['{evil}'] AS listed"
    assert main(["query", place.root.place(), sql, "--format", form]) == 0
    assert main(["query", place.root.place(), f'SELECT "{evil}" FROM prompts']) == 2
    told = capsys.readouterr()
    for said in (told.out, told.err):
        assert "abc" in said
        assert re.findall("[^\n\x20-\x7e]", re.sub("[\u2500-\u257f]", "", said)) == []


@pytest.mark.parametrize(
    ("sql", "form"),
    [
        ("SELECT * FROM range(100000000)", "csv"),
        (RECURSION, "table"),
        (f"EXPLAIN ANALYZE {RECURSION}", "table"),
        ("SELECT count(*) FROM range(1000000) a, range(1000000) b", "json"),
    ],
)
def test_a_query_without_an_end_is_ended(
    place: Place, sql: str, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    words = ["query", place.root.place(), sql, "--format", form, "--seconds", "0.5"]
    assert main(words) == 1
    assert time.monotonic() - began < 20
    assert re.fullmatch(r"layerrank: .*0\.5 s.*\n", capsys.readouterr().err)


def test_a_file_that_is_not_finished_in_time_is_not_there(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["query", place.root.place(), "SELECT * FROM range(100000000)", "--to", "a.csv"]
    assert main([*words, "--seconds", "0.5"]) == 1
    assert "0.5 s" in capsys.readouterr().err
    assert not [each for each in place.work.iterdir() if "a.csv" in each.name]


def test_python_has_the_same_limit(place: Place) -> None:
    with pytest.raises(TimeoutError), answering(place.root, RECURSION, 0.3) as relation:
        relation.df()
    with answering(place.root, "SELECT count(*) AS n FROM prompts", 60) as relation:
        assert relation.df()["n"].tolist() == [3]
    with pytest.raises(ValueError, match="seconds"), answering(place.root, "SELECT 1", 0):
        pass


ONE_STEP = "SELECT levenshtein(repeat('a', 300000), repeat('b', 300000))"


def _asked(place: Place, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "layerrank", "query", place.root.place(), *words],
        env={**os.environ, "TMPDIR": str(place.work), "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_step_that_is_not_interrupted_ends_with_its_command(place: Place) -> None:
    asked = _asked(place, ONE_STEP, "--seconds", "0.5")
    _, said = asked.communicate(timeout=60)
    assert asked.returncode == 1
    assert re.fullmatch(r"layerrank: .*0\.5 s.*\n", said)
    assert [*place.work.glob("layerrank-query-*")] == []


@pytest.mark.slow  # for the seconds that a command has to clean up
@pytest.mark.parametrize(
    "sql", [ONE_STEP, "SELECT count(*) FROM range(9999999) a, range(9999999) b"]
)
def test_a_query_is_told_to_end(place: Place, sql: str) -> None:
    asked = _asked(place, sql)
    deadline = time.monotonic() + 60
    while not [*place.work.glob("layerrank-query-*")]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    asked.terminate()
    _, said = asked.communicate(timeout=60)
    assert asked.returncode == 128 + signal.SIGTERM
    assert re.fullmatch(r"layerrank: stopped.*\n", said)


def test_what_does_not_fit_into_memory_lies_in_a_folder_of_its_own(place: Place) -> None:
    with answering(place.root, "SELECT current_setting('temp_directory')") as relation:
        ((folder,),) = relation.fetchall()
        assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
    assert not Path(folder).exists()
