"""The curves that decide in practice: score against labelled examples, and against noise."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from jobs.config.run import learning_examples, noise_conditions
from jobs.rank.stage import RankedTask, SubjectRanking, ranked_rows
from jobs.report.charts import (
    ACCENT,
    BAND,
    INK,
    MUTED,
    Line,
    Size,
    drawing,
    finish,
    label_ends,
    new_axes,
    show_ticks,
    to_svg,
)
from jobs.report.findings import Curve, CurveFinding, SubjectFinding
from jobs.report.findings import Curve as LayerCurve
from jobs.report.wording import nearest
from jobs.run import Run, score_partition
from jobs.words import NOTHING, points
from operators.prompts.conditions import Condition

_Points = dict[int, dict[float, list[float]]]  # layer -> x -> the values of the folds


def curves(run: Run, ranking: SubjectRanking) -> list[CurveFinding]:
    """Return the learning and the robustness curves of every task that has them."""
    found = []
    for task in ranking.tasks:
        if learning_examples(run.config, task.task):
            where = score_partition(
                ranking.subject, task.dataset, task.task, table="learning_curves"
            )
            rows = ranked_rows(run, where)
            found.append(_curves(task, "examples", _points((r["examples"], r) for r in rows)))
        if noise_conditions(run.config, [task.task]):
            found.append(_curves(task, "noise", _points(_noise_rows(run, ranking, task))))
    return found


def _noise_rows(
    run: Run, ranking: SubjectRanking, task: RankedTask
) -> Iterable[tuple[float, Mapping[str, Any]]]:
    """Yield the scores of a task under every level of noise; 0 is the clean text."""
    for level in (0.0, *run.config.curves.noise):
        condition = Condition("noise", level).name
        where = score_partition(ranking.subject, task.dataset, task.task, condition)
        for row in ranked_rows(run, where):
            yield level, row


def _points(rows: Iterable[tuple[float, Mapping[str, Any]]]) -> _Points:
    points: _Points = defaultdict(lambda: defaultdict(list))
    for x, row in rows:
        points[row["layer"]][float(x)].append(row["value"])
    return points


def _curves(task: RankedTask, kind: str, points: _Points) -> CurveFinding:
    found = []
    for layer, at in sorted(points.items()):
        folds = [at[x] for x in sorted(at)]
        scores = [_defined(float(np.mean(values))) for values in folds]
        spread = [
            _defined(float(np.std(values, ddof=1))) if len(values) > 1 else None for values in folds
        ]
        found.append(Curve(layer, sorted(at), scores, spread))
    return CurveFinding(task.label, kind, task.metric, found)


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None


_KINDS = {"examples": "few labelled examples", "noise": "noisy text"}
_FITTED = {
    "examples": "fitted on fewer training examples",
    "noise": "fitted on clean texts, tested on texts with typos",
}
_AXES = {
    "examples": "training examples per label",
    "noise": "typos of each kind, probability per word",
}


@dataclass(frozen=True)
class Compared:
    """Two layers whose curves matter: `first` is the one to take, and how both are called."""

    first: int
    second: int
    says: str


def axis(kind: str) -> str:
    """Return what a curve is drawn against."""
    return _AXES.get(kind, kind)


def heading(subject: SubjectFinding) -> str:
    """Return what the curves of a subject are about."""
    kinds = dict.fromkeys(_KINDS.get(each.kind, each.kind) for each in subject.curves)
    return f"With {' and '.join(kinds)}"


def title(finding: CurveFinding) -> str:
    """Return the task of a curve, and what it is about."""
    return f"{finding.label}: {_KINDS.get(finding.kind, finding.kind)}"


def source(finding: CurveFinding) -> str:
    """Return what the scores of a curve are."""
    metric = finding.metric.replace("_", " ")
    how = _FITTED.get(finding.kind, "")
    return f"{metric[0].upper()}{metric[1:]}{f', {how}' if how else ''}."


def at(kind: str, x: float) -> str:
    """Return a place on the axis of a curve; noise 0 is the clean text."""
    return "clean" if kind == "noise" and not x else f"{x:g}"


def compared(subject: SubjectFinding) -> Compared | None:
    """Return the verdict's layer and the last; where they are the same, the next best and it."""
    last, verdict = subject.last, subject.verdict
    if verdict.layer != last:
        name = f"Layer {verdict.layer} against the last ({last})"
        return Compared(verdict.layer, last, name)
    other = nearest(subject)
    if other is None:
        return None
    if verdict.kind == "keep_last":
        return Compared(last, other, f"Layer {last}, the last, against layer {other}, the next")
    return Compared(other, last, f"Layer {other}, the highest below it, against the last ({last})")


def curve_of(finding: CurveFinding, layer: int) -> Curve | None:
    """Return the curve of a layer; None if it has none."""
    return next((each for each in finding.curves if each.layer == layer), None)


def lead(subject: SubjectFinding, finding: CurveFinding) -> str:
    """Return by how much the layer to take leads at both ends; nothing without two curves."""
    pair = compared(subject)
    if pair is None:
        return ""
    first, second = (_scores(finding, layer) for layer in (pair.first, pair.second))
    gaps = {x: first[x] - second[x] for x in first if x in second}
    if not gaps:
        return ""
    ends = dict.fromkeys((min(gaps), max(gaps)))
    return f"{pair.says}: {', '.join(_gap(finding.kind, x, gaps[x]) for x in ends)}."


def _scores(finding: CurveFinding, layer: int) -> dict[float, float]:
    """Return the scores of a layer by place, as far as there are any."""
    curve = curve_of(finding, layer)
    pairs = zip(curve.x, curve.score, strict=True) if curve else ()
    return {x: score for x, score in pairs if score is not None}


def _gap(kind: str, x: float, gap: float) -> str:
    where = {"examples": f"at {x:g} per label", "noise": f"at noise {x:g}"}.get(kind, f"at {x:g}")
    if kind == "noise" and not x:
        where = "on clean text"
    size = points(abs(gap))
    if not float(size):
        return f"level {where}"
    return f"{size} points {'ahead' if gap > 0 else 'behind'} {where}"


def value(curve: Curve, x: float) -> str:
    """Return the score of a curve at a place, with its spread over folds."""
    rows = zip(curve.x, curve.score, curve.spread, strict=True)
    score, spread = next((pair for place, *pair in rows if place == x), (None, None))
    if score is None:
        return NOTHING
    return points(score) if spread is None else f"{points(score)} ± {points(spread)}"


def levels_of(finding: CurveFinding) -> list[float]:
    """Return every x that some layer has."""
    return sorted({x for curve in finding.curves for x in curve.x})


_SIZE = Size(340, 240)
_TICKS_APART = 34  # pixels from one number on the axis to the next


@dataclass(frozen=True)
class CurvePlot:
    """The curves of one task as the page shows them; no drawing where no layer has a value."""

    title: str
    says: str
    source: str
    svg: Markup | None


def curve_plots(subject: SubjectFinding, name: str) -> list[CurvePlot]:
    """Return the curves of a subject, task by task; ids in them begin with `name`."""
    return [
        CurvePlot(
            title=title(finding),
            says=lead(subject, finding),
            source=source(finding),
            svg=_draw(subject, finding, f"{name}-{index}") if _has_values(finding) else None,
        )
        for index, finding in enumerate(subject.curves)
    ]


def _has_values(finding: CurveFinding) -> bool:
    return any(value is not None for each in finding.curves for value in each.score)


@drawing()
def _draw(subject: SubjectFinding, finding: CurveFinding, name: str) -> Markup:
    """Draw every layer faintly, and over them the two that are compared, with their spread."""
    pair = compared(subject)
    styles = {pair.second: (INK, (0, (4, 2))), pair.first: (ACCENT, "-")} if pair else {}
    matter = {layer: curve for layer in styles if (curve := curve_of(finding, layer))}
    named = [_line(finding, curve, _called(subject, layer)) for layer, curve in matter.items()]
    figure, axes = new_axes(_SIZE, named)
    for curve in finding.curves:
        if curve.layer not in matter:
            line = _line(finding, curve, "")
            axes.plot(line.x, line.y, color=MUTED, linewidth=1, alpha=0.4, zorder=2)
    for line, (layer, curve) in zip(named, matter.items(), strict=True):
        colour, dashes = styles[layer]
        _draw_spread(axes, line, curve, BAND if colour == ACCENT else MUTED)
        axes.plot(
            line.x,
            line.y,
            color=colour,
            linestyle=dashes,
            linewidth=2,
            marker="o",
            markersize=4,
            zorder=4,
        )
    axes.set_ylabel("score, points")
    _finish(axes, finding)
    label_ends(axes, named, _SIZE)
    title = f"{finding.label}: score against {axis(finding.kind)}"
    return to_svg(figure, name, title, _words(finding, subject, matter))


def _place(kind: str, x: float) -> float:
    """Return where a value lies on the axis: examples are doubled from step to step."""
    return float(np.log2(x)) if kind == "examples" else x


def _line(finding: CurveFinding, curve: LayerCurve, name: str) -> Line:
    x = [_place(finding.kind, each) for each in curve.x]
    return Line(name, x, [float("nan") if y is None else 100 * y for y in curve.score])


def _called(subject: SubjectFinding, layer: int) -> str:
    return f"layer {layer}, last" if layer == subject.last else f"layer {layer}"


def _draw_spread(axes: Axes, line: Line, curve: LayerCurve, colour: str) -> None:
    spread = np.array([float("nan") if each is None else 100 * each for each in curve.spread])
    y, alpha = np.array(line.y), 1.0 if colour == BAND else 0.18
    axes.fill_between(line.x, y - spread, y + spread, color=colour, alpha=alpha, lw=0, zorder=1)


def _finish(axes: Axes, finding: CurveFinding) -> None:
    """Give the axes ticks where there are values, as many as fit beside one another."""
    values = levels_of(finding)
    places = [_place(finding.kind, x) for x in values]
    finish(axes, places, axis(finding.kind))
    labels = [at(finding.kind, x) for x in values]
    show_ticks(axes, places, labels, _TICKS_APART)


def _words(finding: CurveFinding, subject: SubjectFinding, curves: Mapping[int, LayerCurve]) -> str:
    """Return the compared curves in words, point by point."""
    parts = []
    for layer, curve in curves.items():
        each = "; ".join(
            f"{at(finding.kind, x)}: {100 * y:.1f}"
            for x, y in zip(curve.x, curve.score, strict=True)
            if y is not None
        )
        parts.append(f"{_called(subject, layer)}, in points: {each}.")
    return " ".join(parts)
