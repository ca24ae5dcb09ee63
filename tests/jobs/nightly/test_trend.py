"""The judging of checkpoints and the trend page, on a root of synthetic tables, and the alerts.

An alert is POSTed to a real HTTP server, which takes it, refuses it, or is silent.
"""

from __future__ import annotations

import html
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.run import parse
from layerrank.jobs.config.settings import NightlyConfig
from layerrank.jobs.nightly import page as trend
from layerrank.jobs.nightly.judge import (
    VARIABLE,
    Alert,
    Broken,
    before,
    judge,
    place,
    post,
    post_waiting,
    publish,
    ranked,
    read_alerts,
    without_ranking,
)
from layerrank.jobs.run import Run, Seen
from layerrank.jobs.subjects import resolve
from layerrank.operators.model.subject import Subject
from layerrank.storage.manifest import SettingsConflictError
from layerrank.storage.root import Root
from tests.support.checkpoints import LAYERS, MODEL, make_run, store_checkpoint

SECRET = "path-of-nobody"
BASE = "name: r\nsubjects: [{model: m}]\ndatasets: [{name: d, source: {files: a.jsonl}}]\n"
HOSTILE = '<script>alert(1)</script>|"&`x`'
RISING = [[0.3, 0.35, 0.32, 0.30], [0.3, 0.45, 0.42, 0.40], [0.3, 0.5, 0.62, 0.55]]


def _publish(run: Run, failed: dict[Subject, str] | None = None) -> dict[str, str]:
    history = ranked(run, ())[0]
    trend.publish(run, history, failed or {})
    return {
        name: run.root.read(f"trend/small/{name}").decode() for name in ("trend.json", "index.html")
    }


def _alert(revision: str = "step64", previous: str = "step0") -> Alert:
    broken = Broken("layer_moved", f"It moved {HOSTILE}.", {"before": 1, "now": 5})
    return Alert("small", MODEL, revision, previous, "Worse.", [broken], "/out/trend/r/index.html")


def test_checkpoints_come_in_the_order_of_their_steps_and_outlive_their_files(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path, ["step64", "step4", "step1000"])
    for revision in ("step64", "step0", "step16"):
        store_checkpoint(run, revision, RISING[0])
    history = ranked(run, ())[0]
    assert [each.revision for each in history] == ["step0", "step16", "step64"]
    assert [each.revision for each in before(history, MODEL, "step64")] == ["step0", "step16"]
    assert before(history, MODEL, "step0") == before(history, "other", "step64") == []
    new = without_ranking(run, resolve(run.config.subjects, run.config.storage))
    assert [each.revision for each in new] == ["step4", "step1000"]


def test_rankings_of_other_settings_are_not_compared(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    store_checkpoint(run, "step0", RISING[0])
    store_checkpoint(run, "step4", RISING[1])
    settings = run.config.rank.model_copy(update={"draws": 300})
    changed = run.config.model_copy(update={"rank": settings})
    other = replace(run, config=changed)
    assert ranked(other, ())[0] == []
    subjects = resolve(changed.subjects, changed.storage)
    with pytest.raises(SettingsConflictError, match="draws: 200 there, 300 here"):
        without_ranking(other, subjects)
    assert without_ranking(replace(other, overwrite=True), subjects) == list(subjects)


def test_the_rules_of_the_config_are_applied_to_the_tables(tmp_path: Path) -> None:
    run = make_run(tmp_path, score_drop=0.02, layer_moved=1, metric_jump=5)
    scores = [0.3, 0.5, 0.62, 0.55]
    for step, entropy in enumerate([2.0, 2.1, 2.19, 2.3]):
        store_checkpoint(run, f"step{step}", scores, entropy)
    store_checkpoint(run, "step9", [0.6, 0.5, 0.57, 0.55], entropy=0.5)
    *earlier, new = ranked(run, ())[0]
    drop, moved, jump = judge(run, earlier, new)
    rules = ["score_drop", "layer_moved", "metric_jump"]
    assert [each.rule for each in (drop, moved, jump)] == rules
    expected = {"layer": 2, "before": 0.62, "now": 0.57, "change": -0.05, "low": -0.05}
    expected |= {"high": -0.05, "limit": 0.02, "level": 0.95}
    assert drop.numbers == pytest.approx(expected)
    assert "Layer 2, which step3 recommended, scores 57.0 points, 5.0 less" in drop.says
    assert moved.numbers == {"before": 2, "now": 0, "limit": 1}
    assert (jump.numbers["dataset"], jump.numbers["metric"]) == ("texts", "dataset_entropy")
    assert [each["layer"] for each in jump.numbers["layers"]] == [1, 2, 3]
    assert jump.numbers["layers"][0]["before"] == pytest.approx(3.3)
    assert jump.numbers["layers"][0]["usual"] == pytest.approx(0.1)
    assert "Dataset entropy on texts jumped in layers 1, 2, 3, most in layer" in jump.says
    json.dumps([each.numbers for each in (drop, moved, jump)], allow_nan=False)


def test_nights_of_another_number_of_views_are_not_compared_by_them(tmp_path: Path) -> None:
    run = make_run(tmp_path, score_drop=None, layer_moved=None, metric_jump=5)
    assert run.config.views.count == 4
    for step, entropy in enumerate([2.0, 2.1, 2.19, 2.3]):
        store_checkpoint(run, f"step{step}", RISING[2], entropy, views=16)
    store_checkpoint(run, "step4", RISING[2], 2.4, views=4)
    *earlier, new = ranked(run, ())[0]
    assert judge(run, earlier, new) == []
    key = ("texts", "infonce")
    assert [key in each.metrics for each in (*earlier, new)] == [False] * 4 + [True]
    # Those of one number are, and the alert says it.
    for step, entropy in enumerate([2.0, 2.1, 2.19, 2.3]):
        store_checkpoint(run, f"step{step}", RISING[2], entropy, views=4)
    store_checkpoint(run, "step4", RISING[2], 9.0, views=4)
    *earlier, new = ranked(replace(run, seen=Seen()), ())[0]
    says = [each.says for each in judge(run, earlier, new)]
    assert [each.split(" on ")[0] for each in says] == ["Dataset entropy", "InfoNCE, 4 views"]


def test_rules_that_are_off_and_scores_that_are_not_there_break_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, score_drop=None, layer_moved=None, metric_jump=None)
    nothing = [float("nan")] * LAYERS
    for revision, scores in (("step0", RISING[2]), ("step1", RISING[0]), ("step2", nothing)):
        store_checkpoint(run, revision, scores)
    first, second, third = ranked(run, ())[0]
    assert judge(run, [first], second) == []
    strict = make_run(tmp_path, score_drop=0.0, layer_moved=None)
    assert [each.rule for each in judge(strict, [first], second)] == ["score_drop"]
    assert judge(strict, [second], third) == []


def test_many_checkpoints_are_drawn_over_their_steps(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for step, scores in zip((0, 64, 1500), RISING, strict=True):
        store_checkpoint(run, f"step{step}", scores, entropy=step / 1000)
    run.root.write(place("small", MODEL, "step64"), _alert().to_json())
    gone = Subject(MODEL, "step9", MODEL)
    files = _publish(run, {gone: f"cannot load {HOSTILE}"})
    (model,) = json.loads(files["trend.json"])["models"]
    steps = {row["revision"]: row["step"] for row in model["checkpoints"]}
    assert [*steps.items()] == [("step0", 0), ("step64", 64), ("step1500", 1500)]
    newest = model["checkpoints"][-1]
    assert newest["recommended"] == newest["best"]
    assert newest["recommended"]["score"] == pytest.approx(0.62)
    assert (newest["best"]["layer"], newest["last"]["layer"]) == (2, 3)
    assert newest["last"]["low"] < newest["last"]["score"] < newest["last"]["high"]
    (metric,) = model["metrics"]
    assert metric["recommended"] == pytest.approx([1, 1.064, 3.5])
    assert metric["last"] == pytest.approx([3, 3.064, 4.5])
    assert [alert["revision"] for alert in model["alerts"]] == ["step64"]
    page = html.unescape(files["index.html"])
    for number in ("step 1,500: use layer 2", "+7.0 points", "+17.0", "+27.0"):
        assert number in page
    assert "Alert at step64, compared with step0" in page
    assert page.count("layer_moved") == 1
    assert "<script>" not in files["index.html"]
    assert f"cannot load {HOSTILE}" in page
    plots = re.findall(r"<svg.*?</svg>", files["index.html"], flags=re.DOTALL)
    assert len(plots) == 2 + 2 + 1  # scores and their map for two widths, and the metric
    assert all("1,500" in plot for plot in plots)


def test_one_checkpoint_is_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path, ["main"])
    store_checkpoint(run, "main", RISING[2])
    files = _publish(run)
    assert json.loads(files["trend.json"])["models"][0]["checkpoints"][0]["step"] is None
    assert "checkpoint main: use layer 2" in files["index.html"]
    assert "points since" not in files["index.html"]
    assert files["index.html"].count("<svg") == 5


def test_missing_scores_leave_gaps_and_no_promise(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    nothing = [float("nan")] * LAYERS
    store_checkpoint(run, "step0", nothing)
    files = _publish(run)
    assert "step 0: not enough evidence, layer 3" in files["index.html"]
    assert files["index.html"].count("<svg") == 1  # the metric
    store_checkpoint(run, "step4", RISING[1])
    store_checkpoint(run, "step8", nothing)
    files = _publish(run)
    assert files["index.html"].count("<svg") == 5
    for text in files.values():
        assert "nan" not in text.lower().replace("dominan", "")
        assert "None" not in text


def test_checkpoints_that_all_failed_are_named(tmp_path: Path) -> None:
    files = _publish(make_run(tmp_path), {Subject(MODEL, "step4", MODEL): "no weights"})
    assert "Without a ranking" in files["index.html"]
    assert "no weights" in files["index.html"]
    assert "<svg" not in files["index.html"]


def test_several_models_have_a_section_each_whose_ids_are_their_own(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for model, scores in (("a", RISING[0]), ("b", RISING[0]), ("b", RISING[1])):
        store_checkpoint(run, f"step{RISING.index(scores)}", scores, model=model)
    page = _publish(run)["index.html"]
    assert re.findall(r'<h2 class="answer">(.) at', page) == ["a", "b"]
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_same_tables_give_the_same_bytes_and_new_ones_a_stale_page(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert not trend.is_stale(run, [])
    store_checkpoint(run, "step0", RISING[0])
    assert trend.is_stale(run, ranked(run, ())[0])
    first = _publish(run)
    assert not trend.is_stale(run, ranked(run, ())[0])
    assert _publish(run) == first
    store_checkpoint(run, "step4", RISING[1])
    assert trend.is_stale(run, ranked(run, ())[0])


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_page_that_was_not_written_whole_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    run = make_run(tmp_path)
    store_checkpoint(run, "step0", RISING[0])
    _publish(run)
    store_checkpoint(run, "step4", RISING[1])
    history, _ = ranked(run, ())
    write, written = run.root.write, list[str]()

    def write_some(key: str, content: bytes) -> None:
        if len(written) == kept:
            raise OSError("the disk is full")
        written.append(key)
        write(key, content)

    with monkeypatch.context() as patched:
        patched.setattr("layerrank.storage.root.Root.write", lambda _, *what: write_some(*what))
        with pytest.raises(OSError, match="full"):
            _publish(run)
    assert trend.is_stale(run, history)  # another page may lie there
    _publish(run)
    for name in ("index.html", "metrics.html", "trend.json"):
        run.root.delete(f"trend/small/{name}")
        assert trend.is_stale(run, history)
        _publish(run)
    assert not trend.is_stale(run, history)


@dataclass
class Server:
    """What a server was sent, and what it answers."""

    url: str = ""
    status: int = 200
    received: list[tuple[str, str, bytes]] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.received.append((self.path, self.headers["Content-Type"], body))
            self.send_response(state.status)
            self.send_header("Location", f"{state.url}/elsewhere")
            self.end_headers()

        def do_GET(self) -> None:
            state.received.append((self.path, "", b""))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{http.server_port}/{SECRET}"
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


def _config(url: str, seconds: float = 5) -> NightlyConfig:
    return NightlyConfig.model_validate({"webhook": url, "webhook_seconds": seconds})


def test_an_alert_is_read_as_it_was_written(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    assert place("small", "org/model", "a/b") == "alerts/small/org%2Fmodel/a%2Fb.json"
    for revision in ("a/b", "step64"):
        root.write(place("small", MODEL, revision), _alert(revision).to_json())
    assert read_alerts(root, "small", MODEL) == {name: _alert(name) for name in ("a/b", "step64")}
    assert read_alerts(root, "small", "other") == {}
    for each in (b"[]", b"[" * 100_000, b'{"schema_version": 1, "rules": [], "text": 5}', b"null"):
        root.write(place("small", MODEL, "odd"), each)
        assert {*read_alerts(root, "small", MODEL)} == {"a/b", "step64"}
    for model in (".", ".."):
        assert place("small", model, model).split("/")[:2] == ["alerts", "small"]
        assert len({".", ".."} & {*place("small", model, model).split("/")}) == 0
    content = json.loads(root.read(place("small", MODEL, "step64")))
    assert content["schema_version"] == 1
    assert content["rules"][0]["numbers"] == {"before": 1, "now": 5}


@pytest.mark.parametrize("where", ["config", "environment", "file"])
def test_the_webhook_gets_the_same_json(
    server: Server, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if where == "config":
        post(_alert(), _config(server.url), {VARIABLE: "http://elsewhere.invalid"})
    elif where == "file":
        environment = {f"{VARIABLE}_FILE": str(tmp_path / "webhook")}
        post(_alert(), NightlyConfig(), environment)
        assert f"{tmp_path}/webhook: No such file" in capsys.readouterr().out
        (tmp_path / "webhook").write_text(f"{server.url}\n", encoding="utf-8")
        post(_alert(), NightlyConfig(), environment)
    else:
        post(_alert(), NightlyConfig(), {})
        assert capsys.readouterr().out == ""  # without an address nothing is said
        post(_alert(), NightlyConfig(), {VARIABLE: server.url})
    assert server.received == [(f"/{SECRET}", "application/json", _alert().to_json())]
    printed = capsys.readouterr().out
    assert "posted" in printed
    assert SECRET not in printed


def _warning(url: str, capsys: pytest.CaptureFixture[str], seconds: float = 5) -> str:
    post(_alert(), _config(url, seconds), {})
    printed = capsys.readouterr().out
    assert printed.startswith("  warning: ")
    assert printed.count("\n") == 1
    assert SECRET not in printed
    return printed


@pytest.mark.parametrize("status", [200, 204, 301, 302, 303, 307, 308, 400, 500, 503])
def test_what_a_webhook_answers_is_the_last_word(
    server: Server, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    server.status = status
    if status < 300:
        assert post(_alert(), _config(server.url), {}) == "taken"
        assert "posted" in capsys.readouterr().out
    else:
        assert f"it answered {status}" in _warning(server.url, capsys)
    assert [each[2] for each in server.received] == [_alert().to_json()]  # nobody else is asked


def test_a_webhook_that_is_not_there_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert "ConnectionRefusedError" in _warning(f"http://127.0.0.1:1/{SECRET}", capsys)
    assert "InvalidURL" in _warning(f"http://127.0.0.1:1/{SECRET} and more", capsys)


@pytest.mark.parametrize(
    ("said", "drips", "told"),
    [
        ("", "", "TimeoutError"),  # nothing ever
        ("", "HTTP/1.1 200 OK", "TimeoutError"),
        ("HTTP/1.1 200 OK\r\n", "X-Header: and so on", "TimeoutError"),
        ("HTTP/1.1 302 Found\r\nLocation: /\r\n", "X-Header: and so on", "TimeoutError"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", "a body", "posted"),
        ("HTTP/1.1 500 No\r\nContent-Length: 99\r\n\r\n", "a body", "it answered 500"),
        (None, "", "RemoteDisconnected"),
    ],
)
def test_a_webhook_has_so_many_seconds_in_all(
    said: str | None, drips: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()

    def answer() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(1 << 16)
            if said is None:
                return
            connection.sendall(said.encode())
            for letter in drips:
                if ended.wait(0.1):
                    break
                with suppress(OSError):  # who has its answer hangs up
                    connection.sendall(letter.encode())
            ended.wait(10)

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        answering = threading.Thread(target=answer)
        answering.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/{SECRET}"
        began = time.monotonic()
        post(_alert(), _config(url, 0.4), {})
        assert time.monotonic() - began < 5
        ended.set()
        answering.join()
    printed = capsys.readouterr().out
    assert told in printed
    assert SECRET not in printed


def test_to_look_for_the_host_is_within_the_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()

    def look(*_: object, **__: object) -> None:
        ended.wait(20)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", look)
    began = time.monotonic()
    assert "TimeoutError" in _warning(f"http://somewhere.invalid/{SECRET}", capsys, seconds=0.2)
    assert time.monotonic() - began < 10
    ended.set()


def test_an_alert_that_was_not_taken_is_posted_by_a_later_night(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, webhook=server.url)
    revisions = ["step4", "step8", "step64"]
    for revision in ("step0", *revisions):
        store_checkpoint(run, revision, RISING[0])
    history = ranked(run, ())[0]

    def waits() -> list[str]:
        names = run.root.sizes(place("small", MODEL, "a").rpartition("/")[0])
        return [each for each in names if not each.endswith(".json")]

    def sent() -> list[str]:
        found = [json.loads(body)["revision"] for _, _, body in server.received]
        server.received.clear()
        return found

    server.status = 302
    for revision in (revisions[2], revisions[0]):
        publish(run, _alert(revision), {})
    assert (len(waits()), sent()) == (2, ["step64", "step4"])
    server.status = 200
    publish(run, _alert(revisions[1]), {})
    assert (len(waits()), sent()) == (2, ["step8"])
    assert len(read_alerts(run.root, "small", MODEL)) == 3
    # One that is not ranked is judged again, and posted then; without a webhook nothing is asked.
    without = replace(run, config=run.config.model_copy(update={"nightly": NightlyConfig()}))
    post_waiting(without, history, {})
    post_waiting(run, [each for each in history if each.revision == "step8"], {})
    assert (len(waits()), sent()) == (2, [])
    server.status = 500
    post_waiting(run, history, {})
    assert (len(waits()), sent()) == (2, ["step4", "step64"])  # by step, each once
    server.status = 204
    run.root.delete(place("small", MODEL, "step4"))  # withdrawn since
    post_waiting(run, history, {})
    assert (waits(), sent()) == ([], ["step64"])
    post_waiting(run, history, {})
    assert sent() == []
    assert SECRET not in capsys.readouterr().out


def test_a_webhook_that_is_silent_holds_a_night_up_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, webhook=f"http://127.0.0.1:1/{SECRET}")
    for revision in ("step0", "step4", "step8"):
        store_checkpoint(run, revision, RISING[0])
        publish(run, _alert(revision), {})
    capsys.readouterr()
    post_waiting(run, ranked(run, ())[0], {})
    assert capsys.readouterr().out.count("warning") == 1


def test_only_web_addresses_are_posted_to(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"nightly\.webhook: a webhook is an http") as told:
        parse(f"{BASE}nightly: {{webhook: 'file:///{SECRET}'}}", "a config")
    assert SECRET not in str(told.value)
    post(_alert(), NightlyConfig(), {VARIABLE: f"file:///{SECRET}"})
    printed = capsys.readouterr().out
    assert "no http:// or https:// address" in printed
    assert SECRET not in printed
