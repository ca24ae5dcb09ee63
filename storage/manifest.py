"""What a partition should hold, what it holds, and the moment it becomes visible.

What exists is the state: `missing = expected - listed`. A partition counts for readers only once
its `manifest.json` stands, which is written last and names every shard with its rows and checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from storage.partition import MANIFEST, Partition
from storage.root import Root
from storage.shards import Receipt, read_receipt

FORMAT = 1
_FOOTER_READERS = 16
Settings = Mapping[str, Any]


class SettingsConflictError(ValueError):
    """A partition exists that was made with other settings."""


def digest_of(settings: Settings) -> str:
    """Return the digest that names `settings`: blake2b-128 of their canonical JSON."""
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """The content of a complete partition: its settings and the receipt of every shard."""

    partition: Partition
    settings: Settings
    receipts: tuple[Receipt, ...]
    made: str = ""  # what ran the work, in words

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

    def objects(self) -> list[str]:
        """Return the keys of the shards, in shard order."""
        return [self.partition.shard(receipt.name) for receipt in self.receipts]

    def filled(self) -> list[str]:
        """Return the keys of the shards that hold rows, in shard order."""
        return [self.partition.shard(each.name) for each in self.receipts if each.rows]

    def facts(self) -> Counter[str]:
        """Return the numeric facts of the receipts, summed over shards."""
        total: Counter[str] = Counter()
        for receipt in self.receipts:
            total.update({k: v for k, v in receipt.facts.items() if isinstance(v, (int, float))})
        return total


def missing(expected: Sequence[str], done: Iterable[str]) -> list[str]:
    """Return what is expected and not done, in the expected order."""
    finished = set(done)
    return [name for name in expected if name not in finished]


def load(root: Root, partition: Partition) -> Manifest | None:
    """Return the manifest of a partition; None if the partition is not complete."""
    try:
        values = json.loads(root.read(partition.shard(MANIFEST)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    receipts = tuple(Receipt(**receipt) for receipt in values["shards"])
    return Manifest(partition, values["settings"], receipts, values.get("made", ""))


def require(root: Root, partition: Partition) -> Manifest:
    """Return the manifest of a partition; FileNotFoundError that names it if it is not complete."""
    return Manifests(root).require(partition)


class Manifests:
    """The manifests of a root as one run sees them: each is read once, changes are its own."""

    def __init__(self, root: Root, known: dict[Partition, Manifest | None] | None = None) -> None:
        self.root = root
        self._known = {} if known is None else known

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

    def survey(
        self, partition: Partition, settings: Settings, *, overwrite: bool = False
    ) -> dict[str, Receipt]:
        """Return the receipts of the shards that exist and were made with `settings`.

        Shards made with other settings raise SettingsConflictError naming both digests and the
        first setting that differs; with `overwrite` they count as not existing and the partition is
        withdrawn before anything in it is replaced.
        """
        manifest = self.load(partition)
        digest = digest_of(settings)
        if manifest is not None:
            if manifest.digest == digest:
                return {receipt.name: receipt for receipt in manifest.receipts}
            if not overwrite:
                known = manifest.digest, manifest.settings
                raise _conflict(self.root, partition, settings, *known)
            self.withdraw(partition)
        listed = {
            name: size
            for name, size in self.root.sizes(partition.path).items()
            if name.endswith(".parquet")
        }
        with ThreadPoolExecutor(_FOOTER_READERS) as pool:
            keys = map(partition.shard, listed)
            read = pool.map(partial(read_receipt, self.root), keys, listed.values())
            found = dict(zip(listed, read, strict=True))
        other = [receipt for receipt in found.values() if receipt.digest != digest]
        if other and not overwrite:
            raise _conflict(self.root, partition, settings, other[0].digest, None)
        return {name: receipt for name, receipt in found.items() if receipt.digest == digest}

    def current(
        self, partition: Partition, settings: Settings, *, overwrite: bool = False
    ) -> Manifest | None:
        """Return the manifest of a partition made with `settings`; None if it has yet to be made.

        Shards made with other settings are treated as by `survey`.
        """
        self.survey(partition, settings, overwrite=overwrite)
        return self.load(partition)

    def publish(
        self,
        partition: Partition,
        settings: Settings,
        receipts: Iterable[Receipt],
        *,
        made: str = "",
    ) -> Manifest:
        """Make a partition visible: remove what does not belong to it, then write its manifest."""
        ordered = tuple(sorted(receipts, key=lambda receipt: receipt.name))
        digest = digest_of(settings)
        strangers = [receipt.name for receipt in ordered if receipt.digest != digest]
        assert not strangers, (
            f"{partition}: {strangers} were made with other settings than {digest}"
        )
        kept = [*(receipt.name for receipt in ordered), MANIFEST]
        for name in missing(list(self.root.sizes(partition.path)), kept):
            self.root.delete(partition.shard(name))
        manifest = Manifest(partition, settings, ordered, made)
        content = {
            "format": FORMAT,
            "table": partition.table,
            "partition": partition.keys,
            "digest": digest,
            "rows": manifest.rows,
            "made": made,
            "settings": dict(settings),
            "shards": [asdict(receipt) for receipt in ordered],
        }
        self.root.write(partition.shard(MANIFEST), json.dumps(content, indent=1).encode())
        self._known[partition] = manifest
        return manifest

    def withdraw(self, partition: Partition) -> None:
        """Make a partition invisible; its shards stay."""
        self.root.delete(partition.shard(MANIFEST))
        self._known[partition] = None


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
