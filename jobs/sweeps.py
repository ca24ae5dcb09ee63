"""Several subjects in one run: checkpoints of a model over training, and models side by side."""

from __future__ import annotations

from collections.abc import Sequence

from jobs import wording_sweep
from jobs.findings import Findings, ModelFinding, OvertakingFinding, SubjectFinding, SweepFinding
from jobs.subjects import step_of
from operators.ranking.overtaking import overtakings


def sweeps(subjects: Sequence[SubjectFinding], level: float) -> list[SweepFinding]:
    """Return every sweep of the run, with when each layer overtook the last one."""
    return [_sweep(checkpoints, level) for checkpoints in _trajectories(subjects)]


def side_by_side(subjects: Sequence[SubjectFinding]) -> list[ModelFinding]:
    """Return the models of a run that has several, of a sweep the newest checkpoint."""
    newest = {same[-1].name: same[-1] for same in _trajectories(subjects)}
    models = [each for each in subjects if newest.get(each.name, each) is each]
    return [_model(each) for each in models] if len(models) > 1 else []


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
    sentence = wording_sweep.sentence(checkpoints, found, level)
    return SweepFinding(newest.name, revisions, steps, found, sentence)


def _known(value: float | None) -> float:
    return float("nan") if value is None else value


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
