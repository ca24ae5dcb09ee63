"""What the command line understands: every command, its options, and examples of it.

A command is an entry of COMMANDS: the function that does it, in another module of this package, a
line about it, functions that add its options, which commands may share, and examples. Nothing that
reads a config or a table is imported, so that help and completion come at once.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, get_args

from layerrank.jobs.config import FULL_VIEWS, Engine, Stage, VectorFormat, did_you_mean, recipes
from layerrank.jobs.config.printable import printable
from layerrank.jobs.plan import limits
from layerrank.operators.model.subject import Norm, Pooling, Transform
from layerrank.operators.ranking import Policy

STAGES: tuple[Stage, ...] = get_args(Stage)


class Parser(argparse.ArgumentParser):
    """A parser whose errors ask whether a choice that there is was meant."""

    def error(self, message: str) -> NoReturn:
        """End with how it is used and what is wrong; the exit code is 2."""
        if found := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            message += did_you_mean(found[1], re.findall(r"[\w-]+", found[2]))
        super().error(printable(message))


class Command(NamedTuple):
    """A command; `handler` is MODULE:FUNCTION of this package, which is given the arguments."""

    handler: str
    about: str
    options: tuple[Callable[[Parser], None], ...]
    examples: tuple[str, ...]


def build() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="layerrank",
        description="Which layer of a language model to use: one pass over a corpus, every layer\n"
        "kept as Parquet, measured, probed and ranked.",
        epilog=_shown(
            "run quickcheck --texts FOLDER",
            "plan mine.yaml",
            "run mine.yaml -o out",
            "status out",
            'query out "SELECT layer, score, gain FROM ranking"',
            "export cut --ranking out",
        )
        + "\n\n`layerrank COMMAND --help` says more of each command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="say which version this is")
    added = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        one = added.add_parser(
            name,
            help=command.about,
            description=command.about,
            epilog=_shown(*command.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        one.set_defaults(handler=command.handler)
        for add in command.options:
            add(one)
        one.add_argument(
            "-q", "--quiet", action="store_true", help="only what was asked for, and errors"
        )
        one.add_argument(
            "-v", "--verbose", action="store_true", help="tracebacks, and what workers log"
        )
    return parser


def _shown(*examples: str) -> str:
    return "\n".join(["examples:", *(f"  layerrank {each}" for each in examples)])


def _path(parser: Parser, *names: str, by: Any, **about: Any) -> None:  # noqa: ANN401
    """Add an argument that is a file or a folder; a shell completes it by what shtab knows."""
    vars(parser.add_argument(*names, **about))["complete"] = by


def _scores_or_config(parser: Parser) -> None:
    _config(parser, nargs="?")
    _path(
        parser,
        "--scores",
        metavar="FILE",
        help="rank this alone: Parquet or CSV with model, layer, task, score (and revision, "
        "fold), or a folder of mteb results, one folder layer-NN per layer",
        by="file",
    )
    parser.add_argument(
        "--policy",
        choices=get_args(Policy),
        help="with --scores (default: best); a run has the key rank.policy of its config",
    )


def _output_or_config(parser: Parser) -> None:
    _config(parser, metavar="OUTPUT|RECIPE|FILE")


def _config(parser: Parser, nargs: str | None = None, metavar: str = "RECIPE|FILE") -> None:
    """Add the config of a run, where it writes, and what replaces parts of the config."""
    names = recipes()
    shell = {
        "bash": "_layerrank_configs",
        "zsh": "_layerrank_configs",
        "tcsh": "f",
        "preamble": {
            "bash": f'_layerrank_configs() {{\n  compgen -W "{" ".join(names)}" -- $1\n'
            "  _shtab_compgen_files $1\n}",
            "zsh": f"_layerrank_configs() {{\n  _alternative 'recipes:recipe:({' '.join(names)})' "
            "'files:file:_files'\n}",
        },
    }
    known = ", ".join(names)
    _path(
        parser,
        "config",
        metavar=metavar,
        nargs=nargs,
        help=f"{'the folder of runs, ' if 'OUTPUT' in metavar else ''}a recipe ({known}) or a "
        "YAML file",
        by=shell,
    )
    _path(
        parser,
        "-o",
        "--output",
        help="folder or s3:// prefix (default: the config's)",
        by="directory",
    )
    _values(parser)
    parser.add_argument(
        "--subject",
        action="append",
        metavar="[NAME=]MODEL",
        help="instead of the config's subjects: hub id, folder, s3://…, or "
        "package:IMPORT_NAME/FOLDER, or a GGUF file in one of these; may be given several times",
    )
    parser.add_argument(
        "--revisions",
        metavar="PATTERN",
        help="a sweep over the checkpoints that match: branches of the hub, or folders in MODEL",
    )
    _path(
        parser,
        "--texts",
        metavar="FOLDER|FILE",
        help="your texts, instead of the folder in the config: text files, or tables with a "
        "column text; subfolders, or a column label, are the labels",
        by="file",
    )
    parser.add_argument("--text-column", metavar="NAME", help="of those tables, instead of text")
    parser.add_argument("--label-column", metavar="NAME", help="of those tables, instead of label")
    parser.add_argument(
        "--full",
        action="store_true",
        help=f"{FULL_VIEWS['count']} views of {FULL_VIEWS['sample']:,} prompts, as in the papers, "
        "instead of the config's; the output that the config names gets the ending -full",
    )


def _values(parser: Parser) -> None:
    """Add what puts values into a config."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="KEY=VALUE",
        help="put a value into the config, such as extract.max_tokens=128 or "
        "datasets.NAME.limit=500; `layerrank ls keys` lists the keys; may be given several times",
    )
    parser.add_argument(
        "--limit",
        type=limits.whole,
        metavar="N",
        help="read at most N source rows of every dataset, for a try",
    )


def _engine(parser: Parser) -> None:
    parser.add_argument(
        "--engine",
        choices=get_args(Engine),
        help="what runs the work (default: the config's, which is auto): ray, or processes of "
        "this machine for what is small",
    )
    parser.add_argument(
        "--address",
        help="a running Ray cluster: auto, or host:port (default: RAY_ADDRESS, else a local one)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace partitions made with other settings"
    )


def _bounds(parser: Parser) -> None:
    parser.add_argument(
        "--max-bytes",
        type=limits.parse_bytes,
        metavar="SIZE",
        help="refuse a run that would write more, such as 10GB or 500MiB",
    )
    parser.add_argument(
        "--max-gpu-hours",
        type=limits.positive,
        metavar="HOURS",
        help="refuse a run that would take more hours of one device",
    )
    parser.add_argument(
        "--tokens-per-second",
        type=limits.positive,
        metavar="N",
        help=f"assumed speed of one device (default: {limits.TOKENS_PER_SECOND:,.0f})",
    )


def _prices(parser: Parser) -> None:
    parser.add_argument(
        "--measure", action="store_true", help="run the model on a sample here, for its speed"
    )
    parser.add_argument(
        "--price-gb-month",
        type=limits.price,
        default=limits.PRICE_GB_MONTH,
        metavar="USD",
        help=f"of 2^30 bytes for a month (default: {limits.PRICE_GB_MONTH}, S3 Standard in "
        "us-east-1)",
    )
    parser.add_argument(
        "--price-1000-puts",
        type=limits.price,
        default=limits.PRICE_1000_PUTS,
        metavar="USD",
        help=f"of 1,000 PUT requests (default: {limits.PRICE_1000_PUTS}, the same)",
    )


def _root(parser: Parser) -> None:
    _path(parser, "output", metavar="OUTPUT", help="folder or s3:// prefix", by="directory")


def _access(parser: Parser) -> None:
    _path(
        parser,
        "--config",
        dest="access",
        metavar="FILE",
        help="a config whose `storage:` reaches S3",
        by="file",
    )


def _run(parser: Parser) -> None:
    parser.add_argument("--run", metavar="NAME", help="of several runs in the output this one")


def _page(parser: Parser) -> None:
    parser.add_argument("--print", action="store_true", help="say where the page is, and no more")


def _status(parser: Parser) -> None:
    parser.add_argument(
        "--verify", action="store_true", help="read every shard and check its bytes"
    )
    parser.add_argument(
        "--json", action="store_true", help="the same for programs, with every ranking's advice"
    )


def _prune(parser: Parser) -> None:
    parser.add_argument(
        "--prune", action="store_true", help="delete what no config of the output asks for instead"
    )


def _sql(parser: Parser) -> None:
    parser.add_argument(
        "sql",
        metavar="SQL",
        nargs="?",
        help="a DuckDB query, every table is a view; - reads it from the standard input",
    )
    _path(parser, "-f", "--file", metavar="FILE", help="read the SQL from this file", by="file")
    parser.add_argument(
        "--format",
        choices=("table", "csv", "json", "markdown", "parquet"),
        help="default: as --to FILE ends, else a table, which shows as many rows as a screen; "
        "the others have all rows",
    )
    _path(
        parser,
        "--to",
        metavar="FILE",
        help="write the rows to this file, .csv, .json, .md or .parquet",
        by="file",
    )
    parser.add_argument(
        "--seconds",
        type=limits.positive,
        metavar="N",
        help="end a query that takes longer (default: 600)",
    )


def _recipe(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", choices=recipes(), help="show this one")


def _what(parser: Parser) -> None:
    parser.add_argument(
        "what",
        choices=("metrics", "tasks", "keys"),
        help="metrics, types of tasks with their columns, or every key of a config",
    )


def _a_file(parser: Parser) -> None:
    _path(parser, "config", metavar="RECIPE|FILE", help="the config to check", by="file")


def _shell(parser: Parser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))


def _candidate(parser: Parser) -> None:
    """Add which vectors of which model are to be exported, and where to."""
    _path(parser, "out", metavar="OUT", help="folder to write", by="directory")
    _path(
        parser,
        "--ranking",
        metavar="OUTPUT",
        help="a run's output, cited as evidence",
        by="directory",
    )
    parser.add_argument("--group", help="the run in that output, where it holds several")
    _path(
        parser,
        "--subject",
        metavar="MODEL",
        help="hub id, folder, or package:IMPORT_NAME/FOLDER, or a GGUF file in one of these "
        "(default: the model of --ranking)",
        by="directory",
    )
    _path(parser, "--adapter", help="a LoRA adapter of the model, merged into it", by="directory")
    parser.add_argument("--revision", help="of the model (default: main, of a folder local)")
    parser.add_argument("--name", help="the model's name in the ranking, if it is another one")
    parser.add_argument("--layer", type=int, help="default: the one that --ranking recommends")
    parser.add_argument("--norm", choices=get_args(Norm), help="default: as ranked; final")
    parser.add_argument("--pooling", choices=get_args(Pooling), help="default: as ranked; mean")
    parser.add_argument(
        "--transform",
        choices=get_args(Transform),
        help="default: as ranked; raw; z and abtt are as --ranking OUTPUT has fitted them",
    )
    parser.add_argument(
        "--max-tokens",
        type=limits.whole,
        metavar="N",
        help="of a text (default: as in the run of --ranking; 512)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an exported model")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's own code")


def _vectors(parser: Parser) -> None:
    """Add which vectors of an output are to be exported, as what, and where to."""
    parser.add_argument(
        "--to",
        required=True,
        choices=get_args(VectorFormat),
        help="a Parquet file, a Lance dataset, a FAISS index of cosines, or a matrix of NumPy",
    )
    _path(
        parser,
        "--out",
        metavar="PATH",
        help="what to write (default: MODEL-layer-K.FORMAT in this folder)",
        by="file",
    )
    parser.add_argument("--layer", type=int, help="default: the one that the ranking recommends")
    parser.add_argument("--norm", choices=get_args(Norm), help="default: as ranked; final")
    parser.add_argument("--pooling", choices=get_args(Pooling), help="default: as ranked; mean")
    parser.add_argument("--transform", choices=get_args(Transform), help="default: as ranked; raw")
    parser.add_argument(
        "--model", "--subject", metavar="NAME", help="the model's name, where there are several"
    )
    parser.add_argument("--revision", help="of the model, where there are several")
    parser.add_argument("--dataset", metavar="NAME", help="default: all datasets of the run")
    parser.add_argument(
        "--run", "--group", dest="group", metavar="NAME", help="the run, where there are several"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what was exported")


COMMANDS: dict[str, Command] = {
    "run": Command(
        "running:run",
        "all stages; what exists is not made again",
        (_config, _engine, _bounds),
        (
            "run quickcheck --texts FOLDER",
            "run mine.yaml -o s3://bucket/layers",
            "run demo --subject ./my-model",
        ),
    ),
    **{
        name: Command(
            "running:run", f"only the stage {name}", (_config, _engine), (f"{name} mine.yaml",)
        )
        for name in STAGES[:-1]
    },
    "rank": Command(
        "running:run",
        "only the stage rank, or scores from elsewhere",
        (_scores_or_config, _engine),
        ("rank mine.yaml", "rank --scores scores.parquet", "rank --scores results/ -o out"),
    ),
    "report": Command(
        "running:report",
        "rebuild the ranking and the report of an output",
        (_output_or_config, _engine, _run, _access),
        ("report out", "report out --run mine", "report mine.yaml"),
    ),
    "open": Command(
        "looking:show",
        "the page of an output's report, in the browser",
        (_root, _page, _run, _access),
        ("open out", "open s3://bucket/layers --run mine", "open out --print"),
    ),
    "nightly": Command(
        "running:nightly",
        "checkpoints without a ranking, each against its last one",
        (_config, _engine),
        ("nightly nights.yaml",),
    ),
    "plan": Command(
        "running:plan",
        "passes, bytes, hours and cost, before a run",
        (_config, _bounds, _prices),
        ("plan mine.yaml", "plan mine.yaml --measure --max-bytes 10GB"),
    ),
    "status": Command(
        "looking:status",
        "what an output holds, and what is unfinished",
        (_root, _status, _access),
        ("status out", "status s3://bucket/layers --verify", "status out --json | jq .bytes"),
    ),
    "repair": Command(
        "looking:repair",
        "delete what is damaged in an output, and what came of it",
        (_root, _prune, _access),
        ("repair out", "repair out --prune"),
    ),
    "query": Command(
        "looking:query",
        "SQL over the tables of an output",
        (_root, _sql, _access),
        (
            'query out "SELECT layer, score, gain FROM ranking ORDER BY rank"',
            "query out -f question.sql --to answer.parquet",
            "query out - --format csv < question.sql",
        ),
    ),
    "export": Command(
        "exporting:export",
        "the model cut at a layer, as a folder to load",
        (_candidate, _access),
        (
            "export cut --ranking out",
            "export cut --subject EleutherAI/pythia-410m --ranking out --layer 17",
        ),
    ),
    "export-vectors": Command(
        "exporting:vectors",
        "the vectors of one layer with their texts",
        (_root, _vectors, _access),
        (
            "export-vectors out --to parquet",
            "export-vectors out --layer 17 --transform raw --to faiss --out docs.faiss",
        ),
    ),
    "recipes": Command(
        "describing:recipes",
        "configs that every installation has",
        (_recipe,),
        ("recipes", "recipes quickcheck > mine.yaml"),
    ),
    "ls": Command(
        "describing:ls",
        "the metrics, the types of tasks, the keys of a config",
        (_what,),
        ("ls metrics", "ls tasks", "ls keys | grep limit"),
    ),
    "validate": Command(
        "describing:validate",
        "whether the keys of a config are right, and all that is wrong with them",
        (_a_file, _values),
        ("validate mine.yaml", "validate mine.yaml --set extract.max_tokens=128"),
    ),
    "schema": Command(
        "describing:schema",
        "the JSON Schema of a config, for editors",
        (),
        ("schema > layerrank.schema.json",),
    ),
    "completion": Command(
        "describing:completion",
        "the script that completes commands in a shell",
        (_shell,),
        ("completion bash > ~/.local/share/bash-completion/completions/layerrank",),
    ),
}
