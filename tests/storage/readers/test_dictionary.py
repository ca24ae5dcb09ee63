"""The data dictionary is that of the schemas and the views."""

from __future__ import annotations

from layerrank.storage.readers.dictionary import page
from tests.support.places import PROJECT


def test_the_committed_page_is_current() -> None:
    committed = (PROJECT / "docs" / "tables.md").read_text(encoding="utf-8")
    assert committed == page(), "run `make docs`"
