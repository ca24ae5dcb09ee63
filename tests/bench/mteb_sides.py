"""mteb as it is, on every layer: with a model that encodes, and with vectors from memory.

Shapes: L layers, N texts, T tokens (right-padded), D features.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoTokenizer

from operators.benchmark.score import LookupEncoder, model_meta
from operators.benchmark.tasks import mteb_library
from tests.support.shared_data import MAX_TOKENS, SUBJECT
from tests.support.shared_mteb import BY_FILE

BATCH = 32

Vectors = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]


@dataclass
class Live:
    """Encodes texts and keeps one layer, in the way of sentence-transformers.

    From long texts to short ones in batches of 32, through the whole model, mean over real tokens.
    """

    threads: int
    texts: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        torch.set_num_threads(self.threads)
        self._tokenizer = AutoTokenizer.from_pretrained(SUBJECT.source)
        self._model = AutoModel.from_pretrained(SUBJECT.source, dtype=torch.float32).eval()

    def encode(self, texts: Sequence[str], layer: int) -> Vectors:
        """Return the vectors [N, D] of `texts`."""
        began = time.perf_counter()
        order = np.argsort([-len(text) for text in texts], kind="stable")
        parts = [
            self._batch([texts[row] for row in order[start : start + BATCH]], layer)
            for start in range(0, len(texts), BATCH)
        ]
        vectors_ND = np.empty((len(texts), parts[0].shape[1]), dtype=np.float32)
        vectors_ND[order] = np.concatenate(parts)
        self.texts += len(texts)
        self.seconds += time.perf_counter() - began
        return vectors_ND

    def _batch(self, texts: list[str], layer: int) -> Vectors:
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.inference_mode():
            states = self._model(**tokens, output_hidden_states=True).hidden_states
            mask_NT1 = tokens["attention_mask"].unsqueeze(-1).float()
            pooled_ND = (states[layer] * mask_NT1).sum(dim=1) / mask_NT1.sum(dim=1)
        vectors_ND: Vectors = pooled_ND.numpy()
        return vectors_ND


def evaluated(name: str, layer: int, encode: Encode) -> tuple[float, float]:
    """Return mteb's main score of a layer on a file's task, and the seconds of `mteb.evaluate`.

    A new task, because mteb draws other documents when one is evaluated twice, and its columns read
    row by row, as the library leaves them.
    """
    task = BY_FILE[name]()
    task.load_data()
    model = LookupEncoder(name, encode, model_meta("bench/minilm", str(layer)))
    began = time.perf_counter()
    found = mteb_library().evaluate(
        model, task, cache=None, co2_tracker=False, show_progress_bar=False
    )
    seconds = time.perf_counter() - began
    return float(found.task_results[0].get_score()), seconds
