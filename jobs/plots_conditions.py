"""Metrics under conditions: a line per level against the layer, and the slopes below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from jobs import wording_conditions as words
from jobs.drawing import (
    ACCENT,
    BAND,
    INK,
    MUTED,
    Curve,
    Size,
    defined,
    drawing,
    finish,
    new_axes,
    to_svg,
)
from jobs.findings_conditions import LevelFinding, ResponseFinding
from jobs.guide import link_to
from operators.metrics.registry import METRICS
from storage.partition import CLEAN

_SIZE = Size(320, 200, left=56)
_BELOW = Size(320, 150, left=56)
_PALEST = 0.25  # opacity of the weakest level
_MOST_DOTS = 32  # on a curve; more would touch


@dataclass(frozen=True)
class ResponsePlot:
    """A metric under a family of conditions as the page shows it."""

    title: str
    link: str
    says: str
    source: str
    of_tokens: bool
    svg: Markup | None
    slopes: Markup | None


@dataclass(frozen=True)
class Shade:
    """An entry of the legend: the name of a level, and how strong its line is."""

    name: str
    opacity: float
    clean: bool


def response_plots(
    same: Sequence[ResponseFinding], coverage: float, name: str
) -> list[ResponsePlot]:
    """Return the plots of one family; ids in them begin with `name`."""
    return [
        ResponsePlot(
            title=words.name(each),
            link=link_to(METRICS[each.metric].title),
            says=words.says(each, coverage),
            source=words.source(each),
            of_tokens=words.is_of_tokens(each),
            svg=_levels(each, f"{name}-{index}") if _has_values(each) else None,
            slopes=_slopes(each, f"{name}-{index}-slope") if _has_slopes(each) else None,
        )
        for index, each in enumerate(same)
    ]


def shades(levels: Sequence[LevelFinding]) -> list[Shade]:
    """Return how each level is drawn: the stronger, the more of the colour; clean is dashed."""
    count = sum(each.condition != CLEAN for each in levels)
    strengths = iter(np.linspace(1, _PALEST, count)[::-1].round(2).tolist())
    return [
        Shade(
            words.level(each),
            1.0 if each.condition == CLEAN else next(strengths),
            each.condition == CLEAN,
        )
        for each in levels
    ]


def _has_values(each: ResponseFinding) -> bool:
    return any(value is not None for level in each.levels for value in level.values)


def _has_slopes(each: ResponseFinding) -> bool:
    return any(slope.slope is not None for slope in each.slopes)


@drawing()
def _levels(each: ResponseFinding, name: str) -> Markup:
    """Draw the metric against the layer, a line per level."""
    figure, axes = new_axes(_SIZE, [])
    for level, shade in zip(each.levels, shades(each.levels), strict=True):
        values = [float("nan") if value is None else value for value in level.values]
        curve = Curve(shade.name, each.layers, values)
        style: dict[str, Any] = (
            {"color": INK, "linestyle": (0, (4, 2)), "linewidth": 1.4, "zorder": 5}
            if shade.clean
            else {"color": ACCENT, "alpha": shade.opacity, "linewidth": 1.6, "zorder": 3}
        )
        (line,) = axes.plot(curve.x, curve.y, **style)
        if len(defined(curve)) == 1:  # of which there is no line
            line.set(marker="o", markersize=3)
    unit = words.unit(each)
    axes.set_ylabel(unit, fontsize=12 if len(unit) <= len("activation units") else 10)
    finish(axes, each.layers)
    title = f"{words.name(each)} against layer: {words.family_title(each.family).lower()}"
    return to_svg(figure, name, title, _told(each))


@drawing()
def _slopes(each: ResponseFinding, name: str) -> Markup:
    """Draw the slope of every layer with its band, if it has one, over the same axis of layers."""
    figure, axes = new_axes(_BELOW, [])
    x = [slope.layer for slope in each.slopes]
    y, low, high = (
        [float("nan") if value is None else value for value in values]
        for values in (
            [slope.slope for slope in each.slopes],
            [slope.low for slope in each.slopes],
            [slope.high for slope in each.slopes],
        )
    )
    axes.axhline(0, color=MUTED, linewidth=1, zorder=2)
    axes.fill_between(x, low, high, color=BAND, linewidth=0, zorder=1)
    marker = "o" if len(x) <= _MOST_DOTS else None
    axes.plot(x, y, color=ACCENT, linewidth=1.8, marker=marker, markersize=3, zorder=4)
    axes.set_ylabel("slope")
    finish(axes, each.layers)
    said = "; ".join(f"layer {layer}: {words.cell(each, layer)}" for layer in x)
    title = f"Slope of {words.name(each)} in every layer: {words.family_title(each.family).lower()}"
    return to_svg(figure, name, title, f"In {words.unit(each)} {words.per(each.family)}: {said}.")


def _told(each: ResponseFinding) -> str:
    """Return the ends of every line in words."""
    parts = []
    for level in each.levels:
        pairs = [(x, y) for x, y in zip(each.layers, level.values, strict=True) if y is not None]
        if pairs:
            (first, start), (last, end) = pairs[0], pairs[-1]
            parts.append(
                f"{words.level(level)}: {start:.3g} in layer {first}, {end:.3g} in layer {last}"
            )
    return f"By {words.axis(each.family)}. {'; '.join(parts)}."
