"""What makes tables: a run, its stages, scores from elsewhere, a nightly; and the plan of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from layerrank.jobs.cli import looking
from layerrank.jobs.cli.parser import STAGES
from layerrank.jobs.cluster.console import answer, say
from layerrank.jobs.cluster.errors import DONE, FAILED, REGRESSED
from layerrank.jobs.config import did_you_mean, did_you_mean_path, recipes
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.run import RunConfig, is_yaml, load, overridden, scores_recipe
from layerrank.jobs.config.settings import StorageConfig
from layerrank.jobs.plan import limits
from layerrank.jobs.prepare.folders import with_folders
from layerrank.operators.model.subject import ModelUnavailableError, Subject
from layerrank.operators.ranking import Policy
from layerrank.storage.manifest import Manifests
from layerrank.storage.manifest import load as manifest_of
from layerrank.storage.partition import by_step, partitions
from layerrank.storage.root import BOOKS, Root

if TYPE_CHECKING:
    from layerrank.jobs.rank.ranking import Ranking
    from layerrank.jobs.run import Run
    from layerrank.jobs.whole import Where

# What replaces a part of a config, which an output keeps, or is of what runs the models.
_OF_CONFIGS = (
    *("output", "set", "limit", "subject", "revisions", "texts", "text-column", "label-column"),
    *("full", "engine", "address", "overwrite"),
)


def run(arguments: argparse.Namespace) -> int:
    """Run one stage or all."""
    if scores := _scores_asked(arguments):
        return _rank_scores(arguments, *scores)
    from layerrank.jobs.plan.words import Guard  # noqa: PLC0415
    from layerrank.jobs.whole import make, opened  # noqa: PLC0415

    one = "rank" if arguments.command == "report" else arguments.command
    stages = STAGES if one == "run" else [each for each in STAGES if each == one]
    guard = Guard(_limits(arguments))

    def check(run: Run, is_prepared: bool) -> None:
        guard.check(run.config, run.root, say, prepared=is_prepared)

    with opened(_config(arguments), _where(arguments)) as run:
        make(run, stages, partial(publish, arguments), check)
    return DONE


def publish(arguments: argparse.Namespace, run: Run, rankings: Sequence[Ranking]) -> None:
    """Write the report of a run and say what it found."""
    from layerrank.jobs.report import page  # noqa: PLC0415

    page.publish(run, rankings, anew=arguments.command != "run")
    _verdicts(arguments, rankings)


def report(arguments: argparse.Namespace) -> int:
    """Rebuild the reports of an output, or that of a config's run."""
    given, path = arguments.config, Path(arguments.config)
    is_config = is_yaml(path) or path.is_file() or given in recipes()
    if is_config and not ("://" in given or looking.is_output(path)):
        if arguments.run or arguments.access:
            raise ConfigError(
                f"--run and --config are for the folder of an output, and {arguments.config} is "
                f"none: it has no {BOOKS}/"
            )
        return run(arguments)
    storage = looking.storage_of(arguments)
    near = did_you_mean_path(given, is_yaml) or did_you_mean(given, recipes())
    root = looking.root_at(given, storage, or_else=near)
    options = {"set": arguments.sets, **vars(arguments)}
    if replaced := [name for name in _OF_CONFIGS if options[name.replace("-", "_")]]:
        raise ConfigError(
            "the report of an output is of the config and the tables that it keeps: leave out "
            f"--{', --'.join(replaced)}"
        )
    for config in _kept(root, arguments.run, storage):
        _rebuild(arguments, config, root)
    return DONE


def _kept(root: Root, name: str | None, storage: StorageConfig) -> list[RunConfig]:
    """Return the configs that a root keeps of its runs, or the one of a name."""
    from layerrank.jobs.config.stored import given_of, stored  # noqa: PLC0415
    from layerrank.jobs.own import require_no_modules  # noqa: PLC0415

    runs: dict[str, dict[str, Any]] = {each["name"]: each for each in stored(root)}
    if not runs:
        again = " and ".join(_rankings_of_scores(root)) or "`layerrank rank --scores`"
        raise FileNotFoundError(
            f"{root.uri} keeps no config of a run; scores from elsewhere are ranked again by "
            f"{again}"
        )
    if name is not None:
        runs = {name: runs[looking.known_run(name, [*runs], root)]}
    for run, each in runs.items():
        require_no_modules(each, run)
    found = [given_of(each, root) for each in runs.values()]
    return [each.model_copy(update={"storage": storage}) for each in found]


def _rankings_of_scores(root: Root) -> list[str]:
    """Return the commands that made the rankings of scores from elsewhere in a root."""
    found = (manifest_of(root, each) for each in partitions(root, "ranking"))
    settings = [each.settings for each in found if each]
    files = sorted({str(each["scores"]) for each in settings if "scores" in each})
    built_in = {Path(each.scores).name: name for name in recipes() if (each := scores_recipe(name))}
    return [
        f"`layerrank run {built_in[file]} -o {root.uri}`"
        if file in built_in
        else f"`layerrank rank --scores {file} -o {root.uri}`"
        for file in files
    ]


def _rebuild(arguments: argparse.Namespace, given: RunConfig, root: Root) -> None:
    """Rank a run and write its report from the tables alone: models and texts may be gone."""
    from layerrank.jobs.config.stored import continued, require_no_conflict, shown  # noqa: PLC0415
    from layerrank.jobs.probe.stage import own_as_scored  # noqa: PLC0415
    from layerrank.jobs.run import Run  # noqa: PLC0415
    from layerrank.jobs.whole import open_cluster, rank_and_report  # noqa: PLC0415
    from layerrank.storage.lock import claimed  # noqa: PLC0415

    config = continued(given, root)
    root.check_writable()
    Manifests(root).keep_logs(asked=False)
    say(f"LayerRank: {config.name} -> {root.uri} (as it keeps it)")
    cluster = open_cluster(
        "process", address=None, config=config.cluster, verbose=arguments.verbose, say=say
    )
    with claimed(root, shown(config), partial(require_no_conflict, config, root)), cluster:
        chosen = _ranked(config, root)
        run = Run(config, root, cluster, given=given, chosen=chosen)
        run.seen.own.update(own_as_scored(run))  # its source may be gone too
        rank_and_report(run, partial(publish, arguments))


def _ranked(config: RunConfig, root: Root) -> tuple[Subject, ...]:
    """Return the models that a run has ranked, wherever their files are by now."""
    from layerrank.jobs.subjects import resolve  # noqa: PLC0415

    try:
        found = resolve(config.subjects, config.storage, keep_gone=True)
    except (ConfigError, ModelUnavailableError):  # a folder or a hub that is out of reach
        found = ()
    keys = [where.keys for where in partitions(root, "ranking")]
    ranked = {(each["model"], each["revision"]) for each in keys if each["group"] == config.name}
    known = {(each.name, each.revision): each for each in found}
    gone = sorted(ranked - known.keys(), key=lambda key: (key[0], by_step(key[1])))
    here = [each for key, each in known.items() if key in ranked or not ranked]
    lay = {each.name or PurePosixPath(each.model).name: each.model for each in config.subjects}
    return (*here, *(Subject(lay.get(name, name), revision, name) for name, revision in gone))


def nightly(arguments: argparse.Namespace) -> int:
    """Evaluate the checkpoints that have no ranking yet, and compare each with its last one."""
    from layerrank.jobs.nightly.stage import nightly as evaluated  # noqa: PLC0415
    from layerrank.jobs.whole import opened  # noqa: PLC0415

    with opened(_config(arguments), _where(arguments), nightly=True) as run:
        night = evaluated(run, verbose=arguments.verbose)
    if arguments.quiet:
        for subject, why in night.failed.items():
            answer(f"failed: {subject}: {why}")
        for alert in night.regressed:
            answer(f"alert: {alert.text}")
    if night.failed:
        return FAILED
    return REGRESSED if night.regressed else DONE


def _where(arguments: argparse.Namespace) -> Where:
    from layerrank.jobs.whole import Where  # noqa: PLC0415

    names = (each.name for each in fields(Where) if each.name != "folder")
    given = {name: getattr(arguments, name) for name in names}
    return Where(**given, folder=str(Path(arguments.config).parent))


def _config(arguments: argparse.Namespace) -> RunConfig:
    """Return the config with what the command line replaces, and the tasks of its folders."""
    config = load(arguments.config, arguments.sets, arguments.limit)
    columns = arguments.text_column, arguments.label_column
    return with_folders(overridden(config, arguments), arguments.texts, *columns)


def _scores_asked(arguments: argparse.Namespace) -> tuple[str, str | None, Policy] | None:
    """Return scores to rank without a model, where to, and the policy; None for a run."""
    policy = getattr(arguments, "policy", None)
    if scores := getattr(arguments, "scores", None):
        if arguments.config:
            raise ConfigError(f"give {arguments.config} or --scores, not both")
        if arguments.sets or arguments.limit:
            raise ConfigError("--scores has no config: --set and --limit are for a recipe or file")
        return scores, arguments.output, policy or "best"
    if policy:
        raise ConfigError("--policy is for --scores; a run takes rank.policy of its config")
    if arguments.config is None:
        raise ConfigError("give a recipe or a YAML file, or --scores FILE to rank scores alone")
    makes_page = arguments.command in ("run", "rank", "report")
    if makes_page and (recipe := scores_recipe(arguments.config, arguments.sets, arguments.limit)):
        return recipe.scores, arguments.output or recipe.output, recipe.policy
    return None


def _rank_scores(
    arguments: argparse.Namespace, scores: str, output: str | None, policy: Policy
) -> int:
    from layerrank.jobs.rank.ranking import Settings  # noqa: PLC0415
    from layerrank.jobs.rank.score_file import rank_file  # noqa: PLC0415
    from layerrank.jobs.report.page import publish_scores  # noqa: PLC0415

    root = None
    if output:
        root = Root(output)
        root.check_writable()
        Manifests(root).keep_logs(asked=False)
    rankings = rank_file(scores, Settings(policy=policy))
    publish_scores(scores, root, rankings)
    _verdicts(arguments, rankings)
    return DONE


def _verdicts(arguments: argparse.Namespace, rankings: Sequence[Ranking]) -> None:
    """Answer with the verdicts alone where everything else is left out."""
    for each in rankings if arguments.quiet else ():
        answer(f"{each.subject}: {each.sentence}")


def plan(arguments: argparse.Namespace) -> int:
    """Say what a run would do and write."""
    from layerrank.jobs.config.stored import continued  # noqa: PLC0415
    from layerrank.jobs.plan.plan import checked  # noqa: PLC0415
    from layerrank.jobs.plan.plan import plan as planned  # noqa: PLC0415
    from layerrank.jobs.plan.words import require_within, told  # noqa: PLC0415
    from layerrank.jobs.prepare.stage import require_agreement  # noqa: PLC0415
    from layerrank.jobs.run import open_root  # noqa: PLC0415

    config = _config(arguments)
    root = open_root(config, arguments.output) if arguments.output or config.output else None
    if root:
        config = continued(config, root)
        require_agreement(config, Manifests(root))
    unchecked = [*checked(config)]
    found = planned(config, root, measure=arguments.measure)
    prices = arguments.price_gb_month, arguments.price_1000_puts
    for line in told(found, arguments.tokens_per_second, *prices):
        answer(line)
    for line in unchecked:
        answer(f"  {line}")
    require_within(found, _limits(arguments))
    return DONE


def _limits(arguments: argparse.Namespace) -> limits.Limits:
    """Return the bounds of a plan or a run; a single stage has none."""
    names = ("max_bytes", "max_gpu_hours", "tokens_per_second")
    return limits.Limits(*(getattr(arguments, name, None) for name in names))
