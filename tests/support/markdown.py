"""Tables in Markdown, as benchmarks print them for the guide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> list[str]:
    """Return the lines of a table; `align` is l or r for each column, all r by default."""
    rule = ["---" if side == "l" else "--:" for side in align or "r" * len(head)]
    return [f"| {' | '.join(line)} |" for line in (head, rule, *rows)]
