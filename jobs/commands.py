"""What the commands of `layerrank` do, each from its parsed arguments to an exit code.

Heavy imports wait until a command needs them, so that --help and query are quick.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from jobs import config as configs
from jobs.config import ConfigError, RunConfig
from jobs.console import say
from jobs.errors import DONE, FAILED, REGRESSED
from jobs.folders import with_folders
from jobs.limits import Guard, Limits, Rates, require_within
from jobs.overrides import overridden
from jobs.settings import StorageConfig, SubjectConfig
from storage.root import Root

if TYPE_CHECKING:
    from jobs.run import Run

STAGES = ("prepare", "extract", "measure", "probe", "rank")


def run(arguments: argparse.Namespace) -> int:
    """Run one stage or all."""
    if getattr(arguments, "scores", None):
        return _rank_scores(arguments)
    if arguments.config is None:
        raise ConfigError("give a recipe or a YAML file, or --scores FILE to rank scores alone")
    from jobs import extract, measure, prepare, probe, rank, report  # noqa: PLC0415
    from jobs.checkpoints import check  # noqa: PLC0415
    from jobs.cluster import Cluster  # noqa: PLC0415
    from jobs.lengths import require_lengths  # noqa: PLC0415
    from jobs.run import Run, open_root  # noqa: PLC0415

    def rank_and_report(run: Run) -> None:
        probe.require_scores(run)
        report.publish(run, rank.rank(run))

    def prepare_within_limits(run: Run) -> None:
        prepare.prepare(run)
        guard.check(run.config, run.root, say, prepared=True)

    config = _config(arguments)
    guard = Guard(_limits(arguments))
    stages: dict[str, Callable[[Run], object]] = {
        "prepare": prepare_within_limits,
        "extract": extract.extract,
        "measure": measure.measure,
        "probe": probe.probe,
        "rank": rank_and_report,
    }
    wanted = STAGES if arguments.command == "run" else (arguments.command,)
    began = time.monotonic()
    with Cluster(arguments.address, config.cluster, arguments.verbose, say) as cluster:
        run = Run(config, open_root(config, arguments.output), cluster, arguments.overwrite)
        for each in run.subjects:
            check(each, config.storage)
            require_lengths(config, each)
        _require_before(wanted[0], run)
        say(f"LayerRank: {config.name} -> {run.root.uri}")
        guard.check(config, run.root, say)
        for number, stage in enumerate(wanted, 1):
            say(f"{number}/{len(wanted)} {stage}")
            stages[stage](run)
    say(f"done in {time.monotonic() - began:.0f} s")
    return DONE


def _require_before(stage: str, run: Run) -> None:
    """Raise if a stage on its own would read what is not there, or made with other settings."""
    from jobs import extract, prepare  # noqa: PLC0415

    if stage != "prepare":
        prepare.require_prepared(run)
    if stage not in ("prepare", "extract"):
        extract.require_extracted(run)


def _config(arguments: argparse.Namespace) -> RunConfig:
    """Return the config with what the command line replaces, and the tasks of its folders."""
    return with_folders(overridden(configs.load(arguments.config), arguments), arguments.texts)


def nightly(arguments: argparse.Namespace) -> int:
    """Evaluate the checkpoints that have no ranking yet, and compare each with its last one."""
    from jobs.cluster import Cluster  # noqa: PLC0415
    from jobs.nightly import nightly as evaluated  # noqa: PLC0415
    from jobs.run import Run, open_root  # noqa: PLC0415

    config = _config(arguments)
    with Cluster(arguments.address, config.cluster, arguments.verbose, say) as cluster:
        run = Run(config, open_root(config, arguments.output), cluster, arguments.overwrite)
        night = evaluated(run, verbose=arguments.verbose)
    if night.failed:
        return FAILED
    return REGRESSED if night.regressed else DONE


def plan(arguments: argparse.Namespace) -> int:
    """Say what a run would do and write."""
    from jobs.plan import plan as planned  # noqa: PLC0415
    from jobs.wording_plan import told  # noqa: PLC0415

    config = _config(arguments)
    uri = arguments.output or config.output
    root = Root(uri, config.storage.options() if "://" in uri else {}) if uri else None
    found = planned(config, root, measure=arguments.measure)
    for line in told(found, _rates(arguments)):
        say(line)
    require_within(found, _limits(arguments))
    return DONE


def _rates(arguments: argparse.Namespace) -> Rates:
    return Rates(arguments.tokens_per_second, arguments.price_gb_month, arguments.price_1000_puts)


def _limits(arguments: argparse.Namespace) -> Limits:
    """Return the bounds of a plan or a run; a single stage has none."""
    names = ("max_bytes", "max_gpu_hours", "tokens_per_second")
    return Limits(*(getattr(arguments, name, None) for name in names))


def status(arguments: argparse.Namespace) -> int:
    """Say what an output holds."""
    from jobs.status import status as held  # noqa: PLC0415

    complete = held(_root_of(arguments.output, arguments), say, check_bytes=arguments.verify)
    return DONE if complete else FAILED


def query(arguments: argparse.Namespace) -> int:
    """Answer a query."""
    from storage.sql import connect  # noqa: PLC0415

    with connect(_root_of(arguments.output, arguments)) as connection:
        relation = connection.sql(arguments.sql)
        if relation is not None:
            say(str(relation).rstrip())
    return DONE


def export(arguments: argparse.Namespace) -> int:
    """Write the model cut at a layer."""
    from jobs.checkpoints import local  # noqa: PLC0415
    from jobs.export import export as exported  # noqa: PLC0415
    from jobs.export_ranked import ranked_layer  # noqa: PLC0415
    from jobs.subjects import subject  # noqa: PLC0415
    from operators.cut import CutPoint  # noqa: PLC0415

    described = SubjectConfig(
        model=arguments.subject,
        revision=arguments.revision or "",
        name=arguments.name or "",
        trust_remote_code=arguments.trust_remote_code,
    )
    storage = configs.load(arguments.config).storage if arguments.config else StorageConfig()
    each = local(subject(described), storage)
    layer, norm, pooling, evidence = arguments.layer, arguments.norm, arguments.pooling, None
    if arguments.ranking:
        root = _root_of(arguments.ranking, arguments)
        row, evidence = ranked_layer(root, each, layer, arguments.group)
        layer, norm, pooling = row["layer"], norm or row["norm"], pooling or row["pooling"]
    if layer is None:
        raise ConfigError("give --layer, or --ranking OUTPUT for the layer that it recommends")
    point = CutPoint(layer, norm or "final", pooling or "mean", arguments.max_tokens)
    say(f"  {exported(each, point, arguments.out, evidence, overwrite=arguments.overwrite)}")
    return DONE


def _rank_scores(arguments: argparse.Namespace) -> int:
    from jobs.elsewhere import rank_scores  # noqa: PLC0415

    if arguments.config:
        raise ConfigError(f"give {arguments.config} or --scores, not both")
    root = None
    if arguments.output:
        root = Root(arguments.output)
        root.check_writable()
    rank_scores(arguments.scores, root, policy=arguments.policy)
    return DONE


def _root_of(output: str, arguments: argparse.Namespace) -> Root:
    storage = configs.load(arguments.config).storage if arguments.config else None
    return Root(output, storage.options() if storage and "://" in output else {})
