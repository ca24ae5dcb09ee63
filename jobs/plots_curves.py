"""The curves that decide in practice: score against labelled examples, and against noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from jobs import wording_curves
from jobs.drawing import (
    ACCENT,
    BAND,
    INK,
    MUTED,
    Curve,
    Size,
    drawing,
    finish,
    label_ends,
    new_axes,
    show_ticks,
    to_svg,
)
from jobs.findings import Curve as LayerCurve
from jobs.findings import CurveFinding, SubjectFinding

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
            title=wording_curves.title(finding),
            says=wording_curves.lead(subject, finding),
            source=wording_curves.source(finding),
            svg=_draw(subject, finding, f"{name}-{index}") if _has_values(finding) else None,
        )
        for index, finding in enumerate(subject.curves)
    ]


def _has_values(finding: CurveFinding) -> bool:
    return any(value is not None for each in finding.curves for value in each.score)


@drawing()
def _draw(subject: SubjectFinding, finding: CurveFinding, name: str) -> Markup:
    """Draw every layer faintly, and over them the two that are compared, with their spread."""
    pair = wording_curves.compared(subject)
    styles = {pair.second: (INK, (0, (4, 2))), pair.first: (ACCENT, "-")} if pair else {}
    matter = {
        layer: curve for layer in styles if (curve := wording_curves.curve_of(finding, layer))
    }
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
    title = f"{finding.label}: score against {wording_curves.axis(finding.kind)}"
    return to_svg(figure, name, title, _words(finding, subject, matter))


def _place(kind: str, x: float) -> float:
    """Return where a value lies on the axis: examples are doubled from step to step."""
    return float(np.log2(x)) if kind == "examples" else x


def _line(finding: CurveFinding, curve: LayerCurve, name: str) -> Curve:
    x = [_place(finding.kind, each) for each in curve.x]
    return Curve(name, x, [float("nan") if y is None else 100 * y for y in curve.score])


def _called(subject: SubjectFinding, layer: int) -> str:
    return f"layer {layer}, last" if layer == subject.last else f"layer {layer}"


def _draw_spread(axes: Axes, line: Curve, curve: LayerCurve, colour: str) -> None:
    spread = np.array([float("nan") if each is None else 100 * each for each in curve.spread])
    y, alpha = np.array(line.y), 1.0 if colour == BAND else 0.18
    axes.fill_between(line.x, y - spread, y + spread, color=colour, alpha=alpha, lw=0, zorder=1)


def _finish(axes: Axes, finding: CurveFinding) -> None:
    """Give the axes ticks where there are values, as many as fit beside one another."""
    values = wording_curves.places(finding)
    places = [_place(finding.kind, x) for x in values]
    finish(axes, places, wording_curves.axis(finding.kind))
    labels = [wording_curves.at(finding.kind, x) for x in values]
    show_ticks(axes, places, labels, _TICKS_APART)


def _words(finding: CurveFinding, subject: SubjectFinding, curves: Mapping[int, LayerCurve]) -> str:
    """Return the compared curves in words, point by point."""
    parts = []
    for layer, curve in curves.items():
        each = "; ".join(
            f"{wording_curves.at(finding.kind, x)}: {100 * y:.1f}"
            for x, y in zip(curve.x, curve.score, strict=True)
            if y is not None
        )
        parts.append(f"{_called(subject, layer)}, in points: {each}.")
    return " ".join(parts)
