"""What a choice without labels would have lost, and how metrics go with scores."""

from __future__ import annotations

from typing import Any

from layerrank.jobs.rank.ranking import ON, Row, choice_rows
from layerrank.jobs.report.facts import Facts, title
from layerrank.jobs.report.guide import link_to
from layerrank.jobs.report.section import Cell, Section, Table
from layerrank.jobs.run import partition
from layerrank.jobs.words import capital, counted, hundredths, known, points, share, span
from layerrank.operators.analysis.labelfree import DEFAULT_RULE, DEPTHS, OTHER_TASKS, READ_AS
from layerrank.storage.partition import TableName

_ROUNDING = 1e-9  # of the curves that a null level is made from


def section(facts: Facts) -> Section:
    """Return what rules without labels choose and lose, and the correlations of metrics."""
    choices, correlations = _rows(facts, "choices"), _rows(facts, "correlations")
    ranking = facts.ranking
    unscored = [] if ranking.scored else [f"{ranking.sentence} {ranking.advice}"]
    return Section(
        "Choosing without labels",
        "choices",
        says=[*unscored, _says(facts, choices)],
        tables=[_choices(facts, choices)],
        parts=[correlated(facts, correlations)] if correlations else [],
        link=link_to("Without labels"),
        folded=bool(facts.ranking.scored),
        data={"choices": choices, "correlations": [_data(row) for row in correlations]},
    )


def _rows(facts: Facts, table: TableName) -> list[dict[str, Any]]:
    """Return the rows of a table that rank wrote beside the ranking."""
    subject = facts.ranking.subject
    if facts.run is None:
        return choice_rows(facts.ranking) if table == "choices" else []
    return facts.run.rows(partition(table, subject, facts.run.config))


def rule(name: str) -> str:
    """Return a rule in words: a depth, or a metric with what it is read as, and its dataset."""
    if name in DEPTHS or name == OTHER_TASKS:
        return capital(name)
    metric, among, dataset = name.partition(ON)
    read = f", {READ_AS[metric]}est" if metric in READ_AS else ""
    return f"{title(metric)}{read}{among}{dataset}"


def _says(facts: Facts, choices: list[dict[str, Any]]) -> str:
    """Return what the regrets mean, and how little they say about other models."""
    if not facts.ranking.scored:
        labelled = facts.ranking.verdict.kind != "no_labels"
        why = "No layer can be compared" if labelled else "Nothing is labelled"
        return (
            f"{why}, so nothing here says which of these rules is right. They are what each would "
            "take; the marked one is the default."
        )
    several = len(facts.ranking.counting) > 1
    of_each = " of each task scores more, mean over tasks" if several else " scores more"
    told = (
        f"Regret is what a rule loses that sees no labels of these tasks: the points that the best "
        f"layer{of_each}. It is known only because this run has labels, and a rule that wins here "
        "can lose on the next model: of those that were tried on several none beats the last layer "
        "beyond chance, as the guide has it."
    )
    if all(known(row["regret"]) for row in choices):
        return told
    return f"{told} A rule whose layer lacks a score of some task has none."


def _choices(facts: Facts, choices: list[dict[str, Any]]) -> Table:
    scored = bool(facts.ranking.scored)
    costs = {row["layer"]: row["cost"] for row in facts.ranking.rows}
    rows: list[list[Cell]] = []
    for row in choices:
        regret = [
            points(row["score"]),
            points(row["regret"]),
            span(row["regret_low"], row["regret_high"]),
        ]
        layer = "per task" if row["layer"] is None else str(row["layer"])
        default = "default" if row["rule"] == DEFAULT_RULE else ""
        cost = share(costs.get(row["layer"]))
        rows.append([(rule(row["rule"]), default), layer, *(regret if scored else []), cost])
    of_regret = [("Score", "points"), ("Regret", "points"), (facts.interval, "of the regret")]
    return Table(
        "What rules without labels choose",
        ["Rule", "Layer", *(of_regret if scored else []), ("Cost", "of compute")],
        rows,
        marked={n for n, row in enumerate(choices) if row["rule"] == DEFAULT_RULE},
    )


def is_above(row: Row, statistic: str) -> bool:
    """Whether a correlation is larger than an unrelated, equally smooth curve reaches."""
    return bool(abs(row[statistic]) > row[f"{statistic}_smooth"] + _ROUNDING)


def correlated(facts: Facts, correlations: list[dict[str, Any]]) -> Section:
    """Return how metrics go with the score over the layers, and how little few layers say."""
    level = facts.ranking.settings.level
    defined = [row for row in correlations if not row["reason"]]
    said = "No metric has a correlation with the score; the reasons are below."
    if defined:
        above = [sum(is_above(row, name) for row in defined) for name in ("spearman", "distance")]
        layers = counted(max(row["layers"] for row in defined), "layer")
        said = (
            f"Above the null level by Spearman: {above[0]} of {counted(len(defined), 'metric')}, "
            f"by distance correlation: {above[1]}. Of as many unrelated ones about "
            f"{(1 - level) * len(defined):.1f} would be, and metrics that resemble each other "
            "count together. The null level is what an unrelated curve that changes as gradually "
            f"with depth stays below in {100 * level:g} % of the cases. All of this rests on "
            f"{layers}, and the intervals are too narrow: in simulations with 7 to 49 layers, 95 % "
            "ones held the truth in 75 to 95 % of the cases, and with 7 they span most of the "
            "range. That of the distance correlation lies too high."
        )
    rows: list[list[Cell]] = []
    strong = set()
    for number, row in enumerate(correlations):
        metric = title(row["metric"])
        name = f"{metric} on {row['dataset']}" if facts.several_datasets else metric
        cells: list[str] = []
        for statistic in ("spearman", "distance"):
            if is_above(row, statistic):
                strong.add((number, 2 + len(cells)))
            low, high = (hundredths(row[f"{statistic}{end}"]) for end in ("_low", "_high"))
            ends = f"{low} to {high}" if known(row[f"{statistic}_low"]) else "-"
            cells += [hundredths(row[statistic]), ends, hundredths(row[f"{statistic}_smooth"])]
        rows.append([(name, row["reason"] or ""), str(row["layers"]), *cells])
    values = ("Value", facts.interval, "Null level")
    table = Table(
        "Correlation of metrics with the score",
        ["Metric", "Layers", *((value, of) for of in ("Spearman", "distance") for value in values)],
        rows,
        strong=strong,
        note="Coloured: above its null level. The lower level that a plain permutation of the "
        "layers gives is in report.json.",
    )
    return Section("How metrics go with the score", "correlations", [said], tables=[table])


def _data(row: Row) -> dict[str, Any]:
    ends = ("low", "high", "permuted", "smooth")
    statistics = {
        name: {"value": row[name], **{end: row[f"{name}_{end}"] for end in ends}}
        for name in ("spearman", "distance")
    }
    plain = {name: row[name] for name in ("dataset", "metric", "layers")}
    return {**plain, **statistics, "reason": row["reason"] or ""}
