"""A shard of prompts whose vectors are several objects: the same vectors, and each made once."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from layerrank.jobs.cluster import tally
from layerrank.jobs.cluster.cluster import Cluster
from layerrank.jobs.cluster.pool import Pool
from layerrank.jobs.cluster.tally import Counts
from layerrank.jobs.config.run import load
from layerrank.jobs.extract import worker
from layerrank.jobs.extract.stage import _pace, extract
from layerrank.jobs.extract.targets import (
    Part,
    Target,
    Unit,
    cut,
    missing_units,
    passes,
    stretch_of,
)
from layerrank.jobs.extract.worker import Extractor, read
from layerrank.jobs.measure.stage import measure
from layerrank.jobs.prepare.stage import prepare
from layerrank.jobs.run import Run, partition
from layerrank.operators.model.backend import Backend
from layerrank.operators.model.encode import Ids, NonFiniteError
from layerrank.operators.model.subject import Subject
from layerrank.storage import pages
from layerrank.storage.layers import embeddings_table, groups, read_vectors
from layerrank.storage.manifest import Manifests, require
from layerrank.storage.partition import (
    Partition,
    TableName,
    part_name,
    partitions,
    shard_name,
    whole_name,
)
from layerrank.storage.root import Root
from layerrank.storage.shards import Facts, Receipt, Shard, write_shard
from tests.conftest import write_config
from tests.support.machines.here import Here, run_here
from tests.support.stored import content, shard_rows, store
from tests.support.tiny import WIDTH

MOST = 13  # prompts of an object
BYTES = 62_400  # which are as large: 16 groups of 32 features
CLEAN = Partition("embeddings", ("tiny", "local", "topics", "clean"))
TINY, POOL = Subject("none", "1", "tiny"), Pool(2, 2, 0.75, 0, 1)
COUNTED = ("prompts", "tokens", "skipped_no_tokens", "truncated")


class Runs(NamedTuple):
    """A run whose shards are one object each, and the same in parts."""

    whole: Run
    parts: Run
    partitions: list[Partition]


def again(run: Run) -> Run:
    """Return the same run by another process, which knows nothing of what was done."""
    return Run(run.config, run.root, Cluster(Here()))


@pytest.fixture(scope="module")
def runs(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder, made = tmp_path_factory.mktemp("parts"), list[Run]()
    measured = {"token_metrics": "both", "metrics": ["prompt_entropy", "rankme", "infonce"]}
    config = load(str(write_config(folder, checkpoint, measure=measured, candidates=None)))
    for size in (pages.OBJECT_BYTES, BYTES):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pages, "OBJECT_BYTES", size)
            run = Run(config, Root(str(folder / str(size))), Cluster(Here()))
            for stage in (prepare, extract, measure):
                stage(run)
            made.append(run)
    return Runs(made[0], made[1], partitions(made[0].root, "embeddings"))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the objects that are written while shards are cut small."""
    monkeypatch.setattr(pages, "OBJECT_BYTES", BYTES)
    keys = list[str]()

    def told(root: Root, key: str, *rest: Any) -> Receipt:  # noqa: ANN401
        made = write_shard(root, key, *rest)
        keys.append(key)
        return made

    monkeypatch.setattr(worker, "write_shard", told)
    return keys


def test_parts_hold_the_same_vectors_and_none_is_too_large(runs: Runs) -> None:
    several = set()
    for where in runs.partitions:
        whole, parts = require(runs.whole.root, where), require(runs.parts.root, where)
        rows = shard_rows(runs.whole.root, where)
        prompts = np.unique([row["prompt_id"] for row in rows])
        names = {whole_name(each.name) for each in parts.receipts}
        assert names == {each.name for each in whole.receipts}
        assert max(each.bytes for each in parts.receipts) <= BYTES
        assert [parts.facts()[name] for name in COUNTED] == [whole.facts()[n] for n in COUNTED]
        assert parts.rows == whole.rows
        several |= {where.values[-1]} if len(parts.receipts) > len(whole.receipts) else set()
        for group in groups(runs.whole.root, whole):
            expected = read_vectors(runs.whole.root, whole, group, prompts)
            found = read_vectors(runs.parts.root, parts, group, prompts)
            np.testing.assert_array_equal(found.prompt_ids, expected.prompt_ids)
            np.testing.assert_allclose(found.matrix_ND, expected.matrix_ND, atol=1e-5)
    assert several == {"clean", "view-00", "view-01", "view-02", "view-03"}


@pytest.mark.parametrize("table", ["tokens", "prompt_metrics", "layer_metrics"])
def test_what_is_made_of_parts_is_the_same(runs: Runs, table: TableName) -> None:
    for where in partitions(runs.whole.root, table):
        whole, parts = (shard_rows(run.root, where) for run in (runs.whole, runs.parts))
        keys = ("prompt_id", "layer", "norm", "pooling", "metric", "variant")
        for rows in (whole, parts):
            rows.sort(key=lambda row: [row.get(key, "") for key in keys])
        assert len(whole) == len(parts)
        for one, other in zip(whole, parts, strict=True):
            numbers = {k for k, v in one.items() if isinstance(v, float)} | {"states"}
            assert {k: one[k] for k in one if k not in numbers} == {
                k: other[k] for k in other if k not in numbers
            }
            for name in numbers & one.keys() - {"states"}:
                assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4, nan_ok=True)


def test_only_the_part_that_was_lost_is_made_again(runs: Runs, written: list[str]) -> None:
    before, where = content(runs.parts.root), runs.partitions[0]
    assert where == CLEAN
    lost = [each.name for each in require(runs.parts.root, where).receipts][1]
    assert lost.endswith("part-2.parquet")
    runs.parts.root.delete(where.shard(lost))
    extract(again(runs.parts))
    assert written == [where.shard(lost)]
    assert content(runs.parts.root) == before
    extract(again(runs.parts))
    assert written == [where.shard(lost)]


def test_what_was_written_before_a_crash_stays(
    runs: Runs, tmp_path: Path, written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(runs.parts.config, Root(str(tmp_path)), Cluster(Here()))
    prepare(run)
    with monkeypatch.context() as patch:
        write = Root.write

        def full(self: Root, key: str, data: bytes) -> None:
            if key.endswith("part-3.parquet"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(self, key, data)

        patch.setattr(Root, "write", full)
        with pytest.raises(OSError, match=r"No space left.*part-3\.parquet"):
            extract(run)
    assert not partitions(run.root, "embeddings")
    before = [*written]
    assert before == [CLEAN.shard(part_name(shard_name(0), number)) for number in (1, 2)]
    written.clear()
    extract(again(run))
    assert written
    assert not {*before} & {*written}
    made = content(run.root)
    assert made == {path: each for path, each in content(runs.parts.root).items() if path in made}


def test_a_root_that_was_cut_otherwise_is_complete_until_it_loses_something(
    runs: Runs, written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(runs.whole.root)
    extract(again(runs.whole))  # of objects that hold all
    monkeypatch.setattr(pages, "OBJECT_BYTES", BYTES - 2336)
    extract(again(runs.parts))
    assert written == []
    assert content(runs.whole.root) == before


def receipts_of(parts: tuple[Part, ...]) -> dict[str, Receipt]:
    facts: list[Facts] = [{"stretch": f"{part.start}-{part.stop}"} for part in parts]
    return {
        part.name: Receipt(part.name, 1, "", "", facts=fact)
        for part, fact in zip(parts, facts, strict=True)
    }


def test_a_shard_is_whole_if_its_parts_follow_one_another() -> None:
    target = Target(CLEAN, {}, {"s.parquet": 30}, 12)
    now = target.parts("s.parquet")
    assert [(part.name, part.start, part.stop) for part in now] == [
        ("s.part-1.parquet", 0, 12),
        ("s.part-2.parquet", 12, 24),
        ("s.part-3.parquet", 24, 30),
    ]
    assert cut("s.parquet", 12, 12) == (Part("s.parquet", 0, 12),)
    done, finer = receipts_of(now), receipts_of(cut("s.parquet", 30, 10))
    of_two = receipts_of(cut("s.parquet", 30, 20))
    assert [each.name for each in target.made("s.parquet", done)] == [part.name for part in now]
    assert len(target.made("s.parquet", finer)) == 3
    assert len(target.made("s.parquet", {**finer, **of_two})) == 2  # the third is left over
    assert not target.made("s.parquet", {**of_two, "s.part-1.parquet": finer["s.part-1.parquet"]})
    for name in done:
        assert not target.made("s.parquet", {n: each for n, each in done.items() if n != name})
    whole = Receipt("s.parquet", 30, "", "")
    assert target.made("s.parquet", {"s.parquet": whole, **finer}) == [whole]
    assert stretch_of(done["s.part-3.parquet"]) == (24, 30)


def first_unit(run: Run) -> Unit:
    """Return the first unit of the clean pass, of which nothing is made."""
    (subject,), (dataset,) = run.subjects, run.config.datasets
    prompts, about = run.prompts(dataset), (run.identity(subject), run.shape(subject))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "OBJECT_BYTES", BYTES)
        clean = next(passes(run.config, subject, *about, dataset, prompts))
    nothing = {target.partition.path: dict[str, Receipt]() for target in clean.targets}
    return missing_units(clean, prompts, nothing)[0]


def test_a_prompt_without_tokens_moves_no_other_part(runs: Runs, tmp_path: Path) -> None:
    run, (subject,) = runs.parts, runs.parts.subjects
    unit = first_unit(run)
    batch = read(run.root, subject, run.config, unit)
    nothing = np.zeros(0, np.int32)
    empty = [nothing if at in (1, 3) else ids for at, ids in enumerate(batch.token_ids)]
    root = Root(str(tmp_path))
    extractor = Extractor(root, subject, run.config, "cpu", 1)
    made = extractor(batch._replace(token_ids=empty))
    found = {receipt.name: receipt for path, receipt in made.receipts if path == CLEAN.path}
    known = {each.name: each for each in require(run.root, CLEAN).receipts}
    first, *others = [part.name for part in unit.parts]
    assert found[first].rows == known[first].rows - 2 * 16
    assert found[first].facts["skipped_no_tokens"] == 2
    assert [found[name].checksum for name in others] == [known[name].checksum for name in others]
    group: dict[str, int | str] = {"layer": 0, "norm": "none", "pooling": "mean"}
    kept = Shard(root, CLEAN, found[first]).read_group(group)
    assert kept["prompt_id"].to_pylist() == np.delete(batch.prompt_ids[:MOST], [1, 3]).tolist()


def test_every_batch_is_counted_when_its_vectors_are_there(runs: Runs, tmp_path: Path) -> None:
    run, (subject,) = runs.parts, runs.parts.subjects
    unit = first_unit(run)
    small = run.config.extract.model_copy(update={"batch_tokens": 256})
    config = run.config.model_copy(update={"extract": small})
    extractor = Extractor(Root(str(tmp_path)), subject, config, "cpu", 1)
    told = list[Counts]()
    with tally.counting(told.append):
        batch = read(run.root, subject, config, unit)
        tokens = sum(map(len, batch.token_ids))
        assert told == [Counts(0, 0, unit.prompts, tokens)]
        ids = [np.zeros(0, np.int32), *batch.token_ids[1:]]
        made = extractor(batch._replace(token_ids=ids))
    assert told[1] == Counts(1, 0, unit.prompts, tokens)  # the one without a token
    assert told[-1] == Counts(unit.prompts, made.tokens, unit.prompts, tokens)
    assert told == sorted(told)
    least = made.tokens / 256 + 2
    assert len(told) >= least  # a batch is no more
    tally.count(1)
    assert len(told) == len({*told})  # nobody is told any more


@pytest.mark.usefixtures("written")
def test_what_is_left_of_a_killed_run_is_estimated_by_what_it_made(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    run, before = again(runs.parts), content(runs.parts.root)
    where = next(each for each in runs.partitions if each.keys["condition"] != "clean")
    shard = require(run.root, where).objects()[0]
    run.root.delete(where.manifest)
    run.root.delete(shard)
    extract(run)
    assert content(run.root) == before
    assert "tokens/s, as before" in capsys.readouterr().out


def test_the_time_of_a_run_is_estimated_by_other_texts_on_such_a_machine(tmp_path: Path) -> None:
    run = run_here(tmp_path, tmp_path, [{"name": "new"}])
    where = partition("embeddings", TINY, "old")
    facts = {"prompts": 10, "tokens": 500, "model_seconds": 4.0}
    table = embeddings_table(
        (0, "final", "mean"), np.array([1]), np.array([1], np.int32), np.ones((1, 2), np.float32)
    )
    known = store(run.root, where, [table], {}, facts)
    metrics = store(run.root, where.sibling("prompt_metrics"), [table], {}, {"metric_seconds": 1.0})
    assert _pace(run, TINY, POOL, 30, {}) is None  # it is not known what ran it
    for each in (known, metrics):
        Manifests(run.root).publish(each.partition, {}, each.receipts, made="1 actor on CPU, fed")
    found = _pace(run, TINY, POOL, 30, {})
    assert found == (30 * 50, 2 * 500 / 5)
    on_gpu = replace(POOL, num_gpus=1.0)
    assert _pace(run, TINY, on_gpu, 30, {}) is None
    assert not run.seen.manifests  # which the run would look at again at its end
    other = replace(TINY, revision="other")
    assert _pace(run, other, POOL, 30, {}) is None


def test_a_bad_state_names_its_prompt_in_whatever_part(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, (subject,) = runs.parts, runs.parts.subjects
    unit = first_unit(run)
    batch, calls = read(run.root, subject, run.config, unit), list[int]()

    def fails(_model: Backend, texts: Sequence[Ids], *_: object) -> NDArray[np.float32]:
        calls.append(len(texts))
        if len(calls) > 1:
            raise NonFiniteError("layer 0 has non-finite states", [2])
        return np.zeros((16, len(texts), WIDTH), np.float32)

    monkeypatch.setattr(worker, "encode", fails)
    extractor = Extractor(Root(str(tmp_path)), subject, run.config, "cpu", 1)
    with pytest.raises(ValueError, match=f"first prompt_id {batch.prompt_ids[MOST + 2]};"):
        extractor(batch)
    assert calls == [MOST, MOST]
