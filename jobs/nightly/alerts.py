"""Alerts: the rules that a checkpoint broke, as a JSON file and as a POST."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote, unquote

from jobs.cluster.console import say
from jobs.config.settings import WEB, NightlyConfig
from storage.root import Root

SCHEMA_VERSION = 1
FOLDER = "alerts"
VARIABLE = "LAYERRANK_WEBHOOK"


@dataclass(frozen=True)
class Broken:
    """A rule that a checkpoint broke: its name in the config, a sentence, and the numbers.

    Scores and their changes are 0..1 in `numbers`, and in points in the sentence.
    """

    rule: str
    says: str
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Alert:
    """The rules that a checkpoint broke against the previous one, and where to look.

    `text` is the whole in a few sentences, under the key that chat services show.
    """

    run: str
    model: str
    revision: str
    previous: str
    text: str
    rules: list[Broken]
    trend: str

    def to_json(self) -> bytes:
        """Return the alert as JSON."""
        content = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        return (json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def place(run: str, model: str, revision: str) -> str:
    """Return the key of the alert of a checkpoint."""
    return f"{_folder(run, model)}/{quote(revision, safe='')}.json"


def read_alerts(root: Root, run: str, model: str) -> dict[str, Alert]:
    """Return the alerts of a model by revision."""
    folder = _folder(run, model)
    names = [name for name in root.sizes(folder) if name.endswith(".json")]
    found = {}
    for name in sorted(names):
        values = json.loads(root.read(f"{folder}/{name}"))
        del values["schema_version"]
        rules = [Broken(**each) for each in values.pop("rules")]
        found[unquote(name.removesuffix(".json"))] = Alert(**values, rules=rules)
    return found


def post(alert: Alert, config: NightlyConfig, environment: Mapping[str, str] = os.environ) -> None:
    """POST an alert to the webhook, if there is one; a failure is a line and no more.

    Neither the line nor anything else shows the address: it is what lets people post there.
    """
    secret = config.webhook
    address = secret.get_secret_value() if secret else environment.get(VARIABLE, "")
    if not address:
        return
    if not address.startswith(WEB):
        say(f"  warning: {VARIABLE} is no http:// or https:// address; the alert was not posted")
        return
    headers = {"Content-Type": "application/json", "User-Agent": "layerrank"}
    try:
        request = urllib.request.Request(address, alert.to_json(), headers, method="POST")
        with urllib.request.urlopen(request, timeout=config.webhook_seconds):
            say("  the alert was posted to the webhook")
    except urllib.error.HTTPError as error:
        _warn(f"it answered {error.code}")
        error.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        _warn(type(error if isinstance(reason, str) else reason).__name__)


def _warn(reason: str) -> None:
    say(f"  warning: the webhook did not take the alert ({reason}); the file of the alert stays")


def _folder(run: str, model: str) -> str:
    return f"{FOLDER}/{quote(run, safe='')}/{quote(model, safe='')}"
