"""What the registry says of every metric, against the reading guide."""

import re

import pytest

from layerrank.operators.analysis.labelfree import READ_AS
from layerrank.operators.metrics.registry import METRICS, enough_prompts
from tests.support.places import PROJECT

GUIDE = (PROJECT / "docs" / "metrics.md").read_text()
NOT_KNOWN = {"twonn": "1600", "dime": "1000"}  # what their sections have instead of a safe number


@pytest.mark.parametrize("name", METRICS)
def test_a_usable_value_needs_what_the_guide_says(name: str) -> None:
    row = next(line for line in GUIDE.splitlines() if line.startswith(f"| [{METRICS[name].title}]"))
    fewest, usable = row.split(" | ")[4:6]
    assert int(re.findall(r"\d+", fewest)[0]) == METRICS[name].fewest
    count, per_feature = re.findall(r"^([\d,]+)( D)?", usable)[0] if usable[0] != "n" else ("", "")
    needed = int((count or NOT_KNOWN[name]).replace(",", ""))
    for features in (384, 1024):
        assert enough_prompts(name, features) == needed * (features if per_feature else 1)


def test_every_direction_is_of_a_metric_and_in_the_guide() -> None:
    assert set(READ_AS) <= set(METRICS)
    for name, metric in METRICS.items():
        section = GUIDE.split(f"\n## {metric.title}\n", 1)[1].split("\n## ", 1)[0]
        stated = re.search(r"\*\*Which way is better\*\*: (.*?)\n- ", section, re.DOTALL)
        assert stated is not None
        for words, direction in (
            ("neither", None),
            (("high", "the paper finds higher"), "high"),
            (("low", "a lower"), "low"),
        ):
            if stated[1].startswith(words):
                assert READ_AS.get(name) == direction
