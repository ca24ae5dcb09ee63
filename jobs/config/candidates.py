"""Which vectors of a layer may be recommended, and on which texts their transforms are fitted."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from jobs.config.blocks import ConfigError
from jobs.config.run import RunConfig
from operators.model.subject import Norm, Pooling, Vectors
from operators.probes.transform import require_enough
from storage.partition import CLEAN


def ranked_vectors(config: RunConfig) -> Vectors:
    """Return the vectors that are ranked in every layer, and of which the last is the baseline."""
    return Vectors(config.rank.norm, config.rank.pooling, config.rank.variant)


def candidate_vectors(config: RunConfig) -> list[Vectors]:
    """Return the vectors that may be recommended of a layer, the ranked ones last."""
    plain, asked = ranked_vectors(config), config.candidates
    found = itertools.product(*_candidate_states(config), asked.transforms if asked else ())
    return [*(each for each in itertools.starmap(Vectors, found) if each != plain), plain]


def _candidate_states(config: RunConfig) -> tuple[tuple[Norm, ...], tuple[Pooling, ...]]:
    """Return the norms and the poolings of candidates, by default those that go with the ranked."""
    asked, rank = config.candidates, config.rank
    if asked is None:
        return (), ()
    also: tuple[Pooling, ...] = ("mean_no_first",) if rank.pooling == "mean" else ()
    return asked.norms or (rank.norm,), asked.poolings or (rank.pooling, *also)


def kept_vectors(config: RunConfig, condition: str) -> tuple[tuple[Norm, ...], tuple[Pooling, ...]]:
    """Return the norms and poolings that are kept under a condition, sorted.

    Of the clean one also those of candidates.
    """
    norms, poolings = _candidate_states(config) if condition == CLEAN else ((), ())
    extract = config.extract
    return (
        tuple(sorted({*extract.norms, *norms})),
        tuple(sorted({*extract.poolings, *poolings})),
    )


def sample_shares(config: RunConfig, texts: Mapping[str, int]) -> dict[str, int]:
    """Return how many texts of each dataset transforms are fitted on, of so many prompts of each.

    Of every dataset the same share, or of the one that is named; all of them if that is fewer than
    the sample.
    """
    asked = config.candidates
    assert asked, config.name
    of = {name: count for name, count in texts.items() if asked.texts in (None, name)}
    total = sum(of.values())
    most = min(asked.sample, total)
    # Rounded so that the sum is right: the i-th text of all is of the dataset it falls into.
    ends = np.cumsum([0, *of.values()])
    shares = np.diff(ends * most // max(total, 1))
    return dict(zip(of, shares.tolist(), strict=True))


def require_texts(config: RunConfig, texts: Mapping[str, int], features: int) -> None:
    """ConfigError if there are too few texts, or features, to fit candidates' transforms on."""
    asked = config.candidates
    if asked and "abtt" in asked.transforms and any(each.tasks for each in config.datasets):
        count = sum(sample_shares(config, texts).values())
        try:
            require_enough(count, features, asked.directions, "candidates.directions")
        except ValueError as error:
            raise ConfigError(
                f"{error}; give more, or leave abtt out of candidates.transforms"
            ) from None
