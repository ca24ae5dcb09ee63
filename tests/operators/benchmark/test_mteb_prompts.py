"""How a prompt of mteb's tasks is found: as mteb itself finds it, in its registry too."""

from __future__ import annotations

import os
from itertools import combinations
from typing import Any

import pytest

from layerrank.operators.benchmark.prompts import prompt_keys, prompt_names, registered_prompt
from layerrank.operators.benchmark.score import recorded

OWN = ["tests.support.mteb.local"]
ASKED = ("none", "query", "document")


@pytest.fixture(scope="module", autouse=True)
def mteb() -> Any:  # noqa: ANN401
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("mteb", reason="the extra mteb is not installed")


def test_the_first_name_that_there_is_is_the_one_that_mteb_takes() -> None:
    """Of all sets of prompts that a model may have for a task."""
    from mteb.models.abs_encoder import get_prompt_name
    from mteb.types import PromptType

    from tests.support.mteb.local import LocalRetrieval

    names = [
        *("query", "document", "LocalRetrieval", "Retrieval"),
        *(f"{each}-{side}" for each in ("LocalRetrieval", "Retrieval") for side in ASKED[1:]),
    ]
    assert {*names} < {*prompt_names(["LocalRetrieval"])}  # whose module is not imported for that
    assert "Retrieval" not in prompt_names(["STS12"])
    for asked in ASKED:
        keys = prompt_keys("LocalRetrieval", asked, OWN)
        of_side = None if asked == "none" else PromptType(asked)
        for count in range(len(names) + 1):
            for given in combinations(names, count):
                prompts = dict.fromkeys(given, "words")
                expected = get_prompt_name(prompts, LocalRetrieval.metadata, of_side)
                assert next((key for key in keys if key in prompts), None) == expected


def test_what_a_text_is_asked_for_as_is_recorded() -> None:
    found = recorded("LocalRetrieval", OWN)
    assert {asked for _, asked in found} == {"query", "document"}
    assert [asked for _, asked in found].count("query") == 9
    assert {asked for _, asked in recorded("LocalSTS", OWN)} == {"none"}


@pytest.mark.parametrize(
    ("model", "task", "words"),
    [
        ("intfloat/e5-base-v2", "LocalRetrieval", ["", "query: ", "passage: "]),
        ("intfloat/e5-base-v2", "LocalSTS", ["", "query: ", "passage: "]),
        (
            "intfloat/e5-mistral-7b-instruct",
            "STS12",
            ["Instruct: Retrieve semantically similar text.\nQuery: "] * 2 + [""],
        ),
        ("layerrank/nobody-knows", "LocalRetrieval", [None] * 3),
    ],
)
def test_a_registered_model_has_the_prompts_of_mteb(
    model: str, task: str, words: list[str | None]
) -> None:
    assert [registered_prompt(model, task, asked, OWN) for asked in ASKED] == words


def test_an_instruction_is_made_by_a_function_where_mteb_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from types import SimpleNamespace

    from mteb.models.model_implementations import MODEL_REGISTRY

    given = {
        "instruction_template": lambda words, side: f"{side and side.value}: {words} > ",
        "prompts_dict": {"LocalRetrieval": "find it"},
    }
    monkeypatch.setitem(MODEL_REGISTRY, "org/own", SimpleNamespace(loader_kwargs=given))
    found = [registered_prompt("org/own", "LocalRetrieval", asked, OWN) for asked in ASKED]
    assert found == ["None: find it > ", "query: find it > ", "document: find it > "]
