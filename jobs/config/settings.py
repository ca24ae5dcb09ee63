"""The blocks of a run's config, one for each stage; `jobs.config.run` puts them together.

Units are in the field names or their descriptions.
"""

from __future__ import annotations

from itertools import groupby
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, SecretStr, field_validator, model_validator

from layerrank.jobs.config import Engine
from layerrank.jobs.config.blocks import (
    LATER,
    Ascending,
    Block,
    Count,
    Distinct,
    Later,
    Positive,
    Probability,
    is_own,
    require_distinct,
)
from layerrank.operators.analysis.modes import FEWEST, MOST
from layerrank.operators.metrics import EntropyNorm, SpectrumMethod
from layerrank.operators.model.subject import Dtype, Norm, Pooling, Transform
from layerrank.operators.prompts.conditions import FAMILIES, Condition
from layerrank.operators.ranking import Policy

Device = Literal["auto", "cpu", "cuda"]
Search = Literal["full", "halving"]
# Levels of conditions, whose names have two decimals.
_Probabilities = Annotated[
    tuple[Annotated[float, Field(ge=0, le=1, multiple_of=0.01)], ...], Ascending
]
_Shares = Annotated[tuple[Annotated[float, Field(gt=0, le=1, multiple_of=0.01)], ...], Ascending]
_Counts = Annotated[tuple[Count, ...], Ascending]
WEB = ("http://", "https://")


class Shape(Block):
    """Stated sizes of a model, so that a plan needs no network."""

    layers: Count = Field(description="blocks of the model")
    hidden_size: Count = Field(description="features of a state")


class SubjectConfig(Block):
    """A model at a revision."""

    model: str = Field(
        min_length=1,
        description="hub id, folder, s3://…, or package:IMPORT_NAME/FOLDER; with /FILE.gguf behind "
        "it that file, dequantised",
    )
    adapter: Annotated[str, LATER] = Field(
        "",
        description="a LoRA adapter of the model, merged into it when it is loaded: hub id (its "
        "branch main), folder, s3://…, or package:IMPORT_NAME/FOLDER",
    )
    revision: str = Field("", description="default: main, of a folder local")
    revisions: Annotated[str, Field(min_length=1)] | tuple[str, ...] | None = Field(
        None,
        description="a sweep over checkpoints: names, or a pattern (step*) of a hub repository's "
        "branches or of the folders in `model`",
    )
    name: str = Field("", description="in the tables; default: the model's own")
    dtype: Dtype = Field(
        "float32",
        description="of weights and states; float16 overflows at 65,504, which is an error that "
        "names the layer, and only GPUs are fast with it",
    )
    trust_remote_code: bool = Field(False, description="run the model's own code")
    allow_pickle: bool = Field(False, description="load weights that are not safetensors")
    shape: Shape | None = None

    @model_validator(mode="after")
    def _one_or_a_sweep(self) -> SubjectConfig:
        if self.revision and self.revisions is not None:
            raise ValueError("give revision or revisions, not both")
        if self.revisions == ():
            raise ValueError("revisions names no checkpoint")
        if self.revisions is not None and (self.adapter or self.model.endswith(".gguf")):
            what = "adapter belongs to" if self.adapter else "a GGUF file is"
            raise ValueError(f"{what} one checkpoint: give revision, not revisions")
        return self


class ExtractConfig(Block):
    """The forward pass, and what is kept of each layer."""

    device: Device = Field("auto", description="auto takes a GPU if there is one now")
    workers: Count | None = Field(None, description="model actors; default: all the cluster takes")
    threads: Count | None = Field(None, description="CPU threads of a model actor; default: 1")
    norms: Annotated[tuple[Norm, ...], Distinct] = Field(
        ("final",), min_length=1, description="of the states: as a block gave them, or normed"
    )
    poolings: Annotated[tuple[Pooling, ...], Distinct] = Field(
        ("mean",), min_length=1, description="of a text's tokens to one vector"
    )
    max_tokens: Annotated[int, Field(ge=2)] = Field(
        512, description="tokens read of a text, special ones included"
    )
    batch_tokens: Count | None = Field(
        None,
        description="padded tokens per batch; default: on a CPU 393,216 divided by the model's "
        "features, 256 to 4096, which stay in its cache; 32768 on a GPU",
    )


class ViewsConfig(Block):
    """Augmented views of a sample; each costs a forward pass of the sample.

    By default as many as give a first answer; `--full` takes what the papers have.
    """

    count: Annotated[int, Field(ge=0, le=99)] = Field(
        4, description="0: none, and without the metrics that compare them"
    )
    sample: Count = Field(256, description="prompts")
    keyboard: Probability = Field(0.1, description="per word: a key beside the right one")
    random_char: Probability = Field(0.1, description="per word: one character edit")
    split: Probability = Field(0.1, description="per word: cut in two")


class TokensConfig(Block):
    """Token states: those of a sample can be stored, and token metrics are computed from them."""

    sample: Annotated[int, Field(ge=0)] = Field(1000, description="prompts stored; 0 stores none")
    norm: Norm = Field("none", description="of the states")
    dtype: Literal["float32", "float16"] = Field("float32", description="of what is stored")


def _every_metric() -> tuple[str, ...]:
    # The registry imports torch, which a worker that only unpickles its config can do without.
    from layerrank.operators.metrics.registry import METRICS  # noqa: PLC0415

    return tuple(METRICS)


class MeasureConfig(Block):
    """Representation metrics over the shards; docs/metrics.md says what each one means."""

    device: Device = "auto"
    metrics: tuple[str, ...] = Field(
        default_factory=_every_metric,
        description="names of docs/metrics.md, and functions of your own, package.module:name",
    )
    token_metrics: Literal["auto", "fused", "stored", "both"] = Field(
        "fused",
        description="fused: of every prompt, in the model actor, no token states; stored: of the "
        "prompts in tokens/; both: fused, and tokens/ too; auto: stored while the token states of "
        "every prompt are small and there are no conditions, else both",
    )
    method: SpectrumMethod = Field(
        "exact", description="spectra of long prompts; see docs/metrics.md for the error"
    )
    alphas: Annotated[tuple[Positive, ...], Distinct] = Field(
        (1.0, 2.0), min_length=1, description="orders of the matrix entropies; the first is drawn"
    )
    normalizations: Annotated[tuple[EntropyNorm, ...], Distinct] = Field(
        ("raw", "maxEntropy"), min_length=1, description="of the entropies; the first is drawn"
    )
    without_first: bool = Field(True, description="token metrics also without the first token")
    neighbour_sample: Count = Field(5_000, description="prompts of twonn, at most")
    temperature: Positive = Field(0.1, description="of InfoNCE")
    delta: Positive = Field(1e-4, description="ridge of LiDAR")
    permutations: Count = Field(10, description="permutations of DiME")
    dime_sample: Annotated[Count | None, Later(before=None)] = Field(
        1_000, description="prompts of dime, at most: it takes N^3 time and N^2 memory; null: all"
    )
    mode_sample: Annotated[int, Field(ge=FEWEST, le=MOST)] = Field(
        20_000, description="prompts whose entropies are tested for two modes, at most"
    )

    @field_validator("metrics")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = _every_metric()
        unknown = [name for name in names if name not in known and not is_own(name)]
        if unknown:
            raise ValueError(
                f"unknown metric {', '.join(unknown)}; choose from {', '.join(known)}, or name a "
                "function of your own as package.module:name"
            )
        return require_distinct(names)

    @property
    def own(self) -> tuple[str, ...]:
        """Those of the metrics that are functions of the user's."""
        return tuple(name for name in self.metrics if is_own(name))


class KeepConfig(Block):
    """What stays when what was made of it stands; what goes is noted, and no run makes it again."""

    views: bool = Field(False, description="the vectors of views, after their metrics")
    nights: Count | None = Field(
        None,
        description="the embeddings and token states of so many latest checkpoints of a model, "
        "after a nightly; default: of all",
    )


class ProbeConfig(Block):
    """Labelled probes; the seed is mteb's."""

    seed: int = Field(42, description="of splits and folds")
    variants: Annotated[tuple[Literal["raw", "l2"], ...], Distinct] = Field(
        ("raw", "l2"),
        min_length=1,
        description="of vectors that are no candidates: as stored, and each of unit length",
    )
    replicates: Annotated[int, Field(ge=0)] = Field(
        200, description="bootstrap resamples of the items of a task that has no folds"
    )


class CandidatesConfig(Block):
    """What may be recommended beside the ranked vectors of every layer: other vectors of it.

    A candidate is a layer with a norm, a pooling and a transform. Transforms are fitted on texts,
    never on labels (`operators/probes/transform.py`).
    """

    norms: Annotated[tuple[Norm, ...], Distinct] = Field(
        (), description="default: that of the ranked vectors"
    )
    poolings: Annotated[tuple[Pooling, ...], Distinct] = Field(
        (), description="default: that of the ranked vectors, and of mean also mean_no_first"
    )
    transforms: Annotated[tuple[Transform, ...], Distinct] = Field(
        get_args(Transform), min_length=1, description="as they are, of unit length, …"
    )
    directions: Count = Field(2, description="of largest variance, which abtt removes")
    sample: Annotated[int, Field(ge=2)] = Field(
        1_000, description="texts that z and abtt are fitted on, at most"
    )
    texts: str | None = Field(
        None, description="the dataset whose texts these are; default: all, each by its size"
    )
    search: Search = Field(
        "halving",
        description="halving: on a part of the layers, folds and items first, then on more of what "
        "is best; full: everything",
    )


class CurvesConfig(Block):
    """Scores under other conditions than the protocol's, of the ranked vectors."""

    examples: _Counts = Field(
        (),
        description="training items per label of the classifications, per tenth of the values of "
        "the regressions: learning curves",
    )
    noise: _Shares = Field(
        (),
        description="probabilities of each kind of typo per word: fitted on clean texts, tested on "
        "noisy ones; each costs a forward pass of the dataset",
    )


class ConditionsConfig(Block):
    """Levels of perturbation; each costs a forward pass of every dataset, measured like the clean.

    Probability 0 and share 1 are the clean pass, which every family but `length` begins from.
    """

    random: _Probabilities = Field(
        (), description="probability per token: a random token of the vocabulary instead"
    )
    repeat: _Probabilities = Field(
        (), description="probability per token: one token of the prompt instead, always the same"
    )
    noise: _Probabilities = Field((), description="probability per word of each kind of typo")
    truncate: _Shares = Field((), description="share of the prompt's tokens, from 1st")
    length: _Counts = Field(
        (), description="tokens of a random prompt, those around every text included"
    )

    def passes(self) -> list[Condition]:
        """Return the conditions that need a pass of their own, family by family."""
        given = [Condition(name, float(x)) for name in FAMILIES for x in getattr(self, name)]
        return [each for each in given if not each.is_clean]

    def families(self) -> dict[str, list[Condition]]:
        """Return the conditions of each family that is asked for, the clean pass among them."""
        found = {}
        for name, levels in groupby(self.passes(), key=lambda each: each.family):
            clean = FAMILIES[name].clean
            found[name] = sorted([*levels, *([] if clean is None else [Condition(name, clean)])])
        return found

    def require_within(self, most: int, whose: str, fewest: int = 1) -> None:
        """ValueError if a length lies outside what there can be, which `whose` limits."""
        for length in self.length:
            if length > most:
                raise ValueError(f"conditions.length is {length}, but {whose} allows {most} tokens")
            if length < fewest:
                raise ValueError(
                    f"conditions.length is {length}, but {whose} needs at least {fewest} tokens: "
                    "a random one and those around every text"
                )


class RankConfig(Block):
    """Which vectors are ranked, and what becomes advice."""

    norm: Norm = Field("final", description="of the ranked vectors")
    pooling: Pooling = Field("mean", description="of the ranked vectors")
    variant: Transform = Field("raw", description="what is done to the ranked vectors")
    policy: Policy = Field(
        "best",
        description="best: the highest score; cheapest_equal: the cheapest layer within one "
        "standard error of it; last_unless_significant: the last layer unless a test says that "
        "another one is better, which needs six tasks",
    )
    search: Search = Field(
        "full", description="halving: layers that cannot win are dropped after a few folds"
    )
    draws: Annotated[int, Field(ge=100)] = Field(
        10_000, description="random sign flips of the test, and bootstrap draws of regrets"
    )
    level: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="of intervals and tests")


class StorageConfig(Block):
    """Access to S3, where the usual environment variables do not say it. Never logged or stored."""

    endpoint_url: str | None = Field(None, description="of a server other than AWS")
    region: str | None = None
    key: SecretStr | None = Field(None, description="the access key's id")
    secret: SecretStr | None = Field(None, description="the access key")
    token: SecretStr | None = Field(None, description="of a session")

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of s3fs."""
        secrets = {"key": self.key, "secret": self.secret, "token": self.token}
        client = {"endpoint_url": self.endpoint_url, "region_name": self.region}
        given = {name: value for name, value in client.items() if value}
        return {
            **{name: value.get_secret_value() for name, value in secrets.items() if value},
            **({"client_kwargs": given} if given else {}),
        }


class ClusterConfig(Block):
    """What runs the work: Ray, here or on a cluster, or processes of this machine."""

    engine: Engine = Field(
        "auto",
        description="auto: processes of this machine for a run that is small, without a cluster's "
        "address and without a GPU, else Ray; the tables are the same",
    )
    wait_seconds: Annotated[float, Field(ge=0)] = Field(
        600, description="for GPUs or cores that are not there yet"
    )
    stall_seconds: Annotated[Positive, LATER] = Field(
        600,
        description="until a worker that gives no sign of life ends the run: no result, nothing "
        "counted, no work on a CPU",
    )


class NightlyConfig(Block):
    """Rules that compare a new checkpoint with the one before it; null switches one off.

    `operators/analysis/regression.py` says what exactly each rule compares.
    """

    score_drop: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        0.01,
        description="of the score, 0..1 (0.01 is one point): the layer that the previous "
        "checkpoint's ranking recommended scores less by more than this, its interval excludes 0",
    )
    layer_moved: Annotated[int, Field(ge=0)] | None = Field(
        2, description="layers: the recommended layer moved by more than this"
    )
    metric_jump: Positive | None = Field(
        20.0,
        description="median absolute deviations: a metric changed in some layer by more than this "
        "many from the median of its earlier changes; for checkpoints at even steps",
    )
    changes: Annotated[int, Field(ge=2)] = Field(
        12, description="earlier changes of a metric, at least, before any is called a jump"
    )
    webhook: SecretStr | None = Field(
        None,
        description="address that gets each alert as a POST of JSON; without it the variable "
        "LAYERRANK_WEBHOOK",
    )
    webhook_seconds: Positive = Field(10.0, description="until a silent webhook is given up")
    lease_seconds: Annotated[float, Field(ge=5, allow_inf_nan=False)] = Field(
        600.0, description="until the lock of a nightly that crashed may be taken over"
    )

    @field_validator("webhook")
    @classmethod
    def _web_address(cls, address: SecretStr | None) -> SecretStr | None:
        if address is not None and not address.get_secret_value().startswith(WEB):
            raise ValueError("a webhook is an http:// or https:// address")
        return address
