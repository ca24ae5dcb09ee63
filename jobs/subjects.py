"""Which models a run is about: its config's subjects, with every checkpoint of a sweep found."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError

from jobs.checkpoints import checkpoint_of, explained_files, is_remote
from jobs.config import ConfigError, RunConfig
from jobs.settings import StorageConfig, SubjectConfig
from operators.subject import Subject
from storage.root import Root

_NUMBER = re.compile(r"\d+")


def resolve(config: RunConfig, *, keep_gone: bool = False) -> tuple[Subject, ...]:
    """Return every model of a run, the checkpoints of a sweep in the order of their steps.

    ConfigError if a sweep has no checkpoint, or if two subjects would share their partitions. A
    listed checkpoint whose folder is gone is a ConfigError too, unless it is to be kept: then it
    fails when it is loaded, and the others do not.
    """
    found = [
        each for given in config.subjects for each in _checkpoints(given, config.storage, keep_gone)
    ]
    names = [str(each) for each in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two subjects are called {twice[0]}: give each its own name")
    return tuple(found)


def step_of(revision: str) -> int | None:
    """Return the training step that a revision names: its last number; None if it has none."""
    numbers = _NUMBER.findall(revision)
    return int(numbers[-1]) if numbers else None


def by_step(revision: str) -> tuple[bool, int, str]:
    """Order revisions by their step; those without one come first."""
    step = step_of(revision)
    return step is not None, step or 0, revision


def subject(config: SubjectConfig) -> Subject:
    """Return the one subject that a config describes, its defaults filled in."""
    if is_remote(config.model):
        last = config.model.rstrip("/").rpartition("/")[2]
        return _named(config, config.model, config.revision or "remote", config.name or last)
    bare = _named(config, config.model, config.revision or "main", config.name)
    if not bare.is_folder:
        return bare
    folder = Path(bare.source).resolve()
    model = config.model if config.model.startswith("package:") else str(folder)
    return _named(config, model, config.revision or "local", config.name or folder.name)


def subject_identity(each: Subject, storage: StorageConfig) -> dict[str, Any]:
    """Return what a subject's activations depend on: its files, or its hub id and revision.

    ModelUnavailableError if the files cannot be read.
    """
    checkpoint = checkpoint_of(each, storage)
    if checkpoint is None:
        return {"model": each.model, "revision": each.revision, "dtype": each.dtype}
    with explained_files(each):
        prints = json.dumps(checkpoint.prints())
    digest = hashlib.blake2b(prints.encode(), digest_size=16).hexdigest()
    return {"files": digest, "dtype": each.dtype}


def _named(config: SubjectConfig, model: str, revision: str, name: str) -> Subject:
    return Subject(
        model,
        revision,
        name or model.rstrip("/").removeprefix("package:"),
        config.dtype,
        config.trust_remote_code,
        config.allow_pickle,
    )


def _checkpoints(
    config: SubjectConfig, storage: StorageConfig, keep_gone: bool
) -> Iterator[Subject]:
    """Yield the checkpoints that `revisions` names, or the one subject if it names none."""
    if config.revisions is None:
        yield subject(config)
        return
    parent = _parent(config.model, storage)
    there = _folders(parent) if parent else []
    if isinstance(config.revisions, str):
        known = there if parent else _branches(config.model)
        wanted = [name for name in known if fnmatchcase(name, config.revisions)]
        if not wanted:
            raise ConfigError(
                f"model {config.model}: no {'folder' if parent else 'branch'} matches revisions "
                f"{config.revisions!r}; it has {_some(known)}"
            )
        wanted.sort(key=by_step)
    else:
        wanted = list(config.revisions)
        gone = [name for name in wanted if parent and name not in there]
        if gone and not keep_gone:
            raise ConfigError(
                f"model {config.model} has no folder {gone[0]}; it has {_some(there)}"
            )
    for name in wanted:
        if parent:
            last = parent.place().rstrip("/").rpartition("/")[2]
            yield _named(config, parent.place(name), name, config.name or last)
        else:
            yield _named(config, config.model, name, config.name)


def _parent(model: str, storage: StorageConfig) -> Root | None:
    """Return where the checkpoints of a sweep lie side by side; None if they are on the hub."""
    if is_remote(model):
        return Root(model, storage.options())
    return Root(str(Path(model).resolve())) if Path(model).is_dir() else None


def _folders(parent: Root) -> list[str]:
    """Return the folders in a place; ConfigError if they cannot be listed."""
    try:
        return parent.folders("")
    except (OSError, BotoCoreError, ImportError, ValueError) as error:
        reason = " ".join((str(error) or type(error).__name__).split())
        raise ConfigError(f"model {parent.uri}: cannot list its checkpoints: {reason}") from error


def _branches(model: str) -> list[str]:
    """Return the branches of a hub repository; ConfigError if they cannot be listed."""
    from huggingface_hub import list_repo_refs  # noqa: PLC0415  (slow to import, rarely needed)
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled  # noqa: PLC0415

    try:
        return [branch.name for branch in list_repo_refs(model).branches]
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"model {model}: cannot list its branches: {reason}") from error


def _some(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(names[:most]) or "none"
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
