"""What is given from Python, as a config: texts and labels become a file of the root.

Nothing is made of texts here: they are read from that file as any other texts are, so what is left
out, counted and refused is what `docs/data.md` says.
"""

from __future__ import annotations

import difflib
import json
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from xxhash import xxh3_128_hexdigest

from layerrank.jobs.config import recipes
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.run import load, subject_of
from layerrank.jobs.words import counted
from layerrank.storage.partition import one_name
from layerrank.storage.root import BOOKS, Root

NAME = "texts"  # of the run and its dataset
_LARGEST = 128 << 20  # bytes that are read as a folder, whose task fits itself to few labels
_FILE = "texts.jsonl"
_LABEL = "label"
_CLASSES = {"name": "label", "type": "classification", "label_column": "label"}
_CONFIG_ENDINGS = (".yaml", ".yml")
_CONFIG_KEYS = {"subjects", "datasets", "tasks"}


def asked(
    model: object,
    texts: object,
    labels: object,
    columns: tuple[str, str | None],
    settings: Mapping[str, Any],
) -> tuple[dict[str, Any], Given | None]:
    """Return the keys of the config that a call of `rank` is, and the texts that are not in it."""
    if texts is None and is_config(model):
        model, texts = None, model
    if texts is None:
        raise ConfigError("no texts: give a list or a table of them with labels, or a config")
    if isinstance(texts, str) and labels is not None:
        raise ConfigError(f"texts are {texts!r:.60}: labels go with a list or a table of texts")
    of_config = config(texts)
    values = merged(of_config, settings)
    if model is not None:
        values["subjects"] = [subject(model)]
    if not of_config:
        if "subjects" not in values:
            raise ConfigError("no model: give a hub id, a folder, or a mapping of a subject's keys")
        return values, dataset(texts, labels, *columns)
    if labels is not None:
        raise ConfigError("labels are for texts; those of a config are in its datasets")
    return values, None


def is_config(given: object) -> bool:
    """Whether something stands for a config: keys of one, or the name of a YAML file."""
    if isinstance(given, Mapping):
        return bool(_CONFIG_KEYS & given.keys())
    return isinstance(given, (str, Path)) and str(given).endswith(_CONFIG_ENDINGS)


def folder_of(*given: object) -> str:
    """Return the folder of the config's file that is among what is given; else this one."""
    files = (each for each in given if isinstance(each, (str, Path)) and is_config(each))
    return str(Path(next(files, "")).parent)


def config(texts: object) -> dict[str, Any]:
    """Return the keys of the config that stands in the place of texts; none if these are texts."""
    if isinstance(texts, Mapping):
        return dict(texts) if is_config(texts) else {}
    if isinstance(texts, (str, Path)) and not _is_path(texts):
        return load(str(texts)).model_dump(exclude_unset=True)
    return {}


def _is_path(given: str | Path) -> bool:
    """Whether a file or a folder of texts is meant, and neither a config nor a recipe."""
    return not (is_config(given) or str(given) in recipes()) and (
        "://" in str(given) or Path(given).exists()
    )


def merged(block: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a config with others before them; blocks are merged key by key."""
    both = {
        key: merged(block[key], value)
        for key, value in before.items()
        if isinstance(value, Mapping) and isinstance(block.get(key), Mapping)
    }
    return {**block, **before, **both}


def subject(model: object) -> dict[str, Any]:
    """Return the subject that a model is: its name, or a mapping with the keys of a subject."""
    if isinstance(model, Mapping):
        return dict(model)
    if isinstance(model, (str, Path)):
        try:
            return subject_of(str(model)).model_dump(exclude_unset=True)
        except ConfigError as error:
            raise ConfigError(str(error).removeprefix("--subject ")) from None
    raise ConfigError(
        f"the model is {type(model).__name__}: give a hub id or a folder, such as one that "
        "save_pretrained has written"
    )


@dataclass(frozen=True)
class Given:
    """Texts, and how they are read: from a file that is written first, or from where they lie."""

    source: Mapping[str, Any]
    tasks: Sequence[Mapping[str, Any]] | None  # None: the one that a folder makes of its labels
    content: bytes = b""

    @property
    def _key(self) -> str:
        return f"{BOOKS}/texts/{xxh3_128_hexdigest(self.content)}"

    def read_from(self, root: Root) -> dict[str, Any]:
        """Return the dataset that reads the texts, below a root if they were not in a file."""
        source = dict(self.source)
        if self.content:
            is_small = self.tasks is None and len(self.content) <= _LARGEST
            file = f"{self._key}/{_FILE}"
            source = {"folder": root.place(self._key)} if is_small else {"files": root.place(file)}
        tasks = {} if self.tasks is None else {"tasks": [*self.tasks]}
        if "files" in source and self.tasks is None:
            tasks = {"tasks": [_CLASSES]}
        return {"name": NAME, "source": source, **tasks}

    def write(self, root: Root) -> None:
        """Write the texts, unless they are there."""
        if self.content and not root.exists(f"{self._key}/{_FILE}"):
            root.write(f"{self._key}/{_FILE}", self.content)


def dataset(texts: object, labels: object, text_column: str, label_column: str | None) -> Given:
    """Return the dataset that texts are, with their labels, as `columns` reads them.

    Its task is a classification of the labels; a regression where they are numbers with fractions,
    with several labels a text where they are lists; without labels there is none.
    """
    if isinstance(texts, (str, Path)):
        if labels is not None:
            raise ConfigError(f"labels of {texts} are in it, in its subfolders or label_column")
        place = str(texts) if "://" in str(texts) else str(Path(texts).absolute())
        named = {"text_column": text_column, "label_column": label_column}
        usual = {"text_column": "text", "label_column": None}
        other = {key: name for key, name in named.items() if name != usual[key]}
        return Given({"folder": place, **other}, None)
    found, named_N = columns(texts, labels, text_column, label_column)
    lines = []
    for number, text in enumerate(found):
        row = {"text": text} if named_N is None else {"text": text, "label": named_N[number]}
        try:
            lines.append(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        except UnicodeEncodeError as error:
            raise ConfigError(f"texts[{number}] cannot be written as UTF-8: {error}") from error
    return Given({}, _tasks(named_N), b"".join(lines))


def columns(
    texts: object, labels: object, text_column: str, label_column: str | None
) -> tuple[list[str | None], list[Any] | None]:
    """Return texts and labels as lists of one length; None where there are no labels.

    `texts` are a sequence of them, or a table (pandas, Polars, Arrow, `datasets.Dataset`, a mapping
    of columns) with a column of them; `labels` are a sequence, or a column of that table: without
    them that of `label_column`, which is `label` if there is one. ConfigError that says what is
    missing, has another length or is no text.
    """
    table = _table(texts)
    if table is not None:
        given = _column(table, text_column, "texts")
        if labels is None:
            labels = label_column or _label_in(table, text_column)
        if isinstance(labels, str):
            labels = _column(table, labels, "labels")
    else:
        given = _listed(texts, "texts")
    for number, text in enumerate(given):
        if not (text is None or isinstance(text, str)) and not _is_missing(text):
            raise ConfigError(f"texts[{number}] is {text!r}, {type(text).__name__}, and no text")
    found = [text if isinstance(text, str) else None for text in given]
    if not any(text and text.strip() for text in found):
        raise ConfigError(f"there is no text among the {counted(len(found), 'text')} given")
    if labels is None:
        return found, None
    named = _listed(labels, "labels")
    if len(named) != len(found):
        raise ConfigError(
            f"{counted(len(named), 'label')} for {counted(len(found), 'text')}: give one for each"
        )
    return found, [_plain(label) for label in named]


def texts_of(root: Root, run: Mapping[str, Any]) -> list[str | None] | None:
    """Return the texts that `dataset` has written for a run, in their order; None if it has not."""
    written = f"{root.place(BOOKS)}/texts/"
    for each in run["datasets"]:
        source = each["source"]
        address = str(source.get("folder") or next(iter(source.get("files", ())), ""))
        if address.startswith(written):
            name = address.removeprefix(written).partition("/")[0]
            content = root.read(f"{BOOKS}/texts/{one_name(name)}/{_FILE}")
            return [json.loads(line)["text"] for line in content.splitlines()]
    return None


def _tasks(labels: Sequence[Any] | None) -> list[dict[str, Any]] | None:
    """Return the tasks that labels make; None is the one that a folder makes of them."""
    known = [label for label in labels or () if label is not None]
    kinds = {_kind(label) for label in known}
    if not kinds:
        return []
    if len(kinds) > 1:
        shown = ", ".join(
            repr(next(each for each in known if _kind(each) is kind)) for kind in kinds
        )
        raise ConfigError(f"labels are of several kinds ({shown}): give one kind of them")
    if len({str(label) for label in known}) == 1:
        raise ConfigError(f"every label is {known[0]!r}: to tell labels apart takes two at least")
    if kinds == {list}:
        named = {"label_column": "label", "multi_label": True}
        return [{"name": "labels", "type": "classification", **named}]
    if kinds == {float} and any(label % 1 for label in known):
        return [{"name": "value", "type": "regression", "value_column": "label"}]
    return None


def _kind(label: object) -> type:
    return float if type(label) is int else type(label)


def _table(given: object) -> pa.Table | None:
    """Return a table of whatever kind as Arrow's; None of what is no table."""
    if isinstance(given, Mapping):
        if hasattr(given, "column_names"):  # a DatasetDict of the library datasets
            raise ConfigError(f"texts are splits, {', '.join(map(str, given))}: give one of them")
        lists = {str(name): _listed(each, str(name)) for name, each in given.items()}
        if len({*map(len, lists.values())}) > 1:
            lengths = ", ".join(f"{name} has {len(each):,}" for name, each in lists.items())
            raise ConfigError(f"the columns have not one length: {lengths}")
        return pa.table(lists)
    if hasattr(given, "with_format") and hasattr(given, "column_names"):  # of the library datasets
        if not hasattr(given, "num_rows"):
            raise ConfigError(
                "texts are an IterableDataset, which is read once: give a Dataset, such as "
                "Dataset.from_list(list(texts.take(1000)))"
            )
        found: pa.Table = given.with_format("arrow")[:]
        return found
    if hasattr(given, "__arrow_c_stream__") and hasattr(given, "columns"):
        return pa.table(given)
    return None


def _label_in(table: pa.Table, text_column: str) -> str | None:
    """Return the column of labels by its usual name; ConfigError if one is nearly called so."""
    names = [name for name in table.column_names if name != text_column]
    if _LABEL in names:
        return _LABEL
    near = [name for name in names if difflib.get_close_matches(_LABEL, [name.lower()], 1, 0.8)]
    if near:
        raise ConfigError(
            f"the table has no column {_LABEL!r}, but {near[0]!r}: give label_column={near[0]!r}, "
            "or leave that column out to rank without labels"
        )
    return None


def _column(table: pa.Table, name: str, what: str) -> list[Any]:
    if name not in table.column_names:
        known = ", ".join(map(repr, table.column_names))
        raise ConfigError(f"the table of {what} has no column {name!r}; it has: {known}")
    values: list[Any] = table[name].to_pylist()
    return values


def _listed(given: object, what: str) -> list[Any]:
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise ConfigError(
            f"{what} are {type(given).__name__} {given!r:.60}: give a list of them, or a table"
        )
    for name in ("to_pylist", "tolist"):  # of Arrow; of NumPy and pandas
        if hasattr(given, name):
            found: list[Any] = getattr(given, name)()
            return found
    return list(given)


def _is_missing(value: object) -> bool:
    return (isinstance(value, float) and math.isnan(value)) or type(value).__name__ == "NAType"


def _plain(label: object) -> Any:  # noqa: ANN401  (as it stands in JSON)
    """Return a label as JSON has it, numbers of numpy included."""
    if label is None or _is_missing(label):
        return None
    if isinstance(label, (str, bool)):
        return label
    if hasattr(label, "tolist"):  # of NumPy, a number or an array
        return _plain(label.tolist())
    if isinstance(label, numbers.Integral):
        return int(label)
    if isinstance(label, numbers.Real):
        return float(label)
    if isinstance(label, (list, tuple, set)):
        return [_plain(each) for each in (sorted(label) if isinstance(label, set) else label)]
    raise ConfigError(
        f"the label {label!r} is {type(label).__name__}: give text, a number or a list"
    )
