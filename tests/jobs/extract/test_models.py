"""Models that cannot be extracted as asked are refused by name, before or as they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModel

from layerrank.jobs.cluster.cluster import Cluster
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.run import load as load_config
from layerrank.jobs.extract.stage import extract
from layerrank.jobs.extract.worker import Extractor, load
from layerrank.jobs.plan import plan as planning
from layerrank.jobs.plan.plan import checked
from layerrank.jobs.prepare.stage import prepare
from layerrank.jobs.run import Run
from layerrank.operators.model.subject import ModelUnavailableError
from layerrank.storage.root import Root
from tests.conftest import write_config
from tests.operators.model.shrunk import tiny_of
from tests.support.machines.here import Here
from tests.support.stored import ask
from tests.support.tiny import (
    ARCHITECTURES,
    save_tiny,
    save_tiny_adapter,
    save_tiny_gguf,
    tiny_tokenizer,
)


def _saved(folder: Path, model: Any) -> Path:  # noqa: ANN401
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def _projecting(folder: Path) -> Path:
    """Save a model of 32 features that projects its output to 16."""
    sizes = {**ARCHITECTURES["opt"], "word_embed_proj_dim": 16, "do_layer_norm_before": False}
    return _saved(folder, AutoModel.from_config(AutoConfig.for_model("opt", **sizes)))


def _run(folder: Path, model: Path, **changes: Any) -> Run:  # noqa: ANN401
    config = load_config(str(write_config(folder, model, **changes)))
    return Run(config, Root(str(folder / "out")), Cluster(Here()))


@pytest.mark.parametrize(("norm", "width"), [("none", 32), ("final", 16)])
def test_norms_of_different_widths_are_stored_one_at_a_time(
    norm: str, width: int, tmp_path: Path
) -> None:
    model = _projecting(tmp_path / "opt")
    both = _run(tmp_path, model)
    with pytest.raises(ModelUnavailableError, match=r"tiny at local has 32 .*none and 16 .*final"):
        load(both.subjects[0], both.config, "cpu")
    extracting = {"norms": [norm], "poolings": ["mean"], "max_tokens": 16, "workers": 1}
    one = _run(tmp_path, model, extract=extracting, rank={"norm": norm})
    for stage in (prepare, extract):
        stage(one)
    found = ask(one.root, "SELECT DISTINCT len(vector) FROM embeddings")
    assert found == [(width,)]
    # A shard without a token has the same columns as the others.
    assert Extractor(one.root, one.subjects[0], one.config, "cpu", 1)._features == width


def test_a_gguf_file_and_an_adapter_are_subjects_beside_their_model(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "llama", "llama")
    file = save_tiny_gguf(tmp_path / "q.gguf", model)
    adapter = save_tiny_adapter(tmp_path / "tuned", model)
    given = [{"model": str(model)}, {"model": str(model), "adapter": str(adapter)}]
    given += [{"model": str(file)}, {"model": str(model), "dtype": "float16", "name": "half"}]
    run = _run(tmp_path, model, subjects=given)
    for stage in (prepare, extract):
        stage(run)
    found = dict(
        ask(
            run.root,
            "SELECT model, sum(vector[1]) FROM embeddings WHERE layer = 3 GROUP BY model",
        )
    )
    assert found.keys() == {"llama", "llama+tuned", "q", "half"}
    assert found["half"] != found["llama"] == pytest.approx(found["half"], abs=5e-2)
    assert found["q"] == pytest.approx(found["llama"], abs=1e-5)
    assert found["llama+tuned"] != pytest.approx(found["llama"], abs=1e-2)


def test_what_overflows_names_its_layer_and_the_remedy(tmp_path: Path) -> None:
    def grow(model: Any) -> None:  # noqa: ANN401
        model.layers[1].mlp.up_proj.weight.mul_(1e4)
        model.layers[1].mlp.down_proj.weight.mul_(1e4)

    model = save_tiny(tmp_path / "large", "llama", change=grow)
    run = _run(tmp_path, model, subjects=[{"model": str(model), "dtype": "float16"}])
    prepare(run)
    says = r"layer 2 has non-finite .*float16 overflows at 65,504: .* in float32 or bfloat16"
    with pytest.raises(ValueError, match=says):
        extract(run)


def test_a_text_with_a_token_that_has_no_vector_is_named(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    sizes = {**ARCHITECTURES["llama"], "vocab_size": len(tokenizer)}
    model = _saved(
        tmp_path / "llama", AutoModel.from_config(AutoConfig.for_model("llama", **sizes))
    )
    tokenizer.add_special_tokens({"pad_token": "harbour"})  # stands in the texts
    tokenizer.save_pretrained(model)
    run = _run(tmp_path, model)
    prepare(run)
    with pytest.raises(ModelUnavailableError, match=r"no vector for the token 'harbour' .*topics"):
        extract(run)


def test_a_plan_checks_the_models_as_the_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = save_tiny(tmp_path / "good")
    assert list(checked(_run(tmp_path, good).config)) == []
    with pytest.raises(ModelUnavailableError, match="no list of 4 blocks"):
        list(checked(_run(tmp_path, _saved(tmp_path / "albert", tiny_of("albert"))).config))
    with pytest.raises(ConfigError, match="conditions"):
        list(checked(_run(tmp_path, good, conditions={"length": [9999]}).config))
    monkeypatch.setattr(planning, "_PROBED_BYTES", 1000)
    (line,) = checked(_run(tmp_path, good).config)
    assert line.startswith("tiny at local: its weights are not here")
    (good / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailableError, match="no weights"):
        list(checked(_run(tmp_path, good).config))
