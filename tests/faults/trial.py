"""One loop and one comparison: a command is disturbed, given again, and every table is compared."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple

from layerrank.jobs.cluster.errors import DONE, FAILED, REGRESSED, USAGE
from layerrank.jobs.config import Stage
from layerrank.jobs.run import TABLES
from layerrank.storage.partition import KEYS
from layerrank.storage.root import BOOKS
from tests.conftest import edited, offline_environment, write_config
from tests.faults.points import HUNG, LIMIT, How
from tests.support.machines.living import Living, Told
from tests.support.places import PROJECT
from tests.support.tiny import save_tiny

AT_ONCE = len(os.sched_getaffinity(0))  # trials

# equal: the same command went on, and every table is the undisturbed run's. survived: the disturbed
# run itself ended well, with the same tables. named: refused in one line that says what is wrong.
# missed: the moment was past, and nothing was struck. Operations on storage are right or an error.
Verdict = Literal[
    "equal", "survived", "named", "missed", "right", "error", "WRONG", "STUCK", "HUNG"
]
GOOD: tuple[Verdict, ...] = ("equal", "survived", "named", "missed", "right", "error")
# Measured anew, or a page that says what was: only that there is one can be compared.
_MEASURED = (f"{BOOKS}/shards/", f"{BOOKS}/reports/", "layer_costs/", f"{BOOKS}/manifests/layer_c")
# How names begin of what a report says that no two runs share: times, and what ran the work.
_OWN = ("latency", "model_seconds", "made")


@dataclass(frozen=True)
class Result:
    """How a trial ended, or many; `said` tells of one that did not end well."""

    kind: str
    fault: str
    verdict: Verdict
    seconds: float
    said: str = ""
    trials: int = 1


@dataclass(frozen=True)
class Bench:
    """A command, its config, and the root that it leaves if nothing disturbs it."""

    folder: Path
    command: Literal["run", "nightly"] = "run"
    _living: SimpleQueue[Living] = field(default_factory=SimpleQueue)

    @cached_property
    def config(self) -> Path:
        """The config of every stage and table, of a tiny model."""
        texts = write_config(self.folder, save_tiny(self.folder / "tiny", blocks=2))
        _write_every_table(texts) if self.command == "run" else _write_nights(texts)
        return texts

    @cached_property
    def points(self) -> dict[str, str]:
        """Point -> which process meets it, of the undisturbed run."""
        self.reference  # noqa: B018  (which is made)
        met = (self.folder / "reference.log").read_text().splitlines()
        return {point: who for who, _, point in (line.partition(" ") for line in met)}

    @cached_property
    def reference(self) -> dict[str, str]:
        """What an undisturbed run leaves."""
        told = self.run(self.folder / "reference")
        assert told.returncode in (DONE, REGRESSED), told.stdout + told.stderr
        return survey(self.folder / "reference")

    def run(self, root: Path, how: How = "nothing", at: str = "") -> Told:
        """Give the command in a process that is forked, with what is to happen at a point of it."""
        return self.tell(
            root, self.command, str(self.config), "--output", str(root), how=how, at=at
        )

    def tell(self, root: Path, *command: str, how: How = "nothing", at: str = "") -> Told:
        """Give another command of a root; on processes of this machine, if it starts any."""
        engine = ("--engine", "process") if command[0] in ("run", "nightly") else ()
        order = [str(root), f"{root}.log", how, at, *command, *engine]
        living = self._living.get() if not self._living.empty() else _living()
        try:
            return living.tell(order, LIMIT + 60)
        finally:
            self._living.put(living)

    def end(self) -> None:
        """End the processes that fork."""
        while not self._living.empty():
            self._living.get().end()


def _living() -> Living:
    environment = {**offline_environment(), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    return Living(environment, PROJECT, "tests.faults.points")


def _write_every_table(config: Path) -> None:
    with edited(config) as values:
        (dataset,) = values["datasets"]
        dataset |= {"limit": 24, "tasks": dataset["tasks"][:2], "shard_prompts": 12}
        values["extract"] = {"max_tokens": 16, "workers": 2}
        values["views"] = {"count": 2, "sample": 8}
        values["keep"] = {"views": False}
        values["tokens"] = {"sample": 8}
        metrics = ["prompt_entropy", "rankme", "infonce", "mine:largest"]
        values["measure"] = {"metrics": metrics, "token_metrics": "both"}
        values["conditions"] = {"random": [0, 0.5]}
        values["curves"] = {"examples": [2]}
        values["rank"] = {"draws": 100}
        values["cluster"] = {"stall_seconds": 30}  # as soon an actor that stands still is told
    mine = "def largest(vectors_ND):\n    return float(vectors_ND.max())\n"
    (config.parent / "mine.py").write_text(mine)


def _write_nights(config: Path) -> None:
    """Two checkpoints, of which the later one is worse, and Delta logs."""
    models = config.parent / "models"
    save_tiny(models / "step0", blocks=2)
    save_tiny(models / "step8", blocks=2, change=_collapse)
    with edited(config) as values:
        (dataset,) = values["datasets"]
        dataset |= {"limit": 24, "tasks": dataset["tasks"][:1], "shard_prompts": 24}
        values["subjects"] = [{"model": str(models), "revisions": "step*"}]
        values["extract"] = {"max_tokens": 16, "workers": 2}
        values["views"], values["tokens"] = {"count": 0}, {"sample": 0}
        values["measure"] = {"metrics": ["effective_rank"]}
        values["nightly"] = {"score_drop": 0.01, "layer_moved": None, "lease_seconds": 5}
        values["keep"] = {"nights": 1}
        values["rank"] = {"draws": 100}
        values["delta"] = True


def _collapse(model: Any) -> None:  # noqa: ANN401
    """Give every token the same embedding: all texts of a length look alike."""
    model.embed_in.weight.copy_(model.embed_in.weight[:1].expand_as(model.embed_in.weight))


def survey(root: Path) -> dict[str, str]:
    """Return key -> a digest of what lies there, of everything under a root that two runs share."""
    found = {}
    files = [
        Path(folder, name) for folder, _, names in os.walk(root, followlinks=True) for name in names
    ]
    for path in files:
        key = str(path.relative_to(root))
        if key.startswith(f"{BOOKS}/locks/nightly-"):  # its number counts the nights
            continue
        if "/_delta_log/" in key:
            continue
        found[key] = _digest(key, path, root)
    for log in root.glob("*/_delta_log"):
        found[f"{log.relative_to(root)}"] = _logged(log.parent)
    return found


def _digest(key: str, path: Path, root: Path) -> str:
    if key.startswith(_MEASURED) or key.endswith((".html", ".md")):
        return "there"
    content = path.read_bytes()
    if key.startswith(f"{BOOKS}/manifests/"):
        values = json.loads(content)
        shards = [{k: v for k, v in each.items() if k != "facts"} for each in values["shards"]]
        kept = {k: values[k] for k in ("settings", "digest", "rows", "removed", "withdrawn")}
        content = json.dumps([kept, shards], sort_keys=True).encode()
    elif key.startswith(("report/", "alerts/")):
        told = content.decode().replace(str(root), "")
        content = json.dumps(json.loads(told, object_pairs_hook=_shared)).encode()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _shared(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in pairs if not name.startswith(_OWN)}


def _logged(table: Path) -> str:
    """Return the files that a Delta log names."""
    from deltalake import DeltaTable

    named = sorted(each.removeprefix(str(table)) for each in DeltaTable(str(table)).file_uris())
    return hashlib.blake2b(json.dumps(named).encode(), digest_size=8).hexdigest()


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Say what is missing, too much or another in a root."""
    lacks = [f"{key} is missing" for key in expected.keys() - found.keys()]
    more = [f"{key} is left over" for key in found.keys() - expected.keys()]
    other = [f"{k} differs" for k in expected.keys() & found.keys() if expected[k] != found[k]]
    return sorted([*lacks, *more, *other])


class Disturbed(NamedTuple):
    """What became of a command: how it ended, if one ran, and whether anything struck it."""

    told: Told | None = None
    hit: int = True  # the process that was struck, where it was one


Disturb = Callable[[Bench, Path], Disturbed]


class Ends(NamedTuple):
    """How a command that was struck may end."""

    codes: tuple[int, ...] = ()  # if it does not survive
    words: str = ""  # a pattern of what it then says; `{process}` is the one that was struck
    survives: bool = False


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong: of which kind, where, what does it, and how the run may end."""

    kind: str
    name: str
    disturb: Disturb
    ends: Ends = field(default_factory=Ends)
    may_be_past: bool = False  # the moment, where it depends on how fast the machine is
    may_be_refused: bool = False  # nothing can go on, and one line says why


def tried(bench: Bench, fault: Fault) -> Result:
    """Disturb, give the same command again, and compare."""
    began = time.monotonic()
    root = (
        bench.folder
        / "trials"
        / hashlib.blake2b(f"{fault.kind} {fault.name}".encode(), digest_size=6).hexdigest()
    )
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(exist_ok=True)
    verdict, said = _judged(bench, fault, root)
    if verdict in GOOD:
        shutil.rmtree(root)
    return Result(fault.kind, fault.name, verdict, time.monotonic() - began, said)


def _judged(bench: Bench, fault: Fault, root: Path) -> tuple[Verdict, str]:
    first, hit = fault.disturb(bench, root)
    if first is None:
        return _gone_on(bench, fault, root)
    if wrong := _unlike(fault, first, hit):
        return "HUNG" if first.returncode == HUNG else "WRONG", f"{wrong}: {_end(first)}"
    if first.returncode not in (DONE, REGRESSED):
        return _gone_on(bench, fault, root)
    if other := differences(bench.reference, survey(root)):
        return "WRONG", f"ended well: {'; '.join(other[:5])}"
    return "survived" if hit else "missed", ""


def _unlike(fault: Fault, told: Told, hit: int) -> str:
    """Say in what a run did not end as it may, if there is anything."""
    said, ends = told.stdout + told.stderr, fault.ends
    ended_well = told.returncode in (DONE, REGRESSED)
    if told.returncode == HUNG:
        return "the disturbed run did not end"
    if "Traceback" in said:
        return "a traceback"
    if not hit:
        return "" if ended_well and fault.may_be_past else "nothing was struck"
    if ended_well:
        return "" if ends.survives else "ended well, though it was struck"
    words = ends.words.format(process=hit)
    is_so = told.returncode in ends.codes and re.search(words, said, re.MULTILINE)
    return "" if is_so else f"not the exit code and the words of {ends}"


def _gone_on(bench: Bench, fault: Fault, root: Path) -> tuple[Verdict, str]:
    """Give the same command again, as soon as the lease of a dead nightly has run out."""
    deadline = time.monotonic() + 30
    again = bench.run(root)
    while "its lease runs until" in again.stderr and time.monotonic() < deadline:
        time.sleep(1)
        again = bench.run(root)
    if again.returncode == HUNG:
        return "HUNG", f"the second run did not end: {_end(again)}"
    if again.returncode not in (DONE, REGRESSED):
        is_named = fault.may_be_refused and again.stderr.count("\n") == 1
        return ("named", again.stderr) if is_named else ("STUCK", _end(again))
    wrong = "; ".join(differences(bench.reference, survey(root))[:5])
    status = bench.tell(root, "status", str(root), "--verify")
    if wrong or status.returncode != DONE:
        return "WRONG", wrong or _end(status)
    return "equal", ""


def _end(told: Told) -> str:
    return "\n".join([str(told.returncode), *(told.stdout + told.stderr).splitlines()[-6:]])


def stage_of(point: str) -> Stage:
    """Return the stage in which an object is written: that of its table, if it is of one."""
    _, _, key = point.partition(" ")
    for table in KEYS:
        if key.startswith((f"{table}/", f"{BOOKS}/manifests/{table}/", f"{BOOKS}/shards/{table}/")):
            return TABLES[table].stage
    return "rank" if key.startswith(("report", "trend", "alerts", f"{BOOKS}/report")) else "prepare"


STOPPED = "^layerrank: stopped; the same command goes on"
NO_SPACE = "^layerrank: .*No space left on device"
_ENDS: dict[How, Ends] = {
    "die": Ends((-signal.SIGKILL,)),
    "die alone": Ends(survives=True),
    "disk full": Ends((FAILED, USAGE), NO_SPACE),  # USAGE: before anything is done
    "Ctrl-C": Ends((128 + signal.SIGINT,), STOPPED),
    "SIGTERM": Ends((128 + signal.SIGTERM,), STOPPED),
}


def _broken(bench: Bench, root: Path, *, how: How, at: str) -> Disturbed:
    """Break a run at a point, if it meets it."""
    told = bench.run(root, how, at)
    return Disturbed(told, root.with_suffix(".fired").exists())


def crashes(bench: Bench, how: How, stages: Iterable[Stage]) -> list[Fault]:
    """Return what happens at every point of some stages, or of their workers.

    A disk that is full from a point on was so at what is written there: it refuses no delete.
    """
    wanted, ends = set(stages), _ENDS[how]
    return [
        Fault(f"{bench.command}: {how}", point, partial(_broken, how=how, at=point), ends)
        for point, who in bench.points.items()
        if stage_of(point) in wanted
        and (how != "die alone" or who == "worker")
        and (how != "disk full" or not point.startswith("delete "))
    ]


def all_tried(bench: Bench, faults: Sequence[Fault], at_once: int = AT_ONCE) -> list[Result]:
    """Try faults, some at once."""
    bench.reference  # noqa: B018
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(partial(tried, bench), faults))
