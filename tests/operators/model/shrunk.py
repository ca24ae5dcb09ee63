"""A tiny random model of any type that transformers has, and its layers by the model cut there.

Tiny by the names of its config's sizes, which are much the same everywhere.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoModel, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from layerrank.operators.model.blocks import FOREIGN
from layerrank.operators.model.encode import Ids, Representations, encode
from layerrank.operators.model.on_transformers import LayerModel
from layerrank.operators.model.subject import Norm

Vectors = npt.NDArray[np.float32]
LENGTHS = (11, 3, 7)  # of the texts that are compared
TOLERANCE = 1e-4  # of their vectors, of the largest number in them where that is above 1

BLOCKS, WIDTH, VOCABULARY, HEADS = 4, 32, 300, 4
_MOST_PARAMETERS = 20_000_000  # of what still counts as tiny
_TRIES = 3  # of a type that ids alone do not suffice for; one of them leaves nothing open
FAILS = (StrictDataclassError, *FOREIGN, OSError)
# The first pattern that a whole name matches says its value; a name without one keeps its own.
_SIZES = {
    r"codebook_size": 256,
    r".*vocab_size.*|num_embeddings": VOCABULARY,
    r"max_.*position_embeddings|n_positions|max_seq_len|context_length": 128,
    r"original_max_position_embeddings": 64,
    r"((num|n)_)?((hidden|encoder|decoder|block)_)?(layers?|blocks)|depth": BLOCKS,
    r"max_window_layers": 2,
    r".*(key_value|kv)_heads|linear_num_key_heads": 2,
    r".*heads?": HEADS,
    r"qk_head_dim": 16,
    r".*head_dim|dim_head|d_head|d_kv|kv_channels|rotary_dim": 8,
    r".*(intermediate|ffn|mlp_dim|d_ff|inner).*": 64,
    r".*(lora_rank|laurel_rank|dt_rank|time_step_rank)": 16,
    r"((n|num|moe_num)_)?(routed_|local_)?experts": 4,
    r".*experts_per_tok(en)?|moe_(topk|k|top_k)": 2,
    r"n_group|topk_group|num_expert_group|(mamba_)?n_?groups": 1,
    r"(mamba_)?(d_)?state(_size)?|ssm_state_size": 8,
    r"sliding_window": 64,
    r"(vision_)?image_size|input_size": 16,
    r"patch_size": 8,
    r".*(hidden_size|d_model|n_embd|embedding_size)|dim|d_embed|.*_dim": WIDTH,
}
_SPECIAL = r".*_(token_id|token_index|index|id)"
_KV, _FILL, _SECTIONS = r".*(key_value|kv)_heads", "fill", "mrope_section"
# Tried in turn: sizes that go first, sizes for what a config leaves open, the shares of M-RoPE.
_VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {_KV: HEADS},
    {_KV: HEADS, _FILL: True},
    {r"(mamba_)?(n_mamba_|n_|num_)heads|mamba_num_heads": 8, r"mamba_d_head": 8},
    {_SECTIONS: [1, 1, 2]},
    {_SECTIONS: [1, 1, 0]},
)
_OWN: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1, "mask_token_id": 2},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "lilt": {"hidden_size": 48},
    "mobilebert": {"intra_bottleneck_size": WIDTH},
    "reformer": {"axial_pos_embds": False},
    "xlnet": {"d_head": 8},
}


class Apart(NamedTuple):
    """How far a layer is off, and what it was compared with."""

    by: float
    reference: str


def text_types() -> list[str]:
    """Return every type of model that takes token ids."""
    found = []
    for name in MODEL_MAPPING_NAMES:
        try:
            kinds: Any = MODEL_MAPPING[CONFIG_MAPPING[name]]
            kind = kinds[0] if isinstance(kinds, (list, tuple)) else kinds
            known = inspect.signature(kind.forward).parameters
        except (KeyError, ImportError, ValueError):  # of no model, or of what is not installed
            continue
        if "input_ids" in known:
            found.append(name)
    return found


def tiny_of(name: str) -> Any:  # noqa: ANN401
    """Return a random model of a type, one that runs on ids if any does; RuntimeError if none."""
    reason, built = "", None
    for tried, config in enumerate(_configs(name), 1):
        try:
            with torch.device("meta"):
                count = sum(each.numel() for each in AutoModel.from_config(config).parameters())
            assert count <= _MOST_PARAMETERS, f"{count:,} parameters are left"
            torch.manual_seed(0)
            model = AutoModel.from_config(config).eval()
        except FAILS as error:
            reason = reason or f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            continue
        fault = fault_of(model)
        built = built or model
        if not fault:
            built = model
            break
        if tried >= _TRIES and not is_unfit(fault):
            break
    if built is None:
        raise RuntimeError(reason)
    with torch.no_grad():
        for each in built.parameters():
            if each.is_floating_point():
                each.add_(0.1 * torch.randn_like(each))
    return built


def fault_of(model: Any) -> Exception | None:  # noqa: ANN401
    """Return what a model raises of ids alone."""
    try:
        run(model, torch.arange(40, 47))
    except FAILS as error:
        return error
    return None


def is_unfit(fault: Exception | None) -> bool:
    """Whether it tells of sizes that do not fit each other or are not there, not of the type."""
    if isinstance(fault, TypeError):
        return "required positional argument" not in str(fault)
    return isinstance(fault, (RuntimeError, LookupError))


def run(model: Any, ids_T: torch.Tensor, **asked: bool) -> Any:  # noqa: ANN401
    """Return what a model itself makes of one text, without padding."""
    known = inspect.signature(model.forward).parameters
    given = {"attention_mask": torch.ones_like(ids_T).unsqueeze(0), "use_cache": False, **asked}
    given = {key: value for key, value in given.items() if key in known or "kwargs" in known}
    with torch.inference_mode():
        return model(input_ids=ids_T.unsqueeze(0), **given)


def _configs(name: str) -> Iterator[PretrainedConfig]:
    kind = CONFIG_MAPPING[name]
    for lists in (False, True):
        for variant in _VARIANTS:
            # What its own checks refuse, as it is made of another.
            with suppress(*FAILS):
                yield kind(**{**_smaller(kind(), variant, lists=lists), **_OWN.get(name, {})})


def _smaller(config: PretrainedConfig, variant: dict[str, Any], *, lists: bool) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    sizes = {**{key: size for key, size in variant.items() if size.__class__ is int}, **_SIZES}
    layers = {n for name, n in vars(config).items() if name.endswith("layers") and type(n) is int}
    for name, value in vars(config).items():
        size = next((size for key, size in sizes.items() if re.fullmatch(key, name)), None)
        if isinstance(value, PretrainedConfig):
            nested = _smaller(value, variant, lists=lists)
            changed[name] = {"model_type": value.model_type, **nested}
        elif name == "rope_parameters" and value and _SECTIONS in variant:
            changed[name] = {**value, _SECTIONS: variant[_SECTIONS]}
        elif value is None and _FILL in variant and size:
            changed[name] = size
        elif re.fullmatch(_SPECIAL, name) and isinstance(value, int) and value >= VOCABULARY:
            changed[name] = VOCABULARY - 1 - len(changed)
        elif isinstance(value, int) and not isinstance(value, bool) and size and size < value:
            changed[name] = size
        elif lists and isinstance(value, (list, tuple)) and {len(value)} & layers:
            changed[name] = [*value[:2], *value[-2:]]
    return changed


def compared(ours: LayerModel, model: Any) -> list[Apart]:  # noqa: ANN401
    """Return how far the vectors of a run are off in layers 0..L from those of the model cut there.

    Texts of several lengths, of which the cut model gets each alone. It is made from a config of
    fewer blocks with the same weights. Where there is none, or its blocks are others (some are
    scaled by how many there are), it is the model itself without the rest of its blocks; and where
    that does not run without any, layer 0 is the embeddings that the model says it has.
    """
    generator, known = np.random.default_rng(0), ours.shape.vocabulary or 200
    texts = [generator.integers(known // 8, known // 2, n).astype(np.int32) for n in LENGTHS]
    norms: tuple[Norm, ...] = ("none", "final")
    if ours.final_size != ours.shape.hidden_size:
        norms = ("final",)
    keep = Representations(norms, ("last", "mean"), 4096)
    groups, found_GND = keep.groups(ours.shape.layers), encode(ours, texts, keep)
    found = []
    for layer in range(ours.shape.layers + 1):
        apart = Apart(np.inf, "nothing")
        for name, reference in _REFERENCES.items():
            if apart.by > TOLERANCE and (layer == 0 or name != "embeddings"):
                norm: Norm = "none" if name == "embeddings" else "final"
                both = [groups.index((layer, norm, pooling)) for pooling in keep.poolings]
                wanted = reference(ours, model, layer, texts)
                off = _apart(np.concatenate(found_GND[both]), wanted)
                apart = min(apart, Apart(off, name))
        found.append(apart)
    return found


def _apart(got: Vectors, wanted: Vectors | None) -> float:
    if wanted is None or got.shape != wanted.shape:
        return np.inf
    return float(np.abs(got - wanted).max() / max(1, np.abs(wanted).max()))


def _shorter(_ours: LayerModel, model: Any, layer: int, texts: list[Ids]) -> Vectors | None:  # noqa: ANN401
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    before = text.num_hidden_layers
    try:
        for name, value in list(vars(text).items()):
            if isinstance(value, (list, tuple)) and len(value) == before:
                setattr(text, name, value[:layer])
        text.num_hidden_layers = layer
        cut = AutoModel.from_config(config).eval()
        weights = {name: model.state_dict()[name] for name in cut.state_dict()}
        cut.load_state_dict(weights)
    except FAILS:
        return None
    return _pooled(cut, texts)


def _without_the_rest(ours: LayerModel, model: Any, layer: int, texts: list[Ids]) -> Vectors | None:  # noqa: ANN401
    cut = copy.deepcopy(model)
    place, _, name = ours.blocks_name.rpartition(".")
    parent = cut.get_submodule(place)
    setattr(parent, name, getattr(parent, name)[:layer])
    return _pooled(cut, texts)


def _embeddings(_ours: LayerModel, model: Any, layer: int, texts: list[Ids]) -> Vectors | None:  # noqa: ANN401
    return _pooled(model, texts, state=layer)


_REFERENCES = {"config": _shorter, "list": _without_the_rest, "embeddings": _embeddings}


def _pooled(model: Any, texts: list[Ids], state: int | None = None) -> Vectors | None:  # noqa: ANN401
    """Return the last and the mean states of each text alone; None if the model does not run."""
    rows = []
    try:
        for ids in texts:
            output = run(model, torch.from_numpy(ids).long(), output_hidden_states=True)
            states = output.last_hidden_state if state is None else output.hidden_states[state]
            rows.append(states[0].float())
    except FAILS:
        return None
    return torch.stack([*(each[-1] for each in rows), *(each.mean(0) for each in rows)]).numpy()
