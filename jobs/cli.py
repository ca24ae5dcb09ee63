"""The command line: `layerrank COMMAND`, the same as `python -m jobs COMMAND`.

Exit codes: 0 done; 1 failed or incomplete; 2 bad usage or config.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import duckdb

from jobs import config as configs
from jobs.config import ConfigError
from jobs.console import say
from operators.subject import ModelUnavailableError, read_shape
from storage.manifest import SettingsConflictError
from storage.root import Root

if TYPE_CHECKING:
    from jobs.plan import Plan

DONE, FAILED, USAGE = 0, 1, 2
_OUR_USAGE_ERRORS = (ConfigError, SettingsConflictError, ModelUnavailableError)
# A file that is not there is the user's to mend on the driver; in a worker something was lost.
_USAGE_ERRORS = (*_OUR_USAGE_ERRORS, FileNotFoundError, PermissionError, duckdb.Error)
_STAGES = ("prepare", "extract", "measure", "probe", "rank")
_GIB = 1 << 30


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error is one line on standard error."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.handler(arguments)
    except KeyboardInterrupt:
        return _fail(arguments, KeyboardInterrupt("stopped; the same command goes on from here"))
    except Exception as error:  # noqa: BLE001  (the outermost command: report, then exit non-zero)
        return _fail(arguments, error)
    return code


def _fail(arguments: argparse.Namespace, error: BaseException) -> int:
    if getattr(arguments, "verbose", False):
        traceback.print_exception(error)
    kind, message, code = _explain(error)
    sys.stderr.write(f"layerrank: {kind}{' '.join(message.split())}\n")
    return code


def _explain(error: BaseException, *, in_worker: bool = False) -> tuple[str, str, int]:
    """Return a prefix, the message and the exit code of an error, wherever it was raised.

    What a worker raised comes wrapped by Ray: the error itself is the cause or, where the cause is
    one of Ray's own or an actor died of it, the last other error of the traceback in the text.
    """
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException) and not _is_of_ray(cause):
        return _explain(cause, in_worker=True)
    name, message = type(error).__name__, str(error)
    if _is_of_ray(error):
        raised = re.findall(
            r"^\s*(?!ray\.)(?:\w+\.)*(\w+(?:Error|Exception)): (.+)$", message, re.MULTILINE
        )
        name, message = raised[-1] if raised else (name, message)
    usage = _OUR_USAGE_ERRORS if in_worker else _USAGE_ERRORS
    if name in {each.__name__ for each in _OUR_USAGE_ERRORS} or isinstance(error, usage):
        return "", message, USAGE
    known = isinstance(error, (ValueError, OSError, RuntimeError, KeyboardInterrupt))
    for_people = (known or name in ("ValueError", "RuntimeError")) and message
    return "" if for_people else f"{name}: ", message, FAILED


def _is_of_ray(error: BaseException) -> bool:
    return type(error).__module__.startswith("ray.")


def _run(arguments: argparse.Namespace) -> int:
    # Heavy imports wait until a command needs them, so that --help and query are quick.
    from jobs import extract, measure, prepare, probe, rank, report  # noqa: PLC0415
    from jobs.cluster import Cluster  # noqa: PLC0415
    from jobs.run import Run, open_root  # noqa: PLC0415

    def rank_and_report(run: Run) -> None:
        probe.require_scores(run)
        report.publish(run, rank.rank(run))

    config = configs.load(arguments.config)
    stages: dict[str, Callable[[Run], object]] = {
        "prepare": prepare.prepare,
        "extract": extract.extract,
        "measure": measure.measure,
        "probe": probe.probe,
        "rank": rank_and_report,
    }
    wanted = _STAGES if arguments.command == "run" else (arguments.command,)
    began = time.monotonic()
    with Cluster(arguments.address, config.cluster, arguments.verbose, say) as cluster:
        run = Run(config, open_root(config, arguments.output), cluster, arguments.overwrite)
        for each in run.subjects:
            read_shape(each)
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


def _plan(arguments: argparse.Namespace) -> int:
    from jobs.plan import plan  # noqa: PLC0415

    config = configs.load(arguments.config)
    uri = arguments.output or config.output
    root = Root(uri, config.storage.options() if "://" in uri else {}) if uri else None
    speed = arguments.tokens_per_second
    say(f"plan of {config.name} (prompts, tokens and bytes are upper bounds)")
    total = 0.0
    for each in plan(config, root):
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


def _status(arguments: argparse.Namespace) -> int:
    from jobs.status import status  # noqa: PLC0415

    complete = status(_existing_root(arguments), say, check_bytes=arguments.verify)
    return DONE if complete else FAILED


def _query(arguments: argparse.Namespace) -> int:
    from storage.sql import connect  # noqa: PLC0415

    with connect(_existing_root(arguments)) as connection:
        relation = connection.sql(arguments.sql)
        if relation is not None:
            say(str(relation).rstrip())
    return DONE


def _existing_root(arguments: argparse.Namespace) -> Root:
    storage = configs.load(arguments.config).storage if arguments.config else None
    remote = "://" in arguments.output
    return Root(arguments.output, storage.options() if storage and remote else {})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="layerrank",
        description="Which layer of a language model to use: one pass over a corpus, every layer "
        "kept as Parquet, measured, probed and ranked.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands, "run", "all stages; what exists is not made again")
    for stage in _STAGES:
        _add_run(commands, stage, f"only the stage {stage}")
    planned = commands.add_parser("plan", help="shards, passes, bytes and hours, before a run")
    _add_config(planned)
    planned.add_argument(
        "--tokens-per-second",
        type=float,
        default=50_000.0,
        help="assumed speed of one device (default: 50,000)",
    )
    planned.set_defaults(handler=_plan)
    shown = commands.add_parser("status", help="what an output holds, and what is unfinished")
    shown.add_argument("output", help="folder or s3:// prefix")
    shown.add_argument("--verify", action="store_true", help="read every shard and check its bytes")
    _add_storage(shown)
    shown.set_defaults(handler=_status)
    asked = commands.add_parser("query", help="SQL over the tables of an output")
    asked.add_argument("output", help="folder or s3:// prefix")
    asked.add_argument("sql", help="a DuckDB query; every table is a view")
    _add_storage(asked)
    asked.set_defaults(handler=_query)
    rebuilt = _add_run(commands, "report", "rebuild the ranking and the report of an output")
    rebuilt.set_defaults(command="rank")
    return parser


def _add_run(commands: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:  # type: ignore[type-arg]
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text)
    _add_config(parser)
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_ADDRESS"),
        help="a running Ray cluster: auto, or host:port (default: start a local one)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace partitions made with other settings"
    )
    parser.add_argument("--verbose", action="store_true", help="show Ray's log and tracebacks")
    parser.set_defaults(handler=_run)
    return parser


def _add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="a config whose `storage:` reaches S3")


def _add_config(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(configs.recipes())
    parser.add_argument("config", metavar="RECIPE|FILE", help=f"a recipe ({names}) or a YAML file")
    parser.add_argument("--output", help="folder or s3:// prefix (default: the config's)")
