"""The curves that decide in practice: score against labelled examples, and against noise."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from layerrank.jobs.config.datasets import RegressionTask, Task
from layerrank.jobs.config.run import labelled_tasks, learning_examples, noise_conditions
from layerrank.jobs.rank.ranking import Row
from layerrank.jobs.report.charts import Chart, Lines, Look, in_points, where_any
from layerrank.jobs.report.facts import Facts, layer_cell
from layerrank.jobs.report.section import Cell, Section, Table
from layerrank.jobs.run import partition
from layerrank.jobs.words import capital, known, listed, points
from layerrank.operators.prompts.conditions import Condition

CurveKind = Literal["examples", "rows", "noise"]


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
        "training examples per label, as far as it has them",
        "at {x:g} per label",
        math.log2,  # examples are doubled from step to step
    ),
    "rows": _Kind(
        "few labelled examples",
        "fitted on fewer training examples",
        "training examples",
        "at {x:g} training examples",
        math.log2,
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
    """A score, mean over folds, its standard deviation over them, and how many rows were fitted."""

    mean: float
    spread: float
    n_train: float = math.nan


@dataclass(frozen=True)
class Curves:
    """The curves of every layer in one task: layer -> place on the axis -> score.

    A place is a number of examples per label (`examples`), of all examples (`rows`), or a
    probability (`noise`).
    """

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

    def taken(self, x: float) -> str:
        """Return how many examples were taken at a place: a label may have fewer than that."""
        if self.kind != "examples":
            return ""
        counts = [at[x].n_train for at in self.scores.values() if x in at]
        found = next((count for count in counts if known(count) and count), None)
        return "" if found is None else f"{found:,.0f} in all"


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
        where = partition("learning_curves", subject, dataset, task)
        # A root of the time when only classifications had curves has none of a regression.
        if learning_examples(run.config, task) and run.manifests.load(where):
            found.append(_learning(label, task, metrics[label], run.ranked_rows(where)))
        if levels := noise_conditions(run.config, [task]):
            noisy = []
            for each in (Condition("noise", 0.0), *levels):
                where = partition("probe_scores", subject, dataset, each.name, task)
                noisy += [(each.level, row) for row in run.ranked_rows(where)]
            found.append(curves_of(label, "noise", metrics[label], noisy))
    return found


def _learning(label: str, task: Task, metric: str, rows: Sequence[Row]) -> Curves:
    if not isinstance(task, RegressionTask):
        return curves_of(label, "examples", metric, ((row["examples"], row) for row in rows))
    # Numbers that are more than there are all take the same rows, and are one place.
    fits = {(row["layer"], row["n_train"], row["fold"]): row for row in rows if row["n_train"]}
    return curves_of(label, "rows", metric, ((row["n_train"], row) for row in fits.values()))


def curves_of(
    label: str, kind: CurveKind, metric: str, rows: Iterable[tuple[float, Row]]
) -> Curves:
    """Return the curves of a task from the rows of its scores, each with its place."""
    values: dict[int, dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for x, row in rows:
        values[int(row["layer"])][float(x)].append(row)
    scores = {
        layer: {x: _score(folds) for x, folds in sorted(at.items())}
        for layer, at in sorted(values.items())
    }
    return Curves(label, kind, metric, scores)


def _score(folds: Sequence[Row]) -> Score:
    values = [row["value"] for row in folds]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Score(float(np.mean(values)), spread, float(np.mean([row["n_train"] for row in folds])))


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
        where += f" ({taken})" if (taken := each.taken(x)) else ""
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
        mean, spread, _ = (np.array(column) for column in zip(*at.values(), strict=True))
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
            mean, spread, _ = at.get(x, Score(math.nan, math.nan))
            wide = known(mean) and known(spread)
            cells.append(f"{points(mean)} ± {points(spread)}" if wide else points(mean))
        rows.append(cells)
    note = f"Points ± one standard deviation over folds, by {kind.axis}."
    label = f"All values of {each.label}: {kind.title}"
    head: list[Cell] = ["Layer", *((each.at(x), each.taken(x)) for x in each.places)]
    return Table(label, head, rows, note=note, folded=True)


def _data(each: Curves) -> dict[str, object]:
    found = [
        {
            "layer": layer,
            "x": list(at),
            "score": [score.mean for score in at.values()],
            "spread": [score.spread for score in at.values()],
            "n_train": [score.n_train for score in at.values()],
        }
        for layer, at in each.scores.items()
    ]
    return {"label": each.label, "kind": each.kind, "metric": each.metric, "curves": found}
