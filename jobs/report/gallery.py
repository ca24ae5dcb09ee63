"""The metrics of a report: one plot for each, under what it is measured on.

Of each metric the main variant is drawn, of the ranked vectors where those were measured, and
beside it the same without the first token where that was measured too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from jobs import words
from jobs.config.metrics import shown_vectors
from jobs.report import wording
from jobs.report.charts import (
    ACCENT,
    CHAR_WIDTH,
    LINE_HEIGHT,
    MUTED,
    Line,
    Size,
    defined,
    drawing,
    finish,
    new_axes,
    to_svg,
)
from jobs.report.findings import Series, SubjectFinding
from jobs.report.guide import link_to
from operators.metrics.registry import METRICS, unit_of
from operators.metrics.token.rows import WITHOUT_FIRST
from operators.metrics.variants import Layers, Prompts, Tokens, Views

MEASURED_ON: dict[type[Tokens | Prompts | Views | Layers], str] = {
    Tokens: "Tokens of a prompt",
    Prompts: "Prompts of the dataset",
    Layers: "Other layers",
    Views: "Augmented views of a prompt",
}
_SIZE = Size(320, 190, left=56)
_MOST_DOTS = 16  # on a curve; more would touch
_BESIDE = "without first token"
_DISTANCES = (11, 14)  # pixels from a curve to the middle of its name
_ROOM = 0.2  # of the height, above and below curves of which one has its name beside it
_LONG_UNIT = 20  # characters that fit beside the axis


@dataclass(frozen=True)
class MetricPlot:
    """A metric of one dataset as the page shows it; no drawing where it has no value."""

    title: str
    link: str
    says: str
    source: str
    paper: str
    svg: Markup | None


@dataclass(frozen=True)
class Group:
    """The metrics that are measured on one kind of thing."""

    title: str
    plots: list[MetricPlot]


def drawn(subject: SubjectFinding, dataset: str) -> list[Series]:
    """Return the series that stand for the metrics of a dataset, one of each metric."""
    together: dict[str, list[Series]] = {}
    for series in subject.metrics:
        if series.dataset == dataset and series.main:
            together.setdefault(series.metric, []).append(series)
    found = []
    for same in together.values():
        measured = [(each.norm, each.pooling) for each in same]
        shown = shown_vectors(measured, (subject.norm, subject.pooling))
        found.append(next(each for each in same if (each.norm, each.pooling) == shown))
    return found


def without_first(subject: SubjectFinding, series: Series) -> Series | None:
    """Return the series of the same values without each prompt's first token, if there is one."""
    variant = ",".join(word for word in (series.variant, WITHOUT_FIRST) if word)
    wanted = (series.dataset, series.metric, variant, series.norm, series.pooling)
    return next(
        (
            each
            for each in subject.metrics
            if (each.dataset, each.metric, each.variant, each.norm, each.pooling) == wanted
        ),
        None,
    )


def by_metric(series: Sequence[Series]) -> list[tuple[str, list[Series]]]:
    """Return the variants of each metric and kind of vectors, under what they have in common."""
    together: dict[tuple[str, str, str], list[Series]] = {}
    for each in series:
        together.setdefault((each.metric, each.norm, each.pooling), []).append(each)
    return [
        (f"{wording.title(metric)}: {wording.vectors_of(norm, pooling)}", same)
        for (metric, norm, pooling), same in together.items()
    ]


def groups(subject: SubjectFinding, dataset: str, name: str) -> list[Group]:
    """Return the plots of a dataset; ids in them begin with `name`."""
    found = enumerate(drawn(subject, dataset))
    return [
        Group(title, [_plot(subject, each, f"{name}-{index}") for index, each in same])
        for title, same in groupby(found, key=lambda pair: _measured_on(pair[1]))
    ]


def _measured_on(series: Series) -> str:
    return MEASURED_ON[type(METRICS[series.metric].measured)]


def _plot(subject: SubjectFinding, series: Series, name: str) -> MetricPlot:
    metric = METRICS[series.metric]
    beside = without_first(subject, series)
    curves = [_curve(metric.title, series), *([_curve(_BESIDE, beside)] if beside else [])]
    shown = [curve for curve in curves if defined(curve)]
    unit = unit_of(series.metric, series.variant)
    prompts = max(each.n_prompts for each in series.values)
    how = wording.vectors_of(series.norm, series.pooling)
    return MetricPlot(
        title=metric.title,
        link=link_to(metric.title),
        says=metric.says,
        source=f"{how[0].upper()}{how[1:]}; {words.counted(prompts, 'prompt')}.",
        paper=metric.paper,
        svg=_draw(shown, name, metric.title, unit) if shown else None,
    )


def _curve(name: str, series: Series) -> Line:
    values = [float("nan") if each.value is None else each.value for each in series.values]
    return Line(name, [each.layer for each in series.values], values)


@drawing()
def _draw(curves: Sequence[Line], name: str, title: str, unit: str) -> Markup:
    """Draw a metric against layer, and dashed beside it what was measured without a token."""
    figure, axes = new_axes(_SIZE, [])
    for curve in curves:
        if curve.name == _BESIDE:
            axes.plot(curve.x, curve.y, color=MUTED, linewidth=1.4, linestyle=(0, (4, 2)), zorder=2)
        else:
            marker = "o" if len(defined(curve)) <= _MOST_DOTS else None
            axes.plot(curve.x, curve.y, color=ACCENT, linewidth=1.8, marker=marker, markersize=3)
    axes.set_ylabel(unit, fontsize=12 if len(unit) <= _LONG_UNIT else 10)
    finish(axes, curves[0].x)
    for curve in curves:
        if curve.name == _BESIDE:
            axes.margins(y=_ROOM)
            axes.autoscale_view()  # else the limits are not those of the places below yet
            _label(axes, curve, curves)
    courses = (f"{'' if c.name == title else f'{c.name}: '}{_course(c)}" for c in curves)
    return to_svg(figure, name, f"{title} against layer", " ".join(courses))


def _label(axes: Axes, curve: Line, curves: Sequence[Line]) -> None:
    """Name a curve above or below itself, where the words cover least of any curve."""
    width = len(curve.name) * CHAR_WIDTH
    lines = [_pixels(axes, each) for each in curves]
    best = min(
        _places(_pixels(axes, curve), width),
        key=lambda place: sum(_covered(line, place, width) for line in lines),
    )
    axes.annotate(
        curve.name,
        best,
        xycoords="axes pixels",
        ha="center",
        va="center",
        color=MUTED,
        parse_math=False,
    )


def _pixels(axes: Axes, curve: Line) -> tuple[list[float], list[float]]:
    """Return a curve as it lies in the axes, a point per pixel, without its gaps."""
    points = axes.transData.transform(defined(curve)) - axes.transAxes.transform((0, 0))
    x = np.arange(points[0, 0], points[-1, 0] + 1)
    return x.tolist(), np.interp(x, points[:, 0], points[:, 1]).tolist()


def _places(line: tuple[list[float], list[float]], width: float) -> Iterator[tuple[float, float]]:
    """Yield where the middle of the words may lie, nearest to the curve first."""
    right, top = _SIZE.width - _SIZE.left - _SIZE.right, _SIZE.height - _SIZE.top - _SIZE.bottom
    for distance in _DISTANCES:
        for x, y in zip(*line, strict=True):
            for side in (distance, -distance):
                inside = LINE_HEIGHT / 2 <= y + side <= top
                if inside and width / 2 <= x <= right - width / 2:
                    yield x, y + side
    yield right / 2, top


def _covered(
    line: tuple[list[float], list[float]], place: tuple[float, float], width: float
) -> int:
    """Return how many points of a curve lie behind words that are centred at a place."""
    return sum(
        abs(x - place[0]) <= width / 2 and abs(y - place[1]) < LINE_HEIGHT / 2
        for x, y in zip(*line, strict=True)
    )


def _course(curve: Line) -> str:
    pairs = defined(curve)
    first, last = pairs[0], pairs[-1]
    low, high = min(pairs, key=lambda pair: pair[1]), max(pairs, key=lambda pair: pair[1])
    return (
        f"From {first[1]:.3g} in layer {first[0]} to {last[1]:.3g} in layer {last[0]}; "
        f"lowest {low[1]:.3g} in layer {low[0]}, highest {high[1]:.3g} in layer {high[0]}."
    )
