"""What was read, what it took, and what was left out or has no value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from layerrank.jobs.config.prompts import by_template
from layerrank.jobs.config.run import graded_conditions, labelled_tasks
from layerrank.jobs.prepare.records import TOLD
from layerrank.jobs.rank.ranking import Row
from layerrank.jobs.report.facts import Facts, title
from layerrank.jobs.report.section import Cell, Section, Table
from layerrank.jobs.report.sections.metrics import Series, series
from layerrank.jobs.run import Run, partition
from layerrank.jobs.words import count, counted, known, numbered
from layerrank.operators.metrics.registry import METRICS
from layerrank.operators.prompts.conditions import graded
from layerrank.operators.prompts.templates import is_prompt
from layerrank.operators.prompts.views import view_name
from layerrank.storage.partition import CLEAN

_SUMMED = ("prompts", "shards", "tokens", "truncated", "skipped_no_tokens", "model_seconds")


def section(facts: Facts) -> Section:
    """Return what went through the model, and every value that does not exist."""
    if facts.run is None:
        return Section(
            "What was read", "inputs", data={"encoded": [], "task_rows": [], "prompts": []}
        )
    encoded, task_rows = list(_encoded(facts, facts.run)), list(_task_rows(facts, facts.run))
    missing = undefined(
        facts, [each for d in facts.run.config.datasets for each in series(facts, d.name)]
    )
    rows, prompts = totals(encoded), list(_prompts(facts, facts.run))
    tables = [_table("What went through the model", rows, facts.run)]
    if len(encoded) > len(rows):
        tables.append(_table("Every condition", encoded, facts.run, folded=True))
    if task_rows:
        tables.append(_tasks_table(task_rows))
    if prompts:
        head = ["Dataset", "Condition", "Template", "What is read in it"]
        cells = [[*map(str, each.values())] for each in prompts]
        tables.append(Table("In which templates texts were read", head, cells, words=range(4)))
    if missing:
        head = ["Value", "Where", "Why"]
        tables.append(Table("Undefined values", head, missing, words=(0, 1, 2)))
    tokens, seconds = (sum(each[name] for each in encoded) for name in ("tokens", "model_seconds"))
    rate = f", {tokens / seconds:,.0f} tokens a second" if seconds else ""
    says = (
        f"{tokens:,} tokens went through the model in {seconds:,.0f} seconds of model time, summed "
        f"over its workers{rate}. Every layer, metric and task was made from these passes."
    )
    return Section(
        f"What was read, and what was left out{f': {len(missing)} undefined' if missing else ''}",
        "inputs",
        says=[
            says if missing else f"{says} No score and no metric is undefined.",
            *_beside_mteb(facts),
        ],
        tables=tables,
        folded=True,
        data={"encoded": encoded, "task_rows": task_rows, "prompts": prompts},
    )


def _beside_mteb(facts: Facts) -> list[str]:
    """Return where scores of the tasks that there are differ from mteb's, and why."""
    types = {task.scores.task_type for task in facts.ranking.tasks}
    told = []
    if "retrieval" in types:
        told.append(
            "In retrieval equal texts are one document; mteb counts the twin of the right one as "
            "wrong. On a real set with 7 % of twins that makes 0.7 to 4.2 points."
        )
    if "classification" in types and facts.ranking.vectors.transform == "raw":
        told.append(
            "Accuracy of raw vectors may differ from mteb's by single decisions: the fit, in "
            "float32, stops before its optimum."
        )
    return told


def _encoded(facts: Facts, run: Run) -> Iterator[dict[str, Any]]:
    """Yield what went through the model: one dataset in one condition each."""
    for dataset in run.config.datasets:
        views = map(view_name, range(run.config.views.count))
        conditions = (each.name for each in graded_conditions(run.config, dataset))
        templates = by_template(run.sides(facts.ranking.subject, dataset))
        prompted = (each.condition for each in templates)
        for condition in (CLEAN, *views, *conditions, *prompted):
            where = partition("embeddings", facts.ranking.subject, dataset, condition)
            manifest = run.manifests.load(where)
            if manifest is not None:
                found = manifest.facts()
                plain = ("prompts", "tokens", "truncated", "skipped_no_tokens")
                yield {
                    "dataset": dataset.name,
                    "condition": condition,
                    **{name: int(found[name]) for name in plain},
                    "shards": len(manifest.receipts),
                    "model_seconds": round(float(found["model_seconds"]), 3),
                }


def _prompts(facts: Facts, run: Run) -> Iterator[dict[str, Any]]:
    """Yield the templates that texts were read in, each with the tasks and sides that they are."""
    for dataset in run.config.datasets:
        for template, same in by_template(run.sides(facts.ranking.subject, dataset)).items():
            yield {
                "dataset": dataset.name,
                "condition": template.condition,
                "template": template.written,
                "sides": ", ".join(map(str, same)),
            }


def _task_rows(facts: Facts, run: Run) -> Iterator[dict[str, Any]]:
    """Yield what each task is made of, what of its source is no item, and what is cut of its texts.

    A root that was prepared before these were counted has items alone.
    """
    for label, dataset, task in labelled_tasks(run.config):
        items = run.manifests.load(partition("tasks", task, dataset))
        clean = run.manifests.load(partition("embeddings", facts.ranking.subject, dataset))
        if items is not None:
            found, cut = items.facts(), clean.facts()["truncated"] if clean else 0
            yield {
                "task": label,
                "dataset": dataset.name,
                "items": items.rows,
                **{name: int(found[name]) for name in ("labels", *TOLD)},
                "truncated": int(cut),
            }


def _tasks_table(rows: Sequence[Row]) -> Table:
    columns = ("items", "labels", *TOLD, "truncated")
    head: list[Cell] = [
        *("Task", "Dataset", "Items", "Labels"),
        ("No text", "rows left out"),
        ("No label", "rows left out"),
        ("Repeated", "rows"),
        ("Contradicted", "other label"),
        ("Truncated", "dataset's texts"),
    ]
    cells = [
        [each["task"], each["dataset"], *(count(each[name]) for name in columns)] for each in rows
    ]
    return Table("What the tasks are made of", head, cells, words=(0, 1))


def totals(encoded: Sequence[Row]) -> list[Row]:
    """Return one row per dataset for its clean texts, its views, its conditions, its templates."""

    def kind(each: Row) -> tuple[str, str]:
        if each["condition"] == CLEAN:
            return each["dataset"], CLEAN
        if is_prompt(each["condition"]):
            return each["dataset"], "templates"
        return each["dataset"], "conditions" if graded(each["condition"]) else "views"

    rows: list[Row] = []
    for (_, name), group in groupby(encoded, key=kind):
        same = list(group)
        shown = same[0]["condition"] if len(same) == 1 else f"{len(same)} {name}"
        sums = {column: sum(each[column] for each in same) for column in _SUMMED}
        rows.append({**same[0], **sums, "condition": shown})
    return rows


def undefined(facts: Facts, measured: Sequence[Series]) -> list[list[str]]:
    """Return what has no value, in how many places, and why: a row per metric and reason."""
    together: dict[tuple[str, str], list[Series]] = {}
    for each in measured:
        reasons = [r["reason"] or "undefined" for r in each.rows if not known(r["value"])]
        if any(row["n_undefined"] for row in each.rows):
            metric = METRICS.get(each.metric)
            reasons.append(metric.undefined if metric else "undefined")
        for reason in dict.fromkeys(reasons):
            together.setdefault((each.metric, reason), []).append(each)
    found = [
        [title(metric), _extent(same, reason), reason]
        for (metric, reason), same in together.items()
    ]
    why = "undefined for the reason in probe_scores"
    if facts.ranking.search_share is not None:
        why = f"dropped early by the search, else {why}"
    for task in facts.ranking.tasks:
        rows = facts.ranking.rows
        layers = [row["layer"] for row in rows if not known(row["tasks"][task.label])]
        if layers:
            where = numbered(layers) if len(layers) < len(rows) else "every layer"
            found.append([f"Task {task.label}", where, why])
    return found


def _extent(same: Sequence[Series], reason: str) -> str:
    """Return how many values are missing for a reason, and from how many prompts at most."""
    rows = [row for each in same for row in each.rows]
    missing = [
        row["layer"]
        for row in rows
        if not known(row["value"]) and (row["reason"] or "undefined") == reason
    ]
    worst = max(rows, key=lambda row: int(row["n_undefined"]))
    parts = []
    if missing:
        layers, of = sorted(set(missing)), {row["layer"] for row in rows}
        where = numbered(layers) if len(layers) < len(of) else "every layer"
        parts.append(f"{len(missing):,} of {counted(len(rows), 'value')}, in {where}")
    if worst["n_undefined"]:
        total = worst["n_prompts"] + worst["n_undefined"]
        parts.append(f"{worst['n_undefined']:,} of {total:,} prompts, at most in one layer")
    return "; ".join(parts)


def _table(label: str, encoded: Sequence[Row], run: Run, *, folded: bool = False) -> Table:
    columns = ("prompts", "tokens", "truncated", "skipped_no_tokens", "model_seconds")
    rows = [
        [each["dataset"], each["condition"], *(count(each[name]) for name in columns)]
        for each in encoded
    ]
    head: list[Cell] = [
        "Dataset",
        "Condition",
        "Prompts",
        "Tokens",
        ("Truncated", f"at {run.config.extract.max_tokens} tokens"),
        ("No token", "left out"),
        ("Model time", "seconds"),
    ]
    return Table(label, head, rows, words=(0, 1), folded=folded)
