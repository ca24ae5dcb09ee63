"""One layer with its texts: which vectors are meant, and that other tools read them as stored."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from layerrank.jobs import cli
from layerrank.jobs import vectors as exporting
from layerrank.jobs.cluster.errors import DONE, USAGE
from layerrank.jobs.config import VectorFormat
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.sealed import sealed
from layerrank.jobs.config.settings import StorageConfig, SubjectConfig
from layerrank.jobs.export import Asked, ranked
from layerrank.jobs.vectors import layer_vectors, save
from layerrank.operators.model.subject import Transform
from layerrank.operators.probes import transform
from layerrank.operators.prompts.seeding import prompt_id
from layerrank.storage import schema
from layerrank.storage.layers import Group, embeddings_table
from layerrank.storage.partition import CLEAN, RUNS, Partition, TableName
from layerrank.storage.root import Root
from layerrank.storage.shards import DamagedError
from tests.support.stored import store

WIDTH, LAYERS, RANKED = 4, 3, 1
DATASETS = {"posts": [5, 3], "titles": [2]}  # texts of each shard
FIT = transform.Fit(np.arange(4.0), np.array([2.0, 1.0, 0.5, 3.0]), np.eye(4)[:2])
Matrix = npt.NDArray[np.float32]


def text(dataset: str, index: int) -> str:
    return f"{dataset} tell of {index} things"


def vector(layer: int, name: str) -> Matrix:
    generator = np.random.default_rng(abs(prompt_id(name)) + layer)
    return generator.normal(size=WIDTH).astype(np.float32)


def texts_of(dataset: str) -> list[str]:
    return [text(dataset, index) for index in range(sum(DATASETS[dataset]))]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Give vectors of two datasets, of which one text has none, a task, and a ranking."""
    root = Root(str(tmp_path / "root"))
    for dataset, counts in DATASETS.items():
        texts, prompts, embeddings, items = texts_of(dataset), [], [], []
        for number, count in enumerate(counts):
            some = sorted(texts[:count], key=prompt_id)
            texts = texts[count:]
            ids = np.array([*map(prompt_id, some)])
            columns = [ids, some, [number] * count]
            prompts.append(pa.table(columns, schema=schema.PROMPTS))
            lengths = np.full(count, 7, np.int32)
            # As they lie in a shard: in the order of a sample.
            order = np.arange(count)[::-1]
            kept = [place for place in order if some[place] != text("posts", 6)]
            embeddings.append(
                pa.concat_tables(
                    embeddings_table(
                        (layer, "final", "mean"),
                        ids[kept],
                        lengths[kept],
                        np.array([vector(layer, some[place]) for place in kept]),
                    )
                    for layer in range(LAYERS)
                )
            )
            rows: list[dict[str, Any]] = [
                {"row": row, "prompt_id": prompt_id(each), "label": each[-8], "split": "test"}
                for row, each in enumerate(some)
            ]
            # A text that is there again, with another label.
            rows.append({**rows[0], "row": 99, "label": "again"})
            of_items = pa.Table.from_pylist(rows[::-1], schema=schema.LABELLED_ITEMS)
            items.append(schema.as_tasks(of_items))
        store(root, Partition("prompts", (dataset,)), prompts, {})
        store(root, Partition("embeddings", ("tiny", "1", dataset, CLEAN)), embeddings, {})
        if dataset == "posts":
            store(root, Partition("tasks", ("topic", dataset)), items, {"type": "classification"})
    rank(root)
    return root


def rank(root: Root, model: str = "tiny", group: str = "demo") -> None:
    """Store a ranking that recommends a layer, standardised."""
    of: dict[TableName, list[dict[str, Any]]] = {
        "ranking": [
            {
                "layer": layer,
                "norm": "final",
                "pooling": "mean",
                "transform": "z" if layer == RANKED else "raw",
                "recommended": layer == RANKED,
                "verdict": "use_layer",
            }
            for layer in range(LAYERS)
        ],
        "transforms": [
            {
                "layer": RANKED,
                "norm": "final",
                "pooling": "mean",
                "n_prompts": 10,
                "mean": FIT.mean_D,
                "deviation": FIT.deviation_D,
                "directions": FIT.direction_KD.ravel(),
            }
        ],
    }
    for name, rows in of.items():
        columns: pa.Schema = getattr(schema, name.upper())
        table = pa.Table.from_pylist(
            rows, schema=pa.schema([each.with_nullable(True) for each in columns])
        )
        store(root, Partition(name, (model, "1", group)), [table], {"tasks": [], "level": 0.9})


def stored(table: pa.Table, layer: int) -> Matrix:
    return np.array([vector(layer, each) for each in table["text"].to_pylist()])


def matrix(table: pa.Table) -> Matrix:
    return np.array(table["vector"].to_pylist(), np.float32).reshape(-1, WIDTH)


def test_the_recommended_vectors_come_with_their_texts_and_labels(root: Root) -> None:
    found = layer_vectors(root)
    assert (found.group, found.transform) == (Group(RANKED, "final", "mean"), "z")
    table = found.read()
    expected = [
        (dataset, each) for dataset in DATASETS for each in texts_of(dataset) if each[-8] != "6"
    ]
    assert found.rows == table.num_rows == len(expected)
    pairs = ((row["dataset"], row["text"]) for row in table.to_pylist())
    assert sorted(pairs) == sorted(expected)
    for row in table.to_pylist():
        assert row["prompt_id"] == prompt_id(row["text"])
        assert row["label_topic"] == (row["text"][-8] if row["dataset"] == "posts" else None)
    assert matrix(table).tobytes() == transform.apply(stored(table, RANKED), "z", FIT).tobytes()
    assert [each.num_rows for each in found.tables()] == [5, 2, 2]  # a shard at a time


@pytest.mark.parametrize("how", ["raw", "l2", "z", "abtt"])
@pytest.mark.parametrize("to", ["parquet", "lance", "npy"])
def test_what_is_written_is_what_is_stored_to_the_bit(
    root: Root, tmp_path: Path, to: VectorFormat, how: Transform
) -> None:
    found = layer_vectors(root, Asked(RANKED, transform=how), dataset="posts")
    out = tmp_path / f"x.{to}"
    told = save(found, to, str(out))
    table = found.read()
    if to == "npy":
        texts = pq.read_table(told.texts)
        assert texts.equals(table.drop_columns("vector"))
        written = np.load(out, mmap_mode="r")
    else:
        if to == "lance":
            read = pytest.importorskip("lance").dataset(str(out)).to_table()
        else:
            read = pq.read_table(out)
            assert read.schema.equals(table.schema, check_metadata=True)
        assert read.select(["prompt_id", "text", "label_topic"]).to_pylist() == (
            table.select(["prompt_id", "text", "label_topic"]).to_pylist()
        )
        written = matrix(read)
    wanted = transform.apply(stored(table, RANKED), how, FIT)
    assert (written.dtype, written.shape) == (np.float32, (7, WIDTH))
    assert written.tobytes() == wanted.tobytes()
    assert "7 vectors of 4 features" in str(told)


# What SWIG makes has no name of a module.
@pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute")
def test_an_index_finds_a_text_itself_first(root: Root, tmp_path: Path) -> None:
    library = pytest.importorskip("faiss")
    found = layer_vectors(root, Asked(2))
    told = save(found, "faiss", str(tmp_path / "x.faiss"))
    index, texts = library.read_index(told.place), pq.read_table(told.texts)
    raw_ND = stored(texts, 2)
    unit_ND = transform.apply(raw_ND, "l2")
    assert index.reconstruct_n(0, index.ntotal).tobytes() == unit_ND.tobytes()
    scores, first = index.search(raw_ND, 1)  # of whatever length
    assert first[:, 0].tolist() == [*range(found.rows)]
    np.testing.assert_allclose(scores[:, 0], np.linalg.norm(raw_ND, axis=1), rtol=1e-6)


def test_what_is_meant_is_asked_where_it_could_be_several(root: Root) -> None:
    where = Partition("embeddings", ("other", "1", "posts", CLEAN))
    table = embeddings_table(
        (0, "none", "last"), np.array([1]), np.array([3], np.int32), np.ones((1, 2), np.float32)
    )
    store(root, where, [table], {})
    for asked, given, says in (
        (Asked(), {}, "other at 1, posts; tiny at 1, posts; tiny at 1, titles: give --model"),
        (Asked(), {"model": "nobody"}, "has vectors of other at 1"),
        (Asked(), {"model": "other"}, "no ranking of other at 1: give --layer"),
        (Asked(0, transform="z"), {"model": "other"}, "no ranking of other at 1: give"),
        (Asked(0), {"model": "other"}, "no vectors of layer 0, norm final.*norm none with pooling"),
        (Asked(9), {"model": "tiny"}, "no layer 9; it has: 0, 1, 2"),
        (Asked(2, transform="z"), {"model": "tiny"}, "z was not fitted .* layer 2"),
        (Asked(), {"model": "tiny", "group": "none"}, r"of tiny at 1 \(group none\); it has: tiny"),
    ):
        with pytest.raises(ConfigError, match=says):
            layer_vectors(root, asked, **given)
    assert layer_vectors(root, Asked(0, "none", "last"), model="other").group.norm == "none"
    assert layer_vectors(root, group="demo").subject.name == "tiny"  # which alone it ranks


def test_who_looks_at_an_output_imports_no_module_that_it_names(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "named_by_an_output.py").write_text("raise SystemError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    source = {"mteb": "Own", "modules": ["named_by_an_output"]}
    posts: dict[str, Any] = {"name": "posts", "source": {"files": "f"}}
    others = {"name": "titles-of-mteb", "source": source}
    values = {"name": "demo", "subjects": [{"model": "tiny"}], "datasets": [posts, others]}
    config = {**values, "extract": {"max_tokens": 64}}
    kept = {"number": 1, "name": "demo", "given": values, "config": config}
    root.write(f"{RUNS}/demo.yaml", sealed(kept))
    assert [*layer_vectors(root).embeddings] == ["posts"]
    described = SubjectConfig(model="tiny", name="tiny", revision="1")
    _, point, _, prompts = ranked(root, StorageConfig(), described=described, given={})
    assert (point.max_tokens, prompts) == (64, {})
    assert cli.main(["report", root.uri]) == USAGE
    assert "run demo has tasks of mteb from modules" in capsys.readouterr().err


def test_what_exists_is_replaced_only_when_told_and_never_by_half(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, one = layer_vectors(root), tmp_path / "x.npy"
    files: dict[VectorFormat, Path] = {"npy": one, "parquet": tmp_path / "x.parquet"}
    for to, out in files.items():
        save(found, to, str(out))
        before = {each.name: each.read_bytes() for each in tmp_path.glob("x.*")}
        with pytest.raises(ConfigError, match=r"exists.*--overwrite"):
            save(found, to, str(out))
        with monkeypatch.context() as patched:
            patched.setattr(exporting, "apply", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                save(found, to, str(out), overwrite=True)
        assert {each.name: each.read_bytes() for each in tmp_path.glob("*x.*")} == before
    other = layer_vectors(root, Asked(0), dataset="titles")
    save(other, "npy", str(one), overwrite=True)
    assert len(np.load(one)) == pq.read_table(f"{one}.texts.parquet").num_rows == 2
    mine = tmp_path / "mine"
    mine.mkdir()
    formats: tuple[VectorFormat, ...] = ("parquet", "npy", "lance")
    for to in formats:
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match=f"mine is a folder and no {to} of vectors"):
                save(other, to, str(mine), overwrite=overwrite)
    for to in formats[:2]:
        with pytest.raises(ConfigError, match=f"mine/ is a folder: give .*mine/x.{to}"):
            save(other, to, f"{mine}/")
    if find_spec("lance"):  # which is a folder itself
        assert save(other, "lance", f"{tmp_path}/made/").place == f"{tmp_path}/made"


def test_a_package_that_lacks_is_named_with_what_installs_it(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda _: None)
    formats: tuple[VectorFormat, ...] = ("lance", "faiss")
    for to in formats:
        with pytest.raises(ConfigError, match=rf"--to {to} .*pip install 'layerrank\[{to}\]'"):
            save(layer_vectors(root), to, str(tmp_path / "x"))


def test_a_lance_dataset_is_written_here_and_a_file_wherever_an_output_may_be(root: Root) -> None:
    found = layer_vectors(root)
    with pytest.raises(ConfigError, match="folder of this machine"):
        save(found, "lance", "memory://x/y.lance")
    told = save(found, "parquet", "memory://x/y.parquet")
    with Root("memory://x").reader("y.parquet") as stream:
        assert pq.read_table(stream).equals(found.read())
    assert "memory://" in told.place


def test_the_command_writes_what_is_recommended_and_names_the_file_by_it(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["export-vectors", root.uri, "--to", "npy"]
    assert cli.main(command) == DONE
    found = layer_vectors(root).read()
    assert np.load("tiny-layer-1.npy").tobytes() == matrix(found).tobytes()
    assert "transform z" in capsys.readouterr().out
    assert cli.main(command) == USAGE
    assert "tiny-layer-1.npy exists" in capsys.readouterr().err
    asked = ["--layer", "2", "--transform", "l2", "--dataset", "titles", "--run", "demo"]
    assert cli.main([*command, *asked, "--model", "tiny", "--out", "sub/x.npy"]) == DONE
    some = layer_vectors(root, Asked(2, transform="l2"), dataset="titles").read()
    assert np.load("sub/x.npy").tobytes() == matrix(some).tobytes()
    assert cli.main([*command, "--layer", "9"]) == USAGE
    assert "no layer 9" in capsys.readouterr().err


def test_bytes_that_were_not_written_are_not_exported(root: Root, tmp_path: Path) -> None:
    found = layer_vectors(root)
    shard = Path(root.path(found.embeddings["titles"].objects()[0]))
    content = bytearray(shard.read_bytes())
    for place in range(4, len(content) // 2):
        content[place] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DamagedError, match="titles"):
        save(found, "parquet", str(tmp_path / "x.parquet"))
    assert not [*tmp_path.glob("x*")]
