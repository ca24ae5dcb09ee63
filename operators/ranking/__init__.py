"""Ranking statistics: task scores of every layer in, evidence and a recommendation out."""

from typing import Literal

Policy = Literal["best", "cheapest_equal", "last_unless_significant"]
