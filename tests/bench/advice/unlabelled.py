"""Rules that choose a layer from unlabelled texts: what they lose where the truth is known.

`python -m tests.bench.advice.unlabelled --model FOLDER|package:... [--model ...] --cache FOLDER`,
minutes at first (every text and its halves are encoded), then seconds. The truth is what every
layer of MiniLM and SmolLM2-135M scores on four tasks, beside the checkout; the texts are 400 to 800
of the same files. A rule sees the texts of one task and chooses a layer for it; its regret is what
the best layer of that task scores more. In the last column it sees a mix of all four and chooses
one layer. A rule wins if it loses less than the last layer and the fixed depths, for both models.

- *halves*: the halves of a text, by its words, look for each other by cosine among all other
  halves; the layer with the highest mean reciprocal rank. Layer 0 counts as any other: it is what
  equal words find.
- *halves, hard*: the same over those that layer 0 does not find first.
- *participation ratio*: the highest, of centred vectors (LOES at k = 1, arXiv 2605.23033).
- *imbalance*: information imbalance D(a -> b), 2/N times the mean rank in b of a's nearest
  neighbour (Glielmo et al. 2022, doi 10.1093/pnasnexus/pgac039), of Euclidean distances: 0 where a
  tells all of b, 1 where nothing. *Central*: the layer l with the lowest mean D(l -> m) over the
  other layers m, which tells most of the rest. *From words*: the highest D(0 -> l), of which the
  embeddings tell least.
- *TwoNN*: the lowest intrinsic dimension.

Shapes: L layers, N texts, D features.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from layerrank.jobs.cluster.console import say
from layerrank.operators.analysis.labelfree import depth_rules
from layerrank.operators.metrics.prompts import participation_ratio, twonn
from tests.bench.advice.depth import read_scores
from tests.bench.advice.vectors import SAMPLES, Texts, Vectors, sample, title, vectors_LND
from tests.support.markdown import markdown
from tests.support.published import PUBLISHED
from tests.support.shared_data import FOLDER

Values = npt.NDArray[np.float64]
FEWEST_WORDS = 4  # of a text with halves
OF_EACH = 200  # texts of every file in the mix of all
# What the tables of scores call the tasks on the files.
TRUTH = {
    "MiniLM": ("all-MiniLM-L6-v2", [f"{name}{'_fast' * ('titles' in name)}" for name in SAMPLES]),
    "SmolLM2": ("SmolLM2-135M", ["titles", "banking", "emotion", "sts"]),
}


class Seen(NamedTuple):
    """What rules see of some texts: their vectors, and those of the halves of the same texts."""

    texts_LND: Vectors
    first_LND: Vectors
    second_LND: Vectors


def main() -> None:
    """Print what every rule chooses and loses on each task of each model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", action="append", required=True, metavar="FOLDER|package:...")
    parser.add_argument("--cache", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    scores = read_scores(PUBLISHED.parent, FOLDER)
    for model in options.model:
        if title(model) not in TRUTH:
            parser.error(f"model {model}: only the scores of {' and '.join(TRUTH)} are known")
        known_as, tasks = TRUTH[title(model)]
        lost_TL = np.array(
            [
                [score for (_, of), score in sorted(scores[known_as].items()) if of == task]
                for task in tasks
            ]
        )
        lost_TL = lost_TL.max(axis=1, keepdims=True) - lost_TL
        seen = [see(model, name, options.cache) for name in SAMPLES]
        chosen = [*map(choices, seen), choices(mixed(seen))]
        say("")
        for line in table(title(model), chosen, [*lost_TL, lost_TL.mean(axis=0)]):
            say(line)


def table(model: str, chosen: Sequence[Mapping[str, int]], lost: Sequence[Values]) -> list[str]:
    """Return a table of the layers and regrets of rules: of each task, their mean, of all texts.

    The rule that loses least in the mean over tasks comes first.
    """
    mean = {
        rule: float(
            np.mean([lost_L[of[rule]] for of, lost_L in zip(chosen[:-1], lost, strict=False)])
        )
        for rule in chosen[0]
    }
    rows = [[f"{model}: layer, points lost", *SAMPLES, "mean", "one layer from all texts"]]
    for rule in sorted(mean, key=mean.__getitem__):
        cells = [
            f"{of[rule]}: {100 * lost_L[of[rule]]:.1f}"
            for of, lost_L in zip(chosen, lost, strict=True)
        ]
        rows.append([rule, *cells[:-1], f"{100 * mean[rule]:.1f}", cells[-1]])
    return markdown(rows[0], rows[1:], "lrrrrrr")


def see(model: str, name: str, cached: Path) -> Seen:
    """Return the vectors of the texts of a file and of their halves."""
    texts = sample(name)
    parts = halves(texts)
    found_LND = vectors_LND(model, f"{name}-halves", parts, cached)
    return Seen(vectors_LND(model, name, texts, cached), *np.split(found_LND, 2, axis=1))


def mixed(seen: Sequence[Seen]) -> Seen:
    """Return a mix of texts, equally many of each file."""
    parts = zip(*seen, strict=True)
    return Seen(*(np.concatenate([_spread(x) for x in part], axis=1) for part in parts))


def _spread(vectors_LND: Vectors) -> Vectors:
    return vectors_LND[:, np.linspace(0, vectors_LND.shape[1] - 1, OF_EACH).astype(int)]


def choices(seen: Seen) -> dict[str, int]:
    """Return the layer that every rule chooses."""
    rank_LN = half_ranks(seen.first_LND, seen.second_LND)
    hard_N = rank_LN[0] > 1
    imbalance_LL = imbalances(seen.texts_LND)
    dimension_L = [float(twonn(torch.from_numpy(each))) for each in seen.texts_LND]
    return {
        **depth_rules(range(len(seen.texts_LND))),
        "halves": int((1 / rank_LN).mean(axis=1).argmax()),
        "halves, hard": int((1 / rank_LN[:, hard_N]).mean(axis=1).argmax()),
        "participation ratio": int(np.argmax([participation(each) for each in seen.texts_LND])),
        "imbalance, central": int(np.nanmean(imbalance_LL, axis=1).argmin()),
        "imbalance, from words": int(np.nanargmax(imbalance_LL[0])),
        "TwoNN": int(np.argmin(dimension_L)),
    }


def halves(texts: Texts) -> Texts:
    """Return the first halves of texts by their words, then the second ones, if they have both."""
    words = [text.split() for text in texts.texts]
    long = [index for index, each in enumerate(words) if len(each) >= FEWEST_WORDS]
    first = [" ".join(words[index][: len(words[index]) // 2]) for index in long]
    second = [" ".join(words[index][len(words[index]) // 2 :]) for index in long]
    return Texts(np.array(long), [*first, *second])


def half_ranks(first_LND: Vectors, second_LND: Vectors) -> Values:
    """Return the rank at which each half finds the other half of its text, by layer [L, 2N].

    Among the halves of the other side, in both directions; 1 is found at once.
    """
    found = []
    for halves_ND in zip(first_LND, second_LND, strict=True):
        first_ND, second_ND = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in halves_ND)
        cosine_NN = first_ND @ second_ND.T
        own_N = np.diag(cosine_NN)
        forth_N, back_N = (cosine_NN > own_N[:, None]).sum(1), (cosine_NN > own_N).sum(0)
        found.append(1.0 + np.concatenate([forth_N, back_N]))
    return np.array(found)


def participation(vectors_ND: Vectors) -> float:
    """Return the participation ratio of centred vectors."""
    centred_ND = torch.from_numpy(vectors_ND).double()
    centred_ND = centred_ND - centred_ND.mean(dim=0)
    return float(participation_ratio(torch.linalg.svdvals(centred_ND).square()))


def imbalances(vectors_LND: Vectors) -> Values:
    """Return the information imbalance of every layer to every other [L, L], NaN to itself."""
    distances = [_distances(each) for each in vectors_LND]
    nearest_LN = [each.argmin(axis=1) for each in distances]
    count, rows_N = len(distances), np.arange(len(distances[0]))
    found_LL = np.full((count, count), np.nan)
    for to, distance_NN in enumerate(distances):
        for layer, nearest_N in enumerate(nearest_LN):
            if layer != to:
                reached_N1 = distance_NN[rows_N, nearest_N][:, None]
                rank_N = 1 + (distance_NN < reached_N1).sum(axis=1)
                found_LL[layer, to] = 2 / len(rows_N) * rank_N.mean()
    return found_LL


def _distances(vectors_ND: Vectors) -> Values:
    """Return squared distances [N, N], infinite to itself."""
    centred_ND = vectors_ND.astype(np.float64) - vectors_ND.mean(axis=0)
    square_N = np.square(centred_ND).sum(axis=1)
    distance_NN = square_N[:, None] + square_N - 2 * centred_ND @ centred_ND.T
    np.fill_diagonal(distance_NN, np.inf)
    found: Values = distance_NN
    return found


if __name__ == "__main__":
    main()
