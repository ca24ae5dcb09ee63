"""What an output holds, is asked, shows, and is rid of: status, query, open, repair."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import webbrowser
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote

from layerrank.jobs.cluster.console import answer, say
from layerrank.jobs.cluster.errors import DONE, FAILED
from layerrank.jobs.config import did_you_mean, did_you_mean_path
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.run import load
from layerrank.jobs.config.settings import StorageConfig
from layerrank.storage.root import BOOKS, Root

_FOLDER, _TREND, _PAGE = "report", "trend", "index.html"


def status(arguments: argparse.Namespace) -> int:
    """Say what every partition of an output holds; DONE if all are complete and as written."""
    from layerrank.jobs.status import status as told  # noqa: PLC0415

    return told(existing(arguments), verify=arguments.verify, as_json=arguments.json)


def repair(arguments: argparse.Namespace) -> int:
    """Delete what is damaged in an output, or what no config of it asks for."""
    from layerrank.jobs.upkeep import prune, repair  # noqa: PLC0415
    from layerrank.storage.lock import Claim, LockHeldError, claimed  # noqa: PLC0415

    root = existing(arguments)

    def refuse(other: Claim) -> None:
        raise LockHeldError(f"{other.lease.holder} is at work on {root.uri}; wait for its end")

    with claimed(root, {}, refuse):
        return prune(root) if arguments.prune else repair(root)


def query(arguments: argparse.Namespace) -> int:
    """Answer a query, or write the answer to a file."""
    from layerrank.jobs.cli import answers  # noqa: PLC0415  (pyarrow and duckdb, for this alone)
    from layerrank.storage.sql import SECONDS, answering  # noqa: PLC0415

    sql, form = _sql(arguments), answers.form_of(arguments.to, arguments.format)
    seconds = arguments.seconds or SECONDS
    with answering(existing(arguments), sql, seconds, _end) as relation:
        if arguments.to is None:
            answers.tell(relation, form)
            return DONE
        folder, slash, name = arguments.to.rpartition("/")
        place = Root(folder or slash or ".", storage_of(arguments).options())
        answers.write(relation, form, place, name)
        say(f"  {place.place(name)}")
    return DONE


def _end(said: str) -> NoReturn:
    """End a command whose main thread does not come back."""
    sys.stderr.write(f"layerrank: {said}\n")
    sys.stderr.flush()
    os._exit(FAILED)


def _sql(arguments: argparse.Namespace) -> str:
    """Return the SQL of a query: an argument, the standard input, or a file."""
    if (arguments.sql is None) == (arguments.file is None):
        raise ConfigError("give the SQL once: as an argument, - for the standard input, or -f FILE")
    if arguments.sql == "-":
        return sys.stdin.read()
    if arguments.file is None:
        return str(arguments.sql)
    try:
        return Path(arguments.file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        near = did_you_mean_path(arguments.file) if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"cannot read {arguments.file}: {reason}{near}") from error


def show(arguments: argparse.Namespace) -> int:
    """Open the page of an output's report in a browser."""
    root = existing(arguments)
    key = _page_of(root, arguments.run)
    if arguments.print:
        answer(root.place(key))
        return DONE
    page = Path(root.path(key)) if root.is_local else _fetched(root, key)
    say(f"  {page}")
    if webbrowser.open(page.as_uri()):
        return DONE
    answer(f"there is no browser here; the page is {page}")
    return FAILED


def _page_of(root: Root, run: str | None) -> str:
    """Return the page of a run's report, or the only one there is, or that of them all.

    A nightly's is its trend over training, where it has no report.
    """
    pages = {
        unquote(name): f"{above}/{name}/{_PAGE}"
        for above in (_TREND, _FOLDER)
        for name in root.folders(above)
        if _PAGE in root.sizes(f"{above}/{name}")
    }
    if not pages:
        raise FileNotFoundError(
            f"there is no report in {root.uri}: `layerrank report {root.uri}` makes the one of a "
            "finished run"
        )
    if run is not None:
        return pages[known_run(run, [*pages], root)]
    every = f"{_FOLDER}/{_PAGE}"
    return every if len(pages) > 1 and root.exists(every) else [*pages.values()][-1]


def _fetched(root: Root, key: str) -> Path:
    """Return a page of object storage on this machine, with those that it leads to.

    The folder is readable by its owner alone, and stays: a browser reads it later.
    """
    above = key.rpartition("/")[0]
    target = Path(tempfile.mkdtemp(prefix="layerrank-report-"))
    inner = [name for name in root.folders(above) if name not in (".", "..")]
    for folder in (above, *(f"{above}/{name}" for name in inner)):
        for name in root.sizes(folder):
            file = target / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(root.read(f"{folder}/{name}"))
    return target / key


def known_run(name: str, names: list[str], root: Root) -> str:
    """Return the name of a run; ConfigError if a root has no such run."""
    if name not in names:
        raise ConfigError(
            f"{root.uri} has no run {name!r}; it has {', '.join(names)}{did_you_mean(name, names)}"
        )
    return name


def existing(arguments: argparse.Namespace) -> Root:
    """Return the root that a command is given; FormatError if this version does not read it."""
    return root_at(arguments.output, storage_of(arguments))


def root_at(place: str, storage: StorageConfig, or_else: str = "") -> Root:
    """Return the root of a place; FormatError if this version does not read it.

    FileNotFoundError if nothing of a run lies there, with the output beside it that may be meant,
    or with `or_else`, what may be meant if there is none.
    """
    from layerrank.storage.manifest import require_format  # noqa: PLC0415

    root = Root(place, storage.options())
    require_format(root)
    if not {BOOKS, _FOLDER, _TREND} & {*root.folders("")}:
        near = did_you_mean_path(place, is_output) or or_else or ": run `layerrank run` first"
        if root.is_local and Path(root.path()).is_file():
            near = ", which is a file"
        raise FileNotFoundError(f"no complete table under {place}{near}")
    return root


def is_output(folder: Path) -> bool:
    """Whether a folder of this machine is the output of runs."""
    return (folder / BOOKS).is_dir()


def storage_of(arguments: argparse.Namespace) -> StorageConfig:
    """Return how object storage is reached: as the config says that a command is given."""
    return load(arguments.access).storage if arguments.access else StorageConfig()
