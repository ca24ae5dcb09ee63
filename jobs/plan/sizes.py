"""What a run will write, by formula: the rows of every table, times what a row of it takes.

How many partitions, objects and rows there are follows from the config, the prompts and the model,
as the stages themselves derive it. What a row and an object take, compressed columns included, was
fitted on finished runs of 4 to 7 layers, 32 to 384 features and 40 to 5,000 prompts; three runs of
the tests hold it to a tenth of all bytes (`tests/support/planned.py`), one of them not among those
it was fitted on. A new table is one entry of TABLES or of OF_SUBJECT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
class Model:
    """A subject, its sizes, and how many checkpoints there are like it."""

    subject: Subject
    shape: ModelShape
    checkpoints: int
    is_read: bool = True  # whether its tokenizer is at hand


@dataclass(frozen=True)
class Pair:
    """A subject over a dataset: what is known of it before it is run.

    `lengths` are tokens per prompt of a sample, by pass; none without texts or a tokenizer, and
    then every prompt has the most tokens that there can be.
    """

    config: RunConfig
    model: Model
    corpus: Corpus
    lengths: Sequence[Lengths] = ()

    @property
    def layers(self) -> int:
        """Layers that are kept, the input among them."""
        return self.model.shape.layers + 1

    @property
    def groups(self) -> int:
        """The (layer, norm, pooling) groups that are kept."""
        extract = self.config.extract
        return self.layers * len(extract.norms) * len(extract.poolings)

    @cached_property
    def passes(self) -> list[Pass]:
        """The passes of the subject, as extraction plans them; its files' content plays no part."""
        model, corpus = self.model, self.corpus
        identity = {"files": "0" * 32, "dtype": model.subject.dtype}
        given = (model.subject, identity, model.shape, corpus.dataset, corpus.prompts)
        return [*passes(self.config, *given)]

    @property
    def forward(self) -> int:
        """Forward passes of one prompt, of all checkpoints."""
        of_one = sum(sum(each.embeddings.shares.values()) for each in self.passes)
        return of_one * self.model.checkpoints

    @property
    def mean_lengths(self) -> list[float]:
        """The mean tokens of a prompt in every pass, or the most that it can have."""
        if self.lengths:
            return [float(each.mean()) for each in self.lengths]
        most = self.config.extract.max_tokens
        return [float(min(most, self.model.shape.max_tokens or most))] * len(self.passes)

    @property
    def tokens(self) -> float:
        """Tokens through the model, of all checkpoints."""
        counts = (sum(each.embeddings.shares.values()) for each in self.passes)
        pairs = zip(counts, self.mean_lengths, strict=True)
        return self.model.checkpoints * sum(count * mean for count, mean in pairs)

    @cached_property
    def states(self) -> TokenPlan:
        """What becomes of token states."""
        return token_plan(self.config, self.model.shape, self.corpus.prompts.rows)

    @property
    def every_state_bytes(self) -> int:
        """Bytes of the token states of every prompt, at most."""
        return self.corpus.prompts.rows * state_bytes(self.config, self.model.shape)

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


def _embeddings(pair: Pair) -> Iterator[Shards]:
    row = 4 * pair.model.shape.hidden_size + 16.6
    yield from (_shards(each.embeddings, pair.groups, row, 1130) for each in pair.passes)


def _tokens(pair: Pair) -> Iterator[Shards]:
    item = _ITEM_BYTES[pair.config.tokens.dtype] * pair.model.shape.hidden_size
    row = pair.mean_lengths[0] * item + 24
    yield from (_shards(each.tokens, pair.layers, row, 1000) for each in pair.passes)


def _prompt_metrics(pair: Pair) -> Iterator[Shards]:
    row = 8.9 * pair.variants
    yield from (_shards(target, pair.layers, row, 1500) for target in pair.metric_targets)


def _prompt_traits(pair: Pair) -> Iterator[Shards]:
    for target in pair.metric_targets[:1] if pair.has_modes else ():
        shares = leading(target.shares, pair.config.measure.mode_sample)
        yield [2700 + 16.5 * share for share in shares.values()]


def _layer_metrics(pair: Pair) -> Iterator[Shards]:
    for condition in range(1 + len(pair.config.conditions.passes())):
        yield [4300 + 9.5 * pair.layer_rows(views=not condition)]


def _sensitivity(pair: Pair) -> Iterator[Shards]:
    for levels in pair.config.conditions.families().values():
        if len(levels) >= FEWEST_LEVELS:
            yield [5600 + 17 * pair.layer_rows(views=False)]


def _probe_scores(pair: Pair) -> Iterator[Shards]:
    config, variants = pair.config, len(pair.config.probe.variants)
    for task in pair.corpus.dataset.tasks:
        kind, rows = TYPES[type(task)], pair.groups * variants * task.repeats
        # Tasks without folds are resampled; directions alone have one score for both variants.
        drawn = config.probe.replicates if kind.score and task.repeats == 1 else 0
        different = 1 if kind.scale_free else variants
        yield [4000 + 10 * rows + 8 * pair.groups * different * drawn]
        for _ in noise_conditions(config, [task]):
            yield [4200 + 10 * pair.layers * task.repeats]


def _learning_curves(pair: Pair) -> Iterator[Shards]:
    for task in pair.corpus.dataset.tasks:
        if examples := len(learning_examples(pair.config, task)):
            yield [4900 + 8 * pair.layers * task.repeats * examples]


def _modes(pair: Pair) -> Iterator[Shards]:
    if pair.has_modes and pair.metric_targets:
        yield [10_500 + 450 * pair.layers]


# Table -> the bytes of the shards of its partitions of a subject over a dataset.
TABLES: dict[TableName, Callable[[Pair], Iterable[Shards]]] = {
    "embeddings": _embeddings,
    "tokens": _tokens,
    "prompt_metrics": _prompt_metrics,
    "prompt_traits": _prompt_traits,
    "layer_metrics": _layer_metrics,
    "sensitivity": _sensitivity,
    "probe_scores": _probe_scores,
    "learning_curves": _learning_curves,
}
# Table -> those of a subject, whatever the datasets.
OF_SUBJECT: dict[TableName, Callable[[Pair], Iterable[Shards]]] = {
    "layer_costs": lambda pair: [[3470 + 40 * pair.layers]],
    "modes": _modes,
    "choices": lambda pair: [[3_000 + 50 * len(pair.config.measure.metrics)]],
    "correlations": lambda pair: [[6_000 + 90 * len(pair.config.measure.metrics)]],
    "ranking": lambda pair: [[7600 + 75 * pair.layers]],
}


def written(config: RunConfig, pairs: Sequence[Pair]) -> Iterator[tuple[Place, Weight]]:
    """Yield where a run writes and how much that is, for every table and the report."""
    for name, corpus in {pair.corpus.dataset.name: pair.corpus for pair in pairs}.items():
        for table, found in corpus.weights.items():
            yield Place("", name, table), found
    of_subject = {pair.model.subject.name: pair for pair in pairs}.values()
    tables = [(pair, pair.corpus.dataset.name, TABLES) for pair in pairs]
    for pair, dataset, weighed in [*tables, *((pair, "", OF_SUBJECT) for pair in of_subject)]:
        for table, shards_of in weighed.items():
            place = Place(pair.model.subject.name, dataset, table)
            for shards in filter(None, shards_of(pair)):
                yield place, partition_weight(shards).times(pair.model.checkpoints)
    yield Place("", "", REPORT), _report(config, pairs)


def _report(config: RunConfig, pairs: Sequence[Pair]) -> Weight:
    """Return the weight of the four files of a report.

    Its plots are most of the page: each grows with the layers, by a point of every curve.
    """
    page, facts = 42_000.0, 0.0
    for pair in pairs:
        plot = 4_500 + 480 * pair.layers
        metrics, checkpoints = len(config.measure.metrics), pair.model.checkpoints
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
    for pair in {each.model.subject.name: each for each in pairs}.values():
        tasks = sum(len(each.corpus.dataset.tasks) for each in pairs)
        wide = (8 if tasks > 1 else 6) * bool(tasks) + 4 * (pair.model.checkpoints > 1)
        page += wide * (6_200 + 700 * pair.layers) + 5_300 * pair.layers
        facts += 20_000 * pair.model.checkpoints
    return weight([page, 69_500.0, 22_000 + 0.025 * page, facts])
