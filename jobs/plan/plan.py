"""plan: what a run would do, write and cost, before anything is spent.

The texts are sampled and tokenised; what is written follows by formula (`jobs.plan.sizes`). Where
texts or tokenizer are not at hand, the largest number that there can be stands, and the plan says
so.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from jobs.config.run import RunConfig
from jobs.config.settings import SubjectConfig
from jobs.extract.targets import Pass, Unit
from jobs.extract.worker import Batch, Extractor, read
from jobs.plan.limits import TOKENS_PER_SECOND
from jobs.plan.sampling import Corpus, Weight, read_corpus, scratch
from jobs.plan.sizes import Lengths, Pair, Place, written
from jobs.subjects import is_remote, resolve, shape_of
from operators.model.subject import ModelShape, ModelUnavailableError
from storage import schema
from storage.partition import shard_name
from storage.root import Root
from storage.shards import write_shard

_TEXTS = 1024  # that the tokenizer sees of the clean pass
_MORE_TEXTS = 128  # and of every other pass
_MEASURED = 64  # texts that the model encodes to measure its speed


@dataclass(frozen=True)
class Plan:
    """What a whole run comes to; `weights` says how much is written where."""

    run: str
    pairs: list[Pair]
    weights: dict[Place, Weight]
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
        return sum(self.weights.values(), Weight())

    @property
    def is_bound(self) -> bool:
        """Whether some of it is the most that there can be, and no estimate."""
        return any(each.corpus.basis == "bound" or not each.lengths for each in self.pairs)

    def tables(self, among: Callable[[Place], bool] = lambda _: True) -> dict[str, Weight]:
        """Return the weight of each table of some places, in the order of the stages."""
        found: dict[str, Weight] = defaultdict(Weight)
        for place, each in self.weights.items():
            if among(place):
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
    unread = [pair for given in config.subjects for pair in _pairs(config, given, corpora)]
    pairs = [replace(pair, lengths=_lengths(pair)) for pair in unread]
    weights: dict[Place, Weight] = defaultdict(Weight)
    for place, each in written(config, pairs):
        weights[place] += each
    return Plan(config.name, pairs, dict(weights), _measured(pairs) if measure else None)


def _pairs(config: RunConfig, given: SubjectConfig, corpora: Sequence[Corpus]) -> list[Pair]:
    """Return the first checkpoint of a subject over every dataset."""
    checkpoints = resolve([given], config.storage)
    first = checkpoints[0]
    at_hand = given.shape is None or is_remote(first.model) or first.is_folder
    if not at_hand:  # whatever of a stated shape is in the cache, without a network
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415  (slow to import)

        file = "tokenizer_config.json"
        found = try_to_load_from_cache(first.model, file, revision=first.revision)
        at_hand = isinstance(found, str)
    if given.shape is None:
        shape = shape_of(first, config.storage)
    else:
        shape = ModelShape(given.shape.layers, given.shape.hidden_size, None)
    return [Pair(config, each, first, shape, len(checkpoints), at_hand) for each in corpora]


def _lengths(pair: Pair) -> list[Lengths]:
    """Return the tokens of sampled prompts in every pass; [] without texts or a tokenizer."""
    if not pair.corpus.texts.num_rows or not pair.is_read:
        return []
    with _sample(pair) as (_, sample):
        batches = [
            sample(each, _MORE_TEXTS if index else _TEXTS) for index, each in enumerate(pair.passes)
        ]
        return [np.array([len(ids) for ids in each.token_ids], np.int32) for each in batches]


@contextmanager
def _sample(pair: Pair) -> Iterator[tuple[Root, Callable[[Pass, int], Batch]]]:
    """Give a root with a shard of sampled texts, and what reads some of them in a pass."""
    rows, prompts = pair.corpus.texts.num_rows, pair.corpus.prompts
    with scratch() as root:
        key = prompts.partition.shard(shard_name(0))
        write_shard(root, key, [pair.corpus.texts], schema.PROMPTS, prompts.receipts[0])

        def sample(each: Pass, texts: int) -> Batch:
            made = [target for target in each.targets if target is not each.tokens]
            digests = {target.partition.table: "" for target in made}  # kept by nobody
            unit = Unit(each.dataset, each.condition, 0, min(texts, rows), 0, digests)
            return read(root, pair.subject, pair.config, unit)

        yield root, sample


def _measured(pairs: Sequence[Pair]) -> float:
    """Return the tokens per second of the first model's worker on this machine, on some texts."""
    import torch  # noqa: PLC0415

    pair = next((each for each in pairs if each.corpus.texts.num_rows), None)
    if pair is None:
        raise ModelUnavailableError("no texts are at hand to measure on: run `layerrank prepare`")
    extract = pair.config.extract
    gpu = extract.device != "cpu" and torch.cuda.is_available()
    with _sample(pair) as (root, sample):
        batch = sample(pair.passes[0], _MEASURED)
        extractor = Extractor(
            root, pair.subject, pair.config, "cuda" if gpu else "cpu", extract.threads or 1
        )
        extractor(batch)  # the first pass of a model warms it up
        began = time.perf_counter()
        extractor(batch)
        seconds = time.perf_counter() - began
    return sum(map(len, batch.token_ids)) / seconds
