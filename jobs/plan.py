"""plan: what a run would do and write, before anything is spent and without a network.

Upper bounds, from the config alone: every source row is a prompt, every prompt has `max_tokens`.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs import sources
from jobs.config import ConfigError, RunConfig, SubjectConfig
from jobs.corpora import BuiltinSource, DatasetConfig, MtebSource
from jobs.subjects import subject
from jobs.targets import TokenPlan, graded_conditions, state_bytes, token_plan
from operators.subject import ModelShape, read_shape
from storage.manifest import load
from storage.partition import Partition
from storage.root import Root

_FLOAT32_BYTES = 4
_ROW_BYTES = 40  # the columns beside a vector or a token matrix


@dataclass(frozen=True)
class Plan:
    """The size of one subject over one dataset; token and byte counts are upper bounds."""

    subject: str
    dataset: str
    layers: int
    prompts: int
    shards: int
    passes: int
    tokens: int
    embedding_bytes: int
    token_bytes: int
    every_token_bytes: int
    token_plan: TokenPlan

    def gpu_hours(self, tokens_per_second: float) -> float:
        """Return the hours of one device that encodes so many tokens a second."""
        return self.tokens / tokens_per_second / 3600


def plan(config: RunConfig, root: Root | None) -> list[Plan]:
    """Return the plan of every subject over every dataset; ConfigError if a size is unknown."""
    return [
        _plan(config, _shape(each), subject(each).name, dataset, _size(dataset, root))
        for each in config.subjects
        for dataset in config.datasets
    ]


def _plan(
    config: RunConfig, shape: ModelShape, name: str, dataset: DatasetConfig, size: tuple[int, int]
) -> Plan:
    extract, views = config.extract, config.views
    prompts, shards = size
    sample = min(views.sample, prompts)
    planned = token_plan(config, shape, prompts)
    layers = shape.layers + 1
    max_tokens = min(extract.max_tokens, shape.max_tokens or extract.max_tokens)
    graded = len(graded_conditions(config, dataset))
    passes = prompts * (1 + graded) + views.count * sample
    vector = shape.hidden_size * _FLOAT32_BYTES + _ROW_BYTES
    groups = layers * len(extract.norms) * len(extract.poolings)
    states = state_bytes(config, shape) + layers * _ROW_BYTES
    return Plan(
        name,
        dataset.name,
        layers,
        prompts,
        shards,
        passes,
        passes * max_tokens,
        passes * groups * vector,
        planned.stored * states,
        prompts * states,
        planned,
    )


def _shape(config: SubjectConfig) -> ModelShape:
    if config.shape is not None:
        return ModelShape(config.shape.layers, config.shape.hidden_size, None)
    return read_shape(subject(config))


def _size(dataset: DatasetConfig, root: Root | None) -> tuple[int, int]:
    """Return prompts and shards: counted if they are prepared, else at most one prompt per text."""
    if root is not None:
        manifest = load(root, Partition("prompts", (dataset.name,)))
        if manifest is not None:
            return manifest.rows, len(manifest.receipts)
    if isinstance(dataset.source, BuiltinSource):
        fragments = sources.discover(dataset, {})
        lengths = [sources.inspect(fragment, {})[0] for fragment in fragments]
        _, rows = sources.cut(fragments, lengths, dataset.limit)
    elif isinstance(dataset.source, MtebSource):
        raise ConfigError(
            f"dataset {dataset.name}: which texts mteb's tasks encode is unknown before they are "
            "enumerated; run `layerrank prepare` first"
        )
    elif dataset.limit is None:
        raise ConfigError(
            f"dataset {dataset.name}: the number of rows is unknown before it is read; "
            "set limit, or run `layerrank prepare` first"
        )
    else:
        rows = dataset.limit
    prompts = rows * len(dataset.text_columns)
    return prompts, -(-prompts // dataset.shard_prompts)
