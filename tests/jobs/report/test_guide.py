"""The reading guide: every metric has its section, and the page and the recipe agree with it."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, get_args
from xml.etree import ElementTree

import pytest
import torch

from layerrank.jobs.config.run import RunConfig, load
from layerrank.jobs.config.settings import MeasureConfig
from layerrank.jobs.report import guide
from layerrank.operators.metrics import EntropyNorm
from layerrank.operators.metrics.population import Population
from layerrank.operators.metrics.registry import (
    METRICS,
    Layers,
    Parameters,
    Prompts,
    Views,
    main_variant,
    token_metrics,
    unit_of,
)
from tests.support.places import PROJECT

PARAMETERS = Parameters(normalizations=get_args(EntropyNorm))
_LINK = re.compile(r"\[([^\]]*)\]\(([^)]*)\)")


def _plain(markdown: str) -> str:
    """Return text with its links taken away and its lines joined."""
    return " ".join(_LINK.sub(r"\1", markdown).split())


@cache
def _sections() -> dict[str, str]:
    """Return the text under each title of a metric."""
    metrics = guide.source().partition("\n# The metrics\n")[2]
    found = re.split(r"^## (.*)$", metrics, flags=re.MULTILINE)[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


@cache
def _page() -> str:
    """Return the guide as it is published."""
    return guide.page("1.2.3").decode()


@cache
def _variants(name: str) -> tuple[str, ...]:
    """Return every variant that the registry stores of a metric."""
    measured = METRICS[name].measured
    rows_ND = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    if isinstance(measured, Prompts):
        return tuple(measured.compute(Population([rows_ND]), PARAMETERS))
    if isinstance(measured, Views):
        return tuple(measured.compute([rows_ND.reshape(10, 4, 24)], PARAMETERS))
    if isinstance(measured, Layers):
        return ("biased", "debiased")
    states = rows_ND.reshape(1, 40, 24)
    return tuple(
        variant for _, variant in token_metrics([states], torch.tensor([40]), [name], PARAMETERS)
    )


def test_the_guide_has_a_section_for_every_metric_and_for_no_other() -> None:
    assert list(_sections()) == [*(metric.title for metric in METRICS.values()), "Paper mode"]


@pytest.mark.parametrize("name", METRICS)
def test_a_section_says_what_the_registry_says(name: str) -> None:
    metric = METRICS[name]
    section = _plain(_sections()[metric.title])
    assert section.startswith(metric.says)
    assert metric.paper in section
    named = section.partition("- **Variants**:")[2].partition("- **")[0]
    for variant in _variants(name):
        assert unit_of(name, variant) in section, variant
        for word in variant.split(","):
            assert (f"`{word}`" if word else " empty") in named, variant
    for part in ("Range and unit", "Which way is better", "Typical", "What fools it"):
        assert part in section
    assert re.search(r"Prompts needed\*\*: (\d+)", section)


@pytest.mark.parametrize("name", METRICS)
def test_the_table_at_the_top_has_the_metric_with_its_unit(name: str) -> None:
    metric = METRICS[name]
    top = guide.source().partition("## What is measured on what")[0]
    link = f"| [{metric.title}](#{guide.anchor_of(metric.title)})"
    (row,) = [line for line in top.splitlines() if line.startswith(link)]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == 7
    assert metric.unit.startswith(cells[3])
    section = _plain(_sections()[metric.title])
    needed = re.search(r"Prompts needed\*\*: (\d+)", section)
    assert needed
    assert cells[4].split()[0].rstrip(",") == needed[1]
    assert int(needed[1]) >= metric.fewest


def test_anchors_follow_the_rule_of_github() -> None:
    assert guide.anchor_of("CKA to the last layer") == "cka-to-the-last-layer"
    assert guide.anchor_of("First-token share") == "first-token-share"
    assert guide.anchor_of("What's new, in 2 (or 3) lines?") == "whats-new-in-2-or-3-lines"
    assert guide.link_to("LiDAR") == "metrics.html#lidar"


def test_every_link_of_the_page_ends_somewhere() -> None:
    ids = re.findall(r'\bid="([^"]*)"', _page())
    assert len(ids) == len(set(ids))
    links = re.findall(r'\bhref="([^"]*)"', _page())
    assert {f"#{guide.anchor_of(metric.title)}" for metric in METRICS.values()} <= set(links)
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    elsewhere = {link for link in links if not link.startswith("#")}
    web = {link for link in elsewhere if re.match(r"https://(arxiv|doi)\.org/", link)}
    assert elsewhere - web == {"index.html", "data:,"}


def test_the_page_loads_nothing_and_is_well_formed() -> None:
    page = _page()
    assert "default-src 'none'" in page
    assert not re.findall(r"<script|@import|url\(|\bsrc=|<link(?! rel=\"icon\")", page)
    assert all('scope="' in head for head in re.findall(r"<th\b[^>]*>", page))
    body = page.partition("<body>")[2].partition("</body>")[0]
    root = ElementTree.fromstring(f"<body>{body}</body>")
    assert len(root.findall(".//table/thead")) == len(re.findall(r"^\|-", guide.source(), re.M))
    assert [heading.text for heading in root.findall(".//h1")][1:] == ["The metrics"]


def test_markup_in_the_guide_stays_text() -> None:
    html = guide.article("# A <b>title</b>\n\n<script>alert(1)</script> [x](javascript:alert(1))")
    assert "<script" not in html
    assert "<b>" not in html
    assert 'href="javascript' not in html


def test_the_guide_names_no_machine() -> None:
    assert not re.findall(r"/(?:work|home|root|tmp|usr|mnt)\b", guide.source())
    assert not re.findall(r"(?:file|http)://", guide.source())


def test_the_package_carries_the_guide_of_the_repository() -> None:
    assert guide.source() == (PROJECT / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_the_paper_recipe_has_the_settings_that_the_guide_names() -> None:
    config = load("paper")
    section = _sections()["Paper mode"]
    rows = re.findall(r"^\| (`[^|]*) \|", section, flags=re.MULTILINE)
    named = [each for row in rows for each in re.findall(r"`([\w.]+): ([^`]*)`", row)]
    assert len(named) == 13
    for key, value in named:
        found = {str(each).replace("'", "") for each in _values(config, key)}
        number = str(float(value)) if re.fullmatch(r"[\d.]+e-\d+", value) else value
        assert found == {number}, key
    metrics = ("prompt_entropy", "curvature", "dataset_entropy", "infonce", "lidar", "dime")
    assert config.measure.metrics == metrics
    assert config.subjects[0].shape is not None


def _values(config: RunConfig, key: str) -> list[object]:
    """Return what a config has under a dotted key, for each of several subjects."""
    found: list[Any] = [config.model_dump(mode="json")]
    for name in key.split("."):
        found = [each[name] for each in found]
        found = found[0] if name == "subjects" else found
    return found


def test_the_main_variants_of_the_paper_recipe_are_the_plain_ones() -> None:
    measure = load("paper").measure
    parameters = Parameters(alphas=measure.alphas, normalizations=measure.normalizations)
    mains = {name: main_variant(name, parameters) for name in measure.metrics}
    assert mains["prompt_entropy"] == mains["lidar"] == "alpha=1"
    assert MeasureConfig().normalizations[0] == "raw"
