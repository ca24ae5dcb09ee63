"""How the metrics of a run respond to its conditions: gathered, said and drawn."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from markupsafe import Markup

from jobs.config.datasets import DatasetConfig
from jobs.config.metrics import parameters, shown_vectors
from jobs.report.charts import (
    ACCENT,
    BAND,
    INK,
    MUTED,
    Line,
    Size,
    defined,
    drawing,
    finish,
    new_axes,
    to_svg,
)
from jobs.report.findings import LevelFinding, ResponseFinding, SlopeFinding, SubjectFinding
from jobs.report.guide import link_to
from jobs.report.wording import title, vectors_of
from jobs.run import Run, partition
from jobs.words import NOTHING, counted, size
from operators.metrics.registry import METRICS, main_variant, of_kind, unit_of
from operators.metrics.variants import Tokens, Views
from operators.model.subject import Subject
from operators.prompts.conditions import FAMILIES, Condition
from storage.partition import CLEAN

_Row = Mapping[str, Any]
_Vectors = tuple[str, str]  # norm and pooling


def responses(run: Run, subject: Subject, dataset: DatasetConfig) -> list[ResponseFinding]:
    """Return every metric under every family of conditions that was measured."""
    found: list[ResponseFinding] = []
    for family, conditions in run.config.conditions.families().items():
        found += _family(run, subject, dataset, family, conditions)
    return found


def _family(
    run: Run, subject: Subject, dataset: DatasetConfig, family: str, conditions: list[Condition]
) -> Iterator[ResponseFinding]:
    # A share of less than all is the stronger the smaller it is.
    conditions = sorted(conditions, reverse=FAMILIES[family].clean == 1)
    levels = [
        run.rows_if_any(partition("layer_metrics", subject, dataset, each.name))
        for each in conditions
    ]
    if not all(levels):
        return
    slopes = run.rows_if_any(partition("sensitivity", subject, dataset, family))
    for metric in of_metrics(run.config.measure.metrics):
        variant = standing_for(metric, run)
        wanted = [[row for row in rows if _is(row, metric, variant)] for rows in levels]
        measured = ((row["norm"], row["pooling"]) for rows in wanted for row in rows)
        vectors = shown_vectors(measured, (run.config.rank.norm, run.config.rank.pooling))
        if vectors is None:
            continue
        at = [_by_layer(rows, vectors) for rows in wanted]
        layers = sorted(set().union(*at))
        sloped = _by_layer([row for row in slopes if _is(row, metric, variant)], vectors)
        yield ResponseFinding(
            dataset.name,
            family,
            metric,
            variant,
            *vectors,
            layers,
            [_level(each, found, layers) for each, found in zip(conditions, at, strict=True)],
            [_slope(sloped[layer]) for layer in layers if layer in sloped],
        )


def of_metrics(names: Sequence[str]) -> list[str]:
    """Return the metrics that are measured under conditions: views are of the clean text alone."""
    views = of_kind(names, Views)
    return [name for name in METRICS if name in names and name not in views]


def standing_for(metric: str, run: Run) -> str:
    """Return the variant that is shown: one with a value for the same prompts at every level."""
    return METRICS[metric].perturbed or main_variant(metric, parameters(run.config))


def _is(row: _Row, metric: str, variant: str) -> bool:
    return (row["metric"], row["variant"]) == (metric, variant)


def _by_layer(rows: Sequence[_Row], vectors: _Vectors) -> dict[int, _Row]:
    return {row["layer"]: row for row in rows if (row["norm"], row["pooling"]) == vectors}


def _level(condition: Condition, rows: Mapping[int, _Row], layers: Sequence[int]) -> LevelFinding:
    nothing: _Row = defaultdict(lambda: math.nan)
    return LevelFinding(
        condition.name,
        condition.level,
        [_defined(rows.get(layer, nothing)["value"]) for layer in layers],
        max((row["n_prompts"] for row in rows.values()), default=0),
        max((row["n_undefined"] for row in rows.values()), default=0),
    )


def _slope(row: _Row) -> SlopeFinding:
    return SlopeFinding(
        row["layer"],
        _defined(row["slope"]),
        _defined(row["slope_low"]),
        _defined(row["slope_high"]),
        row["reason"],
        int(row["n_prompts"]),
        int(row["n_undefined"]),
    )


def _defined(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class _Family:
    title: str
    says: str
    level: str  # how a level is called
    per: str  # what a slope is per
    grows: str  # what grows with the level


_FAMILIES = {
    "random": _Family(
        "Random tokens",
        "Each token is replaced, with probability p, by a random one of the vocabulary.",
        "p",
        "from p = 0 to 1",
        "p",
    ),
    "repeat": _Family(
        "Repeated tokens",
        "Each token is replaced, with probability p, by one token of the prompt, always the same.",
        "p",
        "from p = 0 to 1",
        "p",
    ),
    "noise": _Family(
        "Typos",
        "Each word gets each kind of typo with probability p.",
        "p",
        "from p = 0 to 1",
        "p",
    ),
    "truncate": _Family(
        "Truncation",
        "Only the first share of each prompt is kept.",
        "share",
        "from nothing to the whole prompt",
        "share",
    ),
    "length": _Family(
        "Length",
        "Prompts of random tokens alone, of growing length.",
        "tokens",
        "per doubling of the length",
        "length",
    ),
}


def families(subject: SubjectFinding, dataset: str) -> list[tuple[str, list[ResponseFinding]]]:
    """Return the responses of a dataset by family."""
    own = [each for each in subject.responses if each.dataset == dataset]
    return [(family, list(same)) for family, same in groupby(own, key=lambda each: each.family)]


def family_title(family: str) -> str:
    """Return what a family is called."""
    return _FAMILIES[family].title


def family_says(family: str) -> str:
    """Return what a family does to a prompt."""
    return _FAMILIES[family].says


def axis(family: str) -> str:
    """Return how the levels of a family are called."""
    return _FAMILIES[family].level


def level_name(each: LevelFinding) -> str:
    """Return the name of a level."""
    return CLEAN if each.condition == CLEAN else f"{each.level:g}"


def lead(same: Sequence[ResponseFinding]) -> str:
    """Return which metrics rise and which fall with the level in every layer."""
    groups: dict[str, list[str]] = {"Up": [], "Down": [], "": []}
    for each in same:
        up, down, of = _directions(each)
        if not of or not is_of_tokens(each):
            continue
        groups["Up" if up == of else "Down" if down == of else ""].append(title(each.metric))
    growing = f"With growing {_FAMILIES[same[0].family].grows}"
    said = {
        "Up": f"{growing}, up in every layer: ",
        "Down": f"{growing}, down in every layer: ",
        "": "No one direction over the layers: ",
    }
    return " ".join(f"{said[key]}{_listed(names)}." for key, names in groups.items() if names)


def _listed(titles: Sequence[str]) -> str:
    return ", ".join([titles[0].lower(), *(each.lower() for each in titles[1:])])


def is_of_tokens(each: ResponseFinding) -> bool:
    """Whether every prompt has a value of the metric, and its slopes an interval."""
    return isinstance(METRICS[each.metric].measured, Tokens)


def _directions(each: ResponseFinding) -> tuple[int, int, int]:
    """Return in how many layers a metric rises, falls, and has a slope; surely, where it can be."""
    ends = [
        (slope.slope, slope.slope)
        if slope.low is None or slope.high is None
        else (slope.low, slope.high)
        for slope in each.slopes
        if slope.slope is not None
    ]
    return sum(low > 0 for low, _ in ends), sum(high < 0 for _, high in ends), len(ends)


def says(each: ResponseFinding, coverage: float) -> str:
    """Return where a metric rises or falls with the level, and where most."""
    up, down, of = _directions(each)
    if not of:
        return "No slope: fewer than two levels have a value."
    steepest = max(
        (slope for slope in each.slopes if slope.slope is not None),
        key=lambda slope: abs(slope.slope or 0.0),
    )
    parts = [
        f"{word} in {_of(number, of)}" for word, number in (("Up", up), ("down", down)) if number
    ]
    told = "; ".join(parts) or "No clear change in any layer"
    return (
        f"{told[0].upper()}{told[1:]}; steepest in layer {steepest.layer}: "
        f"{slope_with_interval(steepest, coverage)} {unit_name(each)} {_FAMILIES[each.family].per}."
    )


def _of(number: int, of: int) -> str:
    return "every layer" if number == of else f"{number} of {counted(of, 'layer')}"


def unit_name(each: ResponseFinding) -> str:
    """Return the unit of a metric's values."""
    return unit_of(each.metric, each.variant)


def per(family: str) -> str:
    """Return what the slopes of a family are per."""
    return _FAMILIES[family].per


def slope_with_interval(each: SlopeFinding, coverage: float) -> str:
    """Return a slope, and its interval where it has one."""
    if each.low is None or each.high is None:
        return signed(each.slope)
    return f"{signed(each.slope)} ({100 * coverage:g} % {signed(each.low)} to {signed(each.high)})"


def signed(value: float | None) -> str:
    """Return a slope with its sign and three digits."""
    if value is None:
        return NOTHING
    return f"{'-' if value < 0 else '+' if value > 0 else ''}{size(abs(value))}"


def slope_at(each: ResponseFinding, layer: int) -> SlopeFinding | None:
    """Return the slope of a layer, if there is one."""
    return next((slope for slope in each.slopes if slope.layer == layer), None)


def cell(each: ResponseFinding, layer: int) -> str:
    """Return the slope of a layer with the ends of its interval, as a table has it."""
    found = slope_at(each, layer)
    if found is None or found.slope is None:
        return NOTHING
    if found.low is None or found.high is None:
        return signed(found.slope)
    return f"{signed(found.slope)} ({signed(found.low)} to {signed(found.high)})"


def metric_name(each: ResponseFinding) -> str:
    """Return the metric, with its variant where that is not the usual one."""
    special = METRICS[each.metric].perturbed
    return f"{title(each.metric)}, {special}" if special else title(each.metric)


def source(each: ResponseFinding) -> str:
    """Return what was measured, on how many prompts, and how many had no value at worst."""
    how = vectors_of(each.norm, each.pooling)
    prompts = max(level.n_prompts + level.n_undefined for level in each.levels)
    worst = max(each.levels, key=lambda level: level.n_undefined)
    where = "clean" if worst.condition == CLEAN else f"at {axis(each.family)} {level_name(worst)}"
    missing = f", {worst.n_undefined:,} of them undefined {where}" if worst.n_undefined else ""
    return f"{how[0].upper()}{how[1:]}; {counted(prompts, 'prompt')}{missing}."


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
            title=metric_name(each),
            link=link_to(METRICS[each.metric].title),
            says=says(each, coverage),
            source=source(each),
            of_tokens=is_of_tokens(each),
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
            level_name(each),
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
        curve = Line(shade.name, each.layers, values)
        style: dict[str, Any] = (
            {"color": INK, "linestyle": (0, (4, 2)), "linewidth": 1.4, "zorder": 5}
            if shade.clean
            else {"color": ACCENT, "alpha": shade.opacity, "linewidth": 1.6, "zorder": 3}
        )
        (line,) = axes.plot(curve.x, curve.y, **style)
        if len(defined(curve)) == 1:  # of which there is no line
            line.set(marker="o", markersize=3)
    unit = unit_name(each)
    axes.set_ylabel(unit, fontsize=12 if len(unit) <= len("activation units") else 10)
    finish(axes, each.layers)
    title = f"{metric_name(each)} against layer: {family_title(each.family).lower()}"
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
    said = "; ".join(f"layer {layer}: {cell(each, layer)}" for layer in x)
    title = f"Slope of {metric_name(each)} in every layer: {family_title(each.family).lower()}"
    return to_svg(figure, name, title, f"In {unit_name(each)} {per(each.family)}: {said}.")


def _told(each: ResponseFinding) -> str:
    """Return the ends of every line in words."""
    parts = []
    for level in each.levels:
        pairs = [(x, y) for x, y in zip(each.layers, level.values, strict=True) if y is not None]
        if pairs:
            (first, start), (last, end) = pairs[0], pairs[-1]
            parts.append(
                f"{level_name(level)}: {start:.3g} in layer {first}, {end:.3g} in layer {last}"
            )
    return f"By {axis(each.family)}. {'; '.join(parts)}."
