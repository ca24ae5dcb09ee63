"""What can be known of a model without its weights, so that it is refused before they are read."""

from __future__ import annotations

import inspect
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import MODEL_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from layerrank.operators.model.subject import (
    Kind,
    ModelShape,
    ModelUnavailableError,
    Subject,
    explained,
    read_config,
    read_shape,
)
from layerrank.operators.model.tokenise import load_tokenizer, special_ids
from layerrank.operators.model.weights import require_fitting_adapter

_STATE_SPACE = ("mamba", "mamba2", "falcon_mamba")  # without any attention
_CAUSAL_HEADS = ("ForCausalLM", "LMHeadModel")


def require_readable(subject: Subject, weights: tuple[int, int] | None = None) -> ModelShape:
    """Return sizes and kind of a model, as far as config and tokenizer tell that it can be read.

    `weights` are how many tensors its files hold and the longest axis of any, if that is known.
    ModelUnavailableError for a config of a model that is larger than these, for one that takes no
    token ids or is an encoder-decoder, for an adapter beside its weights or of another model, and
    for a tokenizer without tokens, or with some that the model has no vector for.
    """
    config = read_config(subject, weights)
    with explained(subject):
        kinds: Any = MODEL_MAPPING.get(type(config), None)
        kind = kinds[0] if isinstance(kinds, (list, tuple)) else kinds
        takes_text = not kind or "input_ids" in inspect.signature(kind.forward).parameters
        revision = None if subject.is_folder else subject.revision
        adapter = find_adapter_config_file(subject.source, revision=revision)
    if not takes_text:
        raise ModelUnavailableError(
            f"model {subject}: {kind.__name__} takes no token ids: it is no text model"
        )
    if adapter:
        # Whether transformers loads it depends on what is installed.
        raise ModelUnavailableError(
            f"model {subject}: an adapter (adapter_config.json) lies beside its weights, and which "
            "of the two is meant is not known; move it to a folder of its own, and name that with "
            "`adapter:` if it is to be merged into them"
        )
    shape = read_shape(subject, config)
    if subject.adapter:
        require_fitting_adapter(subject, config)
    # What lies beside a GGUF file is of no concern to it.
    pools = not subject.gguf_file and _pools(subject)
    shape = replace(shape, kind=kind_of(config, pools=pools))
    tokenizer = load_tokenizer(subject)
    # A special token is in no ordinary text.
    special = special_ids(tokenizer)
    ordinary = {id_: token for token, id_ in tokenizer.get_vocab().items() if id_ not in special}
    if not ordinary:  # transformers makes an empty one where no file is
        raise ModelUnavailableError(
            f"model {subject}: there is no tokenizer that has tokens for text in {subject.source}: "
            "a file of it is missing, such as tokenizer.json"
        )
    first = min((each for each in ordinary if each >= shape.known_ids), default=None)
    if first is not None:
        raise ModelUnavailableError(
            f"model {subject}: its tokenizer has {len(tokenizer):,} tokens and the model vectors "
            f"for {shape.vocabulary:,}: {ordinary[first]!r} (id {first}) has none; resize its "
            "embeddings, or take the tokenizer that it was trained with"
        )
    return shape


def kind_of(config: Any, *, pools: bool) -> Kind:  # noqa: ANN401  (transformers ships no types)
    """Return what kind of model a config of transformers describes.

    One that `pools`, with a sentence-transformers module that makes one vector of its last layer,
    is an embedding model, whatever it was before. Attention besides state-space blocks makes a
    causal decoder. What fills in masks, as BERT, is an encoder unless its config says that it is a
    decoder; what transformers does not know is what its checkpoint says it was saved as.
    """
    if pools:
        return "embedding model"
    text = config.get_text_config()
    if text.model_type in _STATE_SPACE:
        return "state-space model"
    if text.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        causal = bool(getattr(text, "is_decoder", False))
    else:
        saved_as = getattr(config, "architectures", None) or ()
        causal = text.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or any(
            name.endswith(_CAUSAL_HEADS) for name in saved_as
        )
    return "causal decoder" if causal else "encoder"


def _pools(subject: Subject) -> bool:
    """Whether the modules of sentence-transformers beside a model's weights include a pooling."""
    revision = None if subject.is_folder else subject.revision
    with explained(subject):
        # As transformers asks for an adapter: a model that has none is no error.
        file = cached_file(
            subject.source,
            "modules.json",
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    modules: Any = []
    with suppress(ValueError):  # another file of that name
        modules = json.loads(Path(file).read_text(encoding="utf-8")) if file else []
    return isinstance(modules, list) and any(
        str(each.get("type")).rpartition(".")[2] == "Pooling"
        for each in modules
        if isinstance(each, dict)
    )
