"""Corpora: where texts come from, and which labelled tasks are made of their columns.

A block for each kind of source and each type of task. What is done with them is an entry each of
`KINDS` in `jobs.prepare.sources` and of `TYPES` in `jobs.tasks.types`.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from layerrank.jobs.config.blocks import (
    LATER,
    Block,
    Count,
    Later,
    Name,
    OwnName,
    require_distinct,
)
from layerrank.jobs.config.printable import Discreet
from layerrank.operators.prompts.templates import Template, read_template

_TEXT = {"type": "string"}
Names = Annotated[  # one, or a list
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}),
]
_SHOWN = 12  # names that an error lists
Format = Literal["parquet", "arrow", "feather", "jsonl", "json", "csv", "tsv", "text"]


def _known_encoding(name: str) -> str:
    try:
        codecs.getincrementaldecoder(name)
        b"a".decode(name, "ignore")  # which codecs of bytes cannot do
    except LookupError:
        raise ValueError("is no encoding of text that Python knows; such as latin-1") from None
    return name


Encoding = Annotated[str, AfterValidator(_known_encoding)]
Delimiter = Annotated[
    str,
    BeforeValidator(lambda value: "\t" if value == "tab" else value),
    Field(pattern=r"^[\t !#-~]$"),  # one byte, that neither quotes a cell nor ends a row
]
Skip = Literal["null", "empty", "whitespace", "too_short"]  # why a text is no prompt
Prompt = Annotated[
    Template,
    BeforeValidator(read_template),
    PlainSerializer(lambda prompt: prompt.written),
    WithJsonSchema(
        {"anyOf": [_TEXT, {"type": "object", "properties": {"chat": _TEXT}, "required": ["chat"]}]}
    ),
]


# Sources: the first key of a block is the one that says which it is.


class BuiltinSource(Block):
    """A corpus that every installation has."""

    builtin: Literal["docstrings"]
    per_library: Count = Field(300, description="passages per library, at most")


class HubSource(Block):
    """A dataset of the Hugging Face hub; `split` may join several with +."""

    hub: str = Field(min_length=1)
    config: str | None = None
    split: str = "train"
    revision: str = "main"


class FileSource(Discreet, Block):
    """Files, local or in object storage: tables, or text with one prompt per line.

    What is text may be compressed: `.gz`, `.bz2`, `.xz` or `.zst` ends its name.
    """

    files: Names = Field(min_length=1, description="paths, URIs or glob patterns")
    format: Literal["auto", Format] = "auto"
    encoding: Encoding | None = Field(
        None, description="of texts that are not UTF-8 and have no byte-order mark, such as latin-1"
    )
    delimiter: Annotated[Delimiter | None, LATER] = Field(
        None,
        description="between the columns of CSV and TSV, one character or tab; default: of TSV a "
        "tab, of CSV whichever of , ; tab | its first rows have alike",
    )


class FolderSource(Discreet, Block):
    """A folder of one's own texts, or one file; `jobs.prepare.folders` says what is read."""

    folder: str = Field(min_length=1, description="path or URI")
    encoding: Encoding | None = Field(None, description="as of files")
    delimiter: Annotated[Delimiter | None, LATER] = Field(None, description="as of files")
    text_column: Annotated[str, LATER] = Field("text", description="of tables")
    label_column: Annotated[str | None, LATER] = Field(
        None, description="of tables; default: label, if there is one"
    )


class MtebSource(Block):
    """The texts that tasks of mteb encode, each once; the tasks are scored by mteb itself."""

    mteb: Names = Field(min_length=1, description="tasks, benchmarks, paper-32, or paper-31")
    modules: Names = Field((), description="Python modules that define tasks of your own")


Source = BuiltinSource | HubSource | FileSource | FolderSource | MtebSource


# Tasks. Settings of the protocol belong to the scores of a task, not to its items. Of prompts the
# scores depend by the vectors that they are made from.
PROMPTS = {"prompt", "query_prompt", "document_prompt"}
PROTOCOL = {
    *PROMPTS,
    "folds",
    "samples_per_label",
    "samples",
    "max_documents",
    "documents_per_fold",
    "test_fraction",
}


class TaskConfig(Block):
    """What tasks have in common: fields that end in `_column` name columns of the source."""

    texts: ClassVar[tuple[str, ...]] = ()  # those of them whose columns hold texts
    ids: ClassVar[tuple[str, ...]] = ("prompt_id",)  # the columns of its items that name these
    name: Name

    @property
    def text_columns(self) -> tuple[str | None, ...]:
        """The columns whose texts the task reads; None is the dataset's text column."""
        return tuple(getattr(self, field) for field in self.texts) or (None,)

    @property
    def value_columns(self) -> tuple[str, ...]:
        """The columns that hold what is not text: labels, scores, the split."""
        fields = [name for name in type(self).model_fields if name.endswith("_column")]
        return tuple(
            column for name in fields if name not in self.texts and (column := getattr(self, name))
        )

    @property
    def repeats(self) -> int:
        """How many folds are scored: 1 of a task without folds."""
        return getattr(self, "folds", 1)

    def of_items(self) -> dict[str, Any]:
        """Return the keys that its items depend on, for their digest."""
        return self.settings(exclude=PROTOCOL)


class OneSided(TaskConfig):
    """A task whose texts are all read alike."""

    prompt: Annotated[Prompt | None, LATER] = Field(
        None,
        description="the template that the model reads its texts in, such as "
        '"query: {text}" or {chat: "{text}"}; default: that of their column in the dataset\'s '
        '`prompts`; "{text}" is the text alone',
    )


class TwoSided(TaskConfig):
    """A task of queries and documents, which may be of one column."""

    ids = ("query_id", "candidate_id")
    query_prompt: Annotated[Prompt | None, LATER] = Field(
        None, description="the template of the queries; as `prompt` of the other tasks"
    )
    document_prompt: Annotated[Prompt | None, LATER] = Field(
        None, description="the template of the documents, or candidates; as `query_prompt`"
    )


class FittedTask(OneSided):
    """A task that is fitted on one part of its items and tested on the other."""

    split_column: str | None = Field(None, description="holds train and test; else a seeded split")
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="of the items, where no column splits them"
    )
    folds: Count = Field(10, description="fits, each on other training items")


class ClassificationTask(FittedTask):
    """Predict a label from the text: logistic regression on a few examples per label."""

    type: Literal["classification"]
    label_column: str
    multi_label: bool = Field(
        False, description="a text has any number of labels, in a list or separated"
    )
    label_separator: str = Field(",", min_length=1)
    samples_per_label: Count = Field(8, description="training items of a label in a fold")


class RegressionTask(FittedTask):
    """Predict a number from the text: a regression on a sample of the training items."""

    type: Literal["regression"]
    value_column: str
    samples: Count = Field(2048, description="training items of a fold, at most")


class ClusteringTask(OneSided):
    """Find the labels again without seeing them: k-means against the labels."""

    type: Literal["clustering"]
    label_column: str
    split_column: str | None = Field(None, description="if given, only its test rows are clustered")
    max_documents: Count | None = Field(None, description="items, at most; default: all")
    documents_per_fold: Count = Field(2048, description="items of a fold, at most")
    folds: Count = Field(10, description="clusterings, each of other items")


class TestedTask(TaskConfig):
    """A task on rows that belong to no part of the data, or to its test split."""

    split_column: str | None = Field(None, description="if given, only its test rows are scored")


class PairTask(OneSided, TestedTask):
    """A task on pairs of texts."""

    texts = ("first_column", "second_column")
    ids = ("first_id", "second_id")
    first_column: str
    second_column: str


class PairClassificationTask(PairTask):
    """Tell pairs that belong together from others: average precision of their similarity."""

    type: Literal["pair_classification"]
    label_column: str = Field(description="1 or 0, true or false")


class StsTask(PairTask):
    """Semantic similarity of pairs: rank correlation of the cosine with people's scores."""

    type: Literal["sts"]
    score_column: str


class RerankingTask(TwoSided, TestedTask):
    """Order each query's own candidates, one a row: mean average precision."""

    texts = ("query_column", "candidate_column")
    type: Literal["reranking"]
    query_column: str
    candidate_column: str
    relevance_column: str = Field(description="whole number, 0 = not relevant")


class RetrievalTask(TwoSided):
    """Find the documents that belong to a query among those of all queries: nDCG@10."""

    texts = ("query_column", "document_column")
    type: Literal["retrieval"]
    query_column: str
    document_column: str | None = Field(None, description="default: the text column")
    relevance_column: str | None = Field(
        None, description="whole number, 0 = not relevant; default: a row's document is relevant"
    )


class MtebTask(TaskConfig):
    """A task of mteb, scored by mteb's own evaluators on the stored vectors."""

    texts = ("text_column",)
    type: Literal["mteb"]
    name: str = Field(min_length=1)
    text_column: Literal["text"] = "text"
    task_column: Literal["task"] = "task"
    asked_column: Annotated[Literal["prompt_type"], LATER] = "prompt_type"


class OwnTask(OneSided):
    """A task of the user's own, scored by a class; docs/own.md says what that has.

    Keys that end in `_column` name columns, whose cells the class gets; others are its options.
    """

    model_config = ConfigDict(extra="allow")
    type: OwnName = Field(title="package.module:Class")
    folds: Count = Field(1, description="scores that the class gives")

    @model_validator(mode="after")
    def _names_columns(self) -> OwnTask:
        for key, column in (self.model_extra or {}).items():
            if key.endswith("_column") and not isinstance(column, str):
                raise ValueError(f"{key} names a column, and {column!r} is no text")
        return self

    @property
    def columns(self) -> dict[str, str]:
        """The columns of the cells that the class gets, by their keys without `_column`."""
        extra = self.model_extra or {}
        ending = "_column"
        return {k.removesuffix(ending): extra[k] for k in sorted(extra) if k.endswith(ending)}

    @property
    def value_columns(self) -> tuple[str, ...]:
        """The columns that hold what is not text."""
        return tuple(dict.fromkeys(self.columns.values()))

    @property
    def options(self) -> dict[str, Any]:
        """What the class is made with."""
        extra = self.model_extra or {}
        return {key: value for key, value in extra.items() if not key.endswith("_column")}

    def of_items(self) -> dict[str, Any]:
        """Return the keys that its items depend on, under one, whatever names the user chose."""
        names = {name for name in self.settings() if name.endswith("_column")}
        return {"own": self.settings(include={"type", "name", *names})}


class OwnTextTask(OwnTask):
    """A task of your own on single texts, scored by a class: docs/own.md."""

    model_config = ConfigDict(
        json_schema_extra={
            "not": {"anyOf": [{"required": [side]} for side in ("first_column", "second_column")]}
        }
    )
    texts = ("text_column",)
    text_column: str | None = Field(None, description="default: that of the dataset")


class OwnPairTask(OwnTask):
    """A task of your own on pairs of texts, scored by a class: docs/own.md."""

    texts = ("first_column", "second_column")
    ids = ("first_id", "second_id")
    first_column: str
    second_column: str


_OWN, _OWN_PAIRS = "own", "own_pairs"  # tags of these blocks, in the place of a type


def _tag(task: Any) -> str:  # noqa: ANN401  (whatever the YAML held)
    """Return which block a task is read as, by its type; of an own one by its columns too."""
    given = task if isinstance(task, Mapping) else dict(task) if isinstance(task, Block) else {}
    kind = str(given.get("type"))
    if ":" not in kind:
        return kind
    return _OWN_PAIRS if {"first_column", "second_column"} & given.keys() else _OWN


_TAGGED = (
    Annotated[ClassificationTask, Tag("classification")]
    | Annotated[RegressionTask, Tag("regression")]
    | Annotated[ClusteringTask, Tag("clustering")]
    | Annotated[PairClassificationTask, Tag("pair_classification")]
    | Annotated[StsTask, Tag("sts")]
    | Annotated[RerankingTask, Tag("reranking")]
    | Annotated[RetrievalTask, Tag("retrieval")]
    | Annotated[MtebTask, Tag("mteb")]
    | Annotated[OwnTextTask, Tag(_OWN)]
    | Annotated[OwnPairTask, Tag(_OWN_PAIRS)]
)


def _known_type(task: Any) -> Any:  # noqa: ANN401
    known = [tag.tag for _, tag in map(get_args, get_args(_TAGGED)) if not tag.tag.startswith(_OWN)]
    given = task if isinstance(task, Mapping) else {}
    if isinstance(task, Block) or _tag(given) in (*known, _OWN, _OWN_PAIRS):
        return task
    said = f"type is {given['type']!r}, not" if "type" in given else "a task has a name and a type:"
    raise ValueError(
        f"{said} one of {', '.join(map(repr, known))}, or a class of your own, package.module:Class"
    )


Task = Annotated[_TAGGED, Discriminator(_tag), BeforeValidator(_known_type)]


class DatasetConfig(Discreet, Block):
    """A corpus, and the labelled tasks made of its columns."""

    name: Name
    source: Source
    text_column: str = Field("text", description="the column whose texts are read")
    id_column: str | None = Field(None, description="names a row; a name that two rows have stops")
    limit: Count | None = Field(None, description="source rows read, in source order")
    min_chars: Annotated[int, Field(ge=0)] = Field(1, description="0 keeps blank texts too")
    shard_prompts: Count = Field(2048, description="prompts per shard, about")
    fewest_shards: Annotated[Count, Later(before=1)] = Field(
        8, description="so that every core has some, if each then has 50 prompts or more"
    )
    prompts: Annotated[Literal["auto"] | dict[str, Prompt] | None, LATER] = Field(
        None,
        description="templates that the model reads texts in, by column: "
        '{title: "query: {text}", body: "passage: {text}"}; a task\'s own stands before. Of a '
        "dataset of mteb, by what mteb calls prompts: query, document, a task or a type of tasks, "
        "or one of these and a side, as STS12 or Retrieval-query. auto: those that the model comes "
        "with, in config_sentence_transformers.json, and for tasks of mteb first in its registry",
    )
    tasks: tuple[Task, ...] = ()

    @field_validator("prompts", mode="before")
    @classmethod
    def _templates(cls, given: Any) -> Any:  # noqa: ANN401
        if given is None or given == "auto":
            return given
        if not isinstance(given, Mapping):
            raise ValueError(
                'give auto, or columns with a template each: {body: "passage: {text}"}'
            )
        found = {}
        for name, each in given.items():
            try:
                found[str(name)] = read_template(each)
            except ValueError as error:
                raise ValueError(f"{name}: {error} (got {each!r})") from None
        return found

    @field_validator("source", mode="before")
    @classmethod
    def _which_source(cls, value: Any) -> Any:  # noqa: ANN401
        kinds: dict[str, type[Block]] = {next(iter(k.model_fields)): k for k in get_args(Source)}
        if isinstance(value, Block):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"give a mapping with exactly one of {', '.join(kinds)}")
        given = [kind for kind in kinds if kind in value]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(kinds)}; got {sorted(value)}")
        return kinds[given[0]].model_validate(value)

    @field_validator("tasks")
    @classmethod
    def _distinct(cls, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        require_distinct([task.name for task in tasks], "task name ")
        return tasks

    @model_validator(mode="before")
    @classmethod
    def _tasks_of_mteb(cls, values: Any) -> Any:  # noqa: ANN401
        """Fill in the tasks that an mteb source names; its texts are taken as they are."""
        source = values.get("source") if isinstance(values, Mapping) else None
        if not (isinstance(source, Mapping) and "mteb" in source):
            return values
        try:
            known = MtebSource.model_validate(source)
        except ValidationError:
            return values  # the field itself says what is wrong
        own = [key for key in ("limit", "min_chars", "text_column", "id_column") if key in values]
        tasks = values.get("tasks", ())
        if not isinstance(tasks, (list, tuple)) or not all(
            isinstance(task, Mapping) and task.get("type") == "mteb" for task in tasks
        ):
            own.append("tasks")
        if own:
            raise ValueError(
                f"a dataset of mteb has the texts and tasks that mteb gives it: leave out "
                f"{', '.join(own)}"
            )
        from layerrank.operators.benchmark.tasks import task_names  # noqa: PLC0415  (imports mteb, seconds)

        names = task_names(known.mteb, known.modules)
        return {**values, "tasks": [{"type": "mteb", "name": name} for name in names]}

    @model_validator(mode="after")
    def _mteb_from_mteb(self) -> DatasetConfig:
        named = [task.name for task in self.tasks if isinstance(task, MtebTask)]
        if named and not isinstance(self.source, MtebSource):
            raise ValueError(
                f"task {named[0]} of type mteb brings its own texts: name it in "
                "`source: {mteb: …}` or in the run's `tasks: {mteb: …}`"
            )
        return self

    @model_validator(mode="after")
    def _prompts_of_known(self) -> DatasetConfig:
        given = self.prompts if isinstance(self.prompts, dict) else {}
        known, what = [*self.text_columns], "text column"
        if given and isinstance(self.source, MtebSource):
            from layerrank.operators.benchmark.prompts import prompt_names  # noqa: PLC0415  (imports mteb)

            names = [task.name for task in self.tasks]
            known, what = prompt_names(names), "prompt of its tasks"
        unknown = [name for name in given if name not in known]
        if unknown:
            some = ", ".join(known[:_SHOWN]) + (", …" if len(known) > _SHOWN else "")
            raise ValueError(f"prompts: {unknown[0]} is no {what}; choose from {some}")
        return self

    @property
    def keeps_blank(self) -> bool:
        """Whether empty and whitespace texts are prompts: mteb scores them, and so may a user."""
        return self.min_chars == 0 or isinstance(self.source, MtebSource)

    def skipped(self, column: str, text: str | None) -> Skip | None:
        """Return why the text of a column is not a prompt, or None if it is one."""
        if text is None:
            return "null"
        if self.keeps_blank:
            return None
        if not text:
            return "empty"
        if not text.strip():
            return "whitespace"
        short = column == self.text_column and len(text) < self.min_chars
        return "too_short" if short else None

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Every column whose texts become prompts.

        The text column first, unless every task names columns of its own and none is asked for.
        """
        read = [column for task in self.tasks for column in task.text_columns]
        if None in read or not self.tasks or "text_column" in self.model_fields_set:
            read.insert(0, self.text_column)
        return tuple(dict.fromkeys(column for column in read if column is not None))

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read."""
        columns = [*self.text_columns, *([self.id_column] if self.id_column else [])]
        for task in self.tasks:
            columns += task.value_columns
        return tuple(dict.fromkeys(columns))
