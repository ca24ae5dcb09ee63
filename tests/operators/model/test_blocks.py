"""The kinds of architectures that are not what one takes them for: read right, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModel

from layerrank.operators.model.known import require_readable
from layerrank.operators.model.on_transformers import LayerModel, load_model
from layerrank.operators.model.subject import ModelUnavailableError, Subject, config_shape
from tests.operators.model.shrunk import compared, tiny_of
from tests.support.tiny import ARCHITECTURES, save_tiny, tiny_model, tiny_tokenizer

CONVOLUTION: dict[str, Any] = yaml.safe_load("""
{hidden_size: 32, num_hidden_layers: 3, num_attention_heads: 4, intermediate_size: 64,
vocab_size: 300, max_position_embeddings: 128, relative_attention: true, pos_att_type: [c2p, p2c],
position_buckets: 16, conv_kernel_size: 3}
""")


def _loaded(model: Any, folder: Path) -> LayerModel:  # noqa: ANN401
    model.save_pretrained(folder)
    return load_model(Subject(str(folder), "local", "tiny"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "pads"),
    [
        ("fnet", False),  # mixes over all positions, padding too
        ("convbert", False),  # a convolution reaches into the padding
        ("nystromformer", False),
        ("openai-gpt", True),  # its blocks give a list
        ("longformer", True),  # pads to its window
        ("jina_embeddings_v3", True),  # a pooler stands beside the blocks
        ("qwen3_5", True),  # a vision tower of as many blocks
        ("mamba", True),  # hidden_states without the embeddings
        ("rwkv", True),
    ],
)
def test_every_layer_is_the_model_cut_there_in_any_batch(
    name: str, pads: bool, tmp_path: Path
) -> None:
    model = tiny_of(name)
    ours = _loaded(model, tmp_path)
    assert ours.pads == pads
    assert max(compared(ours, model)).by < 1e-5


def test_what_stands_between_two_blocks_counts(tmp_path: Path) -> None:
    """DeBERTa's convolution changes the state behind block 1, before block 2 takes it."""
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model("deberta-v2", **CONVOLUTION)).eval()
    ours = _loaded(model, tmp_path)
    assert max(compared(ours, model)).by < 1e-5
    ids_NT = torch.arange(20, 29).unsqueeze(0)
    states = ours.forward(ids_NT, torch.ones_like(ids_NT))
    left: list[torch.Tensor] = []
    model.encoder.layer[0].register_forward_hook(lambda _block, _args, out: left.append(out[0]))
    with torch.inference_mode():
        own = model(input_ids=ids_NT, output_hidden_states=True).hidden_states
    for state_NTD, own_NTD in zip(states, own, strict=True):
        torch.testing.assert_close(state_NTD, own_NTD)
    assert (states[1] - left[0]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("albert", "no list of 4 blocks"),
        ("xlm", "attentions, .*: the model's output is made of more than what leaves the last"),
        ("xlnet", r"layer 0 of a text of 8 tokens is \[8, 1, 32\], not \[1, 8, 32\]"),
        ("canine", r"layer 0 of a text of 8 tokens is \[1, 2, 32\], not \[1, 8, 32\]"),
        ("squeezebert", "no hook sees"),
        ("reformer", "output is made of more than what leaves the last of them"),
        (
            "cpmant",
            "output is made of more than what leaves the last of them",
        ),  # and a prompt before it
        ("clip", "CLIPModel cannot be run on text alone"),
        ("dpr", "no last hidden state"),
        ("lxmert", "states no num_hidden_layers"),
        ("t5", "is an encoder-decoder"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match=says) as caught:
        _loaded(tiny_of(name), tmp_path)
    assert str(caught.value).startswith("model tiny at local: ")


@pytest.mark.parametrize("name", ["mamba", "mamba2", "falcon_mamba", "gpt_neox"])
def test_a_model_of_16_bits_may_add_its_blocks_up_in_32(name: str) -> None:
    model = LayerModel(tiny_of(name).to(torch.bfloat16))
    states = model.forward(torch.arange(4)[None], torch.ones(1, 4, dtype=torch.int64))
    assert model.pads
    assert (states[-1].dtype == torch.float32) == ("mamba" in name)


def test_a_model_of_other_texts_of_the_same_length_is_refused() -> None:
    class Mixing(torch.nn.Module):
        def forward(self, state_NTD: torch.Tensor) -> torch.Tensor:
            return state_NTD + state_NTD.mean(dim=0)

    model = tiny_model("bert")
    model.embeddings.dropout = Mixing()
    with pytest.raises(ModelUnavailableError, match="beside another text of the same length"):
        LayerModel(model)


def test_states_that_are_written_over_are_refused() -> None:
    model = tiny_model("bert")
    model.encoder.layer[1].register_forward_pre_hook(lambda _b, args: (args[0].add_(1.0),))
    with pytest.raises(ModelUnavailableError, match="written over"):
        LayerModel(model)


def test_a_vocabulary_of_six_is_probed_with_what_it_has() -> None:
    sizes = {**ARCHITECTURES["llama"], "vocab_size": 6, "eos_token_id": [2, 3]}
    model = AutoModel.from_config(AutoConfig.for_model("llama", **sizes)).eval()
    ours = LayerModel(model)
    assert ours.shape.vocabulary == 6
    assert max(compared(ours, model)).by < 1e-5


@pytest.mark.parametrize("limit", [-1, 0])
def test_no_number_above_0_is_no_limit(limit: int) -> None:
    config = AutoConfig.for_model("llama")
    config.max_position_embeddings = limit
    assert config_shape(config).max_tokens is None


def _unlike(folder: Path, kind: str) -> str:
    """Save a checkpoint that no weights need to be read of, and return what it is refused with."""
    save_tiny(folder)
    if kind == "vision":
        (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
        return "ViTModel takes no token ids"
    if kind == "adapter":
        (folder / "adapter_config.json").write_text("{}")
        return r"an adapter \(adapter_config\.json\) lies beside its weights"
    tokenizer, count = tiny_tokenizer(), 300
    count = len(tokenizer)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": count}))
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.add_tokens(["river"] if kind == "token" else [])
    tokenizer.save_pretrained(folder)
    says = rf"has {count + 2} tokens and the model vectors for {count}: 'river' \(id {count + 1}\)"
    return says if kind == "token" else ""


@pytest.mark.parametrize("kind", ["vision", "adapter", "token", "special token"])
def test_what_is_known_without_weights_is_refused_without_them(kind: str, tmp_path: Path) -> None:
    says = _unlike(tmp_path, kind)
    (tmp_path / "model.safetensors").unlink()
    subject = Subject(str(tmp_path), "local", "tiny")
    if not says:  # which stands in no ordinary text
        assert require_readable(subject).layers == 3
        return
    with pytest.raises(ModelUnavailableError, match=f"^model tiny at local: .*{says}"):
        require_readable(subject)
