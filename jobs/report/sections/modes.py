"""Two kinds of prompts: in which layers entropies fall into groups, and what tells these apart."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from layerrank.jobs.measure.modes import prompt_texts
from layerrank.jobs.rank.ranking import Row
from layerrank.jobs.report.charts import Chart, Histogram
from layerrank.jobs.report.facts import Facts
from layerrank.jobs.report.section import Cell, Section, Table
from layerrank.jobs.run import Run, partition
from layerrank.jobs.words import NOTHING, capital, count, known, number, numbered, share
from layerrank.operators.analysis.modes import CLIFFS_DELTA
from layerrank.operators.metrics.registry import METRICS, unit_of

WEAK = 0.33  # an effect below it is small by custom
_SHOWN = 160  # characters of an example
_MOST = 0.99  # the last effect below 1 that has two decimals
_LEAST = 0.001  # p-values below it are not told apart
_SHARES = ("first_token_share", "repeated_tokens", "unknown_words")
_TITLES = {
    "n_tokens": "length",
    "first_token_share": "first-token share",
    "repeated_tokens": "repeated tokens",
    "unknown_words": "unknown words",
}
# Falls with the length by itself: of one length it is 1/T where no token is special.
_ONE_THING = ("n_tokens", "first_token_share")
_GROUPS = {"low": "lower", "high": "upper"}


def section(facts: Facts) -> Section:
    """Return the tested layers of a model, and of bimodal ones what separates the groups."""
    run, subject = facts.run, facts.ranking.subject
    rows = run.rows_if_any(partition("modes", subject, run.config)) if run else []
    level = facts.ranking.settings.level
    texts = _texts(run, bimodal(rows, level)) if run else {}
    return section_of(rows, level, texts)


def section_of(rows: Sequence[Row], level: float, texts: Mapping[int, str]) -> Section:
    """Return the section of some rows of `modes`; `texts` are those of the examples."""
    if not rows:
        return Section("Two kinds of prompts?", "modes", data={"modes": None})
    first, found = rows[0], bimodal(rows, level)
    unit = unit_of(first["metric"], first["variant"])
    note = (
        f"How many prompts have which entropy ({unit}); every layer over its own range, from its "
        "smallest to its largest value. Coloured: Hartigan's dip test rejects a single mode at "
        f"{1 - level:g}, corrected by Holm for all layers; dashed: where the groups part."
    )
    cells = [
        [str(row["layer"]), count(row["n_prompts"]), number(row["dip"]), p_value(row["p_holm"])]
        for row in rows
    ]
    tests = Table("The test of every layer", ["Layer", "Prompts", "Dip", "p"], cells, folded=True)
    return Section(
        "Two kinds of prompts?",
        "modes",
        says=[sentence(rows, found, unit)],
        charts=[_chart(row, row in found, unit) for row in rows],
        notes=[note],
        tables=[tests, *_tables(found, unit, texts)],
        link="metrics.html#two-kinds-of-prompts",
        folded=True,
        data={"modes": _data(rows, found, texts)},
    )


def bimodal(rows: Sequence[Row], level: float) -> list[Row]:
    """Return the layers with more than one peak: those with two first, then the largest dip."""
    found = [row for row in rows if row["p_holm"] <= 1 - level]
    return sorted(found, key=lambda row: (row["peaks"] > 2, -row["dip"], row["layer"]))  # noqa: PLR2004


def _texts(run: Run, rows: Sequence[Row]) -> dict[int, str]:
    """Return the shortened texts of the examples in some rows; every shard is read once."""
    wanted: dict[tuple[str, str], dict[int, None]] = {}
    for row in rows:
        for each in row["examples"]:
            wanted.setdefault((each["dataset"], each["shard"]), {})[each["prompt_id"]] = None
    found: dict[int, str] = {}
    for (dataset, shard), ids in wanted.items():
        prompts = run.manifests.require(partition("prompts", dataset)).shard(run.root, shard)
        texts = prompt_texts(prompts, pa.array([*ids]))
        for prompt_id, text in zip(ids, texts, strict=True):
            line = " ".join(text.split())
            short = textwrap.shorten(line, _SHOWN, placeholder=" ...")
            found[prompt_id] = short if len(short) > len(" ...") else f"{line[: _SHOWN - 4]} ..."
    return found


def sentence(rows: Sequence[Row], found: Sequence[Row], unit: str) -> str:
    """Return in which layers there are two groups, and what separates them best."""
    tested = [row for row in rows if known(row["p_holm"])]
    if not tested:
        return f"No layer could be tested: {rows[0]['reason']}."
    if not found:
        return (
            "No layer's entropies fall into two groups: the smallest corrected p is "
            f"{p_value(min(row['p_holm'] for row in tested))}, from "
            f"{max(row['n_prompts'] for row in tested):,} prompts."
        )
    ordered = sorted(found, key=lambda row: int(row["layer"]))
    two = [row["layer"] for row in ordered if row["peaks"] == 2]  # noqa: PLR2004
    several = [row for row in ordered if row["peaks"] > 2]  # noqa: PLR2004
    groups, peaks = "", ""
    if two:
        groups = f"In {numbered(two)} the entropies of the prompts fall into two groups."
        if len(two) > 1:
            groups += f" They are furthest from a single one in layer {found[0]['layer']}."
    if several:
        most = max(several, key=lambda row: int(row["peaks"]))
        where = "" if len(several) == 1 else f" in layer {most['layer']}"
        which = numbered([row["layer"] for row in several])
        peaks = (
            f"In {which} the entropies have more than two "
            f"peaks ({most['peaks']}{where}), as short texts can give, one for every length."
        )
    about = separated(found[0], unit)
    return " ".join(filter(None, [groups, about, peaks] if two else [peaks, about]))


def separated(row: Row, unit: str) -> str:
    """Return what separates the two groups of a layer best, with its effect size.

    Length and the first token's share are one thing, and are named together, the plainer first.
    """
    trait = strongest(row)
    if trait is None:
        return "No trait of the prompts could be compared."
    beside = ""
    if trait["trait"] in _ONE_THING:
        together = {t["trait"]: t for t in row["traits"] if t["trait"] in _ONE_THING}
        of_share = together.get("first_token_share")
        trait = together.get("n_tokens", trait)
        if not known(trait["effect"]):
            trait = strongest(row) or trait
        elif of_share is not None and of_share is not trait and known(of_share["effect"]):
            beside = (
                f", and with it the first-token share ({effect(of_share)}), which falls with it"
            )
    measure = "Cliff's delta" if trait["measure"] == CLIFFS_DELTA else "Cramér's V"
    how = f"{measure} {effect(trait)}{_medians(trait)}{beside}"
    title, layer = _TITLES.get(trait["trait"], trait["trait"]), row["layer"]
    if abs(trait["effect"]) < WEAK:
        return (
            f"Nothing that is measured separates the groups well in layer {layer}; the most is "
            f"{title}, {how}."
        )
    said = f"What separates the groups best in layer {layer} is {title}: {how}."
    if trait["trait"] != "n_tokens" or unit != METRICS[row["metric"]].unit:
        return said
    return (
        f"{said} An entropy in nats can be no higher than the log of the length: with maxEntropy "
        "first in measure.normalizations that ceiling is taken away."
    )


def strongest(row: Row) -> Row | None:
    """Return the trait with the largest effect; the first of equal ones, None without any."""
    compared = [each for each in row["traits"] if known(each["effect"])]
    return max(compared, key=lambda each: abs(each["effect"]), default=None)


def effect(trait: Row) -> str:
    """Return an effect with two decimals; only 1 is shown as 1."""
    if not known(trait["effect"]):
        return NOTHING
    size = abs(trait["effect"])
    shown = f"{min(round(size, 2), _MOST) if size < 1 else size:.2f}"
    return f"-{shown}" if trait["effect"] < 0 and float(shown) else shown


def p_value(value: float) -> str:
    """Return a p-value with two digits, down to where they are told apart."""
    if not known(value):
        return NOTHING
    return f"<{_LEAST:g}" if value < _LEAST else f"{value:.2g}"


def _medians(trait: Row) -> str:
    if not known(trait["low"]):
        return ""
    low, high = (
        share(value) if trait["trait"] in _SHARES else f"{value:,.0f} tokens"
        for value in (trait["low"], trait["high"])
    )
    return f" (medians: {low} in the lower group, {high} in the upper)"


def _chart(row: Row, is_bimodal: bool, unit: str) -> Chart:
    label = "" if not is_bimodal else "two groups" if row["peaks"] == 2 else f"{row['peaks']} peaks"  # noqa: PLR2004
    split = row["split"] if is_bimodal and known(row["split"]) else None
    plot = Histogram(row["counts"], row["edges"], unit, split) if row["counts"] else None
    return Chart(f"Layer {row['layer']}", plot, "small", label=label)


def _tables(found: Sequence[Row], unit: str, texts: Mapping[int, str]) -> list[Table]:
    """Return what separates the groups of bimodal layers, and prompts near their modes."""
    if not found:
        return []
    rows, strong, ordered = [], set(), sorted(found, key=lambda row: row["layer"])
    for at, row in enumerate(ordered):
        modes = f"{number(row['mode_low'])} and {number(row['mode_high'])}"
        cells: list[Cell] = [str(row["layer"]), p_value(row["p_holm"]), str(row["peaks"]), modes]
        cells += [number(row["split"]), share(row["share_high"])]
        if best := strongest(row):
            strong.add((at, len(cells) + row["traits"].index(best)))
        rows.append([*cells, *((effect(t), _medians(t).strip(" ()")) for t in row["traits"])])
    head: list[Cell] = ["Layer", ("p", "corrected"), "Peaks", ("Modes", unit), "Split"]
    head += [("In upper", "group")]
    head += [capital(_TITLES.get(t["trait"], t["trait"])) for t in found[0]["traits"]]
    missing = [
        f" {capital(_TITLES.get(t['trait'], t['trait']))}: {t['reason']}."
        for row in found
        for t in row["traits"]
        if not known(t["effect"])
    ]
    note = (
        "Effects, upper against lower group. Cliff's delta, -1 to 1, for all but the dataset: the "
        "probability that a prompt of the upper group has more of the trait, minus that it has "
        "less. Cramér's V, 0 to 1, for the dataset. Coloured: the strongest of a layer."
    )
    note += "".join(dict.fromkeys(missing))
    separates = Table("What separates the two groups", head, rows, strong=strong, note=note)
    others = [row for row in ordered if row is not found[0]]
    return [separates, *(_examples(row, texts, row is not found[0]) for row in (found[0], *others))]


def _examples(row: Row, texts: Mapping[int, str], folded: bool) -> Table:
    rows = [
        [
            _GROUPS[each["mode"]],
            number(each["value"]),
            count(each["n_tokens"]),
            each["dataset"],
            texts[each["prompt_id"]],
        ]
        for each in row["examples"]
    ]
    label = f"Prompts nearest to the modes of layer {row['layer']}"
    head = ["Group", "Entropy", "Tokens", "Dataset", "Text"]
    return Table(label, head, rows, words=(0, 3, 4), folded=folded)


def _data(rows: Sequence[Row], found: Sequence[Row], texts: Mapping[int, str]) -> dict[str, Any]:
    of_all, layers = ("metric", "variant", "norm"), []
    for row in rows:
        own = {name: row[name] for name in row if name not in (*of_all, "group")}
        own |= {"bimodal": row in found, "traits": row["traits"] if row in found else []}
        own["examples"] = [
            {name: each[name] for name in each if name != "shard"}
            | {"text": texts[each["prompt_id"]]}
            for each in (row["examples"] if row in found else ())
        ]
        layers.append(own)
    return {**{name: rows[0][name] for name in of_all}, "layers": layers}
