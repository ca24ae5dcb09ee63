"""What a run will write, by formula: the rows of every table, times what a row of it takes.

How many partitions, objects and rows there are follows from the config, the prompts and the model,
as the stages themselves derive it. What a row and an object take, compressed columns included, was
fitted on finished runs of 4 to 7 layers, 32 to 384 features and 40 to 5,000 prompts; three runs of
the tests hold it to a tenth of all bytes (`tests/support/planned.py`), one of them not among those
it was fitted on. A new table is one entry of what `of_dataset` or `of_subject` returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from jobs.config.metrics import TokenPlan, parameters, state_bytes, token_metrics, token_plan
from jobs.config.run import RunConfig, learning_examples, noise_conditions
from jobs.extract.targets import Pass, Target, passes
from jobs.measure.modes import METRIC as MODES_METRIC
from jobs.plan.sampling import Corpus, Weight, partition_weight, weight
from jobs.run import leading
from jobs.tasks.types import TYPES
from operators.analysis.sensitivity import FEWEST_LEVELS
from operators.metrics.registry import Tokens, Views, of_kind
from operators.metrics.registry import token_metrics as measure_tokens
from operators.model.subject import ModelShape, Subject
from storage.partition import TableName

Lengths = npt.NDArray[np.int32]
Shards = list[float]  # bytes of each
REPORT = "report"
_ITEM_BYTES = {"float32": 4, "float16": 2}
_PER_METRIC = 2.0  # variants of a metric that is not of tokens, on average


class Place(NamedTuple):
    """Where something is written: of which subject and dataset ("" = of the run), which table."""

    subject: str
    dataset: str
    table: str


@dataclass(frozen=True)
class Pair:
    """A subject over a dataset: what is known of it before it is run.

    `lengths` are tokens per prompt of a sample, by pass; none without texts or a tokenizer, and
    then every prompt has the most tokens that there can be.
    """

    config: RunConfig
    corpus: Corpus
    subject: Subject
    shape: ModelShape
    checkpoints: int  # that there are like it
    is_read: bool  # whether its tokenizer is at hand
    lengths: Sequence[Lengths] = ()

    @property
    def layers(self) -> int:
        """Layers that are kept, the input among them."""
        return self.shape.layers + 1

    @property
    def groups(self) -> int:
        """The (layer, norm, pooling) groups that are kept."""
        extract = self.config.extract
        return self.layers * len(extract.norms) * len(extract.poolings)

    @cached_property
    def passes(self) -> list[Pass]:
        """The passes of the subject, as extraction plans them; its files' content plays no part."""
        identity = {"files": "0" * 32, "dtype": self.subject.dtype}
        given = (self.subject, identity, self.shape, self.corpus.dataset, self.corpus.prompts)
        return [*passes(self.config, *given)]

    @property
    def forward(self) -> int:
        """Forward passes of one prompt, of all checkpoints."""
        of_one = sum(sum(each.embeddings.shares.values()) for each in self.passes)
        return of_one * self.checkpoints

    @property
    def mean_lengths(self) -> list[float]:
        """The mean tokens of a prompt in every pass, or the most that it can have."""
        if self.lengths:
            return [float(each.mean()) for each in self.lengths]
        most = self.config.extract.max_tokens
        return [float(min(most, self.shape.max_tokens or most))] * len(self.passes)

    @property
    def tokens(self) -> float:
        """Tokens through the model, of all checkpoints."""
        counts = (sum(each.embeddings.shares.values()) for each in self.passes)
        pairs = zip(counts, self.mean_lengths, strict=True)
        return self.checkpoints * sum(count * mean for count, mean in pairs)

    @cached_property
    def states(self) -> TokenPlan:
        """What becomes of token states."""
        return token_plan(self.config, self.shape, self.corpus.prompts.rows)

    @property
    def every_state_bytes(self) -> int:
        """Bytes of the token states of every prompt, at most."""
        return self.corpus.prompts.rows * state_bytes(self.config, self.shape)

    @cached_property
    def variants(self) -> int:
        """How many (metric, variant) token states are measured with."""
        states, lengths = [torch.randn(2, 4, 4)], torch.tensor([4, 4])
        wanted = token_metrics(self.config)
        return len(measure_tokens(states, lengths, wanted, parameters(self.config)))

    @property
    def metric_targets(self) -> list[Target]:
        """Every partition of `prompt_metrics`, the clean one first."""
        targets = [each.prompt_metrics for each in self.passes if each.prompt_metrics]
        if self.variants and not self.states.fused:
            targets += [each.tokens for each in self.passes if each.tokens]
        return targets

    @property
    def has_modes(self) -> bool:
        """Whether the values of every prompt are tested for groups."""
        return MODES_METRIC in self.config.measure.metrics

    def layer_rows(self, *, views: bool) -> float:
        """Return the rows of `layer_metrics` under one condition."""
        own = set(self.config.measure.metrics) - set(of_kind(self.config.measure.metrics, Tokens))
        own -= set() if views else set(of_kind(self.config.measure.metrics, Views))
        return self.layers * self.variants + self.groups * len(own) * _PER_METRIC


def _shards(target: Target | None, groups: int, row: float, group: float) -> Shards:
    """Return the bytes of shards of so many row groups, of what a row and a group take."""
    return [groups * (share * row + group) for share in target.shares.values()] if target else []


def of_dataset(pair: Pair) -> dict[TableName, list[Shards]]:
    """Return the bytes of the shards of every partition of a subject over a dataset, by table."""
    config, groups, layers, tasks = pair.config, pair.groups, pair.layers, pair.corpus.dataset.tasks
    hidden, probe, modes = pair.shape.hidden_size, config.probe, pair.metric_targets[:1]
    state = pair.mean_lengths[0] * _ITEM_BYTES[config.tokens.dtype] * hidden + 24
    shares = [leading(each.shares, config.measure.mode_sample) for each in modes]
    levels = [len(each) for each in config.conditions.families().values()]
    found: dict[TableName, list[Shards]] = {
        "embeddings": [
            _shards(each.embeddings, groups, 4 * hidden + 16.6, 1130) for each in pair.passes
        ],
        "tokens": [_shards(each.tokens, layers, state, 1000) for each in pair.passes],
        "prompt_metrics": [
            _shards(each, layers, 8.9 * pair.variants, 1500) for each in pair.metric_targets
        ],
        "prompt_traits": [
            [2700 + 16.5 * share for share in each.values()] for each in shares if pair.has_modes
        ],
        "layer_metrics": [
            [4300 + 9.5 * pair.layer_rows(views=not condition)]
            for condition in range(1 + len(config.conditions.passes()))
        ],
        "sensitivity": [
            [5600 + 17 * pair.layer_rows(views=False)] for each in levels if each >= FEWEST_LEVELS
        ],
        "probe_scores": [],
        "learning_curves": [],
    }
    for task in tasks:
        kind, rows = TYPES[type(task)], groups * len(probe.variants) * task.repeats
        # Tasks without folds are resampled; directions alone have one score for both variants.
        drawn = probe.replicates if kind.score and task.repeats == 1 else 0
        different = 1 if kind.scale_free else len(probe.variants)
        found["probe_scores"].append([4000 + 10 * rows + 8 * groups * different * drawn])
        noisy = noise_conditions(config, [task])
        found["probe_scores"] += [[4200 + 10 * layers * task.repeats] for _ in noisy]
        if examples := len(learning_examples(config, task)):
            found["learning_curves"].append([4900 + 8 * layers * task.repeats * examples])
    return found


def of_subject(pair: Pair) -> dict[TableName, list[Shards]]:
    """Return the same of the tables of a subject, whatever the datasets."""
    layers, metrics = pair.layers, len(pair.config.measure.metrics)
    return {
        "layer_costs": [[3470 + 40 * layers]],
        "modes": [[10_500 + 450 * layers]] if pair.has_modes and pair.metric_targets else [],
        "choices": [[3_000 + 50 * metrics]],
        "correlations": [[6_000 + 90 * metrics]],
        "ranking": [[7600 + 75 * layers]],
    }


def written(config: RunConfig, pairs: Sequence[Pair]) -> Iterator[tuple[Place, Weight]]:
    """Yield where a run writes and how much that is, for every table and the report."""
    for name, corpus in {pair.corpus.dataset.name: pair.corpus for pair in pairs}.items():
        for table, of_texts in corpus.weights.items():
            yield Place("", name, table), of_texts
    subjects = {pair.subject.name: pair for pair in pairs}.values()
    tables = [(pair, pair.corpus.dataset.name, of_dataset(pair)) for pair in pairs]
    for pair, dataset, found in [*tables, *((pair, "", of_subject(pair)) for pair in subjects)]:
        for table, partitions in found.items():
            place = Place(pair.subject.name, dataset, table)
            for shards in filter(None, partitions):
                yield place, partition_weight(shards).times(pair.checkpoints)
    yield Place("", "", REPORT), _report(config, pairs)


def _report(config: RunConfig, pairs: Sequence[Pair]) -> Weight:
    """Return the weight of the four files of a report.

    Its plots are most of the page: each grows with the layers, by a point of every curve.
    """
    page, facts = 42_000.0, 0.0
    for pair in pairs:
        plot = 4_500 + 480 * pair.layers
        metrics, checkpoints = len(config.measure.metrics), pair.checkpoints
        views = len(of_kind(config.measure.metrics, Views))
        responses, tasks = len(config.conditions.families()) * (metrics - views), 0
        for task in pair.corpus.dataset.tasks:
            curves = bool(learning_examples(config, task)) + bool(noise_conditions(config, [task]))
            page += plot * curves + 4_000
            tasks += 1
        page += (plot + 650) * (metrics + 2 * responses)
        maps = metrics + tasks if checkpoints > 1 else 0
        page += maps * (5_200 + 110 * pair.layers * checkpoints)
        levels = 1 + len(config.conditions.passes())
        facts += 180 * checkpoints * levels * pair.layer_rows(views=True)
    for pair in {each.subject.name: each for each in pairs}.values():
        tasks = sum(len(each.corpus.dataset.tasks) for each in pairs)
        wide = (8 if tasks > 1 else 6) * bool(tasks) + 4 * (pair.checkpoints > 1)
        page += wide * (6_200 + 700 * pair.layers) + 5_300 * pair.layers
        facts += 20_000 * pair.checkpoints
    return weight([page, 69_500.0, 22_000 + 0.025 * page, facts])
