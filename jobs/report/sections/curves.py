"""The curves that decide in practice: score against labelled examples, and against noise."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from jobs.config.run import labelled_tasks, learning_examples, noise_conditions
from jobs.rank.ranking import Row
from jobs.report.charts import Chart, Lines, Look, in_points, where_any
from jobs.report.facts import Facts, layer_cell
from jobs.report.section import Cell, Section, Table
from jobs.run import partition
from jobs.words import capital, known, listed, points
from operators.prompts.conditions import Condition

CurveKind = Literal["examples", "noise"]


class _Kind(NamedTuple):
    """How a kind of curve is called, what its scores are, its axis, and a place on it."""

    title: str
    fitted: str
    axis: str
    at: str
    place: Callable[[float], float]


_KINDS: dict[CurveKind, _Kind] = {
    "examples": _Kind(
        "few labelled examples",
        "fitted on fewer training examples",
        "training examples per label",
        "at {x:g} per label",
        math.log2,  # examples are doubled from step to step
    ),
    "noise": _Kind(
        "noisy text",
        "fitted on clean texts, tested on texts with typos",
        "typos of each kind, probability per word",
        "at noise {x:g}",
        float,
    ),
}


class Score(NamedTuple):
    """A score, mean over folds, and its standard deviation over them."""

    mean: float
    spread: float


@dataclass(frozen=True)
class Curves:
    """The curves of every layer in one task: layer -> place on the axis -> score."""

    label: str
    kind: CurveKind
    metric: str
    scores: dict[int, dict[float, Score]]

    @property
    def places(self) -> list[float]:
        """Every place that some layer has."""
        return sorted({x for at in self.scores.values() for x in at})

    def at(self, x: float) -> str:
        """Return a place on the axis; noise 0 is the clean text."""
        return "clean" if self.kind == "noise" and not x else f"{x:g}"


def section(facts: Facts) -> Section:
    """Say how the layer to take compares with the other that matters, at both ends of a curve."""
    found = curves(facts)
    kinds = list(dict.fromkeys(_KINDS[each.kind].title for each in found))
    return Section(
        f"With {listed(kinds)}",
        "curves",
        charts=[_chart(facts, each) for each in found],
        notes=["Bands: one standard deviation over folds. Faint: all other layers."] * bool(found),
        tables=[_table(facts, each) for each in found],
        data={"curves": [_data(each) for each in found]},
    )


def curves(facts: Facts) -> list[Curves]:
    """Return the learning and the robustness curves of every task that has them."""
    run, found = facts.run, []
    if run is None:
        return []
    metrics = {task.label: task.metric for task in facts.ranking.tasks}
    subject = facts.ranking.subject
    for label, dataset, task in labelled_tasks(run.config):
        if learning_examples(run.config, task):
            where = partition("learning_curves", subject, dataset, task)
            rows = ((row["examples"], row) for row in run.ranked_rows(where))
            found.append(curves_of(label, "examples", metrics[label], rows))
        if levels := noise_conditions(run.config, [task]):
            noisy = []
            for each in (Condition("noise", 0.0), *levels):
                where = partition("probe_scores", subject, dataset, each.name, task)
                noisy += [(each.level, row) for row in run.ranked_rows(where)]
            found.append(curves_of(label, "noise", metrics[label], noisy))
    return found


def curves_of(
    label: str, kind: CurveKind, metric: str, rows: Iterable[tuple[float, Row]]
) -> Curves:
    """Return the curves of a task from the rows of its scores, each with its place."""
    values: dict[int, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for x, row in rows:
        values[int(row["layer"])][float(x)].append(row["value"])
    scores = {
        layer: {
            x: Score(float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else math.nan)
            for x, v in sorted(at.items())
        }
        for layer, at in sorted(values.items())
    }
    return Curves(label, kind, metric, scores)


def compared(facts: Facts) -> tuple[int, int, str] | None:
    """Return the layer to take, the other that matters, and how both are called."""
    last, verdict, nearest = facts.ranking.last, facts.ranking.verdict, facts.ranking.nearest
    if verdict.layer != last:
        return verdict.layer, last, f"Layer {verdict.layer} against the last ({last})"
    if nearest is None:
        return None
    if verdict.kind == "keep_last":
        return last, nearest, f"Layer {last}, the last, against layer {nearest}, the next"
    return nearest, last, f"Layer {nearest}, the highest below it, against the last ({last})"


def lead(facts: Facts, each: Curves) -> str:
    """Return by how much the layer to take leads at both ends; nothing without two curves."""
    pair = compared(facts)
    if pair is None:
        return ""
    first, second = (each.scores.get(layer, {}) for layer in pair[:2])
    gaps = {x: gap for x in first if x in second and known(gap := first[x].mean - second[x].mean)}
    said = []
    for x in dict.fromkeys((min(gaps, default=0), max(gaps, default=0))) if gaps else ():
        clean = each.kind == "noise" and not x
        where = "on clean text" if clean else _KINDS[each.kind].at.format(x=x)
        size = points(abs(gaps[x]))
        by = f"{size} points {'ahead' if gaps[x] > 0 else 'behind'}" if float(size) else "level"
        said.append(f"{by} {where}")
    return f"{pair[2]}: {', '.join(said)}." if said else ""


def _chart(facts: Facts, each: Curves) -> Chart:
    kind, pair = _KINDS[each.kind], compared(facts)
    looks: dict[int, Look] = {pair[0]: "strong", pair[1]: "second"} if pair else {}
    lines = []
    for layer, at in each.scores.items():
        x = [kind.place(place) for place in at]
        mean, spread = (np.array(column) for column in zip(*at.values(), strict=True))
        ends = (mean - spread, mean + spread) if layer in looks else ((), ())
        name = f"layer {layer}{', last' if layer == facts.ranking.last else ''}"
        look = looks.get(layer, "faint")
        lines.append(in_points(name, x, mean.tolist(), look, ends, at_end=layer in looks))
    lines.sort(key=lambda line: line.look != "faint")
    ticks = [(kind.place(x), each.at(x)) for x in each.places]
    metric = capital(each.metric.replace("_", " "))
    return Chart(
        f"{each.label}: {kind.title}",
        where_any(Lines(lines, kind.axis, "score, points", ticks)),
        says=lead(facts, each),
        source=f"{metric}, {kind.fitted}.",
    )


def _table(facts: Facts, each: Curves) -> Table:
    kind = _KINDS[each.kind]
    rows = []
    for layer, at in each.scores.items():
        cells: list[Cell] = [layer_cell(layer, facts.ranking)]
        for x in each.places:
            mean, spread = at.get(x, (math.nan, math.nan))
            wide = known(mean) and known(spread)
            cells.append(f"{points(mean)} ± {points(spread)}" if wide else points(mean))
        rows.append(cells)
    note = f"Points ± one standard deviation over folds, by {kind.axis}."
    label = f"All values of {each.label}: {kind.title}"
    return Table(label, ["Layer", *map(each.at, each.places)], rows, note=note, folded=True)


def _data(each: Curves) -> dict[str, object]:
    found = [
        {
            "layer": layer,
            "x": list(at),
            "score": [score.mean for score in at.values()],
            "spread": [score.spread for score in at.values()],
        }
        for layer, at in each.scores.items()
    ]
    return {"label": each.label, "kind": each.kind, "metric": each.metric, "curves": found}
