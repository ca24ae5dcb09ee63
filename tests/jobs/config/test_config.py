"""Configs: what loads, is refused, stays secret, and is replaced by the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import ValidationError

from layerrank.jobs.cli.parser import build
from layerrank.jobs.config import recipes
from layerrank.jobs.config import run as configs
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import PROTOCOL, DatasetConfig, Task
from layerrank.jobs.config.metrics import left_out, metrics_of, parameters, token_metrics
from layerrank.jobs.config.run import RunConfig, load, overridden, parse
from layerrank.jobs.config.settings import StorageConfig
from layerrank.jobs.prepare.records import PROMPT
from layerrank.jobs.prepare.sources import KINDS
from layerrank.jobs.subjects import check, resolve
from layerrank.jobs.tasks.types import TYPES
from layerrank.operators.benchmark import tasks as benchmark_tasks
from layerrank.operators.metrics.registry import METRICS, token_variants
from layerrank.operators.model.subject import ModelUnavailableError
from layerrank.storage.layers import metric_column
from layerrank.storage.schema import TOKEN_METRICS

SECRET = "hunter2"
DATASET: dict[str, Any] = {"name": "data", "source": {"files": "texts.jsonl"}}
PAIRS = (
    "{name: t, type: sts, first_column: one, second_column: two, score_column: a, split_column: b}"
)
NAMES = [repr(name) for each in TYPES for name in get_args(each.model_fields["type"].annotation)]
BARE: dict[str, Any] = {"name": "bare", "subjects": [{"model": "m"}], "datasets": [DATASET]}


def run_with(**changes: Any) -> RunConfig:  # noqa: ANN401
    return parse(yaml.safe_dump({**BARE, **changes}), "run.yaml")


def refusal(**changes: Any) -> str:  # noqa: ANN401
    return refused_text(yaml.safe_dump({**BARE, **changes}))


def refused_text(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, "run.yaml")
    return str(caught.value)


def test_recipes_load_whatever_lies_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in recipes():
        if recipe := configs.scores_recipe(name):
            assert Path(recipe.scores).is_file()
            with pytest.raises(ConfigError, match="ranks scores, without a model"):
                load(name)
        else:
            assert load(name).name == name
    kinds = [task.type for task in load("demo").datasets[0].tasks]
    assert kinds == ["classification", "clustering", "retrieval"]
    known = ", ".join(recipes())
    assert "demo, encoder, paper, perturbations" in known
    with pytest.raises(ConfigError, match=rf"unknown recipe 'nope'.*{known}.*yaml"):
        load("nope")


def test_a_file_loads_and_its_errors_name_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text(yaml.safe_dump(BARE))
    assert load(str(path)).name == "bare"
    path.write_text(yaml.safe_dump({**BARE, "seed": "many"}))
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "binary.yaml").write_bytes(b"name: \xff\xfe")
    for name, problem in {
        "mine.yml": r"mine\.yml: seed: .*whole number.*'many'",
        "gone.yaml": r"cannot read config .*gone\.yaml: No such file",
        "folder.yaml": r"cannot read config .*folder\.yaml: Is a directory",
        "binary.yaml": r"cannot read config .*binary\.yaml: it is not UTF-8",
    }.items():
        with pytest.raises(ConfigError, match=problem):
            load(str(tmp_path / name))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: a: b", "not valid YAML: line 1, column 8: mapping values are not"),
        ("name: a\x00", "not valid YAML: "),
        ("name: 2024-99-99", "not valid YAML: month"),
        ("- name", "a mapping of keys.* a list"),
        ("", "a mapping of keys.* empty"),
    ],
)
def test_what_is_no_mapping_in_yaml_is_refused(text: str, problem: str) -> None:
    assert re.match(f"run.yaml (is|must be) {problem}", refused_text(text))


# Values that a key refuses; of a list it is the last item that is wrong.
BAD = yaml.safe_load("""
extract: {device: [tpu], norms: [[], final, [final, final]], max_tokens: [1]}
measure: {metrics: [[dime, entropy], [dime, dime]], alphas: [[], [.inf], [1, 0], [2, 2.0]],
  normalizations: [[logT]], token_metrics: ['on'], temperature: [0]}
views: {keyboard: [1.5], split: [-0.1], random_char: [.nan], count: [100]}
probe: {variants: [[], [l2, l2]], replicates: [-1]}
rank: {draws: [99], level: [1], policy: [cheap], search: [quick], variant: [l1]}
curves: {noise: [[0.1, 1.5], [0], [0.125], [0.1, 0.10]], examples: [[2, 0], [2, 2]]}
conditions: {random: [[0.1, 1.5], [0.1, 0.10]], repeat: [[-0.1]], noise: [[0.125]], truncate: [[0]],
  length: [[0]]}
nightly: {score_drop: [-0.1, 1], layer_moved: [1.5], metric_jump: [0], changes: [1],
  lease_seconds: [1]}
""")


@pytest.mark.parametrize(
    ("block", "key", "value"),
    [(block, key, each) for block in BAD for key, values in BAD[block].items() for each in values],
)
def test_a_value_out_of_bounds_is_named_with_its_key(block: str, key: str, value: object) -> None:
    message = refusal(**{block: {key: value}})
    assert re.match(rf"run\.yaml: {block}\.{key}(\.\d)?: ", message)
    assert str(value[-1] if isinstance(value, list) and value else value) in message.split(": ")[2]


OF_DATA = "datasets: [{name: data, source: {files: texts.jsonl}, %s}]"
OF_TASKS = OF_DATA % "tasks: [%s]"
OF_SOURCE = "datasets: [{name: data, source: %s}]"
OWN = ["limit: 5", "min_chars: 1", "text_column: text", "id_column: id", "tasks: 5"]
OWN += ["tasks: [{name: t, type: clustering, label_column: a}]"]
ONE_OF = "exactly one of builtin, hub, files, folder, mteb"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ("{rank: {variant: z}, candidates: null}", "z, but probe.variants has only raw, l2$"),
        ("probe: {variants: [z]}", r"probe\.variants\.0: "),
        ("candidates: {transforms: [zz]}", r"candidates\.transforms\.0: "),
        # Unknown keys are named with the known ones.
        (
            "extrct: {}",
            "unknown key extrct; known keys: candidates, cluster, conditions, curves, dat",
        ),
        ("1: 2", "unknown key 1; known keys"),
        ("extract: {nroms: [final]}", "extract: unknown key nroms; .*max_tokens, norms"),
        ("conditions: {shuffle: [0.1]}", "conditions: unknown key shuffle; .*repeat"),
        (OF_SOURCE % "{hub: a, splt: b}", r"0\.source: unknown key splt; .*config, hub, revis"),
        (OF_TASKS % "{type: sts, name: a, b: c}", r"0\.sts \(task a\): unknown key b.*first_"),
        (OF_TASKS % "{type: summary, name: a}", rf"0 \(task a\): .*'summary'.*{', '.join(NAMES)}"),
        # So are the choices.
        ("extract: {device: tpu}", "extract.device: .*'auto', 'cpu' or 'cuda'.*'tpu'"),
        ("measure: {metrics: [entropy]}", "unknown metric entropy; .*lidar, dime"),
        ("measure: {metrics: ['a b:f']}", "unknown metric a b:f; .*package.module:name"),
        (OF_TASKS % "{type: 'a.b:C:d', name: a}", r"0\.own\.type \(task a\): .*:Class .*'a.b:C:d'"),
        (OF_TASKS % "{type: 'a:C', name: a, b_column: 1}", r"\(task a\): b_column names a column"),
        (
            OF_TASKS % "{type: 'a:C', name: a, first_column: b}",
            r"own_pairs\.second_column.*missing",
        ),
        (OF_TASKS % "{name: a}", r"0 \(task a\): a task has a name and a type: one of 'class"),
        ("name: a/b", "name: .*'a/b'"),
        ("subjects: []", r"subjects: .*at least 1.*\[\]"),
        ("subjects: [{model: m, dtype: int8}]", r"subjects\.0\.dtype: .*'bfloat16'"),
        (OF_DATA % "min_chars: -1", r"datasets\.0\.min_chars: .*-1"),
        # A source is of exactly one kind.
        (OF_SOURCE % "{}", rf"datasets\.0\.source: give {ONE_OF}; got \[\]$"),
        (OF_SOURCE % "{hub: a, files: b}", rf"give {ONE_OF}; got \['files', 'hub'\]$"),
        (OF_SOURCE % "{mteb: One, hub: a}", rf"give {ONE_OF}; got \['hub', 'mteb'\]$"),
        (OF_SOURCE % "t.jsonl", rf"source: give a mapping with {ONE_OF} \(got 't\.jsonl'\)$"),
        (OF_SOURCE % "{builtin: novels}", r"source\.builtin: .*'docstrings' \(got 'novels'\)"),
        (OF_SOURCE % "{files: b, format: xml}", r"source\.format: .*'jsonl'.*'xml'"),
        (OF_SOURCE % "{files: []}", r"source\.files: .*at least 1"),
        # Names are used once, and are none of those that the tables use.
        ("datasets: [&a {name: a, source: {files: b}}, *a]", "dataset name a is used twice$"),
        (
            OF_TASKS % "&a {name: a, type: clustering, label_column: a}, *a",
            "task name a is used tw",
        ),
        (OF_TASKS % f"{{name: {PROMPT}, type: sts}}", r"datasets\.0\.tasks\.0\.sts\.name"),
        (OF_TASKS % "clustering", r"datasets\.0\.tasks\.0: "),
        # Tasks of mteb bring their texts, and take no columns of your own.
        (OF_TASKS % "{type: mteb, name: One}", r"0: task One of .* its own .*source: {mteb: "),
        ("tasks: {mteb: []}", "tasks: mteb: .*at least 1 .*; tasks on columns of your own"),
        ("tasks: {mtb: One}", "tasks: unknown key mtb; known keys: modules, mteb; "),
        ("tasks: [One]", "tasks: .*give a mapping"),
        ("{tasks: {mteb: One}, datasets: mine}", "datasets: .*give a list"),
        (OF_SOURCE % "{mteb: 1}", r"datasets\.0\.source\.mteb: "),
        *((OF_SOURCE % f"{{mteb: One}}, {own}", f"leave out {own.split(':')[0]}$") for own in OWN),
        # What is ranked is extracted and scored, and what a condition needs is kept.
        ("extract: {norms: [none]}", "rank.norm is final, but extract.norms has only none$"),
        ("extract: {poolings: [last, first]}", "is mean, but .*poolings has only last, first$"),
        (
            "{rank: {variant: l2}, probe: {variants: [raw]}, candidates: null}",
            "l2, but .*variants has only raw$",
        ),
        ("{conditions: {length: [8, 9]}, extract: {max_tokens: 8}}", "is 9.*max_tokens allows 8"),
        ("{conditions: {random: [1]}, measure: {token_metrics: stored}}", "is stored.*fused, both"),
    ],
)
@pytest.mark.usefixtures("known_mteb")
def test_what_is_wrong_is_named_with_its_key_and_the_choices(changes: str, problem: str) -> None:
    message = refusal(**{str(key): value for key, value in yaml.safe_load(changes).items()})
    assert message.startswith("run.yaml: ")
    assert re.search(problem, message), message


def test_every_block_has_an_entry_and_every_protocols_setting_is_a_field() -> None:
    tasks = tuple(block for block, _ in map(get_args, get_args(get_args(Task)[0])))
    assert tuple(TYPES) == tasks
    assert tuple(KINDS) == get_args(DatasetConfig.model_fields["source"].annotation)
    assert {name for each in tasks for name in each.model_fields} >= PROTOCOL
    assert not {name for name in PROTOCOL if name.endswith("_column")}
    for kind in TYPES.values():
        assert kind.columns.names[0] == "row"
        assert kind.columns.metadata[b"layerrank.table"] == b"tasks"
        assert not any(column.nullable for column in kind.columns)


def test_the_bounds_themselves_are_fine_and_curves_ascend() -> None:
    levels = [number / 100 for number in range(1, 101)]
    curves = run_with(curves={"noise": levels[::-1], "examples": [32, 1, 2]}).curves
    assert (curves.noise, curves.examples) == (tuple(levels), (1, 2, 32))
    bounds = yaml.safe_load("""
    extract: {norms: [none], poolings: [last, first], max_tokens: 2}
    views: {keyboard: 0, split: 1, count: 99}
    probe: {replicates: 0}
    rank: {norm: none, pooling: first, draws: 100}
    nightly: {score_drop: 0, layer_moved: 0, changes: 2, lease_seconds: 5}
    """)
    found = run_with(**bounds).model_dump(mode="json")
    assert {block: {key: found[block][key] for key in bounds[block]} for block in bounds} == bounds


def test_metrics_of_views_need_two_views() -> None:
    one = {"metrics": ["curvature", "dime"]}
    for count in (0, 1):
        said = (
            f"run.yaml: views.count is {count}, but dime needs at least 2 views: .*measure.metrics$"
        )
        assert re.match(said, refusal(views={"count": count}, measure=one))
    said = "run.yaml: views.count is 1, but infonce, lidar, dime need at least 2 views: .* or 0, "
    assert re.match(said, refusal(views={"count": 1}))
    assert run_with(views={"count": 2}, measure=one).views.count == 2
    # Asked for by no name, they are left out where there are no views, and that is said.
    without = run_with(views={"count": 0})
    assert metrics_of(without) == tuple(METRICS)[:-3]
    assert left_out(without).endswith("no infonce, lidar, dime.")
    assert metrics_of(run_with()) == tuple(METRICS)
    assert left_out(run_with()) == left_out(run_with(measure=one)) == ""
    for metrics in (["prompt_entropy", "curvature", "dataset_entropy"], []):
        measure = run_with(views={"count": 0}, measure={"metrics": metrics}).measure
        assert measure.metrics == tuple(metrics)
    assert run_with().measure.metrics == tuple(METRICS)


@pytest.mark.parametrize(
    ("key", "given", "metric", "fewest"),
    [
        ("measure.neighbour_sample", "measure: {neighbour_sample: 5}", "twonn", 20),
        ("measure.dime_sample", "measure: {dime_sample: 1}", "dime", 2),
        ("views.sample", "views: {sample: 1}", "lidar", 2),
        ("limit of dataset data", OF_DATA % "limit: 3", "cka_last", 4),
    ],
)
def test_too_few_prompts_for_a_named_metric_name_the_bound(
    key: str, given: str, metric: str, fewest: int
) -> None:
    changes = yaml.safe_load(given)
    message = refusal(**{**changes, "measure": {**changes.get("measure", {}), "metrics": [metric]}})
    words = rf"run.yaml: {key} leaves [135] prompts, but {metric} needs at least {fewest}; raise it"
    assert re.match(words + f", or leave {metric} out of measure.metrics", message)
    # Not asked for by name, what has too few prompts is undefined in the results instead.
    assert run_with(**changes).measure.metrics == tuple(METRICS)


def test_secrets_reach_s3fs_and_nothing_else() -> None:
    secrets = {"key": "K" + SECRET, "secret": SECRET, "token": SECRET}
    nightly = {"webhook": f"https://a.example/{SECRET}"}
    config = run_with(storage={**secrets, "region": "eu-west-1"}, nightly=nightly)
    expected = {**secrets, "client_kwargs": {"region_name": "eu-west-1"}}
    assert config.storage.options() == expected
    for shown in (repr(config), str(config), config.model_dump_json(), repr(config.model_dump())):
        assert "bare" in shown
        assert SECRET not in shown
    assert run_with().storage.options() == {}


@pytest.mark.parametrize(
    "storage",
    [
        "{secret: [hunter2]}",
        "{secrt: hunter2}",
        "hunter2",
        "{secret: hunter2",
        "{secret: *hunter2}",
        "{secret: !hunter2 x}",
        "\n  secret: hunter2: x",
    ],
)
def test_errors_never_show_a_secret(storage: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"{yaml.safe_dump(BARE)}storage: {storage}\n", "run.yaml")
    # A traceback prints the cause too.
    assert SECRET not in f"{caught.value} {caught.value.__cause__}"
    assert caught.value.__cause__ is not None or caught.value.__suppress_context__


def test_a_config_is_frozen() -> None:
    config = run_with()
    with pytest.raises(ValidationError, match="frozen"):
        config.extract.max_tokens = 9  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "texts", "others"),
    [
        ("tasks: []", ["text"], []),
        ("tasks: [{name: t, type: retrieval, query_column: one}]", ["text", "one"], []),
        # Read is the text column if a task needs it, nobody else, or it is asked for.
        (f"tasks: [{PAIRS}]", ["one", "two"], ["b", "a"]),
        (f"tasks: [{PAIRS}], text_column: text", ["text", "one", "two"], ["b", "a"]),
        ("tasks: [], id_column: key", ["text"], ["key"]),
        # Each once.
        (
            "text_column: body, tasks: ["
            "{name: a, type: classification, label_column: topic, split_column: s},"
            "{name: b, type: clustering, label_column: topic},"
            "{name: c, type: retrieval, query_column: title},"
            "{name: d, type: retrieval, query_column: title, document_column: note}]",
            ["body", "title", "note"],
            ["s", "topic"],
        ),
    ],
)
def test_the_columns_are_those_that_are_needed(
    changes: str, texts: list[str], others: list[str]
) -> None:
    dataset = run_with(**yaml.safe_load(OF_DATA % changes)).datasets[0]
    assert dataset.text_columns == tuple(texts)
    assert dataset.columns == (*texts, *others)


@pytest.fixture
def known_mteb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks of mteb by name, without the seconds that its import takes."""

    def names(spec: Sequence[str], _modules: Sequence[str]) -> list[str]:
        return [part for name in spec for part in {"pair": ["One", "Two"]}.get(name, [name])]

    monkeypatch.setattr(benchmark_tasks, "task_names", names)


@pytest.mark.usefixtures("known_mteb")
def test_tasks_of_mteb_are_a_dataset_of_their_own() -> None:
    short = run_with(tasks={"mteb": "pair", "modules": "my.tasks"})
    assert [each.name for each in short.datasets] == ["data", "mteb"]
    source = {"mteb": ["pair"], "modules": ["my.tasks"]}
    assert short == run_with(datasets=[DATASET, {"name": "mteb", "source": source}])
    dataset = short.datasets[1]
    assert [(task.type, task.name) for task in dataset.tasks] == [("mteb", "One"), ("mteb", "Two")]
    assert dataset.text_columns == ("text",)
    assert dataset.columns == ("text", "task", "prompt_type")
    assert dataset.keeps_blank
    for nothing in ("", "datasets: null", "datasets: []"):
        text = f"name: bare\nsubjects: [{{model: m}}]\ntasks: {{mteb: One}}\n{nothing}"
        assert [each.name for each in parse(text, "run.yaml").datasets] == ["mteb"]


def test_an_unknown_task_of_mteb_names_close_ones() -> None:
    pytest.importorskip("mteb", reason="tasks of mteb are the extra `mteb`")
    message = refusal(tasks={"mteb": "Banking77Clasification"})
    assert "'Banking77Clasification'; close to it: Banking77Classification" in message


RECIPE = run_with(
    subjects=[{"model": "org/one", "dtype": "bfloat16", "trust_remote_code": True, "name": "1"}]
)


def overridden_with(config: RunConfig, *words: str) -> RunConfig:
    return overridden(config, build().parse_args(["run", "demo", *words]))


def test_subjects_are_replaced_and_trust_is_not_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert overridden_with(RECIPE) is RECIPE
    config = overridden_with(RECIPE, "--subject", str(tmp_path), "--subject", "mine=org/two")
    first, second = config.subjects
    assert (first.model, first.dtype, first.trust_remote_code) == (str(tmp_path), "bfloat16", False)
    assert (second.model, second.name) == ("org/two", "mine")
    assert config.datasets == RECIPE.datasets
    mixed = run_with(subjects=[{"model": "org/one", "dtype": "bfloat16"}, {"model": "org/two"}])
    assert overridden_with(mixed, "--subject", "org/three").subjects[0].dtype == "float32"
    # An equals sign in the name of a folder or an address names nothing.
    (tmp_path / "run=1").mkdir()
    monkeypatch.chdir(tmp_path)
    (here,) = overridden_with(RECIPE, "--subject", "run=1").subjects
    assert (here.model, here.name) == (str(tmp_path / "run=1"), "")
    (tmp_path / "q4.gguf").write_bytes(b"")
    (file,) = overridden_with(RECIPE, "--subject", "q4.gguf").subjects
    assert file.model == str(tmp_path / "q4.gguf")
    for model in ("owner/name/q4.gguf", "owner/name/inside/q4.gguf"):
        assert overridden_with(RECIPE, "--subject", model).subjects[0].model == model
    (remote,) = overridden_with(RECIPE, "--subject", "s3://bucket/run=1/step8").subjects
    assert (remote.model, remote.name) == ("s3://bucket/run=1/step8", "")


def test_revisions_make_a_sweep_of_what_is_given_or_of_the_config(tmp_path: Path) -> None:
    main = run_with(subjects=[{"model": "org/m", "revision": "main"}])
    for config, words in ((main, []), (RECIPE, ["--subject", str(tmp_path)])):
        (swept,) = overridden_with(config, *words, "--revisions", "step*").subjects
        assert (swept.revision, swept.revisions) == ("", "step*")
    for step in ("step8", "step64", "notes"):
        (tmp_path / step).mkdir()
    given = overridden_with(RECIPE, "--subject", str(tmp_path))
    (parent,) = resolve(given.subjects, given.storage)
    with pytest.raises(ModelUnavailableError, match=r"only folders \(notes, step64, step8\): give"):
        check(parent, StorageConfig())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--subject", "./nowhere"), r"--subject \./nowhere: there is no such folder, and it is"),
        (("--subject", "a/b/c"), "--subject a/b/c: there is no such folder"),
        (("--subject", "a/q4.gguf"), r"--subject a/q4\.gguf: there is no such folder"),
        (("--subject", ""), "--subject '': there is no such folder"),
        (("--revisions", ""), "--revisions is empty"),
    ],
)
def test_what_names_no_model_is_an_error(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        overridden_with(RECIPE, *words)


def test_full_is_the_views_of_the_papers_in_an_output_of_its_own() -> None:
    assert (load("paper").views.count, load("paper").views.sample) == (16, 1000)
    for config, output in (
        (load("quickcheck"), "layerrank-quickcheck-full"),
        (run_with(views={"count": 0, "split": 0.5}, output="s3://a/b/"), "s3://a/b-full"),
        (run_with(), None),
    ):
        found = overridden_with(config, "--full")
        assert (found.output, found.views.split) == (output, config.views.split)
        assert metrics_of(found) == tuple(METRICS)
        # They count as named: a root's own defaults do not take their place.
        given = found.model_dump(exclude_unset=True)["views"]
        assert (given["count"], given["sample"]) == (16, 1000)
    with pytest.raises(ConfigError, match=r"metrics of perturbations has no metric that"):
        overridden_with(load("perturbations"), "--full")


@pytest.mark.parametrize(
    ("recipe", "count", "sample"),
    [
        *((name, 4, 256) for name in ("quickcheck", "encoder")),
        *((name, 16, 200) for name in ("architectures", "training")),
        *((name, 16, 1000) for name in ("paper", "pythia-410m")),
    ],
)
def test_recipes_of_the_papers_keep_their_views(recipe: str, count: int, sample: int) -> None:
    views = load(recipe).views
    assert (views.count, views.sample) == (count, sample)
    # Named, so that another default changes no number of theirs.
    assert ("count" in views.model_fields_set) == (count == 16)


def test_every_token_metric_of_the_defaults_has_a_column() -> None:
    config = run_with()
    asked = token_variants(token_metrics(config), parameters(config))
    assert {metric_column(*each) for each in asked} == set(TOKEN_METRICS)
