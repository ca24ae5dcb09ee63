"""The Python API: rank the layers of a model, and look at what a run has left.

Every error is an `Error`, with the sentence that the command line would print: a `UsageError` where
what was asked for cannot be done as it stands, a `RunError` where it failed.
"""

from __future__ import annotations

import html
import json
import shutil
import tempfile
import traceback
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from layerrank import given
from layerrank.jobs import whole
from layerrank.jobs.cluster import console
from layerrank.jobs.cluster.errors import USAGE, explain
from layerrank.jobs.config import Stage
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.printable import know_secrets, without_secrets
from layerrank.jobs.config.run import of_values
from layerrank.jobs.config.settings import StorageConfig
from layerrank.jobs.config.stored import stored
from layerrank.jobs.prepare.folders import with_folders
from layerrank.jobs.report import page
from layerrank.jobs.run import open_root, partition
from layerrank.storage.manifest import require, require_format
from layerrank.storage.pages import vectors as vectors_of
from layerrank.storage.partition import Partition, partitions
from layerrank.storage.root import Root
from layerrank.storage.sql import SECONDS, answering

if TYPE_CHECKING:
    import pandas as pd
    from sentence_transformers import SentenceTransformer

    from layerrank.jobs.vectors import TextVectors


class Error(Exception):
    """Whatever LayerRank cannot do; its text is one sentence for people."""


class UsageError(Error, ValueError):
    """What was asked for cannot be done as it stands."""


class RunError(Error, RuntimeError):
    """It was begun and failed; the same call goes on from there."""


@contextmanager
def _ours() -> Iterator[None]:
    try:
        yield
    except Error:
        raise
    except Exception as error:
        message, code = explain(error)
        told = (UsageError if code == USAGE else RunError)(message)
        shown = "".join(traceback.format_exception(error))  # of the cause, by Python
        if without_secrets(shown) != shown:
            raise told from None
        raise told from error


@dataclass(frozen=True)
class Report:
    """The report of a run: shown as a page in a notebook, as text anywhere else.

    `html` is a whole page without a script, `markdown` the same in text, `data` what report.json
    holds.
    """

    html: str
    markdown: str
    data: Mapping[str, Any]

    def __str__(self) -> str:
        return self.markdown

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" width="100%" height="700" '
            'style="border: 0" sandbox="allow-popups"></iframe>'
        )


class Result:
    """The ranking of one model's layers, and what its run has left.

    `root` is the address of the output, `run` the run's name in it, `model_name` and `revision` are
    the model's.
    """

    def __init__(self, root: Root, ranking: Partition, storage: StorageConfig) -> None:
        self.root = root.uri
        self.run = ranking.keys["group"]
        self.model_name, self.revision = ranking.keys["model"], ranking.keys["revision"]
        self._root, self._ranking, self._storage = root, ranking, storage

    def __repr__(self) -> str:
        told = self.table.loc[self.table["recommended"], "verdict"].iloc[0]
        return f"<{self.model_name} at {self.revision}: layer {self.best_layer}, {told}>"

    @property
    def best_layer(self) -> int:
        """The layer that the ranking recommends; `verdict` says how sure that is."""
        return int(self.table.loc[self.table["recommended"], "layer"].iloc[0])

    @property
    def verdict(self) -> str:
        """What to do, in words, as the report begins with it."""
        mine = self.model_name, self.revision
        subjects = self.report().data["subjects"]
        of_mine = (each for each in subjects if (each["name"], each["revision"]) == mine)
        return str(next(of_mine)["verdict"]["sentence"])

    @cached_property
    def table(self) -> pd.DataFrame:
        """The table `ranking`, one row per layer; scores, gains and costs are 0 to 1."""
        with _ours():
            shard = require(self._root, self._ranking).only(self._root)
            found: pd.DataFrame = shard.read().to_pandas()
            return found

    def query(self, sql: str, *, seconds: float = SECONDS) -> pd.DataFrame:
        """Return the answer to SQL over the tables of the output, as `layerrank query` gives it.

        RunError where it takes more than so many seconds; a single step of DuckDB's work, as of a
        function of very long texts, is not ended within.
        """
        with _ours(), answering(self._root, sql, seconds) as relation:
            found: pd.DataFrame = relation.df()
            return found

    def report(self) -> Report:
        """Return the report of the run that ranked the model."""
        with _ours():
            folder = page.folder_of(self.run)
            if not self._root.exists(f"{folder}/report.json"):
                raise ConfigError(f"{self.root} has no report of {self.run} yet: run it again")
            names = "index.html", "report.md", "report.json"
            made, text, data = (self._root.read(f"{folder}/{name}").decode() for name in names)
            return Report(made, text, json.loads(data))

    @cached_property
    def texts(self) -> list[str | None]:
        """The texts, as they were given to `rank`; of other runs those that have a vector."""
        with _ours():
            for run in stored(self._root):
                if run["name"] == self.run and (texts := given.texts_of(self._root, run["given"])):
                    return texts
            found: list[str | None] = self._vectors(None).read()["text"].to_pylist()
            return found

    def vectors(self, layer: int | None = None) -> npt.NDArray[np.float32]:
        """Return the vectors of a layer, [texts, features], a row for each of `texts`.

        They are the best of the layer, with the transform that the ranking has; without a layer
        those that it recommends. A text that was left out, an empty one, has NaN.
        """
        with _ours():
            found = self._vectors(layer)
            table = found.read()
            nothing_1D = np.full((1, found.features), np.nan, np.float32)
            matrix_ND = np.concatenate([vectors_of(table), nothing_1D])
            rows = {text: row for row, text in enumerate(table["text"].to_pylist())}
            return matrix_ND[[rows.get(text, -1) for text in self.texts]]

    def _require_vectors(self) -> None:
        """ConfigError where scores from elsewhere are all that there is."""
        if not partitions(self._root, "embeddings", self.model_name, self.revision):
            raise ConfigError(
                f"{self.root} has scores of {self.model_name} alone: neither vectors nor the model"
            )

    def _vectors(self, layer: int | None) -> TextVectors:
        from layerrank.jobs.export import Asked  # noqa: PLC0415  (torch, seconds)
        from layerrank.jobs.vectors import layer_vectors  # noqa: PLC0415

        self._require_vectors()
        named = {"model": self.model_name, "revision": self.revision}
        return layer_vectors(self._root, Asked(layer), **named, group=self.run)

    def model(self, *, trust: bool = False) -> SentenceTransformer:
        """Return what the ranking recommends as a model of sentence-transformers.

        It is the model cut at the layer, with the pooling and the transform that were ranked. Where
        the run trusted the model's own code, or its pickles, this has to be said again: `trust`.
        """
        from layerrank.jobs.export import export, ranked, ranked_subject  # noqa: PLC0415  (torch)

        named = {"name": self.model_name, "revision": self.revision}
        with _ours(), tempfile.TemporaryDirectory(prefix="layerrank-") as folder:
            self._require_vectors()
            described = ranked_subject(self._root, self._storage, self.run, named)
            if not trust and (described.trust_remote_code or described.allow_pickle):
                raise ConfigError(
                    f"the run {self.run} trusted code of {described.model}, which would run here: "
                    "model(trust=True) trusts it too"
                )
            subject, point, evidence, prompts = ranked(
                self._root, self._storage, described=described, given=named, group=self.run
            )
            export(subject, point, Path(folder, "cut"), evidence, prompts=prompts)
            from sentence_transformers import SentenceTransformer  # noqa: PLC0415

            return SentenceTransformer(str(Path(folder, "cut")))


def rank(
    model: object = None,
    texts: object = None,
    labels: object = None,
    *,
    output: str | Path | None = None,
    text_column: str = "text",
    label_column: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    **settings: Any,  # noqa: ANN401  (whatever the keys of a config hold)
) -> Result:
    """Rank the layers of a model on texts with labels, or run a config, and return the result.

    `model` is a hub id, a folder, or a mapping of the keys of a subject (`{"model": …, "dtype":
    "bfloat16"}`). `texts` are a list of them, or a table with a column of them: pandas, Polars,
    Arrow, `datasets.Dataset`, a mapping of columns. `labels` are a list of the same length, or a
    column of that table, by default `label` if there is one: texts and whole numbers are classes,
    of which one is told from the others; other numbers are predicted; lists are several labels of a
    text. The path of a file or a folder is read as by `--texts`. Instead of texts a config may
    stand there, the path of a YAML file, the name of a recipe, or a mapping: `model` then takes the
    place of its subjects, or is None. A YAML file or a mapping may stand first, alone. Of several
    models the result is of the first, and `open` gives the others.

    `output` is a folder or an s3:// prefix, in which the same call goes on and makes nothing twice;
    without one it is the config's, or a temporary folder, which goes with the result. Every further
    keyword is a key of a config, and goes before what a config says: `extract={"max_tokens": 128}`,
    `views={"count": 0}`, `cluster={"engine": "ray"}`. The work is driven from this process, as by
    the command line.

    UsageError for what cannot be done as it stands, RunError for what failed.
    """
    with _ours(), _hushed(quiet):
        columns = text_column, label_column
        values, found = given.asked(model, texts, labels, columns, settings)
        access = _access(values.get("storage"))
        temporary = None
        place = str(output or values.get("output") or "")
        if not place:
            place = temporary = tempfile.mkdtemp(prefix="layerrank-")
        try:
            if found:
                values["datasets"] = [found.read_from(Root(place, access.options()))]
            config = of_values({"name": given.NAME, **values}, "what was given")
            root = open_root(config, place)  # what may not be written to is told before
            if found:
                found.write(root)
            where = whole.Where(place, overwrite=overwrite, folder=given.folder_of(texts, model))
            with whole.opened(with_folders(config), where) as run:
                whole.make(run, get_args(Stage), page.publish)
            first = partition("ranking", run.subjects[0], run.config)
            result = Result(run.root, first, config.storage)
        except BaseException:
            if temporary:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        if temporary:
            weakref.finalize(result, shutil.rmtree, temporary, ignore_errors=True)
        return result


def open(
    output: str | Path,
    run: str | None = None,
    *,
    model: str | None = None,
    revision: str | None = None,
    storage: Mapping[str, Any] | None = None,
) -> Result:
    """Return the result that a finished output holds: a folder, or an s3:// prefix.

    Of several, `run`, `model` and `revision` say which. `storage` are the keys of a config's block
    of that name, where the usual environment variables do not say how S3 is reached. UsageError if
    there is no ranking, or still several.
    """
    with _ours():
        access = _access(storage)
        root = Root(str(output), access.options())
        require_format(root)
        asked = {"group": run, "model": model, "revision": revision}
        known = partitions(root, "ranking")
        found = [
            each
            for each in known
            if all(value in (None, each.keys[key]) for key, value in asked.items())
        ]
        if len(found) == 1:
            return Result(root, found[0], access)
        shown = [
            f"{each.keys['model']} at {each.keys['revision']} (run {each.keys['group']})"
            for each in found or known
        ]
        if not known:
            raise ConfigError(f"{root.uri} holds no ranking; `layerrank run` makes one")
        what = "several rankings" if found else "no such ranking"
        raise ConfigError(
            f"{root.uri} holds {what}: give run, model, revision of {', '.join(shown)}"
        )


def _access(storage: Mapping[str, Any] | None) -> StorageConfig:
    """Return how object storage is reached; no value of it is shown in an error."""
    know_secrets({"storage": storage})
    try:
        return StorageConfig.model_validate(storage or {})
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(("storage", *map(str, problem["loc"])))
        raise ConfigError(f"{key}: {problem['msg'].removeprefix('Value error, ')}") from None


@contextmanager
def _hushed(on: bool) -> Iterator[None]:
    before = console.quiet(True)
    console.quiet(on or before)
    try:
        yield
    finally:
        console.quiet(before)
