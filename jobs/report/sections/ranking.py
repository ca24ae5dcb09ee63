"""The ranking: every layer's score and gain, how sure they are, and what they come from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from layerrank.jobs.rank import sentences
from layerrank.jobs.rank.ranking import Row, as_good_as_best
from layerrank.jobs.report.charts import Chart, Lines, Mark, in_points
from layerrank.jobs.report.facts import Facts, gain_span, layer_cell
from layerrank.jobs.report.guide import link_to
from layerrank.jobs.report.section import Cell, Section, Table
from layerrank.jobs.run import partition
from layerrank.jobs.words import (
    NOTHING,
    counted,
    decimal,
    known,
    p_value,
    points,
    share,
    signed,
    span,
)
from layerrank.operators.model.subject import Vectors
from layerrank.operators.ranking import Policy
from layerrank.operators.ranking.evidence import Choice
from layerrank.operators.ranking.intervals import FEWEST_TASKS, FEWEST_TO_TEST
from layerrank.operators.ranking.scores import TIE

_POLICIES: dict[Policy, str] = {
    "best": "the layer with the highest score, as advice if an interval of its gain lies above 0",
    "cheapest_equal": "the cheapest layer whose score is at most one standard error of the "
    "difference below the best",
    "last_unless_significant": "the last layer, unless a test by sign flips, corrected for all "
    f"layers, says that another one is better; it needs {FEWEST_TO_TEST} tasks",
}
_MOST_CANDIDATES = 10
_MOST_LABELS = 6  # of lines; more would cover one another


def section(facts: Facts) -> Section:
    """Return the ranking of a model; of one without a score, only what report.json has."""
    ranking = facts.ranking
    tasks = [
        {"label": task.label, "name": task.name, "dataset": task.dataset}
        | {"type": task.scores.task_type, "metric": task.metric, "folds": task.folds}
        for task in ranking.tasks
    ]
    inner = (
        "aligned",
        "pareto",
        "verdict",
        "sure",
        "recommended",
        "device",
        "tokens",
    )
    layers = [
        {name: row[name] for name in row if name not in inner} | {"front": row["pareto"]}
        for row in ranking.rows
    ]
    of_all = {"oracle": ranking.evidence.oracle, "search_share": ranking.search_share}
    choice, alone = ranking.evidence.choice, ranking.alone
    of_last = [each.vectors for each in ranking.weighed if each.layer == ranking.last]
    told: dict[str, Any] = {
        **of_all,
        "candidates_share": ranking.candidates_share,
        "last_layer_alone": _told(alone, of_last[alone.row]) if alone else None,
        "sure": ranking.verdict.sure,
        "choice": _told(choice, ranking.weighed[choice.row].vectors) if choice else None,
        "task_types": ranking.evidence.types,
        "without_last": ranking.evidence.without_last,
    }
    data = {**told, "tasks": tasks, "layers": layers}
    if not any(known(row["score"]) for row in ranking.rows):
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
    if ranking.candidates_share is not None:
        done = share(ranking.candidates_share)
        says.append(f"Of other vectors the search scored {done} of what a full one does.")
    oracle = ranking.evidence.oracle
    if known(oracle) and len(ranking.counting) > 1:
        best = ranking.best_first[0]
        more = oracle - best["score"]
        says.append(
            f"The best layer of each task would score {points(oracle)} points, {points(more)} more "
            f"than layer {best['layer']}, the best single one."
            if more > TIE
            else f"Layer {best['layer']} is the best in every task that it has."
            if ranking.has_holes
            else f"Layer {best['layer']} is the best in every task."
        )
    return Section(
        "Ranking",
        "ranking",
        says=says,
        charts=[_gains(facts)] if len(ranking.scored) > 1 else [],
        notes=[
            "Points: 100 x score. Cost: of a token, of the whole model's. New task, these tasks: "
            f"{facts.interval} of the gain. p: of the gain by sign flips, from {FEWEST_TO_TEST} "
            "tasks on. Taken: share of the choices without one task, or fold, that took the layer."
        ],
        tables=[table(facts)],
        parts=[*([_candidates(facts)] if ranking.plain else []), _statistics(facts)],
        data=data,
    )


def _told(choice: Choice, vectors: Vectors) -> dict[str, Any]:
    """Return a choice as report.json has it: which vectors it is, and not their place in a list."""
    told = asdict(choice) | vectors._asdict()
    del told["row"]
    return told


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
        *([("Vectors", "the best"), ("As ranked", "points")] if ranking.plain else []),
        ("Score", "points"),
        ("Gain", "over the last"),
        ("Cost", "of compute"),
        ("New task", f"gain, {percent}"),
        ("These tasks", f"gain, {percent}"),
        "Rank",
        ("p", "of all layers"),
        ("Taken", "one task out"),
        *(
            [("Tasks", "with a score"), ("Even gain", "as if with all")]
            if ranking.has_holes
            else []
        ),
    ]
    for task in ranking.tasks:
        counts = ", not counted" if task.label in left_out else ""
        head.append((task.label, f"{(task.metric or 'score').replace('_', ' ')}{counts}"))
    rows: list[list[Cell]] = []
    strong = set()
    for number, (row, of) in enumerate(zip(ranking.rows, ranking.vectors_of, strict=True)):
        rows.append(
            [
                _numbered(facts, row),
                *(
                    [
                        sentences.named(of, ranking.vectors) or NOTHING,
                        points(row["plain_score"]),
                    ]
                    if ranking.plain
                    else []
                ),
                points(row["score"]),
                signed(row["gain"]),
                share(row["cost"]),
                gain_span(row, ranking.last),
                span(row["here_low"], row["here_high"]),
                NOTHING if row["rank"] is None else str(row["rank"]),
                p_value(row["p_max"]),
                share(row["taken"]),
                *([str(row["n_tasks"]), signed(row["gain_even"])] if ranking.has_holes else []),
                *(points(row["tasks"][task.label]) for task in ranking.tasks),
            ]
        )
        for column, label in enumerate(best, len(head) - len(best)):
            if known(row["tasks"][label]) and row["tasks"][label] == best[label]:
                strong.add((number, column))
    chosen = {n for n, row in enumerate(ranking.rows) if row["layer"] == ranking.verdict.layer}
    marked = chosen if ranking.is_certain else set()
    words = (0, 1) if ranking.plain else (0,)
    return Table("Ranking of the layers", head, rows, words=words, marked=marked, strong=strong)


def _candidates(facts: Facts) -> Section:
    """Return what the vectors of the layers are worth beside the layers themselves."""
    ranking = facts.ranking
    found = [row for row in ranking.candidates if row["rank"] is not None]
    found.sort(key=lambda row: (row["rank"], row["layer"]))
    rows: list[list[Cell]] = []
    for row in found[:_MOST_CANDIDATES]:
        of = Vectors(row["norm"], row["pooling"], row["transform"])
        rows.append(
            [
                layer_cell(row["layer"], ranking),
                sentences.named(of, ranking.vectors) or "as ranked",
                points(row["score"]),
                signed(row["gain"]),
                span(row["here_low"], row["here_high"]),
                share(row["taken"]),
            ]
        )
    layers = ranking.layers
    every = counted(len(ranking.options), "candidate")
    says = [
        f"{every}: {counted(len(layers), 'layer')} with {len(ranking.options) // len(layers)} "
        f"kinds of vectors each; {len(found)} are scored in full. {ranking.without_depth}".strip()
    ]
    if fits := _fitted(facts):
        says.append(fits)
    head: list[Cell] = ["Layer", "Vectors", ("Score", "points"), ("Gain", "over the last")]
    head += [("These tasks", "gain"), ("Taken", "one task out")]
    best = {0} if ranking.is_certain and found and found[0]["recommended"] else set()
    return Section(
        "Candidates",
        "candidates",
        says=says,
        tables=[Table("The best candidates", head, rows, words=(0, 1), marked=best)],
    )


def _fitted(facts: Facts) -> str:
    """Say what transforms were fitted on; nothing if there are none."""
    run = facts.run
    if run is None:
        return ""
    fits = run.rows_if_any(partition("transforms", facts.ranking.subject, run.config))
    if not fits:
        return ""
    of = run.config.candidates.texts if run.config.candidates else None
    texts = f"of {of}" if of else "of this run"
    return (
        f"Means, deviations and top directions were fitted on {fits[0]['n_prompts']:,} texts "
        f"{texts}, on none of their labels."
    )


def _numbered(facts: Facts, row: Row) -> Cell:
    ranking, layer = facts.ranking, row["layer"]
    if layer == ranking.verdict.layer and ranking.is_certain:
        return str(layer), "keep" if ranking.verdict.kind == "keep_last" else "use"
    if layer == ranking.verdict.layer and layer != ranking.last:
        return str(layer), "a guess"
    if layer in ranking.dropped:
        return str(layer), "dropped"
    return layer_cell(layer, ranking)


def _gains(facts: Facts) -> Chart:
    ranking = facts.ranking
    of, where = "gain", "on a new task"
    if not facts.band(of)[0]:
        of, where = "here", "on these tasks"
    ends = facts.band(of)
    lines = facts.by_layer(of, "gain", "gain")
    rules = [Mark(mark.x, strong=mark.strong) for mark in facts.marks]
    beats = f", with its {facts.interval} {where}: a layer beats the last where it lies above 0"
    dots = " Dots: other vectors of a layer that are better." if len(lines) > 1 else ""
    return Chart(
        f"Gain of every layer of {ranking.subject.name} over the last",
        Lines(lines, y="gain, points", marks=rules, zero=True),
        "low",
        source=f"Gain over the last layer{beats if ends[0] else ''}.{dots}",
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
                "yes" if task in ranking.counting else "no",
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
        link=link_to("How sure the advice is"),
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
    mean = in_points("mean", layers, [row["aligned"] for row in ranking.rows])
    drawn = Lines([*lines, mean], y="score, points", marks=facts.marks)
    return Chart(
        "Score of every task", drawn, "wide", source="Faint: each task. Strong: their mean."
    )


def certainty(facts: Facts) -> str:
    """Return what the intervals come from, and what they leave out."""
    ranking, evidence = facts.ranking, facts.ranking.evidence
    tasks = ranking.counting
    folds = sorted({task.folds for task in tasks})
    if not folds:
        return "No task has a score in the last layer, so there is nothing to compare."
    each = f"{folds[0]}" if len(folds) == 1 else f"{folds[0]} to {folds[-1]}"
    said = [f"{counted(len(tasks), 'task')} of {each} fold{'' if folds == [1] else 's'}."]
    types = sentences.task_types(evidence)
    said += [f"By type: {types}."] if types else []
    percent = f"{100 * ranking.settings.level:g} %"
    if any(known(row["here_low"]) for row in ranking.rows):
        said.append(
            f"On these tasks: Student's {percent} interval, whose noise is that of folds (other "
            "training rows, the same test rows) or of resampled items."
        )
    else:
        said.append("A score of some task shows no spread, so on these tasks nothing is known.")
    if len(tasks) < FEWEST_TASKS:
        said.append(f"On a new task: no interval from fewer than {FEWEST_TASKS} tasks.")
    else:
        said.append(
            f"On a new task: Student's {percent} interval over the tasks, for tasks of the kinds "
            "that are here."
        )
    said.append(
        "Each is one layer's own; the lower end of the chosen layer's is that around its corrected "
        "gain, the upper that around its gain as it stands. The guide has how often they hold."
    )
    return " ".join(said)
