"""What counts as a trial, and how a run that was struck may end; nothing is run for it."""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Tell
from tests.faults.kinds import ENDS, RAY, signalled
from tests.faults.points import HUNG, How
from tests.faults.trial import Bench, Disturbed, Ends, Fault, Result, Verdict, crashes, tried
from tests.support.machines.living import Told

STOPPED = "layerrank: stopped; the same command goes on from here\n"
STALLED = "layerrank: extract: process 7 of here stands at piece 1 of 6: no sign of life for 30 s"
RAYLET = "layerrank: Ray's raylet, process 7 of this machine, has ended (exit code -9)"


class Still(Bench):
    """A command of which every run ends well and leaves nothing; one that is broken ends so too."""

    def run(self, root: Path, how: How = "nothing", at: str = "") -> Told:
        root.mkdir(parents=True, exist_ok=True)
        if how != "nothing" and at == "met":
            root.with_suffix(".fired").touch()
        return Told([], 0, "", "")

    def tell(self, root: Path, *_command: str, **_how: Any) -> Told:  # noqa: ANN401
        return self.run(root)


@pytest.fixture
def still(tmp_path: Path) -> Bench:
    bench = Still(tmp_path)
    bench.__dict__.update(reference={}, points={"met": "worker", "unmet": "worker"})
    return bench


KILLED, WORKER, RAYLETS, STANDS = (
    ENDS[f"{kind}"] for kind in ("driver killed", "worker killed", "raylet killed", "actor stopped")
)


@pytest.mark.parametrize(
    ("ends", "hit", "code", "said", "verdict"),
    [
        (KILLED, 7, -9, "", "equal"),
        (KILLED, 7, 0, "", "WRONG"),
        (KILLED, 7, 1, "layerrank: no", "WRONG"),
        (KILLED, 0, 0, "", "missed"),
        (KILLED, 0, 1, "layerrank: no", "WRONG"),
        (KILLED, 7, HUNG, "", "HUNG"),
        (WORKER, 7, 0, "", "survived"),
        (WORKER, 7, 1, "layerrank: workers died again and again", "equal"),
        (WORKER, 7, 1, "Traceback (most recent call last):\nlayerrank: workers died", "WRONG"),
        (WORKER, 7, 1, "", "WRONG"),
        (WORKER, 7, 2, "layerrank: workers died again and again", "WRONG"),
        (RAYLETS, 7, 1, f"1/5 prepare\n{RAYLET}", "equal"),
        (RAYLETS, 8, 1, RAYLET, "WRONG"),
        (RAYLETS, 7, 0, "", "WRONG"),
        (STANDS, 7, 1, STALLED, "equal"),
        (STANDS, 8, 1, STALLED, "WRONG"),
        (ENDS["SIGTERM"], 7, 143, STOPPED, "equal"),
        (ENDS["SIGTERM"], 7, 0, "", "WRONG"),
        (ENDS["disk full"], 1, 1, "layerrank: something", "WRONG"),
    ],
)
def test_a_run_that_is_struck_ends_as_its_kind_says(
    still: Bench, ends: Ends, hit: int, code: int, said: str, verdict: Verdict
) -> None:
    def disturb(bench: Bench, root: Path) -> Disturbed:
        bench.run(root)
        return Disturbed(Told([], code, said, ""), hit)

    fault = Fault("a kind", "a moment", disturb, ends, may_be_past=True)
    assert tried(still, fault).verdict == verdict


@pytest.mark.parametrize(
    ("how", "met", "unmet"), [("die", "WRONG", "WRONG"), ("die alone", "survived", "WRONG")]
)
def test_a_point_that_no_run_meets_is_no_trial(
    still: Bench, how: How, met: Verdict, unmet: Verdict
) -> None:
    found = [tried(still, fault).verdict for fault in crashes(still, how, ["prepare"])]
    assert found == [met, unmet]


def test_every_kind_says_how_its_run_may_end() -> None:
    assert all(ENDS[kind].words or -signal.SIGKILL in ENDS[kind].codes for kind in RAY)


@pytest.mark.parametrize("missed", [1, 2, 3])
def test_most_trials_strike(missed: int) -> None:
    results = [
        Result("a kind", str(n), "missed" if n < missed else "equal", 1) for n in range(missed + 2)
    ]
    if missed < 2:
        Tell([])(results)
    else:
        with pytest.raises(AssertionError):
            Tell([])(results)


@dataclass
class Passing:
    """A run whose one worker is seen a number of times, and then is at something else."""

    driver: subprocess.Popen[bytes]
    seen: int
    looks: list[str] = field(default_factory=list)

    def processes(self, title: str) -> list[int]:
        self.looks.append(title)
        return [self.driver.pid] if len(self.looks) <= self.seen else []

    def until(self, is_so: Any) -> bool:  # noqa: ANN401
        return bool(is_so())


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("seen", [0, 1, 2, 3])  # which is before it is stopped, twice, and then
def test_only_what_is_at_its_work_is_struck(seen: int, sleeper: subprocess.Popen[bytes]) -> None:
    going: Any = Passing(sleeper, seen)
    hit = signalled(signal.SIGSTOP, "its work")(going, random.Random(0))
    stands = Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    assert (hit, stands) == (sleeper.pid * (seen > 2), seen > 2)


def test_a_run_that_has_ended_is_not_struck(sleeper: subprocess.Popen[bytes]) -> None:
    going: Any = Passing(sleeper, 0)
    assert signalled(signal.SIGTERM)(going, random.Random(0)) == sleeper.pid
    sleeper.wait()
    assert signalled(signal.SIGTERM)(going, random.Random(0)) == 0
