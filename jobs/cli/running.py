"""What makes tables: a run, its stages, scores from elsewhere, a nightly; and the plan of it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from layerrank.jobs.cli import looking
from layerrank.jobs.cli.parser import STAGES
from layerrank.jobs.cluster.console import answer, say
from layerrank.jobs.cluster.errors import DONE, FAILED, REGRESSED
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.run import RunConfig, load, overridden, scores_recipe
from layerrank.jobs.config.settings import StorageConfig
from layerrank.jobs.plan import limits
from layerrank.jobs.prepare.folders import with_folders
from layerrank.operators.model.subject import ModelUnavailableError, Subject
from layerrank.operators.ranking import Policy
from layerrank.storage.partition import partitions
from layerrank.storage.root import BOOKS, Root

if TYPE_CHECKING:
    from layerrank.jobs.rank.ranking import Ranking
    from layerrank.jobs.run import Run

# What replaces a part of a config, which an output keeps.
_REPLACING = ("output", "sets", "limit", "subject", "revisions", "texts", "full")
# What the stages' workers need, which processes of this machine import once: their modules, and
# what these import when it is first used.
WORKERS = (
    "layerrank.jobs.prepare.stage",
    "layerrank.jobs.extract.worker",
    "layerrank.jobs.measure.stage",
    "layerrank.jobs.probe.worker",
    "layerrank.operators.analysis.modes",
    "layerrank.operators.metrics.prompts",
    "layerrank.operators.metrics.similarity",
    "layerrank.operators.metrics.tokens",
    "layerrank.operators.metrics.views",
    "layerrank.operators.model.on_transformers",
    "layerrank.operators.probes.labelled",
    "scipy.stats.contingency",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
)
# What the ranking and the report import, which takes a second.
AT_THE_END = (
    "layerrank.jobs.rank.stage",
    "layerrank.jobs.report.page",
    "layerrank.jobs.report.drawing",
    "markdown_it",
)


def run(arguments: argparse.Namespace) -> int:
    """Run one stage or all."""
    if scores := _scores_asked(arguments):
        return _rank_scores(arguments, *scores)
    from layerrank.jobs.config.stored import record  # noqa: PLC0415
    from layerrank.jobs.extract.stage import extract, require_extracted  # noqa: PLC0415
    from layerrank.jobs.measure.stage import measure  # noqa: PLC0415
    from layerrank.jobs.plan.words import Guard  # noqa: PLC0415
    from layerrank.jobs.prepare.stage import prepare, require_prepared  # noqa: PLC0415
    from layerrank.jobs.probe.stage import probe  # noqa: PLC0415
    from layerrank.jobs.upkeep import healing  # noqa: PLC0415

    stages: dict[str, Callable[[Run], object]] = {
        "prepare": prepare,
        "extract": extract,
        "measure": measure,
        "probe": probe,
        "rank": partial(rank_and_report, arguments),
    }
    one = "rank" if arguments.command == "report" else arguments.command
    wanted = STAGES if one == "run" else (one,)
    guard, began = Guard(_limits(arguments)), time.monotonic()

    def work(run: Run) -> None:
        # A stage on its own reads what those before it have made, with the same settings.
        if wanted[0] != "prepare":
            require_prepared(run)
        if wanted[0] not in ("prepare", "extract"):
            require_extracted(run)
        guard.check(run.config, run.root, say)
        record(run.config, run.given or run.config, run.root)
        for number, stage in enumerate(wanted, 1):
            say(f"{number}/{len(wanted)} {stage}")
            stages[stage](run)
            if stage == "prepare":
                guard.check(run.config, run.root, say, prepared=True)

    with _opened(arguments) as run:
        run.require_readable()
        if run.cluster.has_begun and wanted[-1] == "rank":
            for name in AT_THE_END:  # while the engine starts
                import_module(name)
        healing(run, partial(work, run))
    say(f"done in {time.monotonic() - began:.0f} s")
    return DONE


def rank_and_report(arguments: argparse.Namespace, run: Run) -> None:
    """Rank the layers of a run's models by their scores, and write its report."""
    from layerrank.jobs.probe.stage import require_scores  # noqa: PLC0415
    from layerrank.jobs.rank.stage import rank  # noqa: PLC0415
    from layerrank.jobs.report.page import publish  # noqa: PLC0415

    require_scores(run)
    rankings = rank(run)
    publish(run, rankings, anew=arguments.command != "run")
    _verdicts(arguments, rankings)


def report(arguments: argparse.Namespace) -> int:
    """Rebuild the reports of an output, or that of a config's run."""
    if not ("://" in arguments.config or Path(arguments.config, BOOKS).is_dir()):
        if arguments.run or arguments.access:
            raise ConfigError(
                f"--run and --config are for the folder of an output, and {arguments.config} is "
                f"none: it has no {BOOKS}/"
            )
        return run(arguments)
    if given := [name for name in _REPLACING if getattr(arguments, name)]:
        raise ConfigError(
            f"the report of an output is of the config that it keeps: leave out --{given[0]}"
        )
    storage = looking.storage_of(arguments)
    root = looking.root_at(arguments.config, storage)
    for config in _kept(root, arguments.run, storage):
        _rebuild(arguments, config, root)
    return DONE


def _kept(root: Root, name: str | None, storage: StorageConfig) -> list[RunConfig]:
    """Return the configs that a root keeps of its runs, or the one of a name."""
    from layerrank.jobs.config.stored import stored  # noqa: PLC0415

    runs: dict[str, dict[str, Any]] = {each["name"]: each["given"] for each in stored(root)}
    if not runs:
        raise FileNotFoundError(
            f"{root.uri} keeps no config of a run; scores from elsewhere are ranked again by "
            "`layerrank rank --scores`"
        )
    if name is not None:
        runs = {name: runs[looking.known_run(name, [*runs], root)]}
    found = [RunConfig.model_validate(each) for each in runs.values()]
    return [each.model_copy(update={"storage": storage}) for each in found]


def _rebuild(arguments: argparse.Namespace, given: RunConfig, root: Root) -> None:
    """Rank a run and write its report from the tables alone: models and texts may be gone."""
    from layerrank.jobs.cluster.cluster import open_cluster  # noqa: PLC0415
    from layerrank.jobs.config.stored import continued, require_no_conflict, shown  # noqa: PLC0415
    from layerrank.jobs.run import Run  # noqa: PLC0415
    from layerrank.storage.lock import claimed  # noqa: PLC0415

    config = continued(given, root)
    root.check_writable()
    say(f"LayerRank: {config.name} -> {root.uri} (as it keeps it)")
    cluster = open_cluster(
        "process", address=None, config=config.cluster, verbose=arguments.verbose, say=say
    )
    with claimed(root, shown(config), partial(require_no_conflict, config, root)), cluster:
        chosen = _ranked(config, root)
        rank_and_report(arguments, Run(config, root, cluster, given=given, chosen=chosen))


def _ranked(config: RunConfig, root: Root) -> tuple[Subject, ...]:
    """Return the models that a run has ranked, wherever their files are by now."""
    from layerrank.jobs.subjects import by_step, resolve  # noqa: PLC0415

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

    with _opened(arguments) as run:
        night = evaluated(run, verbose=arguments.verbose)
    if arguments.quiet:
        for subject, why in night.failed.items():
            answer(f"failed: {subject}: {why}")
        for alert in night.regressed:
            answer(f"alert: {alert.text}")
    if night.failed:
        return FAILED
    return REGRESSED if night.regressed else DONE


@contextmanager
def _opened(arguments: argparse.Namespace) -> Iterator[Run]:
    """Give the run of a command; the first line that it prints says what runs it, and why.

    A nightly finds out which checkpoints are new when it has its lock, and is sized by one.
    """
    from layerrank.jobs.cluster.cluster import choose, open_cluster  # noqa: PLC0415
    from layerrank.jobs.config.stored import continued, require_no_conflict, shown  # noqa: PLC0415
    from layerrank.jobs.prepare.stage import most_tokens  # noqa: PLC0415
    from layerrank.jobs.run import Run, Seen, open_root  # noqa: PLC0415
    from layerrank.jobs.subjects import resolve  # noqa: PLC0415
    from layerrank.storage.lock import claimed  # noqa: PLC0415
    from layerrank.storage.manifest import Manifests  # noqa: PLC0415

    given, seen = _config(arguments), Seen()
    root = open_root(given, arguments.output)
    config = continued(given, root)
    is_nightly = arguments.command == "nightly"
    chosen = None if is_nightly else resolve(config.subjects, config.storage)
    manifests = Manifests(root, seen.manifests)
    asked = arguments.engine or config.cluster.engine
    engine, why = choose(
        arguments.address, asked, lambda: most_tokens(config, manifests, len(chosen or [0]))
    )
    title = "LayerRank nightly" if is_nightly else "LayerRank"
    say(f"{title}: {config.name} -> {root.uri} (engine {engine}: {why})")
    cluster = open_cluster(
        engine,
        address=arguments.address,
        config=config.cluster,
        preload=(*WORKERS, *AT_THE_END) if engine == "ray" else WORKERS,
        verbose=arguments.verbose,
        say=say,
    )
    with claimed(root, shown(config), partial(require_no_conflict, config, root)), cluster:
        seen.manifests.clear()  # another run may have ended since they were read
        yield Run(config, root, cluster, arguments.overwrite, given, chosen, seen)


def _config(arguments: argparse.Namespace) -> RunConfig:
    """Return the config with what the command line replaces, and the tasks of its folders."""
    config = load(arguments.config, arguments.sets, arguments.limit)
    return with_folders(overridden(config, arguments), arguments.texts)


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
    if makes_page and (recipe := scores_recipe(arguments.config, arguments.sets)):
        if arguments.limit:
            raise ConfigError(f"{arguments.config} ranks scores: it has no rows to --limit")
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
    from layerrank.storage.manifest import Manifests  # noqa: PLC0415

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
