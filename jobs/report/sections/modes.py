"""Two kinds of prompts, from the table `modes`: gathered, said and drawn."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from jobs.measure.modes import prompt_texts
from jobs.report.charts import ACCENT, BAND, INK, MUTED, RULE, Size, drawing, new_axes, to_svg
from jobs.report.findings import ExampleFinding, LayerModesFinding, ModesFinding, TraitFinding
from jobs.run import Run, modes_partition
from jobs.words import NOTHING, counted, number, share
from operators.analysis.effects import CLIFFS_DELTA
from operators.metrics.registry import METRICS, unit_of
from operators.model.subject import Subject

_SHOWN = 160  # characters of an example
_Row = Mapping[str, Any]


def modes_of(run: Run, subject: Subject) -> ModesFinding | None:
    """Return the tested layers of a subject; None if none was tested.

    Of layers that are bimodal at the run's level the examples are looked up: a few texts each.
    """
    rows = run.rows_if_any(modes_partition(run.config, subject))
    if not rows:
        return None
    bimodal = {row["layer"] for row in rows if row["p_holm"] <= 1 - run.config.rank.level}
    texts = _texts(run, [row for row in rows if row["layer"] in bimodal])
    first = rows[0]
    found = [_layer(row, row["layer"] in bimodal, texts) for row in rows]
    return ModesFinding(first["metric"], first["variant"], first["norm"], found)


def _layer(row: _Row, bimodal: bool, texts: Mapping[int, str]) -> LayerModesFinding:
    names = ("dip", "p_value", "p_holm", "split", "mode_low", "mode_high", "share_high")
    plain = ("layer", "n_prompts", "n_undefined", "peaks", "edges", "counts", "reason")
    known: dict[str, Any] = {
        **{name: row[name] for name in plain},
        **{name: _defined(row[name]) for name in names},
        "traits": [_trait(each) for each in row["traits"]] if bimodal else [],
        "examples": [_example(each, texts) for each in row["examples"]] if bimodal else [],
    }
    return LayerModesFinding(bimodal=bimodal, **known)


def _trait(row: _Row) -> TraitFinding:
    values = {name: _defined(row[name]) for name in ("effect", "low", "high")}
    return TraitFinding(**{**row, **values})


def _example(row: _Row, texts: Mapping[int, str]) -> ExampleFinding:
    known = {name: row[name] for name in ("mode", "value", "prompt_id", "dataset", "n_tokens")}
    return ExampleFinding(**known, text=texts[row["prompt_id"]])


def _texts(run: Run, rows: Iterable[_Row]) -> dict[int, str]:
    """Return the shortened texts of the examples in some rows; every shard is read once."""
    wanted: dict[tuple[str, str], dict[int, None]] = {}
    for row in rows:
        for each in row["examples"]:
            wanted.setdefault((each["dataset"], each["shard"]), {})[each["prompt_id"]] = None
    found: dict[int, str] = {}
    for (dataset, shard), ids in wanted.items():
        texts = prompt_texts(run.root, dataset, shard, pa.array([*ids]))
        found.update(zip(ids, map(_shortened, texts), strict=True))
    return found


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    short = textwrap.shorten(line, _SHOWN, placeholder=" ...")
    return short if len(short) > len(" ...") else f"{line[: _SHOWN - 4]} ..."


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None


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


def unit_name(finding: ModesFinding) -> str:
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


def trait_label(bimodal: bool, peaks: int) -> str:
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
    normalised = unit_name(finding) != METRICS[finding.metric].unit
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


_SIZE = Size(144, 92, left=2, right=2, top=4, bottom=20)


@dataclass(frozen=True)
class ModePlot:
    """One layer as the page shows it; no drawing where no prompt has a value."""

    layer: int
    label: str
    svg: Markup | None


def mode_plots(finding: ModesFinding, name: str) -> list[ModePlot]:
    """Return the histogram of every layer; ids in them begin with `name`."""
    unit = unit_name(finding)
    return [
        ModePlot(
            each.layer,
            trait_label(each.bimodal, each.peaks),
            _draw(each, f"{name}-{each.layer}", unit) if each.counts else None,
        )
        for each in finding.layers
    ]


@drawing()
def _draw(layer: LayerModesFinding, name: str, unit: str) -> Markup:
    """Draw a histogram over its own range, of a bimodal layer in colour and with the split."""
    figure, axes = new_axes(_SIZE, [])
    fill, line = (BAND, ACCENT) if layer.bimodal else (RULE, MUTED)
    axes.stairs(layer.counts, layer.edges, fill=True, color=fill)
    axes.stairs(layer.counts, layer.edges, color=line, linewidth=1)
    if layer.bimodal and layer.split is not None:
        axes.axvline(layer.split, color=INK, linewidth=1, linestyle=(0, (3, 2)))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.set_xlim(layer.edges[0], layer.edges[-1])
    axes.set_ylim(0, 1.05 * max(layer.counts))
    axes.set_yticks([])
    axes.set_xticks([])
    for place, side in ((0, "left"), (1, "right")):
        text = number(layer.edges[-place])
        axes.annotate(
            text,
            (place, 0),
            xycoords="axes fraction",
            xytext=(0, -5),
            textcoords="offset points",
            ha=side,
            va="top",
            color=MUTED,
            fontsize=11,
        )
    title = f"Entropies of the prompts in layer {layer.layer}"
    return to_svg(figure, name, title, _words(layer, unit))


def _words(layer: LayerModesFinding, unit: str) -> str:
    """Return a histogram in words."""
    low, high = layer.edges[0], layer.edges[-1]
    prompts = counted(layer.n_prompts, "prompt")
    most = _most(layer.counts, layer.edges)
    text = f"{prompts} from {low:.3g} to {high:.3g} {unit}, most of them {most}."
    if not layer.bimodal:
        return f"{text} Not two groups."
    label = trait_label(layer.bimodal, layer.peaks)
    return (
        f"{text} {label[0].upper()}{label[1:]}; the two that stand out most lie around "
        f"{modes(layer)} and part at {number(layer.split)}; "
        f"{share(layer.share_high)} are in the upper one."
    )


def _most(counts: Sequence[int], edges: Sequence[float]) -> str:
    top = max(range(len(counts)), key=lambda index: counts[index])
    return f"from {edges[top]:.3g} to {edges[top + 1]:.3g}"
