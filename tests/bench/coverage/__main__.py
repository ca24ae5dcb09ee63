"""`python -m tests.bench.coverage`: the tables of the guide, a minute on two cores."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from layerrank.jobs.cluster.console import say
from tests.bench.coverage.candidates import Searches, candidates
from tests.bench.coverage.grids import grids
from tests.bench.coverage.simulate import Plan, halved, simulate
from tests.bench.coverage.tables import Cells, every_table, with_candidates
from tests.support.published import PUBLISHED


def main() -> int:
    """Print every table as Markdown; each grid is simulated in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--published", type=Path, default=PUBLISHED.parent, metavar="FOLDER")
    parser.add_argument("--draws", type=int, default=4_000, help="of every grid and cell")
    parser.add_argument("--policy-draws", type=int, default=250, help="of these for every policy")
    parser.add_argument("--searches", type=int, default=40, help="of every grid")
    parser.add_argument("--candidate-draws", type=int, default=200, help="of every grid and cell")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if not asked.published.exists():
        say(f"no {asked.published}: nothing to draw from")
        return 0
    found = grids(asked.published)
    plan = Plan(draws=asked.draws, policy_draws=asked.policy_draws, seed=asked.seed)
    late = [grid for grid in found if not grid.is_early]
    search = partial(halved, tasks=3, draws=asked.searches, seed=asked.seed)
    with ProcessPoolExecutor() as pool:
        # The grids with most layers first, so that the last process does not run alone.
        order = sorted(found, key=lambda grid: -len(grid.score_LM))
        cells: Cells = dict(zip(order, pool.map(partial(simulate, plan=plan), order), strict=True))
        searched = [*pool.map(search, late)]
        of_vectors = partial(candidates, plan=Searches(asked.candidate_draws, seed=asked.seed))
        several = dict(zip(late, pool.map(of_vectors, late), strict=True))
    tables = every_table(cells, searched, plan)
    tables["Several vectors of every layer, ten folds"] = with_candidates(several)
    for title, lines in tables.items():
        for line in ("", title, "", *lines):
            say(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
