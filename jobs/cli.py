"""The command line: `layerrank COMMAND`, the same as `python -m jobs COMMAND`.

Exit codes: 0 done; 1 failed or incomplete; 2 bad usage or config; 3 done, and a regression found.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from typing import get_args

from jobs import commands
from jobs import config as configs
from jobs.commands import STAGES
from jobs.errors import explain
from jobs.folders import add_texts
from jobs.limits import add_limits, add_prices
from jobs.overrides import add_subject
from jobs.settings import Norm, Policy, Pooling


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
    message, code = explain(error)
    sys.stderr.write(f"layerrank: {message}\n")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="layerrank",
        description="Which layer of a language model to use: one pass over a corpus, every layer "
        "kept as Parquet, measured, probed and ranked.",
    )
    added = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
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
    planned = added.add_parser("plan", help="passes, bytes, hours and cost, before a run")
    _add_config(planned)
    planned.add_argument(
        "--measure", action="store_true", help="run the model on a sample here, for its speed"
    )
    add_limits(planned)
    add_prices(planned)
    planned.set_defaults(handler=commands.plan)
    shown = added.add_parser("status", help="what an output holds, and what is unfinished")
    shown.add_argument("output", help="folder or s3:// prefix")
    shown.add_argument("--verify", action="store_true", help="read every shard and check its bytes")
    _add_storage(shown)
    shown.set_defaults(handler=commands.status)
    asked = added.add_parser("query", help="SQL over the tables of an output")
    asked.add_argument("output", help="folder or s3:// prefix")
    asked.add_argument("sql", help="a DuckDB query; every table is a view")
    _add_storage(asked)
    asked.set_defaults(handler=commands.query)
    _add_export(added)
    rebuilt = _add_run(added, "report", "rebuild the ranking and the report of an output")
    rebuilt.set_defaults(command="rank")
    nightly = _add_run(added, "nightly", "checkpoints without a ranking, each against its last one")
    nightly.set_defaults(handler=commands.nightly)
    return parser


def _add_run(
    added: argparse._SubParsersAction,  # type: ignore[type-arg]  # generic in the stubs alone
    name: str,
    text: str,
    nargs: str | None = None,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = added.add_parser(name, help=text)
    _add_config(parser, nargs)
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_ADDRESS"),
        help="a running Ray cluster: auto, or host:port (default: start a local one)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace partitions made with other settings"
    )
    parser.add_argument("--verbose", action="store_true", help="show Ray's log and tracebacks")
    parser.set_defaults(handler=commands.run)
    return parser


def _add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="a config whose `storage:` reaches S3")


def _add_export(added: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
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
    parser.set_defaults(handler=commands.export)


def _add_config(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    names = ", ".join(configs.recipes())
    parser.add_argument(
        "config", metavar="RECIPE|FILE", nargs=nargs, help=f"a recipe ({names}) or a YAML file"
    )
    parser.add_argument("--output", help="folder or s3:// prefix (default: the config's)")
    add_subject(parser)
    add_texts(parser)
