"""Which models a run is about: found, fetched, and checked before anything is spent on them.

A config's subjects become models at a revision, with every checkpoint of a sweep. One whose `model`
is an address (`s3://…`) is fetched into this machine's cache, by the driver for its config alone,
by a worker for its weights. Credentials travel in the config's `storage:`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from botocore.exceptions import BotoCoreError

from layerrank.jobs.config import did_you_mean_path
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import DatasetConfig
from layerrank.jobs.config.prompts import OwnPrompts, Side, require_no_noise, sides
from layerrank.jobs.config.run import RunConfig
from layerrank.jobs.config.sealed import sealed, unsealed
from layerrank.jobs.config.settings import ConditionsConfig, StorageConfig, SubjectConfig
from layerrank.operators.model.backend import backend_of
from layerrank.operators.model.subject import (
    ADAPTER_WEIGHTS,
    ModelShape,
    ModelUnavailableError,
    Subject,
    read_prompts,
    read_shape,
    require_packages,
)
from layerrank.operators.prompts.conditions import Vocabulary
from layerrank.operators.prompts.templates import TEXT, Template
from layerrank.storage.checkpoint import Checkpoint, CheckpointError, some
from layerrank.storage.manifest import digest_of
from layerrank.storage.partition import by_step, one_name
from layerrank.storage.root import BOOKS, Root

_LONGEST = 230  # characters of a name as that of a folder, which has its key and an ending besides


def is_remote(model: str) -> bool:
    """Whether a model lies in object storage."""
    return "://" in model


def checkpoint_of(subject: Subject, storage: StorageConfig, file: str = "") -> Checkpoint | None:
    """Return the files of a subject in a folder or in object storage; None for one of the hub.

    Its weights are in `file` alone if that is given, as those of an adapter.
    """
    file = file or subject.gguf_file
    if is_remote(subject.model):
        place = subject.model.removesuffix(f"/{file}")
        root = Root(place, storage.options())
    elif subject.is_folder or Path(subject.model).is_absolute():
        root = Root(subject.source)
    else:
        return None
    return Checkpoint(root, subject.allow_pickle, backend_of(subject).weights, file)


def _of_adapter(subject: Subject, storage: StorageConfig) -> Checkpoint | None:
    return checkpoint_of(subject.adapter, storage, ADAPTER_WEIGHTS) if subject.adapter else None


def local(
    subject: Subject,
    storage: StorageConfig,
    *,
    weights: bool = True,
    wait: Callable[[], object] = lambda: None,
) -> Subject:
    """Return the subject with its files on this machine; ModelUnavailableError if that fails.

    `wait` is called while another process is seen to fetch them.
    """
    if (adapter := subject.adapter) and is_remote(adapter.model):
        files = _of_adapter(subject, storage)
        assert files
        with explained_files(subject, adapter):
            subject = replace(subject, adapter=replace(adapter, folder=str(files.fetch(wait=wait))))
    checkpoint = checkpoint_of(subject, storage)
    if checkpoint is None or not is_remote(subject.model):
        return subject
    with explained_files(subject):
        return replace(subject, folder=str(checkpoint.fetch(weights=weights, wait=wait)))


def shape_of(subject: Subject, storage: StorageConfig) -> ModelShape:
    """Return the sizes of a model, without its weights; ModelUnavailableError as `read_shape`."""
    return read_shape(local(subject, storage, weights=False))


def check(subject: Subject, storage: StorageConfig) -> ModelShape:
    """Return sizes and kind of a model if it can be read, as far as is told without its weights.

    ModelUnavailableError that names model and revision if there is no such folder, prefix or
    revision, if it has no weights, if a file of them is cut off, and as `require_readable`; the
    same of its adapter.
    """
    # transformers takes seconds to import
    from layerrank.operators.model.known import require_readable  # noqa: PLC0415

    require_packages(subject)
    stated = None
    if (checkpoint := checkpoint_of(subject, storage)) is not None:
        with explained_files(subject):
            stated = checkpoint.check()
    if (checkpoint := _of_adapter(subject, storage)) is not None:
        with explained_files(subject, subject.adapter):
            checkpoint.check()
    return require_readable(local(subject, storage, weights=False), stated)


def checked(
    subject: Subject,
    identity: Mapping[str, Any],
    storage: StorageConfig,
    root: Root,
    begin: Callable[[], None],
) -> ModelShape:
    """Return what `check` does, or what is known of a model that was read from equal files before.

    Before a check, which takes seconds, `begin` is called. A note of an earlier version, without
    the kind of the model, stands where that cannot be asked any more.
    """
    noted = None
    with suppress(FileNotFoundError):
        if found := unsealed(root.read(_note(identity))):
            noted = ModelShape(**found)
    if noted and noted.kind:
        return noted
    begin()
    try:
        return check(subject, storage)
    except ModelUnavailableError:
        if noted is None:
            raise
        return noted


def remember(shape: ModelShape, identity: Mapping[str, Any], root: Root) -> None:
    """Keep the sizes and the kind of a model that was read, under `_layerrank/models/`."""
    content, key = sealed(asdict(shape)), _note(identity)
    with suppress(FileNotFoundError):
        if root.read(key) == content:
            return
    root.write(key, content)


def _note(identity: Mapping[str, Any]) -> str:
    """Return where the sizes of a model of such files are, as these versions read them."""
    read_by = {name: version(name) for name in ("layerrank", "transformers")}
    return f"{BOOKS}/models/{digest_of({**identity, **read_by})}.yaml"


def weights_here(subject: Subject, most: int) -> bool:
    """Whether the weights of a model are on this machine, and are at most so many bytes."""
    file = subject.gguf_file
    if subject.is_folder and file:
        files = [Path(subject.source, file)]
    elif subject.is_folder:
        files = [each for each in Path(subject.source).iterdir() if each.is_file()]
    elif is_remote(subject.model):
        return False
    else:
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415  (slow to import)

        found = try_to_load_from_cache(
            subject.source, file or "model.safetensors", revision=subject.revision
        )
        files = [Path(found)] if isinstance(found, str) else []
    return bool(files) and sum(each.stat().st_size for each in files) <= most


@contextmanager
def explained_files(subject: Subject, adapter: Subject | None = None) -> Iterator[None]:
    """Turn the errors of reading a checkpoint's files, or its adapter's, into one that names it."""
    whose = f"its adapter {adapter.model}: " if adapter else ""
    try:
        yield
    except (OSError, BotoCoreError, CheckpointError) as error:
        raise ModelUnavailableError(
            f"cannot load model {subject.model} at revision {subject.revision}: {whose}"
            f"{_reason(error)}"
        ) from error


class TextReader(NamedTuple):
    """A subject's tokenizer, the most tokens of a text, and the tokens that stand for text.

    The model has vectors for token ids below `known_ids`.
    """

    tokenizer: Any  # transformers ships no types
    limit: int
    vocabulary: Vocabulary
    known_ids: float


@lru_cache(maxsize=2)
def tokenizer_of(subject: Subject, max_tokens: int, storage: StorageConfig) -> TextReader:
    """Load what turns texts into a subject's tokens, once in each worker."""
    # transformers takes seconds to import
    from layerrank.operators.model.tokenise import load_tokenizer, token_limit, vocabulary_of  # noqa: PLC0415

    here = local(subject, storage, weights=False)
    tokenizer, shape = load_tokenizer(here), read_shape(here)
    limit = token_limit(tokenizer, shape, max_tokens)
    return TextReader(tokenizer, limit, vocabulary_of(tokenizer, shape), shape.known_ids)


def require_lengths(conditions: ConditionsConfig, subject: Subject, storage: StorageConfig) -> None:
    """ConfigError if a length is more than the model reads, or less than its tokenizer frames."""
    if not conditions.length:
        return
    reader = tokenizer_of(subject, max(conditions.length), storage)
    try:
        conditions.require_within(reader.limit, f"model {subject}", reader.vocabulary.shortest)
    except ValueError as error:
        raise ConfigError(str(error)) from None


@lru_cache(maxsize=64)
def own_prompts(subject: Subject, storage: StorageConfig) -> OwnPrompts:
    """Return the prompts that a model comes with; ModelUnavailableError as `read_prompts`."""
    prompts, default = read_prompts(local(subject, storage, weights=False))
    return OwnPrompts(prompts, default, tuple(dict.fromkeys((subject.model, subject.name))))


def sides_of(
    subject: Subject, dataset: DatasetConfig, storage: StorageConfig, *, imports: bool = False
) -> list[Side]:
    """Return the sides of a dataset's tasks that a subject reads in a template; see `sides`."""
    own = own_prompts(subject, storage) if dataset.prompts == "auto" else OwnPrompts()
    return sides(dataset, own, imports=imports)


def words_of(subject: Subject, template: Template, max_tokens: int, storage: StorageConfig) -> str:
    """Return the words of a template, of a chat as the subject's tokenizer has them."""
    if not template.is_chat:
        return template.words
    from layerrank.operators.model.tokenise import Frame  # noqa: PLC0415  (see `tokenizer_of`)

    reader = tokenizer_of(subject, max_tokens, storage)
    return Frame(reader.tokenizer, template).around(TEXT)


def require_prompts(config: RunConfig, subject: Subject, found: Sequence[Side]) -> None:
    """ConfigError if a subject cannot read texts in the templates of some sides."""
    if not found:
        return
    from layerrank.operators.model.tokenise import Frame  # noqa: PLC0415  (see `tokenizer_of`)

    require_no_noise(found, config.curves.noise)
    for template in dict.fromkeys(side.template for side in found):
        reader = tokenizer_of(subject, config.extract.max_tokens, config.storage)
        told = f"model {subject} cannot read texts in {template.written!r}"
        try:
            tokens = Frame(reader.tokenizer, template).tokens
        except ValueError as error:
            raise ConfigError(f"{told}: {error}") from None
        if tokens >= reader.limit:
            raise ConfigError(
                f"{told}: that alone has {tokens} tokens, and {reader.limit} are read of a text"
            )


def resolve(
    configs: Sequence[SubjectConfig], storage: StorageConfig, *, keep_gone: bool = False
) -> tuple[Subject, ...]:
    """Return every model of a run, the checkpoints of a sweep in the order of their steps.

    ConfigError if a sweep has no checkpoint, or if two subjects would share their partitions. A
    listed checkpoint whose folder is gone is a ConfigError too, unless it is to be kept: then it
    fails when it is loaded, and the others do not.
    """
    found = [each for given in configs for each in _checkpoints(given, storage, keep_gone)]
    names = [str(each) for each in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two subjects are called {twice[0]}: give each its own name")
    return tuple(found)


def subject(config: SubjectConfig) -> Subject:
    """Return the one subject that a config describes, its defaults filled in.

    ConfigError if an installed package has no such folder: that is no hub id either.
    """
    if is_remote(config.model):
        last = PurePosixPath(config.model).name
        return _named(config, config.model, config.revision or "remote", last)
    bare = _named(config, config.model, config.revision or "main", config.model)
    if not bare.is_folder:
        if config.model.startswith("package:"):
            given = config.model.rstrip("/").removesuffix(f"/{bare.gguf_file}")
            package, _, inside = given.partition("/")
            near = did_you_mean_path(bare.source, Path.is_dir)
            near = near.replace(bare.source.removesuffix(inside), f"{package}/")
            raise ConfigError(f"model {config.model}: the package has no folder {inside}{near}")
        return bare
    place = Path(bare.source).resolve() / bare.gguf_file
    model = config.model if config.model.startswith("package:") else str(place)
    return _named(config, model, config.revision or "local", place.name)


def name_of(config: SubjectConfig) -> str:
    """Return what the models of a config are called in the tables, whichever their revision."""
    if config.revisions is None:
        return subject(config).name
    in_folder = is_remote(config.model) or Path(config.model).is_dir()
    return config.name or (Path(config.model).name if in_folder else config.model)


def as_called(
    config: SubjectConfig, name: str, revision: str, storage: StorageConfig
) -> SubjectConfig | None:
    """Return the one model that a config calls so in the tables, of a sweep the checkpoint.

    None if it calls none so; what a folder that is gone was called is not known.
    """
    asked = config.revisions
    if name_of(config) != name:
        return None
    if asked is not None:
        matches = fnmatchcase(revision, asked) if isinstance(asked, str) else revision in asked
        if not matches:
            return None
        config = config.model_copy(update={"revisions": (revision,)})
    (found,) = _checkpoints(config, storage, keep_gone=True)
    if found.revision != revision:
        return None
    told = {"model": found.model, "name": name, "revision": revision, "revisions": None}
    return config.model_copy(update=told)


def subject_identity(each: Subject, storage: StorageConfig) -> dict[str, Any]:
    """Return what a subject's activations depend on: its files, or its hub id and revision.

    With an adapter, the same of that too. ModelUnavailableError if the files cannot be read.
    """
    with explained_files(each):
        found = _content(each, checkpoint_of(each, storage))
    if each.adapter:
        with explained_files(each, each.adapter):
            found["adapter"] = _content(each.adapter, _of_adapter(each, storage))
    return {**found, "dtype": each.dtype}


def _content(each: Subject, checkpoint: Checkpoint | None) -> dict[str, Any]:
    if checkpoint is None:
        return {"model": each.model, "revision": each.revision}
    prints = json.dumps(checkpoint.prints())
    return {"files": hashlib.blake2b(prints.encode(), digest_size=16).hexdigest()}


def _named(config: SubjectConfig, model: str, revision: str, name: str) -> Subject:
    """Return a subject; `name` stands for one that is not given, with that of its adapter."""
    adapter = subject(SubjectConfig(model=config.adapter)) if config.adapter else None
    of_adapter = f"+{PurePosixPath(adapter.name).name}" if adapter else ""
    default = name.rstrip("/").removeprefix("package:").removesuffix(".gguf") + of_adapter
    called = config.name or default
    for key, value in (("name", called), ("revision", revision)):
        if (length := len(one_name(value))) > _LONGEST:
            raise ConfigError(
                f"model {config.model}: its {key} has {length} characters as the name of a folder, "
                f"which may have {_LONGEST}: give a shorter `{key}`"
            )
    return Subject(
        model,
        revision,
        called,
        config.dtype,
        config.trust_remote_code,
        config.allow_pickle,
        adapter=adapter,
    )


def _checkpoints(
    config: SubjectConfig, storage: StorageConfig, keep_gone: bool
) -> Iterator[Subject]:
    """Yield the checkpoints that `revisions` names, or the one subject if it names none.

    They lie side by side in a folder or a prefix, or are branches of a repository of the hub.
    """
    if config.revisions is None:
        yield subject(config)
        return
    parent = None
    if is_remote(config.model):
        parent = Root(config.model, storage.options())
    elif Path(config.model).is_dir():
        parent = Root(str(Path(config.model).resolve()))
    wanted: Sequence[str]
    if isinstance(config.revisions, str):
        known = _listed(config.model, parent)
        matching = (name for name in known if fnmatchcase(name, config.revisions))
        wanted = sorted(matching, key=by_step)
        if not wanted:
            raise ConfigError(
                f"model {config.model}: no {'folder' if parent else 'branch'} matches revisions "
                f"{config.revisions!r}; it has {some(known)}"
            )
    else:
        wanted = config.revisions
        known = _listed(config.model, parent) if parent else [*wanted]
        gone = [name for name in wanted if name not in known]
        if gone and not keep_gone:
            raise ConfigError(f"model {config.model} has no folder {gone[0]}; it has {some(known)}")
    last = parent.place().rstrip("/").rpartition("/")[2] if parent else ""
    for name in wanted:
        model = parent.place(name) if parent else config.model
        yield _named(config, model, name, last or model)


def _listed(model: str, parent: Root | None) -> list[str]:
    """Return the folders in a place, or the branches of a hub repository.

    ConfigError if they cannot be listed; errors of the hub are among those of files and values.
    """
    try:
        if parent:
            return parent.folders("")
        from huggingface_hub import list_repo_refs  # noqa: PLC0415  (slow, and rarely needed)

        return [branch.name for branch in list_repo_refs(model).branches]
    except (OSError, BotoCoreError, ImportError, ValueError) as error:
        where, what = (parent.uri, "checkpoints") if parent else (model, "branches")
        # The hub's errors go on with advice of its own.
        reason = _reason(error) if parent else str(error).partition("\n")[0]
        raise ConfigError(f"model {where}: cannot list its {what}: {reason}") from error


def _reason(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())
