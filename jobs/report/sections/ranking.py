"""The ranking: every layer's score and gain, how sure they are, and what they come from."""

from __future__ import annotations

from jobs.rank.ranking import Row, as_good_as_best
from jobs.rank.sentences import FEW_TASKS
from jobs.report.charts import Chart, Lines, Mark, in_points
from jobs.report.facts import Facts, gain_span, layer_cell
from jobs.report.section import Cell, Section, Table
from jobs.words import NOTHING, counted, decimal, known, p_value, points, share, signed, span
from operators.ranking.policy import Policy
from operators.ranking.scores import TIE

_POLICIES: dict[Policy, str] = {
    "best": "the layer with the highest score, whatever its interval",
    "cheapest_equal": "the cheapest layer whose score is at most one standard error of the "
    "difference below the best",
    "last_unless_significant": "the last layer, unless another one is better by Holm's test and "
    "its interval",
}
_MOST_LABELS = 6  # of lines; more would cover one another


def section(facts: Facts) -> Section:
    """Return the ranking of a model; of one without a score, only what report.json has."""
    ranking = facts.ranking
    tasks = [
        {"label": task.label, "name": task.name, "dataset": task.dataset}
        | {"type": task.scores.task_type, "metric": task.metric, "folds": task.folds}
        for task in ranking.tasks
    ]
    inner = ("norm", "pooling", "pareto", "verdict", "recommended", "device", "tokens")
    layers = [
        {name: row[name] for name in row if name not in inner} | {"front": row["pareto"]}
        for row in ranking.rows
    ]
    of_all = {"oracle": ranking.evidence.oracle, "search_share": ranking.search_share}
    data = {**of_all, "tasks": tasks, "layers": layers}
    if not ranking.scored:
        return Section("Ranking", "ranking", notes=ranking.gaps, data=data)
    says = [ranking.sentence, ranking.advice]
    if ranking.search_share is not None:
        whole = all(known(row["score"]) for row in ranking.rows)
        left = (
            "no layer could be dropped"
            if whole
            else "the layers that it dropped early have no score"
        )
        done = share(ranking.search_share)
        says.append(f"The search did {done} of the scoring of a full sweep; {left}.")
    oracle, best = ranking.evidence.oracle, ranking.best_first[0]
    if known(oracle) and len(ranking.counting) > 1:
        more = oracle - best["score"]
        says.append(
            f"The best layer of each task would score {points(oracle)} points, {points(more)} more "
            f"than layer {best['layer']}, the best single one."
            if more > TIE
            else f"Layer {best['layer']} is the best in every task."
        )
    return Section(
        "Ranking",
        "ranking",
        says=says,
        charts=[_gains(facts)] if len(ranking.scored) > 1 else [],
        notes=[
            "Points: 100 x score. Cost: of a token, of the whole model's. p: of the gain. Best: "
            "share of draws with the highest mean."
        ],
        tables=[table(facts)],
        parts=[_statistics(facts)],
        data=data,
    )


def table(facts: Facts) -> Table:
    """Return the ranking as a table: what decides first."""
    ranking, percent = facts.ranking, f"{100 * facts.ranking.settings.level:g} %"
    left_out = [task.label for task in ranking.tasks if task not in ranking.counting]
    best = {
        task.label: max(
            (v for row in ranking.rows if known(v := row["tasks"][task.label])), default=None
        )
        for task in ranking.tasks
    }
    head: list[Cell] = [
        "Layer",
        ("Score", "points"),
        ("Gain", "over the last"),
        ("Cost", "of compute"),
        (f"Gain, {percent}", "interval"),
        (f"Score, {percent}", "interval"),
        "Rank",
        ("p", "Holm"),
        ("Best", "of draws"),
    ]
    for task in ranking.tasks:
        counts = ", not counted" if task.label in left_out else ""
        head.append((task.label, f"{(task.metric or 'score').replace('_', ' ')}{counts}"))
    rows: list[list[Cell]] = []
    strong = set()
    for number, row in enumerate(ranking.rows):
        rows.append(
            [
                _numbered(facts, row),
                points(row["score"]),
                signed(row["gain"]),
                share(row["cost"]),
                gain_span(row, ranking.last),
                span(row["score_low"], row["score_high"]),
                NOTHING if row["rank"] is None else str(row["rank"]),
                p_value(row["p_holm"]),
                share(row["p_best"]),
                *(points(row["tasks"][task.label]) for task in ranking.tasks),
            ]
        )
        for column, label in enumerate(best, len(head) - len(best)):
            if known(row["tasks"][label]) and row["tasks"][label] == best[label]:
                strong.add((number, column))
    chosen = {n for n, row in enumerate(ranking.rows) if row["layer"] == ranking.verdict.layer}
    marked = chosen if ranking.is_certain else set()
    return Table("Ranking of the layers", head, rows, marked=marked, strong=strong)


def _numbered(facts: Facts, row: Row) -> Cell:
    ranking, layer = facts.ranking, row["layer"]
    if layer == ranking.verdict.layer and ranking.is_certain:
        return str(layer), "keep" if ranking.verdict.kind == "keep_last" else "use"
    if layer == ranking.verdict.layer and layer != ranking.last:
        return str(layer), "a guess"
    if not known(row["score"]) and ranking.search_share is not None and layer != ranking.last:
        return str(layer), "dropped"
    return layer_cell(layer, ranking)


def _gains(facts: Facts) -> Chart:
    ranking = facts.ranking
    layers = [row["layer"] for row in ranking.rows]
    gains, ends = [row["gain"] for row in ranking.rows], facts.band("gain")
    line = in_points("gain", layers, gains, band=ends)
    rules = [Mark(mark.x, strong=mark.strong) for mark in facts.marks]
    beats = f", with its paired {facts.interval}: a layer beats the last where it lies above 0"
    return Chart(
        f"Gain of every layer of {ranking.subject.name} over the last",
        Lines([line], y="gain, points", marks=rules, zero=True),
        "low",
        source=f"Gain over the last layer{beats if ranking.has_intervals else ''}.",
    )


def _statistics(facts: Facts) -> Section:
    """Return what the intervals rest on, each task's scores, and the figures that do not decide."""
    ranking = facts.ranking
    several = len(ranking.counting) > 1
    head: list[Cell] = ["Layer"]
    head += [("Mean rank", "over tasks"), ("Won", "of the tasks")] if several else []
    head += [("p", "not corrected"), ("Behind", "the best, points"), ("± SE", "of that")]
    rows: list[list[Cell]] = []
    for row in ranking.rows:
        of_tasks = [decimal(row["mean_rank"]), share(row["won"])] if several else []
        behind = points(row["shortfall"]), points(row["shortfall_se"])
        cell = layer_cell(row["layer"], ranking)
        rows.append([cell, *of_tasks, p_value(row["p_value"]), *behind])
    good = {n for n, row in enumerate(ranking.rows) if as_good_as_best(row)}
    evidence = Table(
        "Evidence of every layer",
        head,
        rows,
        strong={(n, len(head) - 2) for n in good},
        note="Coloured: at most one standard error (SE) behind the best.",
    )
    told = Table(
        "Tasks",
        ["Task", "Dataset", "Type", "Metric", "Folds", "Counted"],
        [
            [
                task.label,
                task.dataset or NOTHING,
                task.scores.task_type or NOTHING,
                (task.metric or "score").replace("_", " "),
                str(task.folds),
                "yes" if task in ranking.counting else "no: no layer has a score",
            ]
            for task in ranking.tasks
        ],
        words=(0, 1, 2, 3, 5),
    )
    policy = ranking.settings.policy
    return Section(
        "Statistics: what the intervals rest on, the tasks, and each layer's evidence",
        "statistics",
        says=[certainty(facts), f"The policy {policy} takes {_POLICIES[policy]}.", *ranking.notes],
        charts=[_tasks(facts)] if several else [],
        tables=[evidence, told],
        folded=True,
    )


def _tasks(facts: Facts) -> Chart:
    ranking = facts.ranking
    layers = [row["layer"] for row in ranking.rows]
    few = len(ranking.tasks) <= _MOST_LABELS
    lines = [
        in_points(label, layers, [row["tasks"][label] for row in ranking.rows], "faint", at_end=few)
        for label in (task.label for task in ranking.tasks)
    ]
    mean = in_points("mean", layers, [row["score"] for row in ranking.rows])
    drawn = Lines([*lines, mean], y="score, points", marks=facts.marks)
    return Chart(
        "Score of every task", drawn, "wide", source="Faint: each task. Strong: their mean."
    )


def certainty(facts: Facts) -> str:
    """Return what the intervals come from, and what they leave out."""
    ranking = facts.ranking
    tasks, draws = ranking.counting, ranking.settings.draws
    folds = sorted({task.folds for task in tasks})
    each = f"{folds[0]}" if len(folds) == 1 else f"{folds[0]} to {folds[-1]}"
    said = f"{counted(len(tasks), 'task')} of {each} fold{'' if folds == [1] else 's'}"
    if not ranking.has_intervals:
        return f"{said}: a single score gives no interval, and nothing says how sure it is."
    percent = f"{100 * ranking.settings.level:g} %"
    compared = len(ranking.scored)
    optimistic = (
        f" Each is one layer's own, not corrected for choosing the best of {compared} layers, so "
        "the best layer's gain is a little optimistic."
    )
    if compared == 1:
        optimistic = ""
    if len(tasks) == 1:
        within = "folds" if folds[-1] > 1 else "test items"
        return (
            f"{said}. The {percent} intervals come from {draws:,} bootstrap draws of its {within}: "
            f"they show the noise of these, and nothing of other tasks.{optimistic}"
        )
    narrow = (
        f" From {len(tasks)} tasks they are too narrow, and p-values too small: of simulated 95 % "
        "intervals from one score each of 3 tasks 73 % held the true gain, of 5 tasks 83 %, of "
        "32 tasks 94 %."
    )
    if len(tasks) > FEW_TASKS:
        narrow = ""
    return (
        f"{said} each. The {percent} intervals come from {draws:,} bootstrap draws of tasks and, "
        f"within a task, of its folds or test items.{optimistic}{narrow}"
    )
