"""Where the project, its golden values, and what may lie beside it are."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
GOLDEN = PROJECT / "tests" / "golden"
SHARED = PROJECT.parent / "shared"  # real texts and published scores; only where they were laid
