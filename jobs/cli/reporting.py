"""The report of an output: made again from what the output keeps of its runs, and opened."""

from __future__ import annotations

import argparse
import tempfile
import webbrowser
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from layerrank.jobs.cli import looking, running
from layerrank.jobs.cluster.console import answer, say
from layerrank.jobs.cluster.errors import DONE, FAILED
from layerrank.jobs.config import did_you_mean
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.run import RunConfig
from layerrank.jobs.config.settings import StorageConfig
from layerrank.operators.model.subject import ModelUnavailableError, Subject
from layerrank.storage.partition import partitions
from layerrank.storage.root import BOOKS, Root

_FOLDER, _TREND, _PAGE = "report", "trend", "index.html"
# What replaces a part of a config, which an output keeps.
_REPLACING = ("output", "sets", "limit", "subject", "revisions", "texts", "full")


def report(arguments: argparse.Namespace) -> int:
    """Rebuild the reports of an output, or that of a config's run."""
    if not ("://" in arguments.config or Path(arguments.config, BOOKS).is_dir()):
        if arguments.run or arguments.access:
            raise ConfigError(
                f"--run and --config are for the folder of an output, and {arguments.config} is "
                f"none: it has no {BOOKS}/"
            )
        return running.run(arguments)
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
        runs = {name: runs[_known(name, [*runs], root)]}
    found = [RunConfig.model_validate(each) for each in runs.values()]
    return [each.model_copy(update={"storage": storage}) for each in found]


def _known(name: str, names: list[str], root: Root) -> str:
    """Return the name of a run; ConfigError if a root has no such run."""
    if name not in names:
        raise ConfigError(
            f"{root.uri} has no run {name!r}; it has {', '.join(names)}{did_you_mean(name, names)}"
        )
    return name


def _rebuild(arguments: argparse.Namespace, given: RunConfig, root: Root) -> None:
    """Rank a run and write its report from the tables alone: models and texts may be gone."""
    from layerrank.jobs.cluster.cluster import open_cluster  # noqa: PLC0415
    from layerrank.jobs.config.stored import continued, require_no_conflict, shown  # noqa: PLC0415
    from layerrank.jobs.run import Run  # noqa: PLC0415
    from layerrank.jobs.whole import rank_and_report  # noqa: PLC0415
    from layerrank.storage.lock import claimed  # noqa: PLC0415

    config = continued(given, root)
    root.check_writable()
    say(f"LayerRank: {config.name} -> {root.uri} (as it keeps it)")
    cluster = open_cluster(
        "process", address=None, config=config.cluster, verbose=arguments.verbose, say=say
    )
    with claimed(root, shown(config), partial(require_no_conflict, config, root)), cluster:
        chosen = _ranked(config, root)
        run = Run(config, root, cluster, given=given, chosen=chosen)
        rank_and_report(run, partial(running.publish, arguments))


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


def show(arguments: argparse.Namespace) -> int:
    """Open the page of an output's report in a browser."""
    root = looking.existing(arguments)
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
        return pages[_known(run, [*pages], root)]
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
