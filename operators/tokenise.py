"""Text to token ids, truncated and counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from operators.batching import Ids
from operators.subject import ModelShape, Subject, explained

_UNBOUNDED = 1_000_000  # tokenizers without a limit state a number like 1e30


@dataclass(frozen=True)
class Tokenised:
    """Token ids per text, and how many texts had to be cut."""

    ids: list[Ids]
    truncated: int


def load_tokenizer(subject: Subject) -> Any:  # noqa: ANN401  (transformers ships no types)
    """Load the subject's tokenizer; ModelUnavailableError if there is none."""
    with explained(subject):
        return AutoTokenizer.from_pretrained(subject.source, **subject.hub_options)


def token_limit(tokenizer: Any, shape: ModelShape, wanted: int) -> int:  # noqa: ANN401
    """Return the most tokens per text: `wanted`, or what the tokenizer or the model allows."""
    limits = [wanted, tokenizer.model_max_length, shape.max_tokens or _UNBOUNDED]
    return int(min(limits))


def tokenise(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> Tokenised:  # noqa: ANN401
    """Return the ids of each text, special tokens included, at most `max_tokens` of them.

    A text that tokenises to nothing gives an empty array; the caller records it as skipped.
    """
    if not texts:
        return Tokenised([], 0)
    encoded = tokenizer(list(texts), truncation=True, max_length=max_tokens, padding=False)
    ids = [np.asarray(row, dtype=np.int32) for row in encoded["input_ids"]]
    full = [index for index, row in enumerate(ids) if len(row) >= max_tokens]
    truncated = sum(_is_longer(tokenizer, texts[index], max_tokens) for index in full)
    return Tokenised(ids, truncated)


def _is_longer(tokenizer: Any, text: str, max_tokens: int) -> bool:  # noqa: ANN401
    return len(tokenizer(text, truncation=False, verbose=False)["input_ids"]) > max_tokens
