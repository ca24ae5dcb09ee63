"""The checkpoints of a model over training: of a sweep, and of the nights of a nightly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from layerrank.jobs.rank.ranking import Checkpoint, Row
from layerrank.jobs.report.charts import Chart, HeatMap, Lines, Look, Mark, in_points
from layerrank.jobs.report.facts import title
from layerrank.jobs.report.guide import link_to
from layerrank.jobs.report.section import Cell, Section, Table
from layerrank.jobs.words import NOTHING, counted, known, points, signed, span
from layerrank.operators.metrics.registry import METRICS
from layerrank.operators.ranking.evidence import overtakings
from layerrank.storage.partition import step_of

_VERDICTS = {
    "use_layer": "use layer {}",
    "keep_last": "keep the last",
    "not_enough_evidence": "not enough evidence, layer {}",
    "no_labels": "no labels, layer {}",
}


def section(
    checkpoints: Sequence[Checkpoint],
    level: float,
    units: Mapping[str, str],
    alerts: Mapping[str, str] | None = None,
    *,
    views: int = 0,
) -> Section:
    """Return what the checkpoints of a model show, the oldest first.

    `units` are those of the metrics, `views` how many of a prompt these compare, and `alerts` the
    rules that checkpoints broke, by revision.
    """
    newest, rows = checkpoints[-1], overtaken(checkpoints)
    interval = f"{100 * level:g} % interval"
    told = sweep_sentence(checkpoints, rows, level)
    verdict = _VERDICTS[newest.ranking[0]["verdict"]].format(newest.recommended)
    scored = any(known(row["score"]) for each in checkpoints for row in each.ranking)
    return Section(
        f"{newest.model} at {at(newest.revision)}: {verdict}",
        "training",
        says=[told],
        figures=figures(checkpoints, interval),
        charts=_score_charts(checkpoints, interval, alerts or {}) if scored else [],
        tables=[
            _verdicts(checkpoints, interval, alerts),
            *([_overtakings(checkpoints, rows, interval)] if scored else []),
        ],
        parts=_maps(checkpoints, units, views),
        data={
            "name": newest.model,
            "revisions": [each.revision for each in checkpoints],
            "steps": [step_of(each.revision) for each in checkpoints],
            "overtakings": rows,
            "sentence": told,
        },
    )


def place(revision: str | None) -> str:
    """Return a checkpoint as its step, where its revision names one."""
    if revision is None:
        return NOTHING
    step = step_of(revision)
    return revision if step is None else f"{step:,}"


def at(revision: str) -> str:
    """Return a checkpoint as it stands in a sentence."""
    return f"checkpoint {revision}" if step_of(revision) is None else f"step {place(revision)}"


def axis(checkpoints: Sequence[Checkpoint]) -> str:
    """Return what the columns of a map are."""
    named = any(step_of(each.revision) is None for each in checkpoints)
    return "checkpoint" if named else "training step"


def figures(checkpoints: Sequence[Checkpoint], interval: str) -> list[tuple[str, str]]:
    """Return the gain over the last layer, its interval, and the change since earlier ones."""
    newest = checkpoints[-1]
    row = newest.row(newest.recommended)
    over, corrected = f"over the last layer, {max(newest.layers)}", row.get("gain_chosen")
    found = [(f"{signed(row['gain'])} points", over)]
    if known(corrected):  # tables of earlier versions have the gain as it stands alone
        naive = f"{signed(row['gain'])} as it stands"
        found = [(f"{signed(corrected)} points", f"{over}, corrected for choosing; {naive}")]
    low, high, where = sure(row)
    if row["layer"] == max(newest.layers):
        found = [(f"{points(row['score'])} points", f"score of layer {row['layer']}, the last")]
    elif known(low):
        found.append((span(low, high), f"{interval} {where}"))
    earlier = {"the checkpoint before": checkpoints[-2:-1], "the first": checkpoints[:-2][:1]}
    for text, before in earlier.items():
        for each in before:
            change = row["score"] - each.row(each.recommended)["score"]
            found.append((signed(change), f"points since {text}, {place(each.revision)}"))
    return found


def sure(row: Row) -> tuple[float, float, str]:
    """Return the interval of a gain on a new task, or else on these, and which it is."""
    low, high = row["gain_low"], row["gain_high"]
    here = row.get("here_low")
    if known(low) or not known(here):
        return low, high, "on a new task"
    return here, row["here_high"], "on these tasks"


def _as_ranked(row: Row) -> Row:
    """Return a layer's row with the score and the gain of its ranked vectors.

    Which other vectors of a layer were scored in full differs between checkpoints and layers, so
    curves over them would compare different things. Of other vectors the row has the intervals.
    """
    plain, unknown = row.get("plain_score"), math.nan
    if plain is None or not known(plain) or plain == row["score"]:
        return row
    bounds = dict.fromkeys(("gain_low", "gain_high", "here_low", "here_high"), unknown)
    return {**row, **bounds, "score": plain, "gain": row["plain_gain"]}


def overtaken(checkpoints: Sequence[Checkpoint]) -> list[dict[str, Any]]:
    """Return from which checkpoint on each layer stays above the last, and is so clearly."""
    newest, revisions = checkpoints[-1], [each.revision for each in checkpoints]
    layers, last = newest.layers, max(newest.layers)
    # The layers of a checkpoint with another depth are not those of the newest.
    by_layer: list[dict[int, Row]] = [
        {row["layer"]: _as_ranked(row) for row in each.ranking} if max(each.layers) == last else {}
        for each in checkpoints
    ]
    gain_SL = [[rows[n]["gain"] if n in rows else math.nan for n in layers] for rows in by_layer]
    low_SL = [[sure(rows[n])[0] if n in rows else math.nan for n in layers] for rows in by_layer]

    def named(index: int | None) -> str | None:
        return None if index is None else revisions[index]

    return [
        {
            "layer": each.layer,
            "stays_above": named(each.stays_above),
            "clearly_above": named(each.clearly_above),
        }
        for each in overtakings(gain_SL, low_SL, layers=layers)
        if each.layer != last
    ]


def sweep_sentence(
    checkpoints: Sequence[Checkpoint], rows: Sequence[Mapping[str, Any]], level: float
) -> str:
    """Return which layers came to score above the last one, and from when on."""
    newest, order = checkpoints[-1], [each.revision for each in checkpoints]
    if not any(known(row["score"]) for row in newest.ranking):
        return f"No layer is scored at {at(newest.revision)}: nothing tells when one overtook."
    above = [row for row in rows if row["stays_above"] is not None]
    if not above:
        last = max(newest.layers)
        return f"At {at(newest.revision)} no layer scores above the last one, layer {last}."
    since = min(order.index(row["stays_above"]) for row in above)
    longest = [row["layer"] for row in above if row["stays_above"] == order[since]]
    who = f"layer {longest[0]}" if len(longest) == 1 else f"{len(longest)} of them"
    says = (
        f"At {at(newest.revision)}, {len(above)} of the {counted(len(rows), 'layer')} below the "
        f"last {'scores' if len(above) == 1 else 'score'} above it, {who} "
        f"{f'since {at(order[since])}' if since else 'in every checkpoint'}"
    )
    interval = f"{100 * level:g} % interval of the gain"
    clear = [row for row in above if row["clearly_above"] is not None]
    if not clear:
        return f"{says}. Of none of them does the {interval} ever lie above 0."
    soonest = min(clear, key=lambda row: order.index(row["clearly_above"]))
    return (
        f"{says}. The {interval} lies above 0 for the first time at "
        f"{at(soonest['clearly_above'])}, for layer {soonest['layer']}."
    )


def _score_charts(
    checkpoints: Sequence[Checkpoint], interval: str, alerts: Mapping[str, str]
) -> list[Chart]:
    ticks = [(float(n), place(each.revision)) for n, each in enumerate(checkpoints)]
    x = [n for n, _ in ticks]
    rows: dict[str, list[Row | None]] = {
        "recommended": [each.row(each.recommended) for each in checkpoints],
        "best": [None if each.best is None else each.row(each.best) for each in checkpoints],
        "last": [_as_ranked(each.row(max(each.layers))) for each in checkpoints],
    }

    def scores(name: str, column: str) -> list[float]:
        return [math.nan if row is None else row[column] for row in rows[name]]

    looks: dict[str, Look] = {"last": "plain", "best": "second", "recommended": "strong"}
    ends = scores("recommended", "score_low"), scores("recommended", "score_high")
    lines = []
    for name, look in looks.items():
        band = ends if look == "strong" else ((), ())
        lines.append(in_points(name, x, scores(name, "score"), look, band, at_end=True))
    marks = [Mark(n) for n, each in enumerate(checkpoints) if each.revision in alerts]
    dotted = " Dotted: a checkpoint with an alert." if marks else ""
    model = checkpoints[-1].model
    score = Chart(
        f"Score of the recommended, the best and the last layer of {model} over training",
        Lines(lines, axis(checkpoints), "score, points", ticks, marks),
        "wide",
        source=f"Band: {interval} of the recommended layer's score. Best: of any layer.{dotted} "
        "Checkpoints stand at equal distances.",
    )
    by_layer = [
        {row["layer"]: _as_ranked(row)["score"] for row in each.ranking} for each in checkpoints
    ]
    whole = _map(checkpoints, by_layer, "Score of every layer at every checkpoint", best=True)
    told = (
        "Mean over tasks, in points, of the ranked vectors. Dot: the best layer of a checkpoint, "
        "ring: the recommended."
    )
    return [score, Chart(whole.title, whole.plot, "wide", source=told)]


def _overtakings(
    checkpoints: Sequence[Checkpoint], rows: Sequence[Mapping[str, Any]], interval: str
) -> Table:
    newest = checkpoints[-1]
    cells = []
    for row in rows:
        now = newest.row(row["layer"])
        gain = signed(now["gain"]), span(*sure(now)[:2])
        since = place(row["stays_above"]), place(row["clearly_above"])
        cells.append([str(row["layer"]), *gain, *since])
    return Table(
        "When each layer overtook the last one",
        [
            "Layer",
            ("Gain", f"at {at(newest.revision)}"),
            interval,
            ("Above the last", "ever since"),
            ("Interval above 0", "for the first time"),
        ],
        cells,
        note=f"From which {axis(checkpoints)} on a layer scores above the last one in every later "
        f"checkpoint, and the first one at which the {interval} of its gain lies above 0. Many "
        "layers and checkpoints are compared, each with an interval of its own: a few of them lie "
        "above 0 by chance.",
        folded=True,
    )


def _verdicts(
    checkpoints: Sequence[Checkpoint], interval: str, alerts: Mapping[str, str] | None
) -> Table:
    """Return every checkpoint, the newest first; a nightly's with the rules that it broke."""
    rows = []
    for each in reversed(checkpoints):
        last, used = _as_ranked(each.row(max(each.layers))), each.row(each.recommended)
        best = None if each.best is None else each.row(each.best)
        of_best = [NOTHING] * 4
        if best is not None:
            ends = span(*sure(best)[:2])
            is_last = best["layer"] == max(each.layers)
            gain = [signed(best["gain"]), "baseline" if is_last else ends]
            of_best = [str(best["layer"]), points(best["score"]), *gain]
        cells = [
            place(each.revision),
            str(used["layer"]),
            points(used["score"]),
            span(used["score_low"], used["score_high"]),
            *of_best,
            points(last["score"]),
            _VERDICTS[used["verdict"]].format(used["layer"]),
        ]
        rows.append([*cells, *([] if alerts is None else [alerts.get(each.revision, "")])])
    head: list[Cell] = [
        axis(checkpoints).capitalize(),
        ("Recommended", "layer"),
        ("Score", "points"),
        (interval, "of the score"),
        ("Best", "layer"),
        ("Score", "points"),
        ("Gain", "over the last"),
        (interval, "of the gain"),
        ("Last", "score"),
        "Verdict",
        *([] if alerts is None else ["Alert"]),
    ]
    label, folded = "Every checkpoint", alerts is None
    return Table(label, head, rows, words=(0, 9, 10), marked={0}, folded=folded)


def _map(
    checkpoints: Sequence[Checkpoint],
    columns: Sequence[Mapping[int, float]],
    name: str,
    *,
    best: bool = False,
    unit: str = "points",
    **told: Any,  # noqa: ANN401  (the other fields of Chart)
) -> Chart:
    """Return a map of layers and checkpoints; `best` marks the best and the recommended layer."""
    layers = checkpoints[-1].layers
    scale = 100 if unit == "points" else 1
    values_LS = np.array([[scale * each.get(n, math.nan) for each in columns] for n in layers])
    values_LS[~np.isfinite(values_LS)] = np.nan
    if np.isnan(values_LS).all():
        return Chart(name, None, **told)
    dots = [
        None if np.isnan(column).all() else layers[int(np.nanargmax(column))]
        for column in (values_LS.T if best else ())
    ]
    plot = HeatMap(
        values_LS,
        layers,
        [place(each.revision) for each in checkpoints],
        axis(checkpoints),
        unit,
        dots=dots,
        rings=[each.recommended for each in checkpoints] if best else [],
        form=".1f" if unit == "points" else ".4g",
    )
    notes = [told.pop("source", ""), "Logarithmic colours." * plot.is_logarithmic]
    notes += ["Blank: no value." * bool(np.isnan(values_LS).any())]
    return Chart(name, plot, source=" ".join(filter(None, notes)), **told)


def _maps(checkpoints: Sequence[Checkpoint], units: Mapping[str, str], views: int) -> list[Section]:
    """Return the maps of every task, and of every metric at every layer."""
    newest = checkpoints[-1]
    maps = [
        _map(checkpoints, [each.tasks.get(task, {}) for each in checkpoints], task)
        for task in newest.tasks
    ]
    name = "Score of every task over training"
    parts = [Section(name, charts=maps, folded=True)] if len(maps) > 1 else []
    datasets = list(dict.fromkeys(dataset for dataset, _ in newest.metrics))
    for dataset in datasets:
        maps = [
            _map(
                checkpoints,
                [each.metrics.get((dataset, metric), {}) for each in checkpoints],
                title(metric, views),
                unit=units[metric],
                says=METRICS[metric].says,
                source=METRICS[metric].paper,
                link=link_to(title(metric)),
            )
            for of, metric in newest.metrics
            if of == dataset
        ]
        among = f" of {dataset}" if len(datasets) > 1 else ""
        parts.append(Section(f"Metrics{among} over training", charts=maps, folded=True))
    return parts
