"""The first screen, what to do and what it wins, and the three steps that lead to it.

Compare on the tasks, check stability, weigh the cost.
"""

from __future__ import annotations

import math

from layerrank.jobs import words
from layerrank.jobs.rank import sentences
from layerrank.jobs.rank.ranking import Row, as_good_as_best, at_layers
from layerrank.jobs.report.charts import Chart, Line, Lines
from layerrank.jobs.report.facts import Facts, layer_cell, title
from layerrank.jobs.report.section import Cell, Section, Step, Table
from layerrank.jobs.report.sections.cost import has_latency
from layerrank.jobs.report.sections.curves import Curves, curves
from layerrank.jobs.report.sections.metrics import drawn, from_few, series
from layerrank.jobs.words import NOTHING, counted, known, listed, points, share, signed, span
from layerrank.operators.analysis.labelfree import READ_AS
from layerrank.operators.ranking.evidence import Choice
from layerrank.operators.ranking.intervals import FEWEST_TASKS

# How compressed, how straight and how invariant a layer is: one line each beside the score.
BESIDE = ("prompt_entropy", "curvature", "infonce")
# How people read each metric of stability, which proves nothing.
STABILITY = {
    "infonce": "low: typos ignored",
    "lidar": "high: texts apart",
    "prompt_entropy": "low: compressed",
}
_MOST = 5  # candidates


def section(facts: Facts) -> Section:
    """Return the answer of a model with its three figures and the plot of its layers."""
    ranking = facts.ranking
    folds = sorted({task.folds for task in ranking.counting})
    of_folds = ""
    if folds and folds != [1]:
        each = f"{folds[0]}" if len(folds) == 1 else f"{folds[0]} to {folds[-1]}"
        of_folds = f" of {each} folds"
    evidence, verdict = ranking.evidence, ranking.verdict
    why = words.capital(sentences.why(evidence, verdict))
    tasks = counted(len(ranking.counting), "task")
    types = sentences.task_types(evidence)
    of_types = f" ({types})" if types else ""
    says = [f"{why}; {tasks}{of_folds}{of_types}; {facts.vectors}."]
    says += [
        " ".join(
            filter(
                None, [ranking.without_depth, sentences.settles(evidence, verdict), *ranking.gaps]
            )
        )
    ]
    return Section(
        ranking.answer,
        "answer",
        says=[*filter(None, says)],
        figures=[*_won(facts), (share(verdict.saved), "of the compute saved")],
        charts=[_chart(facts)],
    )


def _won(facts: Facts) -> list[tuple[str, str]]:
    """Return the points that the choice wins, corrected for choosing, and how sure that is."""
    ranking, choice = facts.ranking, facts.ranking.evidence.choice
    if choice is None:
        return [(NOTHING, "points: there is no score to compare")]
    over = f"over the last layer, {ranking.last}"
    if choice.layer == ranking.last:
        over = "over that layer as it is"
    if ranking.verdict.kind == "keep_last":
        return _kept(facts, choice)
    if choice.layer != ranking.verdict.layer:
        over = f"layer {choice.layer} {over}"
    found = [(f"{signed(choice.naive)} points", f"{over}, as it stands")]
    if known(choice.gain):
        after = sentences.AFTER[choice.left_out]
        naive = f"{signed(choice.naive)} as it stands"
        found = [(f"{signed(choice.gain)} points", f"{over}, {after}; {naive}")]
    tasks = ranking.evidence.row(choice.layer).n_tasks
    spans = [
        (choice.low, choice.high, "on a new task"),
        (choice.here_low, choice.here_high, "on these tasks"),
    ]
    sure = [
        (span(low, high), f"{facts.interval} {where}") for low, high, where in spans if known(low)
    ]
    if tasks < FEWEST_TASKS and not known(choice.low):
        sure.insert(0, (NOTHING, f"a new task: from {counted(tasks, 'task')} nothing is known"))
    return [*found, *(sure or [(NOTHING, "single scores have no interval on these tasks")])]


def _kept(facts: Facts, choice: Choice) -> list[tuple[str, str]]:
    """Return what choosing would have won where the last layer stays, and the nearest layer."""
    ranking, found = facts.ranking, list[tuple[str, str]]()
    if known(choice.gain) and choice.left_out != "nothing":
        found.append((f"{signed(choice.gain)} points", f"to be won, {sentences.tried(choice)}"))
    if ranking.nearest is not None:
        gain = next(row["gain"] for row in ranking.rows if row["layer"] == ranking.nearest)
        near = f"layer {ranking.nearest}, the nearest, over the last, {ranking.last}"
        found.append((f"{signed(gain)} points", near))
    return found


def _chart(facts: Facts) -> Chart:
    ranking = facts.ranking
    rows = ranking.rows
    layers = [row["layer"] for row in rows]
    lines = facts.by_layer("score", "aligned", "score")
    better = len(lines) > 1
    beside = []
    for metric in BESIDE:
        y = at_layers(ranking.metric(metric), layers).tolist()
        if not all(map(math.isnan, y)):
            beside.append(title(metric))
            name = title(metric, facts.views)
            lines.append(Line(name, layers, y, "thin", at_end=True))
    ends = f", with its {facts.interval} on these tasks" if facts.band("score")[0] else ""
    score = f"Score, mean of the tasks{ends}."
    if better:
        score += " Dots: other vectors of a layer that are better."
    if ranking.has_holes:
        score += " With the tasks that a layer lacks taken into account."
    if not ranking.scored:
        score, lines = "", [line for line in lines if line.look == "thin"]
    thin = f"Thin: {listed(beside)}, each on its own scale." if beside else ""
    return Chart(
        f"Score of every layer of {ranking.subject.name}",
        Lines(lines, y="score, points" if score else "", marks=facts.marks) if lines else None,
        "wide",
        source=f"{score} {thin} Layer 0 is the first block's input.".strip(),
    )


def steps(facts: Facts) -> Section:
    """Return the three steps with what each found, and a table of the layers to choose between."""
    return steps_of(facts, [each for each in curves(facts) if each.kind == "noise"])


def steps_of(facts: Facts, noise: list[Curves]) -> Section:
    """Return the three steps of a model, whose robustness curves are `noise`."""
    if not facts.ranking.scored:
        return Section("In three steps", "steps")
    chosen = candidates(facts)
    found = noisy_scores(noise, [row["layer"] for row in chosen])
    stable = "curves" if found else "metrics" if facts.run else "ranking"
    return Section(
        "In three steps",
        "steps",
        steps=[
            Step("Compare the layers on the tasks.", "ranking", _comparison(facts)),
            Step("Check how stable they are.", stable, _stability(facts, noise, found)),
            Step("Choose by cost.", "cost", _price(facts, chosen)),
        ],
        tables=[_candidates_table(facts, chosen, found)],
    )


def candidates(facts: Facts) -> list[Row]:
    """Return the layers between which to choose: those equal to the best, the next, the last."""
    ranking = facts.ranking
    equal = [row["layer"] for row in ranking.best_first if as_good_as_best(row)]
    kept = {*(equal[: _MOST - 2] or [ranking.best_first[0]["layer"]]), ranking.nearest}
    kept |= {ranking.last, ranking.verdict.layer}
    return [row for row in ranking.scored if row["layer"] in kept]


def noisy_scores(noise: list[Curves], layers: list[int]) -> dict[int, float]:
    """Return each layer's score at the highest noise, mean over tasks with a clean one as well."""
    found = {}
    for layer in layers:
        scores = [each.scores[layer] for each in noise if len(each.scores.get(layer, {})) > 1]
        ends = [(at[min(at)].mean, at[max(at)].mean) for at in scores]
        noisy = [noisy for clean, noisy in ends if known(clean) and known(noisy)]
        if noisy:
            found[layer] = sum(noisy) / len(noisy)
    return found


def _comparison(facts: Facts) -> str:
    ranking, best_first = facts.ranking, facts.ranking.best_first
    tasks = counted(len(ranking.counting), "task")
    said = f"{counted(len(best_first), 'layer')}, {tasks}, one pass of the model: layer "
    said = said if facts.run else f"{counted(len(best_first), 'layer')}, {tasks}: layer "
    best = best_first[0]
    said += f"{best['layer']} scores highest, {points(best['aligned'])} points"
    if len(best_first) == 1:
        return f"{said}."
    last = next((row for row in best_first if row["layer"] == ranking.last), best)
    other, called = (best_first[1], "the next") if last is best else (last, "the last")
    said += f"; {called}, layer {other['layer']}, {points(other['aligned'])}"
    asked = ranking.evidence.baseline.score
    as_ranked = other is last and ranking.plain and other["score"] != asked
    return f"{said} (as ranked {points(asked)})." if as_ranked else f"{said}."


def _stability(facts: Facts, noise: list[Curves], found: dict[int, float]) -> str:
    said = []
    if found:
        level = max(x for each in noise for at in each.scores.values() for x in at)
        parts = [f"layer {n} to {points(score)}" for n, score in found.items()]
        said.append(f"With typos in {share(level)} of the words scores fall: {listed(parts)}.")
    best: dict[int, list[str]] = {}
    layers = [row["layer"] for row in candidates(facts)]
    for name in _measured(facts):
        values = {n: v for n in layers if known(v := facts.ranking.metric(name).get(n))}
        choose = min if READ_AS[name] == "low" else max
        best.setdefault(choose(values, key=values.__getitem__), []).append(title(name))
    if best:
        parts = [f"layer {layer} by {listed(names)}" for layer, names in sorted(best.items())]
        said.append(f"Most stable is {listed(parts)}, metrics that describe and do not decide.")
    return " ".join(said) or "Nothing was measured that tells: no typos (curves.noise), no metrics."


def _price(facts: Facts, chosen: list[Row]) -> str:
    verdict = facts.ranking.verdict
    first, *rest = chosen
    parts = [f"layer {first['layer']} takes {share(first['cost'])} of the compute"]
    parts += [f"layer {row['layer']} {share(row['cost'])}" for row in rest]
    end = "the scores do not decide between them"
    if verdict.kind == "use_layer":
        saves = f", and saves {share(verdict.saved)}" if verdict.saved else ""
        end = f"layer {verdict.layer} is the choice{saves}"
    elif verdict.kind == "keep_last":
        end = "the last layer is the choice, and saves nothing"
    return f"{listed(parts).capitalize()}; {end}."


def _measured(facts: Facts) -> list[str]:
    """Return which metrics of stability have a value in some candidate."""
    layers = [row["layer"] for row in candidates(facts)]
    return [
        name for name in STABILITY if any(known(facts.ranking.metric(name).get(n)) for n in layers)
    ]


def _candidates_table(facts: Facts, chosen: list[Row], found: dict[int, float]) -> Table:
    ranking, measured = facts.ranking, _measured(facts)
    timed = has_latency(ranking)
    head: list[Cell] = ["Layer", ("Score", "points")]
    head += [("Tasks", "with a score")] if ranking.has_holes else []
    head += [("With typos", "points")] if found else []
    head += [(title(name, facts.views), STABILITY[name]) for name in measured]
    head += [("Compute", "of the model"), *([("Latency", "ms")] if timed else [])]
    rows: list[list[Cell]] = []
    for row in chosen:
        layer = row["layer"]
        noisy = [points(found.get(layer))] if found else []
        values = [words.number(ranking.metric(name).get(layer)) for name in measured]
        time = [words.size(ranking.costs[layer]["latency_ms"])] if timed else []
        n_tasks = [str(row["n_tasks"])] if ranking.has_holes else []
        cells = [points(row["aligned"]), *n_tasks, *noisy, *values, share(row["cost"]), *time]
        rows.append([layer_cell(layer, ranking), *cells])
    best = {n for n, row in enumerate(chosen) if row["layer"] == ranking.verdict.layer}
    note = (
        "The layers within one standard error of the best, the best below the last, and the last."
    )
    few = _from_few(facts)
    pale = [
        2 + ranking.has_holes + bool(found) + at for at, name in enumerate(measured) if name in few
    ]
    if pale:
        note += " Grey: from too few prompts."
    marked = best if ranking.is_certain else set()
    grey = {(row, column) for row in range(len(rows)) for column in pale}
    return Table("Layers to choose between", head, rows, marked=marked, grey=grey, note=note)


def _from_few(facts: Facts) -> set[str]:
    """Return the metrics whose shown values are from too few prompts."""
    if facts.run is None:
        return set()
    datasets = {metric: dataset for dataset, metric in reversed([*facts.ranking.metrics])}
    return {
        each.metric
        for dataset in dict.fromkeys(datasets.values())
        for each in drawn(facts.ranking, series(facts, dataset))
        if datasets.get(each.metric) == dataset and from_few(facts, each)
    }
