"""How deep to cut a model without labels: what one depth for a kind of model gains, and is it sure.

`python -m tests.bench.advice.depth`, seconds: tables for the guide, and `EVIDENCE` of
`operators.analysis.labelfree`, from the scores of every layer beside the checkout: published ones
(arXiv 2502.02013), mteb's of MiniLM and our own of SmolLM2.

The gain of a layer is its score less the last layer's, the mean over the tasks that have both;
layers with fewer than half of the tasks are no candidates. A depth is a share of the blocks, in
steps of 1/24; of each model it takes the nearest layer that there is. **Leaving one model out**,
the depth with the highest mean gain on the other models of the kind is taken, and its gain on the
one left out counts. Their mean has a 95 % interval, t over models, from three models on. A share is
settled where that interval is narrower than the gain: it says that choosing so is better than the
last layer. Few models, and three of them of one family: that can only be more in doubt than it
says.

A model whose last block was not scored says nothing about a gain over the last layer.

Shapes: L layers, T tasks, S shares of the depth, M models.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from scipy import stats

from layerrank.jobs.cluster.console import say
from layerrank.operators.analysis.labelfree import Evidence, at_depth
from layerrank.operators.model.subject import Kind
from tests.support.markdown import markdown
from tests.support.published import PUBLISHED
from tests.support.shared_data import FOLDER

Values = npt.NDArray[np.float64]
SHARES = [Fraction(step, 24) for step in range(25)]
LEVEL = 0.95


class About(NamedTuple):
    """What a model is: the number of its last layer is that of its blocks."""

    kind: Kind
    family: str
    blocks: int


ABOUT = {
    "Pythia-14m": About("causal decoder", "Pythia", 6),
    "Pythia-160m": About("causal decoder", "Pythia", 12),
    "Pythia-410m": About("causal decoder", "Pythia", 24),
    "SmolLM2-135M": About("causal decoder", "SmolLM2", 30),
    # Numbered as released: without the embeddings, and 48 normalised twice.
    "mamba-130m": About("state-space model", "Mamba", 24),
    "mamba-370m": About("state-space model", "Mamba", 48),
    "bert-base": About("encoder", "BERT", 12),
    "LLM2Vec-mntp-unsup-simcse-8B": About("embedding model", "LLM2Vec", 32),
    "all-MiniLM-L6-v2": About("embedding model", "MiniLM", 6),
}


class Curve(NamedTuple):
    """What the layers of a model gain over its last one, mean over tasks."""

    layers: list[int]
    gain_L: Values

    def at(self, share: Fraction) -> float:
        """Return the gain of the layer at a share of the depth."""
        return float(self.gain_L[self.layers.index(at_depth(share, self.layers))])


class Left(NamedTuple):
    """A model that was left out: the share that the others chose, and what that gains on it."""

    model: str
    share: Fraction
    gain: float


def main() -> None:
    """Print what a depth for each kind of model, and for all of them, gains."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--published", type=Path, default=PUBLISHED.parent, metavar="FOLDER")
    parser.add_argument("--data", type=Path, default=FOLDER, metavar="FOLDER")
    options = parser.parse_args()
    scores = read_scores(options.published, options.data)
    found = curves(scores)
    for name in sorted(scores.keys() - found.keys()):
        say(f"{name}: its layer {ABOUT[name].blocks}, the last, has no scores; it is left out")
    for line in ["", *models_table(scores, found), "", *kinds_table(found)]:
        say(line)


def read_scores(published: Path, data: Path) -> dict[str, dict[tuple[int, str], float]]:
    """Return the scores of every model by layer and task."""
    files = [
        (published / "layer_scores.parquet", "", "task", "score"),
        (published / "more_layer_scores.parquet", "", "task", "score"),
        (data / "smollm2_layer_scores.parquet", "SmolLM2-135M", "task", "score"),
        (data / "minilm_layer_scores.parquet", "all-MiniLM-L6-v2", "dataset", "main_score"),
    ]
    as_ranked = {"revision": "main", "norm": "final", "variant": "raw", "pooling": "mean"}
    found: dict[str, dict[tuple[int, str], float]] = {}
    for file, model, task, score in files:
        for row in pq.read_table(file).to_pylist():
            # The other protocol of one task would count it twice.
            legacy = row.get("task_type") == "clustering_legacy"
            if not legacy and all(row.get(key, want) == want for key, want in as_ranked.items()):
                of_model = found.setdefault(model or row["model"], {})
                of_model[row["layer"], row[task]] = row[score]
    return found


def curves(scores: Mapping[str, Mapping[tuple[int, str], float]]) -> dict[str, Curve]:
    """Return the gains of the models that were scored to the last block."""
    found = {}
    for model in ABOUT.keys() & scores.keys():
        last, of_model = ABOUT[model].blocks, scores[model]
        tasks = sorted({task for _, task in of_model if (last, task) in of_model})
        layers = sorted({layer for layer, _ in of_model})
        gain_LT = np.array(
            [[of_model.get((k, t), math.nan) - of_model[last, t] for t in tasks] for k in layers]
        )
        many_L = (~np.isnan(gain_LT)).sum(axis=1) * 2 >= len(tasks)
        if tasks:
            kept = [layer for layer, many in zip(layers, many_L, strict=True) if many]
            found[model] = Curve(kept, np.nanmean(gain_LT[many_L], axis=1))
    return {model: found[model] for model in ABOUT if model in found}


def left_out(found: Mapping[str, Curve], group: Callable[[str], str] = str) -> list[Left]:
    """Return what each model gains by the depth that the models of other groups choose.

    Of equal shares the lowest is chosen. A model without others has none.
    """
    chosen = []
    for model, curve in found.items():
        others = [each for name, each in found.items() if group(name) != group(model)]
        if others:
            share = best_share(others)
            chosen.append(Left(model, share, curve.at(share)))
    return chosen


def best_share(found: Sequence[Curve]) -> Fraction:
    """Return the share of the depth with the highest mean gain, the lowest of equal ones."""
    return max(SHARES, key=lambda share: (math.fsum(each.at(share) for each in found), -share))


def mean_and_half(gain_M: Sequence[float]) -> tuple[float, float]:
    """Return a mean and half the width of its interval, t over models; NaN where there is none."""
    if len(gain_M) < 2:
        return math.nan, math.nan
    error = float(np.std(gain_M, ddof=1)) / math.sqrt(len(gain_M))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(gain_M) - 1)) * error
    return float(np.mean(gain_M)), half if len(gain_M) > 2 else math.nan


def evidence_of(found: Mapping[str, Curve]) -> Evidence:
    """Return what one depth for some models gains, each left out in turn."""
    gained = mean_and_half([each.gain for each in left_out(found)])
    most = [float(each.gain_L.max()) for each in found.values()]
    return Evidence(len(found), best_share([*found.values()]), *gained, min(most), max(most))


def of_kinds(found: Mapping[str, Curve]) -> dict[Kind, dict[str, Curve]]:
    """Return the curves by the kind of the model."""
    kinds = dict.fromkeys(ABOUT[model].kind for model in found)
    return {
        kind: {name: each for name, each in found.items() if ABOUT[name].kind == kind}
        for kind in kinds
    }


def models_table(
    scores: Mapping[str, Mapping[tuple[int, str], float]], found: Mapping[str, Curve]
) -> list[str]:
    """Return a table of the models: the best layer in hindsight, and what depths gain."""
    chosen = {
        each.model: each for of_kind in of_kinds(found).values() for each in left_out(of_kind)
    }
    fixed = [Fraction(1, 2), Fraction(2, 3), Fraction(3, 4)]
    head = ["model", "kind", "blocks", "tasks", "best layer in hindsight"]
    rows = [[*head, "depth that the others choose", *(f"{share} depth" for share in fixed)]]
    for name, curve in found.items():
        best = curve.layers[int(curve.gain_L.argmax())]
        left = chosen.get(name)
        rows.append(
            [
                name,
                ABOUT[name].kind,
                str(ABOUT[name].blocks),
                str(len({task for _, task in scores[name]})),
                f"{best}: {_points(curve.gain_L.max())}",
                f"{left.share}: {_points(left.gain)}" if left else "-",
                *(_points(curve.at(share)) for share in fixed),
            ]
        )
    return markdown(rows[0], rows[1:], "llrrlrrrr")


def kinds_table(found: Mapping[str, Curve]) -> list[str]:
    """Return a table of the kinds, and of all models together: is there a depth to take?"""
    head = ["kind", "models", "best share of the depth", "gain on the model left out, 95 %"]
    rows = [[*head, "on the family left out", "2/3 depth", "so take"]]
    for kind, members in [*of_kinds(found).items(), ("any", found)]:
        evidence = evidence_of(members)
        families = left_out(members, lambda model: ABOUT[model].family)
        thirds = [each.at(Fraction(2, 3)) for each in members.values()]
        rows.append(
            [
                kind,
                str(evidence.models),
                str(evidence.share),
                _with_interval(evidence.gain, evidence.half),
                _with_interval(*mean_and_half([each.gain for each in families])),
                _with_interval(*mean_and_half(thirds)),
                f"{evidence.share} of the depth" if evidence.is_settled else "no number",
            ]
        )
    return markdown(rows[0], rows[1:], "lrrrrrl")


def _points(gain: float) -> str:
    return f"{100 * gain:+.1f}"


def _with_interval(gain: float, half: float) -> str:
    if math.isnan(gain):
        return "-"
    return _points(gain) + (", no interval" if math.isnan(half) else f" ± {100 * half:.1f}")


if __name__ == "__main__":
    main()
