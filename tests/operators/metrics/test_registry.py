"""What the registry says of every metric, against the reading guide."""

import re

import pytest

from operators.metrics.registry import METRICS, enough_prompts
from tests.support.places import PROJECT

NOT_KNOWN = {"twonn": "1600", "dime": "1000"}  # what their sections have instead of a safe number


@pytest.mark.parametrize("name", METRICS)
def test_a_usable_value_needs_what_the_guide_says(name: str) -> None:
    guide = (PROJECT / "docs" / "metrics.md").read_text()
    row = next(line for line in guide.splitlines() if line.startswith(f"| [{METRICS[name].title}]"))
    fewest, usable = row.split(" | ")[4:6]
    assert int(re.findall(r"\d+", fewest)[0]) == METRICS[name].fewest
    count, per_feature = re.findall(r"^([\d,]+)( D)?", usable)[0] if usable[0] != "n" else ("", "")
    needed = int((count or NOT_KNOWN[name]).replace(",", ""))
    for features in (384, 1024):
        assert enough_prompts(name, features) == needed * (features if per_feature else 1)
