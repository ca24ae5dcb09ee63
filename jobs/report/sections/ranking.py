"""The ranking of a report: what it advises and how sure that is, and score, gain and cost drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from jobs.report import wording
from jobs.report.charts import (
    ACCENT,
    BAND,
    CHAR_WIDTH,
    LINE_HEIGHT,
    MUTED,
    Line,
    Size,
    defined,
    drawing,
    finish,
    label_ends,
    new_axes,
    to_svg,
)
from jobs.report.findings import LayerFinding, SubjectFinding, TaskFinding
from jobs.report.wording import ranked_vectors, scored
from jobs.words import counted, points, share, size
from operators.ranking.scores import TIE
from operators.ranking.sentences import FEW_TASKS

_NEXT_SENTENCE = re.compile(r"(?<=\.) (?=[A-Z])")
_STORED = "The stored vectors are used as they are: nothing is encoded twice."
_POLICIES = {
    "best": "the layer with the highest score, whatever its interval",
    "cheapest_equal": "the cheapest layer whose score is at most one standard error of the "
    "difference below the best",
    "last_unless_significant": "the last layer, unless another one is better by Holm's test and "
    "its interval",
}


def parted(sentence: str) -> tuple[str, str]:
    """Return the first sentence of a verdict and what follows it."""
    first, *rest = _NEXT_SENTENCE.split(sentence, maxsplit=1)
    return first, "".join(rest)


def advice(subject: SubjectFinding) -> str:
    """Return what to do with the verdict, and what that saves."""
    verdict, kind = subject.verdict, subject.verdict.kind
    if kind == "use_layer":
        return f"{_cut(subject)} The command “layerrank export” writes that model."
    if kind == "keep_last":
        return (
            "Go on with the model as it is; no compute is saved "
            f"(vectors: {ranked_vectors(subject)})."
        )
    if kind == "no_labels":
        return (
            "Give a dataset of the config a labelled task, even a small one, and run again. "
            f"{_STORED} Until then the default saves {share(verdict.saved)} of the compute."
        )
    if not subject.is_scored:
        return (
            "See below which scores are undefined, mend or leave out those tasks, and run again. "
            f"{_STORED}"
        )
    if verdict.layer != subject.last:
        return (
            f"As a guess, layer {verdict.layer} would save {share(verdict.saved)} of the compute. "
            f"Add labelled tasks, or folds, before relying on it. {_STORED}"
        )
    needed = "to narrow the intervals" if has_intervals(subject) else "to have intervals"
    return (
        f"Keep the last layer for now, which saves no compute, and add labelled tasks {needed}. "
        f"{_STORED}"
    )


def _cut(subject: SubjectFinding) -> str:
    layer, saved = subject.verdict.layer, share(subject.verdict.saved)
    if layer == 0:
        return (
            "Take the input embeddings: no block of the model has to run, which saves "
            f"{saved} of the compute. Take the vectors as here: {ranked_vectors(subject)}."
        )
    return (
        f"Cut the model after block {layer} of {subject.blocks}, which saves {saved} of the "
        f"compute. Take the vectors as here: {ranked_vectors(subject)}."
    )


def certainty(subject: SubjectFinding, level: float, draws: int) -> str:
    """Return what the intervals come from, and what they leave out."""
    if not subject.is_scored:
        return ""
    tasks = counting(subject)
    folds = sorted({task.folds for task in tasks})
    each = f"{folds[0]}" if len(folds) == 1 else f"{folds[0]} to {folds[-1]}"
    said = f"{counted(len(tasks), 'task')} of {each} fold{'' if folds == [1] else 's'}"
    if not has_intervals(subject):
        return f"{said}: a single score gives no interval, and nothing says how sure it is."
    percent = f"{100 * level:g} %"
    if len(tasks) == 1:
        within = "folds" if folds[-1] > 1 else "test items"
        return (
            f"{said}. The {percent} intervals come from {draws:,} bootstrap draws of its {within}: "
            f"they show the noise of these, and nothing of other tasks. {_one_of_many(subject)}"
        )
    said = (
        f"{said} each. The {percent} intervals come from {draws:,} bootstrap draws of tasks and, "
        f"within a task, of its folds or test items. {_one_of_many(subject)}"
    )
    if len(tasks) <= FEW_TASKS:
        return (
            f"{said} From {len(tasks)} tasks they are too narrow, and p-values too small: of "
            "simulated 95 % intervals from one score each of 3 tasks 73 % held the true gain, of "
            "5 tasks 83 %, of 32 tasks 94 %."
        )
    return said


def counting(subject: SubjectFinding) -> list[TaskFinding]:
    """Return the tasks that have a score in some layer."""
    return [
        task
        for task in subject.tasks
        if any(row.tasks[task.label] is not None for row in subject.layers)
    ]


def not_counted(subject: SubjectFinding) -> list[str]:
    """Return the labels of the tasks that have no score in any layer, which no mean contains."""
    counted_tasks = counting(subject)
    return [task.label for task in subject.tasks if task not in counted_tasks]


def has_intervals(subject: SubjectFinding) -> bool:
    """Whether there was something to draw intervals from."""
    return any(row.score_low is not None for row in subject.layers)


def _one_of_many(subject: SubjectFinding) -> str:
    compared = len(scored(subject))
    if compared == 1:
        return ""
    return (
        f"Each is one layer's own, not corrected for choosing the best of {compared} layers, so "
        "the best layer's gain is a little optimistic."
    )


def policy(subject: SubjectFinding) -> str:
    """Return the rule that the verdict follows."""
    rule = _POLICIES.get(subject.policy, "")
    return f"The policy {subject.policy} takes {rule}." if rule else ""


def search(subject: SubjectFinding) -> str:
    """Return what a search left out; nothing if every layer was scored."""
    if subject.search_share is None:
        return ""
    done = f"The search did {share(subject.search_share)} of the scoring of a full sweep"
    if all(row.score is not None for row in subject.layers):
        return f"{done}; no layer could be dropped."
    return f"{done}; the layers that it dropped early have no score."


def oracle(subject: SubjectFinding) -> str:
    """Return what the best layer of each task would reach; nothing for fewer than two tasks."""
    best = max(scored(subject), key=lambda row: (row.score or 0.0, -row.layer), default=None)
    if subject.oracle is None or best is None or len(counting(subject)) == 1:
        return ""
    more = subject.oracle - (best.score or 0.0)
    if more <= TIE:
        return f"Layer {best.layer} is the best in every task: no choice by task scores more."
    return (
        f"The best layer of each task, chosen task by task, would score {points(subject.oracle)} "
        f"points, {points(more)} more than layer {best.layer}, the best single one."
    )


def latency(subject: SubjectFinding) -> str:
    """Return what the verdict's layer takes beside the whole model, and how it was measured."""
    times = {row.layer: row.latency_ms for row in subject.layers}
    layer, whole = subject.verdict.layer, f"the whole model takes {size(times[subject.last])} ms"
    if layer != subject.last:
        whole = f"layer {layer} takes {size(times[layer])} ms, {whole.replace('takes ', '')}"
    return f"Measured with {subject.measured_on}: {whole}."


WIDE = Size(1040, 360, left=48)
NARROW = Size(368, 300, label_chars=13)
_MARK_WIDTH = 150  # of the words above a marked layer
_MOST_LABELS = 6  # of curves; more would cover one another
_MOST_DOTS = 32  # on a curve; more would touch


@drawing()
def score_plot(subject: SubjectFinding, name: str, size: Size) -> Markup:
    """Draw score against layer: interval band, one faint line per task, the layers that matter."""
    rows, tasks = subject.layers, _task_curves(subject)
    size = replace(size, top=_room_for_marks(subject, size))
    figure, axes = new_axes(size, _labelled(tasks))
    for curve in tasks:
        (line,) = axes.plot(curve.x, curve.y, color=MUTED, linewidth=1, alpha=0.55, zorder=2)
        if len(defined(curve)) == 1:  # of which there is no line
            line.set(marker="o", markersize=3)
    score = Line("score", _numbers(rows), [_points(row.score) for row in rows])
    _draw_with_band(axes, score, [(row.score_low, row.score_high) for row in rows])
    _mark_layers(axes, subject, size, named=True)
    axes.set_ylabel("score, points")
    finish(axes, _numbers(rows))
    label_ends(axes, _labelled(tasks), size)
    each = "; ".join(f"layer {x}: {y:.1f}" for x, y in defined(score))
    title = f"Score of every layer of {subject.name}, with its interval"
    return to_svg(figure, name, title, f"{subject.verdict.sentence} In points: {each}.")


@drawing()
def gain_plot(subject: SubjectFinding, name: str, size: Size) -> Markup:
    """Draw gain over the last layer, with its band, under the score: the same axis of layers."""
    rows = subject.layers
    size = replace(size, height=round(0.68 * size.height))
    figure, axes = new_axes(size, _labelled(_task_curves(subject)))
    gain = Line("gain", _numbers(rows), [_points(row.gain) for row in rows])
    _draw_with_band(axes, gain, [(row.gain_low, row.gain_high) for row in rows])
    axes.axhline(0, color=MUTED, linewidth=1, zorder=2)
    _mark_layers(axes, subject, size, named=False)
    axes.set_ylabel("gain, points")
    finish(axes, _numbers(rows))
    title = f"Gain of every layer of {subject.name} over the last, with its interval"
    each = "; ".join(f"layer {x}: {y:.1f}" for x, y in defined(gain))
    return to_svg(figure, name, title, f"In points: {each}.")


def _task_curves(subject: SubjectFinding) -> list[Line]:
    """Return a curve per task; none for one task, whose curve is the score."""
    rows, labels = subject.layers, [task.label for task in subject.tasks]
    curves = [
        Line(label, _numbers(rows), [_points(row.tasks[label]) for row in rows]) for label in labels
    ]
    return curves if len(curves) > 1 else []


def _labelled(curves: list[Line]) -> list[Line]:
    return curves if len(curves) <= _MOST_LABELS else []


def _numbers(rows: Sequence[LayerFinding]) -> list[int]:
    return [row.layer for row in rows]


def _draw_with_band(
    axes: Axes, curve: Line, bounds: Sequence[tuple[float | None, float | None]]
) -> None:
    low, high = [_points(low) for low, _ in bounds], [_points(high) for _, high in bounds]
    axes.fill_between(curve.x, low, high, color=BAND, linewidth=0, zorder=1)
    if len(defined(curve)) == 1:  # which fill_between leaves out
        axes.vlines(curve.x, low, high, color=BAND, linewidth=6, zorder=1)
    marker = "o" if len(curve.x) <= _MOST_DOTS else None
    axes.plot(curve.x, curve.y, color=ACCENT, linewidth=2.2, marker=marker, markersize=4, zorder=4)


def _points(score: float | None) -> float:
    return float("nan") if score is None else 100 * score


def marks(subject: SubjectFinding) -> dict[int, tuple[str, str]]:
    """Return the words and the colour of the layers that matter: the last and the verdict's."""
    use, last, kind = subject.verdict.layer, subject.last, subject.verdict.kind
    if use == last:
        keep = kind == "keep_last"
        return {last: (f"keep layer {last}, the last", ACCENT) if keep else _last(last)}
    if kind == "use_layer":
        return {last: _last(last), use: (f"use layer {use}", ACCENT)}
    return {last: _last(last), use: (f"a guess: layer {use}", MUTED)}


def _last(layer: int) -> tuple[str, str]:
    return f"last layer {layer}", MUTED


def _room_for_marks(subject: SubjectFinding, size: Size) -> int:
    return size.top + LINE_HEIGHT * (1 + _is_stacked(subject, size))


def _is_stacked(subject: SubjectFinding, size: Size) -> bool:
    """Whether the words above the verdict's and the last layer need a line each."""
    apart = 1 - subject.verdict.layer / max(subject.last, 1)
    return 0 < apart * size.width < _MARK_WIDTH


def _mark_layers(axes: Axes, subject: SubjectFinding, size: Size, *, named: bool) -> None:
    """Draw a rule at the last and at the verdict's layer, if `named` with words above it."""
    last = subject.last
    for layer, (text, colour) in marks(subject).items():
        axes.axvline(layer, color=colour, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        line = 1 if layer != last and _is_stacked(subject, size) else 0
        if not named:
            continue
        axes.annotate(
            text,
            (layer, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 5 + LINE_HEIGHT * line),
            textcoords="offset points",
            ha="right" if layer > last / 2 else "left",
            color=colour,
            annotation_clip=False,
        )


_APART = 15  # pixels from a point to the middle of its name
_CLEAR = 6  # pixels around a point and half a whisker that no name may cover
_Box = tuple[float, float, float, float]  # left, bottom, right, top


@drawing()
def cost_plot(subject: SubjectFinding, name: str, size: Size) -> Markup:
    """Draw score against cost: the front, and how far each layer is from the best.

    A whisker is one standard error of the difference to the best layer, upwards: where it reaches
    the best score, the layer is within one standard error of it.
    """
    figure, axes = new_axes(size, [])
    rows = wording.scored(subject)
    best = max(_y(row) for row in rows)
    axes.axhline(best, color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    _draw_front(axes, rows)
    for row in rows:
        colour = ACCENT if row.front else MUTED
        equal = wording.is_equal(row)
        axes.vlines(
            _x(row), _y(row), _top(row), color=colour, linewidth=1.4, alpha=1 if equal else 0.5
        )
        axes.plot(_x(row), _y(row), color=colour, marker="o", markersize=6 if row.front else 4)
        if row.layer == subject.verdict.layer:
            (ring,) = axes.plot(_x(row), _y(row), color=colour, marker="o", markersize=12, zorder=5)
            ring.set_markerfacecolor("none")
    axes.set_ylabel("score, points")
    finish(axes, [0, 100], "compute of a token, % of the whole model")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.margins(y=0.2)
    axes.autoscale_view()  # else the limits are not those of the names' places yet
    _name_points(axes, subject, rows)
    title = f"Score of every layer of {subject.name} against its cost"
    return to_svg(figure, name, title, _words(rows))


def _x(row: LayerFinding) -> float:
    return 100 * row.cost


def _y(row: LayerFinding) -> float:
    return 100 * (row.score or 0.0)


def _top(row: LayerFinding) -> float:
    return _y(row) + 100 * (row.shortfall_se or 0.0)


def _draw_front(axes: Axes, rows: Sequence[LayerFinding]) -> None:
    """Draw the best score that each amount of compute can buy, as steps."""
    x, y = zip(*_corners(rows), strict=True)
    axes.plot(x, y, color=ACCENT, linewidth=1.6, zorder=2)


def _corners(rows: Sequence[LayerFinding]) -> list[tuple[float, float]]:
    """Return the corners of the steps, from the cheapest layer to the whole model."""
    front = sorted((_x(row), _y(row)) for row in rows if row.front)
    ends = [*(x for x, _ in front[1:]), 100.0]
    return [
        corner for (x, y), end in zip(front, ends, strict=True) for corner in ((x, y), (end, y))
    ]


def _name_points(axes: Axes, subject: SubjectFinding, rows: Sequence[LayerFinding]) -> None:
    """Name the layers that matter in words, then the front and the others by number.

    A number for which there is no free place is left out: the table below has every layer.
    """
    words = marks(subject)
    order = sorted(rows, key=lambda row: (row.layer not in words, not row.front, row.layer))
    taken = [*_lines(axes, rows), *(box for row in rows for box in _covered(axes, row))]
    for row in order:
        text, colour = words.get(row.layer, (str(row.layer), ACCENT if row.front else MUTED))
        width = len(text) * CHAR_WIDTH
        places = list(_places(axes, row, width))
        free = [each for each in places if not any(_overlap(_box(each, width), t) for t in taken)]
        if not free and row.layer not in words:
            continue
        x, y = free[0] if free else places[0]
        taken.append(_box((x, y), width))
        axes.annotate(text, (x, y), xycoords="axes pixels", ha="center", va="center", color=colour)


def _pixel(axes: Axes, x: float, y: float) -> tuple[float, float]:
    right, up = axes.transData.transform((x, y)) - axes.transAxes.transform((0, 0))
    return float(right), float(up)


def _lines(axes: Axes, rows: Sequence[LayerFinding]) -> Iterator[_Box]:
    """Yield what the steps of the front and the line of the best score cover."""
    best = max(_y(row) for row in rows)
    corners = [_pixel(axes, *corner) for corner in _corners(rows)]
    ends = [_pixel(axes, 0, best), _pixel(axes, 100, best)]
    for one, other in [*pairwise(corners), (ends[0], ends[1])]:
        (left, right), (low, high) = sorted((one[0], other[0])), sorted((one[1], other[1]))
        yield left - 1, low - 1, right + 1, high + 1


def _covered(axes: Axes, row: LayerFinding) -> Iterator[_Box]:
    """Yield what a point and its whisker cover."""
    x, y = _pixel(axes, _x(row), _y(row))
    yield x - _CLEAR, y - _CLEAR, x + _CLEAR, y + _CLEAR
    _, top = _pixel(axes, _x(row), _top(row))
    yield x - 2, y, x + 2, top


def _places(axes: Axes, row: LayerFinding, width: float) -> Iterator[tuple[float, float]]:
    """Yield where the middle of a point's name may lie, the usual place first."""
    x, y = _pixel(axes, _x(row), _y(row))
    right, height = axes.transAxes.transform((1, 1)) - axes.transAxes.transform((0, 0))
    aside = width / 2 + _CLEAR + 2
    around = [(0, -_APART), (aside, -_APART), (-aside, -_APART), (aside, 0), (-aside, 0)]
    around += [(0, _APART), (aside, _APART), (-aside, _APART), (0, -2 * _APART), (0, 2 * _APART)]
    for across, up in around:
        inside = min(max(x + across, width / 2), float(right) - width / 2)
        if LINE_HEIGHT / 2 <= y + up <= float(height):
            yield inside, y + up
    yield min(max(x, width / 2), float(right) - width / 2), y - _APART


def _box(middle: tuple[float, float], width: float) -> _Box:
    x, y = middle
    return x - width / 2, y - LINE_HEIGHT / 2, x + width / 2, y + LINE_HEIGHT / 2


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _words(rows: Sequence[LayerFinding]) -> str:
    """Return the plot in words: who is on the front, and every point."""
    front = ", ".join(str(row.layer) for row in rows if row.front)
    each = "; ".join(f"layer {row.layer}: {_y(row):.1f} at {_x(row):.0f} %" for row in rows)
    return f"On the Pareto front: layers {front}. Points at their share of the compute: {each}."
