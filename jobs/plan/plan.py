"""plan: what a run would do, write and cost, before anything is spent.

The texts are sampled and tokenised. Where texts or tokenizer are not at hand, the largest number
that there can be stands, and the plan says so.

What is written follows by formula: the rows of every table, times what a row of it takes. How many
partitions, objects and rows there are follows from the config, the prompts and the model, as the
stages themselves derive it. What a row and an object take, compressed columns included, was fitted
on finished runs of 4 to 7 layers, 32 to 384 features and 40 to 5,000 prompts; three runs of the
tests hold it to a tenth of all bytes (`tests/support/planned.py`), one of them not among those it
was fitted on. A new table is one entry of what `of_dataset` or `of_subject` returns.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from layerrank.jobs.config.candidates import candidate_vectors, kept_vectors, other_vectors
from layerrank.jobs.config.datasets import MtebTask
from layerrank.jobs.config.metrics import (
    TokenPlan,
    metrics_of,
    parameters,
    state_bytes,
    token_metrics,
    token_plan,
)
from layerrank.jobs.config.prompts import Prompted, Side, asked_fact, by_template
from layerrank.jobs.config.run import RunConfig, learning_examples, noise_conditions
from layerrank.jobs.config.settings import SubjectConfig
from layerrank.jobs.extract.targets import Pass, Target, Unit, cut, passes
from layerrank.jobs.extract.worker import Batch, Extractor, load, read
from layerrank.jobs.measure.modes import METRIC as MODES_METRIC
from layerrank.jobs.plan.limits import TOKENS_PER_SECOND
from layerrank.jobs.plan.sampling import (
    Corpus,
    Weight,
    partition_weight,
    read_corpus,
    scratch,
    shards_weight,
    weight,
)
from layerrank.jobs.run import leading
from layerrank.jobs.subjects import (
    check,
    is_remote,
    require_lengths,
    require_prompts,
    resolve,
    shape_of,
    sides_of,
    weights_here,
)
from layerrank.jobs.tasks.types import TYPES
from layerrank.operators.analysis.sensitivity import FEWEST_LEVELS
from layerrank.operators.metrics.registry import Views, of_kind, token_variants
from layerrank.operators.model.subject import ModelShape, ModelUnavailableError, Subject
from layerrank.operators.probes.transform import FITTED
from layerrank.operators.prompts.views import is_view, view_name
from layerrank.operators.ranking.ladder import ladder_of, rungs
from layerrank.storage import schema
from layerrank.storage.partition import CLEAN, TableName
from layerrank.storage.root import Root
from layerrank.storage.shards import write_shard

Shards = list[float]  # bytes of each
_TEXTS = 1024  # that the tokenizer sees of the clean pass
_MORE_TEXTS = 128  # and of every other pass
_MEASURED = 64  # texts that the model encodes to measure its speed
_PROBED_BYTES = 4 << 30  # of weights that are read to see that every layer is read right
_ITEM_BYTES = {"float32": 4, "float16": 2}
_BY_LAYER: tuple[TableName, ...] = ("tokens", "prompt_metrics")  # a row group each
_INDEX_PAGE = 8_100.0
_PER_METRIC = 2.0  # variants of a metric that is not of tokens, on average


class Place(NamedTuple):
    """Where something is written: of which subject and dataset ("" = of the run), which table."""

    subject: str
    dataset: str
    table: str


class Scorings(NamedTuple):
    """How many vectors a task is scored on, in the work of one, and how many of them in full."""

    work: float
    whole: float


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
    lengths: Sequence[npt.NDArray[np.int32]] = ()
    cut: int = 0  # prompts, about, that are longer than what is read of them
    sides: Sequence[Side] = ()  # of tasks, that are read in a template

    @property
    def layers(self) -> int:
        """Layers that are kept, the input among them."""
        return self.shape.layers + 1

    def groups(self, condition: str = CLEAN) -> int:
        """Return how many (layer, norm, pooling) groups are kept under a condition."""
        norms, poolings = kept_vectors(self.config, condition)
        return self.layers * len(norms) * len(poolings)

    @property
    def scorings(self) -> Scorings:
        """What is scored of the candidates of every task: about, where they are searched."""
        others = len(other_vectors(self.config))
        if self.config.candidates is None or not others:
            return Scorings(0, 0)
        if self.config.candidates.search == "full":
            return Scorings(self.layers * others, self.layers * others)
        kinds = [TYPES[type(task)] for task in self.corpus.dataset.tasks]
        in_part = all(each.by_fold or each.by_share for each in kinds)
        ladder = ladder_of(self.layers, in_part=in_part)
        tasks = sum(len(dataset.tasks) for dataset in self.config.datasets)
        found = rungs(self.layers, others, ladder, tasks)
        return Scorings(sum(each.work for each in found), found[-1].climbed + found[-1].joined)

    @property
    def scored_groups(self) -> int:
        """The (layer, norm, pooling) groups that every task is scored on, in all variants."""
        extract = self.config.extract
        return self.layers * len(extract.norms) * len(extract.poolings)

    @property
    def fits(self) -> int:
        """How often a probe is fitted and scored, over the tasks of the dataset, about."""
        whole = self.scored_groups * len(self.config.probe.variants)
        work = whole + self.scorings.work
        return sum(round(work * task.repeats) for task in self.corpus.dataset.tasks)

    @cached_property
    def passes(self) -> list[Pass]:
        """The passes of the subject, as extraction plans them; its files' content plays no part."""
        identity = {"files": "0" * 32, "dtype": self.subject.dtype}
        given = (self.subject, identity, self.shape, self.corpus.dataset, self.corpus.prompts)
        return [*passes(self.config, *given, [*map(Prompted, by_template(self.sides))])]

    @cached_property
    def prompts(self) -> list[float]:
        """Prompts that go through the model in every pass.

        Of a template as many as the tasks that read in it have items, if those are known: at most.
        """
        found, counts = [], self.corpus.tasks
        same = {template.condition: each for template, each in by_template(self.sides).items()}
        for each in self.passes:
            count = sum(each.embeddings.shares.values())
            read = [(counts.get(s.task.name), s) for s in same.get(each.condition, ())]
            items = [
                facts[asked_fact(side.name) if isinstance(side.task, MtebTask) else "items"]
                for facts, side in read
                if facts
            ]
            if items and len(items) == len(read):
                count = min(count, sum(items))
            found.append(float(count))
        return found

    @property
    def shares(self) -> list[float]:
        """The share of the prompts of a pass's shards that go through the model in it."""
        counts = (sum(each.embeddings.shares.values()) for each in self.passes)
        return [some / max(all_, 1) for some, all_ in zip(self.prompts, counts, strict=True)]

    @property
    def forward(self) -> int:
        """Forward passes of one prompt, of all checkpoints."""
        return round(sum(self.prompts)) * self.checkpoints

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
        pairs = zip(self.prompts, self.mean_lengths, strict=True)
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
        return len(token_variants(token_metrics(self.config), parameters(self.config)))

    @property
    def metric_targets(self) -> list[Target]:
        """Every partition of `prompt_metrics`, the clean one first."""
        targets = [each.prompt_metrics for each in self.passes if each.prompt_metrics]
        if self.variants and not self.states.fused:
            targets += [each.tokens for each in self.passes if each.tokens]
        return targets

    @property
    def mode_targets(self) -> list[Target]:
        """The partition whose values are tested for groups, if there is one."""
        return self.metric_targets[:1] if MODES_METRIC in self.config.measure.metrics else []

    def layer_rows(self, *, views: bool) -> float:
        """Return the rows of `layer_metrics` under one condition."""
        own = set(metrics_of(self.config)) - set(token_metrics(self.config))
        own -= set() if views else set(of_kind(own, Views))
        return self.layers * self.variants + self.groups(view_name(0)) * len(own) * _PER_METRIC


@dataclass(frozen=True)
class Plan:
    """What a whole run comes to; `written` says where it writes, and how much."""

    run: str
    pairs: list[Pair]
    written: list[tuple[Place, Weight]]
    tokens_per_second: float | None = None  # as measured here

    @property
    def corpora(self) -> list[Corpus]:
        """The datasets, as far as they are known."""
        return [*{each.corpus.dataset.name: each.corpus for each in self.pairs}.values()]

    @property
    def passes(self) -> int:
        """Forward passes of one prompt."""
        return sum(each.forward for each in self.pairs)

    @property
    def tokens(self) -> float:
        """Tokens through a model."""
        return sum(each.tokens for each in self.pairs)

    @cached_property
    def total(self) -> Weight:
        """All that is written."""
        return sum((each for _, each in self.written), Weight())

    @cached_property
    def removed(self) -> Weight:
        """What goes again when the metrics made of it stand: the vectors of views."""
        found = [
            shards_weight(shards, pair.groups(each.condition), pair.shape.hidden_size).times(
                pair.checkpoints
            )
            for pair in self.pairs
            if not pair.config.keep.views
            for each, shards in zip(pair.passes, of_dataset(pair)["embeddings"], strict=True)
            if is_view(each.condition)
        ]
        return sum(found, Weight())

    @property
    def is_bound(self) -> bool:
        """Whether some of it is the most that there can be, and no estimate."""
        return any(each.corpus.basis == "bound" or not each.lengths for each in self.pairs)

    def tables(self, *of: str) -> dict[str, Weight]:
        """Return the weight of each table, in the order of the stages, or of those that lie under
        a subject, or under a subject and a dataset.
        """
        found: dict[str, Weight] = defaultdict(Weight)
        for place, each in self.written:
            if place[: len(of)] == of:
                found[place.table] += each
        return dict(found)

    def speed(self, stated: float | None) -> float:
        """Return the tokens per second that hours are reckoned with: stated, measured, assumed."""
        return stated or self.tokens_per_second or TOKENS_PER_SECOND


def plan(config: RunConfig, root: Root | None, *, measure: bool = False) -> Plan:
    """Return the plan of a run; ConfigError if the size of a dataset is unknown.

    What is prepared under `root` is counted. With `measure` the first model encodes a sample here.
    """
    corpora = [read_corpus(config, dataset, root) for dataset in config.datasets]
    with scratch() as sampled:
        for number, each in enumerate(corpora):
            if each.texts.num_rows:
                blank, columns = each.prompts.receipts[0], schema.PROMPTS
                key = each.prompts.partition.shard(blank.name)
                written_now = write_shard(sampled, key, [each.texts], columns, blank)
                corpora[number] = replace(each, sampled=written_now)
        pairs = [
            pair for given in config.subjects for pair in _pairs(config, given, corpora, sampled)
        ]
        rate = _measured(pairs, sampled) if measure else None
    return Plan(config.name, pairs, [*written(config, pairs)], rate)


def checked(config: RunConfig) -> Iterator[str]:
    """Check the models as a run does, and yield a line for each check that is left to the run.

    The first checkpoint of each is loaded and probed where its weights are here. Errors as `check`.
    """
    for given in config.subjects:
        checkpoints = resolve([given], config.storage)
        first = checkpoints[0]
        if given.shape is not None and not (is_remote(first.model) or first.is_folder):
            yield f"{first}: only its shape is known; the run checks the model"
            continue
        for each in checkpoints:
            check(each, config.storage)
            require_lengths(config.conditions, each, config.storage)
            sides = [s for data in config.datasets for s in sides_of(each, data, config.storage)]
            require_prompts(config, each, sides)
        if weights_here(first, _PROBED_BYTES):
            load(first, config, "cpu")
        else:
            yield (
                f"{first}: its weights are not here, or many; the run checks that every layer is "
                "read right when it loads them"
            )


def _pairs(
    config: RunConfig, given: SubjectConfig, corpora: Sequence[Corpus], sampled: Root
) -> Iterator[Pair]:
    """Yield the first checkpoint of a subject over every dataset, of which `sampled` has texts."""
    checkpoints = resolve([given], config.storage)
    first = checkpoints[0]
    if given.shape is None:
        shape, at_hand = shape_of(first, config.storage), True
    else:
        shape = ModelShape(given.shape.layers, given.shape.hidden_size, None)
        at_hand = is_remote(first.model) or first.is_folder
    if not at_hand:  # whatever of a stated shape is in the cache, without a network
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415  (slow to import)

        file = first.gguf_file or "tokenizer_config.json"
        found = try_to_load_from_cache(first.source, file, revision=first.revision)
        at_hand = isinstance(found, str)
    for corpus in corpora:
        own = corpus.dataset.prompts != "auto" or at_hand
        known = corpus.tasks
        sides = [
            side
            for side in (sides_of(first, corpus.dataset, config.storage) if own else ())
            if side.has_texts(known.get(side.task.name, {}))
        ]
        pair = Pair(config, corpus, first, shape, len(checkpoints), sides=sides)
        if at_hand and corpus.texts.num_rows:
            batches = [
                _sample(pair, each, _MORE_TEXTS if index else _TEXTS, sampled)
                for index, each in enumerate(pair.passes)
            ]
            lengths = [np.array([len(ids) for ids in each.token_ids], np.int32) for each in batches]
            cut = batches[0].cut.sum() / len(lengths[0]) * corpus.prompts.rows
            pair = replace(pair, lengths=lengths, cut=round(cut))
        yield pair


def _sample(pair: Pair, each: Pass, texts: int, sampled: Root) -> Batch:
    """Return some texts of a dataset, as the subject reads them in a pass."""
    made = [target for target in each.targets if target is not each.tokens]
    digests = {target.partition.table: "" for target in made}  # kept by nobody
    assert pair.corpus.sampled, "no text is at hand"
    shard = pair.corpus.sampled
    parts = cut(shard.name, texts, each.embeddings.most)
    unit = Unit(each.dataset, each.condition, shard, texts, 0, digests, parts, each.prompted)
    return read(sampled, pair.subject, pair.config, unit)


def _measured(pairs: Sequence[Pair], sampled: Root) -> float:
    """Return the tokens per second of the first model's worker on this machine, on some texts."""
    pair = next((each for each in pairs if each.corpus.texts.num_rows), None)
    if pair is None:
        raise ModelUnavailableError("no texts are at hand to measure on: run `layerrank prepare`")
    extract = pair.config.extract
    gpu = extract.device != "cpu" and torch.cuda.is_available()
    batch = _sample(pair, pair.passes[0], _MEASURED, sampled)
    extractor = Extractor(
        sampled, pair.subject, pair.config, "cuda" if gpu else "cpu", extract.threads or 1
    )
    extractor(batch)  # the first pass of a model warms it up
    began = time.perf_counter()
    extractor(batch)
    return sum(map(len, batch.token_ids)) / (time.perf_counter() - began)


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
            for number, shards in enumerate(partitions):
                if not shards:
                    continue
                features = pair.shape.hidden_size if table == "embeddings" else 0
                groups = pair.layers if table in _BY_LAYER else 1
                if features:
                    groups = pair.groups(pair.passes[number].condition)
                found_weight = partition_weight(shards, groups, features)
                yield place, found_weight.times(pair.checkpoints)
    yield Place("", "", "report"), _report(config, pairs)


def _shards(target: Target | None, groups: int, row: float, group: float) -> Shards:
    """Return the bytes of shards of so many row groups, of what a row and a group take."""
    parts = (part for name in target.shares for part in target.parts(name)) if target else ()
    return [groups * ((part.stop - part.start) * row + group) for part in parts]


def of_dataset(pair: Pair) -> dict[TableName, list[Shards]]:
    """Return the bytes of the shards of every partition of a subject over a dataset, by table."""
    config, layers, tasks = pair.config, pair.layers, pair.corpus.dataset.tasks
    hidden, probe = pair.shape.hidden_size, config.probe
    state = pair.mean_lengths[0] * _ITEM_BYTES[config.tokens.dtype] * hidden + 24
    shares = [leading(each.shares, config.measure.mode_sample) for each in pair.mode_targets]
    levels = [len(each) for each in config.conditions.families().values()]
    found: dict[TableName, list[Shards]] = {
        "embeddings": [
            _shards(each.embeddings, pair.groups(each.condition), (4 * hidden + 17) * share, 540)
            for each, share in zip(pair.passes, pair.shares, strict=True)
        ],
        "tokens": [_shards(each.tokens, layers, state, 1000) for each in pair.passes],
        "prompt_metrics": [
            _shards(each, layers, 7.95 * pair.variants, 3240) for each in pair.metric_targets
        ],
        "prompt_traits": [[1350 + 16.5 * share for share in each.values()] for each in shares],
        "layer_metrics": [
            [3000 + 9.5 * pair.layer_rows(views=not condition)]
            for condition in range(1 + len(config.conditions.passes()))
        ],
        "own_metrics": [
            [1_500 + 30 * pair.groups(view_name(0))]
            for _ in range((1 + len(config.conditions.passes())) * len(config.measure.own))
        ],
        "sensitivity": [
            [3200 + 17 * pair.layer_rows(views=False)] for each in levels if each >= FEWEST_LEVELS
        ],
        "probe_scores": [],
        "candidate_scores": [],
        "learning_curves": [],
    }
    for task in tasks:
        kind, groups, scored = TYPES[type(task)], pair.scored_groups, pair.scorings
        rows = groups * len(probe.variants) * task.repeats
        # Tasks without folds are resampled; directions alone have one score for both variants.
        drawn = probe.replicates * (task.repeats == 1 and not isinstance(task, MtebTask))
        different = 1 if kind.scale_free else len(probe.variants)
        found["probe_scores"].append([2500 + 10 * rows + 8 * groups * different * drawn])
        if scored.work:
            rows = round((scored.work if kind.by_fold else scored.whole) * task.repeats)
            found["candidate_scores"].append([2600 + 10 * rows + 8 * scored.whole * drawn])
        noisy = noise_conditions(config, [task])
        found["probe_scores"] += [[2700 + 10 * layers * task.repeats] for _ in noisy]
        if examples := len(learning_examples(config, task)):
            found["learning_curves"].append([2750 + 8 * layers * task.repeats * examples])
    return found


def of_subject(pair: Pair) -> dict[TableName, list[Shards]]:
    """Return the same of the tables of a subject, whatever the datasets."""
    layers, metrics, asked = pair.layers, len(metrics_of(pair.config)), pair.config.candidates
    fitted = {each[:2] for each in candidate_vectors(pair.config) if each.transform in FITTED}
    width = 8 * pair.shape.hidden_size * (2 + asked.directions) if asked else 0
    return {
        "layer_costs": [[1660 + 40 * layers]],
        "transforms": [[2000 + layers * len(fitted) * width]] if fitted else [],
        "candidates": [[5000 + 60 * layers * len(candidate_vectors(pair.config))]],
        "modes": [[6_500 + 450 * layers]] if pair.mode_targets else [],
        "choices": [[650 + 50 * metrics]],
        "correlations": [[3_000 + 90 * metrics]],
        "ranking": [[3900 + 75 * layers]],
    }


def _report(config: RunConfig, pairs: Sequence[Pair]) -> Weight:
    """Return the weight of a report's four files, of the list of reports, and of what is noted.

    That is the config, what the report was made of, and the sizes of every model.

    Its plots are most of the page: each grows with the layers, by a point of every curve.
    """
    page, facts = 42_000.0, 0.0
    for pair in pairs:
        plot = 4_500 + 480 * pair.layers
        metrics, checkpoints = len(metrics_of(config)), pair.checkpoints
        views = len(of_kind(metrics_of(config), Views))
        responses = len(config.conditions.families()) * (metrics - views)
        tasks = pair.corpus.dataset.tasks
        for task in tasks:
            curves = bool(learning_examples(config, task)) + bool(noise_conditions(config, [task]))
            page += plot * curves + 4_000
        page += (plot + 650) * (metrics + 2 * responses)
        maps = metrics + len(tasks) if checkpoints > 1 else 0
        page += maps * (5_200 + 110 * pair.layers * checkpoints)
        levels = 1 + len(config.conditions.passes())
        facts += 180 * checkpoints * levels * pair.layer_rows(views=True)
    models = 0
    for pair in {each.subject.name: each for each in pairs}.values():
        models += pair.checkpoints
        count = sum(len(each.corpus.dataset.tasks) for each in pairs)
        wide = (8 if count > 1 else 6) * bool(count) + 4 * (pair.checkpoints > 1)
        page += wide * (6_200 + 700 * pair.layers) + 5_300 * pair.layers
        facts += 20_000 * pair.checkpoints
    made_of = 700.0 + sum(1_600 * each.checkpoints for each in pairs)
    books = [3_500.0, made_of, *[100.0] * models]
    return weight([page, 69_500.0, 22_000 + 0.025 * page, facts, _INDEX_PAGE, *books])
