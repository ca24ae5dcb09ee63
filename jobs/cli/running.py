"""What makes tables: a run, its stages, scores from elsewhere, a nightly; and the plan of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from layerrank.jobs.cli.parser import STAGES
from layerrank.jobs.cluster.console import answer, say
from layerrank.jobs.cluster.errors import DONE, FAILED, REGRESSED
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.run import RunConfig, load, overridden, scores_recipe
from layerrank.jobs.plan import limits
from layerrank.jobs.prepare.folders import with_folders
from layerrank.operators.ranking import Policy
from layerrank.storage.root import Root

if TYPE_CHECKING:
    from layerrank.jobs.rank.ranking import Ranking
    from layerrank.jobs.run import Run
    from layerrank.jobs.whole import Where


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


def nightly(arguments: argparse.Namespace) -> int:
    """Evaluate the checkpoints that have no ranking yet, and compare each with its last one."""
    from layerrank.jobs.nightly.stage import nightly as evaluated  # noqa: PLC0415
    from layerrank.jobs.whole import opened  # noqa: PLC0415

    with opened(_config(arguments), _where(arguments), nightly=True) as run:
        night = evaluated(run, verbose=arguments.verbose)
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
