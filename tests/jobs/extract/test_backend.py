"""Another backend than transformers: texts go through it to vectors, metrics and costs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from layerrank.jobs.cluster.cluster import Cluster
from layerrank.jobs.config.run import load
from layerrank.jobs.extract.stage import extract
from layerrank.jobs.measure.pieces import work_on
from layerrank.jobs.measure.stage import costs as costs_of
from layerrank.jobs.prepare.stage import prepare
from layerrank.jobs.rank.stage import read_costs, relative_cost
from layerrank.jobs.run import Run
from layerrank.jobs.subjects import check, checkpoint_of
from layerrank.operators.model import backend
from layerrank.operators.model.on_transformers import LayerModel
from layerrank.operators.model.subject import ModelUnavailableError, Subject, read_shape
from layerrank.operators.model.tokenise import load_tokenizer
from layerrank.storage.root import Root
from tests.conftest import write_config
from tests.support.machines.here import Here
from tests.support.stored import ask
from tests.support.tiny import BLOCKS, VOCABULARY, WIDTH

TABLE = torch.arange(VOCABULARY * WIDTH).reshape(VOCABULARY, WIDTH) % 97 / 97


class Lookup:
    """A backend: layer k of a token is its row of a table times k + 1, and the norm halves it."""

    has_final_norm, pads = True, True
    final_size = WIDTH

    def __init__(self, subject: Subject, device: torch.device) -> None:
        self.shape, self.device = read_shape(subject), device

    def forward(
        self, ids_NT: Tensor, mask_NT: Tensor, reached: Callable[[], None] | None = None
    ) -> list[Tensor]:
        states = []
        for layer in range(self.shape.layers + 1):
            noise_NT1 = (1 - mask_NT).unsqueeze(2) * 1e6  # what stands in the padding
            states.append((layer + 1) * TABLE[ids_NT] + noise_NT1)
            if reached:
                reached()
        return states

    def final_norm(self, state_NTD: Tensor) -> Tensor:
        return state_NTD / 2

    def layer_parameters(self) -> list[int]:
        return [TABLE.numel()] * (self.shape.layers + 1)

    def layer_operations(self, ids_NT: Tensor) -> list[int]:
        del ids_NT
        return [0] * (self.shape.layers + 1)


def test_a_run_goes_through_another_backend(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "own")
    (folder / "model.safetensors").rename(folder / "table.npy")
    entry = {"lookup": backend.Entry(lambda each: each.name == "tiny", Lookup, "*.npy")}
    monkeypatch.setattr(backend, "BACKENDS", {**entry, **backend.BACKENDS})
    config = load(str(write_config(tmp_path, folder, measure={"token_metrics": "both"})))
    run = Run(config, Root(str(tmp_path / "out")), Cluster(Here()))
    (subject,) = run.subjects
    assert check(subject, run.config.storage).layers == BLOCKS
    files = checkpoint_of(subject, run.config.storage)
    assert files is not None
    assert "table.npy" in files.prints()
    with pytest.raises(ModelUnavailableError, match=r"no weights: no model\.safetensors"):
        check(replace(subject, name="other"), run.config.storage)
    prepare(run)
    extract(run)
    work_on(run.cluster, costs_of(run, subject))
    other = backend.load_backend(Subject(str(checkpoint), "1", "other"), torch.device("cpu"))
    assert isinstance(other, LayerModel)
    tokenizer = load_tokenizer(subject)
    stored = ask(
        run.root,
        "SELECT text, layer, norm, pooling, vector FROM embeddings JOIN prompts "
        "USING (dataset, prompt_id) WHERE condition = 'clean'",
    )
    norms = ask(
        run.root,
        "SELECT layer, avg(mean_norm) FROM prompt_metrics GROUP BY ALL ORDER BY 1",
    )
    assert len(stored) == 120 * (BLOCKS + 1) * 2 * 3
    for text, layer, norm, pooling, vector in stored:
        rows = TABLE[tokenizer(text, truncation=True, max_length=64)["input_ids"]].numpy()
        means = {"mean": rows, "mean_no_first": rows[1:] if len(rows) > 1 else rows}
        pooled = means[pooling].mean(axis=0) if pooling in means else rows[-1]
        expected = (layer + 1) * pooled / (2 if norm == "final" else 1)
        np.testing.assert_allclose(vector, expected, rtol=1e-5)
    assert [value / norms[0][1] for _, value in norms] == pytest.approx([1, 2, 3, 4])
    assert ask(run.root, "SELECT count(*) FROM tokens") == [(16 * (BLOCKS + 1),)]
    costs = read_costs(run, subject)
    assert {each.parameters for each in costs.values()} == {TABLE.numel()}
    latencies = [costs[layer].latency_ms for layer in range(BLOCKS + 1)]
    assert latencies == sorted(latencies)
    # Without operations the blocks count as equal.
    assert relative_cost(costs, [*costs]) == pytest.approx(np.arange(BLOCKS + 1) / BLOCKS)
