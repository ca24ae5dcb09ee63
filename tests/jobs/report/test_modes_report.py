"""What a report says about two kinds of prompts, from rows of the table `modes`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from layerrank.jobs.report import section as writing
from layerrank.jobs.report.charts import Histogram
from layerrank.jobs.report.section import Section
from layerrank.jobs.report.sections import modes
from tests.support.by_hand import HOSTILE, NAN, rows

Row = dict[str, Any]


def _trait(name: str, effect: float, low: float = NAN, high: float = NAN) -> Row:
    measure = "cramers_v" if name == "dataset" else "cliffs_delta"
    row = {"trait": name, "measure": measure, "effect": effect, "low": low, "high": high}
    return {**row, "n_prompts": 40, "reason": "why" if effect != effect else None}  # noqa: PLR0124


def _tested(number: int, p: float = 0.2, *traits: Row, **other: Any) -> Row:  # noqa: ANN401
    plain = {"value": 1.0, "dataset": "texts", "n_tokens": 3, "shard": "s"}
    examples = [{"mode": mode, "prompt_id": number, **plain} for mode in ("low", "high")]
    row: Row = {"layer": number, "norm": "none", "metric": "prompt_entropy", "variant": "alpha=1"}
    row |= {"n_prompts": 40, "n_undefined": 0, "reason": None}
    row |= {"dip": 0.01 + number / 100, "p_value": p, "p_holm": p, "peaks": 2, "split": 2.0}
    row |= {"mode_low": 1.0, "mode_high": 3.0, "share_high": 0.25}
    row |= {"edges": [0.5, 1.5, 2.5, 3.5], "counts": [10, 5, 25]}
    return {**row, "traits": [*traits], "examples": examples, **other}


def _section(*given: Row) -> Section:
    texts = dict.fromkeys(range(60), HOSTILE)
    return modes.section_of(list(given), 0.95, texts)


LENGTH = _trait("n_tokens", 0.816, 12.0, 1044.0)
SHARE = _trait("first_token_share", -0.9995, 0.5, 0.01)
REPEATED = _trait("repeated_tokens", 0.9, 0.1, 0.6)
NOTHING_KNOWN = _tested(0, NAN, reason="too few", counts=[], edges=[])
CEILING = "log of the length"


def _several(numbers: Sequence[int], *traits: Row, **other: Any) -> list[Row]:  # noqa: ANN401
    return [_tested(n, 0.01, *traits, **other) for n in numbers]


@pytest.mark.parametrize(
    ("given", "says", "never"),
    [
        ([_tested(0, 0.21), _tested(1, 0.6)], "No layer|0.21|40 prompts", "layer 1"),
        ([NOTHING_KNOWN], "No layer could be tested: too few", "layer 0"),
        (
            [NOTHING_KNOWN, _tested(1, 0.01, LENGTH)],
            f"In layer 1 |length: Cliff's delta 0.82|12 tokens|1,044 tokens|{CEILING}",
            "furthest",
        ),
        # Two traits that are one thing are named together, the plainer first.
        (
            _several((0, 2, 3, 4, 7), LENGTH, SHARE, REPEATED),
            "In layers 0, 2 to 4 and 7 |single one in layer 7|is length: Cliff's delta 0.82|"
            f"first-token share (-0.99)|{CEILING}",
            "repeated",
        ),
        (_several((1, 2), LENGTH, REPEATED), "is repeated tokens: Cliff's delta 0.90", "length"),
        (
            [_tested(n, 0.01, LENGTH, peaks=7 - n) for n in (1, 2)],
            "In layers 1 and 2 |more than two peaks (6 in layer 1)|in layer 2 is length",
            "two groups.",
        ),
        (
            [_tested(1, 0.01, SHARE), _tested(9, 0.01, SHARE, peaks=3)],
            "In layer 1 |first-token share: Cliff's delta -0.99|50 %|1 %|peaks (3)",
            "with it",
        ),
        (
            _several([3], _trait("dataset", 0.2), _trait("n_tokens", NAN)),
            "Nothing that is measured|dataset, Cramér's V 0.20",
            "length",
        ),
        (_several([3], _trait("dataset", NAN)), "No trait", "Cramér"),
        (_several([1], LENGTH, variant="alpha=1,maxEntropy"), "length", "nats"),
    ],
)
def test_the_sentence_says_where_and_why(given: list[Row], says: str, never: str) -> None:
    (said,) = _section(*given).says
    assert [each for each in says.split("|") if each not in said] == [], said
    assert never not in said


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.0, "1.00"), (0.9996, "0.99"), (-0.9996, "-0.99"), (-1.0, "-1.00"), (0.004, "0.00"),
     (-0.004, "0.00"), (-0.125, "-0.12"), (NAN, "-")],
)  # fmt: skip
def test_only_a_full_effect_is_shown_as_1(value: float, shown: str) -> None:
    assert modes.effect(_trait("n_tokens", value)) == shown


def test_every_layer_has_a_histogram_and_the_split_where_there_are_two_groups() -> None:
    found = _section(*(_tested(n, 0.01 if n % 2 else 0.5, LENGTH) for n in range(6)), NOTHING_KNOWN)
    assert [chart.label for chart in found.charts] == ["", "two groups"] * 3 + [""]
    plots = [chart.plot for chart in found.charts]
    assert plots[-1] is None
    drawn = [plot for plot in plots if isinstance(plot, Histogram)]
    assert [plot.split for plot in drawn] == [None, 2.0] * 3
    assert "40 values from 0.5 to 3.5 nats, most of them from 2.5 to 3.5" in drawn[0].words()


def test_tables_have_the_effects_and_the_examples_of_bimodal_layers() -> None:
    found = _section(_tested(0), _tested(1, 0.01, LENGTH, SHARE, _trait("dataset", NAN)))
    tests, separates, examples = found.tables
    assert rows(tests)[1] == ["1", "40", "0.02000", "0.01"]
    medians = "medians: 12 tokens in the lower group, 1,044 tokens in the upper"
    assert rows(separates) == [
        [
            *("1", "0.01", "2", "1.000 and 3.000", "2.000", "25 %", f"0.82 ({medians})"),
            "-0.99 (medians: 50 % in the lower group, 1 % in the upper)",
            "-",
        ]
    ]
    assert separates.strong == {(0, 7)}
    assert "Dataset: why." in separates.note
    assert rows(examples)[0] == ["lower", "1.000", "3", "texts", HOSTILE]
    assert HOSTILE not in writing.markdown(found)
    assert len(_section(*(_tested(n, 0.01, LENGTH) for n in (1, 2, 3))).tables) == 2 + 3
    assert modes.section_of([], 0.95, {}).is_empty


def test_the_rows_are_the_data_and_only_bimodal_ones_have_traits() -> None:
    found = _section(_tested(0, 0.5, LENGTH), _tested(1, 0.01, LENGTH)).data["modes"]
    of_all = ("prompt_entropy", "alpha=1", "none")
    assert tuple(found[key] for key in ("metric", "variant", "norm")) == of_all
    one, two = found["layers"]
    assert (one["bimodal"], one["traits"], one["examples"]) == (False, [], [])
    assert (two["bimodal"], two["split"], two["traits"][0]["effect"]) == (True, 2.0, 0.816)
    assert [each["text"] for each in two["examples"]] == [HOSTILE, HOSTILE]
    assert "shard" not in two["examples"][0]
