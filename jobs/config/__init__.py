"""The run config: one YAML file, checked and frozen.

Here stands what can be said of configs before one is read, so that the command line knows its
choices without what reads and checks them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import resources
from typing import Literal

Engine = Literal["auto", "process", "ray"]
Stage = Literal["prepare", "extract", "measure", "probe", "rank"]  # in their order
VectorFormat = Literal["parquet", "lance", "faiss", "npy"]  # that vectors are exported in
FULL_VIEWS = {"count": 16, "sample": 1000}  # as in the papers
RECIPES = resources.files("layerrank.jobs") / "recipes"


def recipes() -> list[str]:
    """Return the names of the built-in recipes."""
    files = [file.name for file in RECIPES.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return what an error adds of a name that is none: the nearest that there is, if any."""
    near = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
