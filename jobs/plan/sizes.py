"""What a run will write, by formula: the rows of every table, times what a row of it takes.

How many partitions, objects and rows there are follows from the config, the prompts and the model,
as the stages themselves derive it. What a row and an object take, compressed columns included, was
fitted on finished runs of 4 to 7 layers, 32 to 384 features and 40 to 5,000 prompts; three runs of
the tests hold it to a tenth of all bytes (`tests/support/planned.py`), one of them not among those
it was fitted on. A new table is one entry of TABLES or of OF_SUBJECT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from jobs.config.metrics import TokenPlan, parameters, token_metrics, token_plan
from jobs.config.run import RunConfig, noise_conditions
from jobs.extract.targets import Pass, Target, passes
from jobs.measure.modes import METRIC as MODES_METRIC
from jobs.plan.sampling import Corpus
from jobs.plan.weight import Weight, partition_weight, weight
from jobs.run import leading
from jobs.tasks.types import (
    ClassificationTask,
    ClusteringTask,
    FittedTask,
    MtebTask,
    PairClassificationTask,
    Task,
)
from operators.analysis.sensitivity import FEWEST_LEVELS
from operators.metrics.registry import of_kind
from operators.metrics.token.tokens import token_metrics as measure_tokens
from operators.metrics.variants import Tokens, Views
from operators.model.subject import ModelShape, Subject

Lengths = npt.NDArray[np.int32]
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
    """A subject, its sizes, and the revisions of all checkpoints like it, its own first."""

    subject: Subject
    shape: ModelShape
    revisions: tuple[str, ...]
    is_read: bool = True  # whether its tokenizer is at hand

    @property
    def checkpoints(self) -> int:
        """How many checkpoints there are."""
        return len(self.revisions)


@dataclass(frozen=True)
class Pair:
    """A subject over a dataset: what is known of it before it is run.

    `lengths` are tokens per prompt, of a sample or the most there can be.
    """

    config: RunConfig
    model: Model
    corpus: Corpus
    lengths: Lengths

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
        """The passes of the subject over the dataset, as extraction plans them."""
        return passes_of(self.config, self.model.subject, self.model.shape, self.corpus)

    @cached_property
    def tokens(self) -> TokenPlan:
        """What becomes of token states."""
        return token_plan(self.config, self.model.shape, self.corpus.prompts.rows)

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
        if self.variants and not self.tokens.fused:
            targets += [each.tokens for each in self.passes if each.tokens]
        return targets

    def layer_rows(self, *, views: bool) -> float:
        """Return the rows of `layer_metrics` under one condition."""
        own = set(self.config.measure.metrics) - set(of_kind(self.config.measure.metrics, Tokens))
        own -= set() if views else set(of_kind(self.config.measure.metrics, Views))
        return self.layers * self.variants + self.groups * len(own) * _PER_METRIC


def passes_of(config: RunConfig, subject: Subject, shape: ModelShape, corpus: Corpus) -> list[Pass]:
    """Return the passes of a subject over a dataset; the content of its files plays no part."""
    identity = {"files": "0" * 32, "dtype": subject.dtype}
    return [*passes(config, subject, identity, shape, corpus.dataset, corpus.prompts)]


def _embeddings(pair: Pair) -> Iterator[Weight]:
    row, group = 4 * pair.model.shape.hidden_size + 16.6, 1130
    for each in pair.passes:
        shares = each.embeddings.shares.values()
        yield partition_weight([pair.groups * (share * row + group) for share in shares])


def _tokens(pair: Pair) -> Iterator[Weight]:
    item = _ITEM_BYTES[pair.config.tokens.dtype] * pair.model.shape.hidden_size
    row, group = float(pair.lengths.mean()) * item + 24, 1000
    for each in pair.passes:
        shares = each.tokens.shares.values() if each.tokens else ()
        yield partition_weight([pair.layers * (share * row + group) for share in shares])


def _prompt_metrics(pair: Pair) -> Iterator[Weight]:
    row, group = 8.9 * pair.variants, 1500
    for target in pair.metric_targets:
        shares = target.shares.values()
        yield partition_weight([pair.layers * (share * row + group) for share in shares])


def _prompt_traits(pair: Pair) -> Iterator[Weight]:
    for target in pair.metric_targets[:1] if _has_modes(pair) else ():
        shares = leading(target.shares, pair.config.measure.mode_sample)
        yield partition_weight([2700 + 16.5 * share for share in shares.values()])


def _layer_metrics(pair: Pair) -> Iterator[Weight]:
    for condition in range(1 + len(pair.config.conditions.passes())):
        yield partition_weight([4300 + 9.5 * pair.layer_rows(views=not condition)])


def _sensitivity(pair: Pair) -> Iterator[Weight]:
    for levels in pair.config.conditions.families().values():
        if len(levels) >= FEWEST_LEVELS:
            yield partition_weight([5600 + 17 * pair.layer_rows(views=False)])


def _probe_scores(pair: Pair) -> Iterator[Weight]:
    config = pair.config
    for task in pair.corpus.dataset.tasks:
        variants = len(config.probe.variants)
        rows = pair.groups * variants * _folds(task)
        # Tasks without folds are resampled; directions alone have one score for both variants.
        drawn = 0 if _folds(task) > 1 or isinstance(task, MtebTask) else config.probe.replicates
        different = variants if isinstance(task, PairClassificationTask) else 1
        values = pair.groups * different * drawn
        yield partition_weight([4000 + 10 * rows + 8 * values])
        noisy = noise_conditions(config, pair.corpus.dataset) if _is_fitted(task) else ()
        for _ in noisy:
            yield partition_weight([4200 + 10 * pair.layers * _folds(task)])


def _learning_curves(pair: Pair) -> Iterator[Weight]:
    examples = len(pair.config.curves.examples)
    for task in pair.corpus.dataset.tasks if examples else ():
        if isinstance(task, ClassificationTask):
            yield partition_weight([4900 + 8 * pair.layers * _folds(task) * examples])


# Table -> its partitions of a subject over a dataset.
TABLES: dict[str, Callable[[Pair], Iterator[Weight]]] = {
    "embeddings": _embeddings,
    "tokens": _tokens,
    "prompt_metrics": _prompt_metrics,
    "prompt_traits": _prompt_traits,
    "layer_metrics": _layer_metrics,
    "sensitivity": _sensitivity,
    "probe_scores": _probe_scores,
    "learning_curves": _learning_curves,
}


def _layer_costs(pair: Pair) -> Iterator[Weight]:
    yield partition_weight([3470 + 40 * pair.layers])


def _modes(pair: Pair) -> Iterator[Weight]:
    if _has_modes(pair) and pair.metric_targets:
        yield partition_weight([10_500 + 450 * pair.layers])


def _choices(pair: Pair) -> Iterator[Weight]:
    yield partition_weight([3_000 + 50 * len(pair.config.measure.metrics)])


def _correlations(pair: Pair) -> Iterator[Weight]:
    yield partition_weight([6_000 + 90 * len(pair.config.measure.metrics)])


def _ranking(pair: Pair) -> Iterator[Weight]:
    yield partition_weight([7600 + 75 * pair.layers])


# Table -> its partitions of a subject, whatever the datasets.
OF_SUBJECT: dict[str, Callable[[Pair], Iterator[Weight]]] = {
    "layer_costs": _layer_costs,
    "modes": _modes,
    "choices": _choices,
    "correlations": _correlations,
    "ranking": _ranking,
}


def written(config: RunConfig, pairs: Sequence[Pair]) -> Iterator[tuple[Place, Weight]]:
    """Yield where a run writes and how much that is, for every table and the report."""
    corpora = {pair.corpus.dataset.name: pair.corpus for pair in pairs}
    for name, corpus in corpora.items():
        for table, found in corpus.weights.items():
            yield Place("", name, table), found
    models = {pair.model.subject.name: pair for pair in pairs}
    for pair in pairs:
        for table, weigh in TABLES.items():
            for each in weigh(pair):
                place = Place(pair.model.subject.name, pair.corpus.dataset.name, table)
                if each.objects:
                    yield place, each.times(pair.model.checkpoints)
    for name, pair in models.items():
        for table, weigh in OF_SUBJECT.items():
            for each in weigh(pair):
                yield Place(name, "", table), each.times(pair.model.checkpoints)
    yield Place("", "", REPORT), _report(config, pairs)


def _report(config: RunConfig, pairs: Sequence[Pair]) -> Weight:
    """Return the weight of the four files of a report.

    Its plots are most of the page: each grows with the layers, by a point of every curve.
    """
    page, facts = 45_000.0, 0.0
    for pair in pairs:
        plot = 5_700 + 630 * pair.layers
        metrics, checkpoints = len(config.measure.metrics), pair.model.checkpoints
        views = len(of_kind(config.measure.metrics, Views))
        responses = len(config.conditions.families()) * (metrics - views)
        curves = sum(1 for _ in _learning_curves(pair)) + sum(
            _is_fitted(task) and bool(config.curves.noise) for task in pair.corpus.dataset.tasks
        )
        page += plot * (metrics + 2.1 * responses + 1.1 * curves)
        page += 500 * (metrics + 2 * responses) + 2_400 * len(pair.corpus.dataset.tasks)
        maps = metrics + len(pair.corpus.dataset.tasks) if checkpoints > 1 else 0
        page += maps * (1.2 * plot + 650 * checkpoints)
        levels = 1 + len(config.conditions.passes())
        facts += 180 * checkpoints * levels * pair.layer_rows(views=True)
    for pair in {each.model.subject.name: each for each in pairs}.values():
        scored = any(each.corpus.dataset.tasks for each in pairs)
        page += 6 * (8_300 + 850 * pair.layers) * scored + 3_500 * pair.layers
        facts += 20_000 * pair.model.checkpoints
    return weight([page, 69_500.0, 0.04 * page, facts])


def _has_modes(pair: Pair) -> bool:
    return MODES_METRIC in pair.config.measure.metrics


def _is_fitted(task: Task) -> bool:
    return isinstance(task, FittedTask)


def _folds(task: Task) -> int:
    folded = isinstance(task, (FittedTask, ClusteringTask))
    return int(getattr(task, "folds", 1)) if folded else 1
