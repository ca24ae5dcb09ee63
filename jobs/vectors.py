"""export-vectors: the vectors of one layer with their texts, as other tools read them.

`layer_vectors` says which vectors of a root are meant, and reads them shard by shard; `save` writes
them as a Parquet file, a Lance dataset, a FAISS index or a matrix of NumPy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from layerrank.jobs.config import VectorFormat
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.export import AS_RANKED, Asked, ranked_point, run_of, staged
from layerrank.jobs.run import partition
from layerrank.jobs.words import counted
from layerrank.operators.model.subject import Subject, Transform
from layerrank.operators.probes.fold import unit_rows
from layerrank.operators.probes.transform import FITTED, Fit, apply
from layerrank.storage import schema
from layerrank.storage.layers import Group, by_prompts, features, groups, shard_vectors
from layerrank.storage.manifest import Manifest, load, require
from layerrank.storage.pages import vector_column, vectors
from layerrank.storage.partition import CLEAN, Partition, partitions
from layerrank.storage.root import Root
from layerrank.storage.shards import Shard

# The package that a format needs; its module and our extra have the name of the format.
_PACKAGES = {"lance": "pylance", "faiss": "faiss-cpu"}
# What a text is labelled with: of a type of task the column of its items, and its type.
_LABELS: Mapping[str, tuple[str, pa.DataType]] = {
    "classification": ("label", pa.string()),
    "clustering": ("label", pa.string()),
    "regression": ("value", pa.float64()),
}


@dataclass(frozen=True)
class TextVectors:
    """The vectors of one layer of a model, with their texts: every text of `embeddings` once.

    `embeddings` and `labels`, the items of labelled tasks, are by the name of their dataset.
    """

    root: Root
    subject: Subject
    group: Group
    transform: Transform
    fit: Fit | None
    embeddings: Mapping[str, Manifest]
    labels: Mapping[str, Sequence[Manifest]]

    def __str__(self) -> str:
        vectors = ", ".join(f"{name} {value}" for name, value in asdict(self.group).items())
        return f"{self.subject}, {vectors}, transform {self.transform}"

    @cached_property
    def rows(self) -> int:
        """How many texts have a vector: all but those without a token."""
        of_datasets = self.embeddings.values()
        return sum(each.rows // len(groups(self.root, each)) for each in of_datasets)

    @cached_property
    def features(self) -> int:
        """How many numbers a vector has."""
        return max(features(self.root, each) for each in self.embeddings.values())

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns: id, dataset and text, the label or value in each task, the vector.

        The metadata say which vectors they are.
        """
        labels = {
            _column(each): pa.field(_column(each), _LABELS[each.settings["type"]][1])
            for of_dataset in self.labels.values()
            for each in of_dataset
        }
        told = {
            "model": self.subject.name,
            "revision": self.subject.revision,
            **asdict(self.group),
            "transform": self.transform,
        }
        return pa.schema(
            [
                schema.PROMPTS.field("prompt_id"),
                pa.field("dataset", pa.string(), nullable=False),
                schema.PROMPTS.field("text"),
                *labels.values(),
                schema.embeddings(self.features).field("vector"),
            ],
            metadata={"layerrank.vectors": json.dumps(told)},
        )

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows of every shard, in the order of datasets, shards and prompts."""
        for dataset, embeddings in self.embeddings.items():
            prompts = require(self.root, Partition("prompts", (dataset,)))
            for name, objects in by_prompts(self.root, embeddings).items():
                found = shard_vectors(objects, self.group)
                texts = prompts.shard(self.root, name).read(["prompt_id", "text"])
                place = found.rows_of(texts["prompt_id"].to_numpy())
                texts = texts.filter(pa.array(place >= 0))
                matrix_ND = found.matrix_ND[place[place >= 0]]
                made_ND = apply(matrix_ND, self.transform, self.fit)
                columns = {
                    "prompt_id": texts["prompt_id"],
                    "dataset": pa.repeat(dataset, texts.num_rows),
                    "text": texts["text"],
                    "vector": vector_column(np.ascontiguousarray(made_ND)),
                }
                for each in self.labels.get(dataset, ()):
                    items = [s for s in each.filled(self.root) if s.receipt.name == name]
                    column = _LABELS[each.settings["type"]][0]
                    columns[_column(each)] = _first(items, column, texts["prompt_id"])
                nothing = {f.name: pa.nulls(texts.num_rows, f.type) for f in self.schema}
                filled = {**nothing, **columns}
                yield pa.table([filled[n] for n in self.schema.names], schema=self.schema)

    def read(self) -> pa.Table:
        """Return all rows as one table."""
        return pa.concat_tables([self.schema.empty_table(), *self.tables()])


def _column(items: Manifest) -> str:
    """Return the column of a task's labels."""
    return f"{_LABELS[items.settings['type']][0]}_{items.partition.keys['task']}"


def _first(items: Sequence[Shard], column: str, wanted: pa.ChunkedArray) -> pa.Array:
    """Return what a task's items say of the `wanted` texts: of equal rows the first, else null."""
    found = [each.read(["row", "prompt_id", column]) for each in items]
    if not found:
        return pa.nulls(len(wanted))
    table = pa.concat_tables(found).sort_by("row")
    ids, first = np.unique(table["prompt_id"].to_numpy(), return_index=True)
    place = pc.index_in(wanted, value_set=pa.array(ids))
    return pc.take(table[column].take(pa.array(first)), place).combine_chunks()


def layer_vectors(
    root: Root,
    asked: Asked = AS_RANKED,
    *,
    model: str | None = None,
    revision: str | None = None,
    dataset: str | None = None,
    group: str | None = None,
) -> TextVectors:
    """Return the vectors of a layer of a root with their texts, which are read when asked for.

    What is not asked for is as the ranking has it, as for `export`: the recommended layer, or the
    best vectors of the layer that is asked for. Where nothing is ranked, a layer must be, and its
    vectors are the usual ones: final norm, mean pooling, as they are. Without a `dataset` they are
    of all datasets of the run.

    ConfigError if the root has vectors of several models, none, no ranking of them or several, or
    not these vectors.
    """
    clean = [
        each.keys for each in partitions(root, "embeddings") if each.keys["condition"] == CLEAN
    ]
    wanted = {"model": model, "revision": revision, "dataset": dataset}
    found = [
        keys for keys in clean if all(value in (None, keys[key]) for key, value in wanted.items())
    ]
    ranked = {
        (each.keys["model"], each.keys["revision"])
        for each in partitions(root, "ranking")
        if group in (None, each.keys["group"])
    }
    of = {(keys["model"], keys["revision"]) for keys in found}
    of = of & ranked if group and of & ranked else of
    if len(of) != 1:
        shown = sorted({f"{k['model']} at {k['revision']}, {k['dataset']}" for k in found or clean})
        raise ConfigError(
            f"{root.uri} has vectors of {'; '.join(shown) or 'no text'}: give --model, --revision "
            "and --dataset of one"
        )
    name, version = of.pop()
    subject, fit, names = Subject(name, version, name), None, {keys["dataset"] for keys in found}
    is_ranked = bool(group) or (name, version) in ranked
    if is_ranked and (None in asked or asked.transform in FITTED):
        point, _ = ranked_point(root, subject, asked, 0, group)
        asked, fit = Asked(point.layer, point.norm, point.pooling, point.transform), point.fit
        kept = run_of(root, subject, group)
        names &= {each["name"] for each in kept["config"]["datasets"]} if kept else names
    if asked.layer is None or (asked.transform in FITTED and fit is None):
        raise ConfigError(
            f"{root.uri} has no ranking of {subject}: give --layer, and --transform raw or l2"
        )
    of_layer = Group(asked.layer, asked.norm or "final", asked.pooling or "mean")
    every = {n: require(root, partition("embeddings", subject, n)) for n in sorted(names)}
    embeddings = {n: each for n, each in every.items() if each.filled(root)}
    if not embeddings:
        raise ConfigError(f"{root.uri}: no text of {subject} has a vector")
    for each in embeddings.values():
        if of_layer not in (held := groups(root, each)):
            kinds = sorted({f"norm {one.norm} with pooling {one.pooling}" for one in held})
            raise ConfigError(
                f"{each.partition} has no vectors of layer {of_layer.layer}, norm {of_layer.norm}, "
                f"pooling {of_layer.pooling}; it has layers {held[0].layer} to {held[-1].layer}, "
                f"{', '.join(kinds)}"
            )
    labels: dict[str, list[Manifest]] = {}
    for where in partitions(root, "tasks"):
        items = load(root, where) if where.keys["dataset"] in embeddings else None
        if items and items.settings["type"] in _LABELS:
            labels.setdefault(where.keys["dataset"], []).append(items)
    how = asked.transform or "raw"
    return TextVectors(root, subject, of_layer, how, fit, embeddings, labels)


class Saved(NamedTuple):
    """Where vectors were written and, if they lie beside them, their texts; which they are."""

    place: str
    texts: str
    vectors: TextVectors

    def __str__(self) -> str:
        texts = f"; texts in {self.texts}" if self.texts else ""
        rows, dim = self.vectors.rows, self.vectors.features
        return f"{self.place}: {counted(rows, 'vector')} of {dim:,} features, {self.vectors}{texts}"


def save(
    found: TextVectors,
    to: VectorFormat,
    out: str,
    options: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
) -> Saved:
    """Write vectors with their texts to `out`, which appears when it is whole.

    `parquet` and `lance` hold the rows of `TextVectors.tables`. `npy` is the matrix and `faiss` an
    `IndexFlatIP` of the vectors scaled to unit length, whose scores are cosines; the other columns
    lie beside it, in the order of its rows, as `OUT.texts.parquet`.

    ConfigError if a package lacks, or for an `out` that exists, unless it may be overwritten.
    """
    library = _library(to)
    above, _, name = (out.rstrip("/") if to == "lance" else out).rpartition("/")
    if not name:
        raise ConfigError(f"{out} is a folder: give --out the name of a file, as {out}x.{to}")
    folder = Root(above or ("/" if out.startswith("/") else "."), options or {})
    beside = f"{name}.texts.parquet" if to in _MATRICES else ""
    if to == "lance" and not folder.is_local:
        raise ConfigError(f"{out}: a Lance dataset is written to a folder of this machine")
    for each in filter(None, (name, beside)):
        _require_free(folder, each, to, overwrite=overwrite)
    folder.check_writable()
    if to == "lance":
        with staged(Path(folder.path(name))) as path:
            batches = (batch for table in found.tables() for batch in table.to_batches())
            reader = pa.RecordBatchReader.from_batches(found.schema, batches)
            library.write_dataset(reader, str(path), schema=found.schema)
    elif to == "parquet":
        with folder.writer(name) as stream, _rows(stream, found.schema) as file:
            for table in found.tables():
                file.write_table(table)
    else:
        columns = [each for each in found.schema.names if each != "vector"]
        texts = pa.schema([found.schema.field(each) for each in columns], found.schema.metadata)
        # The texts first: there is at no time a matrix with those of another.
        with folder.writer(name) as stream, folder.writer(beside) as other:
            write, end = _MATRICES[to](stream, found, library)
            with _rows(other, texts) as file:
                for table in found.tables():
                    file.write_table(table.select(columns))
                    write(vectors(table))
            end()
            folder.delete(name)
    return Saved(folder.place(name), beside and folder.place(beside), found)


def _library(to: VectorFormat) -> Any:  # noqa: ANN401  (neither ships types)
    """Return the package that writes a format, if it needs one; ConfigError if it is not there."""
    if to not in _PACKAGES:
        return None
    if find_spec(to) is None:
        raise ConfigError(
            f"--to {to} needs {_PACKAGES[to]}, which is not installed: "
            f"pip install 'layerrank[{to}]'"
        )
    return import_module(to)


def _require_free(folder: Root, name: str, to: VectorFormat, *, overwrite: bool) -> None:
    """ConfigError if something lies at a name that may not be replaced."""
    if not folder.exists(name):
        return
    place = folder.place(name)
    is_folder = folder.filesystem.isdir(folder.path(name))
    if is_folder != (to == "lance") or (is_folder and not folder.exists(f"{name}/_versions")):
        what = "a folder" if is_folder else "a file"
        raise ConfigError(f"{place} is {what} and no {to} of vectors; choose another --out")
    if not overwrite:
        raise ConfigError(f"{place} exists; choose another --out or give --overwrite")


def _rows(stream: IO[bytes], columns: pa.Schema) -> pq.ParquetWriter:
    """Open a Parquet file of some columns."""
    repeating = [each for each in columns.names if each not in ("prompt_id", "text", "vector")]
    return pq.ParquetWriter(stream, columns, compression="zstd", use_dictionary=repeating)


_Write = Callable[[npt.NDArray[np.float32]], object]


def _npy(stream: IO[bytes], found: TextVectors, _: object) -> tuple[_Write, Callable[[], object]]:
    """Return what writes some rows of a matrix of NumPy, and what ends it."""
    shape = (found.rows, found.features)
    head = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, head)
    return lambda matrix_ND: stream.write(matrix_ND.astype("<f4").tobytes()), lambda: None


def _faiss(
    stream: IO[bytes],
    found: TextVectors,
    library: Any,  # noqa: ANN401
) -> tuple[_Write, Callable[[], object]]:
    """Return what adds some rows to an index, and what writes it."""
    index = library.IndexFlatIP(found.features)
    writer = library.PyCallbackIOWriter(stream.write)
    return lambda matrix_ND: index.add(unit_rows(matrix_ND)), lambda: library.write_index(
        index, writer
    )


_MATRICES = {"npy": _npy, "faiss": _faiss}
