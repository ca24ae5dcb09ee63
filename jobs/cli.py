"""The command line: `layerrank COMMAND`. Each command's parser stands beside what it does.

Exit codes: 0 done; 1 failed or incomplete; 2 bad usage or config; 3 done, and a regression found.
Heavy imports wait until a command needs them, so that --help and query are quick.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, get_args

from jobs.cluster.console import say
from jobs.cluster.errors import DONE, FAILED, REGRESSED, explain
from jobs.config.blocks import ConfigError
from jobs.config.run import RunConfig, add_overrides, load, overridden, recipes
from jobs.config.settings import Engine, Policy, StorageConfig, SubjectConfig
from jobs.plan.limits import Limits, add_limits, add_prices
from jobs.prepare.folders import with_folders
from operators.model.subject import Norm, Pooling
from storage.root import Root

if TYPE_CHECKING:
    from jobs.run import Run

_Parsers = argparse._SubParsersAction  # what add_subparsers gives has no public name
STAGES = ("prepare", "extract", "measure", "probe", "rank")
# The modules of the stages' workers, which processes of this machine import once.
WORKERS = (
    "jobs.prepare.stage",
    "jobs.extract.worker",
    "jobs.measure.stage",
    "jobs.probe.worker",
    "transformers.models.auto.modeling_auto",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error is one line on standard error."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.handler(arguments)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  (the outermost command)
        if getattr(arguments, "verbose", False):
            traceback.print_exception(error)
        message, code = explain(error)
        if isinstance(error, KeyboardInterrupt):
            message = "stopped; the same command goes on from here"
        sys.stderr.write(f"layerrank: {message}\n")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="layerrank",
        description="Which layer of a language model to use: one pass over a corpus, every layer "
        "kept as Parquet, measured, probed and ranked.",
    )
    added = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_runs, _add_plan, _add_status, _add_query, _add_export):
        add(added)
    return parser


# run, each of its stages, report and nightly


def _add_runs(added: _Parsers[argparse.ArgumentParser]) -> None:
    add_limits(_add_run(added, "run", "all stages; what exists is not made again"))
    for stage in STAGES[:-1]:
        _add_run(added, stage, f"only the stage {stage}")
    ranked = _add_run(added, "rank", "only the stage rank, or scores from elsewhere", nargs="?")
    ranked.add_argument(
        "--scores",
        metavar="FILE",
        help="rank this alone: Parquet or CSV with model, layer, task, score (and revision, fold), "
        "or a folder of mteb results, one folder layer-NN per layer",
    )
    ranked.add_argument(
        "--policy",
        choices=get_args(Policy),
        default="cheapest_equal",
        help="with --scores; a config has its own (default: cheapest_equal)",
    )
    rebuilt = _add_run(added, "report", "rebuild the ranking and the report of an output")
    rebuilt.set_defaults(command="rank")
    text = "checkpoints without a ranking, each against its last one"
    _add_run(added, "nightly", text).set_defaults(handler=nightly)


def _add_run(
    added: _Parsers[argparse.ArgumentParser], name: str, text: str, nargs: str | None = None
) -> argparse.ArgumentParser:
    parser = added.add_parser(name, help=text)
    _add_config(parser, nargs)
    parser.add_argument(
        "--engine",
        choices=get_args(Engine),
        help="what runs the work (default: the config's, which is auto): ray, or processes of this "
        "machine for what is small",
    )
    parser.add_argument(
        "--address",
        help="a running Ray cluster: auto, or host:port (default: RAY_ADDRESS, else a local one)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace partitions made with other settings"
    )
    parser.add_argument("--verbose", action="store_true", help="show workers' logs and tracebacks")
    parser.set_defaults(handler=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run one stage or all."""
    if getattr(arguments, "scores", None):
        return _rank_scores(arguments)
    if arguments.config is None:
        raise ConfigError("give a recipe or a YAML file, or --scores FILE to rank scores alone")
    from jobs.extract.stage import extract, require_extracted  # noqa: PLC0415
    from jobs.measure.stage import measure  # noqa: PLC0415
    from jobs.prepare.stage import prepare, require_prepared  # noqa: PLC0415
    from jobs.probe.stage import probe, require_scores  # noqa: PLC0415
    from jobs.rank.stage import rank  # noqa: PLC0415
    from jobs.report.page import publish  # noqa: PLC0415
    from jobs.subjects import check, require_lengths  # noqa: PLC0415

    def rank_and_report(run: Run) -> None:
        require_scores(run)
        publish(run, rank(run))

    def prepare_within_limits(run: Run) -> None:
        prepare(run)
        within(run.config, run.root, say, prepared=True)

    within = _within(_limits(arguments))
    stages: dict[str, Callable[[Run], object]] = {
        "prepare": prepare_within_limits,
        "extract": extract,
        "measure": measure,
        "probe": probe,
        "rank": rank_and_report,
    }
    wanted = STAGES if arguments.command == "run" else (arguments.command,)
    began = time.monotonic()
    with _opened(arguments, "LayerRank", each_checkpoint=True) as run:
        for each in run.subjects:
            check(each, run.config.storage)
            require_lengths(run.config.conditions, each, run.config.storage)
        # A stage on its own reads what those before it have made, with the same settings.
        if wanted[0] != "prepare":
            require_prepared(run)
        if wanted[0] not in ("prepare", "extract"):
            require_extracted(run)
        within(run.config, run.root, say)
        for number, stage in enumerate(wanted, 1):
            say(f"{number}/{len(wanted)} {stage}")
            stages[stage](run)
    say(f"done in {time.monotonic() - began:.0f} s")
    return DONE


def _within(limits: Limits) -> Callable[..., None]:
    """Return what keeps a run from starting that would exceed its limits."""
    if not limits:
        return lambda *_, **__: None
    from jobs.plan.words import Guard  # noqa: PLC0415  (imports s3fs)

    return Guard(limits).check


def nightly(arguments: argparse.Namespace) -> int:
    """Evaluate the checkpoints that have no ranking yet, and compare each with its last one."""
    from jobs.nightly.stage import nightly as evaluated  # noqa: PLC0415

    with _opened(arguments, "LayerRank nightly", each_checkpoint=False) as run:
        night = evaluated(run, verbose=arguments.verbose)
    if night.failed:
        return FAILED
    return REGRESSED if night.regressed else DONE


@contextmanager
def _opened(arguments: argparse.Namespace, title: str, *, each_checkpoint: bool) -> Iterator[Run]:
    """Give the run of a command; the first line that it prints says what runs it, and why.

    A nightly finds out which checkpoints are new when it has its lock, and is sized by one.
    """
    from jobs.cluster.cluster import choose, open_cluster  # noqa: PLC0415
    from jobs.prepare.stage import most_tokens  # noqa: PLC0415
    from jobs.run import Run, Seen, open_root  # noqa: PLC0415
    from jobs.subjects import resolve  # noqa: PLC0415
    from storage.manifest import Manifests  # noqa: PLC0415

    config, seen = _config(arguments), Seen()
    root = open_root(config, arguments.output)
    chosen = resolve(config.subjects, config.storage) if each_checkpoint else None
    manifests = Manifests(root, seen.manifests)
    asked = arguments.engine or config.cluster.engine
    engine, why = choose(
        arguments.address, asked, lambda: most_tokens(config, manifests, len(chosen or [0]))
    )
    say(f"{title}: {config.name} -> {root.uri} (engine {engine}: {why})")
    with open_cluster(
        engine,
        address=arguments.address,
        config=config.cluster,
        preload=WORKERS,
        verbose=arguments.verbose,
        say=say,
    ) as cluster:
        yield Run(config, root, cluster, arguments.overwrite, chosen, seen)


def _config(arguments: argparse.Namespace) -> RunConfig:
    """Return the config with what the command line replaces, and the tasks of its folders."""
    return with_folders(overridden(load(arguments.config), arguments), arguments.texts)


def _rank_scores(arguments: argparse.Namespace) -> int:
    from jobs.rank.ranking import Settings  # noqa: PLC0415
    from jobs.rank.score_file import rank_file  # noqa: PLC0415
    from jobs.report.page import publish_scores  # noqa: PLC0415

    if arguments.config:
        raise ConfigError(f"give {arguments.config} or --scores, not both")
    root = None
    if arguments.output:
        root = Root(arguments.output)
        root.check_writable()
    ranked = rank_file(arguments.scores, Settings(policy=arguments.policy))
    publish_scores(arguments.scores, root, ranked)
    return DONE


# plan


def _add_plan(added: _Parsers[argparse.ArgumentParser]) -> None:
    planned = added.add_parser("plan", help="passes, bytes, hours and cost, before a run")
    _add_config(planned)
    planned.add_argument(
        "--measure", action="store_true", help="run the model on a sample here, for its speed"
    )
    add_limits(planned)
    add_prices(planned)
    planned.set_defaults(handler=plan)


def plan(arguments: argparse.Namespace) -> int:
    """Say what a run would do and write."""
    from jobs.plan.plan import plan as planned  # noqa: PLC0415
    from jobs.plan.words import require_within, told  # noqa: PLC0415

    config = _config(arguments)
    uri = arguments.output or config.output
    root = Root(uri, config.storage.options()) if uri else None
    found = planned(config, root, measure=arguments.measure)
    prices = arguments.price_gb_month, arguments.price_1000_puts
    for line in told(found, arguments.tokens_per_second, *prices):
        say(line)
    require_within(found, _limits(arguments))
    return DONE


def _limits(arguments: argparse.Namespace) -> Limits:
    """Return the bounds of a plan or a run; a single stage has none."""
    names = ("max_bytes", "max_gpu_hours", "tokens_per_second")
    return Limits(*(getattr(arguments, name, None) for name in names))


# status and query


def _add_status(added: _Parsers[argparse.ArgumentParser]) -> None:
    shown = added.add_parser("status", help="what an output holds, and what is unfinished")
    shown.add_argument("output", help="folder or s3:// prefix")
    shown.add_argument("--verify", action="store_true", help="read every shard and check its bytes")
    _add_storage(shown)
    shown.set_defaults(handler=status)


def status(arguments: argparse.Namespace) -> int:
    """Say what an output holds."""
    from jobs.status import status as held  # noqa: PLC0415

    root = Root(arguments.output, _storage(arguments).options())
    complete = held(root, say, check_bytes=arguments.verify)
    return DONE if complete else FAILED


def _add_query(added: _Parsers[argparse.ArgumentParser]) -> None:
    asked = added.add_parser("query", help="SQL over the tables of an output")
    asked.add_argument("output", help="folder or s3:// prefix")
    asked.add_argument("sql", help="a DuckDB query; every table is a view")
    _add_storage(asked)
    asked.set_defaults(handler=query)


def query(arguments: argparse.Namespace) -> int:
    """Answer a query."""
    from storage.sql import connect  # noqa: PLC0415

    with connect(Root(arguments.output, _storage(arguments).options())) as connection:
        relation = connection.sql(arguments.sql)
        if relation is not None:
            say(str(relation).rstrip())
    return DONE


# export


def _add_export(added: _Parsers[argparse.ArgumentParser]) -> None:
    parser = added.add_parser("export", help="the model cut at a layer, as a folder to load")
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument(
        "--subject",
        required=True,
        metavar="MODEL",
        help="hub id, folder, or package:IMPORT_NAME/FOLDER",
    )
    parser.add_argument("--revision", help="of the model (default: main, of a folder local)")
    parser.add_argument("--name", help="the model's name in the ranking, if it is another one")
    parser.add_argument("--layer", type=int, help="default: the one that --ranking recommends")
    parser.add_argument("--norm", choices=get_args(Norm), help="default: as ranked; final")
    parser.add_argument("--pooling", choices=get_args(Pooling), help="default: as ranked; mean")
    parser.add_argument("--max-tokens", type=int, default=512, help="of a text (default: 512)")
    parser.add_argument("--ranking", metavar="OUTPUT", help="a run's output, cited as evidence")
    parser.add_argument("--group", help="the run in that output, where it holds several")
    parser.add_argument("--overwrite", action="store_true", help="replace an exported model")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's own code")
    _add_storage(parser)
    parser.set_defaults(handler=export)


def export(arguments: argparse.Namespace) -> int:
    """Write the model cut at a layer."""
    from jobs.export import export as exported  # noqa: PLC0415
    from jobs.export import ranked_layer  # noqa: PLC0415
    from jobs.subjects import local, subject  # noqa: PLC0415
    from operators.model.cut import CutPoint  # noqa: PLC0415

    described = SubjectConfig(
        model=arguments.subject,
        revision=arguments.revision or "",
        name=arguments.name or "",
        trust_remote_code=arguments.trust_remote_code,
    )
    storage = _storage(arguments)
    each = local(subject(described), storage)
    layer, norm, pooling, evidence = arguments.layer, arguments.norm, arguments.pooling, None
    if arguments.ranking:
        root = Root(arguments.ranking, storage.options())
        row, evidence = ranked_layer(root, each, layer, arguments.group)
        layer, norm, pooling = row["layer"], norm or row["norm"], pooling or row["pooling"]
    if layer is None:
        raise ConfigError("give --layer, or --ranking OUTPUT for the layer that it recommends")
    point = CutPoint(layer, norm or "final", pooling or "mean", arguments.max_tokens)
    say(f"  {exported(each, point, arguments.out, evidence, overwrite=arguments.overwrite)}")
    return DONE


# what commands share


def _add_config(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    names = ", ".join(recipes())
    parser.add_argument(
        "config", metavar="RECIPE|FILE", nargs=nargs, help=f"a recipe ({names}) or a YAML file"
    )
    parser.add_argument("--output", help="folder or s3:// prefix (default: the config's)")
    add_overrides(parser)


def _add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="a config whose `storage:` reaches S3")


def _storage(arguments: argparse.Namespace) -> StorageConfig:
    return load(arguments.config).storage if arguments.config else StorageConfig()
