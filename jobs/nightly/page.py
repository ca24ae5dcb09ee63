"""The trend page of a run: its checkpoints over training and their alerts, as HTML and as JSON.

Everything is from the tables of the root, rendered before the first write, and the page comes last.
Nothing in it depends on the time or the machine, so the same tables give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any
from urllib.parse import quote

from layerrank.jobs.cluster.console import say
from layerrank.jobs.config.metrics import parameters
from layerrank.jobs.nightly.judge import read_alerts
from layerrank.jobs.rank.ranking import Checkpoint
from layerrank.jobs.report import guide, made, section
from layerrank.jobs.report.facts import units_of
from layerrank.jobs.report.section import Section, Table
from layerrank.jobs.report.sections import training
from layerrank.jobs.run import Run
from layerrank.jobs.words import counted
from layerrank.operators.model.subject import Subject
from layerrank.storage.partition import by_step, one_name, step_of

FOLDER = "trend"
DATA, PAGE = "trend.json", "index.html"
SCHEMA_VERSION = 1


def address(run: Run) -> str:
    """Return where the trend page of a run lies, for people."""
    return run.root.place(_key(run, PAGE))


def is_stale(run: Run, history: Sequence[Checkpoint]) -> bool:
    """Whether the page shows other checkpoints than those that are ranked, or is not all there.

    What lies there is what the data says, which are written last.
    """
    if {DATA, PAGE, guide.PAGE} - run.root.sizes(_key(run, "")).keys():
        return bool(history)
    try:
        shown = json.loads(run.root.read(_key(run, DATA)))
        models = shown["models"]
        names = {(m["model"], each["revision"]) for m in models for each in m["checkpoints"]}
    except (ValueError, KeyError, TypeError, RecursionError):  # not as it was written
        return True
    return names != {(each.model, each.revision) for each in history}


def publish(run: Run, history: Sequence[Checkpoint], failed: Mapping[Subject, str]) -> None:
    """Write the trend page of ranked checkpoints, in order, and of those that could not be."""
    sections, models = [], []
    for name in sorted({each.model for each in history} | {each.name for each in failed}):
        checkpoints = [each for each in history if each.model == name]
        reasons = {each.revision: reason for each, reason in failed.items() if each.name == name}
        told, data = _model(run, name, checkpoints, reasons)
        sections.append(told)
        models.append(data)
    trend = {"schema_version": SCHEMA_VERSION, "run": run.config.name}
    version = made.versions()["layerrank"] or ""
    files = {
        guide.PAGE: guide.page(version),
        PAGE: section.page(
            "page.html.j2",
            title=f"{', '.join(each['model'] for each in models)}: layers over training",
            about=f"Run {run.config.name}; {counted(len(history), 'checkpoint')}.",
            before=sections,
            models=[],
            after=[],
            version=version,
            forms={"JSON": DATA},
        ),
        DATA: section.json_bytes({**trend, "level": run.config.rank.level, "models": models}),
    }
    for name, content in files.items():
        run.root.write(_key(run, name), content)
    say(f"  trend: {address(run)}")


def _model(
    run: Run, name: str, checkpoints: Sequence[Checkpoint], failed: Mapping[str, str]
) -> tuple[Section, dict[str, Any]]:
    """Return the training section of a model, after its alerts and what has no ranking; its data.

    `failed` says of revisions why they could not be ranked.
    """
    units, revisions = units_of(parameters(run.config)), [each.revision for each in checkpoints]
    without = [each for each in sorted(failed, key=by_step) if each not in revisions]
    found = read_alerts(run.root, run.config.name, name)
    alerts = [found[revision] for revision in revisions if revision in found]
    parts = [
        Section(
            f"Alert at {alert.revision}, compared with {alert.previous}",
            says=[each.says for each in alert.rules],
        )
        for alert in reversed(alerts)
    ]
    if without:
        unranked = [[revision, failed[revision]] for revision in without]
        table = Table(
            "Checkpoints without a ranking", ["Checkpoint", "Why"], unranked, words=(0, 1)
        )
        parts.append(
            Section("Without a ranking", says=["Tried again every night."], tables=[table])
        )
    told = Section(f"{name} over training")
    if checkpoints:
        rules = {
            alert.revision: ", ".join(dict.fromkeys(each.rule for each in alert.rules))
            for alert in alerts
        }
        views = run.config.views.count
        told = training.section(checkpoints, run.config.rank.level, units, rules, views=views)

    def score(each: Checkpoint, layer: int) -> dict[str, Any]:
        row = each.row(layer)
        columns = {"score": "score", "low": "score_low", "high": "score_high"}
        return {"layer": layer, **{name: row[column] for name, column in columns.items()}}

    ranked = [
        {
            "revision": each.revision,
            "step": step_of(each.revision),
            "verdict": each.ranking[0]["verdict"],
            "recommended": score(each, each.recommended),
            "best": None if each.best is None else score(each, each.best),
            "last": score(each, max(each.layers)),
        }
        for each in checkpoints
    ]
    metrics = [
        {
            "dataset": key[0],
            "metric": key[1],
            "unit": units[key[1]],
            "recommended": [
                each.metrics.get(key, {}).get(each.recommended) for each in checkpoints
            ],
            "last": [each.metrics.get(key, {}).get(max(each.layers)) for each in checkpoints],
        }
        for key in dict.fromkeys(key for each in checkpoints for key in each.metrics)
    ]
    data = {
        "model": name,
        "checkpoints": ranked,
        "metrics": metrics,
        "alerts": [asdict(alert) for alert in alerts],
        "unranked": [{"revision": each, "reason": failed[each]} for each in without],
    }
    anchor = f"m-{quote(name, safe='').lower()}"
    return replace(told, anchor=anchor, parts=[*parts, *told.parts]), data


def _key(run: Run, name: str) -> str:
    return f"{FOLDER}/{one_name(run.config.name)}/{name}"
