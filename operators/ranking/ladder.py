"""Which of many candidates to score in full: the best of few layers and items, then of more.

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) over candidates, a layer with one
of several vectors of it. Every rung scores its candidates on a larger share of the folds and items
of every task, and the best of them climb to the next. Scores of neighbouring layers are alike, so
the first rung has layers at even distances, and the neighbours of what is best join later: without
that a model of many layers would cost as much as its every layer.

What a rung costs does not depend on the scores, so a plan can tell. What it drops may be better by
chance: on real decoders the candidate that is recommended lies within a point of the one that a
full search recommends (docs/metrics.md has the table).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Candidate(NamedTuple):
    """A layer, and which of its vectors, by their number."""

    layer: int
    vectors: int


@dataclass(frozen=True)
class Ladder:
    """The share of folds and items that each rung scores, and of its candidates that climb.

    The first rung has about `coarse` layers, or layers `apart`; of a model of fewer than two such
    distances the last and the start alone. Neighbours join of all that climb, or of as many `leads`
    as that share of the layers.
    """

    shares: tuple[float, ...] = (0.3, 0.5, 1.0)
    climb: float = 0.25
    coarse: int = 10
    apart: int | None = None
    leads: float | None = None

    def step(self, layers: int) -> int:
        """Return the distance of the layers of the first rung."""
        if self.apart is None:
            return math.ceil(layers / self.coarse)
        return self.apart if layers > 2 * self.apart else layers

    def widened(self, kept: int, rung: int, layers: int) -> int:
        """Return of how many of those that are kept the neighbours join the next rung.

        To score a newcomer in full costs most: at last only those of the best are worth it.
        """
        if rung + 1 == len(self.shares):
            return 1
        return kept if self.leads is None else min(math.ceil(self.leads * layers), kept)


LADDER = Ladder()
# Of a model with few layers the first rung has them all, and would cost more than the others.
SHALLOW, FEW_LAYERS = Ladder(shares=(0.2, 0.5, 1.0)), 12
# For tasks that are scored as a whole or not at all, so that every rung costs as much as the last.
NARROW = Ladder(apart=5, leads=1 / 8)
# With so many tasks at most, whoever is the best without one of them climbs.
FEW_TASKS = 5
Scores = Mapping[Candidate, Sequence[float]]  # by task; NaN for one that has no score there
Look = Callable[[Sequence[Candidate], float], Scores]  # at a share of every task


def climb(
    layers: Sequence[int], vectors: int, start: int, look: Look, ladder: Ladder = LADDER
) -> list[Candidate]:
    """Return the candidates that were scored in full, best first.

    `layers` are ascending, `vectors` how many there are of each. The first rung has every vectors
    of layers at even distances down from the last, and of `start`, the layer that is known to be
    good. The best candidate of the last layer always climbs: it tells what vectors are worth
    without another layer. So do, of few tasks, those that are the best without one of them: the
    gain that is corrected for the choice asks who that is, and would be too high without them.
    Of equal ones the lower layer counts, then the first vectors.
    """
    at = {layer: place for place, layer in enumerate(layers)}
    step = ladder.step(len(layers))
    places = {*range(len(layers) - 1, -1, -step), at[start]}
    current = [Candidate(layers[p], v) for p in sorted(places) for v in range(vectors)]
    seen = {*current}
    for number, share in enumerate(ladder.shares, start=1):
        scores = look(current, share)
        ranked = _best_first(scores)
        if number == len(ladder.shares):
            return ranked
        kept = ranked[: math.ceil(ladder.climb * len(ranked))]
        also = [next(each for each in ranked if each.layer == layers[-1]), *_without_one(scores)]
        step = max(step // 2, 1)
        near = [
            Candidate(layers[place], each.vectors)
            for each in kept[: ladder.widened(len(kept), number, len(layers))]
            for place in (at[each.layer] - step, at[each.layer] + step)
            if 0 <= place < len(layers)
        ]
        current = [*dict.fromkeys([*kept, *also])]
        current += dict.fromkeys(each for each in near if each not in seen)
        seen |= {*current}
    raise ValueError("a ladder needs a rung")


def ladder_of(layers: int, *, in_part: bool) -> Ladder:
    """Return the ladder of so many layers, of tasks that can be scored `in_part` or only whole."""
    if not in_part:
        return NARROW
    return SHALLOW if layers <= FEW_LAYERS else LADDER


class Rung(NamedTuple):
    """What a rung scores at most: so many candidates up to a share of folds and items.

    Of those that `climbed` to it the share `before` is there already, `joined` are new.
    """

    share: float
    before: float
    climbed: int
    joined: int

    @property
    def work(self) -> float:
        """In the work of one candidate in full."""
        return self.climbed * (self.share - self.before) + self.joined * self.share


def rungs(layers: int, vectors: int, ladder: Ladder = LADDER, tasks: int = 1) -> list[Rung]:
    """Return the rungs of a search of so many layers, each with so many vectors."""
    also = 1 + (tasks if 1 < tasks <= FEW_TASKS else 0)
    joined = min(len(range(0, layers, ladder.step(layers))) + 1, layers) * vectors
    left, climbed, before, found = layers * vectors - joined, 0, 0.0, []
    for number, share in enumerate(ladder.shares, start=1):
        found.append(Rung(share, before, climbed, joined))
        count = climbed + joined
        kept = min(math.ceil(ladder.climb * count), count)
        # Some may have joined before; how many is not known.
        near = min(2 * ladder.widened(kept, number, layers), left)
        climbed, joined, before = min(kept + also, count), near, share
    return found


def best_of(scores: Scores) -> Candidate:
    """Return the candidate with the highest mean, of equal ones the first."""
    return _best_first(scores)[0]


def _without_one(scores: Scores) -> list[Candidate]:
    """Return the best candidate without each task; none of a lone task or of many."""
    tasks = len(next(iter(scores.values())))
    if not 1 < tasks <= FEW_TASKS:
        return []
    return [
        best_of({each: [*of[:left], *of[left + 1 :]] for each, of in scores.items()})
        for left in range(tasks)
    ]


def _best_first(scores: Scores) -> list[Candidate]:
    return sorted(scores, key=lambda each: (_below(scores[each]), *each))


def _below(score_T: Sequence[float]) -> float:
    mean = math.fsum(score_T) / len(score_T) if score_T else math.nan
    return math.inf if math.isnan(mean) else -mean
