"""plan: what a run would do, write and cost, before anything is spent.

The texts are sampled and tokenised; what is written follows by formula (`jobs.plan.sizes`). Where
texts or tokenizer are not at hand, the largest number that there can be stands, and the plan says
so.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from jobs.config.metrics import TokenPlan, state_bytes, token_plan
from jobs.config.run import RunConfig
from jobs.config.settings import SubjectConfig
from jobs.extract.targets import Pass, Unit, missing_units
from jobs.extract.worker import Extractor, read
from jobs.plan.sampling import Basis, Corpus, publish_corpus, read_corpus
from jobs.plan.sizes import Lengths, Model, Pair, Place, passes_of, written
from jobs.plan.weight import Weight, scratch
from jobs.subjects import is_remote, resolve, shape_of
from operators.model.subject import ModelShape, ModelUnavailableError, Subject
from storage.manifest import Manifest
from storage.root import Root

_TEXTS = 1024  # that the tokenizer sees of the clean pass
_MORE_TEXTS = 128  # and of every other pass
_MEASURED = 64  # texts that the model encodes to measure its speed


@dataclass(frozen=True)
class PairPlan:
    """What one model does with one dataset; `passes` and `tokens` are of all its checkpoints."""

    subject: str
    dataset: str
    layers: int
    checkpoints: int
    prompts: int
    conditions: int
    passes: int
    tokens: float
    counted: bool  # whether a tokenizer saw texts; else every prompt has the most tokens
    token_plan: TokenPlan
    every_token_bytes: int


@dataclass(frozen=True)
class DatasetPlan:
    """The prompts of a dataset, and how they are known."""

    name: str
    prompts: int
    shards: int
    basis: Basis


@dataclass(frozen=True)
class Plan:
    """What a whole run comes to; `weights` says how much is written where."""

    run: str
    datasets: list[DatasetPlan]
    pairs: list[PairPlan]
    weights: dict[Place, Weight]
    tokens_per_second: float | None = None  # as measured here

    @property
    def passes(self) -> int:
        """Forward passes of one prompt."""
        return sum(each.passes for each in self.pairs)

    @property
    def tokens(self) -> float:
        """Tokens through a model."""
        return sum(each.tokens for each in self.pairs)

    @cached_property
    def total(self) -> Weight:
        """All that is written."""
        return sum(self.weights.values(), Weight())

    @property
    def is_bound(self) -> bool:
        """Whether some of it is the most that there can be, and no estimate."""
        return any(each.basis == "bound" for each in self.datasets) or not all(
            each.counted for each in self.pairs
        )

    def tables(self) -> dict[str, Weight]:
        """Return the weight of each table, in the order of the stages."""
        found: dict[str, Weight] = defaultdict(Weight)
        for place, each in self.weights.items():
            found[place.table] += each
        return dict(found)

    def hours(self, tokens_per_second: float) -> float:
        """Return the hours of one device that encodes so many tokens a second."""
        return self.tokens / tokens_per_second / 3600


@dataclass(frozen=True)
class Known:
    """What a run is about, before anything is weighed; tokens per prompt by subject and dataset."""

    corpora: list[Corpus]
    models: list[Model]
    pairs: list[PairPlan]
    lengths: dict[tuple[str, str], Lengths]


def plan(config: RunConfig, root: Root | None, *, measure: bool = False) -> Plan:
    """Return the plan of a run; ConfigError if the size of a dataset is unknown.

    What is prepared under `root` is counted. With `measure` the first model encodes a sample here.
    """
    known = look(config, root)
    weights: dict[Place, Weight] = defaultdict(Weight)
    pairs = [
        Pair(config, model, corpus, known.lengths[model.subject.name, corpus.dataset.name])
        for model in known.models
        for corpus in known.corpora
    ]
    for place, each in written(config, pairs):
        weights[place] += each
    datasets = [
        DatasetPlan(each.dataset.name, each.prompts.rows, len(each.prompts.receipts), each.basis)
        for each in known.corpora
    ]
    speed = _measured(config, known.models[0], known.corpora) if measure else None
    return Plan(config.name, datasets, known.pairs, dict(weights), speed)


def look(config: RunConfig, root: Root | None) -> Known:
    """Return the prompts, models, passes and tokens of a run."""
    corpora = [read_corpus(config, dataset, root) for dataset in config.datasets]
    models = [_model(config, given) for given in config.subjects]
    known = Known(corpora, models, [], {})
    for model in models:
        for corpus in corpora:
            found, pair = _pair(config, model, corpus)
            known.lengths[model.subject.name, corpus.dataset.name] = found
            known.pairs.append(pair)
    return known


def _model(config: RunConfig, given: SubjectConfig) -> Model:
    checkpoints = resolve(config.model_copy(update={"subjects": (given,)}))
    first = checkpoints[0]
    if given.shape is not None:
        shape = ModelShape(given.shape.layers, given.shape.hidden_size, None)
    else:
        shape = shape_of(first, config.storage)
    return Model(
        first, shape, tuple(each.revision for each in checkpoints), _has_tokenizer(first, given)
    )


def _pair(config: RunConfig, model: Model, corpus: Corpus) -> tuple[Lengths, PairPlan]:
    """Return the tokens per prompt of a sample in the clean pass, and what the model does."""
    each_pass = passes_of(config, model.subject, model.shape, corpus)
    most = min(config.extract.max_tokens, model.shape.max_tokens or config.extract.max_tokens)
    found = _lengths(config, model, corpus, each_pass)
    clean = found[0] if found else np.full(1, most, np.int32)
    counts = [sum(each.embeddings.shares.values()) for each in each_pass]
    means = [float(each.mean()) for each in found] or [float(most)] * len(counts)
    tokens = sum(count * mean for count, mean in zip(counts, means, strict=True))
    prompts = corpus.prompts.rows
    return clean, PairPlan(
        model.subject.name,
        corpus.dataset.name,
        model.shape.layers + 1,
        model.checkpoints,
        prompts,
        len(each_pass),
        sum(counts) * model.checkpoints,
        tokens * model.checkpoints,
        bool(found),
        token_plan(config, model.shape, prompts),
        prompts * state_bytes(config, model.shape),
    )


def _lengths(
    config: RunConfig, model: Model, corpus: Corpus, each_pass: Sequence[Pass]
) -> list[Lengths]:
    """Return the tokens of sampled prompts in every pass; [] without texts or a tokenizer."""
    if not corpus.texts.num_rows or not model.is_read:
        return []
    with scratch() as root:
        publish_corpus(corpus, root)
        found = []
        for index, each in enumerate(each_pass):
            unit = _unit(each, corpus, _MORE_TEXTS if index else _TEXTS)
            ids = read(root, model.subject, config, unit).token_ids
            found.append(np.array([len(each) for each in ids], dtype=np.int32))
        return found


def _has_tokenizer(subject: Subject, given: SubjectConfig) -> bool:
    """Whether a tokenizer can be loaded: with a stated shape from the cache, without a network."""
    if given.shape is None or is_remote(subject.model) or subject.is_folder:
        return True
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415  (slow to import)

    file = "tokenizer_config.json"
    return isinstance(try_to_load_from_cache(subject.model, file, revision=subject.revision), str)


def _unit(each: Pass, corpus: Corpus, texts: int) -> Unit:
    """Return the unit of a pass over the first shard, which here holds the sampled texts."""
    first = replace(corpus.prompts.receipts[0], rows=corpus.texts.num_rows)
    shares = {first.name: corpus.texts.num_rows}
    prompts = Manifest(corpus.prompts.partition, corpus.prompts.settings, (first,))
    targets = {
        name: replace(target, shares=shares)
        for name in ("embeddings", "prompt_metrics")
        if (target := getattr(each, name)) is not None
    }
    alone = replace(each, tokens=None, **targets)
    (unit,) = missing_units(alone, prompts, {t.partition.path: {} for t in alone.targets})
    return replace(unit, prompts=min(texts, unit.prompts))


def _measured(config: RunConfig, model: Model, corpora: Sequence[Corpus]) -> float:
    """Return the tokens per second of the model's own worker on this machine, on sampled texts."""
    import torch  # noqa: PLC0415

    corpus = next((each for each in corpora if each.texts.num_rows), None)
    if corpus is None:
        raise ModelUnavailableError("no texts are at hand to measure on: run `layerrank prepare`")
    gpu = config.extract.device != "cpu" and torch.cuda.is_available()
    with scratch() as root:
        publish_corpus(corpus, root)
        (each, *_) = passes_of(config, model.subject, model.shape, corpus)
        unit = _unit(each, corpus, _MEASURED)
        batch = read(root, model.subject, config, unit)
        threads = config.extract.threads or 1
        extractor = Extractor(root, model.subject, config, "cuda" if gpu else "cpu", threads)
        extractor(batch)  # the first pass of a model warms it up
        began = time.perf_counter()
        extractor(batch)
        seconds = time.perf_counter() - began
    return sum(map(len, batch.token_ids)) / seconds
