"""Tiny random models of every architecture, from their configs, and a tokenizer."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

BLOCKS = 3
WIDTH = 32
VOCABULARY = 300

_COMMON = {"num_hidden_layers": BLOCKS, "hidden_size": WIDTH, "vocab_size": VOCABULARY}
_ATTENTION = {"num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 128}
_OWN: dict[str, dict[str, Any]] = yaml.safe_load("""
gpt_neox: {}
llama: {num_key_value_heads: 2}
qwen2: {num_key_value_heads: 2}
opt: {ffn_dim: 64, word_embed_proj_dim: 32}
gpt2: {}
bert: {}
mamba: {state_size: 8}
mamba2: {state_size: 8, num_heads: 8, head_dim: 8, n_groups: 2}
jamba: {num_key_value_heads: 2, attn_layer_period: 2, attn_layer_offset: 1, expert_layer_period: 2,
  expert_layer_offset: 1, num_experts: 2, num_experts_per_tok: 1, mamba_d_state: 8,
  mamba_dt_rank: 4}
zamba2: {layers_block_type: [mamba, hybrid, mamba], attention_head_dim: 16, adapter_rank: 4,
  mamba_d_state: 8, n_mamba_heads: 8, mamba_ngroups: 1, num_mem_blocks: 1, chunk_size: 8}
""")
ARCHITECTURES: dict[str, dict[str, Any]] = {
    name: {**_COMMON, **({} if name in ("mamba", "mamba2") else _ATTENTION), **own}
    for name, own in _OWN.items()
}


def tiny_model(architecture: str, blocks: int = BLOCKS) -> Any:  # noqa: ANN401
    """Return a random float32 model whose norms are not the identity."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **ARCHITECTURES[architecture])
    config.num_hidden_layers = blocks
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer without special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["the layer of a model", "a text about the model"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128)


def save_tiny(
    folder: Path,
    architecture: str = "gpt_neox",
    blocks: int = BLOCKS,
    change: Callable[[Any], object] | None = None,
) -> Path:
    """Save a tiny model, with a `change`, and its tokenizer as a checkpoint folder."""
    model = tiny_model(architecture, blocks)
    if change:
        with torch.no_grad():
            change(model)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def trained_on(seed: int) -> Callable[[Any], None]:
    """Return a change that moves every parameter a little, for each seed another way."""

    def change(model: Any) -> None:  # noqa: ANN401
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.add_(1e-3 * torch.randn_like(parameter))

    return change


def save_tiny_gguf(
    file: Path,
    folder: Path,
    kind: type[np.floating[Any]] = np.float32,
    metadata: Mapping[str, int] | None = None,
) -> Path:
    """Save the llama in a folder and its tokenizer as a GGUF file, its matrices of a kind."""
    gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config, backend = model.config, json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    tokens = sorted(backend["vocab"], key=backend["vocab"].__getitem__)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges([" ".join(pair) for pair in backend["merges"]])
    for key, value in (metadata or {}).items():
        writer.add_uint32(key, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        place, _, part = name.rpartition(".")
        values = tensor.numpy()
        if count := heads.get(place.rpartition(".")[2]):  # pairs of a rotation lie side by side
            turned = values.reshape(count, 2, -1, values.shape[1])
            values = turned.swapaxes(1, 2).reshape(values.shape)
        values = values.astype(kind if values.ndim > 1 else np.float32)
        writer.add_tensor(f"{names.get_name('model.' + place)}.{part}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def save_tiny_adapter(
    folder: Path,
    base: Path,
    model: Any = None,  # noqa: ANN401
    **settings: Any,  # noqa: ANN401
) -> Path:
    """Save a random LoRA adapter that names the base, of a model, by default the base's."""
    peft = pytest.importorskip("peft", reason="the extra adapters is not installed")
    given = {"r": 2, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peft says of itself
        whole = model or AutoModelForCausalLM.from_pretrained(base)
        torch.manual_seed(3)
        joined = peft.get_peft_model(whole, peft.LoraConfig(**{**given, **settings}))
        joined.peft_config["default"].base_model_name_or_path = str(base)
        joined.save_pretrained(folder)
    return folder
