"""Which model: its name, where its files are, its sizes, and errors that name it.

Importing this module imports neither torch nor transformers, which take seconds: stages that run no
model need only know what a model is called.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

Dtype = Literal["float32", "bfloat16"]
Norm = Literal["none", "final"]  # of a state: as the block gave it, or the model's final norm of it
Pooling = Literal["mean", "last", "first", "weighted_mean"]  # of a prompt's tokens, to one vector
Variant = Literal["raw", "l2"]  # of that vector: as it is, or of length 1
Kind = Literal["embedding model", "causal decoder", "state-space model", "encoder"]
_PACKAGE = "package:"
_PROMPTS = "config_sentence_transformers.json"
_GPU_TOKENS = 32_768
# On a CPU: numbers of a state, so 1,024 tokens of 384 features; fewer tokens than the second do not
# repay reading the weights once more.
_CACHED_FEATURES, _FEWEST_TOKENS, _MOST_TOKENS = 384 * 1024, 256, 4096
_CAUSES = (
    *(OSError, ValueError, KeyError, ImportError, RuntimeError, EOFError, UnpicklingError),
    *(AttributeError, TypeError),  # of a tokenizer that lacks a file
)


class ModelUnavailableError(ValueError):
    """A model that cannot be found, loaded, or read layer by layer."""


@dataclass(frozen=True)
class Subject:
    """A model at a revision, and how to load it.

    `model` is a hub id, a folder, or `package:IMPORT_NAME/FOLDER` for weights that an installed
    Python package carries. Only safetensors weights load unless `allow_pickle`, and no code from
    the checkpoint runs unless `trust_remote_code`. Where `model` is an address elsewhere, `folder`
    is the copy of its files on this machine.
    """

    model: str
    revision: str
    name: str
    dtype: Dtype = "float32"
    trust_remote_code: bool = False
    allow_pickle: bool = False
    folder: str = ""

    def __str__(self) -> str:
        return f"{self.name} at {self.revision}" if self.revision else self.name

    @property
    def source(self) -> str:
        """What `from_pretrained` takes: a folder, or the hub id."""
        if not self.model.startswith(_PACKAGE):
            return self.folder or self.model
        package, _, folder = self.model.removeprefix(_PACKAGE).partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModelUnavailableError(
                f"model {self.model}: the Python package {package} is not installed "
                "(the demo's model comes with `pip install 'layerrank[demo]'`)"
            )
        return str(Path(spec.origin).parent / folder)

    @property
    def is_folder(self) -> bool:
        """Whether the model lies in a folder of this machine."""
        return Path(self.source).is_dir()

    @property
    def hub_options(self) -> dict[str, Any]:
        """The arguments that every `from_pretrained` of this subject shares."""
        revision = {} if self.is_folder else {"revision": self.revision}
        return {"trust_remote_code": self.trust_remote_code, **revision}


@dataclass(frozen=True)
class ModelShape:
    """The sizes that a plan needs, read from the model's config without its weights.

    `max_tokens` and `vocabulary` are None where the config states none, `kind` where nobody asked:
    `known.require_readable` does.
    """

    layers: int
    hidden_size: int
    max_tokens: int | None
    vocabulary: int | None = None
    kind: Kind | None = None

    def batch_tokens(self, device: Literal["cpu", "cuda"]) -> int:
        """Return how many padded tokens to take at once: what a core's cache holds, or fills a GPU.

        On a CPU a float32 state of them is 1.5 MiB, and what a block computes of it about ten
        times that: with four times as many, models of 384 to 2,048 features were 8 to 23 % slower.
        """
        if device == "cuda":
            return _GPU_TOKENS
        return min(max(_CACHED_FEATURES // self.hidden_size, _FEWEST_TOKENS), _MOST_TOKENS)

    @property
    def known_ids(self) -> float:
        """The first token id that the model has no vector for, as far as that is stated."""
        return self.vocabulary or math.inf


def config_shape(config: Any) -> ModelShape:  # noqa: ANN401  (transformers ships no types)
    """Return the sizes that a config of transformers states.

    ModelUnavailableError if it states no number of blocks or of features, or several stacks.
    """
    name = type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ModelUnavailableError(
            f"{name} is an encoder-decoder; LayerRank reads models with one stack of blocks"
        )
    text = config.get_text_config()
    found = {
        name: getattr(text, name, None)
        for name in ("num_hidden_layers", "hidden_size", "max_position_embeddings", "vocab_size")
    }
    # Another thing than a number above 0 states nothing: -1 is no limit.
    sizes = {
        name: value if isinstance(value, int) and value > 0 else None
        for name, value in found.items()
    }
    layers, hidden, limit, vocabulary = sizes.values()
    if layers is None or hidden is None:
        absent = "num_hidden_layers" if layers is None else "hidden_size"
        raise ModelUnavailableError(
            f"{name} states no {absent}, as a text model's config does (it says {found[absent]!r})"
        )
    return ModelShape(layers, hidden, limit, vocabulary)


def read_shape(subject: Subject) -> ModelShape:
    """Return the sizes of a model; ModelUnavailableError if its config cannot be read."""
    config = read_config(subject)
    try:
        return config_shape(config)
    except ModelUnavailableError as error:
        raise ModelUnavailableError(f"model {subject}: {error}") from error


def read_config(subject: Subject) -> Any:  # noqa: ANN401  (transformers ships no types)
    """Return the config as transformers reads it; ModelUnavailableError if that fails."""
    from transformers import AutoConfig  # noqa: PLC0415  (see the module docstring)

    with explained(subject):
        return AutoConfig.from_pretrained(subject.source, **subject.hub_options)


def read_prompts(subject: Subject) -> tuple[dict[str, str], str | None]:
    """Return the prompts that sentence-transformers keeps beside the weights, and the usual one.

    By their names; empty without such a file. ModelUnavailableError if it cannot be read, or if
    whether there is one cannot be told here.
    """
    from transformers.utils.hub import cached_file  # noqa: PLC0415  (see the module docstring)

    with explained(subject):
        options = {
            key: subject.hub_options[key] for key in subject.hub_options if key == "revision"
        }
        path = cached_file(
            subject.source, _PROMPTS, _raise_exceptions_for_missing_entries=False, **options
        )
        if path is None:
            return {}, None
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        prompts = {
            str(key): str(words or "") for key, words in (found.get("prompts") or {}).items()
        }
        return prompts, found.get("default_prompt_name")


@contextmanager
def explained(subject: Subject) -> Iterator[None]:
    """Turn the many errors of model loading into one that names the model and the cause."""
    from safetensors import SafetensorError  # noqa: PLC0415

    try:
        with quiet():
            yield
    except (*_CAUSES, SafetensorError) as error:
        if isinstance(error, ModelUnavailableError):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelUnavailableError(
            f"cannot load model {subject.model} at revision {subject.revision}: "
            f"{lines[0] if lines else type(error).__name__}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Let transformers say nothing but errors."""
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415

    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
