"""`layerrank`, and the same as `python -m layerrank`: our packages, whatever else has their names.

Python, and Ray for a submitted job, may look in the user's folder first, where a `storage.py` or a
`jobs/` is not ours. What was imported once is not looked for again.
"""

import sys
from pathlib import Path


def main() -> int:
    """Import our three packages from beside this file, then run one command."""
    folder = str(Path(__file__).resolve().parent)
    sys.path.insert(0, folder)
    try:
        import jobs  # noqa: F401, PLC0415
        import operators  # noqa: F401, PLC0415
        import storage  # noqa: F401, PLC0415
    finally:
        sys.path.remove(folder)
    from jobs.cli import main as run  # noqa: PLC0415

    return run()


if __name__ == "__main__":
    sys.exit(main())
