"""What a choice without labels would have lost, and how metrics go with scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.rank.choices import ON
from jobs.report.findings import (
    AssociationFinding,
    ChoiceFinding,
    CorrelationFinding,
    SubjectFinding,
)
from jobs.report.sections.ranking import counting
from jobs.report.wording import title
from jobs.run import Run, partition
from jobs.words import counted
from operators.analysis.labelfree import (
    DEFAULT_RULE,
    DEPTHS,
    OTHER_TASKS,
    READ_AS,
)
from operators.model.subject import Subject


def choices(run: Run, subject: Subject) -> list[ChoiceFinding]:
    """Return what every rule without labels chooses, from the table `choices`."""
    where = partition("choices", subject.name, subject.revision, run.config.name)
    numbers = ("score", "regret", "regret_low", "regret_high")
    return [
        ChoiceFinding(row["rule"], row["layer"], *(_defined(row[name]) for name in numbers))
        for row in run.rows(where)
    ]


def metric_correlations(run: Run, subject: Subject) -> list[CorrelationFinding]:
    """Return how every metric goes with the score, from the table `correlations`."""
    where = partition("correlations", subject.name, subject.revision, run.config.name)
    return [
        CorrelationFinding(
            row["dataset"],
            row["metric"],
            row["layers"],
            _association(row, "spearman"),
            _association(row, "distance"),
            row["reason"] or "",
        )
        for row in run.rows(where)
    ]


def _association(row: Mapping[str, Any], name: str) -> AssociationFinding:
    ends = ("", "_low", "_high", "_permuted", "_smooth")
    return AssociationFinding(*(_defined(row[f"{name}{end}"]) for end in ends))


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None


_ROUNDING = 1e-9  # of the curves that a null level is made from


def is_default(choice: ChoiceFinding) -> bool:
    """Whether a choice is the one of an unlabelled run."""
    return choice.rule == DEFAULT_RULE


def rule(choice: ChoiceFinding) -> str:
    """Return a rule in words: a depth, or a metric with what it is read as, and its dataset."""
    if choice.rule in DEPTHS or choice.rule == OTHER_TASKS:
        return choice.rule[0].upper() + choice.rule[1:]
    metric, among, dataset = choice.rule.partition(ON)
    read = f", {READ_AS[metric]}est" if metric in READ_AS else ""
    return f"{title(metric)}{read}{among}{dataset}"


def cost(subject: SubjectFinding, choice: ChoiceFinding) -> float | None:
    """Return the cost of the layer that a rule chooses; None if it has no layer of its own."""
    return next((row.cost for row in subject.layers if row.layer == choice.layer), None)


def regret_says(subject: SubjectFinding) -> str:
    """Return what the regrets below mean, and how little they say about other models."""
    if not subject.is_scored:
        return (
            "Nothing is labelled, so nothing here says which of these rules is right. They are "
            "what each would take; the marked one is the default."
        )
    if len(counting(subject)) > 1:
        what = "the points that the best layer of each task scores more, mean over tasks"
    else:
        what = "the points that the best layer scores more"
    return (
        f"Regret is what a rule loses that sees no labels of these tasks: {what}. It is known only "
        "because this run has labels, and a rule that wins here can lose on the next model. On the "
        "published scores of Pythia-160M and 410M (arXiv 2502.02013) the default, 2/3 of the "
        "depth, loses 2.2 points, less than any metric's choice, and labels of other tasks lose "
        "1.7; on checkpoints from the first 1,000 steps the default loses 11 to 18."
    )


def without_regret(subject: SubjectFinding) -> str:
    """Return why a rule has no regret although there are labels; nothing if all have one."""
    if not subject.is_scored or all(each.regret is not None for each in subject.choices):
        return ""
    return "A rule that chooses a layer without a score has no regret."


def is_above(association: AssociationFinding) -> bool:
    """Whether a correlation is larger than an unrelated, equally smooth curve reaches."""
    value, level = association.value, association.smooth
    return value is not None and level is not None and abs(value) > level + _ROUNDING


def correlations_say(correlations: Sequence[CorrelationFinding], level: float) -> str:
    """Return how many correlations are above their level, and how little few layers say."""
    known = [each for each in correlations if not each.reason]
    if not known:
        return "No metric has a correlation with the score; the reasons are below."
    above = [
        sum(is_above(found) for found in kind)
        for kind in zip(*((each.spearman, each.distance) for each in known), strict=True)
    ]
    layers = counted(max(each.layers for each in known), "layer")
    return (
        f"Above the null level by Spearman: {above[0]} of {counted(len(known), 'metric')}, by "
        f"distance correlation: {above[1]}. Of as many unrelated ones about "
        f"{(1 - level) * len(known):.1f} would be, and metrics that resemble each other count "
        "together. The null level is what an unrelated curve that changes as gradually with depth "
        f"stays below in {100 * level:g} % of the cases. All of this rests on {layers}, and the "
        "intervals are too narrow: in simulations with 7 to 49 layers, 95 % ones held the truth "
        "in 75 to 95 % of the cases, and with 7 they span most of the range. That of the distance "
        "correlation lies too high."
    )
