"""What a partition should hold, what it holds, and the moment it becomes visible.

What exists is the state: `missing = expected - listed`. A partition counts for readers only once
its manifest stands, which is written last and names every shard with its rows and checksum. One
that is torn, or of another partition, counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any, Literal

from botocore.exceptions import BotoCoreError
from xxhash import xxh3_128_hexdigest

from layerrank.storage.partition import KEYS, Partition, TableName, partitions
from layerrank.storage.readers import delta
from layerrank.storage.root import BOOKS, Root
from layerrank.storage.shards import (
    DamagedError,
    Receipt,
    RemovedError,
    Shard,
    index_key,
    read_receipt,
)

FORMAT = 2
_MOST = 1 << 63  # rows, or bytes
_READERS = 16
# Of a shard's name: nothing that leads out of its folder, and nothing that is a pattern.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.parquet")
# Made of what a model's other tables say, whose contents they do not name.
_RANKED: tuple[TableName, ...] = ("choices", "correlations", "candidates", "ranking")
Settings = Mapping[str, Any]


class SettingsConflictError(ValueError):
    """A partition exists that was made with other settings."""


class FormatError(ValueError):
    """A root was written by another version, in a way that this one does not read."""


def digest_of(settings: Settings) -> str:
    """Return the digest that names `settings`: blake2b-128 of their canonical JSON."""
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """The content of a complete partition: its settings and the receipt of every shard.

    `removed` says by which rule its shards were deleted, if they were: what was made of them
    stands, and they count as made until somebody needs them again. `published` says when the
    content first stood; versions before 0.3 did not note it.
    """

    partition: Partition
    settings: Settings
    receipts: tuple[Receipt, ...]
    made: str = ""  # what ran the work, in words
    removed: str = ""
    withdrawn: Literal["", "damaged", "stale"] = ""  # why readers do not see it, if they do not
    published: str = ""  # ISO 8601, UTC

    @property
    def digest(self) -> str:
        """The digest of the settings."""
        return digest_of(self.settings)

    @property
    def rows(self) -> int:
        """Rows over all shards."""
        return sum(receipt.rows for receipt in self.receipts)

    @property
    def content(self) -> str:
        """A digest of the rows themselves, for stages whose result depends on them."""
        return digest_of({receipt.name: receipt.checksum for receipt in self.receipts})

    @property
    def held(self) -> delta.Held:
        """What a Delta log says of the partition."""
        if self.withdrawn or self.removed:
            return delta.Held()
        objects = [delta.Object(each.name, each.bytes, each.rows) for each in self.receipts]
        return delta.Held(self.content, objects)

    def objects(self) -> list[str]:
        """Return the keys of the shards that are there, in shard order."""
        receipts, path = () if self.removed else self.receipts, self.partition.path
        return [f"{path}/{receipt.name}" for receipt in receipts]

    def shards(self, root: Root) -> list[Shard]:
        """Return the shards, in order."""
        return [Shard(root, self.partition, receipt) for receipt in self.receipts]

    def only(self, root: Root) -> Shard:
        """Return the shard of a table of one object; DamagedError if there is another number."""
        if len(self.receipts) != 1:
            why = f"its manifest names {len(self.receipts)} objects, and it is one"
            raise DamagedError(self.partition, "", why)
        return self.shards(root)[0]

    def filled(self, root: Root) -> list[Shard]:
        """Return the shards that hold rows, in order; RemovedError if they were removed."""
        if self.removed:
            raise RemovedError(self.partition, "", self.removed)
        return [each for each in self.shards(root) if each.receipt.rows]

    def shard(self, root: Root, name: str) -> Shard:
        """Return the shard of a name."""
        return next(each for each in self.filled(root) if each.receipt.name == name)

    def facts(self) -> Counter[str]:
        """Return the numeric facts of the receipts, summed over shards."""
        total: Counter[str] = Counter()
        for receipt in self.receipts:
            total.update({k: v for k, v in receipt.facts.items() if isinstance(v, (int, float))})
        return total

    def encoded(self) -> bytes:
        """Return the manifest as JSON, a line a shard, sealed by a checksum of the rest."""
        about = {
            "format": FORMAT,
            "table": self.partition.table,
            "partition": self.partition.keys,
            "digest": self.digest,
            "rows": self.rows,
            "made": self.made,
            "published": self.published,
            "settings": dict(self.settings),
            "removed": self.removed,
            "withdrawn": self.withdrawn,
        }
        short = partial(json.dumps, separators=(",", ":"))
        receipts = [
            {k: v for k, v in asdict(each).items() if k != "digest"} for each in self.receipts
        ]
        head = json.dumps(about, indent=1)[:-2]
        lines = ",\n".join(f"  {short(receipt)}" for receipt in receipts)
        body = f'{head},\n "shards": [\n{lines}\n ]'
        return f'{body},\n "seal": "{xxh3_128_hexdigest(body.encode())}"\n}}\n'.encode()


def missing(expected: Sequence[str], done: Iterable[str]) -> list[str]:
    """Return what is expected and not done, in the expected order."""
    finished = set(done)
    return [name for name in expected if name not in finished]


def load(root: Root, partition: Partition) -> Manifest | None:
    """Return the manifest of a partition; None if the partition is not complete.

    FormatError if a later version wrote it.
    """
    found = as_it_lies(root, partition)
    return None if found is None or found.withdrawn else found


def as_it_lies(root: Root, partition: Partition) -> Manifest | None:
    """Return the manifest of a partition, a withdrawn one too; None if it is torn or foreign."""
    for _ in range(2):  # what came torn may have changed on its way
        try:
            content = root.read(partition.manifest)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if found := _decoded(partition, content):
            return found
    return None


def _decoded(partition: Partition, content: bytes) -> Manifest | None:
    body, _, seal = content.rpartition(b',\n "seal": ')
    if not seal.startswith(f'"{xxh3_128_hexdigest(body)}"'.encode()):
        return None
    try:
        values = json.loads(content)
        if values["format"] > FORMAT:
            raise FormatError(
                f"{partition.manifest} is of format {values['format']}, written by a later version "
                f"of LayerRank; this one reads format {FORMAT}"
            )
        digest = values["digest"]
        receipts = tuple(Receipt(**each, digest=digest) for each in values["shards"])
        states = (values[name] for name in ("made", "removed", "withdrawn"))
        found = Manifest(partition, values["settings"], receipts, *states)
        found = replace(found, published=values.get("published", ""))
        ours = (values["table"], values["partition"]) == (partition.table, partition.keys)
        named = all(_NAME.fullmatch(receipt.name) for receipt in receipts)
    except FormatError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return found if ours and named and _has_the_form(found) else None


def _has_the_form(manifest: Manifest) -> bool:
    """Whether the values of a manifest are of the kinds that it is written with."""
    texts = [manifest.made, manifest.removed, manifest.withdrawn, manifest.published]
    numbers, mappings = list[object](), [manifest.settings]
    for each in manifest.receipts:
        texts += each.name, each.checksum
        numbers += each.rows, each.bytes
        mappings.append(each.facts)
    return (
        all(isinstance(each, str) for each in texts)
        and all(type(each) is int and 0 <= each < _MOST for each in numbers)
        and all(isinstance(each, Mapping) for each in mappings)
        and manifest.withdrawn in ("", "damaged", "stale")
        and len({each.name for each in manifest.receipts}) == len(manifest.receipts)
    )


def require(root: Root, partition: Partition) -> Manifest:
    """Return the manifest of a partition; FileNotFoundError that names it if it is not complete."""
    return Manifests(root).require(partition)


def require_format(root: Root) -> None:
    """FormatError if the root holds tables that this version cannot continue.

    OSError, which names it, if nobody answers where it lies.
    """
    try:
        folders = root.folders("")
    except BotoCoreError as error:
        raise OSError(f"cannot reach {root.uri}: {error}") from error
    tables = [name for name in KEYS if name in folders]
    if tables and BOOKS not in folders:
        raise FormatError(
            f"{root.uri} holds {tables[0]}/ without {BOOKS}/: its tables are of format 1, which "
            f"version 0.1 wrote and this one does not read; choose another --output"
        )


class Manifests:
    """The manifests of a root as one run sees them: each is read once, changes are its own.

    `say` is told of what was found damaged.
    """

    def __init__(
        self,
        root: Root,
        known: dict[Partition, Manifest | None] | None = None,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.root = root
        self._known = {} if known is None else known
        self._say = say

    def load(self, partition: Partition) -> Manifest | None:
        """Return the manifest of a partition; None if the partition is not complete."""
        if partition not in self._known:
            self._known[partition] = load(self.root, partition)
        return self._known[partition]

    def require(self, partition: Partition) -> Manifest:
        """Return the manifest of a partition; FileNotFoundError naming it if it is not complete."""
        manifest = self.load(partition)
        if manifest is None:
            raise FileNotFoundError(f"there is no complete {partition} under {self.root.uri}")
        return manifest

    def stands(
        self, partition: Partition, settings: Settings, *, overwrite: bool = False
    ) -> Manifest | None:
        """Return the manifest of a partition made with `settings`; None if it is to be made.

        SettingsConflictError if it was made with others, unless it may be overwritten.
        """
        manifest = self.load(partition)
        if manifest is None or manifest.digest == digest_of(settings):
            return manifest
        if not overwrite:
            known = manifest.digest, manifest.settings
            raise _conflict(self.root, partition, settings, *known)
        return None

    def survey(
        self, partition: Partition, settings: Settings, *, overwrite: bool = False
    ) -> dict[str, Receipt]:
        """Return the receipts of the shards that exist and were made with `settings`.

        Shards made with other settings raise SettingsConflictError naming both digests and the
        first setting that differs; with `overwrite` they count as not existing and the partition is
        withdrawn before anything in it is replaced. So it is if shards are lost or damaged, as
        their listing shows: these are deleted and said, and count as not existing.
        """
        digest = digest_of(settings)
        if self.load(partition) and not self.stands(partition, settings, overwrite=overwrite):
            self._forget(partition)
        if manifest := self.load(partition):
            damaged = self.damage(manifest)
            for name, why in damaged.items():
                self.discard(DamagedError(partition, name, why))
            if "" not in damaged:
                known = (self.load(partition) or manifest).receipts
                return {each.name: each for each in known if each.name not in damaged}
        listed = self.root.sizes(partition.path)
        keys = [partition.shard(name) for name in listed]
        with ThreadPoolExecutor(_READERS) as pool:
            read = [*pool.map(partial(read_receipt, self.root), keys)]
        found = {each.name: each for each in read if each and each.bytes == listed.get(each.name)}
        other = [receipt for receipt in found.values() if receipt.digest != digest]
        if other and not overwrite and not _is_stale(self.root, partition):
            raise _conflict(self.root, partition, settings, other[0].digest, None)
        return {name: receipt for name, receipt in found.items() if receipt.digest == digest}

    def current(
        self, partition: Partition, settings: Settings, *, overwrite: bool = False
    ) -> Manifest | None:
        """Return the manifest of a partition made with `settings`; None if it has yet to be made.

        Shards made with other settings are treated as by `survey`, and so are damaged ones.
        """
        self.survey(partition, settings, overwrite=overwrite)
        return self.load(partition)

    def damage(self, manifest: Manifest, *, verify: bool = False) -> dict[str, str]:
        """Return what is wrong with which shards of a partition, as `broken` does.

        What was changed after the manifest was written is read, or everything if it is to be
        verified. Under no name stands what is wrong with the manifest. Another run of the same may
        have written the partition again: then its manifest is taken.
        """
        partition, doubted = manifest.partition, list[str]()
        try:
            written = self.root.changed(partition.manifest)
        except FileNotFoundError:
            return {"": "its manifest is gone"}

        def is_doubted(name: str, changed: float) -> bool:
            doubted.extend([name] if changed > written else [])
            return verify or changed > written

        found = broken(self.root, manifest, is_doubted)
        if found or doubted:
            now = load(self.root, partition)
            if now is not None and now != manifest:
                self._known[partition] = now
                return self.damage(now, verify=verify)
            if now and not found:
                # As after a copy: the next look need not read them again.
                self.root.write(partition.manifest, manifest.encoded())
        return found

    def look(self) -> None:
        """DamagedError if a partition that this run has seen is not as its manifest says.

        Delta logs, if there are any, are brought up to all of them: a run may have been stopped
        between a manifest and its commit.
        """
        known = [manifest for manifest in self._known.values() if manifest is not None]

        def first(manifest: Manifest) -> DamagedError | None:
            found = self.damage(manifest).items()
            return next((DamagedError(manifest.partition, *each) for each in found), None)

        with ThreadPoolExecutor(_READERS) as pool:
            for error in filter(None, pool.map(first, known)):
                raise error
        if self._logs:
            nothing = delta.Held()
            self._logs.follow(
                {where: each.held if each else nothing for where, each in self._known.items()}
            )

    def discard(self, damage: DamagedError) -> None:
        """Delete a damaged shard, after its partition is withdrawn, and say so."""
        self._say(f"  {damage}; it is made again")
        self.drop(damage)

    def drop(self, damage: DamagedError) -> None:
        """Delete a damaged shard, after its partition is withdrawn."""
        self.withdraw(damage.partition)
        if damage.name:
            self._delete(damage.partition, damage.name)

    def publish(
        self,
        partition: Partition,
        settings: Settings,
        receipts: Iterable[Receipt],
        *,
        made: str = "",
    ) -> Manifest:
        """Make a partition visible: remove what does not belong to it, then write its manifest.

        Where another content stood before, as of a damaged shard that came out differently, what
        was made of that is withdrawn first.
        """
        ordered = tuple(sorted(receipts, key=lambda receipt: receipt.name))
        digest = digest_of(settings)
        strangers = [receipt.name for receipt in ordered if receipt.digest != digest]
        assert not strangers, (
            f"{partition}: {strangers} were made with other settings than {digest}"
        )
        kept = [receipt.name for receipt in ordered]
        for name in missing([*self.root.sizes(partition.path)], kept):
            self._delete(partition, name)
        for folder in (partition.path, index_key(partition.path)):  # where workers have died
            self.root.sweep(folder)
        manifest = Manifest(partition, settings, ordered, made)
        before = as_it_lies(self.root, partition)
        is_same = before and (before.digest, before.content) == (digest, manifest.content)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = replace(manifest, published=before.published if before and is_same else now)
        if before and before.withdrawn == "damaged" and before.content != manifest.content:
            for each in derived(self.root, [before]):
                self._say(f"  {each.partition} came of what is made again: so is it")
                self.withdraw(each.partition, "stale")
        self._write(manifest)
        return manifest

    def remove(self, partition: Partition, rule: str) -> None:
        """Delete the shards of a partition by a rule of the config; its manifest stays and says so.

        Nothing happens if that was done before.
        """
        manifest = self.require(partition)
        if not manifest.removed:
            manifest = replace(manifest, removed=rule)
            self._write(manifest)  # first: what was removed so is no damage
        for name in self.root.sizes(partition.path):
            self._delete(partition, name)

    def withdraw(self, partition: Partition, why: Literal["damaged", "stale"] = "damaged") -> None:
        """Make a partition invisible; its shards stay, and what it held is known.

        One that is stale, as what it was made of has changed, may be made with other settings.
        """
        manifest = as_it_lies(self.root, partition)
        if manifest is None:
            self._forget(partition)
        else:
            self._write(replace(manifest, withdrawn=why, removed=""))
            self._known[partition] = None

    def erase(self, partition: Partition) -> None:
        """Delete a partition."""
        self.withdraw(partition)
        for name in self.root.sizes(partition.path):
            self._delete(partition, name)
        self.root.delete(partition.manifest)

    def keep_logs(self, *, asked: bool) -> None:
        """Keep a Delta log of every table from here on, if that is asked for or was before.

        LogError if they cannot be kept here.
        """
        if asked or self._logs:
            delta.require(self.root)
        if asked and not self._logs:
            logs = delta.Logs(self.root)
            logs.follow({each.partition: each.held for each in everything(self.root)})
            self.root.write(delta.MARK, b"")
            self._logs = logs

    def follow(self, manifests: Iterable[Manifest]) -> None:
        """Bring the Delta logs up to some manifests, if the root has logs."""
        if self._logs:
            self._logs.follow({each.partition: each.held for each in manifests})

    @cached_property
    def _logs(self) -> delta.Logs | None:
        return delta.Logs(self.root) if self.root.exists(delta.MARK) else None

    def _write(self, manifest: Manifest) -> None:
        self.root.write(manifest.partition.manifest, manifest.encoded())
        self._known[manifest.partition] = manifest
        self.follow([manifest])

    def _forget(self, partition: Partition) -> None:
        """Delete the manifest of a partition, whose log no longer names it by then."""
        if self._logs:
            self._logs.follow({partition: delta.Held()})
        self.root.delete(partition.manifest)
        self._known[partition] = None

    def _delete(self, partition: Partition, name: str) -> None:
        key = partition.shard(name)
        self.root.delete(index_key(key))  # first: what is listed is deleted by the next run
        self.root.delete(key)


def broken(
    root: Root, manifest: Manifest, is_doubted: Callable[[str, float], bool]
) -> dict[str, str]:
    """Return what is wrong with which shards of a partition, by listing them and their indexes.

    `is_doubted` gets a shard's name and the later time of change of both; what it doubts is read.
    """
    if manifest.removed:
        return {}
    path, doubted, found = manifest.partition.path, list[Shard](), dict[str, str]()
    listed, indexes = root.listing(path), root.listing(index_key(path))
    for shard in manifest.shards(root):
        name, expected = shard.receipt.name, shard.receipt.bytes
        size, changed = listed.get(name, (None, 0.0))
        if size is None:
            found[name] = "it is gone"
        elif size != expected:
            found[name] = f"it has {size:,} bytes instead of {expected:,}"
        elif is_doubted(name, max(changed, indexes.get(name, (0, math.inf))[1])):
            doubted.append(shard)
    with ThreadPoolExecutor(_READERS) as pool:
        for shard, why in zip(doubted, pool.map(Shard.verify, doubted), strict=True):
            found |= {shard.receipt.name: why} if why else {}
    return found


def everything(root: Root) -> Iterator[Manifest]:
    """Yield every manifest of a root, withdrawn ones too."""
    with ThreadPoolExecutor(_READERS) as pool:
        found = [
            each for of_table in pool.map(partial(partitions, root), KEYS) for each in of_table
        ]
        yield from filter(None, pool.map(partial(as_it_lies, root), found))


def derived(root: Root, changed: Iterable[Manifest]) -> list[Manifest]:
    """Return what was made of some partitions, directly or not: their settings name its content."""
    others, queue = [*everything(root)], [*changed]
    named = {each.partition: json.dumps(dict(each.settings)) for each in others}
    found, seen = list[Manifest](), {each.partition for each in queue}
    while queue:
        source = queue.pop()
        ranked = _rankings(root, source.partition)
        for each in others:
            where = each.partition
            if where not in seen and (where in ranked or source.content in named[where]):
                seen.add(where)
                queue.append(each)
                found.append(each)
    return sorted(found, key=lambda each: each.partition)


def _rankings(root: Root, where: Partition) -> list[Partition]:
    """Return what a model's ranking has left, which comes of all its other tables."""
    model = [where.keys.get(key) for key in ("model", "revision")]
    if where.table in _RANKED or None in model:
        return []
    found = [each for table in _RANKED for each in partitions(root, table)]
    return [each for each in found if [*each.values[:2]] == model]


def _is_stale(root: Root, partition: Partition) -> bool:
    found = as_it_lies(root, partition)
    return found is not None and found.withdrawn == "stale"


def _conflict(
    root: Root, partition: Partition, settings: Settings, digest: str, existing: Settings | None
) -> SettingsConflictError:
    detail = ""
    if existing is not None:
        mine, theirs = json.loads(json.dumps(dict(settings))), dict(existing)
        names = sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k))
        detail = "; ".join(f"{k}: {theirs.get(k)!r} there, {mine.get(k)!r} here" for k in names)
        detail = f" ({detail})"
    return SettingsConflictError(
        f"the {partition} under {root.uri} was made with other settings: digest {digest} there, "
        f"{digest_of(settings)} here{detail}; choose another --output, or --overwrite to replace it"
    )
