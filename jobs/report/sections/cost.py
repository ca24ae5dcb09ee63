"""What each layer costs: score against compute, the front, and how long a pass takes."""

from __future__ import annotations

import math

from layerrank.jobs.rank.ranking import Ranking
from layerrank.jobs.report.charts import Chart, Point, Scatter
from layerrank.jobs.report.facts import Facts, layer_cell
from layerrank.jobs.report.section import Cell, Section, Table
from layerrank.jobs.words import known, share, size


def section(facts: Facts) -> Section:
    """Return the cost of every layer; without a run it is the share of the blocks."""
    ranking = facts.ranking
    compared = len(ranking.scored) > 1
    says = [told] if (told := latency(facts.ranking)) else []
    if not ranking.costs:
        says = ["The cost of a layer is the share of the blocks that run: no model was measured."]
    return Section(
        "Score against cost" if compared else "Cost of every layer",
        "cost",
        says=says,
        charts=[_chart(facts)] if compared else [],
        tables=[_table(ranking)],
        data={"measured_on": measured_on(ranking)},
    )


def measured_on(ranking: Ranking) -> str:
    """Return what the latencies were measured with; nothing where no model was."""
    cost = ranking.costs.get(ranking.last)
    if not cost:
        return ""
    device = "GPU" if cost["device"] == "cuda" else "CPU"
    return f"one prompt of {cost['tokens']} tokens on a {device}"


def has_latency(ranking: Ranking) -> bool:
    """Whether the latencies tell layers apart: no spread is wider than they differ.

    The spread of a layer is that of the middle half of its passes.
    """
    rows = list(ranking.costs.values())
    spreads = [
        row.get("latency_high_ms", math.nan) - row.get("latency_low_ms", math.nan) for row in rows
    ]
    times = [row["latency_ms"] for row in rows]
    return bool(rows) and max(spreads, key=lambda x: (math.isnan(x), x)) <= max(times) - min(times)


def latency(ranking: Ranking) -> str:
    """Return what the verdict's layer takes beside the whole model; nothing if that is noise."""
    if not has_latency(ranking):
        return ""
    layer = ranking.verdict.layer
    whole = f"the whole model takes {spread(ranking, ranking.last)} ms"
    if layer != ranking.last:
        whole = f"layer {layer} takes {spread(ranking, layer)} ms, {whole.replace('takes ', '')}"
    return f"Measured with {measured_on(ranking)}: {whole}."


def spread(ranking: Ranking, layer: int) -> str:
    """Return the latency of a layer, with the range of the middle half of its passes."""
    cost = ranking.costs[layer]
    ends = (size(cost[f"latency_{end}_ms"]) for end in ("low", "high"))
    return f"{size(cost['latency_ms'])} ({' to '.join(ends)})"


def _chart(facts: Facts) -> Chart:
    ranking = facts.ranking
    words = {mark.x: mark.text for mark in facts.marks}
    points = [
        Point(
            100 * row["cost"],
            100 * row["aligned"],
            f"layer {row['layer']}",
            words.get(row["layer"], str(row["layer"])),
            100 * (row["aligned"] + row["shortfall_se"]),
            strong=row["pareto"],
            ringed=row["layer"] in words,
        )
        for row in ranking.scored
    ]
    best = 100 * ranking.best_first[0]["aligned"]
    axes = "compute of a token, % of the whole model", "score, points"
    whisker = (
        " Whisker: one standard error of the difference to the best layer; where it reaches the "
        "best score, dotted, that does not tell the two apart."
    )
    dotted = " Dotted: the best score."
    return Chart(
        f"Score of every layer of {ranking.subject.name} against its cost",
        Scatter(points, axes[0], axes[1], 100, best, ("points", "% of the compute")),
        "wide",
        source="Steps: the Pareto front, the most for each amount of compute."
        f"{whisker if any(known(row['shortfall_se']) for row in ranking.scored) else dotted}",
    )


def _table(ranking: Ranking) -> Table:
    timed = has_latency(ranking)
    head: list[Cell] = ["Layer", ("Compute", "of the model"), ("Front", "Pareto")]
    if ranking.costs:
        head += [("Operations", "MFLOPs a token"), ("Parameters", "millions")]
    head += [("Latency", "ms, middle half")] if timed else []
    rows: list[list[Cell]] = []
    for row in ranking.rows:
        layer = row["layer"]
        cells: list[Cell] = [layer_cell(layer, ranking), share(row["cost"])]
        cells.append("yes" if row["pareto"] else "-")
        if ranking.costs:
            cells += [size(row["flops_per_token"] / 1e6), size(row["parameters"] / 1e6)]
        rows.append([*cells, *([spread(ranking, layer)] if timed else [])])
    note = (
        "Parameters, operations and latency are those of the model cut after the layer; the "
        "operations are those of matrix products in a forward pass, 2 for a multiply and add."
    )
    if not timed and ranking.costs:
        known_spread = known(ranking.costs[ranking.last].get("latency_low_ms"))
        why = (
            "vary by more than layers differ" if known_spread else "were measured without a spread"
        )
        note += f" Latencies {why}, so they are left out."
    return Table("Cost of every layer", head, rows, note=note if ranking.costs else "", folded=True)
