"""What can be known of a model without its weights, so that it is refused before they are read."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import MODEL_MAPPING
from transformers.utils.peft_utils import find_adapter_config_file

from operators.model.subject import (
    ModelShape,
    ModelUnavailableError,
    Subject,
    explained,
    read_config,
    read_shape,
)
from operators.model.tokenise import load_tokenizer, special_ids


def require_readable(subject: Subject) -> ModelShape:
    """Return the sizes of a model, as far as its config and its tokenizer tell that it can be read.

    ModelUnavailableError for a model that takes no token ids or is an encoder-decoder, for an
    adapter beside its weights, and for a tokenizer with tokens that the model has no vector for.
    """
    config = read_config(subject)
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
            "of the two is meant is not known; merge the adapter into them, or move it away"
        )
    shape = read_shape(subject)
    tokenizer = load_tokenizer(subject)
    # A special token is in no ordinary text.
    ordinary = {
        each: token for token, each in tokenizer.get_vocab().items() if each >= shape.known_ids
    }
    first = min(ordinary.keys() - special_ids(tokenizer), default=None)
    if first is not None:
        raise ModelUnavailableError(
            f"model {subject}: its tokenizer has {len(tokenizer):,} tokens and the model vectors "
            f"for {shape.vocabulary:,}: {ordinary[first]!r} (id {first}) has none; resize its "
            "embeddings, or take the tokenizer that it was trained with"
        )
    return shape
