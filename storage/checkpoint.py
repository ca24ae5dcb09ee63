"""A checkpoint's files, on this machine or in object storage, and the cache of the latter.

Models are loaded from folders, or from a GGUF file, which holds config, tokenizer and weights. A
checkpoint in object storage is copied into a cache that every process of a machine shares, in a
folder of its own for every state of the remote files, so that one that was replaced is fetched
anew. `LAYERRANK_CACHE` names another place for it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, NamedTuple

from filelock import FileLock, Timeout

from layerrank.storage.root import Root, fingerprint, make_file, make_folder

CACHE = "LAYERRANK_CACHE"
_FILES = (".safetensors", ".bin", ".json", ".txt", ".model", ".py")
_BESIDE_WEIGHTS = (".json", ".txt", ".model", ".py", ".jinja", ".tiktoken")
_PLAIN, _PICKLED = "model.safetensors", "pytorch_model.bin"
_CONFIG, _INDEX = "config.json", ".index.json"
_NO_HEADER = (ValueError, KeyError, TypeError, AttributeError, IndexError)
_LENGTH_BYTES = 8  # of the number that a safetensors file begins with
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the format
# Of GGUF (ggml's docs/gguf.md): the types of metadata that are numbers, as `struct` has them.
_GGUF_NUMBERS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))
_GGUF_STRING, _GGUF_ARRAY = 8, 9
_GGUF_VERSIONS, _GGUF_ALIGNED, _GGUF_MOST_AXES = (2, 3), 32, 4
_WAIT_SECONDS = 1.0  # between two looks at what another process fetches
_HASHED_WHOLE = 1 << 26  # bytes of a remote file; of a larger one a sample tells it apart


class Stated(NamedTuple):
    """What the headers of safetensors say: how many tensors, and the longest axis of any."""

    tensors: int
    longest: int


class CheckpointError(ValueError):
    """The files of a checkpoint cannot be those of a model; the message says what is wrong."""


@dataclass(frozen=True)
class Checkpoint:
    """The folder or prefix `root` as a model's checkpoint, as `transformers` saves one.

    Weights are also files whose names match the glob `weights`, or are `file` alone, a GGUF file or
    an adapter's, which is needed to know a model at all. Files may be links to files, as in the
    snapshots of the hub's cache.
    """

    root: Root
    allow_pickle: bool = False
    weights: str = ""
    file: str = ""

    def check(self) -> Stated | None:
        """Return what the headers of weights state; CheckpointError if they or a config are absent.

        A safetensors file begins with the length of a JSON header that says which bytes each
        tensor has, and a GGUF file with a header that does, so a truncated file is found without
        reading a tensor; of no other file anything is stated. FileNotFoundError if there is no such
        folder.
        """
        sizes, shapes = self._sizes(), list[list[int]]()
        for name in self._weights(sizes):
            if name.endswith(".safetensors"):
                shapes += self._check_safetensors(name, sizes[name])
            elif name == self.file:
                self._check_gguf(name, sizes[name])
        if not self.file and _CONFIG not in sizes:
            raise CheckpointError(f"it has no {_CONFIG} among {some(sorted(sizes))}")
        if not shapes:
            return None
        return Stated(len(shapes), max((axis for shape in shapes for axis in shape), default=0))

    def fetch(self, *, weights: bool = True, wait: Callable[[], object] = lambda: None) -> Path:
        """Return a local folder with the files, without the weights if those are not wanted.

        Each file appears there whole or not at all, and once however many processes ask; `wait` is
        called while another one is seen to go on with that.
        FileNotFoundError if there are no files, OSError if the disk is too small.
        """
        sizes = self._sizes()
        wanted = [name for name in sizes if name.endswith(_BESIDE_WEIGHTS)]
        wanted += self._weights(sizes) if weights or self.file else []
        # Another state of the files has another name, by their listing alone.
        listed = json.dumps([self.root.place(), sorted(self.root.versions("", links=True).items())])
        cache = (
            os.environ.get(CACHE) or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/layerrank"
        )
        folder = Path(cache, "checkpoints", blake2b(listed.encode(), digest_size=16).hexdigest())
        folder = folder.expanduser()
        make_folder(folder)
        absent = [name for name in wanted if not (folder / name).is_file()]
        needed, free = sum(sizes[name] for name in absent), shutil.disk_usage(folder).free
        if needed > free:
            raise OSError(
                f"{folder} has room for {free / 1e9:.1f} GB and {needed / 1e9:.1f} GB are to be "
                f"fetched: delete what is old in {folder.parent}, or set {CACHE} to another folder"
            )
        for name in absent:
            target, part, lock = (
                folder / each for each in (name, f".{name}.part", f".{name}.lock")
            )
            make_file(lock)
            # The lock ends with its holder, whose part of a file the next one writes anew.
            with _locked(lock, part, wait):
                if target.is_file():
                    continue
                part.unlink(missing_ok=True)
                make_file(part)
                self.root.filesystem.get_file(self.root.path(name), str(part))
                if part.stat().st_size != sizes[name]:
                    raise OSError(
                        f"{self.root.place(name)} changed while it was fetched; run again"
                    )
                part.replace(target)
        return folder

    def prints(self) -> dict[str, str]:
        """Return a fingerprint of every file that a model or its tokenizer may be read from."""
        whole = {} if self.root.is_local else {"whole": _HASHED_WHOLE}
        return {
            name: fingerprint(self.root.place(name), self.root.options, **whole)
            for name in sorted(self._sizes())
            if name == self.file
            or (name.endswith(_BESIDE_WEIGHTS) if self.file else name.endswith(_FILES))
            or fnmatchcase(name, self.weights)
        }

    def _sizes(self) -> dict[str, int]:
        if self.root.is_local and Path(self.root.path()).is_file():
            raise CheckpointError(f"{self.root.place()} is a file: give the folder that it lies in")
        sizes = self.root.sizes("", links=True)
        if not sizes:
            folders = self.root.folders("")
            inside = f", only folders ({some(folders)}): give revisions" if folders else ""
            raise FileNotFoundError(f"there are no files in {self.root.place()}{inside}")
        return sizes

    def _weights(self, sizes: dict[str, int]) -> list[str]:
        """Return the names of the files that hold the weights; CheckpointError if one is absent."""
        if self.file:
            if self.file not in sizes:
                raise CheckpointError(f"it has no {self.file} among {some(sorted(sizes))}")
            return [self.file]
        if own := [name for name in sizes if fnmatchcase(name, self.weights)]:
            return own
        for name in (_PLAIN, _PICKLED) if self.allow_pickle else (_PLAIN,):
            index = name + _INDEX
            if name in sizes:
                return [name]
            if index not in sizes:
                continue
            try:
                names = sorted(set(json.loads(self.root.read(index))["weight_map"].values()))
            except (*_NO_HEADER, RecursionError) as error:
                raise CheckpointError(f"its {index} is not a list of weight files") from error
            absent = [name for name in names if name not in sizes]
            if absent or not names:
                raise CheckpointError(
                    f"it lacks {len(absent)} of the {len(names)} weight files of {index}: "
                    f"{some(absent)}"
                )
            return names
        pickled = [name for name in (_PICKLED, _PICKLED + _INDEX) if name in sizes]
        if pickled:
            raise CheckpointError(
                f"it has no {_PLAIN}, only pickled weights ({pickled[0]}), which can run any code: "
                "set allow_pickle: true if you trust it"
            )
        raise CheckpointError(
            f"it has no weights: no {self.weights or _PLAIN} among {some(sorted(sizes))}"
        )

    def _check_safetensors(self, name: str, size: int) -> list[list[int]]:
        """Return the shapes of a file's tensors."""
        read, path = self.root.filesystem.cat_file, self.root.path(name)
        length = int.from_bytes(read(path, start=0, end=_LENGTH_BYTES), "little")
        stated = start = _LENGTH_BYTES + length
        shapes: list[list[int]] = []
        if size < _LENGTH_BYTES or length > _LONGEST_HEADER:
            raise CheckpointError(f"its {name} is not a safetensors file")
        if start <= size:
            try:
                header: dict[str, Any] = json.loads(read(path, start=_LENGTH_BYTES, end=start))
                tensors = [each for key, each in header.items() if key != "__metadata__"]
                stated += max((int(each["data_offsets"][1]) for each in tensors), default=0)
                shapes = [[int(axis) for axis in each["shape"]] for each in tensors]
            except (*_NO_HEADER, RecursionError) as error:
                raise CheckpointError(f"the header of its {name} cannot be read") from error
            if not tensors:
                raise CheckpointError(f"its {name} holds no tensors")
        if size < stated:
            raise CheckpointError(
                f"its {name} is cut off: {size:,} bytes, and its header says {stated:,}"
            )
        return shapes

    def _check_gguf(self, name: str, size: int) -> None:
        from gguf import GGML_QUANT_SIZES  # noqa: PLC0415  (of an extra)

        with self.root.reader(name) as file:
            if file.read(4) != b"GGUF":
                raise CheckpointError(f"its {name} is not a GGUF file")
            try:
                stated, parts = _gguf_bytes(file, GGML_QUANT_SIZES)
            except struct.error as error:  # fewer bytes than a number has
                raise CheckpointError(f"its {name} is cut off in its header") from error
            except (ValueError, LookupError, OverflowError) as error:
                raise CheckpointError(f"the header of its {name} cannot be read") from error
        if parts > 1:
            raise CheckpointError(
                f"its {name} is one of {parts} parts of a model: merge them into one file"
            )
        if size < stated:
            raise CheckpointError(
                f"its {name} is cut off: {size:,} bytes, and its header says {stated:,}"
            )


def _locked(lock: Path, part: Path, wait: Callable[[], object]) -> AbstractContextManager[object]:
    """Take a lock, calling `wait` whenever the part of a file that its holder fetches has grown."""
    waited, size = FileLock(lock), -1
    while True:
        try:
            return waited.acquire(timeout=_WAIT_SECONDS)
        except Timeout:
            before = size
            with suppress(FileNotFoundError):  # not begun yet, or whole
                size = part.stat().st_size
            if size != before:
                wait()


def _gguf_bytes(file: IO[bytes], sizes: Mapping[int, tuple[int, int]]) -> tuple[int, int]:
    """Return the bytes that a GGUF file has by its header, and of how many parts it is one.

    `file` stands behind the four letters that it begins with; `sizes` are elements and bytes of a
    block of each type of tensor. struct.error if the header is not whole.
    """

    def number(kind: str) -> Any:  # noqa: ANN401  (int or float)
        return struct.unpack("<" + kind, file.read(struct.calcsize("<" + kind)))[0]

    def text() -> bytes:
        length = number("Q")
        if length > _LONGEST_HEADER:
            raise ValueError("a text of that length")
        return file.read(length)

    def value(kind: int) -> Any:  # noqa: ANN401  (a number, or what nobody asks for)
        if kind == _GGUF_STRING:
            return text()
        if kind != _GGUF_ARRAY:
            return number(_GGUF_NUMBERS[kind])
        of, count = number("I"), number("Q")
        if of in _GGUF_NUMBERS:
            return file.seek(count * struct.calcsize("<" + _GGUF_NUMBERS[of]), os.SEEK_CUR)
        for _ in range(count):
            value(of)
        return None

    if number("I") not in _GGUF_VERSIONS:
        raise ValueError("another version")
    tensors = number("Q")
    facts = {text(): value(number("I")) for _ in range(number("Q"))}
    end = 0
    for _ in range(tensors):
        text()
        axes = number("I")
        if axes > _GGUF_MOST_AXES:
            raise ValueError("too many axes")
        count = math.prod(number("Q") for _ in range(axes))
        elements, width = sizes[number("I")]
        end = max(end, number("Q") + count // elements * width)
    aligned = facts.get(b"general.alignment", _GGUF_ALIGNED)
    return -(-file.tell() // aligned) * aligned + end, facts.get(b"split.count", 1)


def some(names: Sequence[str], most: int = 8) -> str:
    """Return the first of some names, and how many more there are."""
    shown = ", ".join(names[:most]) or "none"
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
