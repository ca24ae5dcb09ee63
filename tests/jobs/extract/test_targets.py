"""Targets: what extraction should make, under which settings, and which units are still missing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerrank.jobs.config.metrics import FUSED_ABOVE, TokenPlan, state_bytes, token_plan
from layerrank.jobs.config.run import RunConfig
from layerrank.jobs.extract.targets import Part, Pass, Target, Unit, missing_units, passes
from layerrank.jobs.run import leading
from layerrank.operators.model.subject import ModelShape, Subject
from layerrank.storage.manifest import Manifest, digest_of
from layerrank.storage.partition import Partition, shard_name
from layerrank.storage.shards import Receipt

ROWS = [5, 0, 7, 3]
SUBJECT = Subject("org/model", "main", "model")
IDENTITY = {"model": "org/model", "revision": "main", "dtype": "float32"}
SHAPE = ModelShape(layers=3, hidden_size=8, max_tokens=None)
TABLES = ("embeddings", "tokens", "prompt_metrics")
ALL = {shard_name(number): rows for number, rows in enumerate(ROWS)}
FITTED = {"name": "t", "type": "regression", "value_column": "a"}


def prompts_with(rows: list[int], checksum: str = "sum") -> Manifest:
    receipts = [
        Receipt(shard_name(number), count, "digest", f"{checksum}-{number}")
        for number, count in enumerate(rows)
    ]
    return Manifest(Partition("prompts", ("data",)), {}, tuple(receipts))


def dataset_with(*tasks: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": "data", "source": {"files": "x.csv"}, "tasks": list(tasks)}]


def config_with(**changes: Any) -> RunConfig:  # noqa: ANN401
    values: dict[str, Any] = {
        "name": "run",
        "subjects": [{"model": "org/model"}],
        "datasets": dataset_with(),
        "views": {"count": 3, "sample": 6},
        "tokens": {"sample": 9},
        "measure": {"token_metrics": "both"},
    }
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(values.get(key), dict) else value
    return RunConfig.model_validate(values)


def passes_of(
    prompts: Manifest | None = None,
    identity: dict[str, str] | None = None,
    **changes: Any,  # noqa: ANN401
) -> list[Pass]:
    config, given_prompts = config_with(**changes), prompts or prompts_with(ROWS)
    dataset = config.datasets[0]
    return [*passes(config, SUBJECT, identity or IDENTITY, SHAPE, dataset, given_prompts)]


def digests(**changes: Any) -> dict[str, str]:  # noqa: ANN401
    """Return the digests of the clean embeddings, token states and metrics, and of the views."""
    clean, *views = passes_of(**changes)
    found = {target.partition.table: digest_of(target.settings) for target in clean.targets}
    of_views = {digest_of(each.embeddings.settings) for each in views}
    assert len(of_views) == 1  # views differ by their partition, not by their settings
    return {
        "clean": found["embeddings"],
        "tokens": found["tokens"],
        "metrics": found["prompt_metrics"],
        "views": of_views.pop(),
    }


def test_a_sample_is_the_leading_prompts_and_a_larger_one_contains_it() -> None:
    @given(st.lists(st.integers(0, 20), max_size=12), st.integers(0, 100), st.integers(0, 100))
    def check(rows: list[int], sample: int, more: int) -> None:
        counts = {str(number): count for number, count in enumerate(rows)}
        small, large = leading(counts, sample), leading(counts, sample + more)
        assert sum(small.values()) == min(sample, sum(rows))
        assert all(0 < take <= counts[name] for name, take in small.items())
        assert all(take <= large[name] for name, take in small.items())
        # Whole shards come first, of those that have prompts; the last may give a part.
        assert [*small] == [name for name in counts if counts[name]][: len(small)]
        assert all(small[name] == counts[name] for name in [*small][:-1])

    check()


def test_passes_are_the_clean_one_and_every_view() -> None:
    clean, *views = passes_of()
    where = Partition("embeddings", ("model", "main", "data", "clean"))
    assert [(each.partition, each.shares) for each in clean.targets] == [
        (where, ALL),
        (where.sibling("tokens"), {shard_name(0): 5, shard_name(2): 4}),
        (where.sibling("prompt_metrics"), ALL),
    ]
    assert [each.condition for each in views] == ["view-00", "view-01", "view-02"]
    for each in views:
        assert each.targets == [each.embeddings]
        assert each.embeddings.shares == {shard_name(0): 5, shard_name(2): 1}
        assert each.embeddings.partition.values == ("model", "main", "data", each.condition)


def of_a_condition(clean: Pass, name: str, *, metrics: bool = False) -> Pass:
    """Return what is made under a condition: as of the clean prompts, in a place of its own.

    Its tokens are drawn, so its metrics depend on the seed; those of clean prompts do not.
    """
    assert clean.prompt_metrics
    where = Partition("embeddings", ("model", "main", "data", name))
    embeddings = clean.embeddings._replace(partition=where)
    settings = {**clean.prompt_metrics.settings, "seed": 0}
    measured = Target(where.sibling("prompt_metrics"), settings, ALL)
    return Pass("data", name, embeddings, prompt_metrics=measured if metrics else None)


@pytest.mark.parametrize(
    "fitted", [FITTED, {"name": "t", "type": "classification", "label_column": "a"}]
)
def test_noise_is_a_pass_over_every_prompt_of_a_dataset_with_a_fitted_task(
    fitted: dict[str, Any],
) -> None:
    groups = {"name": "g", "type": "clustering", "label_column": "a"}
    curves = {"noise": [0.2, 0.05]}
    clean, *views, low, high = passes_of(
        datasets=dataset_with(groups, fitted), curves=curves, candidates=None
    )
    assert [low, high] == [of_a_condition(clean, name) for name in ("noise-0.05", "noise-0.20")]
    assert len(views) == 3
    assert len(passes_of(datasets=dataset_with(groups), curves=curves)) == 1 + 3


def test_a_condition_is_a_pass_like_the_clean_one_with_its_own_token_metrics() -> None:
    clean, *passed = passes_of(
        conditions={"random": [0.5, 0, 0.1], "truncate": [0.5, 1]}, candidates=None
    )
    names = ["random-0.10", "random-0.50", "truncate-0.50"]
    assert passed[3:] == [of_a_condition(clean, name, metrics=True) for name in names]


def test_a_level_of_noise_that_two_ask_for_is_one_pass_of_what_both_need() -> None:
    curves, conditions = {"noise": [0.1, 0.2]}, {"noise": [0.2, 0.3]}
    found = passes_of(datasets=dataset_with(FITTED), curves=curves, conditions=conditions)
    assert [(each.condition, each.prompt_metrics is not None) for each in found[-3:]] == [
        ("noise-0.10", False),
        ("noise-0.20", True),
        ("noise-0.30", True),
    ]


@pytest.mark.parametrize(
    ("measure", "index", "tables"),
    [
        ({"token_metrics": "stored"}, 0, ["embeddings", "tokens"]),
        ({"token_metrics": "fused"}, 0, ["embeddings", "prompt_metrics"]),
        ({"token_metrics": "fused", "metrics": ["twonn"]}, 0, ["embeddings"]),
        ({"token_metrics": "auto", "metrics": ["twonn"]}, -1, ["embeddings"]),  # of the condition
    ],
)
def test_a_pass_makes_the_tables_that_the_token_metrics_ask_for(
    measure: dict[str, Any], index: int, tables: list[str]
) -> None:
    found = passes_of(measure=measure, conditions={"random": [0.5]} if index else {})[index]
    assert [target.partition.table for target in found.targets] == tables


@pytest.mark.parametrize(
    ("measure", "sample", "prompts", "expected"),
    [
        ({"token_metrics": "stored"}, 9, 50, TokenPlan(fused=False, stored=9)),
        ({"token_metrics": "stored"}, 9, 5, TokenPlan(fused=False, stored=5)),
        ({"token_metrics": "fused"}, 9, 50, TokenPlan(fused=True, stored=0)),
        ({"token_metrics": "both"}, 9, 50, TokenPlan(fused=True, stored=9)),
        ({}, 9, 50, TokenPlan(fused=False, stored=50)),
        ({}, 0, 50, TokenPlan(fused=True, stored=0)),
        ({}, 9, 10**6, TokenPlan(fused=True, stored=9)),
        ({"metrics": ["twonn"]}, 9, 50, TokenPlan(fused=False, stored=0)),
    ],
)
def test_where_token_metrics_are_computed(
    measure: dict[str, Any], sample: int, prompts: int, expected: TokenPlan
) -> None:
    given = {"token_metrics": "auto", **measure}
    config = config_with(tokens={"sample": sample}, measure=given)
    assert token_plan(config, SHAPE, prompts) == expected
    if measure:
        return
    graded = config_with(tokens={"sample": sample}, measure=given, conditions={"repeat": [0.5]})
    assert token_plan(graded, SHAPE, prompts) == TokenPlan(fused=True, stored=min(sample, prompts))
    clean = config_with(tokens={"sample": sample}, measure=given, conditions={"repeat": [0]})
    assert token_plan(clean, SHAPE, prompts) == expected


def test_the_default_turns_fused_where_every_prompts_states_pass_the_bound() -> None:
    config = config_with(measure={"token_metrics": "auto"})
    of_one = state_bytes(config, SHAPE)
    assert of_one == config.extract.max_tokens * 4 * 8 * 4  # tokens, layers, features, bytes
    most = FUSED_ABOVE // of_one
    assert not token_plan(config, SHAPE, most).fused
    assert token_plan(config, SHAPE, most + 1).fused
    shorter = ModelShape(layers=3, hidden_size=8, max_tokens=16)
    assert state_bytes(config, shorter) == 16 * 4 * 8 * 4


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"views": {"keyboard": 0.2}}, {"views"}),
        ({"views": {"random_char": 0.2}}, {"views"}),
        ({"views": {"split": 0.2}}, {"views"}),
        ({"views": {"sample": 7}}, {"views"}),
        ({"views": {"count": 2}}, set()),
        ({"tokens": {"sample": 8}}, {"tokens"}),
        ({"tokens": {"norm": "final"}}, {"tokens", "metrics"}),
        ({"tokens": {"dtype": "float16"}}, {"tokens"}),
        ({"seed": 1}, {"clean", "tokens", "views"}),
        ({"extract": {"max_tokens": 64}}, {"clean", "tokens", "metrics", "views"}),
        ({"extract": {"poolings": ["mean", "last"]}}, {"clean", "views"}),
        ({"extract": {"norms": ["none", "final"]}}, {"clean", "views"}),
        ({"candidates": None}, {"clean"}),  # one pooling fewer, where no view has it
        ({"candidates": {"norms": ["none", "final"]}}, {"clean"}),
        ({"candidates": {"transforms": ["raw"], "search": "full"}}, set()),
        ({"extract": {"workers": 3, "threads": 2, "batch_tokens": 9, "device": "cpu"}}, set()),
        ({"measure": {"alphas": [2.0]}}, {"metrics"}),
        ({"measure": {"normalizations": ["logN"]}}, {"metrics"}),
        ({"measure": {"without_first": False}}, {"metrics"}),
        ({"measure": {"method": "approximate"}}, {"metrics"}),
        ({"measure": {"metrics": ["curvature", "dime"]}}, {"metrics"}),
        ({"measure": {"delta": 1.0, "device": "cpu"}}, set()),
        ({"probe": {"seed": 1, "variants": ["raw"]}, "output": "elsewhere"}, set()),
        ({"curves": {"noise": [0.1], "examples": [2]}, "rank": {"policy": "best"}}, set()),
        ({"conditions": {"random": [0]}}, set()),
        ({"prompts": prompts_with(ROWS, "other")}, {"clean", "tokens", "metrics", "views"}),
        ({"identity": {**IDENTITY, "revision": "step1"}}, {"clean", "tokens", "metrics", "views"}),
        ({"identity": {**IDENTITY, "dtype": "bfloat16"}}, {"clean", "tokens", "metrics", "views"}),
    ],
)
def test_a_setting_changes_the_digests_of_what_depends_on_it(
    changes: dict[str, Any], changed: set[str]
) -> None:
    before, after = digests(), digests(**changes)
    assert {name for name in before if before[name] != after[name]} == changed


def test_the_order_of_norms_and_poolings_does_not_matter() -> None:
    one = digests(extract={"norms": ["none", "final"], "poolings": ["mean", "last"]})
    two = digests(extract={"norms": ["final", "none"], "poolings": ["last", "mean"]})
    assert one == two


def test_missing_units_are_exactly_the_rest_of_any_state() -> None:
    """A unit takes what the shard shares, and makes the tables that the shard lacks."""
    shards = st.sets(st.integers(0, 6))

    @given(
        st.lists(st.integers(0, 9), max_size=6),
        st.fixed_dictionaries(dict.fromkeys(TABLES, shards)),
        st.integers(0, 30),
    )
    def check(rows: list[int], state: dict[str, set[int]], sample: int) -> None:
        prompts, names = prompts_with(rows), [shard_name(number) for number in range(9)]
        graded = {"random": [0.5]}
        for each in passes_of(prompts, tokens={"sample": sample}, conditions=graded):
            expected = []
            for number, receipt in enumerate(prompts.receipts):
                name = receipt.name
                targets = {t.partition.table: t for t in each.targets if name in t.shares}
                absent = {
                    table: digest_of(target.settings)
                    for table, target in targets.items()
                    if number not in state[table]
                }
                if absent:
                    tokens = targets["tokens"].shares[name] if "tokens" in absent else 0
                    taken = each.embeddings.shares[name]
                    parts = (Part(name, 0, taken, "embeddings" in absent),)
                    unit = Unit("data", each.condition, receipt, taken, tokens, absent, parts)
                    expected.append(unit)
            blank = Receipt("", 1, "", "")
            done = {
                target.partition.path: {names[n]: blank for n in state[target.partition.table]}
                for target in each.targets
            }
            assert missing_units(each, prompts, done) == expected

    check()
