"""How a run ends that is told to, that stands still, or whose engine dies; what is left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest

from layerrank.jobs.cluster.cluster import Cluster
from layerrank.jobs.cluster.errors import USAGE, WorkerDiedError
from layerrank.jobs.cluster.left import at_work_in, descendants, end_all
from layerrank.jobs.cluster.on_processes import Processes
from layerrank.jobs.cluster.on_ray import RayCluster
from layerrank.jobs.cluster.pool import Pool
from layerrank.jobs.cluster.ray_session import Session
from layerrank.jobs.cluster.tally import Counts
from layerrank.jobs.cluster.watch import EngineError, Sign, StalledError, Watch
from tests.conftest import offline_environment, write_config
from tests.support.machines.workers import (
    die,
    die_once,
    kill,
    stand_still,
    wait_for_ever,
    work_long,
)
from tests.support.places import PROJECT

UNITS = list(range(7))
STOPPED = "layerrank: stopped; the same command goes on from here\n"
CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


# told to end


@contextmanager
def begun(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Give a command that goes on, in a group of its own, even if tests run under `nohup`."""
    process = subprocess.Popen(
        ["env", "--default-signal=HUP", sys.executable, "-m", "layerrank", *arguments],
        cwd=PROJECT,
        env={**offline_environment(), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def told_to_end(process: subprocess.Popen[str], number: int) -> tuple[int, str]:
    """Tell the whole group to end, twice, and return the exit code and what was said since."""
    others = descendants(process.pid)
    os.killpg(process.pid, number)
    time.sleep(0.3)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    assert process.stdout
    said = process.stdout.read()
    code = process.wait(60)
    until = time.monotonic() + 10
    while left := {each for each in others if Path(f"/proc/{each}").exists()}:
        assert time.monotonic() < until, left
        time.sleep(0.1)
    return code, said


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give an output that can be asked."""
    folder = tmp_path_factory.mktemp("ranked")
    rows = [f"m,{layer},t,0.{layer}" for layer in range(4)]
    (folder / "scores.csv").write_text("\n".join(["model,layer,task,score", *rows]))
    asked = ["rank", "--scores", str(folder / "scores.csv"), "-o", str(folder / "out"), "-q"]
    subprocess.run([sys.executable, "-m", "layerrank", *asked], check=True, cwd=PROJECT)
    return str(folder / "out")


def handles(process: int, number: int) -> bool:
    """Return whether a process has a handler of its own for a signal."""
    status = Path(f"/proc/{process}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("later", [0.0, 2.0])
@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_command_that_is_told_to_end_says_so_in_one_line(
    number: int, code: int, later: float, ranked: str
) -> None:
    with begun("query", ranked, "-") as process:  # which waits for what it is to answer
        while not handles(process.pid, signal.SIGHUP):
            time.sleep(0.01)
        time.sleep(later)
        assert told_to_end(process, number) == (code, STOPPED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "number", "code", "stage"),
    [
        ("process", signal.SIGTERM, 143, "engine process"),
        ("process", signal.SIGINT, 130, "1/5"),
        ("ray", signal.SIGTERM, 143, "1/5"),
        ("ray", signal.SIGINT, 130, "2/5"),
    ],
)
def test_a_run_that_is_told_to_end_leaves_nothing_and_goes_on(
    engine: str, number: int, code: int, stage: str, checkpoint: Path, tmp_path: Path
) -> None:
    temporary = Path("/tmp", f"lr-{os.getpid()}")  # short enough for sockets
    temporary.mkdir()
    config, output = write_config(tmp_path, checkpoint), tmp_path / "out"
    arguments = ["run", str(config), "-o", str(output), "--engine", engine]
    with begun(*arguments, TMPDIR=str(temporary)) as process:
        assert process.stdout
        while stage not in process.stdout.readline():
            assert process.poll() is None
        time.sleep(2)
        found, said = told_to_end(process, number)
    assert found == code
    assert said.endswith(STOPPED)
    assert "Traceback" not in said
    assert [*temporary.iterdir()] == []
    temporary.rmdir()
    assert not [*(output / "_layerrank" / "locks").glob("run-*")]  # its claim


def test_what_is_imported_sets_no_handler() -> None:
    code = (
        "import signal, layerrank.api, layerrank.jobs.cli, layerrank.jobs.cluster.on_ray\n"
        "names = 'SIGTERM', 'SIGHUP', 'SIGALRM'\n"
        "assert all(signal.getsignal(getattr(signal, each)) == signal.SIG_DFL for each in names)\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


def test_processes_that_are_left_are_found_and_ended(tmp_path: Path) -> None:
    script = f"import subprocess, sys; subprocess.run(['sleep', '600']); '{tmp_path}'"
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        until = time.monotonic() + 10
        while not (children := descendants(process.pid)) and time.monotonic() < until:
            time.sleep(0.01)
        # What a user reads there with other programs is the user's.
        assert at_work_in(str(tmp_path), "import subprocess") == {process.pid}
        assert at_work_in(str(tmp_path), "/ray/") == set()
        end_all(lambda: descendants(os.getpid()) & {process.pid, *children})
        assert process.wait(10) == -signal.SIGKILL
    assert not descendants(os.getpid()) & children


# standing still


def watched(*looks: tuple[float, dict[int, list[Sign]]]) -> None:
    """Look at signs as they change at times, in seconds; 100 without one are too many."""
    now = [0.0]
    watch, before = Watch(100, 5, lambda: now[0]), looks[0][1]
    for at, signs in looks:
        while now[0] + 5 < at:
            now[0] += 5
            watch.look(before)
        now[0], before = at, signs
        watch.look(signs)


def sign(
    done: int = 0, cpu: float = 0.0, worker: str = "process 7 of a", is_there: bool = True
) -> list[Sign]:
    return [Sign(worker, Counts(done), cpu, is_there)]


def test_a_unit_without_a_sign_of_life_ends_the_plan() -> None:
    watched((0, {3: sign()}), (100, {3: sign()}))
    with pytest.raises(StalledError, match=r"process 7 of a.*piece 4 of 5.*101 s.*stall_seconds"):
        watched((0, {3: sign()}), (101, {3: sign()}))
    with pytest.raises(StalledError):  # what a worker of Ray uses while it does nothing
        watched((0, {3: sign()}), (60, {3: sign(cpu=0.2)}), (101, {3: sign(cpu=0.3)}))
    with pytest.raises(StalledError):  # while others go on
        watched((0, {3: sign(), 4: sign()}), (101, {3: sign(), 4: sign(9)}))


@pytest.mark.parametrize("alive", [sign(1), sign(cpu=1.0), sign(worker="process 8 of a")])
def test_whatever_a_worker_does_is_a_sign_of_life(alive: list[Sign]) -> None:
    watched((0, {3: sign()}), (99, {3: alive}), (198, {3: alive}))


def test_while_the_driver_is_busy_nobody_stands_still() -> None:
    now = [0.0]
    watch = Watch(100, 5, lambda: now[0])
    watch.look({3: sign()})
    now[0] = 1000
    watch.resume()
    watch.look({3: sign()})
    for now[0] in range(1010, 1101, 10):
        watch.look({3: sign()})
    now[0] += 1
    with pytest.raises(StalledError):
        watch.look({3: sign()})
    with Cluster(Processes(stall_seconds=1)) as cluster:
        for _ in cluster.each("measure", UNITS[:3], abs):
            time.sleep(1.2)


@pytest.mark.parametrize("away", [40.0, 1000.0])
def test_while_the_driver_is_stopped_nobody_stands_still(away: float) -> None:
    now = [0.0]
    watch = Watch(100, 5, lambda: now[0])
    for _ in range(5):
        watch.look({3: sign()})
        now[0] += away
        watch.look({3: sign()})
    for _ in range(100):
        now[0] += 1
        watch.look({3: sign()})
    now[0] += 1
    with pytest.raises(StalledError, match="101 s"):
        watch.look({3: sign()})


def test_in_the_order_of_a_plan_each_unit_is_watched_for_itself() -> None:
    now = [0.0]
    watch = Watch(100, 5, lambda: now[0])
    watch.resume()
    watch.look({0: sign(), 1: sign(worker="process 8 of a")})
    for number in range(20):  # a result now and then, which somebody writes
        now[0] += 4
        watch.done(0 if not number else number + 1)
        now[0] += 50
        watch.resume()
        now[0] += 1
        watch.look({1: sign(worker="process 8 of a"), number + 2: sign()})
    now[0] += 1
    with pytest.raises(StalledError, match="process 8 of a stands at piece 2"):
        watch.look({1: sign(worker="process 8 of a"), 22: sign()})


def test_a_unit_whose_process_may_have_died_waits_while_others_go_on() -> None:
    gone = sign(is_there=False)
    others = [(float(at), {3: gone, 4: sign(at)}) for at in range(5, 500, 5)]
    watched((0, {3: sign()}), *others)
    with pytest.raises(StalledError, match="process 7 of a stands at piece 4"):
        watched((0, {3: sign()}), *others, (600, {3: gone}))
    both = {3: gone, 4: sign(worker="process 8 of a")}
    with pytest.raises(StalledError, match="process 8 of a stands at piece 5"):
        watched((0, both), (101, both))


def test_workers_that_load_a_model_for_long_are_watched_as_they_do() -> None:
    watched(*((at, {-1: sign(cpu=at)}) for at in (50.0, 100.0, 150.0, 200.0)))
    with pytest.raises(StalledError, match="process 7 of a: no sign"):
        watched((0, {-1: sign()}), (101, {-1: sign()}))


def test_a_plan_that_nobody_takes_up_ends() -> None:
    watched((0, {}), (100, {}))
    with pytest.raises(StalledError, match="5 pieces"):
        watched((0, {}), (101, {}))


@pytest.mark.parametrize("work", [stand_still, wait_for_ever])
def test_a_process_that_does_not_answer_ends_the_run(work: Callable[[int], int]) -> None:
    with pytest.raises(StalledError, match=r"measure: process \d+ .*piece 4 of 7.*stall_seconds"):  # noqa: SIM117
        with Cluster(Processes(stall_seconds=1)) as cluster:
            list(cluster.each("measure", UNITS, work))


def test_a_process_that_works_long_does_not() -> None:
    with Cluster(Processes(stall_seconds=1)) as cluster:
        assert list(cluster.each("measure", [5], partial(work_long, 3))) == [5]


@pytest.fixture
def own_environment() -> Iterator[None]:
    """Undo what Ray is told by variables, and delete the logs that it leaves."""
    with (
        TemporaryDirectory(prefix="lr-", dir="/tmp") as short,
        patch.dict(os.environ, RAY_TMPDIR=short),
    ):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("own_environment")
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("work", "error", "words"),
    [
        (stand_still, StalledError, r"measure: process \d+ of .*piece 4 of 7"),
        (partial(kill, "gcs_server"), EngineError, r"gcs_server.*-9"),
        (partial(kill, "raylet/raylet"), EngineError, r"raylet.*-9"),
    ],
)
def test_ray_that_does_not_answer_ends_the_run(
    work: Callable[[int], int], error: type[EngineError], words: str
) -> None:
    told = list[str]()
    with pytest.raises(error, match=words):  # noqa: SIM117
        with Cluster(RayCluster(Session(None, 0, False, told.append), 10)) as cluster:
            list(cluster.each("measure", UNITS, work))
    (folder,) = [line.split()[-1] for line in told if "logs stay" in line]
    assert Path(folder).stat().st_mode & 0o777 == 0o700
    assert not at_work_in(folder, "ray")


@pytest.mark.slow
@pytest.mark.usefixtures("own_environment")
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_an_actor_may_die_once_but_not_again_and_again(tmp_path: Path) -> None:
    pool = Pool(1, 1, 0.5, 0, 1)

    def made(side: RayCluster, work: Callable[[int], Any]) -> list[Any]:
        cluster = Cluster(side)
        make = partial(partial, work)
        return sorted(cluster.actors("extract", UNITS, make, pool, feed=int))

    side = RayCluster(Session(None, 0, False, print), 20)
    try:
        assert made(side, partial(die_once, tmp_path)) == UNITS
        with pytest.raises(WorkerDiedError, match=r"extract: workers died.*process \d+"):
            made(side, die)
    finally:
        side.close()


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "http://127.0.0.1:1"])
def test_an_address_where_nobody_answers_is_named_in_time(address: str) -> None:
    code = (
        "from layerrank.jobs.cluster.ray_session import Session\n"
        "from layerrank.jobs.cluster.errors import explain\n"
        "import json, os\n"
        "try:\n"
        f"    Session({address!r}, 0, False, lambda _: None).start()\n"
        "except Exception as error:\n"
        "    print(json.dumps(explain(error)), flush=True)\n"
        "os._exit(0)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    message, found = json.loads(told.stdout.splitlines()[-1])
    assert (found, address in message) == (USAGE, True)
    assert told.stderr == ""
