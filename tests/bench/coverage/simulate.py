"""What is said of simulated draws against what is true of them, with the product's own functions.

Shapes: N draws of T tasks, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from layerrank.operators.ranking import Policy
from layerrank.operators.ranking.choosing import Choose, choose, left_out, mean_over
from layerrank.operators.ranking.intervals import (
    FEWEST_TO_TEST,
    on_these,
    over_tasks,
    reaching,
    sign_flips,
)
from layerrank.operators.ranking.scores import TIE, Array
from tests.bench.coverage.grids import NOISE, Draws, Grid, Truth, drawn
from tests.support.simulated import search

TRUTHS: tuple[Truth, ...] = ("real", "null", "mirrored")
POLICIES: tuple[Policy, ...] = ("best", "cheapest_equal", "last_unless_significant")
LEVEL = 0.95
_FLIPS = 1_999
_AT_ONCE = 250  # draws, to keep arrays small
Rows = npt.NDArray[np.intp]
Place = tuple[Truth, int, int]  # the truth, folds, tasks
Found = dict[Place, dict[str, float]]


@dataclass(frozen=True)
class Plan:
    """How much is drawn from every grid."""

    draws: int = 2_000
    tasks: Sequence[int] = (1, 2, 3, 5, 6, 8, 10, 32)
    folds: Sequence[int] = (1, 10)
    truths: Sequence[Truth] = field(default=TRUTHS)
    policies: Sequence[Policy] = field(default=POLICIES)
    policy_draws: int = 250
    seed: int = 0


def simulate(grid: Grid, plan: Plan) -> Found:
    """Return the mean of everything that is asked, by truth, number of folds and of tasks."""
    found: Found = {}
    for truth in plan.truths:
        for folds in plan.folds:
            for tasks in plan.tasks:
                if tasks == 1 and folds == 1:
                    continue
                words = f"{grid.name} {truth} {folds} {tasks}"
                generator = np.random.default_rng([plan.seed, *map(ord, words)])
                parts = []
                for start in range(0, plan.draws, _AT_ONCE):
                    count = min(_AT_ONCE, plan.draws - start)
                    how = {"tasks": tasks, "folds": folds, "draws": count}
                    draws = drawn(grid, truth, **how, generator=generator)
                    parts.append(intervals(draws))
                    if tasks > 1 and start < plan.policy_draws:
                        for policy in plan.policies:
                            parts[-1] |= judged(draws, policy)
                found[truth, folds, tasks] = pooled(parts)
    return found


def pooled(parts: Sequence[dict[str, Array]]) -> dict[str, float]:
    """Return the mean over draws of what each part has; NaN counts nowhere."""
    names = dict.fromkeys(name for part in parts for name in part)
    values = {
        name: np.concatenate([each[name] for each in parts if name in each]) for name in names
    }
    return {name: float(mean_over(value_N)) for name, value_N in values.items()}


def intervals(draws: Draws) -> dict[str, Array]:
    """Return of every draw whether intervals hold the truth, their widths, and errors of gains."""
    gain_NLT, last = draws.gain_NLT, len(draws.true_L) - 1
    n_tasks = gain_NLT.shape[2]
    mean_NL = mean_over(gain_NLT)
    low_NL, high_NL = over_tasks(gain_NLT, LEVEL)
    found: dict[str, Array] = {}
    freedom_NLT = np.full(gain_NLT.shape, draws.folds - 1.0)
    counted_NLT = np.ones(gain_NLT.shape, dtype=bool)
    here = on_these(mean_NL, counted_NLT, draws.variance_NLT, freedom_NLT, LEVEL)
    if draws.folds > 1:
        held_NL = holds(here[0][:, :last], here[1][:, :last], draws.true_NL[:, :last])
        found["here"] = held_NL.mean(axis=1)
        found["here width"] = (here[1] - here[0])[:, :last].mean(axis=1)
    if n_tasks == 1:
        return found
    rule: Choose = partial(choose, cost_L=draws.cost_L, policy="best")
    row_N = rule(gain_NLT)
    corrected_N = mean_over(left_out(gain_NLT, rule)[0])
    at = np.arange(len(row_N)), row_N
    naive_N, true_N = mean_NL[at], draws.true_L[row_N]
    is_last_N = row_N == last
    found |= {
        "chosen below": (~is_last_N).astype(float),
        "naive": naive_N - true_N,
        "corrected": corrected_N - true_N,
    }
    low_N, high_N = reaching(here[0][at], here[1][at], naive_N, corrected_N)
    if draws.folds > 1:
        held_N = holds(low_N, high_N, draws.true_NL[at])
        found["here chosen"] = np.where(is_last_N, 1.0, held_N)
    is_here_N, is_new_N = low_N > 0, np.zeros(len(row_N), dtype=bool)
    if n_tasks > 2:
        held_NL = holds(low_NL, high_NL, draws.true_L)[:, :last]
        found["fixed"] = held_NL.mean(axis=1)
        found["width"] = np.median((high_NL - low_NL)[:, :last], axis=1)
        low_N, high_N = reaching(low_NL[at], high_NL[at], naive_N, corrected_N)
        # The last layer gains 0 over itself: nothing is claimed.
        held_N = holds(low_N, high_N, true_N)
        found["chosen"] = np.where(is_last_N, 1.0, held_N)
        found["chosen below held"] = np.where(is_last_N, np.nan, held_N)
        excluded_N = (low_N > TIE) | (high_N < -TIE)
        found["excludes 0"] = np.where(is_last_N, 0.0, excluded_N)
        found["chosen width"] = np.where(is_last_N, np.nan, high_N - low_N)
        is_new_N = low_N > 0
    found["a new task"] = (~is_last_N & is_new_N).astype(float)
    found["these tasks"] = (~is_last_N & is_here_N & ~is_new_N).astype(float)
    found["not enough"] = (~is_last_N & ~is_here_N & ~is_new_N).astype(float)
    return found


def holds(low: Array, high: Array, truth: Array) -> Array:
    """Return where an interval holds the truth, as 0 or 1."""
    held: Array = ((low <= truth + TIE) & (truth <= high + TIE)).astype(float)
    return held


def judged(draws: Draws, policy: Policy) -> dict[str, Array]:
    """Return of every draw what the layer of a policy loses, and whether the last is better."""
    gain_NLT, cost_L = draws.gain_NLT, draws.cost_L
    last = len(cost_L) - 1
    row_N = choose(gain_NLT, cost_L, policy)
    found: dict[str, Array] = {}
    if policy == "last_unless_significant":
        claimed_N = np.array(
            [is_claimed(each_LT, row) for each_LT, row in zip(gain_NLT, row_N, strict=True)]
        )
        true_N = draws.true_L[row_N]
        found["claims"] = claimed_N.astype(float)
        found["wrong claims"] = (claimed_N & (true_N <= TIE)).astype(float)
        row_N = np.where(claimed_N, row_N, last)
    true_N = draws.true_L[row_N]
    return found | {
        f"{policy} worse": (true_N < -TIE).astype(float),
        f"{policy} lost": draws.true_L.max() - true_N,
        f"{policy} saved": 1 - cost_L[row_N],
    }


def is_claimed(gain_LT: Array, row: int) -> bool:
    """Whether the test by sign flips says that the highest layer is above the last."""
    if gain_LT.shape[1] < FEWEST_TO_TEST or row == len(gain_LT) - 1:
        return False
    _, p_max_L = sign_flips(gain_LT, draws=_FLIPS)
    return bool(p_max_L[row] < 1 - LEVEL)


def halved(
    grid: Grid, *, tasks: int, draws: int, seed: int = 0, folds: int = 10
) -> dict[str, float]:
    """Compare the choice and its corrected gain after a search of the layers with a full sweep.

    The mean over draws of whether the layer is the same, of how much higher the corrected gain is
    with the layers that the search left, and of the share of the folds that it scored.
    """
    score_LM, last = grid.score_LM, len(grid.score_LM) - 1
    generator = np.random.default_rng([seed, *map(ord, grid.name)])
    cost_L = np.linspace(0, 1, len(score_LM))
    rule: Choose = partial(choose, cost_L=cost_L, policy="best")
    same, more, done = [], [], []
    for _ in range(draws):
        of_task = generator.integers(score_LM.shape[1], size=tasks)
        noise_LTF = generator.normal(0, NOISE, size=(len(score_LM), tasks, folds))
        score_LTF = score_LM[:, of_task, None] + noise_LTF
        state, rounds = search(score_LTF)
        full_LT, left_LT = score_LTF.mean(axis=2), np.full((len(score_LM), tasks), np.nan)
        left_LT[rounds[-1].layers] = full_LT[rounds[-1].layers]
        gains = [each - each[last] for each in (full_LT, left_LT)]
        rows = [int(rule(each)) for each in gains]
        corrected = [float(mean_over(left_out(each, rule)[0])) for each in gains]
        same.append(rows[0] == rows[1])
        more.append(corrected[1] - corrected[0])
        done.append(state.share)
    return {
        "same": float(np.mean(same)),
        "more": float(np.mean(more)),
        "share": float(np.mean(done)),
    }
