"""What a prompt is like before any model reads it: repeated tokens and unknown words.

Shapes: N prompts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from operators.model.encode import Ids

Array = npt.NDArray[np.float64]
_WORD = re.compile(r"[^\W\d_]+")
NO_WORD = "no word of letters"


def repeated_share(ids: Ids) -> float:
    """Return the share of a prompt's tokens that occurred before in it, 0..1 (excluded).

    0: all tokens differ. Special tokens count. It grows with the length of any natural text. The
    prompt must not be empty.
    """
    return 1 - len(np.unique(ids)) / len(ids)


def unknown_word_shares(tokenizer: Any, texts: Sequence[str]) -> Array:  # noqa: ANN401
    """Return the share of each text's words that the tokenizer has no single token for, 0..1 [N].

    A word is a run of letters, counted as often as it occurs, in the whole text. It is unknown if
    the tokenizer cuts it into pieces or gives it its unknown token, both at the start of a text and
    after a blank. In scripts without blanks a run is a clause, and the share is near 1. NaN for a
    text without a word.
    """
    words = [_WORD.findall(text) for text in texts]
    different = sorted({word for each in words for word in each})
    known = set()
    for forms in (different, [f" {word}" for word in different]) if different else ():
        encoded = tokenizer(forms, add_special_tokens=False)["input_ids"]
        for word, ids in zip(different, encoded, strict=True):
            if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
                known.add(word)
    return np.array(
        [1 - sum(word in known for word in each) / len(each) if each else np.nan for each in words],
        dtype=np.float64,
    )
