"""What a report says of checkpoints over training, and of models side by side."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.findings import Findings, OvertakingFinding, SubjectFinding, SweepFinding
from jobs.subjects import step_of
from jobs.wording import NOTHING, counted, gain_span, points, signed

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


def sentence(
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
