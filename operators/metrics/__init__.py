"""Representation metrics: pure functions of tensors, one per file.

What a config may choose, and what people are told of a metric, stands here, where torch is not
imported for it.
"""

from typing import Literal

EntropyNorm = Literal["raw", "maxEntropy", "logN", "logD", "logNlogD"]
SpectrumMethod = Literal["exact", "approximate"]
WITHOUT_FIRST = "no_first"  # variant: as if the prompt had no first token
# Ranks of the fit of alpha-ReQ, both included, 1 being the largest eigenvalue.
FIRST_RANK, LAST_RANK = 11, 100
# Non-zero eigenvalues that must lie in the fit: two always have an exponent, which says nothing.
FEWEST_RANKS = 10
FEWEST_POINTS = 20  # distinct ones that an intrinsic dimension needs
FEWEST_DEBIASED = 4  # prompts that a debiased similarity needs
