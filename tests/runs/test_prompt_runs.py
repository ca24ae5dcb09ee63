"""Texts in templates through the real command line: which are read, in what, and what is scored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from layerrank.jobs.config.run import load
from layerrank.jobs.config.settings import StorageConfig
from layerrank.jobs.export import run_of, run_prompts
from layerrank.jobs.plan.limits import PRICE_1000_PUTS, PRICE_GB_MONTH
from layerrank.jobs.plan.plan import plan
from layerrank.jobs.plan.words import told
from layerrank.operators.model.subject import Subject
from layerrank.operators.probes.relevance import retrieval
from layerrank.operators.prompts.seeding import prompt_id
from layerrank.operators.prompts.templates import Template
from layerrank.storage.manifest import everything, require
from layerrank.storage.partition import Partition, partitions
from layerrank.storage.root import Root
from tests.conftest import Cli, edited, write_config
from tests.support.stored import ask, content
from tests.support.tiny import BLOCKS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
QUERY, PASSAGE = Template("query: {text}"), Template("passage: {text}")
ONE_WORD = Template('"{text}" in one word: "')
INSTRUCT = Template("Instruct: find it\nQuery: {text}")
TASKS: list[dict[str, Any]] = [
    {"name": "topic", "type": "classification", "label_column": "topic", "split_column": "part"},
    {"name": "groups", "type": "clustering", "label_column": "topic", "prompt": "{text}"},
    {"name": "find", "type": "retrieval", "query_column": "query", "query_prompt": "query: {text}"},
    # The same column read in two ways: as a document here, and as a query of another task.
    {"name": "back", "type": "retrieval", "query_column": "text", "document_column": "query"},
]
OWN: list[dict[str, Any]] = [
    {**TASKS[0], "samples_per_label": 4, "folds": 2, "prompt": ONE_WORD.words},
    {**TASKS[1], "folds": 2},
    TASKS[2],
    {**TASKS[3], "query_prompt": "query: {text}", "document_prompt": "{text}"},
]
MTEB = {"mteb": ["LocalRetrieval", "LocalReranking", "LocalSTS"]}
SOURCE = {**MTEB, "modules": ["tests.support.mteb.local"]}
LAST = (BLOCKS, "final", "mean")


@dataclass(frozen=True)
class Done:
    """A run with templates, its model, and what it told."""

    config: Path
    root: Root
    model: Path
    told: str

    def vectors(self, texts: Sequence[str], layer: int = BLOCKS) -> npt.NDArray[np.float32]:
        """Return vectors as the library makes them, text by text: means over all tokens."""
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        model = AutoModel.from_pretrained(self.model)
        found = []
        with torch.inference_mode():
            for text in texts:
                given = tokenizer(text, return_tensors="pt", truncation=True)
                states = model(given["input_ids"], output_hidden_states=True).hidden_states
                found.append(states[layer][0].mean(dim=0).numpy())
        return np.stack(found)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, cli: Cli) -> Done:
    pytest.importorskip("mteb", reason="the extra mteb is not installed")
    folder = tmp_path_factory.mktemp("prompts")
    model = Path(shutil.copytree(checkpoint, folder / "model"))
    saved = {"prompts": {"query": "query: ", "document": "passage: "}}
    (model / "config_sentence_transformers.json").write_text(json.dumps(saved))
    config = write_config(
        folder,
        model,
        extract={"norms": ["none", "final"], "max_tokens": 128, "workers": 1},
        views={"count": 2, "sample": 24},
        measure={"metrics": ["rankme", "curvature"]},
        cluster={"engine": "process"},
    )
    with edited(config) as values:
        values["datasets"][0] |= {"tasks": OWN, "prompts": {"text": "passage: {text}"}}
        instructed = {f"{name}-query": INSTRUCT.words for name in ("LocalRetrieval", "Reranking")}
        values["datasets"] += [
            {"name": "e5", "source": SOURCE, "prompts": "auto"},
            {"name": "instruct", "source": SOURCE, "prompts": instructed},
        ]
    told = cli("run", str(config), "--output", str(folder / "out")).stdout
    return Done(config, Root(str(folder / "out")), model, told)


def stored(
    root: Root, dataset: str, condition: str, group: tuple[int, str, str] = LAST
) -> dict[int, list[float]]:
    rows = ask(
        root,
        "SELECT prompt_id, vector FROM embeddings WHERE dataset = ? AND condition = ? "
        "AND layer = ? AND norm = ? AND pooling = ?",
        *(dataset, condition, *group),
    )
    return dict(rows)


def column(done: Done, name: str) -> list[str]:
    lines = (done.config.parent / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)[name] for line in lines]


@pytest.mark.parametrize(
    ("template", "columns"),
    [(QUERY, ["query", "text"]), (PASSAGE, ["text"]), (ONE_WORD, ["text"])],
)
def test_stored_vectors_are_those_of_the_texts_in_the_template(
    done: Done, template: Template, columns: list[str]
) -> None:
    texts = list(dict.fromkeys(text for name in columns for text in column(done, name)))
    whole = [template.around(text) for text in texts]
    for layer, norm in ((BLOCKS, "final"), (1, "none")):
        found = stored(done.root, "topics", template.condition, (layer, norm, "mean"))
        assert found.keys() == {prompt_id(text) for text in texts}, "no other text is read in it"
        ours_ND = np.array([found[prompt_id(text)] for text in texts])
        np.testing.assert_allclose(ours_ND, done.vectors(whole, layer), atol=1e-5)


def test_every_text_is_read_alone_too_and_metrics_are_of_that(done: Done) -> None:
    clean = stored(done.root, "topics", "clean")
    assert clean.keys() == {prompt_id(t) for name in ("text", "query") for t in column(done, name)}
    text = column(done, "text")[0]
    np.testing.assert_allclose(clean[prompt_id(text)], done.vectors([text])[0], atol=1e-5)
    assert ask(done.root, "SELECT DISTINCT condition FROM layer_metrics") == [("clean",)]


def test_the_template_is_told_and_lies_in_the_manifest_and_the_report(done: Done) -> None:
    where = Partition("embeddings", ("tiny", "local", "topics", ONE_WORD.condition))
    settings = require(done.root, where).settings
    assert settings["template"] == ONE_WORD.words
    assert [each[:2] for each in settings["texts"]] == [["topic", "prompt_id"]]
    line = f"topics: {QUERY.condition} is 'query: {{text}}', for find (query), back (query)"
    assert line in done.told
    (model,) = json.loads(done.root.read("report/small/report.json"))["subjects"]
    rows = {(each["dataset"], each["condition"]): each for each in model["prompts"]}
    assert rows["topics", ONE_WORD.condition]["template"] == ONE_WORD.words
    assert rows["e5", QUERY.condition]["sides"] == "LocalRetrieval (query), LocalReranking (query)"
    read = {(each["dataset"], each["condition"]): each["prompts"] for each in model["encoded"]}
    assert read["topics", QUERY.condition] == 120
    assert read["topics", PASSAGE.condition] == read["topics", ONE_WORD.condition] == 60
    assert read["e5", QUERY.condition] == read["instruct", INSTRUCT.condition] < 20
    page = done.root.read("report/small/index.html").decode()
    assert "In which templates texts were read" in page
    assert QUERY.condition in page


def score(done: Done, dataset: str, task: str) -> float:
    ((value,),) = ask(
        done.root,
        "SELECT avg(value) FROM probe_scores WHERE dataset = ? AND task = ? AND layer = ? "
        "AND norm = ? AND pooling = ? AND variant = 'raw'",
        *(dataset, task, *LAST),
    )
    return float(value)


def test_each_side_of_a_task_has_the_vectors_of_its_own_template(done: Done) -> None:
    texts, queries = column(done, "text"), column(done, "query")
    query_ND, passage_ND, asked_ND, plain_ND = (
        done.vectors([template.around(text) for text in each])
        for template, each in (
            (QUERY, queries),
            (PASSAGE, texts),
            (QUERY, texts),
            (Template("{text}"), queries),
        )
    )
    rows = [[row] for row in range(len(texts))]
    drawn: dict[str, Any] = {"seed": 42, "replicates": 0, "gains": [[1]] * len(rows)}
    (find,) = retrieval(query_ND, passage_ND, rows, **drawn)
    (back,) = retrieval(asked_ND, plain_ND, rows, **drawn)
    (bare,) = retrieval(plain_ND, done.vectors(texts), rows, **drawn)
    assert score(done, "topics", "find") == pytest.approx(find.value, abs=1e-6)
    assert score(done, "topics", "back") == pytest.approx(back.value, abs=1e-6)
    assert bare.value != pytest.approx(find.value, abs=1e-6)


@pytest.mark.parametrize(
    ("dataset", "prompts"),
    [
        ("e5", {"query": QUERY.words, "document": PASSAGE.words}),
        ("instruct", {"Retrieval-query": INSTRUCT.words, "Reranking-query": INSTRUCT.words}),
    ],
)
def test_scores_are_those_of_mteb_encoding_with_prompts(
    done: Done, dataset: str, prompts: Mapping[str, str]
) -> None:
    import mteb
    from mteb.models.abs_encoder import AbsEncoder

    from layerrank.operators.benchmark.score import model_meta
    from tests.support.mteb import local

    class Live(AbsEncoder):
        """Encodes whatever mteb hands it, in the prompt that mteb finds for it."""

        mteb_model_meta = model_meta("live", dataset)
        prompted: bool = True

        def encode(
            self,
            inputs: Any,  # noqa: ANN401
            *,
            task_metadata: Any,  # noqa: ANN401
            prompt_type: Any = None,  # noqa: ANN401
            **_: object,
        ) -> Any:  # noqa: ANN401
            self.model_prompts = dict(prompts) if self.prompted else None
            name = self.get_prompt_name(task_metadata, prompt_type)
            words = prompts[name] if name else "{text}"
            texts = [text for batch in inputs for text in batch["text"]]
            return done.vectors([words.replace("{text}", text) for text in texts])

    def live(task: str, *, prompted: bool = True) -> float:
        encoder = Live()
        encoder.prompted = prompted
        whole = getattr(local, task)()
        options: dict[str, Any] = {"co2_tracker": False, "show_progress_bar": False}
        found = mteb.evaluate(encoder, whole, cache=None, **options)
        return float(found.task_results[0].get_score())

    for task in MTEB["mteb"]:
        assert score(done, dataset, task) == pytest.approx(live(task), abs=2e-6), task
    # The prompts do something, or nothing would have been tested.
    assert live("LocalRetrieval", prompted=False) != pytest.approx(live("LocalRetrieval"), abs=1e-4)


def test_a_second_run_makes_nothing(done: Done, cli: Cli) -> None:
    before, shards = {each.partition: each for each in everything(done.root)}, content(done.root)
    cli("status", done.root.uri, "--verify")
    told = cli("run", str(done.config), "--output", done.root.uri).stdout
    assert "texts to encode" not in told
    assert content(done.root) == shards
    assert {each.partition: each for each in everything(done.root)} == before
    pruned = cli("repair", done.root.uri, "--prune").stdout
    assert f"0 of {len(before)} partitions deleted" in pruned


def test_a_damaged_shard_of_a_template_is_made_again(done: Done, cli: Cli, tmp_path: Path) -> None:
    root = Root(str(tmp_path / "out"))
    shutil.copytree(done.root.uri, root.uri)
    where = Partition("embeddings", ("tiny", "local", "topics", PASSAGE.condition))
    shard = next(each for each in require(root, where).shards(root) if each.receipt.rows)
    root.write(shard.key, b"PAR1")
    cli("repair", root.uri)
    cli("run", str(done.config), "--output", root.uri)
    assert content(root) == content(done.root)


def test_a_plan_says_beforehand_what_is_read_in_templates(done: Done) -> None:
    planned = plan(load(str(done.config)), done.root)
    here = Path(done.root.uri)
    written = [
        path.stat().st_size
        for folder in ("embeddings", "_layerrank/*/embeddings")
        for path in here.glob(f"{folder}/model=tiny/revision=local/dataset=topics/**/*")
        if path.is_file()
    ]
    weight = planned.tables("tiny", "topics")["embeddings"]
    assert weight.objects == len(written)
    assert weight.bytes == pytest.approx(sum(written), rel=0.1)
    of_dataset = {pair.corpus.dataset.name: pair for pair in planned.pairs}
    # 120 alone and twice 24 as views; 60 as documents and to be named, 120 at most as queries.
    assert of_dataset["topics"].prompts == [120, 24, 24, 60, 60, 120]
    lines = [*told(planned, None, PRICE_GB_MONTH, PRICE_1000_PUTS)]
    words = f"topics: {PASSAGE.condition} is 'passage: {{text}}', for "
    assert any(words in line for line in lines)
    # What tasks of a module are asked as only that module knows, and it is not imported.
    assert len([line for line in lines if "not counted: what tasks in modules" in line]) == 2


@pytest.mark.parametrize(
    ("prompt", "changes", "said"),
    [
        ("query: ", {}, "prompt (task topic): a template has {text} once"),
        ({"chat": "{text}"}, {}, "{'chat': '{text}'}: its tokenizer has no chat template"),
        (f"{'a b c d ' * 40}{{text}}", {}, "that alone has"),
        ("q: {text}", {"curves": {"noise": [0.2]}}, "task topic reads its texts in 'q: {text}'"),
    ],
)
def test_a_template_that_cannot_be_read_is_refused_before_a_model_runs(
    done: Done, cli: Cli, tmp_path: Path, prompt: object, changes: dict[str, Any], said: str
) -> None:
    config, out = tmp_path / "run.yaml", tmp_path / "out"
    with edited(done.config, config) as values:
        del values["datasets"][1:]
        values["datasets"][0]["tasks"] = [{**OWN[0], "prompt": prompt}]
        values.update(changes)
    for command in ("run", "plan"):
        error = cli(command, str(config), "--output", str(out), expect=2).stderr
        (line,) = [each for each in error.splitlines() if each.startswith("layerrank: ")]
        assert said in line
    assert not partitions(Root(str(out)), "prompts")


def test_a_chat_is_read_as_the_tokenizer_has_it(
    done: Done, cli: Cli, fresh_cli: Cli, tmp_path: Path
) -> None:
    """And another chat template of the same name makes other vectors: nothing is mixed."""
    model = Path(shutil.copytree(done.model, tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "user: {{ messages[0]['content'] | trim }}, model:"
    tokenizer.save_pretrained(model)
    config, out = tmp_path / "run.yaml", tmp_path / "out"
    with edited(done.config, config) as values:
        values["subjects"] = [{"model": str(model), "name": "tiny"}]
        del values["datasets"][1:]
        values["datasets"][0]["tasks"] = [{**OWN[0], "prompt": {"chat": "the {text}"}}]
        values["measure"] = {"metrics": ["rankme"]}
        values["views"]["count"] = 0
    stages = [(stage, str(config), "--output", str(out)) for stage in ("prepare", "extract")]
    for stage in stages:
        cli(*stage)
    condition = Template("the {text}", is_chat=True).condition
    found = stored(Root(str(out)), "topics", condition)
    texts = column(done, "text")
    expected_ND = done.vectors([f"user: the {text}, model:" for text in texts])
    ours_ND = np.array([found[prompt_id(text)] for text in texts])
    np.testing.assert_allclose(ours_ND, expected_ND, atol=1e-5)
    (model / "chat_template.jinja").write_text("you: {{ messages[0]['content'] }}")
    refused = fresh_cli(*stages[1], expect=2).stderr  # nothing is remembered of the tokenizer
    assert "words: 'user: the {text}, model:' there" in refused


def test_an_exported_model_knows_the_words_that_every_such_side_agrees_on(done: Done) -> None:
    subject = Subject(str(done.model), "local", "tiny")
    kept = run_of(done.root, subject)
    assert kept
    assert run_prompts(kept, subject, StorageConfig()) == {}  # tasks of a module may not agree
    (topics, *_) = kept["given"]["datasets"]
    alone = {"given": {"datasets": [topics]}}
    assert run_prompts(alone, subject, StorageConfig()) == {
        "query": "query: ",
        "document": "passage: ",
    }
