"""Scores from elsewhere, ranked without a run: told as a table and, if asked for, stored."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np

from jobs.cluster.console import say
from jobs.rank.score_file import Scored, rank_file
from jobs.rank.stage import ranking_rows
from jobs.run import partition, write_table
from operators.ranking.evidence import Evidence
from operators.ranking.policy import Policy, Verdict
from storage.manifest import Manifests
from storage.root import Root

_WIDTH = 98
_UNKNOWN = "elsewhere"  # norm and pooling of vectors that this tool did not make


def rank_scores(
    path: str,
    root: Root | None,
    *,
    policy: Policy = "cheapest_equal",
    draws: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> None:
    """Rank the layers of every model in a file or folder of scores and say what was found."""
    ranked = rank_file(path, draws=draws, level=level, policy=policy, seed=seed)
    for scored, evidence, verdict in ranked:
        for line in _story(scored, evidence, verdict):
            say(line)
        if root is not None:
            _write(root, path, scored, evidence, verdict)
    if root is not None:
        say(f"  ranking: {root.place('ranking')}")


def _story(scored: Scored, evidence: Evidence, verdict: Verdict) -> Iterator[str]:
    tasks = len(evidence.tasks)
    yield f"  {scored.model} at {scored.revision}: {tasks} task{'' if tasks == 1 else 's'}"
    for note in scored.notes:
        yield f"  left out: {note}"
    yield ""
    interval = f"{100 * evidence.level:g} % interval"
    heads = ("layer", "score", interval, "rank", "mean rank", "gain", interval, "p (Holm)", "best")
    table = [(*heads, "won")]
    for row in evidence.layers:
        table.append(
            (
                str(row.layer),
                _points(row.score),
                f"{_points(row.score_low)} to {_points(row.score_high)}",
                "-" if np.isnan(row.score) else str(row.rank),
                "-" if np.isnan(row.mean_rank) else f"{row.mean_rank:.1f}",
                _points(row.gain),
                f"{_points(row.gain_low)} to {_points(row.gain_high)}",
                "-" if np.isnan(row.p_holm) else f"{row.p_holm:.2g}",
                _share(row.p_best),
                _share(row.won),
            )
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for number, cells in enumerate(table):
        chosen = number and evidence.layers[number - 1].layer == verdict.layer
        padded = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        yield f"{'>' if chosen else ' '} {'  '.join(padded)}"
    yield ""
    yield "  points: 100 x score; gain over the last layer; best: chance of the highest mean score"
    yield "  mean rank, won: over tasks; compute: the share of the blocks, as no model was measured"
    yield f"  best layer of each task: {_points(evidence.oracle)} on average"
    yield ""
    yield from (f"  {line}" for line in textwrap.wrap(verdict.sentence, _WIDTH))
    yield ""


def _points(value: float) -> str:
    return "-" if np.isnan(value) else f"{round(100 * value, 1) + 0.0:.1f}"


def _share(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.0f} %"


def _write(root: Root, path: str, scored: Scored, evidence: Evidence, verdict: Verdict) -> None:
    last = max(scored.layers)
    cost_L = np.array([layer / last if last else 1.0 for layer in scored.layers])
    rows = ranking_rows(evidence, verdict, cost_L, {"norm": _UNKNOWN, "pooling": _UNKNOWN})
    group = PurePosixPath(path).stem
    where = partition("ranking", scored.model, scored.revision, group)
    settings = {
        "scores": PurePosixPath(path).name,
        "tasks": evidence.tasks,
        "level": evidence.level,
    }
    write_table(Manifests(root), where, settings, rows)
