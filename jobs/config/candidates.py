"""Which vectors of a layer may be recommended, and on which texts their transforms are fitted."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import DatasetConfig
from layerrank.jobs.config.run import RunConfig
from layerrank.operators.model.subject import Norm, Pooling, Vectors
from layerrank.operators.probes.transform import FITTED, require_enough
from layerrank.operators.prompts.templates import is_prompt
from layerrank.storage.partition import CLEAN


def ranked_vectors(config: RunConfig) -> Vectors:
    """Return the vectors that are ranked in every layer, and of which the last is the baseline."""
    return Vectors(config.rank.norm, config.rank.pooling, config.rank.variant)


def candidate_vectors(config: RunConfig) -> list[Vectors]:
    """Return the vectors that may be recommended of a layer, the ranked ones last."""
    plain, asked = ranked_vectors(config), config.candidates
    found = itertools.product(*_candidate_states(config), asked.transforms if asked else ())
    return [*(each for each in itertools.starmap(Vectors, found) if each != plain), plain]


def other_vectors(config: RunConfig) -> list[Vectors]:
    """Return the candidates that are no scores of a task in themselves, in every layer."""
    extract, variants = config.extract, config.probe.variants
    return [
        each
        for each in candidate_vectors(config)[:-1]
        if not (
            each.norm in extract.norms
            and each.pooling in extract.poolings
            and each.transform in variants
        )
    ]


def _candidate_states(config: RunConfig) -> tuple[tuple[Norm, ...], tuple[Pooling, ...]]:
    """Return the norms and the poolings of candidates, by default those that go with the ranked."""
    asked, rank = config.candidates, config.rank
    if asked is None:
        return (), ()
    also: tuple[Pooling, ...] = ("mean_no_first",) if rank.pooling == "mean" else ()
    return asked.norms or (rank.norm,), asked.poolings or (rank.pooling, *also)


def kept_vectors(config: RunConfig, condition: str) -> tuple[tuple[Norm, ...], tuple[Pooling, ...]]:
    """Return the norms and poolings that are kept under a condition, sorted.

    Where tasks are scored, on texts alone or in a template, also those of candidates.
    """
    scored = condition == CLEAN or is_prompt(condition)
    norms, poolings = _candidate_states(config) if scored else ((), ())
    extract = config.extract
    return (
        tuple(sorted({*extract.norms, *norms})),
        tuple(sorted({*extract.poolings, *poolings})),
    )


def sample_shares(config: RunConfig, texts: Mapping[str, int]) -> dict[str, int]:
    """Return how many texts transforms are fitted on, of several sources with so many each.

    The same share of each; all of them if that is fewer than the sample.
    """
    asked = config.candidates
    assert asked, config.name
    total = sum(texts.values())
    most = min(asked.sample, total)
    # Rounded so that the sum is right: the i-th text of all is of the source it falls into.
    ends = np.cumsum([0, *texts.values()])
    shares = np.diff(ends * most // max(total, 1))
    return dict(zip(texts, shares.tolist(), strict=True))


def fitted_datasets(config: RunConfig) -> list[DatasetConfig]:
    """Return the datasets on whose texts transforms are fitted."""
    of = config.candidates.texts if config.candidates else None
    return [dataset for dataset in config.datasets if of in (None, dataset.name)]


def require_texts(config: RunConfig, texts: Mapping[str, int], features: int) -> None:
    """ConfigError if there are too few texts, or features, to fit candidates' transforms on.

    `texts` says how many prompts each dataset has. Where nobody asked for candidates, those that
    would have to be fitted are left out.
    """
    asked, how = config.candidates, config.rank.variant
    if asked is None or not any(each.tasks for each in config.datasets):
        return
    of = {each.name: texts[each.name] for each in fitted_datasets(config)}
    count = sum(sample_shares(config, of).values())
    if how in FITTED and count < asked.directions + 2:
        raise ConfigError(f"rank.variant is {how}, to be fitted on {count} texts: give more")
    if "candidates" in config.model_fields_set and "abtt" in asked.transforms:
        try:
            require_enough(count, features, asked.directions, "candidates.directions")
        except ValueError as error:
            raise ConfigError(
                f"{error}; give more, or leave abtt out of candidates.transforms"
            ) from None
