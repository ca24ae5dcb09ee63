"""Four kinds of chart as data: lines with bands, heat map, histogram, scatter.

A section fills one of them with its numbers and gives it a title and a source as a `Chart`. Each
kind can say itself in words; `drawing.py` makes an SVG of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

_LOGARITHMIC = 100  # from the lowest to the highest value
Shape = Literal["wide", "low", "panel", "small"]
Look = Literal["strong", "second", "beside", "plain", "faint", "level", "clean", "thin", "model"]


@dataclass(frozen=True)
class Line:
    """A named line of y against x, with a gap where y is NaN, and the ends of its band.

    `at_end` writes the name beside the last value; `form` and `unit` say values on hover. Thin
    lines have a scale of their own each, from the lowest to the highest value.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    look: Look = "strong"
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    at_end: bool = False
    opacity: float = 1.0
    form: str = ".4g"
    unit: str = ""

    @property
    def points(self) -> list[tuple[float, float]]:
        """The points that have a value."""
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if not math.isnan(y)]

    def alone(self) -> list[tuple[float, float, float]]:
        """Return the points without a neighbour, with the ends of their bands."""
        gaps = [True, *map(math.isnan, self.y), True]
        low, high = self.low or self.y, self.high or self.y
        places = zip(self.x, low, high, gaps, gaps[1:], gaps[2:], strict=False)
        return [
            (x, *ends) for x, *ends, before, gap, after in places if before and after and not gap
        ]


def in_points(
    name: str,
    x: Sequence[float],
    scores: Sequence[float],
    look: Look = "strong",
    band: tuple[Sequence[float], Sequence[float]] = ((), ()),
    *,
    at_end: bool = False,
) -> Line:
    """Return a line of scores, 0..1, in points, with the ends of its band."""
    y, low, high = ([100 * score for score in each] for each in (scores, *band))
    return Line(name, x, y, look, low, high, at_end=at_end, form=".1f", unit="points")


@dataclass(frozen=True)
class Mark:
    """A rule across the chart, with words above it."""

    x: float
    text: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Lines:
    """Lines against one axis; `ticks` are its places and what these are called."""

    lines: Sequence[Line]
    x: str = "layer"
    y: str = ""
    ticks: Sequence[tuple[float, str]] = ()
    marks: Sequence[Mark] = ()
    zero: bool = False

    def words(self) -> str:
        """Return how each line runs that is not faint."""
        return " ".join(self._course(line) for line in self.lines if line.look != "faint")

    def at(self, x: float) -> str:
        """Return what a place along the axis is called."""
        called = next((text for place, text in self.ticks if place == x), f"{x:g}")
        return called if self.x in ("checkpoint", "training step") else f"{self.x} {called}"

    def _course(self, line: Line) -> str:
        if not line.points:
            return f"{line.name}: no value."
        low, high = (choose(line.points, key=lambda point: point[1]) for choose in (min, max))
        ends = [
            f"{value:{line.form}} at {self.at(x)}"
            for x, value in (line.points[0], line.points[-1], low, high)
        ]
        return (
            f"{line.name}: from {ends[0]} to {ends[1]}; lowest {ends[2]}, highest {ends[3]}"
            f"{f'; in {line.unit}' if line.unit else ''}."
        )


def where_any(plot: Lines) -> Lines | None:
    """Return a chart of lines, None if none of them has a point."""
    return plot if any(line.points for line in plot.lines) else None


@dataclass(frozen=True)
class Point:
    """A point: what it is called, how far up its whisker goes, and how it is drawn.

    `label` stands beside it where there is room, and anyway if it is `ringed`.
    """

    x: float
    y: float
    name: str
    label: str
    top: float
    strong: bool = False
    ringed: bool = False


@dataclass(frozen=True)
class Scatter:
    """Points, the steps that join the strong ones up to `right`, and a level across.

    The axis of x begins at 0; hovering says a point's y and x with their `units`.
    """

    points: Sequence[Point]
    x: str
    y: str
    right: float
    level: float
    units: tuple[str, str]

    @property
    def steps(self) -> list[tuple[float, float]]:
        """The corners of the steps, from the leftmost strong point on."""
        front = sorted((point.x, point.y) for point in self.points if point.strong)
        ends = [*(x for x, _ in front[1:]), self.right]
        pairs = zip(front, ends, strict=False)  # a point less, where none is joined
        return [corner for (x, y), end in pairs for corner in ((x, y), (end, y))]

    def words(self) -> str:
        """Return every point, those that are joined first."""
        joined = ", ".join(point.name for point in self.points if point.strong)
        each = "; ".join(f"{point.name}: {point.y:.1f} at {point.x:.0f}" for point in self.points)
        return f"On the front: {joined or 'none'}. {self.y} at {self.x}: {each}."


@dataclass(frozen=True)
class Histogram:
    """How many values lie between edges; with a split it is coloured."""

    counts: Sequence[int]
    edges: Sequence[float]
    unit: str
    split: float | None = None

    def words(self) -> str:
        """Return the range, and where most values are."""
        top = max(range(len(self.counts)), key=lambda index: self.counts[index])
        return (
            f"{sum(self.counts):,} values from {self.edges[0]:.3g} to {self.edges[-1]:.3g} "
            f"{self.unit}, most of them from {self.edges[top]:.3g} to {self.edges[top + 1]:.3g}."
        )


@dataclass(frozen=True)
class HeatMap:
    """Values [L, S] of layers at named columns, NaN where there is none.

    `dots` are the layers to mark in each column, such as the best, `rings` those to circle.
    """

    values_LS: npt.NDArray[np.float64]
    layers: Sequence[int]
    columns: Sequence[str]
    x: str
    unit: str
    dots: Sequence[int | None] = ()
    rings: Sequence[int | None] = ()
    form: str = ".4g"

    @property
    def is_logarithmic(self) -> bool:
        """Whether the values span so much that an even scale would show one colour only."""
        low, high = np.nanmin(self.values_LS), np.nanmax(self.values_LS)
        return bool(low > 0 and high / low > _LOGARITHMIC)

    def strengths(self) -> npt.NDArray[np.float64]:
        """Return how strong each value's colour is, 0 for the lowest to 1."""
        values_LS = np.log(self.values_LS) if self.is_logarithmic else self.values_LS
        low, high = np.nanmin(values_LS), np.nanmax(values_LS)
        strength_LS: npt.NDArray[np.float64] = (
            (values_LS - low) / (high - low) if high > low else values_LS * 0 + 1
        )
        return strength_LS

    def words(self) -> str:
        """Return the lowest and the highest value, and the newest column."""
        ends = []
        for value in (np.nanmin(self.values_LS), np.nanmax(self.values_LS)):
            row, column = np.argwhere(self.values_LS == value)[0]
            where = f"layer {self.layers[row]} at {self.columns[column]}"
            ends.append(f"{value:{self.form}} in {where}")
        newest = "; ".join(
            f"layer {layer}: {value:{self.form}}"
            for layer, value in zip(self.layers, self.values_LS[:, -1], strict=True)
            if not np.isnan(value)
        )
        told = f"In {self.unit}: lowest {ends[0]}, highest {ends[1]}."
        return f"{told} At {self.columns[-1]}: {newest or 'no value'}."


Plot = Lines | Scatter | Histogram | HeatMap


@dataclass(frozen=True)
class Chart:
    """A chart with what stands above and below it; None instead of one that has no value.

    `link` is where the guide explains it, `below` a second chart over the same axis.
    """

    title: str
    plot: Plot | None
    shape: Shape = "panel"
    says: str = ""
    source: str = ""
    link: str = ""
    label: str = ""
    below: Plot | None = None
