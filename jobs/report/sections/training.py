"""The checkpoints of a model over training: gathered, said, and drawn as layer by step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from jobs import words
from jobs.report import wording
from jobs.report.charts import (
    ACCENT,
    CHAR_WIDTH,
    INK,
    LINE_HEIGHT,
    MUTED,
    PAPER,
    Size,
    drawing,
    new_axes,
    to_svg,
)
from jobs.report.findings import Findings, OvertakingFinding, Series, SubjectFinding, SweepFinding
from jobs.report.gallery import drawn
from jobs.report.guide import link_to
from jobs.report.wording import gain_span
from jobs.subjects import step_of
from jobs.words import NOTHING, counted, points, signed
from operators.metrics.registry import METRICS, unit_of
from operators.ranking.overtaking import overtakings

_VERDICTS = {
    "use_layer": "use layer {}",
    "keep_last": "keep the last",
    "not_enough_evidence": "not enough evidence, layer {}",
    "no_labels": "no labels, layer {}",
}


def place(revision: str | None) -> str:
    """Return a checkpoint as its step, where its revision names one."""
    if revision is None:
        return NOTHING
    step = step_of(revision)
    return revision if step is None else f"{step:,}"


def at(revision: str) -> str:
    """Return a checkpoint as it stands in a sentence."""
    return f"checkpoint {revision}" if step_of(revision) is None else f"step {place(revision)}"


def axis(revisions: Sequence[str]) -> str:
    """Return what the columns of a map are."""
    return "checkpoint" if any(step_of(each) is None for each in revisions) else "training step"


def sweep_sentence(
    checkpoints: Sequence[SubjectFinding], rows: Sequence[OvertakingFinding], level: float
) -> str:
    """Return which layers came to score above the last one, and from when on."""
    newest = checkpoints[-1]
    if not newest.is_scored:
        return f"No layer is scored at {at(newest.revision)}: nothing tells when one overtook."
    above = [row for row in rows if row.stays_above is not None]
    if not above:
        return f"At {at(newest.revision)} no layer scores above the last one, layer {newest.last}."
    order = [each.revision for each in checkpoints]
    since = min(order.index(str(row.stays_above)) for row in above)
    longest = [row.layer for row in above if row.stays_above == order[since]]
    who = f"layer {longest[0]}" if len(longest) == 1 else f"{len(longest)} of them"
    score = "scores" if len(above) == 1 else "score"
    says = (
        f"At {at(newest.revision)}, {len(above)} of the {counted(len(rows), 'layer')} below the "
        f"last {score} above it, {who} "
        f"{f'since {at(order[since])}' if since else 'in every checkpoint'}"
    )
    interval = f"{100 * level:g} % interval of the gain"
    clear = [row for row in above if row.clearly_above is not None]
    if not clear:
        return f"{says}. Of none of them does the {interval} ever lie above 0."
    soonest = min(clear, key=lambda row: order.index(str(row.clearly_above)))
    return (
        f"{says}. The {interval} lies above 0 for the first time at "
        f"{at(str(soonest.clearly_above))}, for layer {soonest.layer}."
    )


def overtaking_rows(
    sweep: SweepFinding, newest: SubjectFinding
) -> list[tuple[str, str, str, str, str]]:
    """Return layer, since when above, since when clearly, and the newest gain with its interval."""
    gains = {row.layer: row.gain for row in newest.layers}
    return [
        (
            str(row.layer),
            place(row.stays_above),
            place(row.clearly_above),
            signed(gains[row.layer]),
            gain_span(newest, row.layer),
        )
        for row in sweep.overtakings
    ]


def verdict_rows(checkpoints: Sequence[SubjectFinding]) -> list[tuple[str, ...]]:
    """Return step, last score, best layer with score, gain and interval, and the verdict."""
    return [_verdict_row(each) for each in checkpoints]


def _verdict_row(subject: SubjectFinding) -> tuple[str, ...]:
    rows = {row.layer: row for row in subject.layers}
    best = min((row.layer for row in subject.layers if row.rank == 1), default=None)
    found = rows[best] if best is not None else None
    return (
        place(subject.revision),
        points(rows[subject.last].score),
        NOTHING if found is None else str(found.layer),
        NOTHING if found is None else points(found.score),
        NOTHING if found is None else signed(found.gain),
        NOTHING if found is None else gain_span(subject, found.layer),
        _VERDICTS[subject.verdict.kind].format(subject.verdict.layer),
    )


def relative(value: float | None) -> str:
    """Return a relative depth with two decimals."""
    return NOTHING if value is None else f"{value:.2f}"


def ranked_alike(findings: Findings) -> str:
    """Return what the models have in common."""
    tasks = len({label for each in findings.subjects for label in [t.label for t in each.tasks]})
    same = f", scored on the same {counted(tasks, 'task')}" if tasks else ""
    return (
        f"{counted(len(findings.side_by_side), 'model')} read the same texts{same}. Depth is "
        "layer / last layer, so that models of different sizes lie on one axis: 0 is the input of "
        "the first block, 1 the last layer."
    )


def sweeps(subjects: Sequence[SubjectFinding], level: float) -> list[SweepFinding]:
    """Return every sweep of the run, with when each layer overtook the last one."""
    return [_sweep(checkpoints, level) for checkpoints in _trajectories(subjects)]


def in_full(findings: Findings) -> list[SubjectFinding]:
    """Return the subjects that a report shows in full: of every sweep the newest checkpoint."""
    newest = {sweep.name: sweep.revisions[-1] for sweep in findings.sweeps}
    return [
        each for each in findings.subjects if newest.get(each.name, each.revision) == each.revision
    ]


def checkpoints(findings: Findings, sweep: SweepFinding) -> list[SubjectFinding]:
    """Return the subjects of a sweep, the oldest first."""
    found = {each.revision: each for each in findings.subjects if each.name == sweep.name}
    return [found[revision] for revision in sweep.revisions]


def depth(layer: int, last: int) -> float:
    """Return the relative depth of a layer, 0..1; a model without blocks is all of it."""
    return layer / last if last else 1.0


def _trajectories(subjects: Sequence[SubjectFinding]) -> list[list[SubjectFinding]]:
    """Return the checkpoints of every model that has two or more, the oldest first.

    In the order of their steps; where one has no step in its revision, as they were given.
    """
    together: dict[str, list[SubjectFinding]] = {}
    for subject in subjects:
        together.setdefault(subject.name, []).append(subject)
    return [_by_step(same) for same in together.values() if len(same) > 1]


def _by_step(subjects: Sequence[SubjectFinding]) -> list[SubjectFinding]:
    steps = {id(each): step_of(each.revision) for each in subjects}
    if None in steps.values():
        return list(subjects)
    return sorted(subjects, key=lambda each: steps[id(each)] or 0)


def _sweep(checkpoints: Sequence[SubjectFinding], level: float) -> SweepFinding:
    newest = checkpoints[-1]
    layers = [row.layer for row in newest.layers]
    # The layers of a checkpoint with another depth are not those of the newest.
    columns = [
        {row.layer: row for row in each.layers} if each.last == newest.last else {}
        for each in checkpoints
    ]
    rows_SL = [[column.get(layer) for layer in layers] for column in columns]
    gain_SL = [[_known(row.gain if row else None) for row in rows] for rows in rows_SL]
    low_SL = [[_known(row.gain_low if row else None) for row in rows] for rows in rows_SL]
    revisions = [each.revision for each in checkpoints]
    found = [
        OvertakingFinding(
            each.layer,
            None if each.stays_above is None else revisions[each.stays_above],
            None if each.clearly_above is None else revisions[each.clearly_above],
        )
        for each in overtakings(gain_SL, low_SL, layers=layers)
        if each.layer != newest.last
    ]
    steps = [step_of(revision) for revision in revisions]
    sentence = sweep_sentence(checkpoints, found, level)
    return SweepFinding(newest.name, revisions, steps, found, sentence)


def _known(value: float | None) -> float:
    return float("nan") if value is None else value


WIDE = Size(1040, 330, left=48, right=84)
NARROW = Size(368, 280, right=64)
_SMALL = Size(320, 220, left=44, right=66)
_LEVELS = 12
_FAINTEST = 0.07
_LOGARITHMIC = 100  # from the lowest to the highest value; more would show one colour only
_BAR = 12  # pixels of the scale's width, and half of that from the map
_APART = 8  # pixels between the labels of two columns


@dataclass(frozen=True)
class HeatMap:
    """A map as the page shows it; no drawing where no checkpoint has a value."""

    title: str
    link: str
    says: str
    source: str
    svg: Markup | None


@dataclass(frozen=True)
class _Grid:
    """What a map shows: values [L, S], NaN where there is none; `best` marks each column's."""

    title: str
    unit: str
    revisions: list[str]
    values_LS: npt.NDArray[np.float64]
    best: bool = False

    @property
    def range(self) -> tuple[float, float]:
        return float(np.nanmin(self.values_LS)), float(np.nanmax(self.values_LS))

    @property
    def is_logarithmic(self) -> bool:
        low, high = self.range
        return low > 0 and high / low > _LOGARITHMIC

    def level(self, value: float) -> int:
        """Return the strength of a value's colour, 0 for the lowest."""
        low, high = self.range
        if high <= low:
            return _LEVELS - 1
        if self.is_logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return min(int(_LEVELS * (value - low) / (high - low)), _LEVELS - 1)

    def at(self, share: float) -> float:
        """Return the value at a share of the scale, 0..1."""
        low, high = self.range
        if self.is_logarithmic:
            return float(low * (high / low) ** share)
        return low + share * (high - low)


def score_maps(checkpoints: Sequence[SubjectFinding], name: str) -> dict[str, Markup]:
    """Return the map of the mean score for wide and for narrow windows; {} without scores."""
    grid = _score_grid(checkpoints, None)
    if np.isnan(grid.values_LS).all():
        return {}
    return {
        "wide": _draw(grid, f"{name}-wide", WIDE),
        "narrow": _draw(grid, f"{name}-narrow", NARROW),
    }


def task_maps(checkpoints: Sequence[SubjectFinding], name: str) -> list[HeatMap]:
    """Return a map of every task's score; none for one task, whose score is the mean."""
    tasks = checkpoints[-1].tasks
    if len(tasks) < 2:  # noqa: PLR2004
        return []
    return [
        _map(
            _score_grid(checkpoints, task.label),
            f"{name}-{index}",
            source=f"{task.type.replace('_', ' ')} on {task.dataset}, {task.metric}.",
        )
        for index, task in enumerate(tasks)
    ]


def metric_maps(checkpoints: Sequence[SubjectFinding], dataset: str, name: str) -> list[HeatMap]:
    """Return a map of every metric's main variant on a dataset."""
    newest = checkpoints[-1]
    found = []
    for index, series in enumerate(drawn(newest, dataset)):
        metric = METRICS[series.metric]
        values_LS = _columns(
            [_series_values(each, series) for each in checkpoints], [r.layer for r in newest.layers]
        )
        unit = unit_of(series.metric, series.variant)
        grid = _Grid(metric.title, unit, [each.revision for each in checkpoints], values_LS)
        how = wording.vectors_of(series.norm, series.pooling)
        found.append(
            _map(
                grid,
                f"{name}-{index}",
                link=link_to(metric.title),
                says=metric.says,
                source=f"{how[0].upper()}{how[1:]}.",
            )
        )
    return found


def _map(grid: _Grid, name: str, *, source: str, link: str = "", says: str = "") -> HeatMap:
    if np.isnan(grid.values_LS).all():
        return HeatMap(grid.title, link, says, source, None)
    notes = ["Logarithmic colours."] if grid.is_logarithmic else []
    notes += ["Blank: no value."] if np.isnan(grid.values_LS).any() else []
    source = " ".join([source, *notes])
    return HeatMap(grid.title, link, says, source, _draw(grid, name, _SMALL))


def _score_grid(checkpoints: Sequence[SubjectFinding], task: str | None) -> _Grid:
    columns = [
        {row.layer: row.score if task is None else row.tasks.get(task) for row in each.layers}
        for each in checkpoints
    ]
    values_LS = 100 * _columns(columns, [row.layer for row in checkpoints[-1].layers])
    revisions = [each.revision for each in checkpoints]
    return _Grid("Score" if task is None else task, "points", revisions, values_LS, best=True)


def _series_values(subject: SubjectFinding, like: Series) -> dict[int, float | None]:
    wanted = (like.dataset, like.metric, like.variant, like.norm, like.pooling)
    for each in subject.metrics:
        if (each.dataset, each.metric, each.variant, each.norm, each.pooling) == wanted:
            return {value.layer: value.value for value in each.values}
    return {}


def _columns(
    columns: Sequence[dict[int, float | None]], layers: Sequence[int]
) -> npt.NDArray[np.float64]:
    rows = [[column.get(layer) for column in columns] for layer in layers]
    return np.array(rows, dtype=np.float64)


@drawing()
def _draw(grid: _Grid, name: str, size: Size) -> Markup:
    figure, axes = new_axes(size, [])
    layers, checkpoints = grid.values_LS.shape
    for level in range(_LEVELS):
        cells = [
            (float(s), float(k))
            for k, s in np.argwhere(~np.isnan(grid.values_LS))
            if grid.level(grid.values_LS[k, s]) == level
        ]
        _paint(axes, cells, level)
    if grid.best:
        _mark_best(axes, grid)
    axes.set_xlim(-0.5, checkpoints - 0.5)
    axes.set_ylim(-0.5, layers - 0.5)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=MUTED, pad=6)
    _label_columns(axes, grid, size)
    shown = _thinned(layers, (size.height - size.top - size.bottom) / layers, LINE_HEIGHT)
    axes.set_yticks(shown, labels=[str(layer) for layer in shown])
    axes.set_xlabel(axis(grid.revisions), color=MUTED)
    axes.set_ylabel("layer", color=MUTED)
    _draw_scale(axes, grid, size)
    title = f"{grid.title} of every layer at every checkpoint"
    return to_svg(figure, name, title, _words(grid))


def _paint(axes: Axes, cells: Sequence[tuple[float, float]], level: int) -> None:
    """Paint the unit squares around some places in the colour of a level."""
    if not cells:
        return
    corners = [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5)]
    vertices = [(x + dx, y + dy) for x, y in cells for dx, dy in corners]
    one = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    path = Path(vertices, one * len(cells))
    axes.add_patch(
        PathPatch(path, facecolor=ACCENT, alpha=_alpha(level), linewidth=0, antialiased=False)
    )


def _alpha(level: int) -> float:
    return round(_FAINTEST + (1 - _FAINTEST) * level / (_LEVELS - 1), 3)


def _mark_best(axes: Axes, grid: _Grid) -> None:
    """Put a dot on the highest value of each column, the lowest layer of equals."""
    columns = [s for s in range(len(grid.revisions)) if not np.isnan(grid.values_LS[:, s]).all()]
    best = [int(np.nanargmax(grid.values_LS[:, s])) for s in columns]
    axes.scatter(columns, best, s=22, facecolor=PAPER, edgecolor=INK, linewidth=1.2, zorder=4)


def _label_columns(axes: Axes, grid: _Grid, size: Size) -> None:
    """Name as many columns as fit beside one another, the newest among them."""
    labels = [place(revision) for revision in grid.revisions]
    width = (size.width - size.left - size.right) / len(labels)
    half = [len(label) * CHAR_WIDTH / 2 for label in labels]
    shown: list[int] = []
    for index in reversed(range(len(labels))):
        free = not shown or (shown[-1] - index) * width >= half[index] + half[shown[-1]] + _APART
        if free:
            shown.append(index)
    axes.set_xticks(shown, labels=[labels[index] for index in shown])


def _thinned(count: int, width: float, needed: float) -> list[int]:
    """Return which of evenly spaced places get a label, the last among them."""
    every = max(math.ceil(needed / width), 1)
    return list(range(count - 1, -1, -every))


def _draw_scale(axes: Axes, grid: _Grid, size: Size) -> None:
    """Draw the colours from the lowest to the highest value at the right, with numbers."""
    across = _BAR / (size.width - size.left - size.right)
    scale = axes.inset_axes((1 + across / 2, 0, across, 1))
    scale.set_xlim(-0.5, 0.5)
    scale.set_ylim(-0.5, _LEVELS - 0.5)
    scale.patch.set_alpha(0)
    scale.spines[:].set_visible(False)
    scale.set_xticks([])
    scale.yaxis.tick_right()
    scale.tick_params(length=0, labelcolor=MUTED, pad=4)
    low, high = grid.range
    shares = (0.0, 0.5, 1.0) if high > low else (1.0,)
    for level in range(_LEVELS) if high > low else (_LEVELS - 1,):
        _paint(scale, [(0.0, float(level))], level)
    form = words.decimal if grid.unit == "points" else words.number
    scale.set_yticks(
        [share * _LEVELS - 0.5 for share in shares],
        labels=[form(grid.at(share)) for share in shares],
    )


def _words(grid: _Grid) -> str:
    low, high = grid.range
    newest = "; ".join(
        f"layer {layer}: {value:.4g}"
        for layer, value in enumerate(grid.values_LS[:, -1])
        if not np.isnan(value)
    )
    return (
        f"In {grid.unit}: lowest {low:.4g} {_where(grid, low)}, highest {high:.4g} "
        f"{_where(grid, high)}. At {at(grid.revisions[-1])}: {newest or 'no value'}."
    )


def _where(grid: _Grid, value: float) -> str:
    layer, column = np.argwhere(grid.values_LS == value)[0]
    return f"in layer {layer} at {at(grid.revisions[column])}"
