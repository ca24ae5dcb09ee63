"""Targets: what extraction should make, under which settings, and which units are still missing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.config.metrics import FUSED_ABOVE, TokenPlan, state_bytes, token_plan
from jobs.config.run import RunConfig
from jobs.extract.targets import Pass, Sources, missing_units, passes, sample_shares
from operators.model.subject import ModelShape, Subject
from storage.manifest import Manifest
from storage.partition import Partition, shard_name
from storage.shards import Receipt

ROWS = [5, 0, 7, 3]
SUBJECT = Subject("org/model", "main", "model")
IDENTITY = {"model": "org/model", "revision": "main", "dtype": "float32"}
SHAPE = ModelShape(layers=3, hidden_size=8, max_tokens=None)
TABLES = ("embeddings", "tokens", "prompt_metrics")
ALL = {shard_name(number): rows for number, rows in enumerate(ROWS)}


def prompts_with(rows: list[int], checksum: str = "sum") -> Manifest:
    receipts = [
        Receipt(shard_name(number), count, "digest", f"{checksum}-{number}")
        for number, count in enumerate(rows)
    ]
    return Manifest(Partition("prompts", ("data",)), {}, tuple(receipts))


def config_with(**changes: dict[str, Any]) -> RunConfig:
    values: dict[str, Any] = {
        "name": "run",
        "subjects": [{"model": "org/model"}],
        "datasets": [{"name": "data", "source": {"files": "x.csv"}}],
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
    config = config_with(**changes)
    sources = Sources(identity or IDENTITY, SHAPE)
    found = passes(config, SUBJECT, sources, config.datasets[0], prompts or prompts_with(ROWS))
    return list(found)


def digests(**changes: Any) -> dict[str, str]:  # noqa: ANN401
    """Return the digests of the clean embeddings, token states and metrics, and of the views."""
    clean, *views = passes_of(**changes)
    assert clean.tokens is not None
    assert clean.prompt_metrics is not None
    of_views = {each.embeddings.digest for each in views}
    assert len(of_views) == 1  # views differ by their partition, not by their settings
    return {
        "clean": clean.embeddings.digest,
        "tokens": clean.tokens.digest,
        "metrics": clean.prompt_metrics.digest,
        "views": of_views.pop(),
    }


@pytest.mark.parametrize(
    ("rows", "sample", "expected"),
    [
        ([5, 7, 3], 9, [5, 4]),
        ([5, 7, 3], 5, [5]),
        ([5, 7, 3], 15, [5, 7, 3]),
        ([5, 7, 3], 99, [5, 7, 3]),
        ([5, 7, 3], 0, []),
        ([], 4, []),
    ],
)
def test_a_sample_is_the_leading_prompts(rows: list[int], sample: int, expected: list[int]) -> None:
    shares = sample_shares(prompts_with(rows), sample)
    assert shares == {shard_name(number): take for number, take in enumerate(expected)}


def test_empty_shards_have_no_share_of_a_sample() -> None:
    shares = sample_shares(prompts_with([0, 2, 0, 3]), 4)
    assert shares == {shard_name(1): 2, shard_name(3): 2}


def test_a_sample_is_exact_and_a_larger_one_contains_it() -> None:
    @given(st.lists(st.integers(0, 20), max_size=12), st.integers(0, 100), st.integers(0, 100))
    def check(rows: list[int], sample: int, more: int) -> None:
        prompts = prompts_with(rows)
        small, large = sample_shares(prompts, sample), sample_shares(prompts, sample + more)
        assert sum(small.values()) == min(sample, sum(rows))
        assert all(0 < take <= rows[int(name[6:11])] for name, take in small.items())
        assert all(take <= large[name] for name, take in small.items())

    check()


def test_passes_are_the_clean_one_and_every_view() -> None:
    clean, *views = passes_of()
    assert (clean.dataset, clean.condition) == ("data", "clean")
    assert clean.embeddings.shares == ALL
    assert clean.tokens is not None
    assert clean.tokens.shares == {shard_name(0): 5, shard_name(2): 4}
    assert clean.tokens.partition.path == clean.embeddings.partition.sibling("tokens").path
    assert clean.prompt_metrics is not None
    assert clean.prompt_metrics.shares == ALL
    assert clean.prompt_metrics.partition == clean.embeddings.partition.sibling("prompt_metrics")
    assert [each.condition for each in views] == ["view-00", "view-01", "view-02"]
    for each in views:
        assert each.tokens is None
        assert each.targets == [each.embeddings]
        assert each.embeddings.shares == {shard_name(0): 5, shard_name(2): 1}
        assert each.embeddings.partition == Partition(
            "embeddings", ("model", "main", "data", each.condition)
        )


def noisy_run(*tasks: dict[str, Any]) -> list[Pass]:
    dataset = {"name": "data", "source": {"files": "x.csv"}, "tasks": list(tasks)}
    return passes_of(datasets=[dataset], curves={"noise": [0.2, 0.05]})


@pytest.mark.parametrize(
    "fitted",
    [
        {"name": "t", "type": "classification", "label_column": "a"},
        {"name": "t", "type": "regression", "value_column": "a"},
    ],
)
def test_noise_is_a_pass_over_every_prompt_of_a_dataset_with_a_fitted_task(
    fitted: dict[str, Any],
) -> None:
    groups = {"name": "g", "type": "clustering", "label_column": "a"}
    clean, *views, low, high = noisy_run(groups, fitted)
    assert [each.condition for each in (low, high)] == ["noise-0.05", "noise-0.20"]
    assert len(views) == 3
    for each in (low, high):
        assert each.targets == [each.embeddings]
        assert each.embeddings.shares == ALL
        assert each.embeddings.settings == clean.embeddings.settings
        assert each.embeddings.partition == Partition(
            "embeddings", ("model", "main", "data", each.condition)
        )
    assert [each.condition for each in noisy_run(groups)] == [
        "clean",
        "view-00",
        "view-01",
        "view-02",
    ]


def test_a_condition_is_a_pass_like_the_clean_one_with_its_own_token_metrics() -> None:
    clean, *views, low, high, cut = passes_of(
        conditions={"random": [0.5, 0, 0.1], "truncate": [0.5, 1]}
    )
    assert [each.condition for each in (low, high, cut)] == [
        "random-0.10",
        "random-0.50",
        "truncate-0.50",
    ]
    assert len(views) == 3
    assert clean.prompt_metrics is not None
    for each in (low, high, cut):
        assert each.tokens is None
        assert each.prompt_metrics is not None
        assert each.embeddings.shares == each.prompt_metrics.shares == ALL
        assert each.embeddings.settings == clean.embeddings.settings
        # Its tokens are drawn, so its metrics depend on the seed; those of clean prompts do not.
        assert each.prompt_metrics.settings == {**clean.prompt_metrics.settings, "seed": 0}
        assert each.prompt_metrics.partition == Partition(
            "prompt_metrics", ("model", "main", "data", each.condition)
        )
    units = missing_units(low, prompts_with(ROWS), done_of(low, {"embeddings": {0, 1, 2, 3}}))
    assert [(u.shard, u.prompts, u.embeddings, u.metrics) for u in units] == [
        (0, 5, False, True),
        (1, 0, False, True),
        (2, 7, False, True),
        (3, 3, False, True),
    ]


def test_a_level_of_noise_that_two_ask_for_is_one_pass_of_what_both_need() -> None:
    fitted = {"name": "t", "type": "regression", "value_column": "a"}
    dataset = {"name": "data", "source": {"files": "x.csv"}, "tasks": [fitted]}
    found = passes_of(
        datasets=[dataset], curves={"noise": [0.1, 0.2]}, conditions={"noise": [0.2, 0.3]}
    )[-3:]
    assert [(each.condition, each.prompt_metrics is not None) for each in found] == [
        ("noise-0.10", False),
        ("noise-0.20", True),
        ("noise-0.30", True),
    ]


def test_conditions_without_token_metrics_give_embeddings_alone() -> None:
    measure = {"metrics": ["twonn"], "token_metrics": "auto"}
    *_, last = passes_of(measure=measure, conditions={"random": [0.5]})
    assert last.targets == [last.embeddings]


def test_conditions_make_the_clean_token_metrics_those_of_every_prompt() -> None:
    values = config_with().model_dump(mode="json", exclude={"measure"})
    config = RunConfig.model_validate({**values, "conditions": {"repeat": [0.5]}})
    assert token_plan(config, SHAPE, 50) == TokenPlan(fused=True, stored=9)
    clean_alone = RunConfig.model_validate({**values, "conditions": {"repeat": [0]}})
    assert token_plan(clean_alone, SHAPE, 50) == TokenPlan(fused=False, stored=50)


def test_noise_units_take_every_prompt_of_a_shard() -> None:
    fitted = {"name": "t", "type": "regression", "value_column": "a"}
    noisy = noisy_run(fitted)[-1]
    units = missing_units(noisy, prompts_with(ROWS), done_of(noisy, {"embeddings": {2}}))
    assert [(u.shard, u.prompts, u.take, u.condition) for u in units] == [
        (0, 5, 5, "noise-0.20"),
        (1, 0, 0, "noise-0.20"),
        (3, 3, 3, "noise-0.20"),
    ]


def test_stored_metrics_are_no_target_of_extraction_and_fused_ones_need_no_states() -> None:
    stored = passes_of(measure={"token_metrics": "stored"})[0]
    assert [target.partition.table for target in stored.targets] == ["embeddings", "tokens"]
    fused = passes_of(measure={"token_metrics": "fused"})[0]
    assert [target.partition.table for target in fused.targets] == ["embeddings", "prompt_metrics"]
    without = passes_of(measure={"metrics": ["twonn"], "token_metrics": "fused"})[0]
    assert without.targets == [without.embeddings]


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
    values = config_with(tokens={"sample": sample}).model_dump(mode="json", exclude={"measure"})
    config = RunConfig.model_validate({**values, "measure": measure})
    assert token_plan(config, SHAPE, prompts) == expected


def test_the_default_turns_fused_where_every_prompts_states_pass_the_bound() -> None:
    values = config_with().model_dump(mode="json", exclude={"measure"})
    config = RunConfig.model_validate(values)
    of_one = state_bytes(config, SHAPE)
    assert of_one == config.extract.max_tokens * 4 * 8 * 4  # tokens, layers, features, bytes
    most = FUSED_ABOVE // of_one
    assert not token_plan(config, SHAPE, most).fused
    assert token_plan(config, SHAPE, most + 1).fused
    shorter = ModelShape(layers=3, hidden_size=8, max_tokens=16)
    assert state_bytes(config, shorter) == 16 * 4 * 8 * 4


def test_every_target_is_made_with_different_settings() -> None:
    assert len(set(digests().values())) == 4


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


def done_of(each: Pass, done: dict[str, set[int]]) -> dict[str, dict[str, Receipt]]:
    """Return what exists: table -> shard numbers, as receipts by partition."""
    return {
        target.partition.path: {
            shard_name(number): Receipt(shard_name(number), 1, target.digest, "")
            for number in done.get(target.partition.table, set())
        }
        for target in each.targets
    }


def test_clean_units_take_every_prompt_and_carry_their_token_counts() -> None:
    prompts = prompts_with(ROWS)
    clean = passes_of(prompts)[0]
    assert clean.tokens is not None
    units = missing_units(clean, prompts, done_of(clean, {}))
    assert [(u.shard, u.prompts, u.take, u.tokens) for u in units] == [
        (0, 5, None, 5),
        (1, 0, None, 0),
        (2, 7, None, 4),
        (3, 3, None, 0),
    ]
    assert all(unit.embeddings and unit.metrics for unit in units)
    digests = {target.partition.table: target.digest for target in clean.targets}
    assert set(digests) == set(TABLES)
    assert all(unit.digests == digests for unit in units)
    assert {(u.dataset, u.condition) for u in units} == {("data", "clean")}


def test_view_units_take_their_shards_share_and_no_tokens() -> None:
    prompts = prompts_with(ROWS)
    view = passes_of(prompts)[1]
    units = missing_units(view, prompts, done_of(view, {}))
    assert [(u.shard, u.prompts, u.take, u.tokens) for u in units] == [(0, 5, 5, 0), (2, 1, 1, 0)]
    assert all(u.digests == {"embeddings": view.embeddings.digest} for u in units)
    assert not any(u.metrics for u in units)


def test_a_shard_whose_tokens_are_missing_is_extracted_again() -> None:
    prompts = prompts_with(ROWS)
    clean = passes_of(prompts)[0]
    whole = {0, 1, 2, 3}
    done = done_of(clean, {"embeddings": whole, "tokens": {0}, "prompt_metrics": whole})
    (unit,) = missing_units(clean, prompts, done)
    assert (unit.shard, unit.embeddings, unit.tokens, unit.metrics) == (2, False, 4, False)
    done = done_of(clean, {"embeddings": whole, "tokens": {0, 2}, "prompt_metrics": {0, 1, 2}})
    (unit,) = missing_units(clean, prompts, done)
    assert (unit.shard, unit.embeddings, unit.tokens, unit.metrics) == (3, False, 0, True)


def test_missing_units_are_exactly_the_rest_of_any_state() -> None:
    shards = st.sets(st.integers(0, 6))

    @given(
        st.lists(st.integers(0, 9), max_size=6),
        st.fixed_dictionaries(dict.fromkeys(TABLES, shards)),
        st.integers(0, 30),
    )
    def check(rows: list[int], state: dict[str, set[int]], sample: int) -> None:
        prompts = prompts_with(rows)
        for each in passes_of(prompts, tokens={"sample": sample}, views={"count": 2}):
            units = missing_units(each, prompts, done_of(each, state))
            numbers = [unit.shard for unit in units]
            assert numbers == sorted(set(numbers))
            expected = {
                number
                for number in range(len(rows))
                for target in each.targets
                if shard_name(number) in target.shares
                and number not in state[target.partition.table]
            }
            assert set(numbers) == expected
            everything = {table: set(range(9)) for table in TABLES}
            assert missing_units(each, prompts, done_of(each, everything)) == []

    check()
