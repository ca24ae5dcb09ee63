"""How the metrics of a run respond to its conditions: a metric per level, and its slope."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from layerrank.jobs.config.datasets import DatasetConfig
from layerrank.jobs.config.metrics import parameters, shown_vectors
from layerrank.jobs.rank.ranking import Row
from layerrank.jobs.report.charts import Chart, Line, Lines, where_any
from layerrank.jobs.report.facts import Facts, title, vectors_of
from layerrank.jobs.report.guide import link_to
from layerrank.jobs.report.section import Section, Table, level_swatch
from layerrank.jobs.run import Run, partition
from layerrank.jobs.words import NOTHING, capital, counted, known, size
from layerrank.operators.metrics.registry import (
    METRICS,
    Tokens,
    Views,
    main_variant,
    of_kind,
    unit_of,
)
from layerrank.operators.prompts.conditions import FAMILIES, Condition
from layerrank.storage.partition import CLEAN

_PALEST = 0.25  # opacity of the weakest level


class _Family(NamedTuple):
    title: str
    says: str
    level: str = "p"  # how a level is called
    per: str = "from p = 0 to 1"  # what a slope is per
    grows: str = "p"  # what grows with the level


_FAMILIES = {
    "random": _Family(
        "Random tokens",
        "Each token is replaced, with probability p, by a random one of the vocabulary.",
    ),
    "repeat": _Family(
        "Repeated tokens",
        "Each token is replaced, with probability p, by one token of the prompt, always the same.",
    ),
    "noise": _Family("Typos", "Each word gets each kind of typo with probability p."),
    "truncate": _Family(
        "Truncation",
        "Only the first share of each prompt is kept.",
        level="share",
        per="from nothing to the whole prompt",
        grows="share",
    ),
    "length": _Family(
        "Length",
        "Prompts of random tokens alone, of growing length.",
        level="tokens",
        per="per doubling of the length",
        grows="length",
    ),
}


@dataclass(frozen=True)
class Level:
    """A metric at one level of a family, by layer; and how many prompts some layer leaves out."""

    condition: str
    level: float
    rows: Mapping[int, Row]

    @property
    def name(self) -> str:
        """What the level is called."""
        return CLEAN if self.condition == CLEAN else f"{self.level:g}"

    def most(self, column: str) -> int:
        """Return the largest number of a column over the layers."""
        return max((int(row[column]) for row in self.rows.values()), default=0)

    def values(self, layers: Sequence[int]) -> list[float]:
        """Return the value of each layer."""
        return [self.rows[n]["value"] if n in self.rows else math.nan for n in layers]


@dataclass(frozen=True)
class Response:
    """How a metric responds to a family, from the weakest level to the strongest.

    `slopes` are rows of `sensitivity` by layer; there is none where there is only one level, and
    no interval for a metric of all prompts together.
    """

    dataset: str
    family: str
    metric: str
    variant: str
    norm: str
    pooling: str
    levels: Sequence[Level]
    slopes: Mapping[int, Row]

    @property
    def layers(self) -> list[int]:
        """The layers that some level has."""
        return sorted({layer for level in self.levels for layer in level.rows})

    @property
    def of_tokens(self) -> bool:
        """Whether every prompt has a value of the metric, and its slopes an interval."""
        return isinstance(METRICS[self.metric].measured, Tokens)

    @property
    def unit(self) -> str:
        """The unit of the metric's values."""
        return unit_of(self.metric, self.variant)

    @property
    def name(self) -> str:
        """The metric, with its variant where that is not the usual one."""
        special = METRICS[self.metric].perturbed
        return f"{title(self.metric)}, {special}" if special else title(self.metric)

    @property
    def directions(self) -> tuple[int, int, int]:
        """In how many layers a metric rises, falls, and has a slope; surely, where it can be."""
        ends = [
            (row["slope_low"], row["slope_high"])
            if known(row["slope_low"])
            else (row["slope"], row["slope"])
            for row in self.slopes.values()
            if known(row["slope"])
        ]
        return sum(low > 0 for low, _ in ends), sum(high < 0 for _, high in ends), len(ends)


def section(facts: Facts) -> Section:
    """Return the families of every dataset: what they do, the metrics per level, and slopes."""
    found: list[list[Response]] = []
    if (run := facts.run) is not None:
        for dataset in run.config.datasets:
            for family, conditions in run.config.conditions.families().items():
                found.append(_measured(facts, run, dataset, family, conditions))
    says = (
        "Every prompt went through the model again, perturbed. Lines: the metric in every layer, "
        "the more colour the stronger the perturbation; dashed: the clean prompts. Below: each "
        "layer's sensitivity, the slope of a least-squares line of the metric against the level. "
        "Of a metric with a value per prompt it is the mean over the prompts' own slopes, and the "
        f"band its {facts.interval} over prompts: how far it would move with other prompts of the "
        "same kind, layer by layer. A metric of the whole dataset has one value per level, so its "
        "slope has no interval. Where a metric bends, a slope is a summary of the levels that were "
        "run."
    )
    return Section(
        "Under extreme input",
        "conditions",
        says=[says] if any(found) else [],
        parts=[_family(facts, same) for same in found if same],
        link="metrics.html#conditions",
        folded=True,
        data={"responses": [_data(each) for same in found for each in same]},
    )


def _measured(
    facts: Facts, run: Run, dataset: DatasetConfig, family: str, conditions: list[Condition]
) -> list[Response]:
    subject = facts.ranking.subject
    # A share of less than all is the stronger the smaller it is.
    conditions = sorted(conditions, reverse=FAMILIES[family].clean == 1)
    levels = [
        run.rows_if_any(partition("layer_metrics", subject, dataset, each.name))
        for each in conditions
    ]
    if not all(levels):
        return []
    slopes = run.rows_if_any(partition("sensitivity", subject, dataset, family))
    found, asked, names = [], parameters(run.config), run.config.measure.metrics
    views = of_kind(names, Views)  # which are of the clean text alone
    for metric in (name for name in METRICS if name in names and name not in views):
        variant = METRICS[metric].perturbed or main_variant(metric, asked)
        same = [_of(rows, metric, variant) for rows in levels]
        pairs = ((row["norm"], row["pooling"]) for rows in same for row in rows)
        shown = shown_vectors(pairs, (run.config.rank.norm, run.config.rank.pooling))
        if shown is not None:
            at = [
                Level(each.name, each.level, _by_layer(rows, shown))
                for each, rows in zip(conditions, same, strict=True)
            ]
            sloped = _by_layer(_of(slopes, metric, variant), shown)
            found.append(Response(dataset.name, family, metric, variant, *shown, at, sloped))
    return found


def _of(rows: Sequence[Row], metric: str, variant: str) -> list[Row]:
    return [row for row in rows if (row["metric"], row["variant"]) == (metric, variant)]


def _by_layer(rows: Sequence[Row], vectors: tuple[str, str]) -> dict[int, Row]:
    return {row["layer"]: row for row in rows if (row["norm"], row["pooling"]) == vectors}


def _family(facts: Facts, same: Sequence[Response]) -> Section:
    family = _FAMILIES[same[0].family]
    strengths = opacities(same[0].levels)
    legend = [
        (level_swatch(opacity, dashed=level.condition == CLEAN), level.name)
        for level, opacity in zip(same[0].levels, strengths, strict=True)
    ]
    among = f": {same[0].dataset}" if facts.several_datasets else ""
    layers = same[0].layers
    slopes = Table(
        f"{family.title}: all slopes",
        ["Metric", *(f"layer {layer}" for layer in layers)],
        [[(each.name, each.unit), *(slope(each.slopes.get(n)) for n in layers)] for each in same],
        note=f"Slope {family.per}, with its {facts.interval} where it has one.",
        folded=True,
    )
    whole = [_chart(facts, each) for each in same if not each.of_tokens]
    parts = [Section("Metrics of the whole dataset", charts=whole, folded=True)] if whole else []
    return Section(
        f"{family.title}{among}",
        says=[f"{family.says} {lead(same)}".strip()],
        legend=legend,
        charts=[_chart(facts, each) for each in same if each.of_tokens],
        tables=[slopes],
        parts=parts,
    )


def lead(same: Sequence[Response]) -> str:
    """Return which metrics rise and which fall with the level in every layer."""
    growing = f"With growing {_FAMILIES[same[0].family].grows}"
    said: dict[str, list[str]] = {
        f"{growing}, up in every layer": [],
        f"{growing}, down in every layer": [],
        "No one direction over the layers": [],
    }
    up_in, down_in, neither = said.values()
    for each in same:
        up, down, of = each.directions
        if of and each.of_tokens:
            group = up_in if up == of else down_in if down == of else neither
            group.append(title(each.metric).lower())
    return " ".join(f"{what}: {', '.join(names)}." for what, names in said.items() if names)


def opacities(levels: Sequence[Level]) -> list[float]:
    """Return how each level is drawn: the stronger, the more of the colour; clean is dashed."""
    count = sum(level.condition != CLEAN for level in levels)
    strengths = iter(np.linspace(1, _PALEST, count)[::-1].round(2).tolist())
    return [1.0 if level.condition == CLEAN else next(strengths) for level in levels]


def says(each: Response, interval: str) -> str:
    """Return where a metric rises or falls with the level, and where most."""
    up, down, of = each.directions
    if not of:
        return "No slope: fewer than two levels have a value."
    sloped = [(layer, row) for layer, row in each.slopes.items() if known(row["slope"])]
    layer, steepest = max(sloped, key=lambda pair: abs(pair[1]["slope"]))
    parts = []
    for word, number in (("up", up), ("down", down)):
        if number:
            where = "every layer" if number == of else f"{number} of {counted(of, 'layer')}"
            parts.append(f"{word} in {where}")
    told = "; ".join(parts) or "no clear change in any layer"
    most, per = slope(steepest, f"{interval} "), _FAMILIES[each.family].per
    return f"{capital(told)}; steepest in layer {layer}: {most} {each.unit} {per}."


def slope(row: Row | None, interval: str = "") -> str:
    """Return a slope of a layer with its sign and the ends of its interval, three digits each."""
    if row is None or not known(row["slope"]):
        return NOTHING
    said, low, high = (
        f"{'-' if value < 0 else '+' if value > 0 else ''}{size(abs(value))}"
        for value in (row["slope"], row["slope_low"], row["slope_high"])
    )
    return f"{said} ({interval}{low} to {high})" if known(row["slope_low"]) else said


def _chart(facts: Facts, each: Response) -> Chart:
    layers = each.layers
    lines = [
        Line(
            f"{_FAMILIES[each.family].level} {level.name}" if level.condition != CLEAN else CLEAN,
            layers,
            level.values(layers),
            "clean" if level.condition == CLEAN else "level",
            opacity=opacity,
        )
        for level, opacity in zip(each.levels, opacities(each.levels), strict=True)
    ]
    y, low, high = (
        [row[name] for row in each.slopes.values()] for name in ("slope", "slope_low", "slope_high")
    )
    sloped = Line("slope", list(each.slopes), y, low=low, high=high, form="+.3g")
    worst = max(each.levels, key=lambda level: level.most("n_undefined"))
    prompts = max(level.most("n_prompts") + level.most("n_undefined") for level in each.levels)
    missing = ""
    if worst.most("n_undefined"):
        where = f"at {_FAMILIES[each.family].level} {worst.name}"
        where = CLEAN if worst.condition == CLEAN else where
        missing = f", {worst.most('n_undefined'):,} of them undefined {where}"
    how = capital(vectors_of(each.norm, each.pooling))
    return Chart(
        each.name,
        where_any(Lines(lines, y=each.unit)),
        says=says(each, f"{100 * facts.ranking.settings.level:g} %"),
        source=f"{how}; {counted(prompts, 'prompt')}{missing}.",
        link=link_to(METRICS[each.metric].title),
        below=where_any(Lines([sloped], y="slope", zero=True)),
    )


def _data(each: Response) -> dict[str, Any]:
    levels = [
        {
            "condition": level.condition,
            "level": level.level,
            "values": level.values(each.layers),
            **{name: level.most(name) for name in ("n_prompts", "n_undefined")},
        }
        for level in each.levels
    ]
    ends = {"slope": "slope", "low": "slope_low", "high": "slope_high"}
    columns = {**ends, **{name: name for name in ("reason", "n_prompts", "n_undefined")}}
    slopes = [
        {"layer": layer, **{name: row[column] for name, column in columns.items()}}
        for layer, row in each.slopes.items()
    ]
    plain = ("dataset", "family", "metric", "variant", "norm", "pooling", "layers")
    return {**{name: getattr(each, name) for name in plain}, "levels": levels, "slopes": slopes}
