"""How a report puts numbers and findings into words. Scores are shown in points, 100 x score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from jobs.findings import Encoded, Series, SubjectFinding
from operators.metrics.registry import METRICS
from storage.partition import CLEAN

NOTHING = "-"
_FEW_TASKS = 5
_OF_TOKENS = "tokens"  # the pooling of a mean over per-prompt token metrics


@dataclass(frozen=True)
class Undefined:
    """Values that do not exist: which, how many, and why."""

    what: str
    count: str
    reason: str


def points(value: float | None) -> str:
    """Return a score in points, one decimal."""
    return NOTHING if value is None else f"{round(100 * value, 1) + 0.0:.1f}"


def signed(value: float | None) -> str:
    """Return a gain in points with its sign."""
    return f"+{points(value)}" if value is not None and round(100 * value, 1) > 0 else points(value)


def span(low: float | None, high: float | None) -> str:
    """Return an interval in points."""
    return NOTHING if low is None or high is None else f"{points(low)} to {points(high)}"


def gain_span(subject: SubjectFinding, layer: int) -> str:
    """Return the interval of a layer's gain; the last layer is what gains are over."""
    row = next(row for row in subject.layers if row.layer == layer)
    if layer == subject.last:
        return NOTHING if row.score is None else "baseline"
    return span(row.gain_low, row.gain_high)


def share(value: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * value:.0f} %"


def number(value: float | None) -> str:
    """Return a metric's value with four digits."""
    return NOTHING if value is None else f"{value:#.4g}".rstrip(".")


def count(value: float) -> str:
    """Return a count with separators."""
    return f"{value:,.0f}"


def counted(amount: int, noun: str) -> str:
    """Return a count with its noun, plural unless it is one."""
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def setting(subject: SubjectFinding) -> str:
    """Return which vectors of a subject were ranked."""
    return f"{counted(subject.blocks, 'block')}, {vectors_of(subject.norm, subject.pooling)}"


def vectors_of(norm: str, pooling: str) -> str:
    """Return a norm and a pooling in words."""
    state = "final norm" if norm == "final" else "raw output"
    how = "token by token" if pooling == _OF_TOKENS else f"{pooling.replace('_', ' ')} pooling"
    return f"{how}, {state}"


def title(metric: str) -> str:
    """Return a metric's title; its name if no title is known."""
    return METRICS[metric].title if metric in METRICS else metric


def advice(subject: SubjectFinding) -> str:
    """Return what to do with the verdict."""
    layer, blocks, kind = subject.verdict.layer, subject.blocks, subject.verdict.kind
    if kind == "use_layer" and layer == 0:
        return "Take the input embeddings: no block of the model has to run."
    if kind == "use_layer":
        return (
            f"Cut the model after block {layer} of {blocks}: {share(layer / blocks)} of its blocks "
            f"then run. Take the vectors as here: {vectors_of(subject.norm, subject.pooling)}."
        )
    if kind == "keep_last":
        return f"Go on with the model as it is ({vectors_of(subject.norm, subject.pooling)})."
    if not subject.is_scored:
        return (
            "Give a dataset of the config a labelled task and run again. "
            "The stored vectors are used as they are: nothing is encoded twice."
        )
    return (
        "Keep the last layer for now, and add labelled tasks to narrow the intervals. "
        "The stored vectors are used as they are: nothing is encoded twice."
    )


def certainty(subject: SubjectFinding, level: float, draws: int) -> str:
    """Return how sure the verdict is, and what its intervals leave out."""
    if not subject.is_scored:
        return ""
    tasks = len(subject.tasks)
    folds = sorted({task.folds for task in subject.tasks})
    each = f"{folds[0]}" if len(folds) == 1 else f"{folds[0]} to {folds[-1]}"
    base = (
        f"{counted(tasks, 'task')} of {each} folds each; the {100 * level:g} % intervals come from "
        f"{draws:,} bootstrap draws of tasks and folds. Each is one layer's own, not corrected for "
        f"choosing the best of {len(subject.layers)} layers, so the best layer's gain is a little "
        "optimistic."
    )
    if tasks == 1:
        return f"{base} With one task they show the noise of its folds, and nothing of other tasks."
    if tasks <= _FEW_TASKS:
        distinct = math.comb(2 * tasks - 1, tasks)
        return (
            f"{base} {tasks} tasks make them coarse and too narrow: there are only {distinct} "
            f"different draws of {tasks} tasks."
        )
    return base


def totals(encoded: Sequence[Encoded]) -> list[Encoded]:
    """Return one row per dataset for its clean texts and one for its views together."""
    rows = []
    for _, group in groupby(encoded, key=lambda each: (each.dataset, each.condition == CLEAN)):
        same = list(group)
        views = same[0].condition if len(same) == 1 else f"{len(same)} views"
        rows.append(_sum(same, views))
    return rows


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
    for task in subject.tasks:
        layers = [row.layer for row in subject.layers if row.tasks[task.label] is None]
        if layers:
            where = _layers(layers, len(subject.layers))
            found.append(
                Undefined(f"Task {task.label}", where, "undefined, for the reason in probe_scores")
            )
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


def best(subject: SubjectFinding, label: str) -> float | None:
    """Return the highest score of a task over the layers."""
    return max((v for row in subject.layers if (v := row.tasks[label]) is not None), default=None)


def layers(series: Sequence[Series]) -> list[int]:
    """Return the layers that some series have."""
    return sorted({value.layer for each in series for value in each.values})


def value_at(series: Series, layer: int) -> float | None:
    """Return the value of a layer; None if there is none."""
    return next((each.value for each in series.values if each.layer == layer), None)
