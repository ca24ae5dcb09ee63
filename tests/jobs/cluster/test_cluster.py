"""Pools that can be scheduled, and progress lines."""

from __future__ import annotations

import io
import socket
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerrank.jobs.cluster import console
from layerrank.jobs.cluster.cluster import Cluster
from layerrank.jobs.cluster.console import Pace, Progress
from layerrank.jobs.cluster.errors import USAGE, explain
from layerrank.jobs.cluster.pool import TASK_CPUS, CannotScheduleError, Pool, sockets_in
from layerrank.jobs.cluster.tally import Counts
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.settings import Device
from tests.support.machines.here import Here


def machine(cpus: float, gpus: float = 0) -> dict[str, float]:
    """Return the resources as Ray states them: what is not there has no key."""
    return {"CPU": cpus, "memory": 1e9, **({"GPU": gpus} if gpus else {})}


def plan_pool(
    resources: dict[str, float],
    device: Device,
    units: int,
    *,
    may_grow: bool = False,
    **wanted: int | None,
) -> Pool:
    side = Mock(spec=Here, may_grow=may_grow)
    side.resources.return_value = resources
    return Cluster(side).pool(device, units, **wanted)


@pytest.mark.parametrize(
    ("resources", "device", "units", "size"),
    [
        (machine(16, 1), "auto", 99, 1),
        (machine(16, 8), "auto", 99, 8),
        (machine(16, 8), "cuda", 3, 3),
        (machine(16, 8), "cpu", 99, 16),
    ],
)
def test_a_pool_takes_the_machine_but_no_more_actors_than_units(
    resources: dict[str, float], device: Device, units: int, size: int
) -> None:
    pool = plan_pool(resources, device, units)
    assert (pool.size, pool.most) == (size, size)
    assert pool.num_gpus == (device != "cpu")
    assert pool.device == ("cuda" if pool.num_gpus else "cpu")


def test_workers_and_threads_of_the_config_are_followed() -> None:
    pool = plan_pool(machine(64), "cpu", 999, threads=8)
    assert (pool.size, pool.threads) == (8, 8)
    assert pool.num_cpus == 8 * plan_pool(machine(64), "cpu", 999).num_cpus
    assert plan_pool(machine(16, 4), "auto", 99, workers=2).size == 2


@pytest.mark.parametrize(
    ("resources", "device", "options", "words"),
    [
        (machine(4), "cuda", {}, r"no GPU \(it has 4 CPUs\).*device: cpu or auto"),
        (machine(4), "auto", {"workers": 9}, r"9 model .* need 7 CPUs .* 4 CPUs and 0 GPUs.*Lower"),
        (machine(4), "auto", {"threads": 9}, r"1 model .* need 7 CPUs .* 4 CPUs and 0 GPUs.*Lower"),
        (machine(64, 2), "auto", {"workers": 3}, r"3 model .* 3 GPUs .* 64 CPUs and 2 GPUs.*Lower"),
    ],
)
def test_a_plan_that_can_never_be_scheduled_is_refused_with_its_numbers(
    resources: dict[str, float], device: Device, options: dict[str, Any], words: str
) -> None:
    assert issubclass(CannotScheduleError, ConfigError)
    with pytest.raises(CannotScheduleError, match=words):
        plan_pool(resources, device, 99, **options)


def test_a_cluster_that_may_grow_starts_with_what_fits() -> None:
    pool = plan_pool(machine(4, 1), "cuda", 99, workers=8, may_grow=True)
    assert (pool.size, pool.most) == (1, 8)
    pool = plan_pool(machine(4), "cpu", 6, workers=8, may_grow=True)
    assert (pool.size, pool.most) == (4, 6)


some = st.one_of(st.none(), st.integers(1, 20))


@given(
    st.integers(1, 128),
    st.integers(0, 16),
    st.sampled_from(["auto", "cpu", "cuda"]),
    st.integers(0, 200),
    st.fixed_dictionaries({"workers": some, "threads": some}),
    st.booleans(),
)
def test_no_pool_starves_the_tasks_that_feed_it(
    cpus: int, gpus: int, device: Device, units: int, wanted: dict[str, int | None], may_grow: bool
) -> None:
    workers, threads = wanted["workers"], wanted["threads"]
    try:
        pool = plan_pool(machine(cpus, gpus), device, units, may_grow=may_grow, **wanted)
    except CannotScheduleError:
        # On CPUs alone only a wish of the config can be too much.
        assert workers or threads or gpus or device == "cuda"
        return
    assert pool.size * pool.num_cpus + TASK_CPUS <= cpus
    assert pool.size * pool.num_gpus <= gpus
    assert 1 <= pool.size <= pool.most <= max(units, 1)
    assert workers is None or pool.most <= workers
    assert 1 <= pool.readers <= pool.most
    if pool.device == "cpu" and not (workers or threads):  # every core has its actor
        assert pool.size == max(min(cpus, units), 1)


def test_a_progress_line_counts_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: clock.now))
    progress = Progress("extract", 4000, "texts", io.StringIO())
    without = Progress("probe", 10, "layer scores", io.StringIO())
    assert progress.line() == "  extract: 0 of 4,000 texts"
    clock.now += 6
    without.add(4)
    assert without.line() == "  probe: 4 of 10 layer scores, about 9 s left"
    clock.now += 4
    progress.add(800, 50_000)
    progress.add(200, 10_000)
    assert progress.tokens == 60_000
    assert progress.seconds == 10
    assert progress.line() == "  extract: 1,000 of 4,000 texts, 6,000 tokens/s, about 30 s left"
    progress.add(3000)
    clock.now += 10
    assert progress.line() == "  extract: 4,000 of 4,000 texts, 3,000 tokens/s"


def test_a_line_moves_with_what_workers_count_and_tells_time_by_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, counts = SimpleNamespace(now=100.0), Counts()
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: clock.now))
    progress = Progress("extract", 4000, "texts", io.StringIO(), counted=lambda: counts)
    progress.look()
    assert progress.line() == "  extract: 0 of 4,000 texts"
    counts = Counts(0, 0, 1000, 50_000)
    progress.look()
    assert progress.line() == "  extract: 0 of 4,000 texts, 200,000 tokens"
    clock.now += 50  # while the model is loaded
    counts = Counts(100, 1_000, 1000, 50_000)
    progress.look()
    assert progress.line() == "  extract: 100 of 4,000 texts, 200,000 tokens"
    clock.now += 10
    # Half of the texts of a shard, the short ones, are an eighth of its tokens.
    counts = Counts(500, 6_000, 1000, 50_000)
    progress.look()
    assert progress.line() == "  extract: 500 of 4,000 texts, 500 tokens/s, about 6 min left"
    progress.add(1000, 50_000)  # as another shard is done, before its worker is looked at
    assert progress.line().startswith("  extract: 1,000 of 4,000 texts")
    counts = Counts(1600, 60_000, 2000, 100_000)
    progress.look()
    assert progress.line().startswith("  extract: 1,600 of")
    counts = Counts(1100, 52_000, 2000, 100_000)  # one died
    progress.look()
    assert progress.line().startswith("  extract: 1,600 of")
    counts = Counts(9999, 210_000, 4000, 200_000)
    progress.look()
    assert progress.line().startswith("  extract: 4,000 of")


def test_an_estimate_is_told_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, counts = SimpleNamespace(now=100.0), Counts()
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: clock.now))
    pace = Pace(90_000, 500)
    assert str(pace) == "3 min at 500 tokens/s, as before"
    progress = Progress("extract", 9, "texts", io.StringIO(), counted=lambda: counts, pace=pace)
    assert progress.line() == "  extract: 0 of 9 texts, about 3 min left"
    counts = Counts(0, 0, 3, 10_000)
    progress.look()
    assert progress.line() == "  extract: 0 of 9 texts, about 60 s left"
    counts = Counts(1, 1_000, 3, 10_000)
    progress.look()
    clock.now += 10
    counts = Counts(1, 3_000, 3, 10_000)  # what is known now
    progress.look()
    assert progress.line() == "  extract: 1 of 9 texts, 200 tokens/s, about 2 min left"


def test_a_log_begins_as_soon_as_it_is_known_that_the_stage_is_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console, "_REDRAW_SECONDS", 0.01)
    for tokens, says in ((10_000_000, "about 3"), (10, "")):
        stream, counted = io.StringIO(), partial(Counts, 0, 0, 7, tokens)
        with Progress("extract", 7, "texts", stream, counted=counted, pace=Pace(1, 50_000)):
            time.sleep(0.2)
        assert stream.getvalue().count("\n") == bool(says)
        assert says in stream.getvalue()


def test_of_a_quiet_run_no_progress_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_LOG_SECONDS", 0.01)
    for is_terminal in (False, True):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda shown=is_terminal: shown)
        before = console.quiet(True)
        with Progress("extract", 7, "texts", stream) as progress:
            time.sleep(0.1)
            progress.add(7)
        console.quiet(before)
        assert stream.getvalue() == ""


def test_counts_that_cannot_be_had_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_LOG_SECONDS", 0.01)
    stream, asked = io.StringIO(), list[int]()

    def counted() -> Counts:
        asked.append(1)
        raise ConnectionError("nobody there")

    with Progress("extract", 7, "texts", stream, counted=counted) as progress:
        progress.add(3)
        deadline = time.monotonic() + 10
        while stream.getvalue().count("\n") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "3 of 7" in stream.getvalue()
    assert len(asked) == 1


def test_a_stage_that_ends_at_once_shows_nothing() -> None:
    stream = io.StringIO()
    began = time.monotonic()
    with Progress("prepare", 3, "shards", stream) as progress:
        progress.add(3)
    assert stream.getvalue() == ""
    assert time.monotonic() - began < console._LOG_SECONDS / 2


def test_a_log_does_not_fall_silent_while_nothing_finishes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_LOG_SECONDS", 0.01)
    stream = io.StringIO()
    with Progress("extract", 7, "texts", stream):
        deadline = time.monotonic() + 10
        while stream.getvalue().count("\n") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    lines = stream.getvalue().splitlines()
    assert len(lines) >= 2
    assert set(lines) == {"  extract: 0 of 7 texts"}
    time.sleep(0.05)
    assert stream.getvalue().splitlines() == lines


def test_a_terminal_gets_a_bar_that_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    with Progress("extract", 4, "texts", stream) as progress:
        progress.add(4, 1000)
        progress._bar.refresh()  # type: ignore[union-attr]
    shown = stream.getvalue()
    for words in ("extract", "4 of 4 texts", "tokens/s"):
        assert words in shown
    assert "\n" not in shown
    assert shown.rsplit("\r", 2)[1].strip() == ""


def test_a_temporary_folder_that_is_too_long_for_sockets_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with (
        pytest.raises(ConfigError, match=rf"{tmp_path}.*TMPDIR") as caught,
        sockets_in(),
        socket.socket(socket.AF_UNIX) as made,
    ):
        made.bind(str(tmp_path / ("x" * 120)))
    assert explain(caught.value)[1] == USAGE
    with pytest.raises(OSError, match="other"), sockets_in():
        raise OSError("other")
