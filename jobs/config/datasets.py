"""Corpora: where texts come from, and which labelled tasks are made of their columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from jobs.config.blocks import Block, Count, Name, require_distinct
from jobs.tasks.types import MtebTask, RetrievalTask, Task


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


class FolderSource(Block):
    """A folder of one's own texts; `jobs.prepare.folders` says what is read, and its task."""

    folder: str = Field(min_length=1, description="path or URI")


class MtebSource(Block):
    """The texts that tasks of mteb encode, each once; the tasks are scored by mteb itself."""

    mteb: tuple[str, ...] = Field(
        min_length=1, description="tasks, benchmarks, paper-32, or paper-31"
    )
    modules: tuple[str, ...] = Field((), description="Python modules that define tasks of your own")

    @field_validator("mteb", "modules", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:  # noqa: ANN401
        return (value,) if isinstance(value, str) else value


Source = BuiltinSource | HubSource | FileSource | FolderSource | MtebSource


class DatasetConfig(Block):
    """A corpus, and the labelled tasks made of its columns."""

    name: Name
    source: Source
    text_column: str = "text"
    id_column: str | None = Field(None, description="names a row; a name that two rows have stops")
    limit: Count | None = Field(None, description="source rows read, in source order")
    min_chars: Annotated[int, Field(ge=0)] = Field(1, description="0 keeps blank texts too")
    shard_prompts: Count = Field(2048, description="prompts per shard, about")
    tasks: tuple[Task, ...] = ()

    @field_validator("source", mode="before")
    @classmethod
    def _which_source(cls, value: Any) -> Any:  # noqa: ANN401
        kinds: dict[str, type[Block]] = {
            "builtin": BuiltinSource,
            "hub": HubSource,
            "files": FileSource,
            "folder": FolderSource,
            "mteb": MtebSource,
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
        if "tasks" in values and not _are_mteb(values["tasks"]):
            own.append("tasks")
        if own:
            raise ValueError(
                f"a dataset of mteb has the texts and tasks that mteb gives it: leave out "
                f"{', '.join(own)}"
            )
        from operators.benchmark.tasks import task_names  # noqa: PLC0415  (imports mteb, seconds)

        names = task_names(known.mteb, known.modules)
        tasks = [{"type": "mteb", "name": name} for name in names]
        return {**values, "tasks": tasks}

    @model_validator(mode="after")
    def _mteb_from_mteb(self) -> DatasetConfig:
        named = [task.name for task in self.tasks if isinstance(task, MtebTask)]
        if named and not isinstance(self.source, MtebSource):
            raise ValueError(
                f"task {named[0]} of type mteb brings its own texts: name it in "
                "`source: {mteb: …}` or in the run's `tasks: {mteb: …}`"
            )
        return self

    @property
    def keeps_blank(self) -> bool:
        """Whether empty and whitespace texts are prompts: mteb scores them, and so may a user."""
        return self.min_chars == 0 or isinstance(self.source, MtebSource)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Every column whose texts become prompts.

        The text column first, unless every task names columns of its own and none is asked for.
        """
        asked = "text_column" in self.model_fields_set or not self.tasks
        columns = [self.text_column] if asked or any(map(_reads_text, self.tasks)) else []
        for task in self.tasks:
            columns += task.own_text_columns
        return tuple(dict.fromkeys(columns))

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read."""
        columns = [*self.text_columns, *([self.id_column] if self.id_column else [])]
        for task in self.tasks:
            columns += task.value_columns
        return tuple(dict.fromkeys(columns))


def _reads_text(task: Task) -> bool:
    """Whether a task is on the dataset's text column."""
    if isinstance(task, RetrievalTask):
        return task.document_column is None
    return not task.own_text_columns


def _are_mteb(tasks: Any) -> bool:  # noqa: ANN401  (whatever the YAML held)
    return isinstance(tasks, (list, tuple)) and all(
        isinstance(task, Mapping) and task.get("type") == "mteb" for task in tasks
    )
