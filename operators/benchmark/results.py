"""Results as mteb writes them, so that its own tools read one layer as if it were one model.

`mteb.ResultCache("<root>/mteb/layer-07").load_results()` reads what lies under `result_path`.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from operators.benchmark.encoder import model_meta
from operators.benchmark.names import parse

if TYPE_CHECKING:
    from mteb import TaskResult

META_FILE = "model_meta.json"


def result_path(model_name: str, revision: str, layer: int, task: str) -> str:
    """Return where a task's result of one layer goes, relative to the root of a run.

    `mteb/layer-07/results/<org>__<model>/<revision>/<Task>.json`: the folder of a layer is one
    result cache, and mteb looks below `results`. `model_meta_json` goes into `META_FILE` beside it.
    """
    return str(PurePosixPath(f"mteb/layer-{layer:02d}", _in_cache(model_name, revision, task)))


def model_meta_json(model_name: str, revision: str) -> str:
    """Return mteb's `model_meta.json`, without which it passes a folder of results over."""
    return json.dumps(model_meta(model_name, revision).to_dict(), default=str, indent=4)


def result_json(result: TaskResult) -> str:
    """Return a result as mteb writes it: scores rounded to 6 decimals, with times and versions."""
    with TemporaryDirectory() as folder:
        # The file format is mteb's own business, and it writes only to a path.
        path = Path(folder, "result.json")
        result.to_disk(path)
        return path.read_text(encoding="utf-8")


def write_result(folder: Path, model_name: str, revision: str, task: str, text: str) -> None:
    """Write a result and the model's description into a local folder that is one result cache."""
    path = folder / _in_cache(model_name, revision, task)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.with_name(META_FILE).write_text(model_meta_json(model_name, revision), encoding="utf-8")


def _in_cache(model_name: str, revision: str, task: str) -> PurePosixPath:
    model = model_meta(model_name, revision).model_name_as_path()
    # A revision may be a git reference with slashes; mteb expects one folder for it.
    return PurePosixPath("results", model, revision.replace("/", "__"), f"{parse(task).task}.json")
