"""Write the hashes that an image or a node installs by; `make lock` gives it pip's report.

`requirements.txt` is what LayerRank itself needs and is built with, at the versions of
constraints.txt, and `requirements-torch.txt` torch with what its build for CUDA brings. Each name
has the hashes of all wheels of the index that a Linux machine with Python 3.11 may take, so what
was changed there since is refused, and nothing is built from its source:
`pip install --require-hashes --only-binary :all: -r … -r …`.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

PROJECT = Path(__file__).resolve().parent.parent
INDEX = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
FORM = "application/vnd.pypi.simple.v1+json"
HEAD = "# Made by `make lock`; deploy/lock.py says what it is.\n"
MACHINES = ("any", "x86_64", "aarch64")
PYTHONS = {"cp311", "py311", "py3"}


def main(report: Path) -> None:
    """Write both files from what pip would install."""
    pinned = {
        canonicalize_name(line.partition("==")[0])
        for line in (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    }
    found = {
        canonicalize_name(each["metadata"]["name"]): Version(each["metadata"]["version"])
        for each in json.loads(report.read_text(encoding="utf-8"))["install"]
    }
    del found[canonicalize_name("layerrank")]
    ours = {canonicalize_name("setuptools"), *pinned} & found.keys()
    for file, names in (("requirements", ours), ("requirements-torch", found.keys() - ours)):
        lines = [line for name in sorted(names) for line in _lines(name, found[name])]
        (PROJECT / "deploy" / f"{file}.txt").write_text(HEAD + "".join(lines), encoding="utf-8")


def _lines(name: str, version: Version) -> Iterator[str]:
    """Yield a requirement and the hash of each file that may meet it."""
    request = urllib.request.Request(f"{INDEX}/{name}/", headers={"Accept": FORM})
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]
    hashes = sorted(each["hashes"]["sha256"] for each in files if _fits(each["filename"], version))
    if not hashes:
        raise SystemExit(f"the index has no wheel of {name} {version} for Linux and Python 3.11")
    yield f"{name}=={version}"
    yield from (f" \\\n    --hash=sha256:{each}" for each in hashes)
    yield "\n"


def _fits(file: str, version: Version) -> bool:
    """Whether a file is a wheel of a version for Linux and this Python."""
    try:
        _, at, _, tags = parse_wheel_filename(file)
    except InvalidWheelFilename:  # a source, or of long ago
        return False
    return at == version and any(
        tag.platform.endswith(MACHINES)
        and not tag.platform.startswith(("macosx", "musllinux"))
        and (tag.interpreter in PYTHONS or tag.abi == "abi3")
        for tag in tags
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
