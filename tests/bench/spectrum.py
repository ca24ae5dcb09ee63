"""Prompt entropy and curvature of all layers, against loops over prompts, layers and tokens.

The same states for all, batch by batch: prompts of 16 to 2,048 tokens, evenly spaced, in 25 layers
of 1,024 features. Both sides have two cores of a CPU: the loops as the two threads that torch gives
a script, ours as the stages take them, two processes of one thread, of which the slower one counts.
Making the states is not counted. Layer l is normal noise with the
variances i^-a on its axes, a from 0.4 to 1.6 over the layers as the spectra of real layers decay, a
mean that all tokens share, as long as a token, and in the middle half of the layers a first token
that is 50 times as long. `--prompts` and `--layers` take an evenly spread subset, for both sides.

Straightforward: the T x T Gram matrix in float64 and `torch.linalg.eigh` for each prompt and layer,
curvature token by token. Stricter: `eigvalsh` of the smaller side, curvature without a loop over
tokens. Ours: `entropies` and `curvatures` of the chunks of a batch. Errors are of the entropy,
relative to the straightforward loop.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch
from torch import Tensor
from torch.nn.functional import normalize

from layerrank.jobs.cluster.console import say
from layerrank.operators.metrics import SpectrumMethod
from layerrank.operators.metrics.rows import length_chunks
from layerrank.operators.metrics.spectrum import matrix_entropy
from layerrank.operators.metrics.tokens import curvatures, entropies
from layerrank.operators.model.encode import token_budget_batches

PROMPTS, LAYERS, FEATURES = 64, 25, 1024
SHORTEST, LONGEST = 16, 2048
BATCH_TOKENS = 4096
CORES = 2
Values = list[float]
Share = tuple[float, dict[int, Values]]  # of one process: seconds, and the values of its batches
Program = Callable[[Sequence[Tensor], Tensor], Values]


def main() -> None:
    """Print the seconds of each program, the ratios, and the errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--layers", type=int, default=LAYERS)
    options = parser.parse_args()
    say(
        f"{options.prompts} prompts of {SHORTEST} to {LONGEST:,} tokens x {options.layers} layers "
        f"x {FEATURES:,} features, {options.device}"
    )
    seconds: dict[str, float] = {}
    values: dict[str, Values] = {}
    for name in PROGRAMS:
        shares = _shares(name, options, 1 if "loop" in name or options.device == "cuda" else CORES)
        seconds[name] = max(taken for taken, _ in shares)
        found = {number: one for _, batches in shares for number, one in batches.items()}
        values[name] = [value for number in sorted(found) for value in found[number]]
        say(
            f"{name}: {seconds[name]:.1f} s, "
            f"{1e3 * seconds[name] / len(values[name]):.1f} ms a prompt and layer"
        )
    for loop in ("straightforward loop", "stricter loop"):
        for ours in ("exact", "approximate"):
            say(f"{ours} against the {loop}: {seconds[loop] / seconds[ours]:.1f} times as fast")
    for ours in ("exact", "approximate"):
        pairs = zip(values[ours], values["straightforward loop"], strict=True)
        errors = [abs(got / expected - 1) for got, expected in pairs]
        say(
            f"relative error of the {ours} entropy over {len(errors):,} values: "
            f"median {statistics.median(errors):.1e}, largest {max(errors):.1e}"
        )


def _shares(name: str, options: argparse.Namespace, processes: int) -> list[Share]:
    """Run a program on the cores, dealt to the processes batch by batch."""
    os.environ["OMP_NUM_THREADS"] = str(CORES // processes)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        shares = [
            pool.submit(_share, name, options, index, processes) for index in range(processes)
        ]
        return [share.result() for share in shares]


def _share(name: str, options: argparse.Namespace, index: int, processes: int) -> Share:
    torch.set_num_threads(CORES // processes)
    program, seconds = PROGRAMS[name], 0.0
    values: dict[int, Values] = {}
    for number, states, lengths_N in _batches(options, index, processes):
        if not values:
            program(states, lengths_N)  # warm: allocator, threads
        _wait(options.device)
        began = time.perf_counter()
        values[number] = program(states, lengths_N)
        _wait(options.device)
        seconds += time.perf_counter() - began
    return seconds, values


def _batches(
    options: argparse.Namespace, index: int, processes: int
) -> Iterator[tuple[int, list[Tensor], Tensor]]:
    """Yield number, one state [N, T, D] per layer, and lengths of the batches of one process."""
    layers = torch.linspace(0, LAYERS - 1, options.layers).round().long().tolist()
    chosen = torch.linspace(0, PROMPTS - 1, options.prompts).round()
    lengths = (SHORTEST + (LONGEST - SHORTEST) * chosen / (PROMPTS - 1)).round().long().tolist()
    batches = list(token_budget_batches(lengths, BATCH_TOKENS))
    work = [0.0] * processes
    for number, rows in reversed(list(enumerate(batches))):  # the longest prompts first
        least = work.index(min(work))
        work[least] += sum(min(lengths[row], FEATURES) ** 2 for row in rows)
        if least != index:
            continue
        lengths_N = torch.tensor([lengths[row] for row in rows])
        shape = (len(rows), int(lengths_N.max()), FEATURES)
        states = [_layer(layer, shape, int(rows[0])).to(options.device) for layer in layers]
        yield number, states, lengths_N


def _layer(layer: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + layer)
    ranks_D = torch.arange(1, FEATURES + 1)
    deviation_D = ranks_D ** (-0.5 * (0.4 + 1.2 * layer / (LAYERS - 1)))
    mean_D = torch.randn(FEATURES, generator=torch.Generator().manual_seed(layer))
    mean_D *= deviation_D.norm() / mean_D.norm()
    states_NTD = torch.randn(shape, generator=generator) * deviation_D + mean_D
    if LAYERS / 4 <= layer < 3 * LAYERS / 4:
        states_NTD[:, 0] *= 50
    return states_NTD


def _ours(
    states: Sequence[Tensor], lengths_N: Tensor, alpha: float, method: SpectrumMethod
) -> Values:
    values_LN = torch.empty(len(states), len(lengths_N), dtype=torch.float64)
    for index_n, tokens_MTD, mask_MT, layers in length_chunks(states, lengths_N):
        ((values_M,),) = entropies(tokens_MTD, mask_MT, [alpha], method, False).values()
        curvatures(tokens_MTD, mask_MT)
        values_LN[layers, index_n.cpu()] = values_M.reshape(-1, len(index_n)).cpu()
    return values_LN.flatten().tolist()


def _straightforward(states: Sequence[Tensor], lengths_N: Tensor) -> Values:
    values = []
    for tokens_TD, rows_TD in _prompts(states, lengths_N):
        eigenvalues_T, _ = torch.linalg.eigh(rows_TD @ rows_TD.T)
        values.append(float(matrix_entropy(eigenvalues_T)))
        angles = []
        for before_D, here_D, after_D in zip(tokens_TD, tokens_TD[1:], tokens_TD[2:], strict=False):
            to_D, from_D = here_D - before_D, after_D - here_D
            cosine = to_D @ from_D / (to_D.norm() * from_D.norm())
            angles.append(math.acos(cosine))
        statistics.fmean(angles)
    return values


def _stricter(states: Sequence[Tensor], lengths_N: Tensor) -> Values:
    values = []
    for tokens_TD, rows_TD in _prompts(states, lengths_N):
        small = rows_TD.shape[0] <= rows_TD.shape[1]
        gram_KK = rows_TD @ rows_TD.T if small else rows_TD.T @ rows_TD
        values.append(float(matrix_entropy(torch.linalg.eigvalsh(gram_KK))))
        steps_TD = normalize(tokens_TD.diff(dim=0), dim=1)
        float((steps_TD[1:] * steps_TD[:-1]).sum(dim=1).acos().mean())
    return values


def _prompts(states: Sequence[Tensor], lengths_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the tokens of every prompt in every layer, and their centred rows of unit length."""
    for hidden_NTD in states:
        for row, length in enumerate(lengths_N.tolist()):
            tokens_TD = hidden_NTD[row, :length].to(torch.float64)
            yield tokens_TD, normalize(tokens_TD - tokens_TD.mean(dim=0), dim=1)


PROGRAMS: dict[str, Program] = {
    "exact": lambda states, lengths_N: _ours(states, lengths_N, 1.0, "exact"),
    "approximate": lambda states, lengths_N: _ours(states, lengths_N, 1.0, "approximate"),
    "alpha 2": lambda states, lengths_N: _ours(states, lengths_N, 2.0, "exact"),
    "straightforward loop": _straightforward,
    "stricter loop": _stricter,
}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
