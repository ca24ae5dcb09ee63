"""What a report says about conditions: what was done, and how each metric answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from jobs.findings import SubjectFinding
from jobs.findings_conditions import LevelFinding, ResponseFinding, SlopeFinding
from jobs.wording import NOTHING, counted, size, title, vectors_of
from operators.metrics.registry import METRICS, unit_of
from operators.metrics.variants import Tokens
from storage.partition import CLEAN


@dataclass(frozen=True)
class _Family:
    title: str
    says: str
    level: str  # how a level is called
    per: str  # what a slope is per
    grows: str  # what grows with the level


_FAMILIES = {
    "random": _Family(
        "Random tokens",
        "Each token is replaced, with probability p, by a random one of the vocabulary.",
        "p",
        "from p = 0 to 1",
        "p",
    ),
    "repeat": _Family(
        "Repeated tokens",
        "Each token is replaced, with probability p, by one token of the prompt, always the same.",
        "p",
        "from p = 0 to 1",
        "p",
    ),
    "noise": _Family(
        "Typos",
        "Each word gets each kind of typo with probability p.",
        "p",
        "from p = 0 to 1",
        "p",
    ),
    "truncate": _Family(
        "Truncation",
        "Only the first share of each prompt is kept.",
        "share",
        "from nothing to the whole prompt",
        "share",
    ),
    "length": _Family(
        "Length",
        "Prompts of random tokens alone, of growing length.",
        "tokens",
        "per doubling of the length",
        "length",
    ),
}


def families(subject: SubjectFinding, dataset: str) -> list[tuple[str, list[ResponseFinding]]]:
    """Return the responses of a dataset by family."""
    own = [each for each in subject.responses if each.dataset == dataset]
    return [(family, list(same)) for family, same in groupby(own, key=lambda each: each.family)]


def family_title(family: str) -> str:
    """Return what a family is called."""
    return _FAMILIES[family].title


def family_says(family: str) -> str:
    """Return what a family does to a prompt."""
    return _FAMILIES[family].says


def axis(family: str) -> str:
    """Return how the levels of a family are called."""
    return _FAMILIES[family].level


def level(each: LevelFinding) -> str:
    """Return the name of a level."""
    return CLEAN if each.condition == CLEAN else f"{each.level:g}"


def lead(same: Sequence[ResponseFinding]) -> str:
    """Return which metrics rise and which fall with the level in every layer."""
    groups: dict[str, list[str]] = {"Up": [], "Down": [], "": []}
    for each in same:
        up, down, of = _directions(each)
        if not of or not is_of_tokens(each):
            continue
        groups["Up" if up == of else "Down" if down == of else ""].append(title(each.metric))
    growing = f"With growing {_FAMILIES[same[0].family].grows}"
    said = {
        "Up": f"{growing}, up in every layer: ",
        "Down": f"{growing}, down in every layer: ",
        "": "No one direction over the layers: ",
    }
    return " ".join(f"{said[key]}{_listed(names)}." for key, names in groups.items() if names)


def _listed(titles: Sequence[str]) -> str:
    return ", ".join([titles[0].lower(), *(each.lower() for each in titles[1:])])


def is_of_tokens(each: ResponseFinding) -> bool:
    """Whether every prompt has a value of the metric, and its slopes an interval."""
    return isinstance(METRICS[each.metric].measured, Tokens)


def _directions(each: ResponseFinding) -> tuple[int, int, int]:
    """Return in how many layers a metric rises, falls, and has a slope; surely, where it can be."""
    ends = [
        (slope.slope, slope.slope)
        if slope.low is None or slope.high is None
        else (slope.low, slope.high)
        for slope in each.slopes
        if slope.slope is not None
    ]
    return sum(low > 0 for low, _ in ends), sum(high < 0 for _, high in ends), len(ends)


def says(each: ResponseFinding, coverage: float) -> str:
    """Return where a metric rises or falls with the level, and where most."""
    up, down, of = _directions(each)
    if not of:
        return "No slope: fewer than two levels have a value."
    steepest = max(
        (slope for slope in each.slopes if slope.slope is not None),
        key=lambda slope: abs(slope.slope or 0.0),
    )
    parts = [
        f"{word} in {_of(number, of)}" for word, number in (("Up", up), ("down", down)) if number
    ]
    told = "; ".join(parts) or "No clear change in any layer"
    return (
        f"{told[0].upper()}{told[1:]}; steepest in layer {steepest.layer}: "
        f"{slope_with_interval(steepest, coverage)} {unit(each)} {_FAMILIES[each.family].per}."
    )


def _of(number: int, of: int) -> str:
    return "every layer" if number == of else f"{number} of {counted(of, 'layer')}"


def unit(each: ResponseFinding) -> str:
    """Return the unit of a metric's values."""
    return unit_of(each.metric, each.variant)


def per(family: str) -> str:
    """Return what the slopes of a family are per."""
    return _FAMILIES[family].per


def slope_with_interval(each: SlopeFinding, coverage: float) -> str:
    """Return a slope, and its interval where it has one."""
    if each.low is None or each.high is None:
        return signed(each.slope)
    return f"{signed(each.slope)} ({100 * coverage:g} % {signed(each.low)} to {signed(each.high)})"


def signed(value: float | None) -> str:
    """Return a slope with its sign and three digits."""
    if value is None:
        return NOTHING
    return f"{'-' if value < 0 else '+' if value > 0 else ''}{size(abs(value))}"


def slope_at(each: ResponseFinding, layer: int) -> SlopeFinding | None:
    """Return the slope of a layer, if there is one."""
    return next((slope for slope in each.slopes if slope.layer == layer), None)


def cell(each: ResponseFinding, layer: int) -> str:
    """Return the slope of a layer with the ends of its interval, as a table has it."""
    found = slope_at(each, layer)
    if found is None or found.slope is None:
        return NOTHING
    if found.low is None or found.high is None:
        return signed(found.slope)
    return f"{signed(found.slope)} ({signed(found.low)} to {signed(found.high)})"


def name(each: ResponseFinding) -> str:
    """Return the metric, with its variant where that is not the usual one."""
    special = METRICS[each.metric].perturbed
    return f"{title(each.metric)}, {special}" if special else title(each.metric)


def source(each: ResponseFinding) -> str:
    """Return what was measured, on how many prompts, and how many had no value at worst."""
    how = vectors_of(each.norm, each.pooling)
    prompts = max(level.n_prompts + level.n_undefined for level in each.levels)
    worst = max(each.levels, key=lambda level: level.n_undefined)
    where = "clean" if worst.condition == CLEAN else f"at {axis(each.family)} {level(worst)}"
    missing = f", {worst.n_undefined:,} of them undefined {where}" if worst.n_undefined else ""
    return f"{how[0].upper()}{how[1:]}; {counted(prompts, 'prompt')}{missing}."
