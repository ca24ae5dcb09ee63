"""Alerts: the file, and the POST to a real HTTP server that takes it, refuses it, or is silent."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from jobs.config.blocks import ConfigError
from jobs.config.run import parse
from jobs.config.settings import NightlyConfig
from jobs.nightly.judge import VARIABLE, Alert, Broken, place, post, read_alerts
from storage.root import Root

SECRET = "path-of-nobody"
BASE = "name: r\nsubjects: [{model: m}]\ndatasets: [{name: d, source: {files: a.jsonl}}]\n"


def _alert(revision: str = "step64") -> Alert:
    broken = Broken("layer_moved", "The recommended layer moved.", {"before": 1, "now": 5})
    return Alert("r", "org/m", revision, "step16", "Worse.", [broken], "/out/trend/r/index.html")


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
    assert place("r", "org/m", "a/b") == "alerts/r/org%2Fm/a%2Fb.json"
    for revision in ("a/b", "step64"):
        root.write(place("r", "org/m", revision), _alert(revision).to_json())
    assert read_alerts(root, "r", "org/m") == {name: _alert(name) for name in ("a/b", "step64")}
    assert read_alerts(root, "r", "other") == {}
    content = json.loads(root.read(place("r", "org/m", "step64")))
    assert content["schema_version"] == 1
    assert content["rules"][0]["numbers"] == {"before": 1, "now": 5}


@pytest.mark.parametrize("where", ["config", "environment"])
def test_the_webhook_gets_the_same_json(
    server: Server, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if where == "config":
        post(_alert(), _config(server.url), {VARIABLE: "http://elsewhere.invalid"})
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


def test_a_webhook_that_refuses_or_is_not_there_is_a_warning(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.status = 503
    assert "it answered 503" in _warning(server.url, capsys)
    assert "ConnectionRefusedError" in _warning(f"http://127.0.0.1:1/{SECRET}", capsys)
    assert "InvalidURL" in _warning(f"http://127.0.0.1:1/{SECRET} and more", capsys)


def test_a_silent_webhook_is_given_up(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/{SECRET}"
        began = time.monotonic()
        assert "TimeoutError" in _warning(url, capsys, seconds=0.3)
        assert time.monotonic() - began < 10


def test_only_web_addresses_are_posted_to(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"nightly\.webhook: a webhook is an http") as told:
        parse(f"{BASE}nightly: {{webhook: 'file:///{SECRET}'}}", "a config")
    assert SECRET not in str(told.value)
    post(_alert(), NightlyConfig(), {VARIABLE: f"file:///{SECRET}"})
    printed = capsys.readouterr().out
    assert "no http:// or https:// address" in printed
    assert SECRET not in printed
