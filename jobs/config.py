"""A run, as a YAML file: read once, checked at the boundary, frozen afterwards.

Units are in the field names or their descriptions. An unknown key or a bad value is a ConfigError
that names the key, the value and the choices.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from jobs.blocks import Block, Count, Name, Positive, Probability, require_distinct
from jobs.conditions import ConditionsConfig
from jobs.corpora import DatasetConfig, MtebSource
from operators.modes import FEWEST, MOST

Norm = Literal["none", "final"]
Pooling = Literal["mean", "last", "first", "weighted_mean"]
Device = Literal["auto", "cpu", "cuda"]
TokenMetricsMode = Literal["auto", "fused", "stored", "both"]
Variant = Literal["raw", "l2"]
Policy = Literal["best", "cheapest_equal", "last_unless_significant"]
Search = Literal["full", "halving"]
Noise = Annotated[float, Field(gt=0, le=1, multiple_of=0.01)]
WEB = ("http://", "https://")
EntropyNorm = Literal["raw", "maxEntropy", "logN", "logD", "logNlogD"]


class ConfigError(ValueError):
    """The user's config or arguments cannot be run as they stand."""


class Shape(Block):
    """Stated sizes of a model, so that a plan needs no network."""

    layers: Count
    hidden_size: Count


class SubjectConfig(Block):
    """A model at a revision."""

    model: str = Field(
        min_length=1, description="hub id, folder, s3://…, or package:IMPORT_NAME/FOLDER"
    )
    revision: str = ""
    revisions: Annotated[str, Field(min_length=1)] | tuple[str, ...] | None = Field(
        None,
        description="a sweep over checkpoints: names, or a pattern (step*) of a hub repository's "
        "branches or of the folders in `model`",
    )
    name: str = ""
    dtype: Literal["float32", "bfloat16"] = "float32"
    trust_remote_code: bool = False
    allow_pickle: bool = False
    shape: Shape | None = None

    @model_validator(mode="after")
    def _one_or_a_sweep(self) -> SubjectConfig:
        if self.revision and self.revisions is not None:
            raise ValueError("give revision or revisions, not both")
        if self.revisions == ():
            raise ValueError("revisions names no checkpoint")
        return self


class ExtractConfig(Block):
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
        require_distinct(names, "name")
        return names


class ViewsConfig(Block):
    """Augmented views of a sample; each costs a forward pass of the sample."""

    count: Annotated[int, Field(ge=0, le=99)] = 16
    sample: Count = Field(1000, description="prompts")
    keyboard: Probability = Field(0.1, description="per word: a key beside the right one")
    random_char: Probability = Field(0.1, description="per word: one character edit")
    split: Probability = Field(0.1, description="per word: cut in two")


class TokensConfig(Block):
    """Token states: those of a sample can be stored, and token metrics are computed from them."""

    sample: Annotated[int, Field(ge=0)] = Field(1000, description="prompts stored; 0 stores none")
    norm: Norm = "none"
    dtype: Literal["float32", "float16"] = "float32"


def _every_metric() -> tuple[str, ...]:
    # The registry imports torch, which a worker that only unpickles its config can do without.
    from operators.metrics.registry import METRICS  # noqa: PLC0415

    return tuple(METRICS)


class MeasureConfig(Block):
    """Representation metrics over the shards; docs/metrics.md says what each one means."""

    device: Device = "auto"
    metrics: tuple[str, ...] = Field(default_factory=_every_metric)
    token_metrics: TokenMetricsMode = Field(
        "auto",
        description="fused: of every prompt, in the model actor, no token states; stored: of the "
        "prompts in tokens/; both: fused, and tokens/ too; auto: stored while the token states of "
        "every prompt are small and there are no conditions, else both",
    )
    method: Literal["exact", "approximate"] = Field(
        "exact", description="spectra of long prompts; see docs/metrics.md for the error"
    )
    alphas: tuple[Positive, ...] = Field(
        (1.0, 2.0), min_length=1, description="orders of the matrix entropies; the first is drawn"
    )
    normalizations: tuple[EntropyNorm, ...] = Field(
        ("raw", "maxEntropy"), min_length=1, description="of the entropies; the first is drawn"
    )
    without_first: bool = Field(True, description="token metrics also without the first token")
    neighbour_sample: Count = Field(5_000, description="prompts of twonn, at most")
    temperature: Positive = 0.1
    delta: Positive = Field(1e-4, description="ridge of LiDAR")
    permutations: Count = Field(10, description="permutations of DiME")
    mode_sample: Annotated[int, Field(ge=FEWEST, le=MOST)] = Field(
        20_000, description="prompts whose entropies are tested for two modes, at most"
    )

    @field_validator("metrics")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = _every_metric()
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"unknown metric {', '.join(unknown)}; choose from {', '.join(known)}")
        require_distinct(names, "metric")
        return names

    @field_validator("alphas", "normalizations")
    @classmethod
    def _distinct(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        require_distinct([str(value) for value in values], "value")
        return values


class ProbeConfig(Block):
    """Labelled probes; the seed is mteb's."""

    seed: int = 42
    variants: tuple[Variant, ...] = Field(
        ("raw", "l2"), min_length=1, description="vectors as stored, and each of unit length"
    )
    replicates: Annotated[int, Field(ge=0)] = Field(
        200, description="bootstrap resamples of the items of a task that has no folds"
    )

    @field_validator("variants")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        require_distinct(names, "variant")
        return names


class CurvesConfig(Block):
    """Scores under other conditions than the protocol's, of the ranked vectors."""

    examples: tuple[Count, ...] = Field(
        (), description="training items per label of the classifications: learning curves"
    )
    noise: tuple[Noise, ...] = Field(
        (),
        description="probabilities of each kind of typo per word: fitted on clean texts, tested on "
        "noisy ones; each costs a forward pass of the dataset",
    )

    @field_validator("examples", "noise")
    @classmethod
    def _ascending(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        require_distinct([str(value) for value in values], "value")
        return tuple(sorted(values))


class RankConfig(Block):
    """Which vectors are ranked, and how the uncertainty is drawn."""

    norm: Norm = "final"
    pooling: Pooling = "mean"
    variant: Variant = "raw"
    policy: Policy = Field(
        "cheapest_equal",
        description="best: the highest score; cheapest_equal: the cheapest layer within one "
        "standard error of it; last_unless_significant: the last layer unless another one is "
        "better beyond doubt",
    )
    search: Search = Field(
        "full", description="halving: layers that cannot win are dropped after a few folds"
    )
    draws: Annotated[int, Field(ge=100)] = 10_000
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95


class StorageConfig(Block):
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


class ClusterConfig(Block):
    """How patient to be with a cluster that has to grow first."""

    wait_seconds: Annotated[float, Field(ge=0)] = 600


class NightlyConfig(Block):
    """Rules that compare a new checkpoint with the one before it; null switches one off.

    `operators/regression.py` says what exactly each rule compares.
    """

    score_drop: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        0.01,
        description="of the score, 0..1 (0.01 is one point): the layer that the previous "
        "checkpoint's ranking recommended scores less by more than this, its interval excludes 0",
    )
    layer_moved: Annotated[int, Field(ge=0)] | None = Field(
        2, description="layers: the recommended layer moved by more than this"
    )
    metric_jump: Positive | None = Field(
        20.0,
        description="median absolute deviations: a metric changed in some layer by more than this "
        "many from the median of its earlier changes; for checkpoints at even steps",
    )
    changes: Annotated[int, Field(ge=2)] = Field(
        12, description="earlier changes of a metric, at least, before any is called a jump"
    )
    webhook: SecretStr | None = Field(
        None,
        description="address that gets each alert as a POST of JSON; without it the variable "
        "LAYERRANK_WEBHOOK",
    )
    webhook_seconds: Positive = Field(10.0, description="until a silent webhook is given up")
    lease_seconds: Annotated[float, Field(ge=5, allow_inf_nan=False)] = Field(
        600.0, description="until the lock of a nightly that crashed may be taken over"
    )

    @field_validator("webhook")
    @classmethod
    def _web_address(cls, address: SecretStr | None) -> SecretStr | None:
        if address is not None and not address.get_secret_value().startswith(WEB):
            raise ValueError("a webhook is an http:// or https:// address")
        return address


class RunConfig(Block):
    """A whole run."""

    name: Name
    seed: int = 0
    output: str | None = None
    subjects: tuple[SubjectConfig, ...] = Field(min_length=1)
    datasets: tuple[DatasetConfig, ...] = Field(min_length=1)
    extract: ExtractConfig = ExtractConfig()
    views: ViewsConfig = ViewsConfig()
    tokens: TokensConfig = TokensConfig()
    measure: MeasureConfig = Field(default_factory=MeasureConfig)
    probe: ProbeConfig = ProbeConfig()
    curves: CurvesConfig = CurvesConfig()
    conditions: ConditionsConfig = ConditionsConfig()
    rank: RankConfig = RankConfig()
    storage: StorageConfig = StorageConfig()
    cluster: ClusterConfig = ClusterConfig()
    nightly: NightlyConfig = NightlyConfig()

    @model_validator(mode="before")
    @classmethod
    def _tasks_as_dataset(cls, values: Any) -> Any:  # noqa: ANN401  (whatever the YAML held)
        """Write `tasks: {mteb: …}` out as the dataset that it is short for."""
        if not isinstance(values, Mapping) or "tasks" not in values:
            return values
        try:
            source = MtebSource.model_validate(values["tasks"]).model_dump()
        except ValidationError as error:
            problem = _first_problem(error, {})
            raise ValueError(
                f"tasks: {problem}; tasks on columns of your own belong to their dataset"
            ) from None
        rest = {key: value for key, value in values.items() if key != "tasks"}
        given = rest.get("datasets") or []
        if isinstance(given, (list, tuple)):
            rest["datasets"] = [*given, {"name": "mteb", "source": source}]
        return rest

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        require_distinct([dataset.name for dataset in self.datasets], "dataset")
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
        if self.rank.variant not in self.probe.variants:
            raise ValueError(
                f"rank.variant is {self.rank.variant}, but probe.variants has only "
                f"{', '.join(self.probe.variants)}"
            )
        self.conditions.require_within(self.extract.max_tokens, "extract.max_tokens")
        if self.conditions.passes() and self.measure.token_metrics == "stored":
            raise ValueError(
                "measure.token_metrics is stored, but conditions are compared with the clean pass "
                "prompt by prompt, all of them: choose fused, both or auto"
            )
        _require_enough(self)
        return self


def _require_enough(config: RunConfig) -> None:
    """Refuse metrics for which the config leaves too few views or prompts.

    Without a list of metrics, what has too few prompts is undefined in the results instead.
    """
    from operators.metrics.registry import METRICS, of_kind  # noqa: PLC0415
    from operators.metrics.variants import FEWEST_VIEWS, Views  # noqa: PLC0415

    measure, views = config.measure, config.views
    unseen = list(of_kind(measure.metrics, Views))
    if unseen and views.count < FEWEST_VIEWS:
        raise ValueError(
            f"views.count is {views.count}, but {', '.join(unseen)} "
            f"need{'s' if len(unseen) == 1 else ''} at least {FEWEST_VIEWS} views"
        )
    if "metrics" not in measure.model_fields_set:
        return
    for name in measure.metrics:
        fewest = METRICS[name].fewest
        given = {
            f"limit of dataset {each.name}": each.limit * len(each.text_columns)
            for each in config.datasets
            if each.limit is not None
        }
        if name in unseen:
            given["views.sample"] = views.sample
        at_most = getattr(METRICS[name].measured, "at_most", "")
        if at_most:
            given[f"measure.{at_most}"] = getattr(measure, at_most)
        for key, prompts in given.items():
            if prompts < fewest:
                raise ValueError(
                    f"{key} leaves {prompts} prompts, but {name} needs at least {fewest}; raise "
                    f"it, or leave {name} out of measure.metrics"
                )


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
        raise ConfigError(f"{where}: {_first_problem(error, values)}") from error


def _yaml_problem(error: Exception) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    problem = re.sub(r"(alias|anchor|tag|handle) .*", r"\1", error.problem or "it cannot be read")
    mark = error.problem_mark
    return problem if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _first_problem(error: ValidationError, values: dict[str, Any]) -> str:
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    if name := _task_along(problem["loc"], values):
        key += f" (task {name})"
    message = problem["msg"].removeprefix("Value error, ")
    value = problem["input"]
    plain = isinstance(value, (str, int, float)) or value is None or value in ([], ())
    secret = problem["loc"][:1] == ("storage",) or "webhook" in problem["loc"]
    shown = f" (got {value!r})" if plain and not secret else ""
    return f"{key}: {message}{shown}" if key else message


def _task_along(keys: tuple[int | str, ...], values: Any) -> str | None:  # noqa: ANN401
    """Return the name of the task that a key belongs to, if it has one."""
    match keys:
        case ("datasets", int(dataset), "tasks", int(task), *_):
            match values["datasets"][dataset]["tasks"][task]:
                case {"name": str(name)}:
                    return name
    return None
