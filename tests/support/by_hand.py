"""Findings made by hand, for tests of what a report says about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jobs.report.findings import (
    AssociationFinding,
    ChoiceFinding,
    CorrelationFinding,
    Curve,
    CurveFinding,
    DatasetFinding,
    Findings,
    LayerFinding,
    LevelFinding,
    ResponseFinding,
    SlopeFinding,
    SubjectFinding,
    TaskFinding,
)
from operators.ranking.policy import Kind, Verdict

SCORES = (0.40, 0.47, 0.60, 0.52)
TASKS = ("topic", "find")
NO_VALUE = AssociationFinding(None, None, None, None, None)


def layer(number: int, score: float | None, *, of: int = 3, **other: Any) -> LayerFinding:  # noqa: ANN401
    """Return a layer whose evidence is derived from its score: a standard error of 5 points."""
    known = score is not None
    row = LayerFinding(
        layer=number,
        score=score,
        score_low=score - 0.05 if score is not None else None,
        score_high=score + 0.05 if score is not None else None,
        rank=number + 1 if known else None,
        gain=score - SCORES[-1] if score is not None else None,
        gain_low=score - SCORES[-1] - 0.02 if score is not None else None,
        gain_high=score - SCORES[-1] + 0.02 if score is not None else None,
        mean_rank=2.5 if known else None,
        won=0.5 if known else None,
        p_value=0.01 if known and number != of else None,
        p_holm=0.03 if known and number != of else None,
        p_best=0.25 if known else None,
        shortfall=max(SCORES) - score if score is not None else None,
        shortfall_se=0.05 if known else None,
        cost=number / of,
        front=known,
        parameters=5_000_000 + 1_000_000 * number,
        flops_per_token=2.5e6 * number,
        latency_ms=0.5 + 4.0 * number,
        tasks=dict.fromkeys(TASKS, score),
    )
    return replace(row, **other)


def verdict(kind: Kind = "use_layer", number: int = 2, saved: float = 1 / 3) -> Verdict:
    """Return a verdict with a sentence of its own."""
    return Verdict(kind, number, saved, f"The sentence of {kind}.")


def task(label: str, folds: int = 10) -> TaskFinding:
    """Return a classification task."""
    return TaskFinding(label, label, "texts", "classification", "accuracy", folds)


def curve(number: int, x: Sequence[float], score: Sequence[float | None]) -> Curve:
    """Return a curve with a spread of one point wherever there is a score."""
    return Curve(number, list(x), list(score), [None if y is None else 0.01 for y in score])


def curves(kind: str = "examples", label: str = "topic") -> CurveFinding:
    """Return curves of four layers: layer 2 leads by 10 points at first, the last by 2 at the end.

    Values: 2, 4 and 8 examples per label, or noise 0, 0.1 and 0.3.
    """
    x = (2.0, 4.0, 8.0) if kind == "examples" else (0.0, 0.1, 0.3)
    found = [
        curve(0, x, (0.20, 0.25, 0.30)),
        curve(1, x, (0.22, None, 0.33)),
        curve(2, x, (0.40, 0.45, 0.50)),
        curve(3, x, (0.30, 0.41, 0.52)),
    ]
    return CurveFinding(label, kind, "accuracy", found)


def choice(rule: str, number: int | None, regret: float | None = 0.08) -> ChoiceFinding:
    """Return a choice whose regret lies in an interval two points to either side."""
    if regret is None:
        return ChoiceFinding(rule, number, None, None, None, None)
    return ChoiceFinding(rule, number, 0.6 - regret, regret, regret - 0.02, regret + 0.02)


def correlation(metric: str, value: float, level: float, reason: str = "") -> CorrelationFinding:
    """Return a correlation whose Spearman is `value` against `level`, the other one far below."""
    if reason:
        return CorrelationFinding("texts", metric, 3, NO_VALUE, NO_VALUE, reason)
    spearman = AssociationFinding(value, -0.5, 0.9, 0.3, level)
    distance = AssociationFinding(0.11, 0.1, 0.8, 0.3, 0.95)
    return CorrelationFinding("texts", metric, 4, spearman, distance, "")


def response(
    family: str = "random", metric: str = "prompt_entropy", slopes: Sequence[float | None] = (1, -2)
) -> ResponseFinding:
    """Return a metric at three levels in as many layers as slopes, clean first.

    An interval of half a unit to either side, except of metrics of all prompts together.
    """
    of_tokens = metric in ("prompt_entropy", "curvature")
    layers = list(range(len(slopes)))
    levels = [
        LevelFinding(
            f"{family}-{level:.2f}" if level else "clean",
            level,
            [None if slope is None else 3 + slope * level for slope in slopes],
            40 - undefined,
            undefined,
        )
        for level, undefined in ((0.0, 0), (0.3, 0), (0.6, 7))
    ]
    found = [
        SlopeFinding(
            layer,
            slope,
            slope - 0.5 if of_tokens and slope is not None else None,
            slope + 0.5 if of_tokens and slope is not None else None,
            "no value" if slope is None else None,
            33,
            7,
        )
        for layer, slope in zip(layers, slopes, strict=True)
    ]
    norm, pooling = ("none", "tokens") if of_tokens else ("final", "mean")
    return ResponseFinding("texts", family, metric, "", norm, pooling, layers, levels, found)


def subject(scores: Sequence[float | None] = SCORES, **other: Any) -> SubjectFinding:  # noqa: ANN401
    """Return a subject of as many layers as scores, without curves and correlations."""
    last = len(scores) - 1
    found = SubjectFinding(
        name="someone/model",
        revision="step1",
        model="someone/model",
        blocks=last,
        norm="final",
        pooling="mean",
        variant="raw",
        policy="cheapest_equal",
        verdict=verdict(),
        oracle=0.63,
        search_share=None,
        tasks=[task(label) for label in TASKS],
        layers=[layer(number, score, of=last) for number, score in enumerate(scores)],
        measured_on="one prompt of 128 tokens on a CPU",
        choices=[choice("last layer", 3), choice("2/3 depth", 2, 0.0), choice("rankme", 1, 0.13)],
        correlations=[],
        curves=[],
        encoded=[],
        metrics=[],
        unmeasured=[],
    )
    return replace(found, **other)


def unlabelled(**other: Any) -> SubjectFinding:  # noqa: ANN401
    """Return a subject without any task."""
    given: dict[str, Any] = {
        "verdict": verdict("no_labels"),
        "oracle": None,
        "tasks": [],
        "choices": [choice("last layer", 3, None), choice("2/3 depth", 2, None)],
    }
    bare = subject([None] * 4, **{**given, **other})
    return replace(bare, layers=[replace(row, tasks={}) for row in bare.layers])


def findings(*subjects: SubjectFinding) -> Findings:
    """Return a run of these subjects on one dataset."""
    return Findings(
        schema_version=3,
        run="small",
        level=0.95,
        draws=10_000,
        seeds={"run": 0, "probe": 42},
        versions={"layerrank": "1.0"},
        settings={"extract": {"max_tokens": 128}},
        datasets=[DatasetFinding("texts", 40, 1, {"null": 0}, 0)],
        subjects=list(subjects),
    )
