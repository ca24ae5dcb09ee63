"""What the ranking of an output says of the layer that is exported, or which one it recommends."""

from __future__ import annotations

from typing import Any

from jobs.config import ConfigError
from jobs.export import Evidence
from operators.subject import Subject
from storage.manifest import Manifest, require
from storage.partition import partitions
from storage.root import Root
from storage.shards import read_table


def ranked_layer(
    root: Root, subject: Subject, layer: int | None, group: str | None = None
) -> tuple[dict[str, Any], Evidence]:
    """Return the row of a layer in the ranking of a subject, and what a model card cites of it.

    Without a layer it is the recommended one. ConfigError if the output has no ranking of the
    subject, several that recommend different vectors, or none of the layer.
    """
    found = [
        require(root, where)
        for where in partitions(root, "ranking")
        if (where.keys["model"], where.keys["revision"]) == (subject.name, subject.revision)
        and group in (None, where.keys["group"])
    ]
    if not found:
        known = {f"{p.keys['model']} at {p.keys['revision']}" for p in partitions(root, "ranking")}
        raise ConfigError(
            f"{root.uri} has no ranking of {subject}; it has: {', '.join(sorted(known)) or 'none'}"
        )
    if len(found) > 1:
        groups = ", ".join(each.partition.keys["group"] for each in found)
        raise ConfigError(f"{root.uri} has several rankings of {subject}: {groups}; give --group")
    return _row(root, found[0], layer)


def _row(root: Root, ranking: Manifest, layer: int | None) -> tuple[dict[str, Any], Evidence]:
    rows = read_table(root, ranking.objects()[0]).to_pylist()
    wanted = [
        row for row in rows if (row["recommended"] if layer is None else row["layer"] == layer)
    ]
    if not wanted:
        layers = ", ".join(str(row["layer"]) for row in rows)
        raise ConfigError(f"{ranking.partition} has no layer {layer}; it has: {layers}")
    row = wanted[0]
    evidence = Evidence(
        run=ranking.partition.keys["group"],
        tasks=len(ranking.settings["tasks"]),
        level=ranking.settings["level"],
        rank=row["rank"],
        score=row["score"],
        score_low=row["score_low"],
        score_high=row["score_high"],
        gain=row["gain"],
        gain_low=row["gain_low"],
        gain_high=row["gain_high"],
    )
    return row, evidence
