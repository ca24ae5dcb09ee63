"""Candidates: what transforms are fitted on, what the rungs score, and what is weighed of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from layerrank.jobs.cluster.cluster import Cluster
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.candidates import (
    candidate_vectors,
    fitted_datasets,
    require_texts,
    sample_shares,
)
from layerrank.jobs.config.run import RunConfig, load
from layerrank.jobs.extract.stage import extract
from layerrank.jobs.prepare.stage import prepare
from layerrank.jobs.probe.candidates import Rungs
from layerrank.jobs.probe.stage import probe, require_scores
from layerrank.jobs.probe.worker import Row, ScoreUnit
from layerrank.jobs.rank.ranking import Option
from layerrank.jobs.rank.stage import scored_options
from layerrank.jobs.run import Run, partition
from layerrank.operators.model.subject import Vectors
from layerrank.operators.probes import transform
from layerrank.operators.ranking.ladder import Candidate
from layerrank.storage.layers import Group
from layerrank.storage.root import Root
from layerrank.storage.shards import Shard
from tests.conftest import write_config, write_texts
from tests.jobs.probe.test_search_of_tasks import LABELS, PAIRS, target
from tests.support.machines.here import Here
from tests.support.stored import ask, content
from tests.support.tiny import BLOCKS, WIDTH

PLAIN = Vectors("final", "mean", "raw")
OTHERS = [Vectors("final", "mean", "z"), Vectors("final", "mean_no_first", "raw")]


class Scorer:
    """Scores a unit from its layer and transform: fold by fold, or more exactly the more it has."""

    def __init__(self, fails: Sequence[int] = ()) -> None:
        self.fails = fails
        self.asked: list[ScoreUnit] = []

    def __call__(self, units: Sequence[ScoreUnit]) -> list[tuple[ScoreUnit, list[Row]]]:
        self.asked += units
        return [(unit, [] if unit.target in self.fails else self.rows(unit)) for unit in units]

    def rows(self, unit: ScoreUnit) -> list[Row]:
        return [
            {
                **asdict(unit.group),
                "variant": how,
                "fold": fold,
                "value": (unit.group.layer + (how == "z")) / 100 * unit.share + fold / 1000,
            }
            for how in unit.transforms
            for fold in range(unit.first, unit.folds)
        ]


def test_a_higher_rung_scores_what_is_new_and_a_share_is_no_score() -> None:
    scorer = Scorer()
    targets = {0: target("labels", **LABELS), 1: target("pairs", **PAIRS)}
    rungs = Rungs(targets, OTHERS, scorer)
    both = [Candidate(3, 0), Candidate(3, 1)]
    rungs.look(both, 0.3)
    group = Group(3, "final", "mean")
    assert scorer.asked[0] == ScoreUnit(0, group, 0, 3, ("z",))
    assert {(unit.target, unit.share) for unit in scorer.asked} == {(0, 1.0), (1, 0.3)}
    assert {key[0] for key in rungs.known} == {0}, "a share of the pairs is kept as a score"
    del scorer.asked[:]
    found = rungs.look(both[:1], 1.0)
    assert scorer.asked == [ScoreUnit(0, group, 3, 10, ("z",)), ScoreUnit(1, group, 0, 1, ("z",))]
    assert found[both[0]] == pytest.approx([0.04 + 0.0045, 0.04])
    assert rungs.share(both) == pytest.approx((1 + 0.3) / 2)
    del scorer.asked[:]
    rungs.look(both[:1], 1.0)
    assert scorer.asked == []


def test_a_task_that_fails_or_that_no_candidate_has_a_score_of_does_not_count() -> None:
    targets = {0: target("good", **LABELS), 1: target("bad", **LABELS)}
    both = [Candidate(2, 0), Candidate(5, 0)]
    alone = Rungs({0: targets[0]}, OTHERS, Scorer()).look(both, 0.5)
    assert Rungs(targets, OTHERS, Scorer(fails=[1])).look(both, 0.5) == alone
    rungs = Rungs(targets, OTHERS, Scorer())
    nothing = {"norm": "final", "pooling": "mean", "variant": "z", "value": math.nan}
    rungs.keep(1, [{**nothing, "layer": layer} for layer in (2, 5)])
    assert rungs.look(both, 0.5) == alone
    rungs = Rungs(targets, OTHERS, Scorer())
    rungs.keep(1, [{**nothing, "layer": 2}])
    assert math.isnan(rungs.look(both, 0.5)[both[0]][1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("candidates")


def config_of(folder: Path, checkpoint: Path, name: str, **candidates: object) -> RunConfig:
    """Return a small run with a norm and poolings of candidates."""
    (folder / name).mkdir(exist_ok=True)
    asked = {"norms": ["none", "final"], "sample": 50, "directions": 2, **candidates}
    changes = {"views": {"count": 0}, "measure": {"metrics": ["anisotropy"]}}
    return load(str(write_config(folder / name, checkpoint, candidates=asked, **changes)))


def run_of(config: RunConfig, folder: Path) -> Run:
    return Run(config, Root(str(folder)), Cluster(Here()))


@pytest.fixture(scope="module")
def searched(folder: Path, checkpoint: Path) -> Run:
    run = run_of(config_of(folder, checkpoint, "halving"), folder / "halving" / "out")
    for stage in (prepare, extract, probe):
        stage(run)
    return run


def test_transforms_are_fitted_on_a_fixed_sample_of_the_texts(searched: Run) -> None:
    (subject,), (dataset,) = searched.subjects, searched.config.datasets
    rows = searched.rows(partition("transforms", subject, searched.config))
    assert len(rows) == (BLOCKS + 1) * 2 * 2
    taken: list[int] = []
    from layerrank.operators.prompts.seeding import sample_order

    left = 50
    for receipt in searched.prompts(dataset).receipts:
        shard = Shard(searched.root, partition("prompts", dataset), receipt)
        ids = shard.read(["prompt_id"])["prompt_id"].to_numpy()
        these = ids[sample_order(searched.config.seed, ids)][:left]
        taken += these.tolist()
        left -= len(these)
    for row in rows[::3]:
        found = ask(
            searched.root,
            "SELECT vector FROM embeddings WHERE condition = 'clean' AND layer = ? AND norm = ? "
            f"AND pooling = ? AND prompt_id IN ({', '.join(map(str, taken))})",
            *(row[name] for name in ("layer", "norm", "pooling")),
        )
        vectors_ND = np.array([vector for (vector,) in found], np.float32)
        assert row["n_prompts"] == len(vectors_ND) == 50
        expected = transform.fit(vectors_ND, 2)
        np.testing.assert_allclose(row["mean"], expected.mean_D, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(row["deviation"], expected.deviation_D, rtol=1e-9)
        ours_KD = np.array(row["directions"]).reshape(2, WIDTH)
        np.testing.assert_allclose(
            ours_KD.T @ ours_KD, expected.direction_KD.T @ expected.direction_KD, atol=1e-9
        )


def scores(root: Root) -> dict[tuple[object, ...], float]:
    columns = "task, layer, norm, pooling, variant, fold, value"
    found = ask(
        root,
        f"SELECT {columns} FROM probe_scores WHERE condition = 'clean' "
        f"UNION ALL SELECT {columns} FROM candidate_scores",
    )
    assert len(found) == len({(*row,)[:-1] for row in found}), "a score lies in both tables"
    return {tuple(key): value for *key, value in found}


def test_a_search_stores_scores_of_the_full_sweep_and_the_ranked_vectors_whole(
    searched: Run, folder: Path, checkpoint: Path
) -> None:
    run = run_of(config_of(folder, checkpoint, "full", search="full"), folder / "full" / "out")
    for stage in (prepare, extract, probe):
        stage(run)
    some, every = scores(searched.root), scores(run.root)
    assert some.items() <= every.items()
    assert len(some) < len(every)
    plain = {key for key in every if (*key[2:4], key[4]) == PLAIN}
    assert plain <= some.keys()
    (subject,) = run.subjects
    options = [Option(at, of) for at in range(BLOCKS + 1) for of in candidate_vectors(run.config)]
    _, found = scored_options(searched, subject, options)
    assert len(found) == (BLOCKS + 1) * 2 * 2 * 4
    assert {each.scored for each in found if each.vectors == PLAIN} == {1.0}
    assert min(each.scored for each in found) < 1
    assert {each.scored for each in scored_options(run, subject, options)[1]} == {1.0}


def test_a_second_run_scores_nothing_and_other_texts_score_transforms_anew(
    searched: Run, folder: Path, checkpoint: Path
) -> None:
    before = content(searched.root)
    probe(run_of(searched.config, folder / "halving" / "out"))
    assert content(searched.root) == before
    fewer = config_of(folder, checkpoint, "halving", sample=30)
    probe(run_of(fewer, folder / "halving" / "out"))
    (subject,) = searched.subjects
    (row, *_) = run_of(fewer, folder / "halving" / "out").rows(
        partition("transforms", subject, fewer)
    )
    assert row["n_prompts"] == 30
    fresh = run_of(config_of(folder, checkpoint, "fresh", sample=30), folder / "fresh" / "out")
    for stage in (prepare, extract, probe):
        stage(fresh)
    assert scores(searched.root).items() >= scores(fresh.root).items()


def test_texts_are_shared_among_the_datasets_by_their_sizes(checkpoint: Path, folder: Path) -> None:
    config = config_of(folder, checkpoint, "shares", sample=100)
    assert sample_shares(config, {"a": 300, "b": 100, "c": 0}) == {"a": 75, "b": 25, "c": 0}
    assert sample_shares(config, {"a": 3, "b": 4}) == {"a": 3, "b": 4}
    assert sum(sample_shares(config, {"a": 301, "b": 101, "c": 7}).values()) == 100
    assert [each.name for each in fitted_datasets(config)] == ["topics"]
    with pytest.raises(ConfigError, match=r"candidates.texts is wiki, .* there are: topics"):
        config_of(folder, checkpoint, "named", texts="wiki")


def test_too_few_texts_for_the_directions_stop_before_a_model_runs(
    checkpoint: Path, folder: Path
) -> None:
    config = config_of(folder, checkpoint, "few", directions=4)
    require_texts(config, {"topics": 6}, 32)
    with pytest.raises(ConfigError, match=r"candidates.directions: 4 top .* 5 texts"):
        require_texts(config, {"topics": 5}, 32)
    # Who asked for no candidates gets those that there can be.
    unasked = load(str(write_config(folder / "few", checkpoint)))
    require_texts(unasked, {"topics": 1}, 32)


def test_another_run_of_the_root_leaves_a_run_and_its_scores_as_they_are(
    folder: Path, checkpoint: Path
) -> None:
    root = folder / "shared" / "out"
    one = run_of(config_of(folder, checkpoint, "shared"), root)
    for stage in (prepare, extract, probe):
        stage(one)
    before = content(one.root)
    values = one.config.model_dump(exclude_unset=True)
    other = values["datasets"][0] | {"name": "more", "tasks": ()}
    changed = {"name": "other", "datasets": (*values["datasets"], other)}
    two = run_of(RunConfig.model_validate({**values, **changed}), root)
    for stage in (prepare, extract, probe):
        stage(two)
    after = content(two.root)
    assert before.items() <= after.items()
    new = {path.split("/")[0] for path in after.keys() - before.keys()}
    assert new == {"prompts", "embeddings", "candidate_scores", "transforms"}
    require_scores(run_of(one.config, root))


def test_transforms_can_be_fitted_on_texts_that_no_task_has(folder: Path, checkpoint: Path) -> None:
    config = config_of(folder, checkpoint, "held-out")
    values = config.model_dump(exclude_unset=True)
    held = write_texts(folder / "held-out" / "others.jsonl", 21)
    held.write_text(held.read_text(encoding="utf-8").replace("Passage", "Chapter"))
    source = {"name": "held", "source": {"files": str(held)}}
    changed = {
        "datasets": (*values["datasets"], source),
        "candidates": {**values["candidates"], "texts": "held"},
    }
    run = run_of(RunConfig.model_validate({**values, **changed}), folder / "held-out" / "out")
    for stage in (prepare, extract, probe):
        stage(run)
    (subject,) = run.subjects
    for row in run.rows(partition("transforms", subject, run.config))[::5]:
        found = ask(
            run.root,
            "SELECT vector FROM embeddings WHERE condition = 'clean' AND dataset = 'held' "
            "AND layer = ? AND norm = ? AND pooling = ?",
            *(row[name] for name in ("layer", "norm", "pooling")),
        )
        assert row["n_prompts"] == len(found) == 21
        expected = np.mean([vector for (vector,) in found], axis=0)
        np.testing.assert_allclose(row["mean"], expected, rtol=1e-5, atol=1e-6)
