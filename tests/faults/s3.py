"""Storage alone behind a way to S3 that fails: an operation is right or an error, never wrong."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from botocore.exceptions import BotoCoreError

from layerrank.storage import schema
from layerrank.storage.layers import embeddings_table
from layerrank.storage.lock import LeaseLostError, Lock, held
from layerrank.storage.manifest import Manifest, Manifests, digest_of, load
from layerrank.storage.partition import Partition, shard_name
from layerrank.storage.root import Root
from layerrank.storage.shards import DamagedError, Receipt, Shard, write_shard
from tests.faults.trial import Result, Verdict
from tests.support.machines.proxy import Fault, Proxy

KINDS: tuple[Fault, ...] = tuple(
    each for each in get_args(Fault) if each not in ("", "AccessDenied", "drop")
)
RATE = 0.1  # of requests that fail
ROWS, WIDTH, LAYERS = 16, 8, 2
SETTINGS = {"a": 1}
_FAILED = object()  # what an operation returns that ended in an error


@dataclass
class Operations:
    """Operations through a proxy, each looked at afterwards on the server itself."""

    broken: Root
    clean: Root
    kind: Fault
    counts: Counter[Verdict] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def _try(self, name: str, act: Callable[[], Any], is_right: Callable[[Any], object]) -> Any:  # noqa: ANN401
        try:
            found = act()
        except (OSError, BotoCoreError, DamagedError):
            self.counts["error"] += 1
            return _FAILED
        if is_right(found):
            self.counts["right"] += 1
        else:
            self.counts["WRONG"] += 1
            self.wrong.append(f"{name}: {str(found)[:200]}")
        return found

    def results(self, seconds: float) -> list[Result]:
        """Return how many ended how."""
        kind, each, said = f"S3: {self.kind}", seconds / self.counts.total(), "; ".join(self.wrong)
        return [
            Result(kind, "operations", verdict, each * count, said, count)
            for verdict, count in self.counts.items()
        ]

    def round(self, number: int) -> None:
        """Do every operation of a root on objects of their own."""
        broken, clean, body = self.broken, self.clean, random.Random(number).randbytes(3000)
        key, new = f"o/{number}", f"c/{number}"
        written = self._try(
            "write", partial(broken.write, key, body), lambda _: clean.read(key) == body
        )
        # Without TLS nothing vouches for a listing.
        if written is not _FAILED and self.kind != "flip":
            self._try("sizes", lambda: broken.sizes("o"), lambda v: v.get(str(number)) == len(body))
            self._try("listing", lambda: broken.listing("o"), lambda v: str(number) in v)
            self._try("folders", lambda: broken.folders(""), lambda v: v == clean.folders(""))
        if written is not _FAILED:
            self._try("exists", lambda: broken.exists(key), lambda v: v)
        self._try("exists of none", lambda: broken.exists(f"{key}-not"), lambda v: not v)
        self._try("create", lambda: broken.create(new, body), lambda _: clean.read(new) == body)
        self._shards(number)
        self._try("delete", partial(broken.delete, key), lambda _: not clean.exists(key))

    def _shards(self, number: int) -> None:
        broken, clean = self.broken, self.clean
        where = Partition("embeddings", ("m", "r", f"d{number}", "clean"))
        ids = np.arange(ROWS)
        vectors = np.random.default_rng(number).standard_normal((LAYERS, ROWS, WIDTH), np.float32)

        def groups() -> Iterator[pa.Table]:
            for layer in range(LAYERS):
                yield embeddings_table(
                    (layer, "final", "mean"), ids, np.full(ROWS, 5, np.int32), vectors[layer]
                )

        blank = Receipt(shard_name(0), 0, digest_of(SETTINGS), "")
        key = where.shard(blank.name)
        receipt = self._try(
            "write_shard",
            lambda: write_shard(broken, key, [*groups()], schema.embeddings(WIDTH), blank),
            lambda made: not Shard(clean, where, made).verify(),
        )
        self._try("load of none", lambda: load(broken, where), lambda found: found is None)
        if receipt is _FAILED:
            return
        wanted = pa.concat_tables([*groups()]).to_pylist()
        self._try(
            "read", lambda: Shard(broken, where, receipt).read(), lambda v: v.to_pylist() == wanted
        )
        self._try(
            "survey",
            lambda: Manifests(broken).survey(where, SETTINGS),
            lambda found: set(found) <= {blank.name},
        )

        def stands(_made: Manifest) -> bool:
            found = load(clean, where)
            return found is not None and found.receipts == (receipt,) and clean.exists(key)

        made = self._try(
            "publish", lambda: Manifests(broken).publish(where, SETTINGS, [receipt]), stands
        )
        if made is not _FAILED:
            self._try("load", lambda: load(broken, where), lambda v: v and v.receipts == (receipt,))


def operate(way: Proxy, kind: Fault, rounds: int) -> Operations:
    """Do rounds of operations while a share of the requests fails in one way."""
    chance = random.Random(kind)
    name = f"operations-{kind}"
    found = Operations(way.root(name), way.direct.root(name), kind)
    way.fault = lambda _request: kind if chance.random() < RATE else ""
    for number in range(rounds):
        found.round(number)
    way.fault = lambda _request: ""
    return found


def lose_the_store(way: Proxy, kind: Fault, seconds: float) -> str:
    """Hold a lock of three seconds while its store is away for some, and return what became of it.

    A thread that dies of it is what became of it.
    """
    lock, died = Lock(way.root(f"lock-{kind}-{seconds}"), "night", 3), list[str]()
    before = threading.excepthook
    threading.excepthook = lambda told: died.append(f"a thread died: {told.exc_value!r}")
    try:
        with held(lock):
            way.fault = lambda _request: kind
            time.sleep(seconds)
            way.fault = lambda _request: ""
            time.sleep(2)
            lock.check()
    except LeaseLostError:
        Lock(lock.root, "night", 3).acquire()  # is free again
        return "; ".join([*died, "lost"])
    finally:
        way.fault = lambda _request: ""
        threading.excepthook = before
    return "; ".join([*died, "held"])
