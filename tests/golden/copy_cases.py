"""Copy a handful of reference cases per metric into this folder, so that the tests need no other.

    python -m tests.golden.copy_cases FOLDER

FOLDER holds ``golden.npz`` (inputs by name) and ``golden_index.json`` (cases). The copies keep the
same format as ``metrics.npz`` and ``metrics.json``.
"""

import json
import sys
from pathlib import Path

import numpy as np

COPIED_IDS = [
    # prompt_entropy: every alpha, T < D, T > D, a zero row, no value, exact 0, extreme scales
    *(9, 12, 24, 27, 30, 33, 51, 63, 123, 216, 246, 255, 267, 276, 288, 304, 308, 313, 319, 334),
    *(370, 406, 421, 427, 439, 448),
    # curvature: raw and prepared tokens, both rules for zero differences, straight and reversing
    *(460, 465, 466, 489, 555, 560, 567, 572, 573, 593, 619, 625, 631, 655, 667),
    # dataset_entropy, prompt_entropy_mean, curvature_mean: every alpha and pooling
    *(677, 684, 685, 687, 692, 695, 702, 703),
    # infonce: the three forms, both temperatures, one prompt, equal views, a zero row, large norms
    *(759, 760, 765, 787, 799, 815, 817, 827, 831, 835, 839, 840),
    # lidar: both orders, the exponential form, one view, one class, equal means, zeros
    *(847, 849, 851, 852, 857, 868, 882, 887, 889, 896, 903, 912, 917),
    # dime: both orders, N > D and N < D, features instead of prompts, equal views
    *(925, 929, 967, 981, 985),
    # rank: N < D, small singular values, an offset, identity, one direction, zeros, one row
    *(992, 993, 994, 995, 996, 997, 998, 1001),
    # cka: related, unrelated, and wider than there are prompts
    *(1002, 1005, 1006),
    # statistics: a relation that is not monotonic, ties, a constant, few pairs
    *(1008, 1009, 1011, 1012),
]


def copy_cases(source: Path, target: Path) -> None:
    """Write ``metrics.npz`` and ``metrics.json`` under target, one line per case."""
    index = json.loads((source / "golden_index.json").read_text())
    cases = [case for case in index["cases"] if case["id"] in set(COPIED_IDS)]
    missing = set(COPIED_IDS) - {case["id"] for case in cases}
    if missing:
        raise ValueError(f"{source}: no case {sorted(missing)}")
    names = sorted({name for case in cases for name in case["inputs"]})
    with np.load(source / "golden.npz") as arrays:
        np.savez_compressed(target / "metrics.npz", **{name: arrays[name] for name in names})
    lines = ",\n".join(json.dumps(case) for case in cases)
    (target / "metrics.json").write_text(f'{{"cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    copy_cases(Path(sys.argv[1]), Path(__file__).parent)
