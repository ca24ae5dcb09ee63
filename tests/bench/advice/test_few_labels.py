"""What few labels cost: its arithmetic, and what a small set is made of."""

from __future__ import annotations

import numpy as np
import pytest

from tests.bench.advice.few_labels import Texts, advice, few, small_set, truth

LABEL_N = np.repeat([0, 1, 2], 50)
TESTED_N = np.tile(np.arange(50) >= 40, 3)
TEXTS = Texts([f"{row}" for row in range(150)], LABEL_N, TESTED_N)


def test_what_the_layers_of_small_sets_cost() -> None:
    truth_L = np.array([0.5, 0.8, 0.7, 0.6])
    # Four sets choose layers 1, 2, 0 (of two equal ones the lower) and 1.
    score_SL = np.array(
        [[0.1, 0.9, 0.2, 0.3], [0.1, 0.2, 0.9, 0.3], [0.9, 0.9, 0.2, 0.3], [0.0, 0.3, 0.2, 0.1]]
    )
    score_SL[2, 0] = score_SL[2, 1]
    found = advice(score_SL, truth_L)
    # Lost: 0, 10, 30 and 0 points; the 90th percentile lies 0.7 of the way from 10 to 30.
    assert tuple(found) == pytest.approx((0.5, 10.0, 24.0, 0.25, 20.0))


@pytest.mark.parametrize("size", [4, 8, 32])
def test_a_small_set_is_half_and_half_of_each_class_and_nothing_that_the_truth_tests(
    size: int,
) -> None:
    train, test = small_set(TEXTS, size, seed=3)
    for rows in (train, test):
        assert np.bincount(LABEL_N[rows]).tolist() == [size // 2] * 3
    assert len({*train, *test}) == 3 * size
    assert not TESTED_N[np.concatenate([train, test])].any()
    assert {*small_set(TEXTS, size, seed=4)[0]} != {*train}


def test_a_layer_that_tells_the_classes_apart_is_chosen_over_one_that_does_not() -> None:
    generator = np.random.default_rng(0)
    noise_ND = generator.standard_normal((150, 6)).astype(np.float32)
    clear_ND = noise_ND + 8 * np.eye(6, dtype=np.float32)[LABEL_N]
    vectors_LND = np.stack([noise_ND, clear_ND, noise_ND])
    for score_L in (truth(vectors_LND, TEXTS), few(vectors_LND, TEXTS, 8, seed=0)):
        assert score_L[1] == 1.0
        assert score_L[0] < 0.8
        assert score_L[0] == score_L[2]
