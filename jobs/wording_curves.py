"""What a report says about curves: which two layers are compared, and who leads at the ends."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.findings import Curve, CurveFinding, SubjectFinding
from jobs.wording import NOTHING, nearest, points

_KINDS = {"examples": "few labelled examples", "noise": "noisy text"}
_FITTED = {
    "examples": "fitted on fewer training examples",
    "noise": "fitted on clean texts, tested on texts with typos",
}
_AXES = {
    "examples": "training examples per label",
    "noise": "typos of each kind, probability per word",
}


@dataclass(frozen=True)
class Compared:
    """Two layers whose curves matter: `first` is the one to take, and how both are called."""

    first: int
    second: int
    says: str


def axis(kind: str) -> str:
    """Return what a curve is drawn against."""
    return _AXES.get(kind, kind)


def heading(subject: SubjectFinding) -> str:
    """Return what the curves of a subject are about."""
    kinds = dict.fromkeys(_KINDS.get(each.kind, each.kind) for each in subject.curves)
    return f"With {' and '.join(kinds)}"


def title(finding: CurveFinding) -> str:
    """Return the task of a curve, and what it is about."""
    return f"{finding.label}: {_KINDS.get(finding.kind, finding.kind)}"


def source(finding: CurveFinding) -> str:
    """Return what the scores of a curve are."""
    metric = finding.metric.replace("_", " ")
    how = _FITTED.get(finding.kind, "")
    return f"{metric[0].upper()}{metric[1:]}{f', {how}' if how else ''}."


def at(kind: str, x: float) -> str:
    """Return a place on the axis of a curve; noise 0 is the clean text."""
    return "clean" if kind == "noise" and not x else f"{x:g}"


def compared(subject: SubjectFinding) -> Compared | None:
    """Return the verdict's layer and the last; where they are the same, the next best and it."""
    last, verdict = subject.last, subject.verdict
    if verdict.layer != last:
        name = f"Layer {verdict.layer} against the last ({last})"
        return Compared(verdict.layer, last, name)
    other = nearest(subject)
    if other is None:
        return None
    if verdict.kind == "keep_last":
        return Compared(last, other, f"Layer {last}, the last, against layer {other}, the next")
    return Compared(other, last, f"Layer {other}, the highest below it, against the last ({last})")


def curve_of(finding: CurveFinding, layer: int) -> Curve | None:
    """Return the curve of a layer; None if it has none."""
    return next((each for each in finding.curves if each.layer == layer), None)


def lead(subject: SubjectFinding, finding: CurveFinding) -> str:
    """Return by how much the layer to take leads at both ends; nothing without two curves."""
    pair = compared(subject)
    if pair is None:
        return ""
    first, second = (_scores(finding, layer) for layer in (pair.first, pair.second))
    gaps = {x: first[x] - second[x] for x in first if x in second}
    if not gaps:
        return ""
    ends = dict.fromkeys((min(gaps), max(gaps)))
    return f"{pair.says}: {', '.join(_gap(finding.kind, x, gaps[x]) for x in ends)}."


def _scores(finding: CurveFinding, layer: int) -> dict[float, float]:
    """Return the scores of a layer by place, as far as there are any."""
    curve = curve_of(finding, layer)
    pairs = zip(curve.x, curve.score, strict=True) if curve else ()
    return {x: score for x, score in pairs if score is not None}


def _gap(kind: str, x: float, gap: float) -> str:
    where = {"examples": f"at {x:g} per label", "noise": f"at noise {x:g}"}.get(kind, f"at {x:g}")
    if kind == "noise" and not x:
        where = "on clean text"
    size = points(abs(gap))
    if not float(size):
        return f"level {where}"
    return f"{size} points {'ahead' if gap > 0 else 'behind'} {where}"


def value(curve: Curve, x: float) -> str:
    """Return the score of a curve at a place, with its spread over folds."""
    rows = zip(curve.x, curve.score, curve.spread, strict=True)
    score, spread = next((pair for place, *pair in rows if place == x), (None, None))
    if score is None:
        return NOTHING
    return points(score) if spread is None else f"{points(score)} ± {points(spread)}"


def places(finding: CurveFinding) -> list[float]:
    """Return every x that some layer has."""
    return sorted({x for curve in finding.curves for x in curve.x})
