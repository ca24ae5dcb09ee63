"""A run, as a YAML file: read once, checked at the boundary, frozen afterwards.

The command line may replace its subjects, so that a recipe runs on a model of one's own.

An unknown key or a bad value is a ConfigError that names the key, the value and the choices.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError, model_validator

from layerrank.jobs.config import (
    FULL_VIEWS,
    RECIPES,
    did_you_mean,
    did_you_mean_path,
    recipes,
    settings,
)
from layerrank.jobs.config.blocks import (
    LATER,
    UNKNOWN_KEY,
    Block,
    ConfigError,
    Later,
    Name,
    require_distinct,
)
from layerrank.jobs.config.datasets import DatasetConfig, FittedTask, MtebSource, Task
from layerrank.jobs.config.printable import Discreet, know_secrets, without_secrets
from layerrank.jobs.config.values import Values, beside, limited, mapping, with_set
from layerrank.operators.prompts.conditions import Condition
from layerrank.operators.ranking import Policy

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._+-]*)=(.+)")
Checked = TypeVar("Checked", bound=Block)
# What pydantic says of types of Python and their bounds, as the config has them.
_IN_WORDS = {
    "missing": "is missing",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "give a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "give a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "give true or false"),
    "string_type": "give a text",
    "finite_number": "give a finite number",
    "multiple_of": "give a multiple of {multiple_of}",
    "greater_than": "give more than {gt}",
    "greater_than_equal": "give {ge} or more",
    "less_than": "give less than {lt}",
    "less_than_equal": "give {le} or less",
    "literal_error": "choose {expected}",
    "tuple_type": "give a list",
    "model_type": "give a mapping of keys",
    "dict_type": "give a mapping of keys",
    "too_short": "give at least {min_length}",
}
_SHOWN = 300  # characters of a value
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_HUB_GGUF = re.compile(r"\w[\w.-]*(/\w[\w.-]*){2,}\.gguf")


class RunConfig(Discreet, Block):
    """A whole run."""

    name: Name = Field(description="of the run, in its tables and its report")
    seed: int = Field(0, description="of everything that is drawn, but for probes")
    output: str | None = Field(None, description="folder or s3:// prefix")
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
            problem = _problems(error, {})[0]
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
    for name in (name for name in measure.metrics if name not in measure.own):
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


def load(recipe_or_file: str, sets: Sequence[str] = (), limit: int | None = None) -> RunConfig:
    """Return the run of a built-in recipe or a YAML file; ConfigError if it is not a valid one.

    `sets` are KEY=VALUE, each put into the config; `limit` is the most source rows of a dataset.
    """
    values, where = _values_of(recipe_or_file)
    return of_values(values, where, sets, limit)


def parse(text: str, where: str) -> RunConfig:
    """Return the run that YAML `text` describes; `where` names it in errors."""
    return of_values(mapping(text, where), where)


def of_values(
    values: Values, where: str, sets: Sequence[str] = (), limit: int | None = None
) -> RunConfig:
    """Return the run that the keys of a config describe; `where` names it in errors."""
    if "scores" in values:
        raise ConfigError(f"{where} ranks scores, without a model: `run` and `rank` do that")
    return _checked(RunConfig, values, where, sets, limit)


def scores_recipe(
    recipe_or_file: str, sets: Sequence[str] = (), limit: int | None = None
) -> ScoresConfig | None:
    """Return a recipe that ranks scores, with the path of these; None if it is one of a run."""
    values, where = _values_of(recipe_or_file)
    return _checked(ScoresConfig, values, where, sets, limit) if "scores" in values else None


def problems(recipe_or_file: str, sets: Sequence[str] = (), limit: int | None = None) -> list[str]:
    """Return what is wrong with a config, a line each, as far as can be told at once.

    `sets` and `limit` as of `load`.
    """
    values, where = _values_of(recipe_or_file)
    kind = ScoresConfig if "scores" in values else RunConfig
    steps = _steps(values, sets, limit)
    try:
        kind.model_validate(steps[-1])
    except ValidationError as error:
        return _told(error, kind, steps, sets, where)
    return []


def _values_of(recipe_or_file: str) -> tuple[Values, str]:
    """Return the values of a recipe or a file, and what it is called.

    Paths in a file are relative to it, those in a recipe to the shell, but for scores beside it.
    """
    path = Path(recipe_or_file)
    if is_yaml(path) or path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            near = did_you_mean_path(recipe_or_file, is_yaml)
            raise ConfigError(f"cannot read config {path}: {error.strerror}{near}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"cannot read config {path}: it is not UTF-8 text") from error
        return beside(mapping(text, str(path)), path.absolute().parent), str(path)
    recipe = RECIPES / f"{recipe_or_file}.yaml"
    if not recipe.is_file() and path.is_dir():
        raise ConfigError(f"config {path} is a folder: give a .yaml file, or the name of a recipe")
    if not recipe.is_file():
        near = did_you_mean_path(recipe_or_file, is_yaml)
        near = near or did_you_mean(recipe_or_file, recipes())
        raise ConfigError(
            f"unknown recipe {recipe_or_file!r}; built-in recipes: {', '.join(recipes())} "
            f"(or give a .yaml file){near}"
        )
    values = mapping(recipe.read_text(encoding="utf-8"), f"recipe {recipe_or_file}")
    if "scores" in values:
        values["scores"] = str(RECIPES / values["scores"])
    return values, f"recipe {recipe_or_file}"


def is_yaml(path: Path) -> bool:
    """Whether a file is called as a config is."""
    return path.suffix in (".yaml", ".yml")


def _checked(
    kind: type[Checked],
    values: Values,
    where: str,
    sets: Sequence[str] = (),
    limit: int | None = None,
) -> Checked:
    """Return the block of some values, after what is put there; ConfigError if it is a bad one."""
    steps = _steps(values, sets, limit)
    try:
        return kind.model_validate(steps[-1])
    except ValidationError as error:
        raise ConfigError(_told(error, kind, steps, sets, where)[0]) from error


def _steps(values: Values, sets: Sequence[str], limit: int | None) -> list[Values]:
    """Return the values as they are given, and after each thing that is put there.

    From here on nothing shows what is secret among them, valid or not.
    """
    know_secrets(values)
    steps = [values]
    for each in sets:
        steps.append(with_set(steps[-1], each))
        know_secrets(steps[-1])
    return steps if limit is None else [*steps, limited(steps[-1], limit)]


def _told(
    error: ValidationError,
    kind: type[Block],
    steps: Sequence[Values],
    sets: Sequence[str],
    where: str,
) -> list[str]:
    """Return what is wrong with the last of some values, a line each, and where that came in."""
    key = ""
    for each, before, after in zip(sets, steps, steps[1:], strict=False):
        if _is_valid(kind, before) and not _is_valid(kind, after):
            key = each.partition("=")[0]
            where = f"--set {key}"
    found = _problems(error, steps[-1])
    return [f"{where}: {problem.removeprefix(f'{key}: ')}" for problem in found]


def _is_valid(kind: type[Block], values: Values) -> bool:
    try:
        kind.model_validate(values)
    except ValidationError:
        return False
    return True


def _problems(error: ValidationError, values: Values) -> list[str]:
    """Return each problem as its key, what is wrong, and the value unless that is secret."""
    found, errors = list[str](), error.errors(include_url=False)
    for problem in errors:
        size = len(problem["loc"])
        if problem["type"] == "too_short" and any(
            len(each["loc"]) > size and each["loc"][:size] == problem["loc"] for each in errors
        ):  # only for want of what is wrong in it
            continue
        key = ".".join(str(part) for part in problem["loc"])
        match problem["loc"]:
            case ("datasets", int(dataset), "tasks", int(number), *_):
                match values["datasets"][dataset]["tasks"][number]:
                    case {"name": str(name)}:
                        key += f" (task {name})"
        message = problem["msg"].removeprefix("Value error, ")
        if words := _IN_WORDS.get(problem["type"]):
            message = words.format(**problem.get("ctx", {}))
        if problem["type"] == UNKNOWN_KEY:
            message += did_you_mean(**problem["ctx"])
        value = problem["input"]
        plain = isinstance(value, (str, int, float)) or value is None or value in ([], ())
        match problem["loc"]:
            case ("storage", *_) | ("nightly", "webhook"):
                plain = False
            case ("nightly", *_):  # a number that a rule cannot take is no secret
                plain = isinstance(value, (int, float))
        written = without_secrets(repr(value))
        written = written if len(written) <= _SHOWN else f"{written[:_SHOWN]}…"
        shown = f" (got {written})" if plain else ""
        found.append(without_secrets(f"{key}: {message}{shown}" if key else message))
    return found


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
        subjects = tuple(subject_of(each).model_copy(update={"dtype": dtype}) for each in given)
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
    views = config.views.model_copy(update=FULL_VIEWS)
    output = {"output": f"{config.output.rstrip('/')}-full"} if config.output else {}
    return config.model_copy(update={"views": views, **output})


def subject_of(given: str) -> settings.SubjectConfig:
    """Return the subject that `[NAME=]MODEL` names; ConfigError if that is no place of a model."""
    named = None if Path(given).exists() else _NAMED.fullmatch(given)
    name, model = named.groups() if named else ("", given)
    elsewhere = "://" in model or model.startswith("package:")
    is_file = model.endswith(".gguf")
    here = bool(model) and (Path(model).is_file() if is_file else Path(model).is_dir())
    if not (elsewhere or here or (_HUB_GGUF if is_file else _HUB_ID).fullmatch(model)):
        raise ConfigError(
            f"--subject {given or repr(given)}: there is no such folder, and it is no hub id "
            "(owner/name), s3://… or package:IMPORT_NAME/FOLDER, nor a GGUF file in one of these"
        )
    # What an output keeps of a run says where its model is, wherever it is read.
    return settings.SubjectConfig(model=str(Path(model).absolute()) if here else model, name=name)


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
