"""Several models in one run, on relative depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from layerrank.jobs.rank.ranking import Ranking, at_layers
from layerrank.jobs.report.charts import Chart, Line, Lines, in_points, where_any
from layerrank.jobs.report.facts import Facts, gain_span
from layerrank.jobs.report.section import Cell, Section, Table
from layerrank.jobs.report.sections.metrics import chart, drawn, series
from layerrank.jobs.words import NOTHING, counted, hundredths, known, points, signed
from layerrank.operators.later import Later
from layerrank.operators.metrics.registry import METRICS, unit_of

if TYPE_CHECKING:
    from layerrank.jobs.report.drawing import swatch
else:
    swatch = Later("layerrank.jobs.report.drawing").swatch

_TICKS = [(0.0, "0"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"), (1.0, "1")]


def section(models: Sequence[Facts]) -> Section:
    """Return the models of a run that has several, the newest checkpoint of each."""
    data = [_model(facts.ranking) for facts in models] if len(models) > 1 else []
    if not data:
        return Section("Side by side", "side", data={"side_by_side": data})
    each_has = {tuple(sorted(facts.ranking.evidence.tasks)) for facts in models}
    tasks = {len(names) for names in each_has}
    same = " that read the same texts" if models[0].run else ""
    same += f", scored on the same {counted(max(tasks), 'task')}" if max(tasks) else ""
    if len(each_has) > 1:
        same = f", scored on {min(tasks)} to {max(tasks)} tasks, which are not all the same"
    rows = []
    for each, facts in zip(data, models, strict=True):
        best, depth = each["best"], hundredths(each["recommended_depth"])
        ranked = next((row for row in facts.ranking.rows if row["layer"] == best), None)
        rows.append(
            [
                each["name"],
                str(each["blocks"]),
                NOTHING if best is None else str(best),
                points(each["best_score"]),
                signed(each["gain"]),
                gain_span(ranked, facts.ranking.last) if ranked else NOTHING,
                hundredths(each["best_depth"]),
                str(each["recommended"]),
                depth,
                facts.ranking.answer,
            ]
        )
    head: list[Cell] = ["Model", "Blocks", "Best layer", "Score", ("Gain", "over the last")]
    head += [models[0].interval, "Its depth", "Recommended", "Its depth", "Verdict"]
    return Section(
        "Side by side",
        "side",
        says=[
            f"{counted(len(models), 'model')}{same}. Depth is layer / last "
            "layer, so that models of different sizes lie on one axis: 0 is the input of the first "
            "block, 1 the last layer."
        ],
        legend=[(swatch(n), each["name"]) for n, each in enumerate(data)],
        charts=_scores(models),
        tables=[Table("Models side by side", head, rows, words=(0, 9))],
        parts=_metrics(models),
        data={"side_by_side": data},
    )


def _depths(ranking: Ranking) -> list[float]:
    """Return the relative depth of each layer, 0..1; a model without blocks is all of it."""
    return [layer / ranking.last if ranking.last else 1.0 for layer in ranking.layers]


def _model(ranking: Ranking) -> dict[str, Any]:
    depths = dict(zip(ranking.layers, _depths(ranking), strict=True))
    best = next((row for row in ranking.rows if row["rank"] == 1), {})
    gain = {name: best.get(name) for name in ("gain", "gain_low", "gain_high")}
    # Of a layer that was chosen the gain is the corrected one; the last gains 0 over itself.
    if best and best["layer"] != ranking.last and known(best["gain_chosen"]):
        gain["gain"] = best["gain_chosen"]
    return {
        "name": ranking.subject.name,
        "revision": ranking.subject.revision,
        "blocks": ranking.last,
        "best": best.get("layer"),
        "best_depth": depths[best["layer"]] if best else None,
        "best_score": best.get("aligned"),
        **gain,
        "recommended": ranking.verdict.layer,
        "recommended_depth": depths[ranking.verdict.layer],
    }


def _scores(models: Sequence[Facts]) -> list[Chart]:
    lines = []
    for facts in models:
        name, scores = facts.ranking.subject.name, [row["aligned"] for row in facts.ranking.rows]
        lines.append(in_points(name, _depths(facts.ranking), scores, "model", at_end=True))
    plot = where_any(Lines(lines, "relative depth", "score, points", _TICKS))
    if plot is None:
        return []
    source = "Score against relative depth, mean over tasks, in points."
    return [Chart("Score against relative depth", plot, "wide", source=source)]


def _metrics(models: Sequence[Facts]) -> list[Section]:
    """Return a plot of every metric that one of the models has, dataset by dataset."""
    run = models[0].run
    if run is None:
        return []
    parts = []
    for dataset in run.config.datasets:
        shown = [
            {each.metric: each for each in drawn(facts.ranking, series(facts, dataset.name))}
            for facts in models
        ]
        charts = []
        for metric in METRICS:
            found = next((each[metric] for each in shown if metric in each), None)
            if found is None:
                continue
            lines = []
            for facts, own in zip(models, shown, strict=True):
                measured = own[metric].rows if metric in own else ()
                values = {row["layer"]: row["value"] for row in measured}
                y = at_layers(values, facts.ranking.layers).tolist()
                lines.append(Line(facts.ranking.subject.name, _depths(facts.ranking), y, "model"))
            unit = unit_of(metric, found.variant)
            plot = where_any(Lines(lines, "relative depth", unit, _TICKS))
            charts.append(chart(metric, plot, found.norm, found.pooling, views=found.views))
        if charts:
            among = f" of {dataset.name}" if len(run.config.datasets) > 1 else ""
            note = (
                "Of metrics in activation units, or bounded by the number of features, compare the "
                "shapes and not the heights."
            )
            title = f"Metrics{among} against relative depth"
            parts.append(Section(title, charts=charts, notes=[note], folded=True))
    return parts
