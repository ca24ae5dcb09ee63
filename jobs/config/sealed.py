"""Small facts that a root keeps, as YAML that says whether it is as it was written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from xxhash import xxh3_128_hexdigest

from layerrank.storage.readers import plain_yaml

_SEAL = "seal: "  # before the checksum of what stands above it


def sealed(values: Mapping[str, Any]) -> bytes:
    """Return values as YAML, with a checksum of it in the last line."""
    body = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True).encode()
    return body + f"{_SEAL}{xxh3_128_hexdigest(body)}\n".encode()


def unsealed(content: bytes) -> dict[str, Any] | None:
    """Return what was `sealed`; None if it is not as it was written, or no mapping of names."""
    body, _, seal = content.rpartition(_SEAL.encode())
    if seal.decode(errors="replace").strip() != xxh3_128_hexdigest(body):
        return None
    try:
        found = plain_yaml.load(body, plain_yaml.MOST_KEPT)
    except (yaml.YAMLError, ValueError):  # another wrote it, and no config becomes such
        return None
    return found if isinstance(found, dict) else None
