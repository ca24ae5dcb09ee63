"""The plots of the ranking: score and gain against layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from markupsafe import Markup
from matplotlib.axes import Axes

from jobs.drawing import (
    ACCENT,
    BAND,
    LINE_HEIGHT,
    MUTED,
    Curve,
    Size,
    defined,
    drawing,
    finish,
    label_ends,
    new_axes,
    to_svg,
)
from jobs.findings import LayerFinding, SubjectFinding

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
    score = Curve("score", _numbers(rows), [_points(row.score) for row in rows])
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
    gain = Curve("gain", _numbers(rows), [_points(row.gain) for row in rows])
    _draw_with_band(axes, gain, [(row.gain_low, row.gain_high) for row in rows])
    axes.axhline(0, color=MUTED, linewidth=1, zorder=2)
    _mark_layers(axes, subject, size, named=False)
    axes.set_ylabel("gain, points")
    finish(axes, _numbers(rows))
    title = f"Gain of every layer of {subject.name} over the last, with its interval"
    each = "; ".join(f"layer {x}: {y:.1f}" for x, y in defined(gain))
    return to_svg(figure, name, title, f"In points: {each}.")


def _task_curves(subject: SubjectFinding) -> list[Curve]:
    """Return a curve per task; none for one task, whose curve is the score."""
    rows, labels = subject.layers, [task.label for task in subject.tasks]
    curves = [
        Curve(label, _numbers(rows), [_points(row.tasks[label]) for row in rows])
        for label in labels
    ]
    return curves if len(curves) > 1 else []


def _labelled(curves: list[Curve]) -> list[Curve]:
    return curves if len(curves) <= _MOST_LABELS else []


def _numbers(rows: Sequence[LayerFinding]) -> list[int]:
    return [row.layer for row in rows]


def _draw_with_band(
    axes: Axes, curve: Curve, bounds: Sequence[tuple[float | None, float | None]]
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
