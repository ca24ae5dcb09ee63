"""A run, as a YAML file: read once, checked at the boundary, frozen afterwards.

The command line may replace its subjects, so that a recipe runs on a model of one's own.

An unknown key or a bad value is a ConfigError that names the key, the value and the choices.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from layerrank.jobs.config import settings
from layerrank.jobs.config.blocks import LATER, Block, ConfigError, Later, Name, require_distinct
from layerrank.jobs.config.datasets import DatasetConfig, FittedTask, MtebSource, Task
from layerrank.operators.prompts.conditions import Condition
from layerrank.operators.ranking.choosing import Policy

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._+-]*)=(.+)")
_RECIPES = resources.files("layerrank.jobs") / "recipes"
Checked = TypeVar("Checked", bound=Block)
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_HUB_GGUF = re.compile(r"\w[\w.-]*(/\w[\w.-]*){2,}\.gguf")


class RunConfig(Block):
    """A whole run."""

    name: Name
    seed: int = 0
    output: str | None = None
    subjects: tuple[settings.SubjectConfig, ...] = Field(min_length=1)
    datasets: tuple[DatasetConfig, ...] = Field(min_length=1)
    extract: settings.ExtractConfig = settings.ExtractConfig()
    views: settings.ViewsConfig = settings.ViewsConfig()
    tokens: settings.TokensConfig = settings.TokensConfig()
    measure: settings.MeasureConfig = Field(default_factory=settings.MeasureConfig)
    keep: settings.KeepConfig = settings.KeepConfig()
    delta: Annotated[bool, LATER] = Field(
        False,
        description="a Delta log beside the files of every table of the root, from now on, for "
        "Spark, Trino and others; needs the extra delta",
    )
    probe: settings.ProbeConfig = settings.ProbeConfig()
    curves: settings.CurvesConfig = settings.CurvesConfig()
    conditions: settings.ConditionsConfig = settings.ConditionsConfig()
    rank: settings.RankConfig = settings.RankConfig()
    candidates: Annotated[settings.CandidatesConfig | None, Later(before=None)] = Field(
        settings.CandidatesConfig(), description="null: the ranked vectors of every layer alone"
    )
    storage: settings.StorageConfig = settings.StorageConfig()
    cluster: settings.ClusterConfig = settings.ClusterConfig()
    nightly: settings.NightlyConfig = settings.NightlyConfig()

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
        require_distinct([dataset.name for dataset in self.datasets], "dataset name ")
        made_by = ["probe.variants", *(["candidates.transforms"] if self.candidates else [])]
        also = self.candidates.transforms if self.candidates else ()
        transforms = tuple(dict.fromkeys([*self.probe.variants, *also]))
        for key, made, by in (
            ("norm", self.extract.norms, "extract.norms"),
            ("pooling", self.extract.poolings, "extract.poolings"),
            ("variant", transforms, " and ".join(made_by)),
        ):
            ranked = getattr(self.rank, key)
            if ranked not in made:
                has = "have" if " and " in by else "has"
                raise ValueError(f"rank.{key} is {ranked}, but {by} {has} only {', '.join(made)}")
        texts = self.candidates.texts if self.candidates else None
        if texts not in (None, *(dataset.name for dataset in self.datasets)):
            known = ", ".join(dataset.name for dataset in self.datasets)
            raise ValueError(
                f"candidates.texts is {texts}, which is no dataset; there are: {known}"
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
    from layerrank.operators.metrics.registry import FEWEST_VIEWS, METRICS, Views, of_kind  # noqa: PLC0415

    measure, views = config.measure, config.views
    unseen, named = list(of_kind(measure.metrics, Views)), "metrics" in measure.model_fields_set
    if unseen and views.count < FEWEST_VIEWS and (named or views.count):
        instead = "leave them out of measure.metrics" if named else "0, which leaves them out"
        raise ValueError(
            f"views.count is {views.count}, but {', '.join(unseen)} "
            f"need{'s' if len(unseen) == 1 else ''} at least {FEWEST_VIEWS} views: "
            f"give so many, or {instead}"
        )
    if not named:
        return
    limits = {
        f"limit of dataset {each.name}": each.limit * len(each.text_columns)
        for each in config.datasets
        if each.limit is not None
    }
    for name in measure.metrics:
        given, fewest = dict(limits), METRICS[name].fewest
        if name in unseen:
            given["views.sample"] = views.sample
        if at_most := getattr(METRICS[name].measured, "at_most", ""):
            given[f"measure.{at_most}"] = getattr(measure, at_most)
        for key, prompts in given.items():
            if prompts is not None and prompts < fewest:
                raise ValueError(
                    f"{key} leaves {prompts} prompts, but {name} needs at least {fewest}; raise "
                    f"it, or leave {name} out of measure.metrics"
                )


class ScoresConfig(Block):
    """A ranking of scores that are there already: no model, no texts."""

    name: Name
    output: str = Field(min_length=1)
    scores: str = Field(
        min_length=1, description="a file or folder as of `rank --scores`, beside the recipe"
    )
    policy: Policy = "best"


def load(recipe_or_file: str) -> RunConfig:
    """Return the run of a built-in recipe or a YAML file; ConfigError if it is not a valid one."""
    return parse(*_text_of(recipe_or_file))


def scores_recipe(recipe_or_file: str) -> ScoresConfig | None:
    """Return a recipe that ranks scores, with the path of these; None if it is one of a run."""
    text, where = _text_of(recipe_or_file)
    values = _mapping(text, where)
    if "scores" not in values:
        return None
    found = _checked(ScoresConfig, values, where)
    beside = Path(recipe_or_file)
    if not beside.is_file():
        beside = Path(str(_RECIPES / "recipe.yaml"))
    scores = found.scores if "://" in found.scores else str(beside.parent / found.scores)
    return found.model_copy(update={"scores": scores})


def _text_of(recipe_or_file: str) -> tuple[str, str]:
    """Return the text of a recipe or a file, and what it is called."""
    path = Path(recipe_or_file)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot read config {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"cannot read config {path}: it is not UTF-8 text") from error
        return text, str(path)
    recipe = _RECIPES / f"{recipe_or_file}.yaml"
    if not recipe.is_file():
        raise ConfigError(
            f"unknown recipe {recipe_or_file!r}; built-in recipes: {', '.join(recipes())} "
            "(or give a .yaml file)"
        )
    return recipe.read_text(encoding="utf-8"), f"recipe {recipe_or_file}"


def recipes() -> list[str]:
    """Return the names of the built-in recipes."""
    files = [file.name for file in _RECIPES.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def parse(text: str, where: str) -> RunConfig:
    """Return the run that YAML `text` describes; `where` names it in errors."""
    values = _mapping(text, where)
    if "scores" in values:
        raise ConfigError(f"{where} ranks scores, without a model: `run` and `rank` do that")
    return _checked(RunConfig, values, where)


def _mapping(text: str, where: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-99-99
        # Neither the cause nor its text goes on: both show the line, which may hold a secret.
        raise ConfigError(f"{where} is not valid YAML: {_yaml_problem(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must be a mapping of keys, not {type(values).__name__}")
    return values


def _checked(kind: type[Checked], values: dict[str, Any], where: str) -> Checked:
    try:
        return kind.model_validate(values)
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
    match problem["loc"]:
        case ("datasets", int(dataset), "tasks", int(number), *_):
            match values["datasets"][dataset]["tasks"][number]:
                case {"name": str(name)}:
                    key += f" (task {name})"
    message = problem["msg"].removeprefix("Value error, ")
    value = problem["input"]
    plain = isinstance(value, (str, int, float)) or value is None or value in ([], ())
    secret = problem["loc"][:1] == ("storage",) or "webhook" in problem["loc"]
    shown = f" (got {value!r})" if plain and not secret else ""
    return f"{key}: {message}{shown}" if key else message


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add the options that replace a config's subjects, its folder of texts and its views."""
    parser.add_argument(
        "--subject",
        action="append",
        metavar="[NAME=]MODEL",
        help="instead of the config's subjects: hub id, folder, s3://…, or "
        "package:IMPORT_NAME/FOLDER, or a GGUF file in one of these; may be given several times",
    )
    parser.add_argument(
        "--revisions",
        metavar="PATTERN",
        help="a sweep over the checkpoints that match: branches of the hub, or folders in MODEL",
    )
    parser.add_argument(
        "--texts",
        metavar="FOLDER",
        help="your texts, instead of the folder in the config: text files, or tables with a "
        "column text; subfolders, or a column label, are the labels",
    )
    views = settings.FULL_VIEWS
    parser.add_argument(
        "--full",
        action="store_true",
        help=f"{views['count']} views of {views['sample']:,} prompts, as in the papers, instead of "
        "the config's; the output that the config names gets the ending -full",
    )


def overridden(config: RunConfig, arguments: argparse.Namespace) -> RunConfig:
    """Return the config with what the command line replaces; ConfigError if that makes no run.

    `--full` has an output of its own, so that it finds no views of another sample there.
    `--subject` keeps the dtype if the config's subjects share one, and nothing else of theirs:
    what was trusted in one model is not trusted in another.
    """
    given, revisions = arguments.subject, arguments.revisions
    if arguments.full:
        config = _with_full_views(config)
    if not given and revisions is None:
        return config
    if revisions == "":
        raise ConfigError("--revisions is empty: give a name or a pattern, such as 'step*'")
    subjects = config.subjects
    if given:
        shared = {each.dtype for each in subjects}
        dtype = shared.pop() if len(shared) == 1 else "float32"
        subjects = tuple(_subject(each).model_copy(update={"dtype": dtype}) for each in given)
    if revisions is not None:
        sweep = {"revision": "", "revisions": revisions}
        subjects = tuple(each.model_copy(update=sweep) for each in subjects)
    return config.model_copy(update={"subjects": subjects})


def _with_full_views(config: RunConfig) -> RunConfig:
    from layerrank.operators.metrics.registry import Views, of_kind  # noqa: PLC0415

    if not of_kind(config.measure.metrics, Views):
        raise ConfigError(
            f"--full is about augmented views, and measure.metrics of {config.name} has no metric "
            "that compares them"
        )
    views = config.views.model_copy(update=settings.FULL_VIEWS)
    output = {"output": f"{config.output.rstrip('/')}-full"} if config.output else {}
    return config.model_copy(update={"views": views, **output})


def _subject(given: str) -> settings.SubjectConfig:
    named = None if Path(given).exists() else _NAMED.fullmatch(given)
    name, model = named.groups() if named else ("", given)
    elsewhere = "://" in model or model.startswith("package:")
    is_file = model.endswith(".gguf")
    here = bool(model) and (Path(model).is_file() if is_file else Path(model).is_dir())
    if not (elsewhere or here or (_HUB_GGUF if is_file else _HUB_ID).fullmatch(model)):
        raise ConfigError(
            f"--subject {given}: there is no such folder, and it is no hub id (owner/name), "
            "s3://… or package:IMPORT_NAME/FOLDER, nor a GGUF file in one of these"
        )
    return settings.SubjectConfig(model=model, name=name)


def labelled_tasks(config: RunConfig) -> Iterator[tuple[str, DatasetConfig, Task]]:
    """Yield the tasks of a run with their names; where two share one, the dataset's before it."""
    pairs = [(dataset, task) for dataset in config.datasets for task in dataset.tasks]
    names = Counter(task.name for _, task in pairs)
    for dataset, task in pairs:
        label = task.name if names[task.name] == 1 else f"{dataset.name}/{task.name}"
        yield label, dataset, task


def learning_examples(config: RunConfig, task: Task) -> tuple[int, ...]:
    """Return the numbers of training items per label that a task is scored with besides its own.

    Of a regression they are per tenth of its values; a task that is not fitted has none.
    """
    return config.curves.examples if isinstance(task, FittedTask) else ()


def noise_conditions(config: RunConfig, tasks: Iterable[Task]) -> list[Condition]:
    """Return the conditions in which tasks are tested too, if one of them is fitted."""
    fitted = any(isinstance(task, FittedTask) for task in tasks)
    return [Condition("noise", level) for level in config.curves.noise] if fitted else []


def graded_conditions(config: RunConfig, dataset: DatasetConfig) -> list[Condition]:
    """Return the conditions that every prompt of a dataset passes through, beside the clean one.

    A level of noise that both a curve and `conditions` ask for is one pass.
    """
    noisy = noise_conditions(config, dataset.tasks)
    return list(dict.fromkeys([*noisy, *config.conditions.passes()]))
