"""Which template each side of a task is read in: the task's, its column's, or the model's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import DatasetConfig
from layerrank.jobs.config.prompts import (
    OwnPrompts,
    by_template,
    prefixes,
    require_no_noise,
    sides,
    told,
)
from layerrank.jobs.config.run import RunConfig, parse
from layerrank.jobs.config.settings import StorageConfig
from layerrank.jobs.config.stored import shown
from layerrank.jobs.subjects import own_prompts
from layerrank.operators.model.subject import ModelUnavailableError, Subject
from layerrank.operators.prompts.templates import Template

NOBODY = OwnPrompts()
TASKS = yaml.safe_load("""
topic: {type: classification, label_column: a}
many: {type: classification, label_column: a, multi_label: true}
groups: {type: clustering, label_column: a}
alike: {type: sts, first_column: title, second_column: body, score_column: a}
order: {type: reranking, query_column: title, candidate_column: body, relevance_column: a}
find: {type: retrieval, query_column: title, document_column: title}
""")


def dataset(prompts: Any = None, **tasks: dict[str, Any]) -> DatasetConfig:  # noqa: ANN401
    """Return a dataset with tasks by name, each with keys of its own."""
    blocks = [{"name": name, **TASKS[name], **own} for name, own in tasks.items()]
    values = {"name": "data", "source": {"files": "x.csv"}, "tasks": blocks, "prompts": prompts}
    return DatasetConfig.model_validate(values)


def words(found: DatasetConfig, own: OwnPrompts = NOBODY) -> dict[tuple[str, str], str]:
    return {
        (side.task.name, side.name): side.template.words for side in sides(found, own, imports=True)
    }


def test_a_column_has_a_template_and_a_task_another() -> None:
    columns = {"title": "title: {text}", "text": "passage: {text}"}
    found = dataset(
        columns,
        topic={},
        groups={"prompt": "{text}"},
        alike={},
        order={"document_prompt": "a: {text}"},
        find={"query_prompt": "q: {text}", "document_prompt": "d: {text}"},
    )
    assert words(found) == {
        ("topic", "prompt_id"): "passage: {text}",
        ("alike", "first_id"): "title: {text}",
        ("order", "query_id"): "title: {text}",
        ("order", "candidate_id"): "a: {text}",
        ("find", "query_id"): "q: {text}",
        ("find", "candidate_id"): "d: {text}",
    }
    assert words(dataset(None, alike={"prompt": "both: {text}"})) == {
        ("alike", "first_id"): "both: {text}",
        ("alike", "second_id"): "both: {text}",
    }
    assert words(dataset(None, topic={}, find={})) == {}


def test_the_models_own_prompts_are_taken_by_type_and_side() -> None:
    every = dataset("auto", topic={}, many={}, groups={"prompt": "own: {text}"}, alike={}, find={})
    e5 = OwnPrompts({"query": "query: ", "passage": "passage: "})
    assert words(every, e5) == {
        ("groups", "prompt_id"): "own: {text}",
        ("find", "query_id"): "query: {text}",
        ("find", "candidate_id"): "passage: {text}",
    }
    prompts = {
        "Classification": "class: ",
        "STS": "alike: ",
        "Retrieval-query": "find: ",
        "query": "query: ",
        "document": "",
        "usual": "usual: {0} ",
    }
    assert words(every, OwnPrompts(prompts, "usual")) == {
        ("topic", "prompt_id"): "class: {text}",
        ("many", "prompt_id"): "usual: {0} {text}",
        ("groups", "prompt_id"): "own: {text}",
        ("alike", "first_id"): "alike: {text}",
        ("alike", "second_id"): "alike: {text}",
        ("find", "query_id"): "find: {text}",
    }
    assert [*told(dataset("auto", topic={}), [])] == [
        "data: prompts is auto, and the model comes with none for its tasks"
    ]


def test_tasks_of_mteb_have_prompts_by_what_mteb_calls_them() -> None:
    pytest.importorskip("mteb", reason="the extra mteb is not installed")
    own = {"mteb": ["LocalRetrieval", "LocalSTS"], "modules": ["tests.support.mteb.local"]}

    def of_mteb(prompts: Any) -> DatasetConfig:  # noqa: ANN401
        values = {"name": "mteb", "source": own, "prompts": prompts}
        return DatasetConfig.model_validate(values)

    given = {"query": "query: {text}", "LocalSTS": "alike: {text}", "Retrieval": "any: {text}"}
    assert words(of_mteb(given)) == {
        ("LocalRetrieval", "none"): "any: {text}",
        ("LocalRetrieval", "query"): "any: {text}",
        ("LocalRetrieval", "document"): "any: {text}",
        ("LocalSTS", "none"): "alike: {text}",
        ("LocalSTS", "query"): "alike: {text}",
        ("LocalSTS", "document"): "alike: {text}",
    }
    saved = OwnPrompts({"query": "saved: "}, models=("folder", "intfloat/e5-base-v2"))
    assert words(of_mteb("auto"), saved)["LocalRetrieval", "query"] == "query: {text}"
    unknown = OwnPrompts({"query": "saved: "}, models=("folder",))
    assert words(of_mteb("auto"), unknown)["LocalRetrieval", "query"] == "saved: {text}"
    assert sides(of_mteb(given), NOBODY) == []  # who only looks imports no module
    with pytest.raises(ValueError, match="prompts: passage is no prompt of its tasks; choose from"):
        of_mteb({"passage": "passage: {text}"})


def test_reading_a_config_imports_no_module_of_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mteb", reason="the extra mteb is not installed")
    (tmp_path / "named_by_a_config.py").write_text("raise SystemError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    source = {"mteb": ["Mine", "STS12"], "modules": ["named_by_a_config"]}
    prompts = {"Mine": "mine: {text}", "Retrieval-query": "q: {text}", "STS": "alike: {text}"}
    values = {"name": "mteb", "source": source, "prompts": prompts}
    found = DatasetConfig.model_validate(values)
    assert [task.name for task in found.tasks] == ["Mine", "STS12"]
    assert {side.task.name for side in sides(found, NOBODY)} == {"STS12"}
    with pytest.raises(SystemError, match="imported"):
        sides(found, NOBODY, imports=True)


def test_sides_of_one_template_are_one_pass_and_told_together() -> None:
    found = dataset({"title": "q: {text}"}, alike={}, find={"document_prompt": "d: {text}"})
    q, d = Template("q: {text}"), Template("d: {text}")
    assert {key: [*map(str, each)] for key, each in by_template(sides(found, NOBODY)).items()} == {
        d: ["find (document)"],
        q: ["alike", "find (query)"],
    }
    assert [*told(found, sides(found, NOBODY))] == [
        f"data: {d.condition} is 'd: {{text}}', for find (document)",
        f"data: {q.condition} is 'q: {{text}}', for alike, find (query)",
    ]


def test_an_exported_model_has_the_prefixes_that_all_sides_agree_on() -> None:
    e5 = {"query_prompt": "query: {text}", "document_prompt": "passage: {text}"}
    assert prefixes(
        sides(dataset(None, find=e5, order=e5, topic={"prompt": "x {text}"}), NOBODY)
    ) == {
        "query": "query: ",
        "document": "passage: ",
    }
    other = {"query_prompt": "other: {text}", "document_prompt": 'say "{text}"'}
    assert prefixes(sides(dataset(None, find=e5, order=other), NOBODY)) == {}


def test_noisy_texts_of_a_fitted_task_with_a_template_are_refused() -> None:
    found = sides(dataset(None, topic={"prompt": "q: {text}"}), NOBODY)
    require_no_noise(found, ())
    require_no_noise(sides(dataset(None, groups={"prompt": "q: {text}"}), NOBODY), (0.2,))
    with pytest.raises(ConfigError, match=r"task topic reads its texts in 'q: \{text\}'"):
        require_no_noise(found, (0.2,))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"tasks": [{**TASKS["topic"], "name": "t", "prompt": "query: "}]},
            "this has it 0 times (got 'query: ')",
        ),
        ({"prompts": {"text": "{text} {text}"}}, "this has it 2 times (got '{text} {text}')"),
        ({"prompts": {"body": "q: {text}"}}, "prompts: body is no text column; choose from text"),
        ({"prompts": "query: {text}"}, "give auto, or columns with a template each"),
        (
            {"tasks": [{**TASKS["find"], "name": "t", "prompt": "q: {text}"}]},
            "unknown key prompt; known keys: document_column, document_prompt",
        ),
    ],
)
def test_what_is_no_prompt_of_a_dataset_is_named(changes: dict[str, Any], said: str) -> None:
    values = {"name": "data", "source": {"files": "x.csv"}, **changes}
    run = {"name": "run", "subjects": [{"model": "m"}], "datasets": [values]}
    with pytest.raises(ConfigError) as refused:
        parse(yaml.safe_dump(run), "run.yaml")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_prompts_are_kept_in_a_root_as_they_are_given_and_change_no_other_settings() -> None:
    blocks: dict[str, Any] = {
        "topic": {"prompt": {"chat": "{text}"}},
        "find": {"query_prompt": "q: {text}"},
    }
    given, bare = dataset({"title": "t: {text}"}, **blocks), dataset(topic={}, find={})
    for prompted, plain in zip(given.tasks, bare.tasks, strict=True):
        assert not {"prompt", "query_prompt", "document_prompt"} & plain.settings().keys()
        assert prompted.model_copy(update={}) != plain
    assert given.settings(exclude={"tasks", "prompts"}) == bare.settings(exclude={"tasks"})
    run = {"name": "run", "subjects": [{"model": "m"}], "datasets": [given.model_dump()]}
    config = RunConfig.model_validate(run)
    assert config.datasets == (given,)
    assert RunConfig.model_validate(yaml.safe_load(yaml.safe_dump(shown(config)))) == config


def test_a_models_own_prompts_lie_beside_its_weights(tmp_path: Path) -> None:
    def own(name: str, content: str | None) -> OwnPrompts:
        (tmp_path / name).mkdir()
        if content is not None:
            (tmp_path / name / "config_sentence_transformers.json").write_text(content)
        return own_prompts(Subject(str(tmp_path / name), "local", name), StorageConfig())

    saved = {"prompts": {"query": "query: ", "document": None}, "default_prompt_name": "query"}
    found = own("saved", json.dumps(saved))
    assert (found.prompts, found.default) == ({"query": "query: ", "document": ""}, "query")
    assert own("none", None).prompts == own("empty", "{}").prompts == {}
    with pytest.raises(ModelUnavailableError, match=r"cannot load model .*broken at rev"):
        own("broken", "{")
