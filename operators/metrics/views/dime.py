"""DiME: dependence between two views as a difference of matrix entropies.

Shape suffixes: N prompts, D features, P permutations; a lower-case p is the permutations of one
chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from operators.metrics.token.entropy import gram_entropy

# Elements of one chunk of permuted Gram matrices: 64 MiB in float64.
CHUNK_ELEMENTS = 2**23


def dime(
    view_a_ND: Tensor, view_b_ND: Tensor, permutations_PN: Tensor, alpha: float = 1.0
) -> Tensor:
    """How much two views of the same prompts share beyond what mismatched prompts share.

    Formula: mean over permutations P of ``S(Ka * P Kb P^T) - S(Ka * Kb)``, with ``K = Z Z^T`` the
    linear N x N Gram matrices of the vectors as given, ``*`` the elementwise product and S the
    ``matrix_entropy``.
    Paper: Skean et al. 2023 (DiME, arXiv 2301.08164), the difference of matrix-based entropies.
    Range: at most log N, in nats; about 0 for independent views, higher is more shared; NaN for
    zero or non-finite vectors. Prompts are permuted by the rows of ``permutations_PN``, which the
    caller draws from a seed.
    Released code: permutes features of the D x D matrices when N > D, which is another quantity,
    and draws its permutations without a seed.
    """
    joint, permuted_P = dime_entropies(view_a_ND, view_b_ND, permutations_PN, alpha)
    return permuted_P.mean() - joint


def dime_entropies(
    view_a_ND: Tensor, view_b_ND: Tensor, permutations_PN: Tensor, alpha: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The two terms of ``dime``: the joint entropy, and the entropy under each permutation."""
    gram_a_NN = _gram(view_a_ND)
    gram_b_NN = _gram(view_b_ND)
    permutations_PN = permutations_PN.to(gram_b_NN.device, torch.int64)
    size = max(1, CHUNK_ELEMENTS // max(1, gram_a_NN.numel()))
    chunks = (permutations_PN[i : i + size] for i in range(0, len(permutations_PN), size))
    permuted_P = [
        gram_entropy(gram_a_NN * gram_b_NN[order_pN[:, :, None], order_pN[:, None, :]], alpha)
        for order_pN in chunks
    ]
    return gram_entropy(gram_a_NN * gram_b_NN, alpha), torch.cat(permuted_P)


def _gram(rows_ND: Tensor) -> Tensor:
    rows_ND = rows_ND.to(torch.float64)
    return rows_ND @ rows_ND.mT
