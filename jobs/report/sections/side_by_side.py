"""Several models in one run, on relative depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup, escape

from jobs.report import wording
from jobs.report.charts import (
    ACCENT,
    FOURTH,
    SECOND,
    THIRD,
    Line,
    Size,
    defined,
    drawing,
    finish,
    label_ends,
    new_axes,
    to_svg,
    variable,
)
from jobs.report.findings import ModelFinding, Series, SubjectFinding
from jobs.report.gallery import drawn
from jobs.report.guide import link_to
from jobs.report.sections.ranking import NARROW, WIDE
from jobs.report.sections.training import _trajectories, depth
from operators.metrics.registry import METRICS, unit_of


def side_by_side(subjects: Sequence[SubjectFinding]) -> list[ModelFinding]:
    """Return the models of a run that has several, of a sweep the newest checkpoint."""
    newest = {same[-1].name: same[-1] for same in _trajectories(subjects)}
    models = [each for each in subjects if newest.get(each.name, each) is each]
    return [_model(each) for each in models] if len(models) > 1 else []


def _model(subject: SubjectFinding) -> ModelFinding:
    first = [row for row in subject.layers if row.rank == 1]
    best = min(first, key=lambda row: row.layer, default=None)
    return ModelFinding(
        name=subject.name,
        revision=subject.revision,
        blocks=subject.blocks,
        best=best.layer if best else None,
        best_depth=depth(best.layer, subject.last) if best else None,
        best_score=best.score if best else None,
        gain=best.gain if best else None,
        gain_low=best.gain_low if best else None,
        gain_high=best.gain_high if best else None,
        recommended=subject.verdict.layer,
        recommended_depth=depth(subject.verdict.layer, subject.last),
    )


_SMALL = Size(320, 200, left=56)
_COLOURS = (ACCENT, SECOND, THIRD, FOURTH)
_DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2), (2, 2), (8, 2, 2, 2))
_MOST_DOTS = 32  # on a curve; more would touch
_SWATCH = (34, 10)  # pixels
_SCORE = ("Score", "score, points")
_LONG_UNIT = 20  # characters that fit beside the axis


@dataclass(frozen=True)
class SidePlot:
    """A metric of every model as the page shows it; no drawing where no model has a value."""

    title: str
    link: str
    says: str
    source: str
    svg: Markup | None


def swatch(index: int) -> Markup:
    """Return the line of the model with this number, for a legend."""
    colour, dashes = _style(index)
    width, height = _SWATCH
    return Markup(
        '<svg viewBox="0 0 {w} {h}" aria-hidden="true"><path d="M0 {y}H{w}" fill="none" '
        'stroke="{colour}" stroke-width="2.2" stroke-dasharray="{dashes}"/></svg>'
    ).format(
        w=width,
        h=height,
        y=height / 2,
        colour=variable(colour),
        dashes=escape(" ".join(f"{each:g}" for each in dashes) or "none"),
    )


def score_plots(models: Sequence[SubjectFinding], name: str) -> dict[str, Markup]:
    """Return the score of every model for wide and for narrow windows; {} without scores."""
    curves = [_score_curve(each) for each in models]
    if not any(defined(curve) for curve in curves):
        return {}
    return {
        "wide": _draw(curves, f"{name}-wide", replace(WIDE, right=16), _SCORE, named=True),
        "narrow": _draw(curves, f"{name}-narrow", NARROW, _SCORE, named=False),
    }


def metric_plots(models: Sequence[SubjectFinding], dataset: str, name: str) -> list[SidePlot]:
    """Return a plot of every metric's main variant that one of the models has on a dataset."""
    by_model = [{each.metric: each for each in drawn(model, dataset)} for model in models]
    found = []
    for index, metric in enumerate(m for m in METRICS if any(m in each for each in by_model)):
        series = [each.get(metric) for each in by_model]
        curves = [_series_curve(*pair) for pair in zip(models, series, strict=True)]
        known = next(each for each in series if each is not None)
        told = METRICS[metric]
        unit = unit_of(metric, known.variant)
        how = wording.vectors_of(known.norm, known.pooling)
        some = any(defined(curve) for curve in curves)
        found.append(
            SidePlot(
                told.title,
                link_to(told.title),
                told.says,
                f"{how[0].upper()}{how[1:]}.",
                _draw(curves, f"{name}-{index}", _SMALL, (told.title, unit), named=False)
                if some
                else None,
            )
        )
    return found


def _score_curve(model: SubjectFinding) -> Line:
    x = [depth(row.layer, model.last) for row in model.layers]
    y = [float("nan") if row.score is None else 100 * row.score for row in model.layers]
    return Line(model.name, x, y)


def _series_curve(model: SubjectFinding, series: Series | None) -> Line:
    values = series.values if series else []
    x = [depth(each.layer, model.last) for each in values]
    return Line(model.name, x, [float("nan") if v.value is None else v.value for v in values])


@drawing()
def _draw(
    curves: Sequence[Line], name: str, size: Size, what: tuple[str, str], *, named: bool
) -> Markup:
    """Draw the curves over relative depth; `named` writes the models' names at their ends."""
    title, unit = what
    figure, axes = new_axes(size, curves if named else [])
    for index, curve in enumerate(curves):
        colour, dashes = _style(index)
        marker = "o" if len(curve.x) <= _MOST_DOTS else None
        axes.plot(
            curve.x,
            curve.y,
            color=colour,
            linestyle=(0, dashes) if dashes else "-",
            linewidth=2,
            marker=marker,
            markersize=3,
        )
    axes.set_ylabel(unit, fontsize=12 if len(unit) <= _LONG_UNIT else 10)
    finish(axes, [0, 1], "relative depth")
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "0.25", "0.5", "0.75", "1"])
    if named:
        label_ends(axes, curves, size)
    words = " ".join(_course(curve) for curve in curves if defined(curve))
    return to_svg(figure, name, f"{title} against relative depth, one curve per model", words)


def _style(index: int) -> tuple[str, tuple[float, ...]]:
    """Return colour and dashes of a model's curve: sixteen that can be told apart."""
    turn = index // len(_COLOURS)
    return _COLOURS[index % len(_COLOURS)], _DASHES[(index + turn) % len(_DASHES)]


def _course(curve: Line) -> str:
    pairs = defined(curve)
    low, high = min(pairs, key=lambda pair: pair[1]), max(pairs, key=lambda pair: pair[1])
    return (
        f"{curve.name}: from {pairs[0][1]:.4g} at depth {pairs[0][0]:.2f} to {pairs[-1][1]:.4g} at "
        f"{pairs[-1][0]:.2f}; lowest {low[1]:.4g} at {low[0]:.2f}, highest {high[1]:.4g} at "
        f"{high[0]:.2f}."
    )
