"""The simulations as tables in Markdown: means over grids of trained models, worst of all grids."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from layerrank.operators.ranking.choosing import mean_over
from tests.bench.coverage.grids import Grid, Truth
from tests.bench.coverage.simulate import Found, Place, Plan
from tests.support.markdown import markdown

Cells = Mapping[Grid, Found]
Lines = list[str]
SHOWN = (1, 2, 3, 5, 10, 32)  # numbers of tasks; the test is tried with others too
_HARMFUL = 0.005  # a layer of the mirrored truth that the last one beats by as much


def every_table(cells: Cells, searched: Sequence[dict[str, float]], plan: Plan) -> dict[str, Lines]:
    """Return the tables by title."""
    found = {"Intervals of the gain on a new task, the lowest of all cells": in_short(cells, plan)}
    found["Intervals of the gain on a new task"] = new_task(cells, plan)
    found["Intervals of the gain on these tasks, 10 folds"] = these_tasks(cells, plan)
    found["The printed gain, points above the true one"] = printed(cells, plan)
    found["Policies, on real grids"] = policies(cells, plan, lambda _: True, "real")
    found["Policies where the last layer is the best"] = policies(
        cells, plan, last_is_best, "mirrored"
    )
    found["The test by sign flips"] = tested(cells, plan)
    found["What the page says, policy best"] = said(cells, plan)
    if searched:
        found["A search of the layers, three tasks of ten folds"] = search(searched)
    return found


def mean(cells: Cells, place: Place, name: str) -> float:
    """Return the mean over the grids of trained models."""
    return float(
        mean_over(np.array([cells[grid][place].get(name, math.nan) for grid in late(cells)]))
    )


def worst(cells: Cells, place: Place, name: str) -> float:
    """Return the lowest of any grid."""
    known = [found[place][name] for found in cells.values() if name in found[place]]
    return min(known, default=math.nan)


def late(cells: Iterable[Grid]) -> list[Grid]:
    """Return the grids of trained models."""
    return [grid for grid in cells if not grid.is_early]


def last_is_best(grid: Grid) -> bool:
    """Whether no layer of the mirrored truth is above the last."""
    score_LM = grid.as_truth("mirrored")
    return bool((score_LM - score_LM[-1]).mean(axis=1).max() <= _HARMFUL)


def in_short(cells: Cells, plan: Plan) -> Lines:
    """The lowest mean coverage over truths and folds, and the most that is claimed of nothing."""
    rows = []
    for tasks in (each for each in plan.tasks if each in SHOWN[2:]):
        places: list[Place] = [(truth, n, tasks) for truth in plan.truths for n in plan.folds]
        row = [str(tasks)]
        for name, width in (("fixed", "width"), ("chosen", "chosen width")):
            row.append(percent(min(mean(cells, at, name) for at in places)))
            row.append(percent(min(worst(cells, at, name) for at in places)))
            row.append(points(max(mean(cells, at, width) for at in places if at[0] == "real")))
        row.append(percent(min(mean(cells, at, "chosen below held") for at in places)))
        nothing = [mean(cells, at, "excludes 0") for at in places if at[0] == "null"]
        rows.append([*row, percent(max(nothing, default=math.nan))])
    head = ["tasks", "any layer", "worst grid", "width", "the chosen", "worst grid", "width"]
    head += ["without draws that choose the last", "excludes 0 where nothing is better"]
    return markdown(head, rows)


def new_task(cells: Cells, plan: Plan) -> Lines:
    """Coverage, in the mean and on the worst grid, and the width in points."""
    head = [
        "tasks",
        "truth",
        "folds",
        "any layer",
        "worst grid",
        "width",
        "the chosen",
        "worst grid",
        "width",
        "excludes 0",
    ]
    rows = []
    for tasks in (each for each in plan.tasks if each in SHOWN[2:]):
        for truth in plan.truths:
            for folds in plan.folds:
                at = truth, folds, tasks
                cell = [percent(each(cells, at, "fixed")) for each in (mean, worst)]
                cell += [points(mean(cells, at, "width"))]
                cell += [percent(each(cells, at, "chosen")) for each in (mean, worst)]
                cell += [points(mean(cells, at, "chosen width"))]
                excludes = percent(mean(cells, at, "excludes 0"))
                rows.append([str(tasks), truth, str(folds), *cell, excludes])
    return markdown(head, rows)


def these_tasks(cells: Cells, plan: Plan) -> Lines:
    """Coverage of the gain on the very tasks that were drawn."""
    rows = []
    for tasks in (each for each in plan.tasks if each in SHOWN):
        at: Place = ("real", max(plan.folds), tasks)
        cell = [percent(mean(cells, at, "here")), percent(worst(cells, at, "here"))]
        cell += [points(mean(cells, at, "here width"))]
        chosen = (
            [mean(cells, at, "here chosen"), worst(cells, at, "here chosen")] if tasks > 1 else []
        )
        cell += [percent(each) for each in chosen or [math.nan] * 2]
        rows.append([str(tasks), *cell])
    return markdown(["tasks", "any layer", "worst grid", "width", "the chosen", "worst grid"], rows)


def printed(cells: Cells, plan: Plan) -> Lines:
    """Mean of what is printed less the true gain of the layer."""
    rows = []
    for tasks in (each for each in plan.tasks if each in SHOWN[1:]):
        row = [str(tasks)]
        for truth in plan.truths:
            for name in ("naive", "corrected"):
                row.append(
                    " / ".join(
                        points(mean(cells, (truth, folds, tasks), name), signed=True)
                        for folds in plan.folds
                    )
                )
        rows.append(row)
    folds = " / ".join(f"{each}" for each in plan.folds)
    head = [f"{truth}: {name}" for truth in plan.truths for name in ("as it stands", "corrected")]
    return markdown([f"tasks ({folds} folds)", *head], rows)


def policies(cells: Cells, plan: Plan, which: Callable[[Grid], bool], truth: Truth) -> Lines:
    """Share of advice below the last layer, points lost to the best layer, compute saved."""
    kept = {grid: found for grid, found in cells.items() if which(grid)}

    def over_folds(tasks: int, name: str) -> float:
        places: list[Place] = [(truth, folds, tasks) for folds in plan.folds]
        return sum(mean(kept, place, name) for place in places) / len(places)

    rows = []
    for tasks in (each for each in plan.tasks if each in SHOWN[1:]):
        row = [str(tasks)]
        for policy in plan.policies:
            worse, lost, saved = (
                over_folds(tasks, f"{policy} {name}") for name in ("worse", "lost", "saved")
            )
            row.append(f"{percent(worse)} %; {points(lost)}; {percent(saved, 0)} %")
        rows.append(row)
    return markdown(["tasks", *plan.policies], rows) if late(kept) else []


def tested(cells: Cells, plan: Plan) -> Lines:
    """How often the test claims a layer, and how often wrongly."""
    rows = []
    for tasks in (each for each in plan.tasks if each > 5):
        for truth in plan.truths:
            for folds in plan.folds:
                at = truth, folds, tasks
                worst_of = max(found[at].get("wrong claims", 0.0) for found in cells.values())
                cell = [mean(cells, at, "claims"), mean(cells, at, "wrong claims"), worst_of]
                rows.append([str(tasks), truth, str(folds), *(percent(each, 1) for each in cell)])
    return markdown(["tasks", "truth", "folds", "claims", "wrong", "wrong, worst grid"], rows)


def said(cells: Cells, plan: Plan) -> Lines:
    """What kind of advice there is, in which share of the draws."""
    rows = []
    names = ("a new task", "these tasks", "not enough")
    for tasks in (each for each in plan.tasks if each in SHOWN[1:]):
        for truth in plan.truths:
            for folds in plan.folds:
                at = truth, folds, tasks
                kinds = [mean(cells, at, name) for name in names]
                kept = 1 - mean(cells, at, "chosen below")
                cell = [percent(each, 0) for each in (*kinds, kept)]
                rows.append([str(tasks), truth, str(folds), *cell])
    head = ["use layer k", "on these tasks, use layer k", "not enough evidence", "keep the last"]
    return markdown(["tasks", "truth", "folds", *head], rows)


def search(searched: Sequence[dict[str, float]]) -> Lines:
    """How the choice after a search differs from that of a full sweep."""
    values = {name: [each[name] for each in searched] for name in searched[0]}
    row = [percent(float(np.mean(values["same"])), 1), percent(min(values["same"]), 1)]
    row += [
        points(float(np.mean(values["more"])), signed=True),
        points(max(values["more"]), signed=True),
    ]
    row += [percent(float(np.mean(values["share"])), 0)]
    head = ["same layer", "worst grid", "corrected gain higher by", "most", "of the folds scored"]
    return markdown(head, [row])


ROWS = {"all": "all scored", "ladder": "the ladder", "last layer": "of the last layer alone"}


def with_candidates(
    cells: Mapping[Grid, Mapping[tuple[str, Truth, int], dict[str, float]]],
) -> Lines:
    """What is said where layers have several vectors each, with real and with null gains."""

    def over(which: str, truth: Truth, tasks: int, name: str) -> float:
        places = [each[which, truth, tasks] for each in cells.values()]
        return float(np.mean([of.get(name, math.nan) for of in places]))

    truths: tuple[Truth, ...] = ("real", "null")
    rows = []
    for tasks in sorted({tasks for found in cells.values() for _, _, tasks in found}):
        for which, said in ROWS.items():
            row = [str(tasks), said]
            for truth in truths:
                of = partial(over, which, truth, tasks)
                row += [percent(of(name)) for name in ("chosen", "here chosen")]
                row += [points(of(name), signed=True) for name in ("naive", "corrected")]
            rows.append([*row, percent(over(which, "null", tasks, "excludes 0"))])
    head = ["tasks", "candidates"]
    for truth in truths:
        head += [f"{truth}: a new task", "these tasks", "as it stands", "corrected"]
    return markdown([*head, "excludes 0"], rows, "rl" + "r" * 9)


def percent(value: float, digits: int = 1) -> str:
    """Return a share in per cent."""
    return "-" if math.isnan(value) else f"{100 * value:.{digits}f}"


def points(value: float, *, signed: bool = False) -> str:
    """Return a score in points."""
    if math.isnan(value):
        return "-"
    return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
