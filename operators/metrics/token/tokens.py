"""Token metrics of a batch in every layer at once, where the states are: in the model's actor, or
over stored ones.

Shapes: L layers, N prompts, T tokens (right-padded), D features; a lower-case n is the prompts of
one chunk, and M = L x n.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from operators.metrics.registry import of_kind
from operators.metrics.token.rows import length_chunks
from operators.metrics.variants import Parameters, Tokens

TokenValues = dict[tuple[str, str], npt.NDArray[np.float64]]


def token_metrics(
    states: Sequence[Tensor], lengths_N: Tensor, names: Sequence[str], parameters: Parameters
) -> TokenValues:
    """Return (metric, variant) -> values [L, N] of the named metrics that are of tokens.

    `states` holds one [N, T, D] per layer, on any device and of any float type; what stands in
    padded positions never matters. A value that does not exist is NaN.
    """
    measures = of_kind(names, Tokens)
    found: dict[tuple[str, str], Tensor] = {}
    shape = (len(states), len(lengths_N))
    for chunk in length_chunks(states, lengths_N):
        for name, measure in measures.items():
            for variant, values_M in measure.compute(chunk, parameters).items():
                values_LN = found.get((name, variant))
                if values_LN is None:
                    values_LN = values_M.new_full(shape, torch.nan)
                    found[name, variant] = values_LN
                values_LN[chunk.layers, chunk.index_n] = values_M.reshape(-1, len(chunk.index_n))
    return {key: values_LN.cpu().numpy() for key, values_LN in found.items()}
