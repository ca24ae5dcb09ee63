"""What a report says about two kinds of prompts: in which layers, and what tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from jobs.findings_modes import LayerModesFinding, ModesFinding, TraitFinding
from jobs.wording import NOTHING, number, share
from operators.effects import CLIFFS_DELTA
from operators.metrics.registry import METRICS, unit_of

WEAK = 0.33  # an effect below it is small by custom
_MOST = 0.99  # the last effect below 1 that has two decimals
_LEAST = 0.001  # p-values below it are not told apart
_TRAITS = {
    "n_tokens": "length",
    "first_token_share": "first-token share",
    "repeated_tokens": "repeated tokens",
    "unknown_words": "unknown words",
    "dataset": "dataset",
}
_SHARES = ("first_token_share", "repeated_tokens", "unknown_words")
_GROUPS = {"low": "lower", "high": "upper"}


def unit(finding: ModesFinding) -> str:
    """Return the unit of the values that were tested."""
    return unit_of(finding.metric, finding.variant)


def name(finding: ModesFinding) -> str:
    """Return what was tested."""
    return METRICS[finding.metric].title


def sentence(finding: ModesFinding) -> str:
    """Return in which layers there are two groups, and what separates them best."""
    tested = [each for each in finding.layers if each.p_holm is not None]
    if not tested:
        return f"No layer could be tested: {finding.layers[0].reason}."
    found = finding.bimodal
    if not found:
        lowest = min(each.p_holm for each in tested if each.p_holm is not None)
        return (
            "No layer's entropies fall into two groups: the smallest corrected p is "
            f"{p_value(lowest)}, from {max(each.n_prompts for each in tested):,} prompts."
        )
    head = found[0]
    about = [separated(head), _of_length(finding, head)]
    two, several = _two_groups(found), _several_peaks(found)
    return " ".join(filter(None, [two, *about, several] if two else [several, *about]))


def _two_groups(found: Sequence[LayerModesFinding]) -> str:
    """Return which layers have just two peaks; the first of `found` is the clearest."""
    two = sorted(each.layer for each in found if not each.several)
    if not two:
        return ""
    said = f"In {_listed(two)} the entropies of the prompts fall into two groups."
    if len(two) == 1:
        return said
    return f"{said} They are furthest from a single one in layer {found[0].layer}."


def _several_peaks(found: Sequence[LayerModesFinding]) -> str:
    """Return which layers have more than two peaks."""
    several = sorted((each for each in found if each.several), key=lambda each: each.layer)
    if not several:
        return ""
    most = max(several, key=lambda each: each.peaks)
    count = "" if len(several) == 1 else f" in layer {most.layer}"
    return (
        f"In {_listed([each.layer for each in several])} the entropies have more than two peaks "
        f"({most.peaks}{count}), as short texts can give, one for every length."
    )


def label(bimodal: bool, peaks: int) -> str:
    """Return what stands beside the number of a layer."""
    if not bimodal:
        return ""
    return "two groups" if peaks == 2 else f"{peaks} peaks"  # noqa: PLR2004  (two is two)


def separated(layer: LayerModesFinding) -> str:
    """Return what separates the two groups of a layer best, with its effect size."""
    trait = strongest(layer)
    if trait is None or trait.effect is None:
        return "No trait of the prompts could be compared."
    title = _TRAITS.get(trait.trait, trait.trait)
    how = f"{_measure(trait)} {effect(trait)}{_medians(trait)}"
    if abs(trait.effect) < WEAK:
        return (
            f"Nothing that is measured separates the groups well in layer {layer.layer}; the most "
            f"is {title}, {how}."
        )
    return f"What separates the groups best in layer {layer.layer} is {title}: {how}."


def _of_length(finding: ModesFinding, layer: LayerModesFinding) -> str:
    """Return how to look past the length where it decides; the ceiling of an entropy is its log."""
    trait = strongest(layer)
    normalised = unit(finding) != METRICS[finding.metric].unit
    if normalised or trait is None or trait.trait != "n_tokens" or abs(trait.effect or 0) < WEAK:
        return ""
    return (
        "An entropy in nats can be no higher than the log of the length: with maxEntropy first in "
        "measure.normalizations that ceiling is taken away."
    )


def strongest(layer: LayerModesFinding) -> TraitFinding | None:
    """Return the trait with the largest effect; the first of equal ones, None without any."""
    known = [each for each in layer.traits if each.effect is not None]
    return max(known, key=lambda each: abs(each.effect or 0.0), default=None)


def _measure(trait: TraitFinding) -> str:
    return "Cliff's delta" if trait.measure == CLIFFS_DELTA else "Cramér's V"


def _medians(trait: TraitFinding) -> str:
    if trait.low is None or trait.high is None:
        return ""
    low, high = _amount(trait, trait.low), _amount(trait, trait.high)
    return f" (medians: {low} in the lower group, {high} in the upper)"


def _amount(trait: TraitFinding, value: float) -> str:
    return share(value) if trait.trait in _SHARES else f"{value:,.0f} tokens"


def heading(trait: TraitFinding) -> str:
    """Return the title of a trait."""
    title = _TRAITS.get(trait.trait, trait.trait)
    return f"{title[0].upper()}{title[1:]}"


def lines(trait: TraitFinding) -> tuple[str, str]:
    """Return the title of a trait as the two lines of a table's head."""
    first, _, second = heading(trait).partition(" ")
    return first, second


def medians(trait: TraitFinding) -> str:
    """Return the medians of a trait in the lower and in the upper group."""
    if trait.low is None or trait.high is None:
        return NOTHING
    return f"{_amount(trait, trait.low)}, {_amount(trait, trait.high)}"


def effect(trait: TraitFinding) -> str:
    """Return an effect with two decimals; only 1 is shown as 1."""
    if trait.effect is None:
        return NOTHING
    size = abs(trait.effect)
    shown = f"{min(round(size, 2), _MOST) if size < 1 else size:.2f}"
    return f"-{shown}" if trait.effect < 0 and float(shown) else shown


def p_value(value: float | None) -> str:
    """Return a p-value with two digits, down to where they are told apart."""
    if value is None:
        return NOTHING
    return f"<{_LEAST:g}" if value < _LEAST else f"{value:.2g}"


def modes(layer: LayerModesFinding) -> str:
    """Return where the two modes of a layer lie."""
    return f"{number(layer.mode_low)} and {number(layer.mode_high)}"


def group(mode: str) -> str:
    """Return the name of a group."""
    return _GROUPS[mode]


def missing(layers: Sequence[LayerModesFinding]) -> list[str]:
    """Return why effects of these layers have no value, each trait and reason once."""
    reasons = [
        f"{heading(each)}: {each.reason}"
        for layer in layers
        for each in layer.traits
        if each.effect is None
    ]
    return list(dict.fromkeys(reasons))


def _listed(layers: Sequence[int]) -> str:
    """Return layers in words, three and more in a row as a range."""
    runs = [
        [layer for _, layer in same]
        for _, same in groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0])
    ]
    parts: list[str] = []
    for run in runs:
        long = len(run) > 2  # noqa: PLR2004  (two are no range)
        parts += [f"{run[0]} to {run[-1]}"] if long else [str(layer) for layer in run]
    noun = "layer" if len(layers) == 1 else "layers"
    return f"{noun} {' and '.join(filter(None, [', '.join(parts[:-1]), parts[-1]]))}"
