"""Conditions: what is done to every prompt before the model reads it, by name and level.

Skean et al. (arXiv 2412.09563, section on extreme inputs) show layers what they were never trained
on: random tokens, one token over and over, prompts of random tokens of growing length. Here each is
a family of conditions with a level, written `family-level`: `random-0.30`, `length-128`. What
happens to a prompt is a function of (run seed, prompt, family, level), whatever the batch, the
order and the worker. The level is no part of the seed and a position's draws are the same at every
level: a higher probability replaces the same positions by the same tokens, and more.

Special tokens are never drawn and stay where they are; an unknown word's token is one of them. A
prompt without any token stays without, so that every condition has the prompts of the clean pass.

Shapes: T tokens of a prompt, K of them ordinary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerrank.operators.prompts import seeding
from layerrank.operators.prompts.templates import is_prompt
from layerrank.operators.prompts.views import ViewProbabilities, augment, is_view

Ids = npt.NDArray[np.int32]
_CLEAN = "clean"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer: `ordinary` ones stand for text, `special` ones do not.

    `leading` and `trailing` are the special tokens that it puts around every text.
    """

    ordinary: Ids
    special: Ids
    leading: Ids
    trailing: Ids

    @property
    def shortest(self) -> int:
        """The fewest tokens of a framed prompt that has an ordinary one."""
        return len(self.leading) + 1 + len(self.trailing)

    def drawn(self, uniform_T: npt.NDArray[np.float64]) -> Ids:
        """Return the ordinary tokens that uniform draws from [0, 1) fall on, all equally often."""
        return self.ordinary[(uniform_T * len(self.ordinary)).astype(np.int64)]


Change = Callable[[Ids, float, Vocabulary, np.random.Generator], Ids]


def randomise(ids_T: Ids, p: float, vocabulary: Vocabulary, draws: np.random.Generator) -> Ids:
    """Replace each ordinary token with probability `p` by a uniformly random ordinary one."""
    gate_T, token_T = draws.random((len(ids_T), 2)).T
    replaced_T = (gate_T < p) & ~np.isin(ids_T, vocabulary.special)
    return np.where(replaced_T, vocabulary.drawn(token_T), ids_T)


def repeat(ids_T: Ids, p: float, vocabulary: Vocabulary, draws: np.random.Generator) -> Ids:
    """Overwrite each ordinary token with probability `p` by one of them, drawn once per prompt."""
    which, *gates = draws.random(1 + len(ids_T))
    ordinary_T = ~np.isin(ids_T, vocabulary.special)
    ordinary_K = ids_T[ordinary_T]
    if not len(ordinary_K):
        return ids_T
    one = ordinary_K[int(which * len(ordinary_K))]
    return np.where((np.array(gates) < p) & ordinary_T, one, ids_T)


def truncate(ids_T: Ids, share: float, vocabulary: Vocabulary, _: np.random.Generator) -> Ids:
    """Keep the first `share` of the ordinary tokens, rounded and at least one, and the special."""
    ordinary_T = ~np.isin(ids_T, vocabulary.special)
    kept = max(1, math.floor(share * np.count_nonzero(ordinary_T) + 0.5))
    return ids_T[~ordinary_T | (np.cumsum(ordinary_T) <= kept)]


def random_prompt(_: Ids, length: float, vocabulary: Vocabulary, draws: np.random.Generator) -> Ids:
    """Return `length` tokens, those around every text included: the others are random.

    A longer prompt begins with the random tokens of a shorter one.
    """
    count = int(length) - vocabulary.shortest + 1
    assert count > 0, f"{length} tokens, of which {vocabulary.shortest - 1} are special"
    drawn = vocabulary.drawn(draws.random(count))
    return np.concatenate([vocabulary.leading, drawn, vocabulary.trailing])


@dataclass(frozen=True)
class Family:
    """A kind of condition.

    `clean` is the level that leaves every prompt as it is, if there is one. `change` acts on the
    tokens; a family without it acts on the text. `doubles` says that levels grow by doubling.
    """

    clean: float | None
    change: Change | None
    doubles: bool = False


FAMILIES: dict[str, Family] = {
    "random": Family(0.0, randomise),
    "repeat": Family(0.0, repeat),
    "noise": Family(0.0, None),
    "truncate": Family(1.0, truncate),
    "length": Family(None, random_prompt, doubles=True),
}


@dataclass(frozen=True, order=True)
class Condition:
    """A family at a level: a probability, a share, or a number of tokens."""

    family: str
    level: float

    @property
    def name(self) -> str:
        """The name under which its results are stored."""
        if self.is_clean:
            return _CLEAN
        shown = f"{self.level:.0f}" if FAMILIES[self.family].doubles else f"{self.level:.2f}"
        return f"{self.family}-{shown}"

    @property
    def is_clean(self) -> bool:
        """Whether it leaves every prompt as it is."""
        return self.level == FAMILIES[self.family].clean

    @property
    def place(self) -> float:
        """Where it lies on the axis of its family: the level, or log2 of a number of tokens."""
        return math.log2(self.level) if FAMILIES[self.family].doubles else self.level


def graded(name: str) -> Condition | None:
    """Return the condition of a name; None for the clean pass, views and templates: no levels.

    ValueError for a name that is none of these.
    """
    if name == _CLEAN or is_view(name) or is_prompt(name):
        return None
    family, _, level = name.partition("-")
    if family not in FAMILIES:
        raise ValueError(f"unknown condition {name!r}; families: {', '.join(FAMILIES)}")
    return Condition(family, float(level))


def condition_text(text: str, name: str, seed: int, probabilities: ViewProbabilities) -> str:
    """Return what a prompt reads like under the condition `name`, before it is tokenised."""
    drawn_for, condition = name, graded(name)
    if condition is not None and FAMILIES[condition.family].change is None:
        drawn_for = condition.family
        probabilities = ViewProbabilities(*[condition.level] * 3)
    elif not is_view(name):
        return text
    return augment(text, probabilities, seeding.generator(seed, seeding.prompt_id(text), drawn_for))


def condition_tokens(
    ids_T: Ids, prompt_id: int, name: str, seed: int, vocabulary: Vocabulary
) -> Ids:
    """Return the tokens of a prompt under the condition `name`."""
    condition = graded(name)
    change = FAMILIES[condition.family].change if condition else None
    if condition is None or change is None or not len(ids_T):
        return ids_T
    draws = seeding.generator(seed, prompt_id, condition.family)
    return change(ids_T, condition.level, vocabulary, draws).astype(np.int32, copy=False)
