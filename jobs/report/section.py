"""What a report is made of, sections of sentences, charts and tables, and how each form says them.

A section is made from rows of tables by one file of `sections/`. Pages, Markdown and the console
are written from it here, and `data` is what report.json holds of it. A section without content is
in no form but JSON.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from layerrank.jobs.config.printable import in_markdown
from layerrank.jobs.report.charts import Chart
from layerrank.jobs.words import NOTHING, defined
from layerrank.operators.later import Later

if TYPE_CHECKING:
    from layerrank.jobs.report.drawing import draw
else:  # matplotlib is not needed to say what was found
    draw = Later("layerrank.jobs.report.drawing").draw

COLUMNS = 100  # of a console
Cell = str | tuple[str, str]  # text, and what stands small beside it or, in a head, below it
_MINUS = re.compile(r"(?<![\w.-])-(?=\d)")


@dataclass(frozen=True)
class Table:
    """A table of text: `words` are the columns that are no numbers.

    Rows in `marked` are the ones to look at, cells (row, column) in `strong` are coloured and those
    in `grey` are pale.
    """

    label: str
    head: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    words: Collection[int] = (0,)
    marked: Collection[int] = ()
    strong: Collection[tuple[int, int]] = ()
    grey: Collection[tuple[int, int]] = ()
    note: str = ""
    folded: bool = False

    def aligned(self) -> list[str]:
        """Return the table for a console; columns that do not fit are counted and left out."""
        lines = [[_plain(cell)[0] for cell in row] for row in (self.head, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        shown = max(n for n in range(len(widths) + 1) if sum(widths[:n]) + 2 * n <= COLUMNS)
        told = []
        for number, cells in enumerate(lines, -1):
            pairs = list(zip(cells, widths, strict=True))[:shown]
            padded = (cell.rjust(width) for cell, width in pairs)
            told.append(f"{'>' if number in self.marked else ' '} {'  '.join(padded)}".rstrip())
        more = len(widths) - shown
        left = f"  {more} more column{'' if more == 1 else 's'} in the report"
        return [*told, left] if more else told


@dataclass(frozen=True)
class Step:
    """A step of a numbered list: what to do, the section where it is done, and what it gave."""

    title: str
    anchor: str
    says: str


@dataclass(frozen=True)
class Section:
    """One idea of a report. `figures` are numbers to be seen first, each with what it is."""

    title: str
    anchor: str = ""
    says: Sequence[str] = ()
    figures: Sequence[tuple[str, str]] = ()
    steps: Sequence[Step] = ()
    legend: Sequence[tuple[Markup, str]] = ()
    charts: Sequence[Chart] = ()
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    parts: Sequence[Section] = ()
    link: str = ""
    folded: bool = False
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.says or self.charts or self.tables or self.steps or self.parts)


def level_swatch(opacity: float, *, dashed: bool = False) -> Markup:
    """Return the line of a level, for a legend."""
    look = "dashed" if dashed else "line"
    return Markup('<span class="{0}" style="opacity: {1}"></span>').format(look, f"{opacity:g}")


def json_bytes(data: object) -> bytes:
    """Return data as JSON: what is not a finite number is null."""
    content = json.dumps(defined(data), indent=1, allow_nan=False, ensure_ascii=False)
    return (content + "\n").encode()


def page(template: str, **given: object) -> bytes:
    """Return a page: text is escaped, and numbers in it are typeset."""
    environment = Environment(
        loader=PackageLoader("layerrank.jobs.report", "templates"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_typeset,
    )
    environment.globals.update(draw=draw, pair=_plain)
    return environment.get_template(template).render(**given).encode()


def _typeset(value: object) -> object:
    """Return text with true minus signs and dashes; what is markup stays."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "–" if value == NOTHING else _MINUS.sub("−", value)  # noqa: RUF001


def _plain(cell: Cell) -> tuple[str, str]:
    return (cell, "") if isinstance(cell, str) else cell


def console(sections: Iterable[Section]) -> list[str]:
    """Return the first table, the notes and what is said of each section as lines of text."""
    lines = []
    for section in sections:
        for table in section.tables[:1]:
            lines += ["", *table.aligned(), ""]
        for text in (*section.notes, *section.says):
            lines += [*wrapped(text), ""]
    return lines[:-1]


def wrapped(text: str) -> list[str]:
    """Return a text as lines of a console."""
    return [f"  {line}" for line in textwrap.wrap(text, COLUMNS - 2)]


def markdown(section: Section, depth: int = 2) -> str:
    """Return a section as Markdown; text in it can be no markup."""
    if section.is_empty:
        return ""
    parts = [f"{'#' * depth} {in_markdown(section.title)}"]
    parts += [f"**{in_markdown(value)}** {in_markdown(what)}" for value, what in section.figures]
    parts += map(in_markdown, section.says)
    parts += [
        f"{number}. {in_markdown(step.title)} {in_markdown(step.says)}"
        for number, step in enumerate(section.steps, 1)
    ]
    parts += [
        f"{in_markdown(each.title)}: {in_markdown(each.says)}"
        for each in section.charts
        if each.says
    ]
    parts += map(in_markdown, section.notes)
    parts += map(_table_markdown, section.tables)
    parts += [markdown(part, depth + 1) for part in section.parts]
    return "\n\n".join(filter(None, parts))


def _table_markdown(table: Table) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    columns = range(len(table.head))
    return "\n".join(
        [
            f"{in_markdown(f'{table.label}. {table.note}'.strip())}\n",
            line(in_markdown(" ".join(filter(None, _plain(cell)))) for cell in table.head),
            line("---" if column in table.words else "--:" for column in columns),
            *(
                line(in_markdown(" ".join(filter(None, _plain(c)))) for c in row)
                for row in table.rows
            ),
        ]
    )
