"""What a report says about what was read, what it took, and what has no value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from jobs.report.findings import Encoded, Series, SubjectFinding
from jobs.report.wording import title
from jobs.words import counted
from operators.metrics.registry import METRICS
from operators.prompts.conditions import graded
from storage.partition import CLEAN

_FROM_SEARCH = "dropped early by the search, else undefined for the reason in probe_scores"
_FROM_TASK = "undefined, for the reason in probe_scores"


@dataclass(frozen=True)
class Undefined:
    """Values that do not exist: which, how many, and why."""

    what: str
    count: str
    reason: str


def totals(encoded: Sequence[Encoded]) -> list[Encoded]:
    """Return one row per dataset for its clean texts, one for its views and one for conditions."""
    rows = []
    for (_, kind), group in groupby(encoded, key=lambda each: (each.dataset, _kind(each))):
        same = list(group)
        shown = same[0].condition if len(same) == 1 else f"{len(same)} {kind}"
        rows.append(_sum(same, shown))
    return rows


def _kind(each: Encoded) -> str:
    if each.condition == CLEAN:
        return CLEAN
    return "conditions" if graded(each.condition) else "views"


def _sum(encoded: Sequence[Encoded], condition: str) -> Encoded:
    return replace(
        encoded[0],
        condition=condition,
        prompts=sum(each.prompts for each in encoded),
        shards=sum(each.shards for each in encoded),
        tokens=sum(each.tokens for each in encoded),
        truncated=sum(each.truncated for each in encoded),
        skipped_no_tokens=sum(each.skipped_no_tokens for each in encoded),
        model_seconds=sum(each.model_seconds for each in encoded),
    )


def model_time(subject: SubjectFinding) -> str:
    """Return what the forward passes of a subject took."""
    tokens = sum(each.tokens for each in subject.encoded)
    seconds = sum(each.model_seconds for each in subject.encoded)
    rate = f", {tokens / seconds:,.0f} tokens a second" if seconds else ""
    return (
        f"{tokens:,} tokens went through the model in {seconds:,.0f} seconds of model time, "
        f"summed over its workers{rate}."
    )


def undefined(subject: SubjectFinding) -> list[Undefined]:
    """Return what has no value, in how many places, and why: one entry per metric and reason."""
    together: dict[tuple[str, str], list[Series]] = {}
    for series in subject.metrics:
        for reason in _reasons(series):
            together.setdefault((series.metric, reason), []).append(series)
    found = [
        Undefined(title(metric), _extent(series, reason), reason)
        for (metric, reason), series in together.items()
    ]
    reason = _FROM_TASK if subject.search_share is None else _FROM_SEARCH
    for task in subject.tasks:
        layers = [row.layer for row in subject.layers if row.tasks[task.label] is None]
        if layers:
            where = _layers(layers, len(subject.layers))
            found.append(Undefined(f"Task {task.label}", where, reason))
    return found


def _reasons(series: Series) -> list[str]:
    """Return why values of a series, or of prompts in it, do not exist."""
    reasons = [each.reason or "undefined" for each in series.values if each.value is None]
    if any(each.n_undefined for each in series.values):
        known = METRICS.get(series.metric)
        reasons.append(known.undefined if known else "undefined")
    return list(dict.fromkeys(reasons))


def _extent(series: Sequence[Series], reason: str) -> str:
    """Return how many values are missing for a reason, and from how many prompts at most."""
    values = [value for each in series for value in each.values]
    missing = [each.layer for each in values if each.value is None and each.reason == reason]
    worst = max(values, key=lambda each: each.n_undefined)
    parts = []
    if missing:
        where = _layers(sorted(set(missing)), len({each.layer for each in values}))
        parts.append(f"{len(missing):,} of {counted(len(values), 'value')}, in {where}")
    if worst.n_undefined:
        total = worst.n_prompts + worst.n_undefined
        parts.append(f"{worst.n_undefined:,} of {total:,} prompts, at most in one layer")
    return "; ".join(parts)


def _layers(layers: Sequence[int], of: int) -> str:
    if len(layers) == of:
        return "every layer"
    return f"layer{'' if len(layers) == 1 else 's'} {', '.join(map(str, layers))}"
