"""Corpora and the labelled tasks made of their columns, as a config describes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from jobs.blocks import Block, Count, Name, require_distinct


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


class FileSource(Block):
    """Files, local or in object storage: Parquet, JSONL, CSV, or text with one prompt per line."""

    files: tuple[str, ...] = Field(min_length=1, description="paths, URIs or glob patterns")
    format: Literal["auto", "parquet", "jsonl", "csv", "text"] = "auto"

    @field_validator("files", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:  # noqa: ANN401
        return (value,) if isinstance(value, str) else value


class ClassificationTask(Block):
    """Predict a label from the text: logistic regression on a few examples per label."""

    type: Literal["classification"]
    name: Name
    label_column: str
    split_column: str | None = Field(None, description="holds train and test; else a seeded split")
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    samples_per_label: Count = 8
    folds: Count = 10


class ClusteringTask(Block):
    """Find the labels again without seeing them: k-means against the labels."""

    type: Literal["clustering"]
    name: Name
    label_column: str
    split_column: str | None = Field(None, description="if given, only its test rows are clustered")
    max_documents: Count | None = None
    documents_per_fold: Count = 2048
    folds: Count = 10


class RetrievalTask(Block):
    """Find a query's own document among all: cosine similarity of the vectors."""

    type: Literal["retrieval"]
    name: Name
    query_column: str
    document_column: str | None = Field(None, description="default: the text column")
    folds: Count = 10


Task = Annotated[ClassificationTask | ClusteringTask | RetrievalTask, Field(discriminator="type")]


class DatasetConfig(Block):
    """A corpus, and the labelled tasks made of its columns."""

    name: Name
    source: BuiltinSource | HubSource | FileSource
    text_column: str = "text"
    limit: Count | None = Field(None, description="source rows read, in source order")
    min_chars: Annotated[int, Field(ge=0)] = 1
    shard_prompts: Count = Field(2048, description="prompts per shard, about")
    tasks: tuple[Task, ...] = ()

    @field_validator("source", mode="before")
    @classmethod
    def _which_source(cls, value: Any) -> Any:  # noqa: ANN401
        kinds: dict[str, type[Block]] = {
            "builtin": BuiltinSource,
            "hub": HubSource,
            "files": FileSource,
        }
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
        require_distinct([task.name for task in tasks], "task")
        return tasks

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Every column whose texts become prompts, the text column first."""
        columns = [self.text_column]
        for task in self.tasks:
            if isinstance(task, RetrievalTask):
                columns += [task.query_column, task.document_column or self.text_column]
        return tuple(dict.fromkeys(columns))

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read."""
        columns = list(self.text_columns)
        for task in self.tasks:
            if not isinstance(task, RetrievalTask):
                columns += [task.label_column, *([task.split_column] if task.split_column else [])]
        return tuple(dict.fromkeys(columns))
