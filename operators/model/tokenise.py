"""Text to token ids, alone or in a template, truncated and counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import AutoTokenizer

from layerrank.operators.model.encode import Ids
from layerrank.operators.model.subject import ModelShape, Subject, explained
from layerrank.operators.prompts.conditions import Vocabulary
from layerrank.operators.prompts.templates import Template

_MARK = "\ue000"  # of private use: stands for a text, and is in none
_DAY = {"date_string": "01 Jan 2025"}  # of chat templates that tell it, if they can be told


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
    with explained(subject, "its tokenizer"):
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


class Frame:
    """A template as a tokenizer reads it: texts in it become the ids of the whole.

    A chat is one message of the user in the tokenizer's chat template, with what the assistant's
    answer begins with (`add_generation_prompt`), which is where a decoder is asked for the next
    token. That has the special tokens of its own, so none are put around it. ValueError if there is
    no such template, if it refuses the message or tells the date, so that vectors would depend on
    the day, or if the tokenizer cannot tell where tokens lie.
    """

    def __init__(self, tokenizer: Any, template: Template) -> None:  # noqa: ANN401
        self._tokenizer, self._template = tokenizer, template
        if not tokenizer.is_fast:
            raise ValueError("its tokenizer does not tell where in a text a token lies")
        chat = str(tokenizer.chat_template or "") if template.is_chat else _MARK
        if not chat:
            raise ValueError("its tokenizer has no chat template")
        if "strftime_now" in chat and not any(name in chat for name in _DAY):
            raise ValueError("its chat template tells the date: write its words out as a template")
        try:
            before, mark, after = self.around(_MARK).partition(_MARK)
        except Exception as error:  # whatever the code of a chat template raises
            raise ValueError(f"its chat template takes no message of a user: {error}") from error
        if not mark:
            raise ValueError("its chat template leaves out what the user says")
        self._before, self._after = len(before), len(after)

    @property
    def tokens(self) -> int:
        """The tokens of the template alone."""
        return len(self._read([self.around("")])[0])

    def read(self, texts: Sequence[str], max_tokens: int) -> Tokenised:
        """Return the ids of each text in the template.

        What is cut is the text: its last tokens go, or its first where the tokenizer truncates on
        the left, so that words after it survive. A token that holds a part of both stays.
        """
        wholes = [*map(self.around, texts)]
        ids = [np.asarray(row, dtype=np.int32) for row in self._read(wholes)]
        cut = np.array([len(row) > max_tokens for row in ids])
        left = self._tokenizer.truncation_side == "left"
        for row in np.flatnonzero(cut).tolist():
            whole = wholes[row]
            (places,) = self._read([whole], "offset_mapping", return_offsets_mapping=True)
            start_T, end_T = np.array(places).T
            inside_T = (start_T >= self._before) & (end_T <= len(whole) - self._after)
            of_text = np.flatnonzero(inside_T & (end_T > start_T))
            excess = len(ids[row]) - max_tokens
            gone = of_text[:excess] if left else of_text[-excess:]
            ids[row] = np.delete(ids[row], gone)[:max_tokens]
        return Tokenised(ids, cut)

    def around(self, text: str) -> str:
        """Return what is read of a text: the words of the template around it."""
        words = self._template.around(text)
        if not self._template.is_chat:
            return words
        message = [{"role": "user", "content": words}]
        given = {"tokenize": False, "add_generation_prompt": True, **_DAY}
        return str(self._tokenizer.apply_chat_template(message, **given))

    def _read(
        self, wholes: Sequence[str], what: str = "input_ids", **options: bool
    ) -> list[list[Any]]:
        framed = not self._template.is_chat
        given = {"add_special_tokens": framed, "truncation": False, "verbose": False}
        found: list[list[Any]] = self._tokenizer([*wholes], **given, **options)[what]
        return found


def tokenise(
    tokenizer: Any,  # noqa: ANN401  (transformers ships no types)
    texts: Sequence[str],
    max_tokens: int,
    template: Template | None = None,
) -> Tokenised:
    """Return the ids of each text, special tokens included, at most `max_tokens` of them.

    A text that tokenises to nothing gives an empty array; the caller records it as skipped.
    """
    if not texts:
        return Tokenised([], np.zeros(0, bool))
    if template is not None:
        return Frame(tokenizer, template).read(texts, max_tokens)
    encoded = tokenizer(list(texts), truncation=True, max_length=max_tokens, padding=False)
    ids = [np.asarray(row, dtype=np.int32) for row in encoded["input_ids"]]
    cut = np.array([len(row) >= max_tokens for row in ids])
    for row in np.flatnonzero(cut).tolist():  # or as long as that
        whole = tokenizer(texts[row], truncation=False, verbose=False)["input_ids"]
        cut[row] = len(whole) > max_tokens
    return Tokenised(ids, cut)
