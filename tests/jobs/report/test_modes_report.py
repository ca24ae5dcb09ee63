"""What a report says about two kinds of prompts, on findings made by hand."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from jobs.report import page as report
from jobs.report.findings import ExampleFinding, LayerModesFinding, ModesFinding, TraitFinding
from jobs.report.sections import modes as wording_modes
from jobs.report.sections.modes import mode_plots
from tests.support.by_hand import findings, subject

HOSTILE = '<script>alert(1)</script>|"&`x`'


def _trait(
    name: str, effect: float | None, low: float | None = None, high: float | None = None
) -> TraitFinding:
    measure = "cramers_v" if name == "dataset" else "cliffs_delta"
    return TraitFinding(name, measure, effect, low, high, 40, None if effect is not None else "why")


def _tested(
    number: int,
    p: float | None = 0.2,
    *traits: TraitFinding,
    **other: Any,  # noqa: ANN401
) -> LayerModesFinding:
    bimodal = p is not None and p <= 0.05
    examples = [
        ExampleFinding(mode, 1.0, number, "texts", 3, HOSTILE)
        for mode in ("low", "high")
        if bimodal
    ]
    row = LayerModesFinding(
        number, 40, 0, 0.01 + number / 100, p, p, bimodal, 2, 2.0, 1.0, 3.0, 0.25,
        [0.5, 1.5, 2.5, 3.5], [10, 5, 25], [*traits], examples, None,
    )  # fmt: skip
    return replace(row, **other)


def _finding(*layers: LayerModesFinding, variant: str = "alpha=1") -> ModesFinding:
    return ModesFinding("prompt_entropy", variant, "none", [*layers])


def _page(found: ModesFinding | None) -> str:
    return report.render(findings(subject(modes=found)))["index.html"].decode()


LENGTH = _trait("n_tokens", 0.816, 12.0, 1044.0)
SHARE = _trait("first_token_share", -0.9995, 0.5, 0.01)
NOTHING_KNOWN = _tested(0, None, reason="too few", counts=[], edges=[])


TWO = "the entropies of the prompts fall into two groups."
SAYS = {
    "none": (
        _finding(_tested(0, 0.21), _tested(1, 0.6)),
        "No layer's entropies fall into two groups: the smallest corrected p is 0.21, from 40 "
        "prompts.",
    ),
    "untested": (_finding(NOTHING_KNOWN), "No layer could be tested: too few."),
    "one": (
        _finding(NOTHING_KNOWN, _tested(1, 0.01, LENGTH)),
        f"In layer 1 {TWO} What separates the groups best in layer 1 is length: Cliff's delta 0.82 "
        "(medians: 12 tokens in the lower group, 1,044 tokens in the upper). An entropy in nats "
        "can be no higher than the log of the length: with maxEntropy first in "
        "measure.normalizations that ceiling is taken away.",
    ),
    "several": (
        _finding(*(_tested(n, 0.01, LENGTH, SHARE) for n in (0, 2, 3, 4, 7))),
        f"In layers 0, 2 to 4 and 7 {TWO} They are furthest from a single one in layer 7. "
        "What separates the groups best in layer 7 is first-token share: Cliff's delta -0.99 "
        "(medians: 50 % in the lower group, 1 % in the upper).",
    ),
    "a comb": (
        _finding(*(_tested(n, 0.01, LENGTH, peaks=7 - n) for n in (1, 2))),
        "In layers 1 and 2 the entropies have more than two peaks (6 in layer 1), as short texts "
        "can give, one for every length. What separates the groups best in layer 2 is length: "
        "Cliff's delta 0.82 (medians: 12 tokens in the lower group, 1,044 tokens in the upper). An "
        "entropy in nats can be no higher than the log of the length: with maxEntropy first in "
        "measure.normalizations that ceiling is taken away.",
    ),
    "two and a comb": (
        _finding(_tested(1, 0.01, SHARE), _tested(9, 0.01, SHARE, peaks=3)),
        f"In layer 1 {TWO} What separates the groups best in layer 1 is first-token share: Cliff's "
        "delta -0.99 (medians: 50 % in the lower group, 1 % in the upper). In layer 9 the "
        "entropies have more than two peaks (3), as short texts can give, one for every length.",
    ),
    "weak": (
        _finding(_tested(3, 0.01, _trait("dataset", 0.2), _trait("n_tokens", None))),
        f"In layer 3 {TWO} Nothing that is measured separates the groups well in layer 3; the most "
        "is dataset, Cramér's V 0.20.",
    ),
    "unknown": (
        _finding(_tested(3, 0.01, _trait("dataset", None))),
        f"In layer 3 {TWO} No trait of the prompts could be compared.",
    ),
}


@pytest.mark.parametrize("name", SAYS)
def test_the_sentence_says_where_and_why(name: str) -> None:
    found, says = SAYS[name]
    assert wording_modes.sentence(found) == says


def test_a_share_of_the_maximum_needs_no_word_on_length() -> None:
    found = _finding(_tested(1, 0.01, LENGTH), variant="alpha=1,maxEntropy")
    assert "nats" not in wording_modes.sentence(found)
    assert wording_modes.unit_name(found) == "share of the maximum"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.0, "1.00"), (0.9996, "0.99"), (-0.9996, "-0.99"), (-1.0, "-1.00"), (0.004, "0.00"),
     (-0.004, "0.00"), (-0.125, "-0.12"), (None, "-")],
)  # fmt: skip
def test_only_a_full_effect_is_shown_as_1(value: float | None, shown: str) -> None:
    assert wording_modes.effect(_trait("n_tokens", value)) == shown


def test_every_layer_has_a_histogram_with_words() -> None:
    layers = [_tested(n, 0.01 if n % 2 else 0.5, LENGTH) for n in range(60)]
    plots = mode_plots(_finding(*layers, NOTHING_KNOWN), "m")
    assert [plot.label for plot in plots] == ["", "two groups"] * 30 + [""]
    assert plots[-1].svg is None
    for plot in plots[:2]:
        drawn = ElementTree.fromstring(str(plot.svg))
        title, words = drawn[0].text or "", drawn[1].text or ""
        assert title == f"Entropies of the prompts in layer {plot.layer}"
        assert "40 prompts from 0.5 to 3.5 nats, most of them from 2.5 to 3.5." in words
        assert ("part at 2.000; 25 % are in the upper one" in words) == (plot.label != "")
    assert sum(len(str(plot.svg)) for plot in plots if plot.svg) < 60 * 6000
    ids = [each for plot in plots for each in re.findall(r'id="([^"]*)"', str(plot.svg))]
    assert len(ids) == len(set(ids))


def test_the_page_has_the_section_only_where_layers_were_tested() -> None:
    assert "Two kinds of prompts?" not in _page(None)
    page = _page(_finding(_tested(0), _tested(1, 0.01, LENGTH, SHARE, _trait("dataset", None))))
    assert page.count("Two kinds of prompts?") == 1
    assert HOSTILE not in page
    assert html.escape(HOSTILE, quote=False).split("|")[0] in page
    assert "Dataset: why." in page
    assert 'aria-label="Prompts nearest to the modes of layer 1"' in page
    assert '<td class="top">\N{MINUS SIGN}0.99</td>' in page
    assert "The same for the other layers" not in page
    markdown = report.render(findings(subject(modes=_finding(_tested(1, 0.01, LENGTH)))))[
        "report.md"
    ]
    assert (
        "| 1 | 2 | 1.000 and 3.000 | 2.000 | 25 % | 0.82 (12 tokens, 1,044 tokens) |"
        in markdown.decode()
    )


def test_the_findings_are_in_the_json() -> None:
    content = subject(modes=_finding(_tested(1, 0.01, LENGTH)))
    found = json.loads(report.render(findings(content))["report.json"])["subjects"][0]["modes"]
    (layer,) = found["layers"]
    assert (layer["bimodal"], layer["split"], layer["traits"][0]["effect"]) == (True, 2.0, 0.816)
    assert [each["text"] for each in layer["examples"]] == [HOSTILE, HOSTILE]
