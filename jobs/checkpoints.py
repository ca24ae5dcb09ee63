"""From a subject to a folder that its model can be loaded from, and what is wrong with it if not.

A subject whose `model` is an address (`s3://…`) is fetched into this machine's cache, by the driver
for its config alone, by a worker for its weights. Credentials travel in the config's `storage:`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from botocore.exceptions import BotoCoreError

from jobs.settings import StorageConfig
from operators.conditions import Vocabulary
from operators.subject import ModelShape, ModelUnavailableError, Subject, read_shape
from storage.checkpoint import Checkpoint, CheckpointError
from storage.root import Root


def is_remote(model: str) -> bool:
    """Whether a model lies in object storage."""
    return "://" in model


def checkpoint_of(subject: Subject, storage: StorageConfig) -> Checkpoint | None:
    """Return the files of a subject in a folder or in object storage; None for one of the hub."""
    if is_remote(subject.model):
        return Checkpoint(Root(subject.model, storage.options()), subject.allow_pickle)
    if subject.is_folder or Path(subject.model).is_absolute():
        return Checkpoint(Root(subject.source), subject.allow_pickle)
    return None


def local(subject: Subject, storage: StorageConfig, *, weights: bool = True) -> Subject:
    """Return the subject with its files on this machine; ModelUnavailableError if that fails."""
    if not is_remote(subject.model):
        return subject
    with explained_files(subject):
        checkpoint = Checkpoint(Root(subject.model, storage.options()), subject.allow_pickle)
        return replace(subject, folder=str(checkpoint.fetch(weights=weights)))


def shape_of(subject: Subject, storage: StorageConfig) -> ModelShape:
    """Return the sizes of a model, without its weights; ModelUnavailableError as `read_shape`."""
    return read_shape(local(subject, storage, weights=False))


def check(subject: Subject, storage: StorageConfig) -> ModelShape:
    """Return the sizes of a model if it can be loaded as far as can be told without its weights.

    ModelUnavailableError that names model and revision if there is no such folder, prefix or
    revision, if its config cannot be read, if it has no weights, or if a file of them is cut off.
    """
    checkpoint = checkpoint_of(subject, storage)
    if checkpoint is None:
        return read_shape(subject)
    with explained_files(subject):
        checkpoint.check()
    return shape_of(subject, storage)


@contextmanager
def explained_files(subject: Subject) -> Iterator[None]:
    """Turn the errors of reading a checkpoint's files into one that names the model."""
    try:
        yield
    except (OSError, BotoCoreError, CheckpointError) as error:
        reason = " ".join((str(error) or type(error).__name__).split())
        raise ModelUnavailableError(
            f"cannot load model {subject.model} at revision {subject.revision}: {reason}"
        ) from error


class TextReader(NamedTuple):
    """A subject's tokenizer, the most tokens of a text, and the tokens that stand for text."""

    tokenizer: Any  # transformers ships no types
    limit: int
    vocabulary: Vocabulary


@lru_cache(maxsize=2)
def tokenizer_of(subject: Subject, max_tokens: int, storage: StorageConfig) -> TextReader:
    """Load what turns texts into a subject's tokens, once in each worker."""
    from operators.tokenise import (  # noqa: PLC0415  (transformers takes seconds to import)
        load_tokenizer,
        token_limit,
        vocabulary_of,
    )

    here = local(subject, storage, weights=False)
    tokenizer, shape = load_tokenizer(here), read_shape(here)
    limit = token_limit(tokenizer, shape, max_tokens)
    return TextReader(tokenizer, limit, vocabulary_of(tokenizer, shape))
