"""Views: the same prompt as a sloppy typist would have written it.

The metrics of invariance (InfoNCE, LiDAR, DiME) compare augmented views of a prompt. Skean et al.
(arXiv 2412.09563; 2502.02013) make two of each prompt with nlpaug: keyboard typos, random character
edits and split words. The same three edits are made here, and differ in this: text in, text out,
every character outside an edited word kept as it is; each word is edited independently with a
probability, instead of a share of the words; and a view is a function of (run seed, prompt, view),
so it need not be stored and no two views share their draws.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_Choice = TypeVar("_Choice")
_WORD = re.compile(r"\S+")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SPLIT_MIN_CHARS = 4  # cutting "the" or "of" gives single letters, which read as another word
# One row of uniform draws per word: whether it gets each kind of edit, then what and where.
_N_KINDS = 3
_N_DRAWS = 9
_WORDS = 1 << 16  # that are drawn for at once


# The keys that touch each letter; a row sits right of the one above, as on a desk.
_PLACES = {
    letter: (left + column, row)
    for row, (left, letters) in enumerate(
        ((0.0, "qwertyuiop"), (0.25, "asdfghjkl"), (0.75, "zxcvbnm"))
    )
    for column, letter in enumerate(letters)
}
_NEIGHBOURS = {
    key: "".join(
        other
        for other, (x_other, y_other) in _PLACES.items()
        if other != key and abs(x - x_other) <= 1 and abs(y - y_other) <= 1
    )
    for key, (x, y) in _PLACES.items()
}
_VIEW = "view-"


@dataclass(frozen=True)
class ViewProbabilities:
    """How often a word gets one edit of a kind: probability per word and kind, 0 to 1."""

    keyboard: float
    random_char: float
    split: float


def view_name(i: int) -> str:
    """Return the condition that names view `i`: ``view-00``, ``view-01``, ..."""
    return f"{_VIEW}{i:02d}"


def is_view(condition: str) -> bool:
    """Whether a condition is a view."""
    return condition.startswith(_VIEW)


def augment(text: str, probabilities: ViewProbabilities, generator: np.random.Generator) -> str:
    """Return `text` with typos; whitespace between words is kept exactly.

    A word is a run of non-whitespace. Each gets, independently and in this order:

    - keyboard: one letter a-z becomes a key that touches it, its case kept (no letter, no edit);
    - random_char: one insertion, deletion, substitution or swap of neighbours, equally often. A
      deletion or swap of a one-character word, and a swap in a word of equal characters, is a
      substitution instead, so a word never vanishes. New characters are lower-case ASCII letters;
    - split: a space inside a word of at least 4 characters (as it is after the other edits).

    A text of other script or of symbols alone is edited by code point; it is never emptied. The
    draws of a word are the same whatever the probabilities: a higher probability edits the same
    words and more.
    """
    found = _WORD.finditer(text)
    levels = (probabilities.keyboard, probabilities.random_char, probabilities.split)
    parts, end = list[str](), 0
    while words := [*islice(found, _WORDS)]:
        draws = generator.random((len(words), _N_DRAWS))
        gates = draws[:, :_N_KINDS] < levels
        for index in np.flatnonzero(gates.any(axis=1)).tolist():
            word = words[index]
            parts += [
                text[end : word.start()],
                _edit(word.group(), gates[index], draws[index, _N_KINDS:]),
            ]
            end = word.end()
    return "".join([*parts, text[end:]])


def _edit(word: str, gates: npt.NDArray[np.bool_], draws: npt.NDArray[np.float64]) -> str:
    keyboard, random_char, split = gates.tolist()
    key_place, key, action, place, letter, cut_place = draws.tolist()
    letters = [at for at, character in enumerate(word) if character.lower() in _NEIGHBOURS]
    if keyboard and letters:
        at = _pick(letters, key_place)
        pressed = _pick(_NEIGHBOURS[word[at].lower()], key)
        word = word[:at] + (pressed.upper() if word[at].isupper() else pressed) + word[at + 1 :]
    if random_char:
        word = _edit_character(word, action, place, letter)
    if split and len(word) >= _SPLIT_MIN_CHARS:
        cut = 1 + int(cut_place * (len(word) - 1))
        word = f"{word[:cut]} {word[cut:]}"
    return word


def _edit_character(word: str, action: float, place: float, letter: float) -> str:
    kind = _pick(("insert", "delete", "swap", "substitute"), action)
    if kind == "insert":
        at = int(place * (len(word) + 1))
        return word[:at] + _pick(_LETTERS, letter) + word[at:]
    if kind == "delete" and len(word) > 1:
        at = int(place * len(word))
        return word[:at] + word[at + 1 :]
    pairs = [at for at in range(len(word) - 1) if word[at] != word[at + 1]]
    if kind == "swap" and pairs:
        at = _pick(pairs, place)
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    at = int(place * len(word))
    return word[:at] + _pick(_LETTERS.replace(word[at], ""), letter) + word[at + 1 :]


def _pick(choices: Sequence[_Choice], draw: float) -> _Choice:
    """Return the choice that a uniform draw from [0, 1) falls on."""
    return choices[int(draw * len(choices))]
