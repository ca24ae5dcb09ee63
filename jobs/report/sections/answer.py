"""The first screen: what to do, what it wins, how sure that is, what it saves, and the scores."""

from __future__ import annotations

import math

from jobs.rank import sentences
from jobs.rank.ranking import at_layers
from jobs.report.charts import Chart, Line, Lines, in_points
from jobs.report.facts import Facts, title
from jobs.report.section import Section
from jobs.words import NOTHING, capital, counted, known, listed, share, signed, span

# How compressed, how straight and how invariant a layer is: one line each beside the score.
BESIDE = ("prompt_entropy", "curvature", "infonce")


def section(facts: Facts) -> Section:
    """Return the answer of a model with its three figures and the plot of its layers."""
    ranking = facts.ranking
    folds = sorted({task.folds for task in ranking.counting})
    of_folds = ""
    if folds and folds != [1]:
        each = f"{folds[0]}" if len(folds) == 1 else f"{folds[0]} to {folds[-1]}"
        of_folds = f" of {each} folds"
    why = capital(sentences.why(ranking.evidence, ranking.verdict))
    tasks = counted(len(ranking.counting), "task")
    return Section(
        sentences.answer(ranking.evidence, ranking.verdict),
        "answer",
        says=[f"{why}; {tasks}{of_folds}; {facts.vectors}."],
        figures=[*_won(facts), (share(ranking.verdict.saved), "of the compute saved")],
        charts=[_chart(facts)],
    )


def _won(facts: Facts) -> list[tuple[str, str]]:
    """Return the points won by the verdict's layer, and how sure that is."""
    ranking = facts.ranking
    rows = {row["layer"]: row for row in ranking.rows}
    row, over = rows[ranking.verdict.layer], f"over the last layer, {ranking.last}"
    if row["layer"] == ranking.last and ranking.nearest is not None:
        row, over = rows[ranking.nearest], f"layer {ranking.nearest} over the last"
    gain, low, high = row["gain"], row["gain_low"], row["gain_high"]
    if ranking.verdict.kind == "keep_last":
        gain, low, high = -gain, -high, -low
        over = f"over the nearest layer, {ranking.nearest}"
    if not known(gain):
        return [
            (NOTHING, "points: there is no score to compare"),
            (NOTHING, "nothing says how sure"),
        ]
    sure = (span(low, high), f"{facts.interval} of that")
    return [
        (f"{signed(gain)} points", over),
        sure if known(low) else (NOTHING, "a single score has no interval"),
    ]


def _chart(facts: Facts) -> Chart:
    ranking = facts.ranking
    rows = ranking.rows
    layers = [row["layer"] for row in rows]
    lines = [in_points("score", layers, [row["score"] for row in rows], band=facts.band("score"))]
    beside = []
    for metric in BESIDE:
        y = at_layers(ranking.metric(metric), layers).tolist()
        if not all(map(math.isnan, y)):
            beside.append(title(metric))
            lines.append(Line(beside[-1], layers, y, "thin", at_end=True))
    ends = f", with its {facts.interval}" if ranking.has_intervals else ""
    score = f"Score, mean of the tasks{ends}."
    if not ranking.scored:
        score, lines = "", lines[1:]
    thin = f"Thin: {listed(beside)}, each on its own scale." if beside else ""
    return Chart(
        f"Score of every layer of {ranking.subject.name}",
        Lines(lines, y="score, points" if score else "", marks=facts.marks) if lines else None,
        "wide",
        source=f"{score} {thin} Layer 0 is the first block's input.".strip(),
    )
