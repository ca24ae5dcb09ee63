"""Text to token ids, truncated and counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import AutoTokenizer

from operators.model.encode import Ids
from operators.model.subject import ModelShape, Subject, explained
from operators.prompts.conditions import Vocabulary


class Tokenised(NamedTuple):
    """Token ids per text [N], and which texts had to be cut [N]."""

    ids: list[Ids]
    cut: npt.NDArray[np.bool_]

    @property
    def truncated(self) -> int:
        """How many texts had to be cut."""
        return int(self.cut.sum())


def load_tokenizer(subject: Subject) -> Any:  # noqa: ANN401  (transformers ships no types)
    """Load the subject's tokenizer; ModelUnavailableError if there is none."""
    with explained(subject):
        return AutoTokenizer.from_pretrained(subject.source, **subject.hub_options)


def token_limit(tokenizer: Any, shape: ModelShape, wanted: int) -> int:  # noqa: ANN401
    """Return the most tokens per text: `wanted`, or what the tokenizer or the model allows."""
    # A tokenizer without a limit states a number like 1e30.
    return int(min(wanted, tokenizer.model_max_length, shape.max_tokens or wanted))


def vocabulary_of(tokenizer: Any, shape: ModelShape) -> Vocabulary:  # noqa: ANN401
    """Return the ordinary tokens that the model has a vector for, and the special ones."""
    special = special_ids(tokenizer)
    known = np.unique(np.fromiter(tokenizer.get_vocab().values(), np.int32))
    known = known[known < shape.known_ids]
    framed = tokenizer("a", return_special_tokens_mask=True)
    ids = np.array(framed["input_ids"], np.int32)
    text = np.array(framed["special_tokens_mask"]) == 0
    # Whatever stands before the first token of a text leads, the rest of what is added trails.
    before = int(text.argmax()) if text.any() else len(ids)
    return Vocabulary(
        ordinary=known[~np.isin(known, list(special))],
        special=np.array(sorted(special), np.int32),
        leading=ids[:before],
        trailing=ids[before:][~text[before:]],
    )


def special_ids(tokenizer: Any) -> set[int]:  # noqa: ANN401
    """Return the ids of the tokens that stand for no text."""
    added = tokenizer.added_tokens_decoder
    return {*tokenizer.all_special_ids, *(each for each in added if added[each].special)}


def tokenise(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> Tokenised:  # noqa: ANN401
    """Return the ids of each text, special tokens included, at most `max_tokens` of them.

    A text that tokenises to nothing gives an empty array; the caller records it as skipped.
    """
    if not texts:
        return Tokenised([], np.zeros(0, bool))
    encoded = tokenizer(list(texts), truncation=True, max_length=max_tokens, padding=False)
    ids = [np.asarray(row, dtype=np.int32) for row in encoded["input_ids"]]
    cut = np.array([len(row) >= max_tokens for row in ids])
    for row in np.flatnonzero(cut).tolist():  # or as long as that
        whole = tokenizer(texts[row], truncation=False, verbose=False)["input_ids"]
        cut[row] = len(whole) > max_tokens
    return Tokenised(ids, cut)
