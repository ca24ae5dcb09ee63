"""The metrics without labels: one plot for each, under what it is measured on, and every value.

Of each metric the main variant is drawn, of the ranked vectors where those were measured, and
beside it the same without the first token where that was measured too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from layerrank.jobs.config.metrics import left_out, parameters, shown_vectors
from layerrank.jobs.rank.ranking import Ranking, Row
from layerrank.jobs.report.charts import Chart, Line, Lines, Look, where_any
from layerrank.jobs.report.facts import Facts, title, vectors_of
from layerrank.jobs.report.guide import link_to
from layerrank.jobs.report.section import Cell, Section, Table
from layerrank.jobs.run import partition
from layerrank.jobs.words import capital, counted, known, number
from layerrank.operators.metrics import WITHOUT_FIRST
from layerrank.operators.metrics.registry import (
    METRICS,
    Layers,
    Prompts,
    Tokens,
    Views,
    enough_prompts,
    main_variant,
    of_every_view,
    unit_of,
)

_MEASURED_ON: dict[type[Tokens | Prompts | Views | Layers], str] = {
    Tokens: "Tokens of a prompt",
    Prompts: "Prompts of the dataset",
    Layers: "Other layers",
    Views: "Augmented views of a prompt",
}


@dataclass(frozen=True)
class Series:
    """A metric in one variant, of one kind of vectors: its rows by layer."""

    dataset: str
    metric: str
    variant: str
    norm: str
    pooling: str
    main: bool
    rows: Sequence[Row]
    views: int = 0

    @property
    def title(self) -> str:
        """What it is called where its values are."""
        return title(self.metric, self.views)

    @property
    def prompts(self) -> int:
        """The largest number of prompts that a value is from."""
        return max(int(row["n_prompts"]) for row in self.rows)

    def at(self, layer: int) -> float:
        """Return the value of a layer."""
        return next((row["value"] for row in self.rows if row["layer"] == layer), math.nan)


def section(facts: Facts) -> Section:
    """Return the plots and the values of every dataset; nothing of what was not measured."""
    if facts.run is None:
        return Section("Metrics without labels", "metrics", data={"metrics": [], "unmeasured": []})
    found = {dataset.name: series(facts, dataset.name) for dataset in facts.run.config.datasets}
    unmeasured = [name for name, of in found.items() if not of]
    measured = {name: of for name, of in found.items() if of}
    says = []
    if measured:
        says.append(
            "What the vectors of each layer look like. These describe the layers and do not enter "
            "the ranking: on the published scores of 32 tasks no such metric chose layers reliably."
        )
    parts = []
    for name, of in measured.items():
        among = f" of {name}" if facts.several_datasets else ""
        shown = drawn(facts.ranking, of)
        for kind, same in groupby(shown, key=lambda each: type(METRICS[each.metric].measured)):
            charts = [_chart(facts, each, of) for each in same]
            parts.append(Section(f"{_MEASURED_ON[kind]}{among}", charts=charts))
        if own := _own_charts(facts, of):
            parts.append(Section(f"Functions of your own{among}", charts=own))
        parts.append(Section(f"Every variant{among}", tables=[_values(facts, of)]))
    if measured and (without := left_out(facts.run.config)):
        says.append(without)
    if unmeasured:
        names = ", ".join(unmeasured)
        says.append(f"Not measured: {names}. The stage “measure” was not run.")
    return Section(
        "Metrics without labels",
        "metrics",
        says=says,
        parts=parts,
        link="metrics.html",
        folded=True,
        data={
            "metrics": [_data(each) for of in measured.values() for each in of],
            "unmeasured": unmeasured,
        },
    )


def series(facts: Facts, dataset: str) -> list[Series]:
    """Return the rows of a dataset by metric, variant and vectors, in the registry's order."""
    assert facts.run is not None
    config = facts.run.config
    (of,) = [each for each in config.datasets if each.name == dataset]
    where = partition("layer_metrics", facts.ranking.subject, of)
    found: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in facts.run.rows_if_any(where):
        name = (row["metric"], row["variant"], row["norm"], row["pooling"])
        found.setdefault(name, []).append(row)
    for metric in config.measure.own:
        for row in facts.run.rows_if_any(
            partition("own_metrics", facts.ranking.subject, of, metric)
        ):
            name = (metric, row["variant"], row["norm"], row["pooling"])
            found.setdefault(name, []).append({**row, "n_undefined": 0})
    known_metrics, asked = list(METRICS), parameters(config)
    views = facts.run.views_in(where)

    def place(name: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
        return known_metrics.index(name[0]) if name[0] in METRICS else len(METRICS), name

    return [
        Series(
            dataset,
            *name,
            main=name[0] in METRICS and name[1] == main_variant(name[0], asked),
            rows=sorted(found[name], key=lambda row: row["layer"]),
            views=views,
        )
        for name in sorted(found, key=place)
    ]


def drawn(ranking: Ranking, of: Sequence[Series]) -> list[Series]:
    """Return the series that stand for the metrics of a dataset, one of each metric."""
    ranked, found = (ranking.vectors.norm, ranking.vectors.pooling), []
    for _, same in groupby((each for each in of if each.main), key=lambda each: each.metric):
        alike = list(same)
        shown = shown_vectors(((each.norm, each.pooling) for each in alike), ranked)
        found.append(next(each for each in alike if (each.norm, each.pooling) == shown))
    return found


def chart(
    name: str, plot: Lines | None, norm: str, pooling: str, *, prompts: int = 0, views: int = 0
) -> Chart:
    """Return the chart of a metric with what it says, its source and its paper."""
    metric = METRICS[name]
    how = capital(vectors_of(norm, pooling))
    of = f"; {counted(prompts, 'prompt')}" if prompts else ""
    return Chart(
        title(name, views),
        plot,
        says=metric.says,
        source=f"{how}{of}. {metric.paper}.",
        link=link_to(metric.title),
    )


def from_few(facts: Facts, each: Series) -> bool:
    """Whether values are from fewer prompts than the guide says that a usable one wants."""
    return each.prompts < enough_prompts(each.metric, facts.ranking.features)


def _chart(facts: Facts, each: Series, of: Sequence[Series]) -> Chart:
    variant = ",".join(word for word in (each.variant, WITHOUT_FIRST) if word)
    wanted = (each.metric, variant, each.norm, each.pooling)
    beside = [s for s in of if (s.metric, s.variant, s.norm, s.pooling) == wanted]
    unit, few = unit_of(each.metric, each.variant), from_few(facts, each)
    main: Look = "plain" if few else "strong"
    named: list[tuple[Series, str, Look]] = [
        *((found, "without first token", "beside") for found in beside),
        (each, each.title, main),
    ]
    lines = [
        Line(name, [row["layer"] for row in s.rows], [row["value"] for row in s.rows], look)
        for s, name, look in named
    ]
    plot, counts = where_any(Lines(lines, y=unit)), {"prompts": each.prompts, "views": each.views}
    found = chart(each.metric, plot, each.norm, each.pooling, **counts)
    dashed = " Dashed: without the first token." if beside else ""
    grey = " Grey: from too few prompts." if few else ""
    return replace(found, source=f"{found.source}{dashed}{grey}")


def _own_charts(facts: Facts, of: Sequence[Series]) -> list[Chart]:
    """Return a chart of each function of the user's, with a line for each of its values."""
    vectors, charts = facts.ranking.vectors, []
    own = [each for each in of if each.metric not in METRICS]
    for metric, same in groupby(own, key=lambda each: each.metric):
        alike = list(same)
        ranked = (vectors.norm, vectors.pooling)
        shown = shown_vectors(((each.norm, each.pooling) for each in alike), ranked)
        lines = [
            Line(s.variant or metric, [r["layer"] for r in s.rows], [r["value"] for r in s.rows])
            for s in alike
            if (s.norm, s.pooling) == shown
        ]
        assert shown is not None
        source = f"{capital(vectors_of(*shown))}; {counted(alike[0].prompts, 'prompt')}."
        charts.append(Chart(metric, where_any(Lines(lines)), source=source))
    return charts


def _values(facts: Facts, of: Sequence[Series]) -> Table:
    layers = sorted({row["layer"] for each in of for row in each.rows})
    rows: list[list[Cell]] = []
    grey = set()
    for at, each in enumerate(of):
        name = (each.title, "main" if each.main else "")
        values = [number(each.at(layer)) for layer in layers]
        rows.append([name, each.variant or "plain", vectors_of(each.norm, each.pooling), *values])
        if each.metric in METRICS and from_few(facts, each):
            grey |= {(at, column) for column in range(3, 3 + len(layers))}
    return Table(
        "Metric values",
        ["Metric", "Variant", "Vectors", *(f"layer {layer}" for layer in layers)],
        rows,
        words=(0, 1, 2),
        grey=grey,
        note="Grey: from fewer prompts than a usable value wants, as the guide says." * bool(grey),
        folded=True,
    )


def _data(each: Series) -> dict[str, Any]:
    names = ("layer", "value", "reason", "n_prompts", "n_undefined")
    values = []
    for row in each.rows:
        reason = None if known(row["value"]) else row["reason"] or "undefined"
        values.append({**{name: row[name] for name in names}, "reason": reason})
    plain = ("dataset", "metric", "variant", "norm", "pooling", "main")
    compared = {"views": each.views} if of_every_view(each.metric) else {}
    return {**{name: getattr(each, name) for name in plain}, **compared, "values": values}
