"""Ray itself: started on this machine or joined elsewhere, looked after, and left.

Beside `on_ray` the only module that imports ray.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ray
import ray.data
from ray._private import ray_constants, services, worker
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.autoscaler.sdk import request_resources
from ray.data.context import ShuffleStrategy
from ray.job_config import JobConfig

from layerrank.jobs.cluster.left import at_work_in, children, descendants, end_all
from layerrank.jobs.cluster.pool import HOME, CannotScheduleError, sockets_in
from layerrank.jobs.cluster.watch import EngineError
from layerrank.jobs.config.blocks import ConfigError

_OBJECT_STORE_BYTES = 512 << 20  # texts, token ids and receipts; tensors never enter it
_POLL_SECONDS = 5.0
# How often Ray waits 40 s for a cluster that it joins, by itself 20 times; and how many seconds for
# one that it starts.
_TRIES = "RAY_gcs_server_port_wait_time_s"
_JOIN_SECONDS = 55.0  # until a cluster that does not answer is not there
_START_SECONDS = 120.0  # until one of this machine has started, which a busy one takes long for
_LOOK_SECONDS = 0.5
_STOP_SECONDS = 8.0
SOON_SECONDS = 2.0  # until Ray has done what it is asked as it ends
_TOKEN = secrets.token_hex(32)  # of clusters of this machine
_RAYS = str(Path(ray.__file__).parent)  # where its programs lie
_VITAL = ("gcs_server", "raylet")  # of the processes of a cluster of this machine


@dataclass
class Session:
    """A Ray that starts when it is wanted, here or at `address`."""

    address: str | None
    wait_seconds: float
    verbose: bool
    say: Callable[[str], None]
    preload: Sequence[str] = ()  # modules that the driver needs, sooner or later
    _started: bool = False
    _aside: _Aside | None = None  # what starts Ray and stops it, once there is work
    _folder: str = ""  # of Ray's files on this machine, if it starts here
    _told_ray: list[str] = field(default_factory=list)  # the variables that were set for it

    def start(self) -> None:
        """Start a local cluster or join the one at `address`; nothing if that was done before."""
        if self._started:
            return
        # The folder that a job was started in may be made anew while it joins, as by a second node
        # of this machine: what comes from there is imported before.
        for name in self.preload:
            import_module(name)
        options = self._prepared()
        if self.address is None:
            self._prepare_here()
            start: Callable[[], Any] = partial(_start_here, self._folder, **options)
            seconds = _START_SECONDS
        else:
            if "RAY_JOB_ID" not in os.environ and "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
                # Workers need no installed wheel.
                options["runtime_env"] = {"py_modules": [str(HOME / "layerrank")]}
            self._tell_ray(**{_TRIES: "1"})
            self.say(f"  joining the Ray cluster at {self.address}")
            start, seconds = partial(ray.init, address=self.address, **options), _JOIN_SECONDS
        if not self.verbose:
            worker.print_to_stdstream = lambda *_, **__: None  # what Ray tells of its workers
        if not ray.is_initialized():
            # What it keeps of the variables of a cluster before, its mode first: else a thread that
            # is left of that one may want a token that is not there.
            Config.initialize("")
            AuthenticationTokenLoader.instance().reset_cache()
        self._aside = _Aside()
        variable = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
        try:
            with (
                _end_told(self.verbose, self._folder or self.address or ""),
                _stderr_held_back(self.verbose, self._folder),
                sockets_in(variable),
            ):
                self._aside.do(start, seconds, partial(_require_started, {*children()}))
        except ConfigError:
            self.end()
            raise
        except Exception as error:
            folder = self._folder
            self.end(keeps=True)
            why = str(error) or f"no answer in {seconds:.0f} s"
            if self.address is not None:
                at = f"the Ray cluster at {self.address}"
                raise ConfigError(f"cannot reach {at}: {why}") from error
            raise EngineError(
                f"Ray did not start on this machine: {why}; its logs stay in {folder}; "
                "`--engine process` does without Ray"
            ) from error
        self._started = True
        self.awaited(gpu=False)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = self.verbose
        context.print_on_execution_start = self.verbose
        # The hash shuffles start a pool of aggregators: 8 s more for a small corpus (2 cores).
        context.shuffle_strategy = ShuffleStrategy.SORT_SHUFFLE_PULL_BASED

    def awaited(self, *, gpu: bool) -> dict[str, float]:
        """Wait until the cluster has a CPU, and a `gpu` if one is wanted.

        An autoscaling cluster shows only its head at first: what is missing is asked for and
        awaited for `cluster.wait_seconds`, saying so every few seconds, then asked for no longer.
        """
        needed = {"CPU": 1, **({"GPU": 1} if gpu else {})}
        deadline = time.monotonic() + (self.wait_seconds if self.address else 0)
        asked = False
        try:
            while True:
                total: dict[str, float] = ray.cluster_resources()
                lacking = [name for name, count in needed.items() if total.get(name, 0) < count]
                if "CPU" in lacking and time.monotonic() >= deadline:
                    raise CannotScheduleError("the cluster has no CPU to run a task on")
                if not lacking or time.monotonic() >= deadline:
                    return total
                if not asked:
                    request_resources(bundles=[needed])
                    asked = True
                left = deadline - time.monotonic()
                self.say(f"waiting for a {lacking[-1]} to join the cluster ({left:.0f} s left)")
                time.sleep(_POLL_SECONDS)
        finally:
            if asked:
                request_resources(bundles=[])

    def require_there(self) -> None:
        """EngineError if a process has ended that a cluster of this machine cannot be without."""
        node = worker._global_node
        if self._folder and node is not None:
            for name, process in node.dead_processes():
                if name in _VITAL:
                    raise EngineError(
                        f"Ray's {name}, process {process.pid} of this machine, has ended (exit "
                        f"code {process.returncode}; -9 is a kill, as for want of memory); its "
                        f"logs stay in {self._folder}; the same command goes on from here"
                    )

    def ask(self, work: Callable[[], object], seconds: float) -> None:
        """Do one thing that Ray may not answer, if it is there; TimeoutError if it does not."""
        if self._aside:
            self._aside.do(work, seconds)

    def end(self, last: Callable[[], object] = lambda: None, *, keeps: bool = False) -> None:
        """Stop what was started, or leave the cluster that was joined, after a `last` thing there.

        Of a cluster of this machine it `keeps` the logs, and says where.
        """
        if self._aside is None:
            return
        aside, self._aside = self._aside, None
        if self._folder and not self._started:
            end_all(partial(_of_cluster, self._folder))  # which ends the start
        patience = _STOP_SECONDS if self._started else SOON_SECONDS if self._folder else 0.0
        for work in (last, ray.shutdown) if self._started and not self._folder else (ray.shutdown,):
            with suppress(Exception):  # it does not answer, or is gone: then it is ended
                aside.do(work, patience)
        aside.end()
        worker.print_to_stdstream = _printed
        while self._told_ray:  # another cluster, or one that starts, is told something else
            os.environ.pop(self._told_ray.pop(), None)
        self._started = False
        if folder := self._folder:
            end_all(partial(_of_cluster, folder))
            if keeps or self.verbose:
                self.say(f"  Ray's logs stay in {folder}")
            else:
                shutil.rmtree(folder, ignore_errors=True)
        self._folder = ""

    def _tell_ray(self, **variables: str) -> None:
        """Set variables for Ray and its workers until it is left, unless the user has set them."""
        for name in variables.keys() - os.environ.keys():
            os.environ[name] = variables[name]
            self._told_ray.append(name)

    def _prepared(self) -> dict[str, Any]:
        """Tell Ray how it is to behave by variables, and return the options that it starts with."""
        self._tell_ray(
            RAY_USAGE_STATS_ENABLED="0",
            # A worker does the user's work: it is no less urgent than what else runs here.
            RAY_worker_niceness="0",
            # One that has imported what the stages need is kept for the next stage.
            RAY_idle_worker_killing_time_threshold_ms="600000",
            # Workers inherit this. glibc otherwise keeps a heap per thread, and an actor that
            # writes one shard while it computes the next grows with the corpus (1.5 GiB instead of
            # 1.1 at 40,000).
            MALLOC_ARENA_MAX="1",
            RAY_DATA_DISABLE_PROGRESS_BARS="0" if self.verbose else "1",
        )
        if self.verbose:
            logging.basicConfig(level=logging.INFO, stream=sys.stderr)
        else:
            self._tell_ray(RAY_BACKEND_LOG_LEVEL="fatal")
            logging.getLogger("ray").setLevel(logging.CRITICAL)
            # Errors reach the user through the exception, as one line.
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        # Its native code has a handler for SIGTERM too, which aborts; this process has its own.
        ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
        return {
            "logging_level": logging.INFO if self.verbose else logging.CRITICAL,
            "log_to_driver": self.verbose,
            "job_config": JobConfig(_py_driver_sys_path=_WorkerPath([str(HOME)])),
        }

    def _prepare_here(self) -> None:
        """Make the folder of a cluster of this machine, and let nobody else in.

        The name is short: a path of a socket has 107 bytes at most.
        """
        within = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
        within.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.mkdtemp(prefix="lr-", dir=within)
        # By itself Ray gives up after 30 s; a busy machine takes longer.
        self._tell_ray(**{_TRIES: f"{_START_SECONDS:.0f}", "RAY_AUTH_MODE": "token"})
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            self._tell_ray(RAY_AUTH_TOKEN=_TOKEN)


class _Aside:
    """A thread that starts Ray and stops it: whoever waits for it may be told to end meanwhile.

    What it starts ends with the thread that has started it, and so the thread lives as long.
    """

    def __init__(self) -> None:
        self._asked = SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]()
        threading.Thread(target=self._serve, daemon=True).start()

    def do(
        self, work: Callable[[], Any], seconds: float, look: Callable[[], None] = lambda: None
    ) -> None:
        """Do one thing after what was asked before; TimeoutError if it takes longer.

        Meanwhile `look` may raise what makes it useless to wait.
        """
        done = Future[Any]()
        self._asked.put((done, work))
        until = time.monotonic() + seconds
        while not done.done() and (left := until - time.monotonic()) > 0:
            look()
            wait([done], min(left, _LOOK_SECONDS))
        done.result(0)

    def end(self) -> None:
        """End the thread when it has done what it does."""
        self._asked.put(None)

    def _serve(self) -> None:
        while asked := self._asked.get():
            done, work = asked
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001  (raised again by who waits)
                done.set_exception(error)


def _start_here(folder: str, **options: Any) -> None:  # noqa: ANN401  (those of ray.init)
    """Start Ray on this machine, for this process and its user alone.

    Its files lie in a folder of ours, since Ray lets everybody into its own; it listens on the
    loopback, and takes requests with a token that nobody else knows.
    """
    replaced = {"resolve_ip_for_localhost": str, "get_node": _node_when_there}
    before = {name: getattr(services, name) for name in replaced}
    for name, function in replaced.items():
        setattr(services, name, function)
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=str(Path(folder, "r")),
            _node_ip_address="127.0.0.1",
            **options,
        )
    finally:
        for name, function in before.items():
            setattr(services, name, function)


def _require_started(before: set[int]) -> None:
    """ChildProcessError if a process of a cluster that starts here has ended: it waits for it.

    Those of one `before` may end meanwhile too.
    """
    for process, (name, has_ended) in children().items():
        if has_ended and name in _VITAL and process not in before:
            raise ChildProcessError(f"its {name}, process {process}, has ended")


_printed = worker.print_to_stdstream
_get_node: Callable[..., Any] = services.get_node


def _node_when_there(*named: Any) -> Any:  # noqa: ANN401  (those of Ray's function)
    """Return what Ray knows of a node, as soon as it does."""
    until = time.monotonic() + _START_SECONDS
    while True:
        try:
            return _get_node(*named)
        except RuntimeError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.2)


def _of_cluster(folder: str) -> set[int]:
    """Return the processes of the cluster of this machine whose files lie in a folder."""
    found = at_work_in(folder, _RAYS)
    return found | descendants(*found)


class _WorkerPath(list[str]):
    """What Ray puts first on a worker's path: the folder of our packages, and nothing else.

    Ray extends it with the folder that the command was started in, the last the first to be
    searched, and whatever that folder has of the name of a module of ours would be taken for it.
    """

    def extend(self, _folders: Iterable[str]) -> None:
        """Add nothing."""


@contextmanager
def _end_told(verbose: bool, where: str) -> Iterator[None]:
    """Let a shell say so if this process ends meanwhile, which Ray's native code does by itself.

    It exits without a word when a raylet ends just as it registers there; nothing here can be done
    after that.
    """
    if verbose:  # then it says what it found
        yield
        return
    words = (
        f"layerrank: this process was ended as Ray started ({where}), by somebody or by Ray, "
        "which does so without a word if its raylet ends then, as for want of memory; the same "
        "command goes on from here"
    )
    shell = ["/bin/sh", "-c", 'read told || echo "$0" >&2', words]
    with subprocess.Popen(shell, stdin=subprocess.PIPE) as guard:
        try:
            yield
        finally:
            guard.communicate(b"told\n")


@contextmanager
def _stderr_held_back(verbose: bool, folder: str) -> Iterator[None]:
    """Put what Ray's native code says at its start with its logs, or nowhere: the error says it."""
    if verbose:
        yield
        return
    sys.stderr.flush()
    with Path(folder, "start.log").open("wb") if folder else tempfile.TemporaryFile() as held:
        real = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(real, 2)
            os.close(real)
