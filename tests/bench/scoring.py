"""Every layer of MiniLM on the four shared datasets: ours against mteb, side by side in one run.

files: our stages on the data files as a user has them; every text of every file is encoded, once.
names: our stages on the same tasks by their names in mteb; the texts that mteb reads are encoded
once, and its own evaluators score the shards. live: mteb encodes the texts anew for each layer.
served: mteb is given the vectors of `files` from memory, and is otherwise as it is. Raw vectors
alone on every side.

Each side is a process of its own. `all` counts from its start, with its imports; our `probe` is the
stage alone, and so is mteb's `scoring`, the sum over its evaluations. Torch has two threads on each
side (ours: an actor per core with one, so that two cores are fair), BLAS and OpenMP one in each
process: ours scores in a process per core, and mteb's small fits gain nothing from a second one.
Each side imports only what it needs. `--layers` restricts mteb, whose seconds are scaled to all
layers in the ratios. Needs ../shared/data and the extras demo and mteb.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from layerrank.jobs.cluster.console import say
from tests.support.shared_data import LAYERS, MAX_TOKENS, SCORES, SUBJECT, TASKS, run_config

if TYPE_CHECKING:
    from layerrank.jobs.run import Run

TORCH_THREADS = 2
BATCH = 32  # of mteb's encoding
# Threads that spin while they wait make mteb's encoding three times slower on a busy machine.
_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
Seconds = dict[str, float]
Scores = dict[str, dict[int, float]]  # file -> layer -> main score
Vectors = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str], str], Vectors]
Side = Callable[[argparse.Namespace, Path], tuple[Seconds, Scores]]


def main() -> None:
    """Print the seconds of every side, its distance from the stored scores, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", choices=LAYERS, default=[*LAYERS])
    parser.add_argument("--datasets", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=[*SIDES])
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        sys.stdout.write("\n" + json.dumps(SIDES[options.side](options, Path(options.folder))))
        return
    if not SCORES.exists():
        say(f"no {SCORES}: nothing to compare with")
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in options.sides:
            found[side], scores = _in_a_process(side, folder)
            parts = ", ".join(f"{name} {value:.1f}" for name, value in found[side].items())
            distances = []
            for name, of_layer in scores.items():
                expected = TASKS[name].expected("raw")
                off = max(abs(value - expected[int(layer)]) for layer, value in of_layer.items())
                distances.append(f"{name} {off:.1e}")
            say(f"{side}: {parts} s; at most off the stored scores: {', '.join(distances)}")
    scale = len(LAYERS) / len(options.layers)
    for mine, part, theirs, whole, aim in RATIOS:
        if mine in found and theirs in found:
            ratio = found[mine][part] / (scale * found[theirs][whole])
            say(f"{mine}, {part} / {theirs}, {whole}: 1/{1 / ratio:.1f} (aim: {aim})")


def _in_a_process(side: str, folder: str) -> tuple[Seconds, Scores]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"HF_HUB_OFFLINE": "1", **_THREADS}
    command = [sys.executable, "-m", "tests.bench.scoring", *sys.argv[1:]]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, "--side", side, "--folder", folder],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{side} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    seconds, scores = json.loads(done.stdout.splitlines()[-1])
    return {"all": time.perf_counter() - began, **seconds}, scores


def _files(options: argparse.Namespace, folder: Path) -> tuple[Seconds, Scores]:
    seconds, rows = _stages(_files_run(options, folder))
    scores: Scores = {name: {} for name in options.datasets}
    for name, _, layer, score in rows:
        scores[name][layer] = score
    return seconds, scores


def _names(options: argparse.Namespace, folder: Path) -> tuple[Seconds, Scores]:
    from tests.support.mteb.shared import BY_FILE

    file_of = {BY_FILE[name].metadata.name: name for name in options.datasets}
    source = {"mteb": [*file_of], "modules": ["tests.support.mteb.shared"]}
    config = run_config([{"name": "mteb", "source": source}])
    seconds, rows = _stages(_run(config, folder / "names"))
    scores: Scores = {name: {} for name in options.datasets}
    for _, task, layer, score in rows:
        scores[file_of[task]][layer] = score
    return seconds, scores


def _live(options: argparse.Namespace, _folder: Path) -> tuple[Seconds, Scores]:
    model = Live()
    encoders = {layer: partial(model.encode, layer=layer) for layer in options.layers}
    seconds, scores = _evaluated(options, lambda _, layer: encoders[layer])
    return {**seconds, "of that encoding": model.seconds}, scores


@dataclass
class Live:
    """Encodes texts and keeps one layer, in the way of sentence-transformers.

    From long texts to short ones in batches of 32, through the whole model, mean over real tokens.
    Shapes: N texts, T tokens (right-padded), D features.
    """

    seconds: float = 0.0

    def __post_init__(self) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        torch.set_num_threads(TORCH_THREADS)
        self._tokenizer = AutoTokenizer.from_pretrained(SUBJECT.source)
        self._model = AutoModel.from_pretrained(SUBJECT.source, dtype=torch.float32).eval()

    def encode(self, texts: Sequence[str], layer: int) -> Vectors:
        """Return the vectors [N, D] of `texts`."""
        began = time.perf_counter()
        order = np.argsort([-len(text) for text in texts], kind="stable")
        parts = [
            self._batch([texts[row] for row in order[start : start + BATCH]], layer)
            for start in range(0, len(texts), BATCH)
        ]
        vectors_ND = np.empty((len(texts), parts[0].shape[1]), dtype=np.float32)
        vectors_ND[order] = np.concatenate(parts)
        self.seconds += time.perf_counter() - began
        return vectors_ND

    def _batch(self, texts: list[str], layer: int) -> Vectors:
        import torch

        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.inference_mode():
            states = self._model(**tokens, output_hidden_states=True).hidden_states
            mask_NT1 = tokens["attention_mask"].unsqueeze(-1).float()
            pooled_ND = (states[layer] * mask_NT1).sum(dim=1) / mask_NT1.sum(dim=1)
        vectors_ND: Vectors = pooled_ND.numpy()
        return vectors_ND


def _served(options: argparse.Namespace, folder: Path) -> tuple[Seconds, Scores]:
    from layerrank.storage.layers import groups, read_vectors
    from tests.support.simulated import text_table

    tables, run = {}, _files_run(options, folder)
    for subject, dataset in run.pairs():
        shards = run.prompts(dataset).shards(run.root)
        prompts = pa.concat_tables([each.read() for each in shards]).sort_by("prompt_id")
        texts, ids = prompts["text"].to_pylist(), prompts["prompt_id"].to_numpy()
        embeddings = run.embeddings(subject, dataset)
        for group in groups(run.root, embeddings):
            vectors = read_vectors(run.root, embeddings, group, ids)
            tables[dataset.name, group.layer] = text_table(texts, vectors.matrix_ND)
    return _evaluated(options, lambda name, layer: tables[name, layer])


def _evaluated(
    options: argparse.Namespace, encoder: Callable[[str, int], Encode]
) -> tuple[Seconds, Scores]:
    """Return the seconds of `mteb.evaluate`, and its main scores of the files' tasks.

    Each time a new task, because mteb draws other documents when one is evaluated twice, and its
    columns read row by row, as the library leaves them.
    """
    from layerrank.operators.benchmark.score import LookupEncoder, model_meta
    from layerrank.operators.benchmark.tasks import mteb_library
    from tests.support.mteb.shared import BY_FILE

    total, scores = 0.0, Scores()
    for name, layer in itertools.product(options.datasets, options.layers):
        task = BY_FILE[name]()
        task.load_data()
        model = LookupEncoder(name, encoder(name, layer), model_meta("bench/minilm", str(layer)))
        began = time.perf_counter()
        found = mteb_library().evaluate(
            model, task, cache=None, co2_tracker=False, show_progress_bar=False
        )
        total += time.perf_counter() - began
        scores.setdefault(name, {})[layer] = float(found.task_results[0].get_score())
    return {"scoring": total}, scores


def _files_run(options: argparse.Namespace, folder: Path) -> Run:
    config = run_config([TASKS[name].dataset(name) for name in options.datasets])
    return _run(config, folder / "files")


def _run(config: dict[str, Any], folder: Path) -> Run:
    from layerrank.jobs.config.run import RunConfig
    from layerrank.jobs.run import Run, open_root
    from layerrank.jobs.whole import WORKERS, open_cluster

    parsed = RunConfig.model_validate(config)
    cluster = open_cluster(
        "process", address=None, config=parsed.cluster, preload=WORKERS, say=print
    )
    return Run(parsed, open_root(parsed, str(folder)), cluster)


def _stages(run: Run) -> tuple[Seconds, list[tuple[str, str, int, float]]]:
    """Run our stages from nothing; return the seconds of each, and dataset, task, layer, score."""
    from layerrank.jobs.extract.stage import extract
    from layerrank.jobs.prepare.stage import prepare
    from layerrank.jobs.probe.stage import probe
    from tests.support.stored import ask

    def start_of_the_processes(run: Run) -> None:
        list(run.cluster.each("start", [0], abs))

    seconds: Seconds = {}
    with run.cluster:
        for step in (start_of_the_processes, prepare, extract, probe):
            began = time.perf_counter()
            step(run)
            seconds[step.__name__.replace("_", " ")] = time.perf_counter() - began
    query = "SELECT dataset, task, layer, avg(value) FROM probe_scores GROUP BY ALL ORDER BY ALL"
    return seconds, ask(run.root, query)


SIDES: dict[str, Side] = {"files": _files, "names": _names, "live": _live, "served": _served}
RATIOS = (
    ("files", "all", "live", "all", "1/5"),
    ("names", "all", "live", "all", "1/5"),
    ("files", "probe", "served", "scoring", "1/3"),
    ("names", "probe", "served", "scoring", "1/3"),
)

if __name__ == "__main__":
    main()
