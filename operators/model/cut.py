"""Write the model cut after a layer as a folder that other libraries load without our code.

Shapes: N prompts, T tokens (right-padded), D features, L blocks.

The norm `final` is what a model with fewer blocks outputs by itself. The norm `none` is not, where
the model has a final norm, so such a cut has one inert block more: all its weights are zero, which
leaves a residual stream as it is. Behind it the library's `hidden_states` hold the raw output of
the block before, at an index that differs between architectures and is therefore looked up.

What is done to the states of the tokens is modules of sentence-transformers, with weights where it
is fitted, and no code: since its version 6 it loads code only when told to, from folders too.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.numpy import save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from layerrank.operators.model.blocks import FOREIGN
from layerrank.operators.model.encode import pad
from layerrank.operators.model.on_transformers import LayerModel
from layerrank.operators.model.subject import Norm, Pooling, Transform
from layerrank.operators.model.tokenise import tokenise
from layerrank.operators.probes.transform import FITTED, Fit, matrix

Array = npt.NDArray[np.float64]
# The same meaning under another name in sentence-transformers: right padding, the attention mask,
# weights from 1 for `weighted_mean`. The names of the second column are read since version 2.
# `mean_no_first` is several modules.
_POOLING_KEYS: dict[Pooling, str] = {
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
    "first": "pooling_mode_cls_token",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
}
# The sigmoid of so many times 1.2 less the root of a number of tokens is 1 for one token and 0 for
# more, exactly, in 16 bits too.
_STEEP = 1024.0
_PAD_CANDIDATES = ("eos_token", "bos_token", "unk_token", "sep_token", "cls_token", "mask_token")
_TOKENIZER_PROBES = (
    "Which layer of a language model should be used?",
    " \tSpaces, tabs\nand \u00fcn\u00efcode: 2 + 2 = 4!! [a, b] {c}",
    "A long text. " * 200,
)
_PROBE_LENGTHS = (7, 3, 1)
_PROBE_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# What the code of an architecture raises when its config describes too few blocks for it.
_IMPOSSIBLE = (StrictDataclassError, *FOREIGN)


class CutError(ValueError):
    """A cut that cannot be made as asked."""


@dataclass(frozen=True)
class CutPoint:
    """Which vectors the cut model is to give: those of (layer, norm, pooling, transform).

    Texts are cut to `max_tokens` tokens, special tokens included. `z` and `abtt` are as `fit` has
    them, fitted on `fitted_on` texts.
    """

    layer: int
    norm: Norm
    pooling: Pooling
    max_tokens: int
    transform: Transform = "raw"
    fit: Fit | None = None
    fitted_on: int = 0

    def check(self, layers: int) -> None:
        """Raise CutError if a model of `layers` blocks has no such vectors, or a fit is missing."""
        if not 0 <= self.layer <= layers:
            raise CutError(
                f"layer {self.layer} does not exist; the model's layers are 0 (the embeddings) to "
                f"{layers} (the last block)"
            )
        for name, value, known in (
            ("norm", self.norm, Norm),
            ("pooling", self.pooling, Pooling),
            ("transform", self.transform, Transform),
        ):
            if value not in get_args(known):
                choices = ", ".join(get_args(known))
                raise CutError(f"unknown {name} {value!r}; choose from {choices}")
        if self.max_tokens < 1:
            raise CutError(f"max_tokens is {self.max_tokens}; it must be at least 1")
        if self.transform in FITTED and not self.fit:
            raise CutError(
                f"the transform {self.transform} is fitted on the texts of a run; give --ranking "
                "OUTPUT of a run that has it among its candidates, or --transform raw or l2"
            )


class Cut(NamedTuple):
    """What was written: `blocks` blocks, the last of them inert or not, vectors of `dimension`.

    The states of the tokens are `hidden_states[hidden_state]`, or `last_hidden_state` where that is
    None. `modules` are the folders of what is done to them.
    """

    blocks: int
    inert: bool
    hidden_state: int | None
    dimension: int
    modules: tuple[str, ...] = ()


def cut_model(
    model: LayerModel,
    tokenizer: Any,  # noqa: ANN401  (transformers ships no types)
    point: CutPoint,
    folder: Path,
    prompts: Mapping[str, str] | None = None,
) -> Cut:
    """Write the model cut at `point`, and its tokenizer, into an empty folder.

    `AutoModel.from_pretrained(folder)` gives the states of every token, in right-padded batches
    with an attention mask, and `SentenceTransformer(folder)` the pooled and transformed vectors,
    those of `operators.model.encode.encode` and `operators.probes.transform.apply`; it offers the
    `prompts`, by name what stands before a text. Safetensors, no code. What was written is loaded
    and run once, so a model that transformers cannot express as a shorter one is refused: CutError.
    """
    point.check(model.shape.layers)
    if model.is_changed:
        raise CutError(
            f"{model.name} changes its own weights when it runs, so those of the checkpoint are "
            "not there to be written"
        )
    if not model.pads:
        raise CutError(
            f"what {model.name} makes of a text depends on its padding, so that other libraries, "
            "which pad, would give other vectors than a run"
        )
    if not type(model.module).__module__.startswith("transformers."):
        raise CutError(
            f"{model.name} is code of its checkpoint (trust_remote_code), and a cut of it would "
            "not load without that code; only models that transformers itself has can be exported"
        )
    known = model.shape.vocabulary or 2
    ids_NT, mask_NT = pad([np.arange(1, 1 + n, dtype=np.int32) % known for n in _PROBE_LENGTHS])
    state_NTD = model.forward(ids_NT, mask_NT)[point.layer]
    if point.norm == "final":
        state_NTD = model.final_norm(state_NTD)
    if point.fit and len(point.fit.mean_D) != state_NTD.shape[-1]:
        raise CutError(
            f"the transform was fitted on vectors of {len(point.fit.mean_D)} features, those of "
            f"{model.name} have {state_NTD.shape[-1]}"
        )
    inert = point.norm == "none" and model.has_final_norm
    blocks = point.layer + inert
    padded = _padded(tokenizer, point.max_tokens)
    try:
        _write_weights(model, point.layer, inert, padded.pad_token_id, folder)
        # As its users load the folder.
        loaded, info = AutoModel.from_pretrained(folder, output_loading_info=True)
        wrong = sorted({*info["missing_keys"], *info["unexpected_keys"]})
        assert not wrong, f"{model.name}: {wrong[0]} is in the model or in the file, not in both"
        given = {"input_ids": ids_NT.to(model.device), "attention_mask": mask_NT.to(model.device)}
        with torch.inference_mode():
            output = loaded.to(model.device).eval()(**given, output_hidden_states=True)
    except CutError:
        raise
    except _IMPOSSIBLE as error:
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise CutError(
            f"transformers cannot make and run {model.name} with {blocks} blocks ({cause}); "
            "choose another layer"
        ) from error
    _write_tokenizer(tokenizer, padded, point.max_tokens, folder)
    states: list[tuple[int | None, Tensor]] = [(None, output.last_hidden_state)]
    if inert:
        states = [*enumerate(output.hidden_states or ())]
    real_NT = mask_NT.to(model.device).bool()
    wanted_SD = state_NTD[real_NT]
    scale = wanted_SD.abs().max().clamp_min(1e-30)
    apart = [
        float((found_NTD[real_NT] - wanted_SD).abs().max() / scale)
        if found_NTD.shape == state_NTD.shape
        else np.inf
        for _, found_NTD in states
    ]
    if min(apart, default=np.inf) <= _PROBE_TOLERANCE[model.dtype]:
        cut = Cut(blocks, inert, states[int(np.argmin(apart))][0], len(wanted_SD[0]))
        return cut._replace(modules=_write_modules(point, cut, prompts or {}, folder))
    other = "final" if point.norm == "none" else "none"
    raise CutError(
        f"{model.name} cut after block {point.layer} does not give the states of layer "
        f"{point.layer} with norm: {point.norm}; norm: {other} may work"
    )


def _write_weights(model: LayerModel, layer: int, inert: bool, pad_id: int, folder: Path) -> None:
    """Write the config and the weights of blocks 1..layer, with an inert block behind them."""
    weights: dict[str, Tensor] = model.module.state_dict()
    config = _shorter(model.module.config, layer + inert)
    embedding: Any = model.module.get_input_embeddings()  # type: ignore[operator]  # of transformers
    rows, width = embedding.weight.shape
    if pad_id >= rows:
        name = next(n for n, p in model.module.named_parameters() if p is embedding.weight)
        weights[name] = torch.cat(
            [weights[name], weights[name].new_zeros(pad_id + 1 - rows, width)]
        )
        config.get_text_config().vocab_size = pad_id + 1
    config.dtype = model.dtype
    with torch.device("meta"):
        short = AutoModel.from_config(config)
    zeroed = f"{model.blocks_name}.{layer}."
    kept = {}
    for name, like in short.state_dict().items():
        if name.startswith(zeroed):
            kept[name] = torch.zeros(like.shape, dtype=like.dtype)
        elif name in weights and weights[name].shape == like.shape:
            kept[name] = weights[name]
        else:
            raise CutError(
                f"{model.name} cannot be cut after block {layer}: a model of {layer + inert} "
                f"blocks has other weights than the first blocks of this one, first {name}"
            )
    short.save_pretrained(folder, state_dict=kept)


def _shorter(config: Any, blocks: int) -> Any:  # noqa: ANN401  (transformers ships no types)
    config = copy.deepcopy(config)
    text = config.get_text_config()
    before = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        # One entry per block, such as `layer_types`; further blocks are like the last one.
        if isinstance(value, list) and len(value) == before and "layer" in name:
            setattr(text, name, (value + value[-1:])[:blocks])
    text.num_hidden_layers = blocks
    for name, value in (("use_cache", False), ("auto_map", None)):
        if hasattr(config, name):
            setattr(config, name, value)
    return config


def _padded(tokenizer: Any, max_tokens: int) -> Any:  # noqa: ANN401
    """Return a copy that truncates, and pads on the right, with exactly what `encode` feeds."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = max_tokens
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # what is saved
    tokenizer.init_kwargs.pop("name_or_path", None)  # a path of this machine
    tokenizer.chat_template = None
    if tokenizer.pad_token is None:
        # An ordinary token would become a special one, and texts that hold it would change.
        special = (getattr(tokenizer, name, None) for name in _PAD_CANDIDATES)
        chosen = next((token for token in special if token is not None), "<|pad|>")
        tokenizer.add_special_tokens({"pad_token": chosen})
    return tokenizer


def _write_tokenizer(original: Any, padded: Any, max_tokens: int, folder: Path) -> None:  # noqa: ANN401
    padded.save_pretrained(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    batch = loaded(list(_TOKENIZER_PROBES), truncation=True, padding=True)
    given = tokenise(original, _TOKENIZER_PROBES, max_tokens).ids
    for ids, mask, expected in zip(batch["input_ids"], batch["attention_mask"], given, strict=True):
        if ids[: sum(mask)] != expected.tolist() or "token_type_ids" in batch:
            raise CutError(
                f"the tokenizer {type(original).__name__} gives other tokens once it is saved and "
                "loaded, so the cut model would not give the same vectors"
            )


class _Module(NamedTuple):
    """A module of sentence-transformers: its class, what it is made with, its weights."""

    kind: str
    config: Mapping[str, Any]
    weights: Mapping[str, npt.NDArray[np.float32]] | None = None


def _write_modules(
    point: CutPoint, cut: Cut, prompts: Mapping[str, str], folder: Path
) -> tuple[str, ...]:
    """Write what sentence-transformers reads beside the model: modules, truncation, prompts.

    Return the folders of the modules behind the model, in order.
    """
    transformer: dict[str, Any] = {"max_seq_length": point.max_tokens, "do_lower_case": False}
    if cut.hidden_state is not None:
        output = {"method": "forward", "method_output_name": ["hidden_states", cut.hidden_state]}
        transformer["modality_config"] = {"text": output}
        transformer["module_output_name"] = "token_embeddings"
    behind = [*_pooled(point.pooling, cut.dimension), *_transformed(point)]
    paths = {f"{index}_{each.kind}": each for index, each in enumerate(behind, 1)}
    kinds = {"": "Transformer", **{path: each.kind for path, each in paths.items()}}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    files = {
        "modules.json": modules,
        "sentence_bert_config.json": transformer,
        **{f"{path}/config.json": each.config for path, each in paths.items()},
        "config_sentence_transformers.json": {
            "prompts": {**prompts},
            "similarity_fn_name": "cosine",
        },
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name, each in paths.items():
        if each.weights:
            save_file({**each.weights}, folder / name / "model.safetensors")
    return (*paths,)


def _pooled(how: Pooling, features: int) -> list[_Module]:
    """Return the modules that pool the states of tokens with so many features."""
    if how != "mean_no_first":
        return [_pooling(features, _POOLING_KEYS[how])]
    # No pooling there has it. One can leave out the tokens of a prompt, whose number a module may
    # give; but of a text of one token nothing would be left, so that token is added to nothing.
    state, one = np.eye(features, features + 1), np.eye(features + 1)[-1]
    return [
        # Another feature of every state, 1: its sum by the root of the number of tokens is that
        # root, and all others' sums are, of a text of one token, its state.
        _dense(state.T, one, takes="token_embeddings"),
        _pooling(features + 1, "pooling_mode_mean_sqrt_len_tokens"),
        _dense(np.zeros((1, features + 1)), np.ones(1), gives="prompt_length"),
        # The state of one token times 1, of several times 0.
        _dense(
            np.vstack([state, np.tile(-_STEEP * one, (features, 1))]),
            np.repeat([0.0, 1.2 * _STEEP], features),
            gives="cls_token_embeddings",
            activation="GLU",
        ),
        # That, and the means without the first token, in this order.
        _pooling(features + 1, _POOLING_KEYS["first"], _POOLING_KEYS["mean"], whole=False),
        _dense(np.hstack([state[:, :-1], state]), np.zeros(features)),
    ]


def _transformed(point: CutPoint) -> list[_Module]:
    """Return the modules that transform pooled vectors."""
    if point.transform == "l2":
        return [_Module("Normalize", {})]
    if point.transform == "raw":
        return []
    assert point.fit, point.transform
    # Centred first: of large features that vary little, or as one, a single step in float32 would
    # lose what the other terms of its sums do not cancel.
    centre_D = point.fit.mean_D.astype(np.float32).astype(np.float64)
    weight_DD = matrix(point.transform, point.fit)
    return [
        _dense(np.eye(len(centre_D)), -centre_D),
        _dense(weight_DD, weight_DD @ (centre_D - point.fit.mean_D)),
    ]


def _pooling(features: int, *keys: str, whole: bool = True) -> _Module:
    """Return a module that pools in some ways one after another; `whole` if with the prompt."""
    known = dict.fromkeys([*_POOLING_KEYS.values(), *keys], False)
    chosen = known | dict.fromkeys(keys, True)
    return _Module(
        "Pooling", {"word_embedding_dimension": features, **chosen, "include_prompt": whole}
    )


def _dense(
    weight: Array,
    bias: Array,
    *,
    takes: str = "sentence_embedding",
    gives: str = "",
    activation: str = "Identity",
) -> _Module:
    """Return a module that is ``activation(weight x + bias)``, from one feature to another."""
    config = {
        "in_features": weight.shape[1],
        "out_features": len(weight),
        "bias": True,
        "activation_function": f"torch.nn.{activation}",
        "module_input_name": takes,
        "module_output_name": gives or takes,
    }
    weights = {
        "linear.weight": weight.astype(np.float32, order="C"),  # as safetensors writes it
        "linear.bias": bias.astype(np.float32),
    }
    return _Module("Dense", config, weights)
