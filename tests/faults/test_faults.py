"""`make faults`: everything that can break a run, and what the same command makes of it then.

With FAULTS_OF_COMMIT, a commit's hash, only a part that it draws, so that CI tries all in time: the
points of one stage at which a run dies, or a part of them, and six of the kinds under Ray, at one
moment each.
"""

from __future__ import annotations

import os
import time
from typing import get_args

import pytest

from layerrank.jobs.cli.parser import STAGES
from layerrank.jobs.config import Stage
from tests.conftest import S3
from tests.faults import kinds
from tests.faults.conftest import Tell
from tests.faults.points import How
from tests.faults.s3 import KINDS, lose_the_store, operate
from tests.faults.trial import Bench, all_tried, crashes
from tests.support.machines.proxy import Fault, proxy

COMMIT = os.environ.get("FAULTS_OF_COMMIT", "")
DRAWN = int(COMMIT or "0", 16)
HOWS: tuple[How, ...] = ("die",) if COMMIT else get_args(How)[1:]
TRIED = STAGES[DRAWN % len(STAGES) :][:1] if COMMIT else STAGES
RAY = kinds.RAY[DRAWN % 2 :: 2] if COMMIT else kinds.RAY
MOMENTS = [(DRAWN + n) % kinds.MOMENTS for n in range(kinds.MOMENTS)]
AT_MOST = 24  # points: for a stage of more the commit draws which part of them
ROUNDS = 120  # of some fourteen operations, for each kind
pytestmark = [pytest.mark.faults, pytest.mark.timeout(7200)]
whole = pytest.mark.skipif(bool(COMMIT), reason="`make faults` tries it")


@pytest.mark.parametrize("stage", TRIED)
@pytest.mark.parametrize("how", HOWS)
def test_a_run_goes_on_from_every_point(bench: Bench, tell: Tell, how: How, stage: Stage) -> None:
    found = crashes(bench, how, [stage])
    if not found:
        pytest.skip("all that this stage writes the driver does")
    parts = -(-len(found) // AT_MOST) if COMMIT else 1
    tell(all_tried(bench, found[DRAWN // len(STAGES) % parts :: parts]))


@whole
def test_a_nightly_goes_on_from_every_point(nights: Bench, tell: Tell) -> None:
    tell(all_tried(nights, crashes(nights, "die", STAGES)))


@pytest.mark.parametrize("kind", RAY)
def test_a_run_under_ray_goes_on(bench: Bench, tell: Tell, s3: S3, kind: str) -> None:
    if kind == "disk full" and os.geteuid():
        pytest.skip("a small disk is mounted, which takes root")
    with proxy(s3) as way:
        tried = (all_tried(bench, [each], 1) for each in kinds.under_ray(kind, MOMENTS, way))
        if COMMIT:  # one moment, or the next one where it was past
            tell(next(found for found in tried if found[0].verdict != "missed"))
        else:
            tell([each for found in tried for each in found])


@whole
@pytest.mark.parametrize("kind", kinds.AT_REST)
def test_what_is_damaged_at_rest_is_made_again_or_named(
    bench: Bench, tell: Tell, kind: str
) -> None:
    tell(all_tried(bench, kinds.at_rest(bench, kind)))


@whole
@pytest.mark.parametrize("kind", KINDS)
def test_no_operation_on_s3_is_wrong(tell: Tell, s3: S3, kind: Fault) -> None:
    began = time.monotonic()
    with proxy(s3) as way:
        found = operate(way, kind, ROUNDS)
    tell(found.results(time.monotonic() - began))


@whole
@pytest.mark.parametrize("kind", ["SlowDown", "refused", "cut"])
def test_a_lock_whose_store_goes_away_is_held_or_lost(s3: S3, kind: Fault) -> None:
    with proxy(s3) as way:
        assert lose_the_store(way, kind, 1) == "held"
        assert lose_the_store(way, kind, 5) == "lost"
