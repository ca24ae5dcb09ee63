"""Whether the report of a run is as it would be made again: then nothing is drawn.

A report depends on the tables that are looked at, on how they were made, and on the code that tells
of it. `_layerrank/reports/NAME.yaml` has a digest of the last two, the content of each of those
tables, and a checksum of every file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from xxhash import xxh3_128, xxh3_128_hexdigest

from layerrank.jobs.config.sealed import sealed, unsealed
from layerrank.jobs.run import Run
from layerrank.storage.manifest import Manifest, digest_of
from layerrank.storage.partition import Partition, one_name
from layerrank.storage.root import BOOKS

_CODE = ("layerrank.jobs", "layerrank.operators", "layerrank.storage")
_KINDS = (".py", ".j2", ".md", ".css", ".js")


def is_current(run: Run, folder: str, told: Mapping[str, Any]) -> bool:
    """Whether the files in a folder are those of a report that says of itself what is `told`."""
    try:
        found = unsealed(run.root.read(_key(run)))
        if found is None or found["of"] != _of(told):
            return False
        if any(".." in name for name in found["files"]):  # which would be read elsewhere
            return False
        tables = ((Partition(t, tuple(values)), content) for t, *values, content in found["tables"])
        if any(_content(run.manifests.load(where)) != content for where, content in tables):
            return False
        read = run.root.read
        return all(
            xxh3_128_hexdigest(read(f"{folder}/{name}")) == checksum
            for name, checksum in found["files"].items()
        )
    except (FileNotFoundError, KeyError, TypeError, ValueError, AttributeError, AssertionError):
        return False  # it is not there, or has another form


def keep(run: Run, told: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Note what the files of a report were made of: every table that the run has looked at."""
    tables = [
        [where.table, *where.values, _content(manifest)]
        for where, manifest in sorted(run.seen.manifests.items())
    ]
    checksums = {name: xxh3_128_hexdigest(content) for name, content in files.items()}
    noted = {"of": _of(told), "tables": tables, "files": checksums}
    run.root.write(_key(run), sealed(noted))


def _key(run: Run) -> str:
    return f"{BOOKS}/reports/{one_name(run.config.name)}.yaml"


def _content(manifest: Manifest | None) -> str:
    return (
        digest_of({"content": manifest.content, "made": manifest.made, "removed": manifest.removed})
        if manifest
        else ""
    )


def _of(told: Mapping[str, Any]) -> str:
    code = xxh3_128()
    for package in _CODE:
        for content in _files(resources.files(package)):
            code.update(content)
    return digest_of({"told": told, "code": code.hexdigest()})


def _files(folder: Any) -> Iterator[bytes]:  # noqa: ANN401  (a Traversable, wherever that lies)
    for each in sorted(folder.iterdir(), key=lambda entry: str(entry.name)):
        if each.is_dir():
            yield from _files(each)
        elif each.name.endswith(_KINDS):
            yield each.read_bytes()
