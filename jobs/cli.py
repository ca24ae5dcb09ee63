"""The command line: `layerrank COMMAND`, what each command does, and the parser of them all.

Exit codes: 0 done; 1 failed or incomplete; 2 bad usage or config; 3 done, and a regression found.
Heavy imports wait until a command needs them, so that --help and query are quick.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from layerrank.jobs.cluster.console import printable, say
from layerrank.jobs.cluster.errors import DONE, FAILED, REGRESSED, explain
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.run import (
    RunConfig,
    add_overrides,
    load,
    overridden,
    recipes,
    scores_recipe,
)
from layerrank.jobs.config.settings import Engine, StorageConfig, SubjectConfig
from layerrank.jobs.plan import limits
from layerrank.jobs.prepare.folders import with_folders
from layerrank.operators.model.subject import Norm, Pooling, Transform
from layerrank.operators.ranking.choosing import Policy
from layerrank.storage.root import Root

if TYPE_CHECKING:
    from layerrank.jobs.run import Run

STAGES = ("prepare", "extract", "measure", "probe", "rank")
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error is one line on standard error."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a run does not die of a name in its story
        sys.stdout.reconfigure(errors="replace")
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.handler(arguments)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  (the outermost command)
        if getattr(arguments, "verbose", False):
            for line in "".join(traceback.format_exception(error)).splitlines():
                sys.stderr.write(f"{printable(line)}\n")
        message, code = explain(error)
        if isinstance(error, KeyboardInterrupt):
            message = "stopped; the same command goes on from here"
        sys.stderr.write(f"layerrank: {printable(message)}\n")
    return code


def run(arguments: argparse.Namespace) -> int:
    """Run one stage or all."""
    if scores := _scores_asked(arguments):
        return _rank_scores(*scores)
    from layerrank.jobs.config.stored import record  # noqa: PLC0415
    from layerrank.jobs.extract.stage import extract, require_extracted  # noqa: PLC0415
    from layerrank.jobs.measure.stage import measure  # noqa: PLC0415
    from layerrank.jobs.plan.words import Guard  # noqa: PLC0415
    from layerrank.jobs.prepare.stage import prepare, require_prepared  # noqa: PLC0415
    from layerrank.jobs.probe.stage import probe, require_scores  # noqa: PLC0415
    from layerrank.jobs.upkeep import healing  # noqa: PLC0415

    def rank_and_report(run: Run) -> None:
        from layerrank.jobs.rank.stage import rank  # noqa: PLC0415
        from layerrank.jobs.report.page import publish  # noqa: PLC0415

        require_scores(run)
        publish(run, rank(run), anew=arguments.command != "run")

    stages: dict[str, Callable[[Run], object]] = {
        "prepare": prepare,
        "extract": extract,
        "measure": measure,
        "probe": probe,
        "rank": rank_and_report,
    }
    wanted = STAGES if arguments.command == "run" else (arguments.command,)
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


def nightly(arguments: argparse.Namespace) -> int:
    """Evaluate the checkpoints that have no ranking yet, and compare each with its last one."""
    from layerrank.jobs.nightly.stage import nightly as evaluated  # noqa: PLC0415

    with _opened(arguments) as run:
        night = evaluated(run, verbose=arguments.verbose)
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
        folder = str(Path(arguments.config).parent)
        yield Run(config, root, cluster, arguments.overwrite, given, chosen, seen, folder)


def _config(arguments: argparse.Namespace) -> RunConfig:
    """Return the config with what the command line replaces, and the tasks of its folders."""
    return with_folders(overridden(load(arguments.config), arguments), arguments.texts)


def _scores_asked(arguments: argparse.Namespace) -> tuple[str, str | None, Policy] | None:
    """Return scores to rank without a model, where to, and the policy; None for a run."""
    policy = getattr(arguments, "policy", None)
    if scores := getattr(arguments, "scores", None):
        if arguments.config:
            raise ConfigError(f"give {arguments.config} or --scores, not both")
        return scores, arguments.output, policy or "best"
    if policy:
        raise ConfigError("--policy is for --scores; a run takes rank.policy of its config")
    if arguments.config is None:
        raise ConfigError("give a recipe or a YAML file, or --scores FILE to rank scores alone")
    if arguments.command in ("run", "rank") and (recipe := scores_recipe(arguments.config)):
        return recipe.scores, arguments.output or recipe.output, recipe.policy
    return None


def _rank_scores(scores: str, output: str | None, policy: Policy) -> int:
    from layerrank.jobs.rank.ranking import Settings  # noqa: PLC0415
    from layerrank.jobs.rank.score_file import rank_file  # noqa: PLC0415
    from layerrank.jobs.report.page import publish_scores  # noqa: PLC0415

    root = None
    if output:
        root = Root(output)
        root.check_writable()
    publish_scores(scores, root, rank_file(scores, Settings(policy=policy)))
    return DONE


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
        say(line)
    for line in unchecked:
        say(f"  {line}")
    require_within(found, _limits(arguments))
    return DONE


def _limits(arguments: argparse.Namespace) -> limits.Limits:
    """Return the bounds of a plan or a run; a single stage has none."""
    names = ("max_bytes", "max_gpu_hours", "tokens_per_second")
    return limits.Limits(*(getattr(arguments, name, None) for name in names))


def status(arguments: argparse.Namespace) -> int:
    """Say what every partition of an output holds; DONE if all are complete and as written."""
    from layerrank.jobs.upkeep import status as told  # noqa: PLC0415

    return told(_existing(arguments), verify=arguments.verify)


def repair(arguments: argparse.Namespace) -> int:
    """Delete what is damaged in an output, or what no config of it asks for."""
    from layerrank.jobs.upkeep import prune, repair  # noqa: PLC0415
    from layerrank.storage.lock import Claim, LockHeldError, claimed  # noqa: PLC0415

    root = _existing(arguments)

    def refuse(other: Claim) -> None:
        raise LockHeldError(f"{other.lease.holder} is at work on {root.uri}; wait for its end")

    with claimed(root, {}, refuse):
        return prune(root) if arguments.prune else repair(root)


def _existing(arguments: argparse.Namespace) -> Root:
    from layerrank.storage.manifest import require_format  # noqa: PLC0415

    root = Root(arguments.output, _storage(arguments).options())
    require_format(root)
    return root


def query(arguments: argparse.Namespace) -> int:
    """Answer a query."""
    from layerrank.storage.sql import connect  # noqa: PLC0415

    with connect(_existing(arguments)) as connection:
        relation = connection.sql(arguments.sql)
        if relation is not None:
            for line in str(relation).rstrip().split("\n"):
                say(line)
    return DONE


def export(arguments: argparse.Namespace) -> int:
    """Write the model cut at a layer, with what is done to its vectors."""
    from layerrank.jobs.export import (  # noqa: PLC0415
        Asked,
        ranked_point,
        ranked_subject,
        run_of,
        run_prompts,
    )
    from layerrank.jobs.export import export as exported  # noqa: PLC0415
    from layerrank.jobs.subjects import local, subject  # noqa: PLC0415
    from layerrank.operators.model.cut import CutPoint  # noqa: PLC0415

    storage, root = _storage(arguments), None
    given = {
        "revision": arguments.revision or "",
        "name": arguments.name or "",
        "adapter": arguments.adapter or "",
        "trust_remote_code": arguments.trust_remote_code,
    }
    if arguments.ranking:
        root = Root(arguments.ranking, storage.options())
    if arguments.subject:
        described = SubjectConfig(model=arguments.subject, **given)
    elif root:
        described = ranked_subject(root, arguments.group, given)
    else:
        raise ConfigError("give --subject MODEL, or --ranking OUTPUT for the model that it is of")
    each = local(subject(described), storage)
    asked = Asked(*(getattr(arguments, name) for name in Asked._fields))
    evidence, prompts = None, dict[str, str]()
    if root:
        config = run_of(root, each, arguments.group)
        limit = arguments.max_tokens or (config.extract.max_tokens if config else 512)
        point, evidence = ranked_point(root, each, asked, limit, arguments.group)
        prompts = run_prompts(config, each, storage)
    elif asked.layer is None:
        raise ConfigError("give --layer, or --ranking OUTPUT for the layer that it recommends")
    else:
        how = asked.norm or "final", asked.pooling or "mean"
        limit = arguments.max_tokens or 512
        point = CutPoint(asked.layer, *how, limit, asked.transform or "raw")
    whole = each, point, arguments.out, evidence
    say(f"  {exported(*whole, prompts=prompts, overwrite=arguments.overwrite)}")
    if evidence and evidence.row.get("verdict") == "not_enough_evidence":
        say("  a guess: the ranking has not enough evidence for this layer")
    return DONE


def _storage(arguments: argparse.Namespace) -> StorageConfig:
    return load(arguments.config).storage if arguments.config else StorageConfig()


def _parser() -> argparse.ArgumentParser:
    """Return the parser of all commands: which there are, what many share, what is one's own."""
    parser = argparse.ArgumentParser(
        prog="layerrank",
        description="Which layer of a language model to use: one pass over a corpus, every layer "
        "kept as Parquet, measured, probed and ranked.",
    )
    commands: dict[str, tuple[Callable[[argparse.Namespace], int], str]] = {
        "run": (run, "all stages; what exists is not made again"),
        **{stage: (run, f"only the stage {stage}") for stage in STAGES[:-1]},
        "rank": (run, "only the stage rank, or scores from elsewhere"),
        "report": (run, "rebuild the ranking and the report of an output"),
        "nightly": (nightly, "checkpoints without a ranking, each against its last one"),
        "plan": (plan, "passes, bytes, hours and cost, before a run"),
        "status": (status, "what an output holds, and what is unfinished"),
        "repair": (repair, "delete what is damaged in an output, and what came of it"),
        "query": (query, "SQL over the tables of an output"),
        "export": (export, "the model cut at a layer, as a folder to load"),
    }
    added = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    of: dict[str, argparse.ArgumentParser] = {}
    for name, (handler, text) in commands.items():
        of[name] = added.add_parser(name, help=text)
        of[name].set_defaults(handler=handler)
    of["report"].set_defaults(command="rank")
    names = ", ".join(recipes())
    for name in (*STAGES, "run", "report", "nightly", "plan"):
        add = of[name].add_argument
        add(
            "config",
            metavar="RECIPE|FILE",
            nargs="?" if name == "rank" else None,
            help=f"a recipe ({names}) or a YAML file",
        )
        add("--output", help="folder or s3:// prefix (default: the config's)")
        add_overrides(of[name])
    for name in (*STAGES, "run", "report", "nightly"):
        add = of[name].add_argument
        add(
            "--engine",
            choices=get_args(Engine),
            help="what runs the work (default: the config's, which is auto): ray, or processes of "
            "this machine for what is small",
        )
        add(
            "--address",
            help="a running Ray cluster: auto, or host:port (default: RAY_ADDRESS, else a local "
            "one)",
        )
        add("--overwrite", action="store_true", help="replace partitions made with other settings")
        add("--verbose", action="store_true", help="show workers' logs and tracebacks")
    of["rank"].add_argument(
        "--scores",
        metavar="FILE",
        help="rank this alone: Parquet or CSV with model, layer, task, score (and revision, fold), "
        "or a folder of mteb results, one folder layer-NN per layer",
    )
    of["rank"].add_argument(
        "--policy",
        choices=get_args(Policy),
        help="with --scores (default: best); a run has the key rank.policy of its config",
    )
    add = of["plan"].add_argument
    add("--measure", action="store_true", help="run the model on a sample here, for its speed")
    add(
        "--price-gb-month",
        type=limits.price,
        default=limits.PRICE_GB_MONTH,
        metavar="USD",
        help=f"of 2^30 bytes for a month (default: {limits.PRICE_GB_MONTH}, S3 Standard in "
        "us-east-1)",
    )
    add(
        "--price-1000-puts",
        type=limits.price,
        default=limits.PRICE_1000_PUTS,
        metavar="USD",
        help=f"of 1,000 PUT requests (default: {limits.PRICE_1000_PUTS}, the same)",
    )
    for name in ("run", "plan"):
        add = of[name].add_argument
        add(
            "--max-bytes",
            type=limits.parse_bytes,
            metavar="SIZE",
            help="refuse a run that would write more, such as 10GB or 500MiB",
        )
        add(
            "--max-gpu-hours",
            type=limits.positive,
            metavar="HOURS",
            help="refuse a run that would take more hours of one device",
        )
        add(
            "--tokens-per-second",
            type=limits.positive,
            metavar="N",
            help=f"assumed speed of one device (default: {limits.TOKENS_PER_SECOND:,.0f})",
        )
    for name in ("status", "repair", "query"):
        of[name].add_argument("output", help="folder or s3:// prefix")
    add = of["status"].add_argument
    add("--verify", action="store_true", help="read every shard and check its bytes")
    of["repair"].add_argument(
        "--prune", action="store_true", help="delete what no config of the output asks for instead"
    )
    of["query"].add_argument("sql", help="a DuckDB query; every table is a view")
    add = of["export"].add_argument
    add("out", metavar="OUT", help="folder to write")
    add(
        "--subject",
        metavar="MODEL",
        help="hub id, folder, or package:IMPORT_NAME/FOLDER, or a GGUF file in one of these "
        "(default: the model of --ranking)",
    )
    add("--adapter", help="a LoRA adapter of the model, merged into it")
    add("--revision", help="of the model (default: main, of a folder local)")
    add("--name", help="the model's name in the ranking, if it is another one")
    add("--layer", type=int, help="default: the one that --ranking recommends")
    add("--norm", choices=get_args(Norm), help="default: as ranked; final")
    add("--pooling", choices=get_args(Pooling), help="default: as ranked; mean")
    add(
        "--transform",
        choices=get_args(Transform),
        help="default: as ranked; raw; z and abtt are as --ranking OUTPUT has fitted them",
    )
    add("--max-tokens", type=int, help="of a text (default: as in the run of --ranking; 512)")
    add("--ranking", metavar="OUTPUT", help="a run's output, cited as evidence")
    add("--group", help="the run in that output, where it holds several")
    add("--overwrite", action="store_true", help="replace an exported model")
    add("--trust-remote-code", action="store_true", help="run the model's own code")
    for name in ("status", "repair", "query", "export"):
        of[name].add_argument(
            "--config", metavar="FILE", help="a config whose `storage:` reaches S3"
        )
    return parser
