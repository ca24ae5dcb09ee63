"""Transforms of vectors: closed forms, and what does not depend on how they are reached."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from layerrank.operators.model.subject import Transform
from layerrank.operators.probes.transform import FITTED, apply, fit, matrix, require_enough

Vectors = npt.NDArray[np.float32]


def vectors(texts: int, features: int, seed: int = 0) -> Vectors:
    """Return vectors that mostly point one way, with features of very different sizes."""
    draws = np.random.default_rng(seed)
    sizes = np.geomspace(0.1, 50, features)
    return (draws.normal(size=(texts, features)) * sizes + 3 * sizes).astype(np.float32)


@pytest.mark.parametrize(("texts", "features"), [(60, 8), (12, 40)])
def test_standardised_and_centred_vectors_are_those_of_scikit_learn(
    texts: int, features: int
) -> None:
    given_ND = vectors(texts, features)
    found = fit(given_ND, 2)
    expected = StandardScaler().fit_transform(given_ND.astype(np.float64))
    np.testing.assert_allclose(apply(given_ND, "z", found), expected, atol=2e-6)
    whole = PCA(2).fit(given_ND.astype(np.float64))
    centred = given_ND - whole.mean_
    centred -= whole.transform(given_ND.astype(np.float64)) @ whole.components_
    np.testing.assert_allclose(apply(given_ND, "abtt", found), centred, atol=2e-4)
    np.testing.assert_allclose(found.direction_KD @ found.direction_KD.T, np.eye(2), atol=1e-12)


def test_vectors_on_two_directions_have_nothing_left_without_these() -> None:
    draws = np.random.default_rng(1)
    plane_ND = (draws.normal(size=(30, 2)) @ draws.normal(size=(2, 9)) + 5).astype(np.float32)
    left_ND = apply(plane_ND, "abtt", fit(plane_ND, 2))
    assert np.abs(left_ND).max() < 1e-5
    assert np.abs(apply(plane_ND, "abtt", fit(plane_ND, 1))).max() > 0.1


@pytest.mark.parametrize("directions", [0, 1])
def test_where_fewer_directions_vary_than_are_removed_the_fit_is_the_same_again(
    directions: int,
) -> None:
    draws = np.random.default_rng(2)
    line_ND = (
        draws.normal(size=(40, directions)) @ draws.normal(size=(directions, 30)) + 3
    ).astype(np.float32)
    first, again = (fit(line_ND, 2) for _ in range(2))
    np.testing.assert_array_equal(first.direction_KD, again.direction_KD)
    assert np.abs(apply(line_ND, "abtt", first)).max() < 1e-5


def test_a_feature_that_hardly_varies_becomes_0_and_is_not_blown_up() -> None:
    given_ND = vectors(50, 4)
    given_ND[:, 1] = 7
    given_ND[:, 2] = 1000 + 1e-4 * np.arange(50)  # float32 has steps of 6e-5 there
    found = fit(given_ND, 1)
    assert found.deviation_D[[1, 2]].tolist() == [1, 1]
    made_ND = apply(given_ND, "z", found)
    assert np.abs(made_ND[:, 1]).max() == 0
    assert np.abs(made_ND[:, 2]).max() < 0.01


@pytest.mark.parametrize("transform", ["raw", "l2", "z", "abtt"])
def test_a_vector_is_transformed_by_itself(transform: Transform) -> None:
    given_ND = vectors(5000, 6)
    found = fit(given_ND[:100], 2)
    whole_ND = apply(given_ND, transform, found)
    assert whole_ND.dtype == np.float32
    for row in (0, 4095, 4096, 4999):
        alone_ND = apply(given_ND[row : row + 1], transform, found)
        np.testing.assert_allclose(alone_ND, whole_ND[row : row + 1], rtol=1e-6, atol=1e-5)
    again_ND = apply(apply(given_ND, "l2"), "l2")
    np.testing.assert_allclose(again_ND, apply(given_ND, "l2"), atol=1e-7)


@pytest.mark.parametrize("transform", FITTED)
def test_what_is_fitted_is_a_matrix_of_what_is_centred(transform: Transform) -> None:
    given_ND = vectors(40, 7)
    found = fit(given_ND, 2)
    made_ND = (given_ND - found.mean_D) @ matrix(transform, found).T
    np.testing.assert_allclose(made_ND, apply(given_ND, transform, found), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("texts", "features", "spare"), [(3, 10, 1), (2, 10, 0), (0, 10, 0), (100, 3, 2)]
)
def test_too_few_texts_for_the_directions_are_named(texts: int, features: int, spare: int) -> None:
    require_enough(texts, features, spare, "here") if spare else None
    with pytest.raises(ValueError, match=rf"here: {spare + 1} top .* have {spare} to spare"):
        require_enough(texts, features, spare + 1, "here")
