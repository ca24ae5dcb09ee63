"""Rankings and rows of tables made by hand, for tests of what a report says about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from layerrank.jobs.rank.ranking import Option, RankedTask, Ranking, Settings
from layerrank.jobs.report.facts import Facts
from layerrank.jobs.report.section import Cell, Table
from layerrank.jobs.report.sections.conditions import Level, Response
from layerrank.jobs.report.sections.curves import Curves, Score
from layerrank.operators.metrics.registry import METRICS
from layerrank.operators.model.subject import Subject, Vectors
from layerrank.operators.ranking.evidence import Choice, Evidence, LayerEvidence
from layerrank.operators.ranking.policy import Kind, Reason, Verdict
from layerrank.operators.ranking.scores import TaskScores

NAN = math.nan
SCORES = (0.40, 0.47, 0.60, 0.52)
TASKS = ("topic", "find")
HOSTILE = '<script>alert(1)</script>|"&`x`'
REASONS: dict[Kind, Reason] = {
    "use_layer": "highest",
    "keep_last": "none_higher",
    "not_enough_evidence": "unproven",
    "no_labels": "no_labels",
}


def rows(table: Table) -> list[list[str]]:
    """Return the rows of a table as text, small words in brackets."""
    return [[_text(cell) for cell in row] for row in table.rows]


def _text(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    return f"{cell[0]} ({cell[1]})" if cell[1] else cell[0]


def layer(number: int, scores: Sequence[float], **other: Any) -> LayerEvidence:  # noqa: ANN401
    """Return a layer whose evidence is derived from its score: a standard error of 5 points.

    On these tasks a gain is known to 1 point, on a new one to 2.
    """
    score, last = scores[number], scores[-1]
    gain = score - last
    is_last, known = number == len(scores) - 1, not math.isnan(score)
    spans: dict[str, Any] = {"score_low": score - 0.05, "score_high": score + 0.05}
    spans |= {"gain_low": gain - 0.02, "gain_high": gain + 0.02}
    width = NAN if is_last else 0.01
    spans |= {"here_low": gain - width, "here_high": gain + width}
    row = LayerEvidence(
        layer=number,
        n_tasks=len(TASKS) if known else 0,
        score=score,
        gain=gain,
        gain_even=gain,
        **spans,
        rank=1 + sum(each > score for each in scores) if known else None,
        mean_rank=2.5 if known else NAN,
        won=0.5 if known else NAN,
        p_value=NAN if is_last or not known else 0.01,
        p_max=NAN if is_last or not known else 0.03,
        taken=0.25 if known else NAN,
        shortfall=np.nanmax(scores) - score if known else NAN,
        shortfall_se=0.05 if known else NAN,
    )
    return replace(row, **other)


def ranking(
    scores: Sequence[float] = SCORES,
    kind: Kind = "use_layer",
    number: int = 2,
    *,
    tasks: Mapping[str, Sequence[float]] | None = None,
    folds: int = 10,
    rows: Sequence[LayerEvidence] | None = None,
    **other: Any,  # noqa: ANN401
) -> Ranking:
    """Return a ranking of as many layers as scores, whose tasks all have these scores."""
    last = len(scores) - 1
    given = dict.fromkeys(TASKS, scores) if tasks is None else tasks
    found = [task(label, each, folds) for label, each in given.items()]
    cost_L = np.array([n / last for n in range(last + 1)])
    layers = list(rows or (layer(n, scores) for n in range(last + 1)))
    evidence = Evidence(
        level=0.95,
        policy="best",
        layers=layers,
        candidates=layers,
        rows=[*range(len(layers))],
        choice=choice(layers, number) if found else None,
        oracle=0.63 if found else NAN,
        tasks=[each.label for each in found if not math.isnan(each.scores.score_L[-1])],
        types={"classification": len(found)} if found else {},
        without_last=[],
        unscored=[],
    )
    whole = Ranking(
        subject=Subject("someone/model", "step1", "someone/model"),
        vectors=Vectors("final", "mean", "raw"),
        settings=Settings(),
        tasks=found,
        evidence=evidence,
        verdict=Verdict(kind, number, 1 - cost_L[number], REASONS[kind], "new_task"),
        cost_L=cost_L,
        weighed=[Option(n, Vectors("final", "mean", "raw")) for n in range(last + 1)],
        costs={n: cost(n) for n in range(last + 1)},
    )
    return replace(whole, **other)


def choice(layers: Sequence[LayerEvidence], number: int) -> Choice:
    """Return the choice of a layer: a point of its gain is taken off for choosing."""
    row = layers[number]
    ends = row.here_low, row.here_high, row.gain_low, row.gain_high
    return Choice(number, number, row.gain - 0.01, row.gain, "tasks", *ends, None, NAN)


def task(label: str, scores: Sequence[float], folds: int = 10) -> RankedTask:
    """Return a classification task."""
    of_task = TaskScores(
        label, "classification", np.array(scores), np.empty((len(scores), 0)), "folds"
    )
    return RankedTask(label, label, "texts", "accuracy", folds, of_task)


def score_rows(
    kind: str, scores_LF: npt.NDArray[np.float64], reason: str = "undefined"
) -> list[dict[str, Any]]:
    """Return rows of `probe_scores`, raw vectors: of every layer and fold."""
    own: dict[str, Any] = {"norm": "final", "pooling": "mean", "variant": "raw", "task_type": kind}
    own |= {"metric": "accuracy", "n_train": 8, "n_test": 32, "replicates": []}
    return [
        {**own, "layer": n, "fold": fold, "value": value, "reason": _why(value, reason)}
        for (n, fold), value in np.ndenumerate(scores_LF)
    ]


def metric_rows(
    metric: str, variant: str, values: Sequence[float], **other: object
) -> list[dict[str, Any]]:
    """Return rows of `layer_metrics`, of pooled vectors or with other columns: of every layer."""
    own: dict[str, object] = {
        "metric": metric,
        "variant": variant,
        "norm": "final",
        "pooling": "mean",
    }
    own |= {"n_prompts": 40, "n_undefined": 0, **other}
    reason = METRICS[metric].undefined if metric in METRICS else HOSTILE
    return [
        {**own, "layer": n, "value": value, "reason": _why(value, reason)}
        for n, value in enumerate(values)
    ]


def _why(value: float, reason: str) -> str | None:
    return reason if math.isnan(value) else None


def cost(number: int, **other: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the cost of a layer as `layer_costs` has it, with a tenth of a ms of spread."""
    time = 0.5 + 4.0 * number
    known: dict[str, Any] = {"layer": number, "flops_per_token": 2.5e6 * number}
    known |= {"parameters": 5_000_000 + 1_000_000 * number, "tokens": 128, "device": "cpu"}
    known |= {"latency_ms": time, "latency_low_ms": time - 0.05, "latency_high_ms": time + 0.05}
    return {**known, **other}


def facts(*given: Any, **other: Any) -> Facts:  # noqa: ANN401
    """Return the facts of a ranking made by hand."""
    return Facts(ranking(*given, **other))


def unlabelled() -> Facts:
    """Return the facts of a model without any task."""
    return facts([NAN] * 4, "no_labels", 3, tasks={})


def curves(kind: str = "examples", label: str = "topic") -> Curves:
    """Return curves of four layers: layer 2 leads by 10 points at first, the last by 2 at the end.

    Values: 2, 4 and 8 examples per label, or noise 0, 0.1 and 0.3.
    """
    x = (2.0, 4.0, 8.0) if kind == "examples" else (0.0, 0.1, 0.3)
    found = [(0.20, 0.25, 0.30), (0.22, NAN, 0.33), (0.40, 0.45, 0.50), (0.30, 0.41, 0.52)]
    at = {
        number: dict(zip(x, (Score(y, 0.01) for y in each), strict=True))
        for number, each in enumerate(found)
    }
    return Curves(label, "examples" if kind == "examples" else "noise", "accuracy", at)


def response(
    family: str = "random", metric: str = "prompt_entropy", slopes: Sequence[float] = (1, -2)
) -> Response:
    """Return a metric at three levels in as many layers as slopes, clean first.

    An interval of half a unit to either side, except of metrics of all prompts together.
    """
    of_tokens = metric in ("prompt_entropy", "curvature")
    levels = []
    for level, undefined in ((0.0, 0), (0.3, 0), (0.6, 7)):
        counts = {"n_prompts": 40 - undefined, "n_undefined": undefined}
        rows = {n: {"value": 3 + slope * level, **counts} for n, slope in enumerate(slopes)}
        levels.append(Level(f"{family}-{level:.2f}" if level else "clean", level, rows))
    half, counts = 0.5 if of_tokens else NAN, {"n_prompts": 33, "n_undefined": 7}
    found = {
        n: {"slope": slope, "slope_low": slope - half, "slope_high": slope + half, **counts}
        | {"reason": _why(slope, "no value")}
        for n, slope in enumerate(slopes)
    }
    norm, pooling = ("none", "tokens") if of_tokens else ("final", "mean")
    return Response("texts", family, metric, "", norm, pooling, levels, found)
