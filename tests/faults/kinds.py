"""Faults as data: what happens to a run under Ray, and what is damaged in a root at rest."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from layerrank.jobs.cli.parser import STAGES
from layerrank.jobs.cluster.errors import DONE, FAILED
from layerrank.jobs.cluster.left import descendants
from layerrank.jobs.config import Stage
from layerrank.storage.root import BOOKS, Root
from tests.conftest import offline_environment
from tests.faults.points import HUNG
from tests.faults.trial import NO_SPACE, STOPPED, Bench, Disturbed, Ends, Fault
from tests.support.machines.living import Told
from tests.support.machines.local_cluster import local_cluster
from tests.support.machines.proxy import Fault as WayFault
from tests.support.machines.proxy import Proxy
from tests.support.places import PROJECT

MOMENTS = len(STAGES)  # of each kind
ENDED = 600.0  # seconds within which a disturbed run under Ray has ended
# What Ray calls its processes: an actor that starts, one that has a unit, a task.
_STARTS, _AT_WORK = (
    f"ray::MapWorker(MapBatches(_Actor)).{each}" for each in ("__init__", "submit")
)
_WORKER = "ray::MapBatches"
# Seconds into a stage at which it is struck, at most: on a quiet machine it takes longer.
_INTO: dict[Stage, float] = {
    "prepare": 3,
    "extract": 4,
    "measure": 2,
    "probe": 0.5,
    "rank": 0.2,
}
_STANDS = 0.05  # seconds until a process that was stopped does
_MARK = "LAYERRANK_TRIAL"


@dataclass
class Going:
    """A run under Ray that is going on: its lines, and every process that it brought about."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.driver = subprocess.Popen(
            [sys.executable, "-m", "layerrank", *self.command],
            cwd=PROJECT,
            env={**offline_environment(), **self.environment, _MARK: self.mark}
            | {"PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.driver.stdout
        with self.driver.stdout as lines:
            for line in lines:
                self.lines.append(line.rstrip("\n"))

    def until(self, is_so: Callable[[], object], seconds: float = ENDED) -> bool:
        """Wait until something is so; whether it was before the run ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.driver.poll() is None:
            if is_so():
                return True
            time.sleep(0.05)
        return False

    def processes(self, *titles: str) -> list[int]:
        """Return the processes of this run, of some titles."""
        found, wanted = [], f"{_MARK}={self.mark}".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with suppress(OSError):
                title = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                if any(each in title for each in titles or [""]) and wanted in (
                    entry / "environ"
                ).read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def ended(self) -> Told:
        """Wait for the end, end what is left, and return how it ended."""
        try:
            code = self.driver.wait(timeout=ENDED)
        except subprocess.TimeoutExpired:
            code = HUNG
        for _ in range(20):
            if not (left := self.processes()):
                break
            for each in left:
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            time.sleep(0.1)
        self.driver.wait()
        self._reader.join()
        return Told(self.command, code, "\n".join(self.lines), "")


Strike = Callable[[Going, random.Random], int]


def signalled(number: signal.Signals, *titles: str) -> Strike:
    """Signal the driver, or a process of one of some titles as soon as there is one.

    Return which one, or 0 if the run had ended. A title says what a process is at, and that may be
    over in no time: so it is stopped, looked at once more, and let go if it is at something else.
    """

    def strike(going: Going, chance: random.Random) -> int:
        if not titles:
            if going.driver.poll() is not None:
                return 0
            os.kill(going.driver.pid, number)
            return going.driver.pid
        title = chance.choice(titles)
        while going.until(lambda: going.processes(title)):
            for process in going.processes(title):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGSTOP)
                    time.sleep(_STANDS)
                    if process in going.processes(title):
                        os.kill(process, number)
                        return process
                    os.kill(process, signal.SIGCONT)
        return 0

    return strike


# Kind -> what it does to a run on one node.
STRIKES: dict[str, Strike] = {
    "driver killed": signalled(signal.SIGKILL),
    "actor killed": signalled(signal.SIGKILL, _STARTS, _AT_WORK),
    "worker killed": signalled(signal.SIGKILL, _WORKER),
    "raylet killed": signalled(signal.SIGKILL, "raylet/raylet"),
    "GCS killed": signalled(signal.SIGKILL, "gcs_server"),
    "SIGTERM": signalled(signal.SIGTERM),
    "actor stopped": signalled(signal.SIGSTOP, _AT_WORK),
}
_OF_THE_DRIVER = ("driver killed", "SIGTERM")

_NO_START = "^layerrank: .*Ray did not start on this machine"
_NO_WORD = "^layerrank: this process was ended as Ray started"
_NO_SIGN = "(process {process} of .*|no worker has taken up .*): no sign of life"
_IN_A_LINE = Ends((FAILED,), "^layerrank: ", survives=True)
# Kind -> how such a run may end.
ENDS: dict[str, Ends] = {
    "driver killed": Ends((-signal.SIGKILL,)),
    "actor killed": Ends((FAILED,), "^layerrank: .* died", survives=True),
    "worker killed": Ends((FAILED,), "^layerrank: .* died", survives=True),
    "raylet killed": Ends(
        (FAILED,), f"^layerrank: .*raylet, process {{process}} |{_NO_START}|{_NO_WORD}"
    ),
    "GCS killed": Ends((FAILED,), f"^layerrank: .*gcs_server, process {{process}} |{_NO_START}"),
    "SIGTERM": Ends((128 + signal.SIGTERM,), STOPPED),
    "actor stopped": Ends((FAILED,), f"^layerrank: .*{_NO_SIGN}", survives=True),
    "node of two lost": _IN_A_LINE,
    "disk full": Ends((FAILED,), NO_SPACE),
    "S3 503": _IN_A_LINE,
    "S3 cut": _IN_A_LINE,
    "S3 lost": _IN_A_LINE,
}
RAY = tuple(ENDS)


def _under_ray(bench: Bench, root: str, *more: str) -> list[str]:
    return ["run", str(bench.config), "--output", root, "--engine", "ray", *more]


def _wait(going: Going, stage: Stage, chance: random.Random) -> None:
    """Wait for a stage to begin, and a while into it."""
    going.until(lambda: any(f"/5 {stage}" in line for line in going.lines))
    going.until(lambda: False, chance.uniform(0, _INTO[stage]))


def _stage(kind: str, moment: int) -> Stage:
    """Return the stage to strike: only one has actors, and the last is the driver's own work."""
    if kind.startswith("actor"):
        return "extract"
    return STAGES[moment if kind in _OF_THE_DRIVER else moment % (len(STAGES) - 1)]


def _struck(bench: Bench, root: Path, *, kind: str, moment: int) -> Disturbed:
    chance = random.Random(f"{kind} {moment}")
    going = Going(_under_ray(bench, str(root)))
    _wait(going, _stage(kind, moment), chance)
    hit = STRIKES[kind](going, chance)
    return Disturbed(going.ended(), hit)


def _node_lost(bench: Bench, root: Path, *, moment: int) -> Disturbed:
    """The second of two nodes ends in the middle of a run."""
    chance = random.Random(f"node {moment}")
    folder = bench.folder / f"cluster-{moment}"
    folder.mkdir(exist_ok=True)
    with local_cluster(Path(sys.executable), offline_environment(), folder, nodes=2) as cluster:
        more = ("--address", cluster.address)
        going = Going(_under_ray(bench, str(root), *more), cluster.environment)
        _wait(going, _stage("node of two lost", moment), chance)
        is_in_time, node = going.driver.poll() is None, cluster.nodes[1].pid
        for each in (node, *descendants(node)):
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        return Disturbed(going.ended(), is_in_time)


@contextmanager
def _disk(folder: Path, size: int) -> Iterator[None]:
    """Let a folder be a disk of a size in bytes; who may mount one is root."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _disk_full(bench: Bench, root: Path, *, moment: int) -> Disturbed:
    """The output is on a disk that is too small; then it is taken to a larger one."""
    paths = (bench.folder / "reference").rglob("*")
    whole = sum(each.stat().st_blocks * 512 for each in paths if each.is_file())
    share = (moment + random.Random(f"disk {moment}").random()) / MOMENTS
    with _disk(root, int(whole * share) // 4096 * 4096 + 65536):
        told = Going(_under_ray(bench, str(root))).ended()
        shutil.copytree(root, root.with_suffix(".kept"))
    shutil.rmtree(root, ignore_errors=True)
    root.with_suffix(".kept").rename(root)
    return Disturbed(told, told.returncode != DONE)  # it is large enough, or it is named


def _s3_fails(bench: Bench, root: Path, *, fault: WayFault, way: Proxy, moment: int) -> Disturbed:
    """A share of the requests to S3 fails; then what lies there is taken to the root."""
    chance, failed = random.Random(f"{fault} {moment}"), list[str]()
    place = way.root(root.name)

    def fails(request: str) -> WayFault:
        if chance.random() >= 0.1:
            return ""
        failed.append(request)
        return fault

    way.fault = fails
    told = Going(_under_ray(bench, place.uri), way.s3.environment).ended()
    way.fault = lambda _request: ""
    for path in place.filesystem.find(place.path()):
        key = path.removeprefix(f"{place.path()}/")
        Root(str(root)).write(key, place.filesystem.cat_file(path))
    return Disturbed(told, len(failed))


_ON_S3: dict[str, WayFault] = {"S3 503": "SlowDown", "S3 cut": "cut", "S3 lost": "lost"}


def under_ray(kind: str, moments: Sequence[int], way: Proxy) -> list[Fault]:
    """Return a kind of what happens to runs under Ray, at some moments."""
    disturb: Callable[..., Disturbed]
    if kind in STRIKES:
        disturb = partial(_struck, kind=kind)
    elif kind in _ON_S3:
        disturb = partial(_s3_fails, fault=_ON_S3[kind], way=way)
    else:
        disturb = _disk_full if kind == "disk full" else _node_lost
    may_be_past = kind not in _ON_S3
    return [
        Fault(f"Ray: {kind}", str(n), partial(disturb, moment=n), ENDS[kind], may_be_past)
        for n in moments
    ]


# --- at rest -------------------------------------------------------------------------------------

Damage = Callable[[Path, Path], None]  # of a root, to an object of it


def _flip(_root: Path, path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


def _cut(_root: Path, path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(_root: Path, path: Path) -> None:
    os.truncate(path, 0)


def _lose(_root: Path, path: Path) -> None:
    path.unlink()


def _swap(root: Path, path: Path) -> None:
    """Put another object in the place of one, the nearest of its kind."""
    folder = path.parent
    while not (others := sorted({*folder.rglob(f"*{path.suffix}")} - {path})) and folder != root:
        folder = folder.parent
    path.write_bytes(others[0].read_bytes())


def _link(root: Path, path: Path) -> None:
    """Move the folder of an object elsewhere, lead there, and lose the object."""
    elsewhere = root.with_name(f"{root.name}.elsewhere")
    shutil.rmtree(elsewhere, ignore_errors=True)
    path.parent.rename(elsewhere)
    path.parent.symlink_to(elsewhere)
    path.unlink()


def _stray(root: Path, path: Path) -> None:
    """Leave a shard that is too much in a partition which is not published."""
    path.with_name("shard-09999.parquet").write_bytes(path.read_bytes())
    where = path.parent.relative_to(root)
    (root / BOOKS / "manifests" / where.with_name(f"{where.name}.json")).unlink()


Where = Literal["table", "manifest", "index"]
# Kind -> which objects, and what is done to them.
AT_REST: dict[str, tuple[Where, Damage]] = {
    "a bit of a shard turned": ("table", _flip),
    "a shard cut": ("table", _cut),
    "a shard emptied": ("table", _empty),
    "a shard lost": ("table", _lose),
    "another shard in its place": ("table", _swap),
    "a manifest lost": ("manifest", _lose),
    "a manifest torn": ("manifest", _cut),
    "a bit of a manifest turned": ("manifest", _flip),
    "another manifest in its place": ("manifest", _swap),
    "an index lost": ("index", _lose),
    "an index torn": ("index", _cut),
    "a stray file": ("table", _stray),
    "a folder behind a link": ("table", _link),
}


def _damaged(bench: Bench, root: Path, *, key: str, damage: Damage) -> Disturbed:
    shutil.copytree(bench.folder / "reference", root)
    damage(root, root / key)
    return Disturbed()


def _objects(bench: Bench, where: Where) -> list[str]:
    """Return an object of every table of a root."""
    root = bench.folder / "reference"
    folder = {
        "table": root,
        "manifest": root / BOOKS / "manifests",
        "index": root / BOOKS / "shards",
    }
    suffix = ".json" if where == "manifest" else ".parquet"
    found = {}
    for path in sorted(folder[where].rglob(f"*{suffix}"), reverse=True):
        found[path.relative_to(folder[where]).parts[0]] = str(path.relative_to(root))
    return [key for table, key in sorted(found.items()) if table not in (BOOKS, "report")]


def at_rest(bench: Bench, kind: str) -> list[Fault]:
    """Return a kind of damage to an object of every table."""
    bench.reference  # noqa: B018
    where, damage = AT_REST[kind]
    return [
        Fault(
            f"at rest: {kind}",
            key,
            partial(_damaged, key=key, damage=damage),
            may_be_refused=damage is _link,
        )
        for key in _objects(bench, where)
    ]
