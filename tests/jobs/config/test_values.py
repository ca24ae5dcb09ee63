"""A config before it is checked: paths beside its file, and what the command line puts into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from layerrank.jobs import config
from layerrank.jobs.config import did_you_mean_path
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.run import load, scores_recipe
from layerrank.jobs.config.values import beside, limited, with_set

CONFIG: dict[str, Any] = yaml.safe_load("""
name: mine
output: out
subjects:
- {model: models/tiny, adapter: lora}
- {model: org/absent, name: a.b}
- {model: s3://b/a model}
datasets:
- {name: one, source: {files: [texts.jsonl, "more/*.csv"]}, limit: 50}
- {name: one.more, source: {folder: ../texts}, tasks: [{name: t, type: sts, first_column: a,
   second_column: b, score_column: c}]}
- {name: hub, source: {hub: org/data}}
""")


def test_paths_are_taken_from_the_folder_of_the_config(tmp_path: Path) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "lora").mkdir()
    found = beside(CONFIG, tmp_path)
    assert found["output"] == str(tmp_path / "out")
    model, other, _ = found["subjects"]
    assert (model["model"], model["adapter"]) == (f"{tmp_path}/models/tiny", f"{tmp_path}/lora")
    assert other["model"] == "org/absent"  # no such folder lies there: an id of the hub
    one, more, hub = found["datasets"]
    assert one["source"]["files"] == [f"{tmp_path}/texts.jsonl", f"{tmp_path}/more/*.csv"]
    assert more["source"]["folder"] == f"{tmp_path}/../texts"
    assert hub == CONFIG["datasets"][2]


@pytest.mark.parametrize("place", ["s3://b/x", "/data/x", "package:a/b", "~/x", "file:///x"])
def test_what_is_no_relative_path_stays(tmp_path: Path, place: str) -> None:
    values = {"subjects": [{"model": place}], "datasets": [{"source": {"files": place}}]}
    if place.startswith("package:"):
        values = {"subjects": [{"model": place}]}
    assert beside(values, tmp_path) == values


def test_a_text_of_any_length_is_no_path_and_what_lies_there_is_one_only_for_its_keys(
    tmp_path: Path,
) -> None:
    (tmp_path / "query").mkdir()
    values = {
        "prompts": {"long": "{text} " + "x" * 300, "short": "query"},
        "subjects": [{"model": "x" * 300}],
    }
    assert beside(values, tmp_path) == values


def test_a_pattern_is_one_only_where_the_config_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "run[1]"
    found = beside({"datasets": [{"source": {"files": ["*.txt", "a.txt"]}}]}, folder)
    pattern, file = found["datasets"][0]["source"]["files"]
    assert pattern == f"{tmp_path}/run[[]1]/*.txt"
    assert file == f"{folder}/a.txt"


def test_a_file_is_read_as_from_its_folder_and_the_command_line_as_from_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "configs"
    (folder / "models" / "tiny").mkdir(parents=True)
    (folder / "lora").mkdir()
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for given in ("configs/mine.yaml", str(path)):
        config = load(given, ["datasets.one.more.source={folder: here}"])
        assert config.output == str(folder / "out")
        assert config.subjects[0].model == str(folder / "models" / "tiny")
        assert config.datasets[1].source.folder == "here"  # type: ignore[union-attr]
    assert load("quickcheck").datasets[0].source.folder == "texts"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("extract.max_tokens=128", ("extract", "max_tokens"), 128),
        ("extract={device: cpu}", ("extract", "device"), "cpu"),
        ("seed=7", ("seed",), 7),
        ("output=", ("output",), None),
        ("datasets.0.limit=5", ("datasets", 0, "limit"), 5),
        ("datasets.one.limit=5", ("datasets", 0, "limit"), 5),
        ("datasets.one.more.limit=5", ("datasets", 1, "limit"), 5),
        (
            "datasets.one.more.tasks.t.prompt=a: b",
            ("datasets", 1, "tasks", 0, "prompt"),
            {"a": "b"},
        ),
        ("subjects.a.b.dtype=bfloat16", ("subjects", 1, "dtype"), "bfloat16"),
        ("subjects.models/tiny.dtype=float16", ("subjects", 0, "dtype"), "float16"),
        ("subjects.s3://b/a model.dtype=float16", ("subjects", 2, "dtype"), "float16"),
        ("datasets.0.source.files.1=x=y.csv", ("datasets", 0, "source", "files", 1), "x=y.csv"),
    ],
)
def test_set_puts_one_value_where_its_key_says_and_leaves_the_rest(
    assignment: str, key: tuple[str | int, ...], value: object
) -> None:
    before = yaml.safe_dump(CONFIG)
    found = with_set(CONFIG, assignment)
    for part in key:
        found = found[part]  # type: ignore[index]
    assert found == value
    assert yaml.safe_dump(CONFIG) == before


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("extract.max_tokens", "--set extract.max_tokens: give KEY=VALUE"),
        ("=5", "--set: give KEY=VALUE"),
        ("extract..x=5", "give KEY=VALUE"),
        ("seed={", "--set seed: the value is not valid YAML"),
        ("seed.x=1", "--set seed.x: seed is a value"),
        ("datasets.oen.limit=1", r"datasets has no 'oen'; it has one \(0\), .*did you mean one\?"),
        ("datasets.3.limit=1", "datasets has no '3'; it has one"),
        ("datasets.one.tasks.t.folds=1", "datasets.one.tasks has no 't'; it has nothing"),
        ("extract.max_token=5", "--set extract.max_token: .*unknown key .*did you mean max_tokens"),
        ("extarct.max_tokens=5", "--set extarct.max_tokens: unknown key .*did you mean extract"),
        ("extract.max_tokens=1", r"--set extract.max_tokens: .* \(got 1\)"),
        ("rank.norm=none", "--set rank.norm: rank.norm is none, but extract.norms has only final"),
    ],
)
def test_a_set_that_cannot_be_is_one_sentence_that_names_it(
    tmp_path: Path, assignment: str, says: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "seed": 3}), encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        load(str(path), [assignment])


def test_a_secret_that_is_set_is_in_no_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "storage": {"secret": "hunter2"}}), encoding="utf-8")
    for assignment in (
        "storage.secret={hunter2",
        "storage.secret.x=hunter2",
        "storage.key=[hunter2]",
        "storage.secret: hunter2",
        "storage.secret:hunter2=",
        "storage.secret hunter2==",
        "{storage: {secret: hunter2}}",
    ):
        with pytest.raises(ConfigError, match=r"^--set \{?storage") as caught:
            load(str(path), [assignment])
        assert "hunter2" not in str(caught.value)


def test_the_limit_is_the_most_rows_of_every_dataset() -> None:
    def limits(most: int) -> list[int]:
        return [
            each["limit"]
            for each in limited(yaml.safe_load(yaml.safe_dump(CONFIG)), most)["datasets"]
        ]

    assert limits(20) == [20, 20, 20]
    assert limits(200) == [50, 200, 200]
    assert load("demo", limit=7).datasets[0].limit == 7
    with pytest.raises(ConfigError, match="--limit 7: the tasks of mteb"):
        limited({"tasks": {"mteb": "STS12"}}, 7)


def test_the_recipe_of_scores_is_set_too() -> None:
    recipe = scores_recipe("published", ["policy=cheapest_equal"])
    assert recipe is not None
    assert (recipe.policy, recipe.output) == ("cheapest_equal", "layerrank-published")
    assert Path(recipe.scores).is_file()


def test_a_config_that_is_not_there_is_answered_with_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("name: mine", encoding="utf-8")
    for given, meant in (("mien.yaml", "mine.yaml"), ("mine", "mine.yaml"), ("demoo", "demo")):
        with pytest.raises(ConfigError, match=rf"did you mean {meant}\?"):
            load(given)
    (tmp_path / "mine.yaml").rename(tmp_path / "bin.yaml")
    with pytest.raises(ConfigError, match=r"No such file or directory$"):
        load("mine.yaml")


def test_a_path_is_answered_with_the_nearest_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("texts/rows.json", "texts/q.sql", "bin.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = {
        "text": "texts",
        "./text": "texts",
        "texts/rows.jso": "texts/rows.json",
        "texts/rows": "texts/rows.json",
        f"{tmp_path}/texts/q.sq": f"{tmp_path}/texts/q.sql",
        **dict.fromkeys(
            ["mine.yaml", "mine.yml", "texts/q.yaml", "gone/rows.jso", "", "s3://text"]
        ),
    }
    for given, meant in found.items():
        assert did_you_mean_path(given) == (f"; did you mean {meant}?" if meant else ""), given
    assert did_you_mean_path("text", Path.is_file) == ""
    monkeypatch.setattr(config, "_MOST_BESIDE", 1)
    assert did_you_mean_path("text") == ""


def test_a_key_given_twice_is_refused_without_its_values(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\nstorage:\n  secret: one-of-them\n  secret: the-other\n")
    with pytest.raises(ConfigError) as refused:
        load(str(path))
    said = str(refused.value)
    assert f"{path} is refused: line 4" in said
    assert "'secret' is given twice, in lines 3 and 4" in said
    assert "one-of-them" not in said
    assert "the-other" not in said


def test_a_long_value_is_not_shown_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    path.write_text(f"name: a\nsubjects: {'x' * 100_000}\ndatasets: []\n")
    with pytest.raises(ConfigError) as refused:
        load(str(path))
    assert len(str(refused.value)) < 1000
