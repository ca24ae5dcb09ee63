"""The run config: one YAML file, checked and frozen.

Here stands what can be said of configs before one is read, so that the command line knows its
choices without what reads and checks them.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Literal

Engine = Literal["auto", "process", "ray"]
Stage = Literal["prepare", "extract", "measure", "probe", "rank"]  # in their order
VectorFormat = Literal["parquet", "lance", "faiss", "npy"]  # that vectors are exported in
FULL_VIEWS = {"count": 16, "sample": 1000}  # as in the papers
_NEAR = 0.75  # of 1, how much two names have in common; endings alone make many 0.7 alike
_MOST_BESIDE = 1000  # entries of a folder
RECIPES = resources.files("layerrank.jobs") / "recipes"


def recipes() -> list[str]:
    """Return the names of the built-in recipes."""
    files = [file.name for file in RECIPES.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return what an error adds of a name that is none: the nearest that there is, if any."""
    near = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def did_you_mean_path(given: str, fits: Callable[[Path], bool] = Path.exists) -> str:
    """Return what an error adds of a path where nothing is: the nearest in its folder, if any.

    Only on this machine, of what `fits`, and not in a folder so large that to list it takes long.
    An ending that is given must be near too, but what a name is near by is what stands before it.
    """
    path = Path(given)
    if "://" in given or not path.name:
        return ""
    try:
        with os.scandir(path.expanduser().parent) as entries:
            names = [each.name for each in islice(entries, _MOST_BESIDE + 1)]
    except OSError:
        return ""
    if len(names) > _MOST_BESIDE:
        return ""

    def alike(name: str) -> float:
        pairs = [(path.stem, Path(name).stem), *([(path.name, name)] if path.suffix else [])]
        return min(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    near = {name: alike(name) for name in sorted(names) if name != path.name}
    for name in sorted(near, key=near.__getitem__, reverse=True):
        found = path.with_name(name)
        if near[name] >= _NEAR and fits(found.expanduser()):
            return f"; did you mean {found}?"
    return ""
