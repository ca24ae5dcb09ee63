"""The values of a config before they are checked: from its YAML, with paths as they are from
anywhere, and with what `--set` and `--limit` put there.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from layerrank.jobs.config import did_you_mean
from layerrank.jobs.config.blocks import ConfigError
from layerrank.storage.readers import plain_yaml

Values = dict[str, Any]
Key = tuple[str, ...]
# Keys that hold a path, * being a member of a list, and those of a model, which may be a hub id.
_FILES: Key = ("datasets", "*", "source", "files")
_PATHS: set[Key] = {
    ("output",),
    ("scores",),
    _FILES,
    (*_FILES, "*"),
    ("datasets", "*", "source", "folder"),
}
_MODELS: set[Key] = {("subjects", "*", "model"), ("subjects", "*", "adapter")}
_KINDS: dict[type, str] = {list: "a list", str: "a text", int: "a number", float: "a number"}
_LISTS = ("subjects", "datasets", "tasks")  # whose members have names


def mapping(text: str, where: str) -> Values:
    """Return the keys of a config and their values; `where` names it in errors."""
    try:
        values = plain_yaml.load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-99-99
        # Neither the cause nor its text goes on: both show the line, which may hold a secret.
        raise ConfigError(f"{where} {_yaml_problem(error)}") from None
    if not isinstance(values, dict):
        kind = "is empty" if values is None else f"is {_KINDS.get(type(values), 'a value')}"
        raise ConfigError(f"{where} must be a mapping of keys, as `name: mine`, and {kind}")
    return values


def _yaml_problem(error: Exception) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return f"is not valid YAML: {' '.join(str(error).split())}"
    problem, mark = error.problem or "it cannot be read", error.problem_mark
    at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    if isinstance(error, plain_yaml.RefusedError):
        return f"is refused: {at}{problem}"
    problem = re.sub(r"(alias|anchor|tag|handle) .*", r"\1", problem)
    return f"is not valid YAML: {at}{problem}"


def beside(values: Any, folder: Path, at: Key = ()) -> Any:  # noqa: ANN401  (whatever the YAML held)
    """Return the values with their relative paths taken from `folder`, where the config lies.

    A model is a path if it lies there or begins with a dot, and else a hub id.
    """
    if isinstance(values, Mapping):
        return {key: beside(each, folder, (*at, str(key))) for key, each in values.items()}
    if isinstance(values, list):
        return [beside(each, folder, (*at, "*")) for each in values]
    if not isinstance(values, str) or not values or "://" in values or values.startswith("~"):
        return values
    if at not in _PATHS and not (at in _MODELS and _is_here(values, folder)):
        return values
    pattern = at[:-1] == _FILES or at == _FILES
    above = Path(glob.escape(str(folder))) if pattern and glob.has_magic(values) else folder
    return str(above / values)


def _is_here(model: str, folder: Path) -> bool:
    if model.startswith("package:"):
        return False
    with suppress(OSError):  # what no file can be called, nor be looked at
        return model.startswith(("./", "../")) or (folder / model).exists()
    return False


def with_set(values: Values, assignment: str) -> Values:
    """Return the values with `KEY=VALUE`: a dotted key, its members of lists by number or name."""
    key, separator, text = assignment.partition("=")
    # What is behind may be a secret. A colon or a blank is only in a key that names a model.
    shown = re.split(r"[=:\s]", assignment)[0]
    is_key = all(key.split(".")) and (shown == key or key.startswith("subjects."))
    if not (separator and is_key):
        raise ConfigError(
            f"{f'--set {shown}'.rstrip()}: give KEY=VALUE, such as extract.max_tokens=128 or "
            "datasets.0.limit=500; `layerrank ls keys` lists the keys"
        )
    try:
        value = plain_yaml.load(text)
    except (yaml.YAMLError, ValueError) as error:  # as in `mapping`
        raise ConfigError(f"--set {key}: the value {_yaml_problem(error)}") from None
    found: Values = _put(values, key, value, key)
    return found


def _put(block: Any, key: str, value: Any, whole: str) -> Any:  # noqa: ANN401  (as YAML has it)
    """Return a block, or a list, with a value at a dotted key of it; `whole` is all of that key."""
    above = whole[: len(whole) - len(key)].rstrip(".")
    if isinstance(block, list):
        name, index = _member(block, key, above, whole)
        rest = key[len(name) + 1 :]
        new = _put(block[index], rest, value, whole) if rest else value
        return [*block[:index], new, *block[index + 1 :]]
    if block is not None and not isinstance(block, dict):
        raise ConfigError(f"--set {whole}: {above} is a value, which has no keys")
    name, _, rest = key.partition(".")
    inner = (block or {}).get(name)
    if inner is None and name in _LISTS:
        inner = []
    return {**(block or {}), name: _put(inner, rest, value, whole) if rest else value}


def _member(block: Sequence[Any], key: str, above: str, whole: str) -> tuple[str, int]:
    """Return what a key begins with that names a member of a list, and which one that is."""
    names = {
        str(each.get("name") or each.get("model")): index
        for index, each in enumerate(block)
        if isinstance(each, Mapping)
    }
    for name in sorted(names, key=len, reverse=True):  # a name may have dots
        if f"{key}.".startswith(f"{name}."):
            return name, names[name]
    first = key.partition(".")[0]
    if first.isdecimal() and int(first) < len(block):
        return first, int(first)
    known = f"0 to {len(block) - 1}" if block else "nothing"
    if names:
        known = ", ".join(f"{name} ({index})" for name, index in names.items())
    raise ConfigError(
        f"--set {whole}: {above} has no {first!r}; it has {known}{did_you_mean(first, names)}"
    )


def limited(values: Values, most: int) -> Values:
    """Return the values, where every dataset is limited to so many source rows at most."""
    if "scores" in values:
        raise ConfigError(f"--limit {most}: a config that ranks scores has no rows to limit")
    given = values.get("datasets")
    blocks = [each for each in given or () if isinstance(each, dict)] if given else []
    if "tasks" in values or any("mteb" in (each.get("source") or ()) for each in blocks):
        raise ConfigError(f"--limit {most}: the tasks of mteb are scored on all of their texts")
    for each in blocks:
        if not isinstance(each.get("limit"), int) or each["limit"] > most:
            each["limit"] = most
    return values
