"""The reading guide of the metrics, docs/metrics.md, as a page that lies beside the report.

The package carries the same file under jobs/report/templates, so the guide needs neither the
repository nor a network.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING

from markupsafe import Markup

from layerrank.jobs.report import section
from layerrank.operators.later import Later

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
else:
    MarkdownIt = Later("markdown_it").MarkdownIt

PAGE = "metrics.html"
_NOT_IN_ANCHORS = re.compile(r"[^\w\- ]")


def anchor_of(title: str) -> str:
    """Return the id of a heading, by the same rule as GitHub's."""
    return _NOT_IN_ANCHORS.sub("", title.lower()).replace(" ", "-")


def link_to(title: str) -> str:
    """Return the address of a section, for a page in the same folder."""
    return f"{PAGE}#{anchor_of(title)}"


def source() -> str:
    """Return the guide as Markdown."""
    file = resources.files("layerrank.jobs.report") / "templates" / "metrics.md"
    return file.read_text(encoding="utf-8")


def page(version: str) -> bytes:
    """Return the guide as a page, which needs no findings."""
    return section.page("metrics.html.j2", article=article(source()), version=version)


def article(markdown: str) -> Markup:
    """Return Markdown as HTML: headings have ids, tables scroll, and markup in it stays text."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(markdown)
    for index, token in enumerate(tokens):
        if token.type == "heading_open":
            words = "".join(child.content for child in tokens[index + 1].children or ())
            token.attrSet("id", anchor_of(words))
        elif token.type == "th_open":
            token.attrSet("scope", "col")
    html = reader.renderer.render(tokens, reader.options, {})
    html = html.replace("<table>", '<div class="scroll" tabindex="0"><table>')
    return Markup(html.replace("</table>", "</table></div>"))
