"""A run, as a YAML file: read once, checked at the boundary, frozen afterwards.

Units are in the field names or their descriptions. An unknown key or a bad value is a ConfigError
that names the key, the value and the choices.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Norm = Literal["none", "final"]
Pooling = Literal["mean", "last", "first", "weighted_mean"]
Device = Literal["auto", "cpu", "cuda"]
Metric = Literal["prompt_entropy", "curvature", "dataset_entropy", "infonce", "lidar", "dime"]
METRICS: tuple[Metric, ...] = (
    "prompt_entropy",
    "curvature",
    "dataset_entropy",
    "infonce",
    "lidar",
    "dime",
)
_OF_VIEWS: tuple[Metric, ...] = ("infonce", "lidar", "dime")
_MIN_VIEWS = 2  # fewer views cannot be compared with each other


class ConfigError(ValueError):
    """The user's config or arguments cannot be run as they stand."""


class _Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:  # noqa: ANN401  (whatever the YAML held)
        if isinstance(values, Mapping):
            unknown = [str(key) for key in values if key not in cls.model_fields]
            if unknown:
                known = ", ".join(sorted(cls.model_fields))
                raise ValueError(f"unknown key {', '.join(unknown)}; known keys: {known}")
        return values


class Shape(_Block):
    """Stated sizes of a model, so that a plan needs no network."""

    layers: Count
    hidden_size: Count


class SubjectConfig(_Block):
    """A model at a revision."""

    model: str = Field(min_length=1, description="hub id, folder, or package:IMPORT_NAME/FOLDER")
    revision: str = ""
    name: str = ""
    dtype: Literal["float32", "bfloat16"] = "float32"
    trust_remote_code: bool = False
    allow_pickle: bool = False
    shape: Shape | None = None


class BuiltinSource(_Block):
    """A corpus that every installation has."""

    builtin: Literal["docstrings"]
    per_library: Count = Field(300, description="passages per library, at most")


class HubSource(_Block):
    """A dataset of the Hugging Face hub; `split` may join several with +."""

    hub: str = Field(min_length=1)
    config: str | None = None
    split: str = "train"
    revision: str = "main"


class FileSource(_Block):
    """Files, local or in object storage: Parquet, JSONL, CSV, or text with one prompt per line."""

    files: tuple[str, ...] = Field(min_length=1, description="paths, URIs or glob patterns")
    format: Literal["auto", "parquet", "jsonl", "csv", "text"] = "auto"

    @field_validator("files", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:  # noqa: ANN401
        return (value,) if isinstance(value, str) else value


class ClassificationTask(_Block):
    """Predict a label from the text: logistic regression on a few examples per label."""

    type: Literal["classification"]
    name: Name
    label_column: str
    split_column: str | None = Field(None, description="holds train and test; else a seeded split")
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    samples_per_label: Count = 8
    folds: Count = 10


class ClusteringTask(_Block):
    """Find the labels again without seeing them: k-means against the labels."""

    type: Literal["clustering"]
    name: Name
    label_column: str
    split_column: str | None = Field(None, description="if given, only its test rows are clustered")
    max_documents: Count | None = None
    documents_per_fold: Count = 2048
    folds: Count = 10


class RetrievalTask(_Block):
    """Find a query's own document among all: cosine similarity of the vectors."""

    type: Literal["retrieval"]
    name: Name
    query_column: str
    document_column: str | None = Field(None, description="default: the text column")
    folds: Count = 10


Task = Annotated[ClassificationTask | ClusteringTask | RetrievalTask, Field(discriminator="type")]


class DatasetConfig(_Block):
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
        kinds: dict[str, type[_Block]] = {
            "builtin": BuiltinSource,
            "hub": HubSource,
            "files": FileSource,
        }
        if isinstance(value, _Block):
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
        _require_distinct([task.name for task in tasks], "task")
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


class ExtractConfig(_Block):
    """The forward pass, and what is kept of each layer."""

    device: Device = "auto"
    workers: Count | None = Field(None, description="model actors; default: all the cluster takes")
    threads: Count | None = Field(None, description="CPU threads of a model actor; default: 1")
    norms: tuple[Norm, ...] = Field(("final",), min_length=1)
    poolings: tuple[Pooling, ...] = Field(("mean",), min_length=1)
    max_tokens: Annotated[int, Field(ge=2)] = 512
    batch_tokens: Count | None = Field(
        None, description="padded tokens per batch; default: 4096 on a CPU, 32768 on a GPU"
    )

    @field_validator("norms", "poolings")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        _require_distinct(names, "name")
        return names


class ViewsConfig(_Block):
    """Augmented views of a sample; each costs a forward pass of the sample."""

    count: Annotated[int, Field(ge=0, le=99)] = 16
    sample: Count = Field(1000, description="prompts")
    keyboard: Probability = Field(0.1, description="per word: a key beside the right one")
    random_char: Probability = Field(0.1, description="per word: one character edit")
    split: Probability = Field(0.1, description="per word: cut in two")


class TokensConfig(_Block):
    """Token states of a sample, which the token metrics read."""

    sample: Annotated[int, Field(ge=0)] = Field(128, description="prompts; 0 stores none")
    norm: Norm = "none"
    dtype: Literal["float32", "float16"] = "float32"


class MeasureConfig(_Block):
    """Representation metrics over the shards."""

    device: Device = "auto"
    metrics: tuple[Metric, ...] = METRICS
    alpha: Positive = Field(1.0, description="order of the matrix entropies")
    dataset_sample: Count = Field(10_000, description="prompts of a dataset metric, at most")
    temperature: Positive = 0.1
    delta: Positive = Field(1e-4, description="ridge of LiDAR")
    permutations: Count = Field(10, description="permutations of DiME")

    @field_validator("metrics")
    @classmethod
    def _distinct(cls, names: tuple[Metric, ...]) -> tuple[Metric, ...]:
        _require_distinct(names, "metric")
        return names


class ProbeConfig(_Block):
    """Labelled probes; the seed is mteb's."""

    seed: int = 42


class RankConfig(_Block):
    """Which vectors are ranked, and how the uncertainty is drawn."""

    norm: Norm = "final"
    pooling: Pooling = "mean"
    draws: Annotated[int, Field(ge=100)] = 10_000
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95


class StorageConfig(_Block):
    """Access to S3, where the usual environment variables do not say it. Never logged or stored."""

    endpoint_url: str | None = None
    region: str | None = None
    key: SecretStr | None = None
    secret: SecretStr | None = None
    token: SecretStr | None = None

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of s3fs."""
        secrets = {"key": self.key, "secret": self.secret, "token": self.token}
        options: dict[str, Any] = {k: v.get_secret_value() for k, v in secrets.items() if v}
        client = {"endpoint_url": self.endpoint_url, "region_name": self.region}
        given = {k: v for k, v in client.items() if v}
        return {**options, **({"client_kwargs": given} if given else {})}


class ClusterConfig(_Block):
    """How patient to be with a cluster that has to grow first."""

    wait_seconds: Annotated[float, Field(ge=0)] = 600


class RunConfig(_Block):
    """A whole run."""

    name: Name
    seed: int = 0
    output: str | None = None
    subjects: tuple[SubjectConfig, ...] = Field(min_length=1)
    datasets: tuple[DatasetConfig, ...] = Field(min_length=1)
    extract: ExtractConfig = ExtractConfig()
    views: ViewsConfig = ViewsConfig()
    tokens: TokensConfig = TokensConfig()
    measure: MeasureConfig = MeasureConfig()
    probe: ProbeConfig = ProbeConfig()
    rank: RankConfig = RankConfig()
    storage: StorageConfig = StorageConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        _require_distinct([dataset.name for dataset in self.datasets], "dataset")
        if self.rank.norm not in self.extract.norms:
            raise ValueError(
                f"rank.norm is {self.rank.norm}, but extract.norms has only "
                f"{', '.join(self.extract.norms)}"
            )
        if self.rank.pooling not in self.extract.poolings:
            raise ValueError(
                f"rank.pooling is {self.rank.pooling}, but extract.poolings has only "
                f"{', '.join(self.extract.poolings)}"
            )
        unseen = [metric for metric in self.measure.metrics if metric in _OF_VIEWS]
        if unseen and self.views.count < _MIN_VIEWS:
            raise ValueError(
                f"views.count is {self.views.count}, but {', '.join(unseen)} "
                f"need{'s' if len(unseen) == 1 else ''} at least {_MIN_VIEWS} views"
            )
        return self


def load(recipe_or_file: str) -> RunConfig:
    """Return the run of a built-in recipe or a YAML file; ConfigError if it is not a valid one."""
    path = Path(recipe_or_file)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot read config {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"cannot read config {path}: it is not UTF-8 text") from error
        return parse(text, str(path))
    recipe = resources.files("jobs") / "recipes" / f"{recipe_or_file}.yaml"
    if not recipe.is_file():
        raise ConfigError(
            f"unknown recipe {recipe_or_file!r}; built-in recipes: {', '.join(recipes())} "
            "(or give a .yaml file)"
        )
    return parse(recipe.read_text(encoding="utf-8"), f"recipe {recipe_or_file}")


def recipes() -> list[str]:
    """Return the names of the built-in recipes."""
    files = (resources.files("jobs") / "recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def parse(text: str, where: str) -> RunConfig:
    """Return the run that YAML `text` describes; `where` names it in errors."""
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-99-99
        # Neither the cause nor its text goes on: both show the line, which may hold a secret.
        raise ConfigError(f"{where} is not valid YAML: {_yaml_problem(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must be a mapping of keys, not {type(values).__name__}")
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_problem(error)}") from error


def _yaml_problem(error: Exception) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    problem = re.sub(r"(alias|anchor|tag|handle) .*", r"\1", error.problem or "it cannot be read")
    mark = error.problem_mark
    return problem if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    value = problem["input"]
    plain = isinstance(value, (str, int, float)) or value is None or value in ([], ())
    secret = problem["loc"][:1] == ("storage",)
    shown = f" (got {value!r})" if plain and not secret else ""
    return f"{key}: {message}{shown}" if key else message


def _require_distinct(names: Sequence[str], what: str) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{what} name {', '.join(repeated)} is used twice")
