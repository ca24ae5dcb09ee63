"""The trend page of a run: what its checkpoints show over training, as HTML and as JSON.

Everything is from the tables of the root, rendered before the first write, and the page comes last.
Nothing in it depends on the time or the machine, so the same tables give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import quote

from jobs.cluster.console import say
from jobs.nightly import trends
from jobs.nightly.history import Checkpoint
from jobs.nightly.trends import Trend, trend_of
from jobs.report import wording
from jobs.report.page import page_templates
from jobs.run import Run
from operators.metrics.registry import METRICS
from operators.model.subject import Subject

FOLDER = "trend"
DATA, PAGE = "trend.json", "index.html"


def address(run: Run) -> str:
    """Return where the trend page of a run lies, for people."""
    return run.root.place(_key(run, PAGE))


def is_stale(run: Run, history: Sequence[Checkpoint]) -> bool:
    """Whether the page shows other checkpoints than those that are ranked, or is not there."""
    try:
        shown = json.loads(run.root.read(_key(run, DATA)))
    except FileNotFoundError:
        return bool(history)
    names = {(m["model"], each["revision"]) for m in shown["models"] for each in m["checkpoints"]}
    return names != {(each.model, each.revision) for each in history}


def publish(run: Run, history: Sequence[Checkpoint], failed: Mapping[Subject, str]) -> None:
    """Write the trend page of ranked checkpoints, in order, and of those that could not be."""
    for name, content in render(trend_of(run.root, run.config, history, failed)).items():
        run.root.write(_key(run, name), content)
    say(f"  trend: {address(run)}")


def render(trend: Trend) -> dict[str, bytes]:
    """Return the files, in the order in which they are to be written."""
    content = json.dumps(trend.to_json(), indent=1, allow_nan=False, ensure_ascii=False)
    page = page_templates().get_template("trend.html.j2")
    return {
        DATA: (content + "\n").encode(),
        PAGE: page.render(
            trend=trend,
            wording=wording,
            trending=trends,
            plots=trends,
            known=METRICS,
            version=_version(),
        ).encode(),
    }


def _key(run: Run, name: str) -> str:
    return f"{FOLDER}/{quote(run.config.name, safe='')}/{name}"


def _version() -> str:
    try:
        return version("layerrank")
    except PackageNotFoundError:
        return ""
