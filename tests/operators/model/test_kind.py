"""What kind of model it is, from its config and the files beside its weights."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig

from layerrank.operators.model.known import kind_of, require_readable
from layerrank.operators.model.subject import Subject
from tests.support.tiny import save_tiny

POOLING = {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}


@pytest.mark.parametrize(
    ("architecture", "own", "kind"),
    [
        *((name, {}, "causal decoder") for name in ("gpt_neox", "llama", "gpt2", "jamba")),
        *((name, {}, "state-space model") for name in ("mamba", "mamba2", "falcon_mamba")),
        *((name, {}, "encoder") for name in ("bert", "modernbert", "distilbert", "deberta-v2")),
        ("bert", {"is_decoder": True}, "causal decoder"),
        ("bert", {"architectures": ["BertLMHeadModel"]}, "encoder"),  # saved with the wrong head
    ],
)
def test_the_config_says_the_kind(architecture: str, own: dict[str, Any], kind: str) -> None:
    config = AutoConfig.for_model(architecture, **own)
    assert kind_of(config, pools=False) == kind
    assert kind_of(config, pools=True) == "embedding model"


@pytest.mark.parametrize(
    ("saved_as", "kind"),
    [(["NewForCausalLM"], "causal decoder"), (["NewModel"], "encoder"), (None, "encoder")],
)
def test_of_code_of_its_own_the_head_says_it(saved_as: list[str] | None, kind: str) -> None:
    config = SimpleNamespace(model_type="new", architectures=saved_as)
    config.get_text_config = lambda: config
    assert kind_of(config, pools=False) == kind


@pytest.mark.parametrize(
    ("modules", "kind"),
    [
        (json.dumps([{"type": "sentence_transformers.models.Transformer"}, POOLING]), "embedding"),
        (json.dumps([{"type": "sentence_transformers.models.Transformer"}]), "causal"),
        ('{"type": "Pooling"}', "causal"),
        ("[null, 3]", "causal"),
        ("not JSON", "causal"),
        (None, "causal"),
    ],
)
def test_a_pooling_beside_the_weights_makes_an_embedding_model(
    modules: str | None, kind: str, tmp_path: Path
) -> None:
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    if modules:
        (tmp_path / "modules.json").write_text(modules)
    assert str(require_readable(Subject(str(tmp_path), "local", "tiny")).kind).startswith(kind)


def test_a_snapshot_of_the_hub_is_asked_like_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "models--org--tiny"
    snapshot = save_tiny(cache / "snapshots" / ("a" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    subject = Subject("org/tiny", "main", "tiny")
    assert require_readable(subject).kind == "causal decoder"
    (snapshot / "modules.json").write_text(json.dumps([POOLING]))
    assert require_readable(subject).kind == "embedding model"
