"""What the commands of `layerrank` do, each from its parsed arguments to an exit code.

Heavy imports wait until a command needs them, so that --help and query are quick.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from jobs import config as configs
from jobs.config import ConfigError, StorageConfig
from jobs.console import say
from jobs.errors import DONE, FAILED, REGRESSED
from jobs.overrides import overridden
from storage.root import Root

if TYPE_CHECKING:
    from jobs.plan import Plan
    from jobs.run import Run

STAGES = ("prepare", "extract", "measure", "probe", "rank")
_GIB = 1 << 30


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

    config = overridden(configs.load(arguments.config), arguments)
    stages: dict[str, Callable[[Run], object]] = {
        "prepare": prepare.prepare,
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
        # A stage on its own must not read what was made with other settings.
        if wanted[0] != "prepare":
            prepare.require_prepared(run)
        if wanted[0] not in ("prepare", "extract"):
            extract.require_extracted(run)
        say(f"LayerRank: {config.name} -> {run.root.uri}")
        for number, stage in enumerate(wanted, 1):
            say(f"{number}/{len(wanted)} {stage}")
            stages[stage](run)
    say(f"done in {time.monotonic() - began:.0f} s")
    return DONE


def nightly(arguments: argparse.Namespace) -> int:
    """Evaluate the checkpoints that have no ranking yet, and compare each with its last one."""
    from jobs.cluster import Cluster  # noqa: PLC0415
    from jobs.nightly import nightly as evaluated  # noqa: PLC0415
    from jobs.run import Run, open_root  # noqa: PLC0415

    config = overridden(configs.load(arguments.config), arguments)
    with Cluster(arguments.address, config.cluster, arguments.verbose, say) as cluster:
        run = Run(config, open_root(config, arguments.output), cluster, arguments.overwrite)
        night = evaluated(run, verbose=arguments.verbose)
    if night.failed:
        return FAILED
    return REGRESSED if night.regressed else DONE


def plan(arguments: argparse.Namespace) -> int:
    """Say what a run would do and write."""
    from jobs.plan import plan as planned  # noqa: PLC0415

    config = overridden(configs.load(arguments.config), arguments)
    uri = arguments.output or config.output
    root = Root(uri, config.storage.options() if "://" in uri else {}) if uri else None
    speed = arguments.tokens_per_second
    say(f"plan of {config.name} (prompts, tokens and bytes are upper bounds)")
    total = 0.0
    for each in planned(config, root):
        total += each.gpu_hours(speed)
        say(
            f"  {each.subject} over {each.dataset}: {each.prompts:,} prompts in {each.shards} "
            f"shards, {each.passes:,} forward passes for {each.layers} layers, "
            f"{each.tokens / 1e6:,.1f} M tokens, embeddings {each.embedding_bytes / _GIB:,.2f} "
            f"GiB, tokens {each.token_bytes / _GIB:,.2f} GiB"
        )
        say(f"    token metrics {_token_metrics(each)}")
    say(f"  about {total:.2f} device-hours at {speed:,.0f} tokens/s (--tokens-per-second)")
    return DONE


def _token_metrics(each: Plan) -> str:
    """Say where the token metrics of a plan are computed, and from how many token states."""
    from jobs.targets import FUSED_ABOVE  # noqa: PLC0415

    where = {
        (False, False): "not measured",
        (False, True): f"from the stored states of {each.token_plan.stored:,} prompts",
        (True, False): "fused into the model actors, no token states stored",
        (True, True): "fused into the model actors; states of "
        f"{each.token_plan.stored:,} prompts stored",
    }[each.token_plan.fused, each.token_plan.stored > 0]
    return (
        f"{where} (every prompt's states: {each.every_token_bytes / _GIB:,.2f} GiB; by default "
        f"fused above {FUSED_ABOVE / _GIB:g} GiB)"
    )


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

    described = configs.SubjectConfig(
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
