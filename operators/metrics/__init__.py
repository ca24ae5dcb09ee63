"""Representation metrics: pure functions of tensors, one per file.

The choices that a config has stand here, where torch is not imported for them.
"""

from typing import Literal

EntropyNorm = Literal["raw", "maxEntropy", "logN", "logD", "logNlogD"]
SpectrumMethod = Literal["exact", "approximate"]
