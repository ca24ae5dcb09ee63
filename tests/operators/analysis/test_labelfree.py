"""Rules without labels: what they choose, and what that loses on scores with a known outcome."""

import math
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerrank.operators.analysis import labelfree
from layerrank.operators.analysis.labelfree import (
    DEFAULT_RULE,
    EVIDENCE,
    OTHER_TASKS,
    Choice,
    Evidence,
    at_depth,
    depth_rules,
    metric_rule,
    regrets,
    rule_for,
    task_regrets,
)
from tests.bench.advice.depth import (
    Curve,
    curves,
    evidence_of,
    left_out,
    mean_and_half,
    of_kinds,
    read_scores,
)
from tests.support.published import PUBLISHED, layer_scores
from tests.support.shared_data import FOLDER

Values = npt.NDArray[np.float64]


def table(n_layers: int = 5, n_tasks: int = 7, seed: int = 0) -> Values:
    return np.random.default_rng(seed).random((n_layers, n_tasks))


def by_rule(choices: list[Choice]) -> dict[str, Choice]:
    return {choice.rule: choice for choice in choices}


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        (range(25), [12, 16, 18, 24]),
        (range(7), [3, 4, 4, 6]),  # three quarters of 6 is 4.5: the cheaper of two
        (range(13), [6, 8, 9, 12]),
        (range(2), [0, 1, 1, 1]),
        ([0], [0, 0, 0, 0]),
        ([24, 0, 8, 20], [8, 20, 20, 24]),  # 16 is as far from 20 as 12 is from 8
        ([24, 0, 12, 20], [12, 12, 20, 24]),
    ],
)
def test_depth_rules_take_the_nearest_layer_there_is(layers: list[int], chosen: list[int]) -> None:
    rules = depth_rules(layers)
    assert list(rules) == ["1/2 depth", "2/3 depth", "3/4 depth", "last layer"]
    assert list(rules.values()) == chosen
    assert rules[DEFAULT_RULE] == max(layers)
    assert depth_rules(sorted(layers, reverse=True)) == rules


def test_a_kind_has_a_number_only_where_the_interval_excludes_0(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = [0, 4, 8, 12, 16]
    settled, unsettled = (Evidence(4, Fraction(1, 4), 0.04, half, 0, 0.1) for half in (0.03, 0.04))
    monkeypatch.setitem(labelfree.EVIDENCE, "causal decoder", settled)
    assert rule_for("causal decoder", layers) == at_depth(Fraction(1, 4), layers) == 4
    for without in (unsettled, Evidence(2, Fraction(1, 4), 0.04, math.nan, 0, 0.1)):
        monkeypatch.setitem(labelfree.EVIDENCE, "causal decoder", without)
        assert rule_for("causal decoder", layers) is None
    assert rule_for("embedding model", layers) == 16
    assert rule_for("encoder", layers) is None
    assert rule_for(None, layers) is None


def _curve(peak: int, height: float) -> Curve:
    """Return gains of 9 layers: `height` at the peak, half of it beside, 0 elsewhere."""
    gain_L = np.zeros(9)
    gain_L[peak - 1 : peak + 2] = height / 2
    gain_L[peak] = height
    return Curve([*range(9)], gain_L)


def test_the_depth_is_chosen_by_the_other_models() -> None:
    # The two that agree choose for the third, whose peak is far: it gains nothing. Each of them
    # sees one peak at 4 and a higher one at 6, and takes that.
    found = {"a": _curve(4, 0.1), "b": _curve(4, 0.1), "c": _curve(6, 0.3)}
    gains = {each.model: (each.share, each.gain) for each in left_out(found)}
    assert gains == {
        "a": (Fraction(17, 24), 0.0),
        "b": (Fraction(17, 24), 0.0),
        "c": (Fraction(11, 24), 0.0),
    }
    alike = {"a": _curve(4, 0.1), "b": _curve(4, 0.2), "c": _curve(4, 0.3)}
    evidence = evidence_of(alike)
    # 4 of 8 is the nearest layer from 11/24 on. The error is that of 0.1, 0.2, 0.3; t of 2 degrees.
    assert evidence.share == Fraction(11, 24)
    assert evidence.gain == pytest.approx(0.2)
    assert evidence.half == pytest.approx(4.302653 * 0.1 / math.sqrt(3))
    assert (evidence.lowest, evidence.highest, evidence.is_settled) == (0.1, 0.3, False)
    # Who is alone in its family has no others.
    assert left_out(alike, lambda _: "one") == []
    assert math.isnan(mean_and_half([0.1])[0])
    assert math.isnan(mean_and_half([0.1, 0.2])[1])


def test_gains_are_paired_within_tasks_that_have_the_last_layer() -> None:
    scores = {(6, "a"): 0.5, (0, "a"): 0.6, (3, "a"): 0.9, (6, "b"): 0.1, (0, "b"): 0.4}
    # Task c lacks the last layer, layer 2 has less than half of the three tasks that count.
    scores |= {(6, "d"): 0.0, (3, "d"): 0.1, (0, "c"): 0.0, (3, "c"): 0.9, (2, "b"): 0.9}
    found = curves({"Pythia-14m": scores, "Pythia-160m": {(5, "a"): 0.9, (0, "a"): 0.1}})
    assert list(found) == ["Pythia-14m"]  # the other ends before its block 12
    layers, gain_L = found["Pythia-14m"]
    assert layers == [0, 3, 6]
    assert gain_L == pytest.approx([(0.1 + 0.3) / 2, (0.4 + 0.1) / 2, 0])


@pytest.mark.skipif(not FOLDER.exists(), reason="no shared/ beside the checkout")
def test_the_evidence_is_what_the_scores_say() -> None:
    found = of_kinds(curves(read_scores(PUBLISHED.parent, FOLDER)))
    assert list(found) == list(EVIDENCE)
    for kind, members in found.items():
        derived, stored = asdict(evidence_of(members)), asdict(EVIDENCE[kind])
        assert derived == pytest.approx(stored, abs=5.1e-5, nan_ok=True), kind
        assert not EVIDENCE[kind].is_settled


def test_metric_rules_follow_the_direction_and_pass_over_missing_values() -> None:
    values = np.array([math.nan, 3.0, 1.0, 3.0, math.inf])
    for layers, highest, lowest in ((range(5), 1, 2), ([9, 8, 7, 6, 5], 6, 7)):
        assert metric_rule("lidar", values, layers=layers) == highest
        assert metric_rule("curvature", values, layers=layers) == lowest
        assert metric_rule("twonn", values, layers=layers) is None
        assert metric_rule("dime", values * math.nan, layers=layers) is None


def test_regret_is_the_distance_to_the_best_single_layer() -> None:
    scores = np.array([0.3, 0.5, math.nan, 0.4])
    found = regrets({"a": 0, "b": 3, "c": 2, "d": 1}, scores, layers=[0, 1, 2, 3])
    assert [choice.rule for choice in found] == ["d", "b", "a", "c"]
    assert [choice.regret for choice in found[:3]] == pytest.approx([0.0, 0.1, 0.2])
    assert math.isnan(found[3].regret)
    assert all(math.isnan(choice.regret_low) for choice in found)


def test_regret_of_a_draw_is_against_the_best_layer_of_that_draw() -> None:
    # The first layer is best in three draws of four, the second in the fourth.
    draws = np.array([[0.6, 0.6, 0.6, 0.5], [0.5, 0.5, 0.5, 0.9], [math.nan] * 4])
    scores = np.array([0.575, 0.6, math.nan])
    found = by_rule(
        regrets({"a": 0, "b": 1, "c": 2}, scores, layers=range(3), draws_LB=draws, level=0.98)
    )
    assert found["b"].regret == 0
    assert (found["b"].regret_low, found["b"].regret_high) == pytest.approx((0, 0.1), abs=0.01)
    assert found["a"].regret_low == 0
    assert found["a"].regret_high == pytest.approx(0.4, abs=0.02)
    assert math.isnan(found["c"].regret_high)


def test_other_tasks_choose_by_hand() -> None:
    scores = np.array([[0.9, 0.1, 0.1], [0.4, 0.4, 0.4], [0.0, 0.8, 0.0], [math.nan, 1, 1]])
    # Without task 0 the sums are 0.2, 0.8, 0.8; without task 1 1.0, 0.8, 0.0; without 2 as given.
    found = by_rule(task_regrets({"one": 1}, scores[:3], layers=range(3)))
    assert found["one"].regret == pytest.approx((0.5 + 0.4 + 0.0) / 3)
    assert found[OTHER_TASKS].layer is None
    assert found[OTHER_TASKS].score == pytest.approx((0.4 + 0.1 + 0.1) / 3)
    assert found[OTHER_TASKS].regret == pytest.approx((0.5 + 0.7 + 0.3) / 3)
    # The fourth layer, without a score on one task, is no candidate, but the best of two tasks.
    for layers, first in (([0, 1, 2, 3], 0.4), ([8, 7, 6, 5], 0.0)):
        (found_again,) = task_regrets({}, scores, layers=layers)
        assert found_again.score == pytest.approx((first + 0.1 + 0.1) / 3)
        assert found_again.regret == pytest.approx((0.9 - first + 0.9 + 0.9) / 3)
    nowhere = np.array([[0.5, math.nan], [math.nan, 0.5]])
    assert task_regrets({}, nowhere, layers=[0, 1]) == []


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 6))
def test_no_rule_beats_the_best_single_layer_but_the_oracle(seed: int, n_l: int, n_t: int) -> None:
    scores = table(n_l, n_t, seed)
    every = {f"layer {layer}": layer for layer in range(n_l)}
    single = regrets(every, scores.mean(axis=1), layers=range(n_l))
    of_task = task_regrets(every, scores, layers=range(n_l), draws=10)
    assert single[0].regret == 0
    best = f"layer {single[0].layer}"
    # Leaving a task out of its own choice can only lose against the best layer of all tasks.
    assert by_rule(of_task)[OTHER_TASKS].regret >= by_rule(of_task)[best].regret - 1e-12
    offset = by_rule(of_task)[best].regret
    assert offset == pytest.approx(float(scores.max(axis=0).mean() - scores.mean(axis=1).max()))
    for choice in single:
        assert by_rule(of_task)[choice.rule].regret == pytest.approx(choice.regret + offset)


def test_task_regrets_have_the_width_of_the_standard_error() -> None:
    scores = np.stack([np.zeros(400), np.random.default_rng(1).normal(0.3, 0.05, 400)])
    (last, best, *rest) = reversed(task_regrets({"a": 0, "b": 1}, scores, layers=[0, 1]))
    assert last.rule == "a"
    assert last.regret == pytest.approx(0.3, abs=0.01)
    half = 1.96 * scores[1].std() / 20
    assert last.regret_high - last.regret == pytest.approx(half, rel=0.1)
    assert (best.regret, best.regret_low, best.regret_high) == (0, 0, 0)
    assert len(rest) == 1


def test_one_task_has_no_other_and_no_interval() -> None:
    scores = np.array([[0.2, math.nan], [0.5, math.nan]])
    found = task_regrets({"a": 0}, scores, layers=[0, 1])
    assert [choice.rule for choice in found] == ["a"]
    assert found[0].regret == pytest.approx(0.3)
    assert math.isnan(found[0].regret_low)


def test_tables_without_meaning_are_errors() -> None:
    with pytest.raises(ValueError, match="no layers"):
        depth_rules([])
    with pytest.raises(ValueError, match="repeated"):
        depth_rules([1, 1])
    with pytest.raises(ValueError, match="lidar: 3 layers need as many values, got 2"):
        metric_rule("lidar", np.zeros(2), layers=range(3))
    with pytest.raises(ValueError, match="rule: layer 7 is not one of the scored layers"):
        regrets({"rule": 7}, np.zeros(3), layers=range(3))
    with pytest.raises(ValueError, match="no task has a score"):
        task_regrets({}, np.full((2, 2), math.nan), layers=range(2))


def published_scores(revision: str) -> Values:
    return np.stack([*layer_scores(PUBLISHED, revision).values()], axis=1)


def published_metrics() -> dict[str, Values]:
    names = {"entropy_dataset": "dataset_entropy", "entropy_sentence": "prompt_entropy"}
    found: dict[str, list[list[float]]] = {}
    for row in pq.read_table(PUBLISHED.with_name("layer_metrics.parquet")).to_pylist():
        if row["split"] == "test" and row["value"] is not None:
            name = names.get(row["metric"], row["metric"])
            found.setdefault(name, [[] for _ in range(25)])[row["layer"]].append(row["value"])
    return {
        name: np.array([np.mean(values) if values else math.nan for values in of_layer])
        for name, of_layer in found.items()
    }


@pytest.mark.skipif(not PUBLISHED.exists(), reason="no shared/published beside the checkout")
def test_on_pythia_410m_two_thirds_of_the_depth_lose_less_than_any_metric() -> None:
    layers = range(25)
    choices = depth_rules(layers)
    rules = {
        name: metric_rule(name, values_L, layers=layers)
        for name, values_L in published_metrics().items()
    }
    metrics = {name: layer for name, layer in rules.items() if layer is not None}
    assert " ".join(sorted(metrics)) == (
        "curvature dataset_entropy dime infonce lidar prompt_entropy"
    )
    found = by_rule(task_regrets(choices | metrics, published_scores("main"), layers=layers))
    assert found["2/3 depth"].regret == pytest.approx(0.0266, abs=1e-4)
    assert found[OTHER_TASKS].regret == pytest.approx(0.0148, abs=1e-4)
    assert min(found[metric].regret for metric in metrics) > found["2/3 depth"].regret
