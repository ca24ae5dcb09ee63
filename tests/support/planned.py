"""A plan against what a run wrote: objects exactly, bytes within a tenth."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from layerrank.jobs.plan.plan import Plan
from layerrank.storage.root import BOOKS


def assert_planned(planned: Plan, output: Path) -> None:
    """Hold the objects of every table, all bytes, and those of the tables of vectors and states."""
    written: dict[str, list[int]] = defaultdict(list)
    for path in output.rglob("*"):
        if path.is_file():
            table, *inner = path.relative_to(output).parts
            if table == BOOKS:  # manifests and indexes of the tables, and what is noted
                noted = inner[0] in ("runs", "models", "reports")
                table = "report" if noted else inner[1]
            written[table].append(path.stat().st_size)
    tables, gone = planned.tables(), planned.removed
    counts = {name: len(sizes) for name, sizes in written.items()}
    counts["embeddings"] += gone.objects
    assert {name: each.objects for name, each in tables.items()} == counts
    total = sum(map(sum, written.values())) + gone.bytes
    assert planned.total.bytes == pytest.approx(total, rel=0.1)
    for name in {"embeddings", "tokens"} & written.keys():
        size = sum(written[name]) + (gone.bytes if name == "embeddings" else 0)
        if size > total / 20:  # a smaller table may be off
            assert tables[name].bytes == pytest.approx(size, rel=0.1), name
