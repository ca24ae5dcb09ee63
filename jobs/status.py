"""What a root holds: every partition with its size, age and state, and what its runs advise."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, get_args

from layerrank.jobs.cluster.console import answer
from layerrank.jobs.cluster.errors import DONE, FAILED
from layerrank.jobs.words import ago, bytes_of, counted, defined, known, signed
from layerrank.operators.model.subject import Norm
from layerrank.storage.manifest import as_it_lies, broken, require
from layerrank.storage.partition import KEYS, Partition, all_partitions, by_step
from layerrank.storage.root import Root
from layerrank.storage.shards import DamagedError

_READERS = 16
# Of the recommended row of a ranking, what is told as it stands there.
_TOLD = ("layer", "norm", "pooling", "transform", "score", "gain", "gain_chosen", "verdict", "sure")


@dataclass(frozen=True)
class Held:
    """A partition as it lies in a root.

    `written` is when its manifest was, in seconds of the Unix epoch, None without one; `note` says
    why it is not complete or by which rule it was removed, `damage` what is wrong with which shard.
    """

    partition: Partition
    state: Literal["complete", "incomplete", "damaged", "removed"]
    shards: int
    bytes: int
    rows: int | None = None
    written: float | None = None
    note: str = ""
    damage: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_fine(self) -> bool:
        """Whether it is as its manifest says."""
        return self.state in ("complete", "removed")


def status(root: Root, *, verify: bool, as_json: bool = False) -> int:
    """Say what every partition of a root holds; DONE if all are complete and as written.

    By the listing alone or, if it is to be verified, by every byte. Nothing is changed.
    """
    found = [each for table in KEYS for each in all_partitions(root, table)]
    if not found:
        raise FileNotFoundError(f"there is no table under {root.uri}")
    # What is verified is read by as many readers itself.
    with ThreadPoolExecutor(1 if verify else _READERS) as pool:
        held = [*pool.map(partial(_held, root, verify=verify), found)]
    whole = [each.partition for each in held if each.state == "complete"]
    advice = [*_recommendations(root, whole)]
    if as_json:
        answer(json.dumps(_facts(root, held, advice), indent=1, ensure_ascii=False), raw=True)
    else:
        _tell(held, advice)
    return DONE if all(each.is_fine for each in held) else FAILED


def _held(root: Root, where: Partition, *, verify: bool) -> Held:
    written = None
    with suppress(FileNotFoundError):
        written = root.changed(where.manifest)
    manifest = as_it_lies(root, where)
    if manifest is None or manifest.withdrawn:
        there = [size for name, size in root.sizes(where.path).items() if name.endswith(".parquet")]
        torn = manifest is None and written is not None
        note = "its manifest cannot be read" if torn else "no manifest yet"
        if manifest is not None:
            note = f"{manifest.withdrawn}, to be made again"
        state: Literal["damaged", "incomplete"] = "damaged" if torn else "incomplete"
        return Held(where, state, len(there), sum(there), written=written, note=note)
    size = 0 if manifest.removed else sum(receipt.bytes for receipt in manifest.receipts)
    about = len(manifest.receipts), size, manifest.rows, written
    is_read = verify or where.table == "ranking"  # for what it recommends
    if wrong := broken(root, manifest, lambda *_: is_read):
        return Held(where, "damaged", *about, damage=wrong)
    if manifest.removed:
        return Held(where, "removed", *about, note=f"removed by {manifest.removed}")
    return Held(where, "complete", *about)


def _recommendations(root: Root, whole: Sequence[Partition]) -> Iterator[dict[str, Any]]:
    """Yield what each ranking recommends: run, model, revision, layer, vectors, verdict.

    By run and model, the newest checkpoint last.
    """

    def order(where: Partition) -> tuple[str, str, tuple[bool, int, str]]:
        return where.keys["group"], where.keys["model"], by_step(where.keys["revision"])

    def rows(where: Partition) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = require(root, where).only(root).read().to_pylist()
        return found

    wheres = sorted((each for each in whole if each.table == "ranking"), key=order)
    with ThreadPoolExecutor(_READERS) as pool:
        for where, ranking in zip(wheres, pool.map(rows, wheres), strict=True):
            for row in (each for each in ranking if each["recommended"]):
                yield {
                    "run": where.keys["group"],
                    "model": where.keys["model"],
                    "revision": where.keys["revision"],
                    **defined({name: row.get(name) for name in _TOLD}),
                    "layers": max(each["layer"] for each in ranking),
                }


def _facts(root: Root, held: list[Held], advice: list[dict[str, Any]]) -> dict[str, Any]:
    now = time.time()
    return {
        "root": root.uri,
        "bytes": sum(each.bytes for each in held),
        "complete": all(each.is_fine for each in held),
        "partitions": [
            {
                "table": each.partition.table,
                "keys": each.partition.keys,
                "state": each.state,
                "rows": each.rows,
                "shards": each.shards,
                "bytes": each.bytes,
                "written": each.written and datetime.fromtimestamp(each.written, UTC).isoformat(),
                "age_seconds": each.written and round(now - each.written, 1),
                "note": each.note,
                "damage": dict(each.damage),
            }
            for each in held
        ],
        "recommendations": advice,
    }


def _tell(held: list[Held], advice: list[dict[str, Any]]) -> None:
    now = time.time()
    for each in held:
        rows = [] if each.rows is None else [counted(each.rows, "row")]
        parts = [*rows, counted(each.shards, "shard"), bytes_of(each.bytes)]
        age = [] if each.written is None else [f"{ago(now - each.written)} old"]
        what = ", ".join([*parts, *age, *filter(None, [each.note])])
        answer(f"{each.state:<10}  {each.partition}: {what}")
        for name, why in each.damage.items():
            answer(f"            {DamagedError(each.partition, name, why)}")
    left = sum(not each.is_fine for each in held)
    state = f"{left} not complete" if left else "all complete"
    total = bytes_of(sum(each.bytes for each in held))
    answer(f"{counted(len(held), 'partition')}, {state}, {total}")
    newest = {(each["run"], each["model"]): each for each in advice}
    for one in newest.values():
        # Scores from elsewhere do not say of which vectors they are.
        vectors = f" ({one['norm']} norm, {one['pooling']}, {one['transform'] or 'raw'})"
        of = vectors if one["norm"] in get_args(Norm) else ""
        gain = one["gain_chosen"] if known(one["gain_chosen"]) else one["gain"]
        gains = f", gain {signed(gain)} points" if known(gain) else ""
        answer(
            f"{one['run']}: {one['model']} at {one['revision']}: layer {one['layer']} of "
            f"{one['layers']}{of}{gains}: {one['verdict']}"
        )
