"""What the command line replaces in a config, so that a recipe runs on a model of one's own."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from jobs.config.blocks import ConfigError
from jobs.config.run import RunConfig
from jobs.config.settings import SubjectConfig

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._+-]*)=(.+)")
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def add_subject(parser: argparse.ArgumentParser) -> None:
    """Add the options that replace a config's subjects."""
    parser.add_argument(
        "--subject",
        action="append",
        metavar="[NAME=]MODEL",
        help="instead of the config's subjects: hub id, folder, s3://…, or "
        "package:IMPORT_NAME/FOLDER; may be given several times",
    )
    parser.add_argument(
        "--revisions",
        metavar="PATTERN",
        help="a sweep over the checkpoints that match: branches of the hub, or folders in MODEL",
    )


def overridden(config: RunConfig, arguments: argparse.Namespace) -> RunConfig:
    """Return the config with what the command line replaces; ConfigError if that makes no run.

    `--subject` keeps the dtype if the config's subjects share one, and nothing else of theirs:
    what was trusted in one model is not trusted in another.
    """
    given, revisions = arguments.subject, arguments.revisions
    if revisions == "":
        raise ConfigError("--revisions is empty: give a name or a pattern, such as 'step*'")
    subjects = config.subjects
    if given:
        shared = {each.dtype for each in subjects}
        dtype = shared.pop() if len(shared) == 1 else "float32"
        subjects = tuple(_subject(each).model_copy(update={"dtype": dtype}) for each in given)
    if revisions is not None:
        sweep = {"revision": "", "revisions": revisions}
        subjects = tuple(each.model_copy(update=sweep) for each in subjects)
    return (
        config if subjects == config.subjects else config.model_copy(update={"subjects": subjects})
    )


def _subject(given: str) -> SubjectConfig:
    named = None if Path(given).exists() else _NAMED.fullmatch(given)
    name, model = named.groups() if named else ("", given)
    elsewhere = "://" in model or model.startswith("package:")
    folder = bool(model) and Path(model).is_dir()
    if not (elsewhere or folder or _HUB_ID.fullmatch(model)):
        raise ConfigError(
            f"--subject {given}: there is no such folder, and it is no hub id (owner/name), "
            "s3://… or package:IMPORT_NAME/FOLDER"
        )
    return SubjectConfig(model=model, name=name)
