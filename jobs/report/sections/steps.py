"""The three steps of choosing a layer, in words: compare on a task, check stability, weigh cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.report.findings import CurveFinding, LayerFinding, SubjectFinding
from jobs.report.gallery import drawn
from jobs.report.sections.curves import curve_of
from jobs.report.wording import is_equal, nearest, scored, title, value_at
from jobs.words import counted, number, points, share, size
from operators.analysis.labelfree import READ_AS

METRICS = {
    "infonce": "low: typos ignored",
    "lidar": "high: texts apart",
    "prompt_entropy": "low: compressed",
}
_NOISE = "noise"
_MOST = 5


@dataclass(frozen=True)
class Falls:
    """Mean score of a layer over the tasks with noise: on clean texts, and at the highest level."""

    layer: int
    clean: float
    noisy: float


def apply(subject: SubjectFinding) -> bool:
    """Whether a subject has what the steps need: two scored layers, and scores under noise."""
    return len(scored(subject)) > 1 and bool(falls(subject))


def candidates(subject: SubjectFinding) -> list[LayerFinding]:
    """Return the layers between which to choose: those equal to the best, the next, the last."""
    rows = scored(subject)
    best_first = sorted(rows, key=lambda row: (-(row.score or 0.0), row.layer))
    kept = [row.layer for row in best_first if is_equal(row)][: _MOST - 2] or [best_first[0].layer]
    kept += [layer for layer in (nearest(subject), subject.last) if layer is not None]
    kept.append(subject.verdict.layer)
    return [row for row in rows if row.layer in kept]


def compare(subject: SubjectFinding) -> str:
    """Return what the first step found: the layers on the task."""
    rows = sorted(scored(subject), key=lambda row: (-(row.score or 0.0), row.layer))
    tasks = ", ".join(f"“{task.label}”" for task in subject.tasks)
    prompts = max((each.prompts for each in subject.encoded), default=0)
    best, last = rows[0], next((row for row in rows if row.layer == subject.last), None)
    other, called = (rows[1], "the next") if best is last or last is None else (last, "the last")
    return (
        f"{counted(len(rows), 'layer')} of {counted(prompts, 'prompt')}, from one pass of the "
        f"model, were compared on {tasks}. Layer {best.layer} scores highest, "
        f"{points(best.score)} points; {called}, layer {other.layer}, {points(other.score)}."
    )


def stability(subject: SubjectFinding) -> str:
    """Return what the second step found: how each candidate holds when words have typos."""
    found = [each for each in falls(subject) if each.layer in _layers(subject)]
    level = max(x for each in _noise(subject) for curve in each.curves for x in curve.x)
    parts = [
        f"layer {each.layer} goes from {points(each.clean)} to {points(each.noisy)} points"
        for each in found
    ]
    said = f"With typos (of each kind in {share(level)} of the words) {'; '.join(parts)}."
    if len(found) > 1:
        least = min(found, key=lambda each: (each.clean - each.noisy, each.layer)).layer
        most = max(found, key=lambda each: (each.noisy, -each.layer)).layer
        if least == most:
            said += f" Layer {least} loses least and scores most."
        else:
            said += f" Layer {least} loses least, layer {most} scores most."
    return " ".join([said, *_of_metrics(subject)])


def cost(subject: SubjectFinding) -> str:
    """Return what the third step found: what each candidate takes."""
    parts = [
        f"layer {row.layer} takes {share(row.cost)} of the compute and "
        f"{size(row.latency_ms)} ms a prompt"
        for row in candidates(subject)
    ]
    said = f"{'; '.join(parts)}."
    chosen = subject.verdict.layer
    if subject.verdict.kind == "use_layer":
        end = (
            f"Layer {chosen} is the choice, and it saves {share(subject.verdict.saved)} of the "
            "compute."
        )
    elif subject.verdict.kind == "keep_last":
        end = f"The last layer ({chosen}) is the choice, and it saves nothing."
    else:
        end = "The scores do not decide between them."
    return f"{said[0].upper()}{said[1:]} {end}"


def metric(subject: SubjectFinding, name: str, layer: int) -> str:
    """Return a stability metric of a layer, on the first dataset that has it."""
    return number(_value(subject, name, layer))


def better(name: str) -> str:
    """Return how people read a metric."""
    return METRICS[name]


def measured(subject: SubjectFinding) -> list[str]:
    """Return which stability metrics were measured."""
    return [
        name
        for name in METRICS
        if any(_value(subject, name, layer) is not None for layer in _layers(subject))
    ]


def falls(subject: SubjectFinding) -> list[Falls]:
    """Return how far the score of every layer falls under noise, mean over the tasks with both."""
    found = []
    for row in subject.layers:
        ends = [
            (curve.score[0], curve.score[-1])
            for each in _noise(subject)
            if (curve := curve_of(each, row.layer)) is not None and len(curve.x) > 1
        ]
        known = [(a, b) for a, b in ends if a is not None and b is not None]
        if known:
            clean, noisy = (sum(side) / len(known) for side in zip(*known, strict=True))
            found.append(Falls(row.layer, clean, noisy))
    return found


def fall_of(subject: SubjectFinding, layer: int) -> Falls | None:
    """Return how far a layer falls under noise; None if it was not tested."""
    return next((each for each in falls(subject) if each.layer == layer), None)


def _noise(subject: SubjectFinding) -> list[CurveFinding]:
    return [each for each in subject.curves if each.kind == _NOISE]


def _layers(subject: SubjectFinding) -> list[int]:
    return [row.layer for row in candidates(subject)]


def _of_metrics(subject: SubjectFinding) -> list[str]:
    """Say where each metric reads best among the candidates, which is no proof of anything."""
    best: dict[int, list[str]] = {}
    for name in measured(subject):
        values = {
            layer: value
            for layer in _layers(subject)
            if (value := _value(subject, name, layer)) is not None
        }
        choose = min if READ_AS[name] == "low" else max
        best.setdefault(choose(values, key=values.__getitem__), []).append(title(name))
    said = [f"layer {layer} by {_joined(names)}" for layer, names in sorted(best.items())]
    return [f"Most stable is {_joined(said)}, which describe and do not decide."] if said else []


def _value(subject: SubjectFinding, name: str, layer: int) -> float | None:
    for dataset in dict.fromkeys(each.dataset for each in subject.metrics):
        for each in drawn(subject, dataset):
            if each.metric == name:
                return value_at(each, layer)
    return None


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
