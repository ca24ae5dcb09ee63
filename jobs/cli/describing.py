"""What there is to choose from, and whether a config is one: recipes, ls, validate, schema."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from layerrank.jobs.cli.parser import build
from layerrank.jobs.cluster.console import answer
from layerrank.jobs.cluster.errors import DONE, USAGE
from layerrank.jobs.config import RECIPES, did_you_mean
from layerrank.jobs.config import recipes as names_of_recipes
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.printable import printable

_SCHEMA = "https://json-schema.org/draft/2020-12/schema"
_WORDS = {"string": "text", "boolean": "true or false", "null": "null", "object": "mapping"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_SHOWN = 8  # choices of a key
_WIDEST = 60  # characters of a column
_LONGEST = 130  # of a sentence about a recipe
Node = Mapping[str, Any]  # of a JSON Schema


def recipes(arguments: argparse.Namespace) -> int:
    """List the recipes with what each is about, or show one."""
    names = names_of_recipes()
    if arguments.name is None:
        _columns([[name, _about(name)] for name in names])
        return DONE
    if arguments.name not in names:
        raise ConfigError(
            f"unknown recipe {arguments.name!r}; built-in recipes: {', '.join(names)}"
            f"{did_you_mean(arguments.name, names)}"
        )
    for line in _text(arguments.name).splitlines():
        answer(line, raw=True)
    return DONE


def _text(name: str) -> str:
    return (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")


def _about(name: str) -> str:
    """Return how the comment at the head of a recipe begins: a sentence, or less of a long one."""
    head = re.match(r"(?:# ?.*\n)+", _text(name))
    said = " ".join(line.lstrip("# ") for line in (head[0] if head else "").splitlines())
    first = said.split(". ")[0].rstrip(".")
    return first if len(first) <= _LONGEST else first.split(": ")[0]


def ls(arguments: argparse.Namespace) -> int:
    """List the metrics, the types of tasks, or the keys of a config."""
    lists = {"metrics": _metrics, "tasks": _tasks, "keys": _keys}
    _columns(lists[arguments.what]())
    return DONE


def _metrics() -> list[list[str]]:
    """Return each metric: its name, what it is measured on, its unit, what it says."""
    from layerrank.operators.metrics.registry import (  # noqa: PLC0415  (numpy, for this alone)
        METRICS,
        Layers,
        Prompts,
        Tokens,
        Views,
    )

    of = {
        Tokens: "tokens of each prompt",
        Prompts: "vectors of all prompts",
        Views: "augmented views",
        Layers: "two layers",
    }
    return [[name, of[type(each.measured)], each.unit, each.says] for name, each in METRICS.items()]


def _tasks() -> list[list[str]]:
    """Return each type of task: its columns, in brackets those that need not be, and its score."""
    from layerrank.jobs.config.datasets import Task  # noqa: PLC0415  (pydantic, as below)

    found = []
    for kind, _ in map(get_args, get_args(get_args(Task)[0])):
        columns = [
            name if field.is_required() else f"[{name}]"
            for name, field in kind.model_fields.items()
            if name.endswith("_column")
        ]
        (name,) = get_args(kind.model_fields["type"].annotation) or ["package.module:Class"]
        about = (kind.__doc__ or "").partition("\n")[0]
        given = ", ".join(columns) if name != "mteb" else "source: {mteb: NAMES}"
        others = ", any other" if kind.model_config.get("extra") == "allow" else ""
        found.append([name, given + others, about])
    return found


def _keys() -> list[list[str]]:
    """Return each key of a config: its default, its type, its unit or what it is."""
    kinds: dict[tuple[str, str, str], dict[str, None]] = {}
    of: dict[tuple[str, str, str], dict[str, None]] = {}
    for key, default, kind, about, whose in _walk(schema_of_runs()):
        line = key, default, about
        kinds.setdefault(line, {})[kind] = None
        of.setdefault(line, {}).update({whose: None} if whose else {})
    rows = []
    for (key, default, about), found in kinds.items():
        several = [*of[key, default, about]] if len(found) == 1 else []  # else a kind tells which
        whose = f"of {', '.join(several)}" if several else ""
        rows.append([key, default, " | ".join(found), "; ".join(filter(None, [about, whose]))])
    return rows


def _walk(
    whole: Node, node: Node | None = None, above: str = "", of: str = ""
) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield the keys of a block and of those in it: default, type, description.

    Last which of several kinds the block is, if there are several.
    """
    node = whole if node is None else node
    for name, known in node["properties"].items():
        key = f"{above}{name}"
        options = [*_options(whole, known)]
        several = [*_options(whole, next(_arrays(options), {}).get("items", {}))]
        inner = [(f"{key}.", each) for each in options if _is_block(each)]
        inner += [(f"{key}.*.", each) for each in several if _is_block(each)]
        if not inner:
            default = json.dumps(known["default"]) if "default" in known else "all"
            if name in node.get("required", ()):
                default = "required"
            yield key, default, _kind(whole, known), known.get("description", ""), of
        for place, block in inner:
            yield from _walk(whole, block, place, _tag(block) if len(inner) > 1 else of)


def _is_block(node: Node) -> bool:
    return "properties" in node and "additionalProperties" in node


def _tag(block: Node) -> str:
    """Return what tells a kind of block from others: its type, or its first key."""
    first, *_ = block["properties"]
    kind = block["properties"].get("type", {"const": first})
    return str(kind.get("const", kind.get("title")))


def _arrays(options: Sequence[Node]) -> Iterator[Node]:
    return (each for each in options if "items" in each)


def _options(whole: Node, node: Node) -> Iterator[Node]:
    """Yield what a value may be, as the schema has it."""
    if "$ref" in node:
        yield from _options(whole, whole["$defs"][node["$ref"].rpartition("/")[2]])
    elif several := node.get("anyOf") or node.get("oneOf"):
        for each in several:
            yield from _options(whole, each)
    else:
        yield node


def _kind(whole: Node, node: Node) -> str:
    """Return in words what a value may be."""
    found = []
    for each in _options(whole, node):
        bounds = [f"{sign} {each[name]}" for name, sign in _BOUNDS.items() if name in each]
        choices = each.get("enum") or ([each["const"]] if "const" in each else [])
        if 0 < len(choices) <= _SHOWN:
            found.append(" | ".join(map(str, choices)))
        elif "items" in each:
            found.append(f"list of {_kind(whole, each['items'])}")
        else:
            kind = str(each.get("type", "string"))
            found.append(" ".join([_WORDS.get(kind, kind), *bounds]))
    return " or ".join(dict.fromkeys(found))


def validate(arguments: argparse.Namespace) -> int:
    """Say whether a config is a valid one, from it alone, and what is wrong with its keys."""
    from layerrank.jobs.config.run import problems  # noqa: PLC0415

    found = problems(arguments.config, arguments.sets, arguments.limit)
    for line in found:
        sys.stderr.write(f"layerrank: {printable(line)}\n")
    if found:
        return USAGE
    answer(
        f"{arguments.config} is valid; only the config was read: `plan` looks at data and models"
    )
    return DONE


def schema(_arguments: argparse.Namespace) -> int:
    """Print the JSON Schema of a config, with which editors complete and check."""
    from layerrank.jobs.config.run import ScoresConfig  # noqa: PLC0415

    runs, scores = schema_of_runs(), ScoresConfig.model_json_schema()
    whole = {
        "$schema": _SCHEMA,
        "title": "A config of LayerRank",
        "if": {"required": ["scores"]},
        "then": scores,
        "else": {key: value for key, value in runs.items() if key != "$defs"},
        "$defs": runs["$defs"],
    }
    for line in json.dumps(whole, indent=1, ensure_ascii=False).splitlines():
        answer(line, raw=True)
    return DONE


def schema_of_runs() -> dict[str, Any]:
    """Return the JSON Schema of the config of a run, as its YAML is written."""
    from layerrank.jobs.config.run import RunConfig  # noqa: PLC0415
    from layerrank.operators.metrics.registry import METRICS  # noqa: PLC0415

    found = RunConfig.model_json_schema()
    # `tasks: {mteb: …}` is short for a dataset of these.
    of_mteb = {"$ref": "#/$defs/MtebSource", "description": "tasks of mteb by name"}
    found["properties"]["tasks"] = of_mteb
    found["required"] = [name for name in found["required"] if name != "datasets"]
    found["anyOf"] = [{"required": [name]} for name in ("datasets", "tasks")]
    # One on pairs of texts may be read as one on texts with more keys.
    tasks = found["$defs"]["DatasetConfig"]["properties"]["tasks"]["items"]
    tasks["anyOf"] = tasks.pop("oneOf")
    metrics = found["$defs"]["MeasureConfig"]["properties"]["metrics"]
    metrics["description"] = "what is measured; `layerrank ls metrics` lists them"
    metrics["items"] = {"anyOf": [{"enum": [*METRICS]}, {"type": "string"}]}
    return found


def completion(arguments: argparse.Namespace) -> int:
    """Print what makes a shell complete commands, options, recipes and files."""
    import shtab  # noqa: PLC0415  (for this alone)

    for line in shtab.complete(build(), shell=arguments.shell).splitlines():
        answer(line, raw=True)
    return DONE


def _columns(rows: Sequence[Sequence[str]]) -> None:
    """Answer with rows as columns; what is far longer than usual goes on into the next one."""
    widths = [min(max(map(len, column)), _WIDEST) for column in zip(*rows, strict=True)][:-1]
    for *first, last in rows:
        cells = [cell.ljust(width) for cell, width in zip(first, widths, strict=True)]
        answer("  ".join([*cells, last]).rstrip())
