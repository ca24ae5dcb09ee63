"""A plan against what a run wrote: objects exactly, bytes within a tenth."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from jobs.plan.plan import Plan


def assert_planned(planned: Plan, output: Path) -> None:
    """Hold the objects of every table, all bytes, and those of the tables of vectors and states."""
    written: dict[str, list[int]] = defaultdict(list)
    for path in output.rglob("*"):
        if path.is_file():
            written[path.relative_to(output).parts[0]].append(path.stat().st_size)
    tables = planned.tables()
    counts = {name: len(sizes) for name, sizes in written.items()}
    assert {name: each.objects for name, each in tables.items()} == counts
    total = sum(map(sum, written.values()))
    assert planned.total.bytes == pytest.approx(total, rel=0.1)
    for name in {"embeddings", "tokens"} & written.keys():
        size = sum(written[name])
        if size > total / 20:  # a smaller table may be off
            assert tables[name].bytes == pytest.approx(size, rel=0.1), name
