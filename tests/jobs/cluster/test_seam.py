"""The seam between the stages and what runs them: what reaches Ray, and the pool of processes."""

from __future__ import annotations

import ctypes
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pyarrow as pa
import pytest
import ray.data
import torch
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.exceptions import RayActorError, RpcError

from layerrank.jobs.cluster import console, on_processes, on_ray, ray_session, tally
from layerrank.jobs.cluster.cluster import SMALL_TOKENS, Cluster, Side, choose
from layerrank.jobs.cluster.console import Progress
from layerrank.jobs.cluster.errors import FAILED, USAGE, InWorkerError, WorkerDiedError, explain
from layerrank.jobs.cluster.on_processes import Processes
from layerrank.jobs.cluster.on_ray import RayCluster
from layerrank.jobs.cluster.pool import TASK_CPUS, Pool
from layerrank.jobs.cluster.ray_session import Session
from layerrank.jobs.cluster.tally import Counts
from layerrank.jobs.cluster.watch import EngineError
from layerrank.jobs.config.blocks import ConfigError
from layerrank.operators.model.subject import ModelUnavailableError
from tests.support.machines.here import Here
from tests.support.machines.installed import users_folder
from tests.support.machines.workers import (
    Counting,
    count_and_die_once,
    count_and_wait,
    die,
    die_once,
    doubled,
    joined,
    refuse,
    refuse_oddly,
    split,
    square,
)
from tests.support.places import PROJECT

UNITS = list(range(7))


# the engine of a run


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("tokens", "given", "engine"),
    [
        (0, {}, "process"),
        (SMALL_TOKENS, {}, "process"),
        (SMALL_TOKENS + 1.0, {}, "ray"),
        (None, {}, "ray"),
        (1, {"address": "auto"}, "ray"),
        (1, {"variable": "RAY_ADDRESS"}, "ray"),
        (1, {"variable": "RAY_JOB_ID"}, "ray"),
        (1, {"gpu": True}, "ray"),
        (1, {"asked": "ray"}, "ray"),
        (None, {"asked": "process"}, "process"),
    ],
)
def test_what_is_small_runs_in_processes_unless_a_cluster_a_gpu_or_a_wish_says_otherwise(
    tokens: float | None, given: dict[str, Any], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "variable" in given:
        monkeypatch.setenv(given["variable"], "10.0.0.1:6379")
    if "gpu" in given:
        monkeypatch.setattr(ctypes, "CDLL", lambda _driver: None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found, _ = choose(given.get("address"), given.get("asked", "auto"), lambda: tokens)
    assert found == engine


def test_an_address_and_this_machine_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match=r"10\.0\.0\.1:6379"):
        choose("10.0.0.1:6379", "process", lambda: 1)


# what reaches Ray


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is in a block be its own reference, and nobody take what workers tell."""
    monkeypatch.setattr("ray.get", lambda block: block)
    for name in ("put", "del"):
        monkeypatch.setattr(f"ray.experimental.internal_kv._internal_kv_{name}", Mock())


def ended(*blocks: pa.Table) -> Mock:
    """Return a plan that ends with blocks of results."""
    return Mock(**{"iter_internal_ref_bundles.return_value": [Mock(block_refs=blocks)]})


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, no_ray: None) -> Mock:
    """Stand in for a Dataset: what was asked of it, in order."""
    del no_ray
    found = ended()
    for name in ("map_batches", "groupby", "map_groups"):
        getattr(found, name).return_value = found
    monkeypatch.setattr(on_ray, "_from_units", lambda _: found)
    return found


def on_a_cluster() -> RayCluster:
    started = Session(None, 0, False, print, _started=True, _aside=ray_session._Aside())
    return RayCluster(started, 600)


def asked(recorder: Mock) -> list[tuple[str, dict[str, Any]]]:
    """Return the steps of a plan and their options, functions left out."""
    return [
        (name, options)
        for name, _, options in recorder.mock_calls
        if name.startswith(("map", "group"))
    ]


ONE = {"batch_size": 1, "batch_format": "pyarrow"}


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 0.0), ("cuda", 1.0)])
def test_each_is_one_task_a_unit(recorder: Mock, device: Any, gpus: float) -> None:  # noqa: ANN401
    cluster = Cluster(on_a_cluster())
    assert list(cluster.each("measure", UNITS, square, device=device, cpus=0.75)) == []
    assert asked(recorder) == [("map_batches", {**ONE, "num_cpus": 0.75, "num_gpus": gpus})]
    (work,) = recorder.map_batches.call_args.args
    found = work(on_ray._packed(on_ray._Unit("", 0, 5), "unit"))
    assert list(on_a_cluster()._results(ended(found), 1)) == [25]


@pytest.mark.parametrize(("gpus", "inside"), [(0.0, 2), (1.0, 4)])
def test_actors_are_a_pool_that_readers_feed(recorder: Mock, gpus: float, inside: int) -> None:
    pool, make = Pool(2, 5, 0.75, gpus, 1), partial(Counting, 1)
    assert list(Cluster(on_a_cluster()).actors("extract", UNITS, make, pool, feed=doubled)) == []
    readers = ray.data.TaskPoolStrategy(size=pool.readers)
    actors = ray.data.ActorPoolStrategy(
        min_size=2,
        max_size=5,
        max_tasks_in_flight_per_actor=inside,
        max_concurrent_calls_per_actor=inside,
        enable_true_multi_threading=True,
    )
    of_actor = {"num_cpus": 0.75, "num_gpus": gpus}
    made, _ = recorder.map_batches.call_args.kwargs.pop("fn_constructor_args")
    assert made is make
    assert asked(recorder) == [
        ("map_batches", {**ONE, "num_cpus": TASK_CPUS, "compute": readers}),
        ("map_batches", {**ONE, **of_actor, "compute": actors}),
    ]


def test_a_shuffle_groups_by_its_key(recorder: Mock) -> None:
    cluster = Cluster(on_a_cluster())
    found = cluster.shuffle("prepare", UNITS, split, joined, key="shard", groups=500)
    assert list(found) == []
    assert asked(recorder) == [
        ("map_batches", {**ONE, "num_cpus": 1}),
        ("groupby", {"num_partitions": 64}),
        ("map_groups", {"batch_format": "pyarrow", "num_cpus": 1}),
    ]
    assert recorder.groupby.call_args.args == ("shard",)


def test_a_cluster_that_is_not_there_is_waited_for_once_and_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def absent(**_: object) -> None:
        tries.append(os.environ[ray_session._TRIES])
        os.write(2, b"what Ray's native code says while it waits\n")
        raise ConnectionError("nobody there")

    told, tries, before = list[str](), list[str](), {**os.environ}
    monkeypatch.setattr("ray.init", absent)
    side = RayCluster(Session("10.0.0.1:6379", 0, False, told.append), 600)
    with pytest.raises(ConfigError, match=r"10\.0\.0\.1:6379.*nobody there"):
        side.resources(gpu=False)
    assert side.session._aside is None  # it is closed
    assert ["10.0.0.1:6379" in line for line in told] == [True]
    assert tries == ["1"]
    assert {**os.environ} == before  # what another cluster may be told otherwise
    assert capfd.readouterr().err == ""


def test_only_somebody_elses_cluster_may_grow() -> None:
    assert not RayCluster(Session(None, 0, False, print), 600).may_grow
    assert RayCluster(Session("auto", 0, False, print), 600).may_grow


@pytest.mark.usefixtures("no_ray")
def test_an_actor_that_cannot_be_made_answers_with_the_error() -> None:
    """Ray makes it again without end, and prints a traceback each time."""

    def make() -> Callable[[Any], Any]:
        raise ModelUnavailableError("no such model")

    unit = on_ray._Unit("", 0, 0)
    found = on_ray._Actor(make, unit)(on_ray._packed(unit, "unit"))
    with pytest.raises(InWorkerError) as caught:
        list(on_a_cluster()._results(ended(found), 1))
    assert explain(caught.value) == ("no such model", USAGE)
    assert "in make" in caught.value.cause.__notes__[0]  # where it was raised


@pytest.mark.usefixtures("no_ray")
def test_a_unit_that_cannot_be_read_fails_with_what_its_reader_raised() -> None:
    def read(_unit: object) -> None:
        raise ModelUnavailableError("no such text")

    unit = on_ray._Unit("", 0, 0)
    batch = on_ray._of_unit(read, on_ray._packed(unit, "unit"))
    found = on_ray._Actor(lambda: str, unit)(batch)
    with pytest.raises(InWorkerError) as caught:
        list(on_a_cluster()._results(ended(found), 1))
    assert explain(caught.value) == ("no such text", USAGE)


def test_a_start_here_that_fails_is_closed_and_names_the_variable_of_a_long_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, told = tmp_path / "not there yet", list[str]()
    before = {**os.environ, "RAY_TMPDIR": str(place)}
    monkeypatch.setenv("RAY_TMPDIR", str(place))

    def start(error: Exception, **options: Any) -> None:  # noqa: ANN401
        told.append(options["_temp_dir"])
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert AuthenticationTokenLoader.instance().get_raw_token() == os.environ["RAY_AUTH_TOKEN"]
        raise error

    for error, words in (
        (OSError("AF_UNIX path length cannot exceed 107 bytes"), f"{place}.*RAY_TMPDIR"),
        (TimeoutError("too busy"), "did not start.*too busy.*logs stay"),
    ):
        monkeypatch.setattr("ray.init", partial(start, error))
        side = RayCluster(Session(None, 0, False, told.append), 600)
        with pytest.raises((ConfigError, EngineError), match=words):
            side.resources(gpu=False)
        assert side.session._aside is None
        assert {**os.environ} == before
        before["RAY_AUTH_TOKEN"] = "b" * 40  # of a user's own
        monkeypatch.setenv("RAY_AUTH_TOKEN", before["RAY_AUTH_TOKEN"])
    long, short, said = told
    assert len(long) - len(str(place)) <= len("/lr-12345678/r")
    assert not Path(long).parent.exists()
    assert str(Path(short).parent) in said  # its logs stay


def test_a_raylet_that_ends_as_ray_starts_is_named_and_one_of_before_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "raylet").symlink_to("/bin/cat")
    before = subprocess.Popen([tmp_path / "raylet"], stdin=subprocess.PIPE)
    ended, never = list[subprocess.Popen[bytes]](), threading.Event()

    def wait_for_raylet(**_: object) -> None:
        assert before.stdin
        before.stdin.close()  # which ends it, while this one starts
        time.sleep(1.5)
        ended.append(subprocess.Popen([tmp_path / "raylet"], stdin=subprocess.DEVNULL))
        never.wait()

    monkeypatch.setattr("ray.init", wait_for_raylet)
    with pytest.raises(EngineError, match=r"its raylet, process \d+, has ended") as caught:
        Session(None, 0, False, lambda _: None).start()
    never.set()
    assert [f"process {each.pid}," in str(caught.value) for each in ended] == [True]
    assert [each.wait() for each in (before, *ended)] == [0, 0]


@pytest.mark.parametrize(("code", "tells"), [("pass", False), ("os._exit(1)", True)])
def test_a_process_that_ray_ends_as_it_starts_has_a_cause(code: str, tells: bool) -> None:
    script = (
        "import os\n"
        "from layerrank.jobs.cluster import ray_session\n"
        "with ray_session._end_told(False, 'here'), ray_session._stderr_held_back(False, ''):\n"
        f"    {code}\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == int(tells)
    assert ("raylet" in ended.stderr) == tells


def test_an_actor_that_could_not_be_made_did_not_die_of_want() -> None:
    text = "ray::_MapWorker.__init__()\nModuleNotFoundError: No module named 'mine'"
    error = RayActorError(error_msg=text, actor_init_failed=True)
    assert explain(on_ray._of_ray(error)) == ("ModuleNotFoundError: No module named 'mine'", FAILED)
    assert isinstance(on_ray._of_ray(RayActorError()), WorkerDiedError)


def told_by(who: str, at: float, *numbers: int) -> bytes:
    """Return what a process tells of itself at a time."""
    return json.dumps([who, at, 0.0, [(number, Counts()) for number in numbers]]).encode()


def test_what_a_process_tells_is_known_until_it_falls_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    side, now = on_a_cluster(), [100.0]
    side._numbered(UNITS)
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def there(*told: bytes) -> dict[int, list[bool]]:
        monkeypatch.setattr(side, "_told", lambda _: told)
        found = side._under_way(1, shuffles=False)
        return {number: [sign.is_there for sign in signs] for number, signs in found.items()}

    assert there(told_by("a", 1, 3), told_by("b", 7, -1)) == {3: [True], -1: [True]}
    now[0] += 60  # two beats
    assert there(told_by("a", 1, 3), told_by("b", 8, -1)) == {3: [True], -1: [True]}
    now[0] += 90
    assert there(told_by("a", 1, 3), told_by("b", 9, 3)) == {3: [False, True]}


@pytest.mark.usefixtures("no_ray")
def test_a_plan_that_goes_on_when_nobody_waits_ends_with_its_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    goes_on = threading.Event()

    def results() -> Iterator[Mock]:
        yield Mock(block_refs=[on_ray._packed(on_ray._Unit("", 0, 5), "result")])
        for _ in range(2):
            with suppress(KeyboardInterrupt):
                goes_on.wait(60)

    monkeypatch.setattr(on_ray, "_INTERRUPTED_SECONDS", 0.05)
    monkeypatch.setattr("ray.shutdown", Mock())
    side = on_a_cluster()
    found = side._results(Mock(**{"iter_internal_ref_bundles.side_effect": results}), 2)
    assert next(found) == 5
    assert isinstance(found, Generator)
    found.close()
    goes_on.set()
    assert side.session._aside is None
    assert not side.session._started


def test_whatever_ends_a_look_is_raised_by_who_waits() -> None:
    def look(_actors: int, _shuffles: bool) -> dict[int, Any]:
        raise KeyError("worker")

    looks = on_ray._Looks(look)
    with pytest.raises(KeyError, match="worker"):
        looks.last(1, False)


# processes


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    found = Processes()
    found._size = 2
    yield found
    found.close()


def each(side: Side, work: Callable[[int], Any]) -> Iterator[Any]:
    return side.each(UNITS, work, cpus=1, gpus=0)


def test_a_worker_is_built_once_in_each_process_which_lives_through_plans(
    processes: Processes,
) -> None:
    pool, pids = Pool(2, 2, 0.75, 0, 1), set[int]()
    for add in (1, 100):
        found = list(processes.actors(UNITS, partial(Counting, add), doubled, pool))
        assert sorted(value for value, _, _ in found) == [2 * unit + add for unit in UNITS]
        of_process: dict[int, list[int]] = {}
        for _, process, had in found:
            of_process.setdefault(process, []).append(had)
        for counts in of_process.values():
            assert counts == list(range(1, len(counts) + 1))
        pids |= of_process.keys()
    assert sorted(each(processes, square)) == [unit * unit for unit in UNITS]
    # The processes lived through all three plans.
    assert pids <= {worker.process.pid for worker in processes._workers}
    assert len(processes._workers) <= processes._size


@pytest.mark.parametrize("side", [Here(), Processes()])
def test_rows_meet_by_their_key_and_nothing_is_left_of_a_pool(side: Side) -> None:
    with Cluster(side) as cluster:
        found = dict(cluster.shuffle("prepare", UNITS, split, joined, key="shard", groups=3))
        folder = Path(side._temporary()) if isinstance(side, Processes) else None
        assert folder is None or {each.name for each in folder.iterdir()} == {"printed", "counted"}
    assert folder is None or not folder.exists()
    expected = {shard: [f"a {unit}" for unit in UNITS if unit % 3 == shard] for shard in range(3)}
    expected[2] += [f"b {unit}" for unit in UNITS]
    expected[0] += [f"c {unit}" for unit in UNITS]
    assert found == {shard: sorted(texts) for shard, texts in expected.items()}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("column c is not there"), USAGE),
        (ModelUnavailableError("no such model"), USAGE),
        (FileNotFoundError("a shard is gone"), FAILED),
        (ValueError("layer 3 is odd"), FAILED),
    ],
)
def test_an_error_travels_and_ends_the_plan(
    processes: Processes, error: Exception, code: int
) -> None:
    with pytest.raises(InWorkerError) as caught:
        list(each(processes, partial(refuse, error)))
    message, found = explain(caught.value)
    assert found == code
    assert str(error) in message
    assert "refuse" in caught.value.cause.__notes__[0]  # where in the worker it was raised
    assert sorted(each(processes, square))[-1] == 36


def test_an_error_that_cannot_travel_is_told_all_the_same(processes: Processes) -> None:
    with pytest.raises(InWorkerError, match="Unpicklable: what it says"):
        list(each(processes, refuse_oddly))


def test_a_process_that_dies_is_replaced_and_its_unit_tried_again(
    processes: Processes, tmp_path: Path
) -> None:
    assert sorted(each(processes, partial(die_once, tmp_path))) == UNITS
    assert (tmp_path / "died").exists()


def test_a_unit_that_kills_every_process_ends_the_run_with_what_was_said_last(
    processes: Processes,
) -> None:
    with pytest.raises(WorkerDiedError, match=r"3 times.*exit code 7.*unit \d is too much"):
        list(each(processes, die))


def test_a_plan_that_is_abandoned_leaves_the_pool_to_the_next(processes: Processes) -> None:
    for _ in each(processes, square):
        break
    assert len(list(each(processes, square))) == len(UNITS)


def test_an_error_of_the_stage_ends_its_plan_with_the_run() -> None:
    """Whoever catches the error holds what the stage had open; the run has ended it by then."""
    opened: list[Iterator[Any]] = []

    def stage() -> None:
        with Cluster(Processes()) as cluster:
            opened.append(cluster.each("prepare", UNITS, square))
            raise ConfigError(f"no such column in {next(opened[0])}")

    with pytest.raises(ConfigError, match="no such column"):
        stage()
    assert next(opened[0], None) is None


def test_workers_import_the_packages_of_their_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another copy is installed, and where the user has modules of the same names."""
    for package in ("layerrank", "jobs", "operators", "storage"):
        shutil.copytree(PROJECT / package, tmp_path / package, symlinks=True)
    users = users_folder(tmp_path / "users")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(users)]))
    code = (
        "from layerrank.jobs.cluster.on_processes import Processes\n"
        "where = \"__import__('layerrank.jobs.words', fromlist=['words']).__file__\"\n"
        "print(*Processes(['layerrank.jobs.words']).each([where], eval, cpus=1, gpus=0))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(tmp_path / "layerrank" / "jobs" / "words.py")


def test_processes_end_with_a_driver_that_is_killed() -> None:
    code = (
        "from layerrank.jobs.cluster.on_processes import Processes\n"
        "from tests.support.machines.workers import linger\n"
        "pool = Processes()\n"
        "for pid in pool.each([0, 1, 2], linger, cpus=1, gpus=0):\n"
        "    print(pid, pool._temporary(), flush=True)\n"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    pid, folder = driver.stdout.readline().split()
    assert Path(folder).exists()
    driver.kill()
    driver.wait()
    left = [Path(f"/proc/{pid}"), Path(folder)]
    deadline = time.monotonic() + 20
    while any(each.exists() for each in left) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [each for each in left if each.exists()]
    driver.stdout.close()


# how far the units are


def counted_on_the_way(side: Side, folder: Path) -> list[Counts]:
    """Return what a side says while two units wait to be seen."""
    seen = [Counts()]

    def look() -> None:
        deadline = time.monotonic() + 60
        while seen[-1].done < 8 and time.monotonic() < deadline:
            seen.append(side.counted())
            time.sleep(0.01)
        (folder / "seen").touch()

    watch = threading.Thread(target=look)
    watch.start()
    work = partial(count_and_wait, folder)
    assert sorted(side.each([0, 1], work, cpus=0.5, gpus=0)) == [0, 1]
    watch.join()
    return seen


def test_what_processes_count_is_seen_before_a_unit_is_done(
    processes: Processes, tmp_path: Path
) -> None:
    assert counted_on_the_way(processes, tmp_path)[-1] == Counts(8, 60, 20, 200)
    assert processes.counted() == Counts(20, 200, 20, 200)
    assert len(list(each(processes, square))) == len(UNITS)
    assert processes.counted() == Counts()  # of the plan that was begun last
    assert Processes().counted() == Counts()


def test_a_unit_that_is_tried_again_is_counted_once(processes: Processes, tmp_path: Path) -> None:
    assert sorted(each(processes, partial(count_and_die_once, tmp_path))) == UNITS
    assert (tmp_path / "died").exists()
    assert processes.counted().done == 10 * len(UNITS)


def test_what_was_counted_on_ray_is_forgotten_and_that_fails_nothing(
    recorder: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    side, forgotten = on_a_cluster(), list[str]()

    def forget(key: str, **_: object) -> None:
        forgotten.append(key)
        raise RpcError("the store does not answer")

    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_initialized", lambda: True)
    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_del", forget)
    monkeypatch.setattr("ray.shutdown", Mock())
    assert list(each(side, square)) == []
    failed = on_ray._packed(on_ray._Unit("", 0, on_ray._Failed(ValueError("why"))), "result")
    recorder.iter_internal_ref_bundles.return_value = [Mock(block_refs=[failed])]
    with pytest.raises(InWorkerError, match="why"):
        list(each(side, square))
    side.close()  # a worker may have told of a plan after its end
    assert len({*forgotten}) == 3
    assert all(plan.startswith(forgotten[-1]) for plan in forgotten[:-1])


def test_what_cannot_be_counted_fails_nothing(tmp_path: Path) -> None:
    """As where the file system of temporary files is full."""
    (tmp_path / "seen").touch()
    with tally.counting(partial(on_processes._tell, -1, 0)):
        assert count_and_wait(tmp_path, 5) == 5


def test_a_log_moves_while_the_only_unit_is_at_work(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_LOG_SECONDS", 0.01)
    stream = io.StringIO()
    with Progress("extract", 10, "texts", stream, counted=processes.counted) as progress:
        for _ in counted_results(processes, tmp_path, stream):
            progress.add(10, 100)
    assert "extract: 4 of 10 texts" in stream.getvalue()


def counted_results(side: Side, folder: Path, stream: io.StringIO) -> Iterator[Any]:
    """Yield the result of one unit, which goes on when the log has told of a part of it."""

    def look() -> None:
        deadline = time.monotonic() + 60
        while " 4 of" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        (folder / "seen").touch()

    watch = threading.Thread(target=look)
    watch.start()
    yield from side.each([0], partial(count_and_wait, folder), cpus=1, gpus=0)
    watch.join()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_what_workers_of_ray_count_is_seen_before_a_unit_is_done(tmp_path: Path) -> None:
    with (
        patch.dict(os.environ),
        Cluster(RayCluster(Session(None, 0, False, print), 600)) as cluster,
    ):
        side = cluster.side
        assert counted_on_the_way(side, tmp_path)[-1] == Counts(8, 60, 20, 200)
        assert side.counted() == Counts()  # nothing is left of it in the cluster
        pool, died = Pool(1, 1, 0.5, 0, 1), tmp_path / "actors"
        died.mkdir()
        make = partial(partial, count_and_die_once, died)
        seen = [0]
        for _ in side.actors(UNITS, make, int, pool):
            seen.append(side.counted().done)
        assert seen == sorted(seen)


def test_of_a_unit_that_several_have_counted_the_most_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = {
        b"p-1": [(0, 10, 5, 10, 5), (1, 4, 2, 0, 0)],
        b"p-2": [(1, 3, 2, 10, 9)],
        b"p-3": [],
    }
    store = "ray.experimental.internal_kv."
    content = {key: b"".join(on_ray._ROW.pack(*row, 0) for row in of) for key, of in rows.items()}
    monkeypatch.setattr(f"{store}_internal_kv_list", lambda *_, **__: [*rows, b"p-gone"])
    monkeypatch.setattr(f"{store}_internal_kv_get", lambda key, **_: content.get(key))
    assert on_a_cluster().counted() == Counts()
    side = on_a_cluster()
    side._numbered(UNITS)
    assert side.counted() == Counts(14, 7, 20, 14)


# what is told


@pytest.mark.usefixtures("recorder")
def test_a_stage_says_once_what_runs_it() -> None:
    told, pool = list[str](), Pool(2, 2, 0.75, 0, 1)
    cluster = Cluster(on_a_cluster(), told.append)
    for _ in range(2):
        cluster.actors("extract", UNITS, partial(Counting, 1), pool, feed=doubled)
    assert told == ["  extract: 2 actors on CPU, fed by 1 reader"]
    assert cluster.made == {"extract": "2 actors on CPU, fed by 1 reader (engine ray)"}


def test_no_work_starts_nothing() -> None:
    side = Mock(spec=Here)
    assert list(Cluster(side).each("measure", [], square)) == []
    assert not side.mock_calls
