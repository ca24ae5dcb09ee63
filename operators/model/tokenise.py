"""Text to token ids, alone or in a template, truncated and counted.

A long text is not tokenised whole to keep its first tokens, which takes gigabytes for a book. What
is read of it are as many characters as its tokens, and as many again, could take; that what follows
changes none of them is not assumed but tried, with several lengths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import AutoTokenizer

from layerrank.operators.model.encode import Ids
from layerrank.operators.model.subject import ModelShape, Subject, explained
from layerrank.operators.prompts.conditions import Vocabulary
from layerrank.operators.prompts.templates import Template

_MARK = "\ue000"  # of private use: stands for a text, and is in none
_TOKEN_CHARS, _FEWEST_CHARS = 32, 4096  # of a token, generously, and of what is tried first
_LONGER = 4  # times as much is tried next
_READ_CHARS, _READ_TOKEN_CHARS = 1 << 20, 256  # of a text at most: the larger of both
_BLANK = re.compile(r"\s")
_END_CHARS = 1024  # of the other end, which what stands around a text may touch
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

    A text that tokenises to nothing gives an empty array; the caller records it as skipped. Ids and
    counts are those of the whole text, unless it has fewer tokens than these in its first 2**20
    characters, or 256 a token: then it ends there, and counts as cut.
    """
    if not texts:
        return Tokenised([], np.zeros(0, bool))
    read: Callable[[Sequence[str], int], Tokenised] = partial(_read, tokenizer)
    if template is not None:
        read = Frame(tokenizer, template).read
    first = max(_TOKEN_CHARS * max_tokens, _FEWEST_CHARS)
    is_long = [len(text) > _LONGER * first for text in texts]
    found = read(
        ["" if long else text for text, long in zip(texts, is_long, strict=True)], max_tokens
    )
    for row in np.flatnonzero(is_long).tolist():
        found.ids[row], found.cut[row] = _read_long(
            read, texts[row], max_tokens, first, left=tokenizer.truncation_side == "left"
        )
    return found


def _read_long(
    read: Callable[[Sequence[str], int], Tokenised],
    text: str,
    max_tokens: int,
    chars: int,
    *,
    left: bool,
) -> tuple[Ids, bool]:
    """Return the ids of a text that is long, and whether it is cut: of the end that is kept.

    That is read as far as a blank, somewhat farther, and half as far. Where all three are cut to
    the same tokens, and those come of the half alone, so is the whole: its words go on behind the
    half, and no tokenizer looks farther than a word.
    """
    most = max(_READ_CHARS, _READ_TOKEN_CHARS * max_tokens)
    while chars <= min(most, len(text) // 2):
        half = chars // 2
        if blank := _blank(text, half, chars, left=left):
            parts = [_ends(text, size, left=left) for size in (blank, chars - 1, half)]
            found = read([*parts, text[-half:] if left else text[:half]], max_tokens)
            one, *others = found.ids[: len(parts)]
            if found.cut.all() and all(np.array_equal(one, each) for each in others):
                return one, True
        chars *= _LONGER
    is_cut = len(text) > 2 * most
    (ids,), (cut,) = read([_ends(text, most, left=left) if is_cut else text], max_tokens)
    return ids, is_cut or bool(cut)


def _ends(text: str, size: int, *, left: bool) -> str:
    """Return so many characters of the end of a text that is kept, and a few of the other one."""
    end = min(_END_CHARS, size) - size % 2  # of an odd size another length here too
    return text[:end] + text[-size:] if left else text[:size] + text[-end:]


def _blank(text: str, least: int, most: int, *, left: bool) -> int:
    """Return after so many characters, from the end that is kept, a word ends; 0 if none does."""
    between = text[len(text) - most : len(text) - least] if left else text[least:most]
    places = [each.start() for each in _BLANK.finditer(between)]
    if not places:
        return 0
    return most - places[0] if left else least + places[-1]


def _read(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> Tokenised:  # noqa: ANN401
    encoded = tokenizer(list(texts), truncation=True, max_length=max_tokens, padding=False)
    ids = [np.asarray(row, dtype=np.int32) for row in encoded["input_ids"]]
    cut = np.array([len(row) >= max_tokens for row in ids])
    for row in np.flatnonzero(cut).tolist():  # or as long as that
        whole = tokenizer(texts[row], truncation=False, verbose=False)["input_ids"]
        cut[row] = len(whole) > max_tokens
    return Tokenised(ids, cut)
