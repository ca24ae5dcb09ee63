"""Vectors of every layer of the texts beside the checkout, kept in a folder from run to run.

Final norm, mean pooling, float32, as the product ranks by default; at most 64 tokens.

Shapes: L layers, N texts, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from transformers import AutoModel, AutoTokenizer

from layerrank.jobs.cluster.console import say
from layerrank.operators.model.backend import Backend, load_backend
from layerrank.operators.model.encode import Representations, encode
from layerrank.operators.model.on_transformers import LayerModel
from layerrank.operators.model.subject import Subject
from layerrank.operators.model.tokenise import load_tokenizer, tokenise
from tests.support.shared_data import FOLDER

Vectors = npt.NDArray[np.float32]
MAX_TOKENS = 64
# Labels, and rows of each: all four have 400 to 600 rows.
SAMPLES = {
    "stackoverflow_titles": (20, 30),
    "banking77": (30, 16),
    "tweeteval_emotion": (4, 125),
    "stsbenchmark": (1, 400),
}


class Texts(NamedTuple):
    """Rows of a file of the data, or marks of texts, and these: of pairs first all first ones."""

    rows: npt.NDArray[np.int64]
    texts: Sequence[str]


def sample(name: str, folder: Path = FOLDER, seed: int = 0) -> Texts:
    """Return a random sample of a file: as many rows of each label as `SAMPLES` says."""
    table = pq.read_table(folder / f"{name}.parquet").to_pandas()
    labels, each = SAMPLES[name]
    generator = np.random.default_rng(seed)
    if "label" not in table:
        rows = np.sort(generator.choice(np.flatnonzero(table["split"] == "test"), each, False))
        pairs = table.iloc[rows]
        return Texts(rows, [*pairs["sentence1"], *pairs["sentence2"]])
    known = np.unique(table["label"])
    chosen = generator.choice(known, labels, replace=False)
    of_label = [
        generator.choice(np.flatnonzero(table["label"] == it), each, False) for it in chosen
    ]
    rows = np.sort(np.concatenate(of_label))
    return Texts(rows, [*table["text"].iloc[rows]])


def vectors_LND(
    model: str, name: str, texts: Texts, cached: Path, max_tokens: int = MAX_TOKENS
) -> Vectors:
    """Return the vectors of every layer of some texts; they are read where they were kept before.

    They lie in `<model>-<name>.npz`, as `vectors_LND` and `rows`.
    """
    file = cached / f"{title(model)}-{name}.npz"
    if file.exists():
        kept = np.load(file)
        if np.array_equal(kept["rows"], texts.rows):
            return np.asarray(kept["vectors_LND"], np.float32)
    backend, tokenizer = _loaded(model)
    ids = tokenise(tokenizer, texts.texts, max_tokens).ids
    say(f"{title(model)}, {name}: {len(ids):,} texts, {sum(map(len, ids)):,} tokens are encoded")
    with torch.inference_mode():
        found = encode(backend, ids, Representations(("final",), ("mean",), 1024))
    cached.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part.npz")
    np.savez(part, vectors_LND=found, rows=texts.rows)
    part.replace(file)
    return found


def title(model: str) -> str:
    """Return what a model is called: MiniLM, SmolLM2, or the last folder of another."""
    known = {"minilm": "MiniLM", "smol": "SmolLM2"}
    return next((name for key, name in known.items() if key in model.lower()), Path(model).name)


@cache
def _loaded(model: str) -> tuple[Backend, object]:
    subject = Subject(model, "main", title(model))
    quantised = [*Path(subject.source).glob("*.gguf")] if subject.is_folder else []
    if not quantised:
        return load_backend(subject, torch.device("cpu")), load_tokenizer(subject)
    # The loader of the product reads safetensors alone.
    source = {"pretrained_model_name_or_path": subject.source, "gguf_file": quantised[0].name}
    module = AutoModel.from_pretrained(**source, dtype=torch.float32).eval()
    return LayerModel(module), AutoTokenizer.from_pretrained(**source)
