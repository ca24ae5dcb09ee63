"""What a run found, as plain data: everything that the report says, before it is said.

A value that does not exist is None, and the reason stands beside it. `to_json` is what
`report.json` holds; `jobs.report.collect` fills it in.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from operators.ranking.policy import Verdict


@dataclass(frozen=True)
class LevelFinding:
    """A metric in every layer at one level of a family; None where there is no value.

    `n_undefined` is the largest number of prompts that some layer leaves out.
    """

    condition: str
    level: float
    values: list[float | None]
    n_prompts: int
    n_undefined: int


@dataclass(frozen=True)
class SlopeFinding:
    """How fast a metric changes with the level in one layer; `reason` says why it has no slope.

    A metric of all prompts together has no interval.
    """

    layer: int
    slope: float | None
    low: float | None
    high: float | None
    reason: str | None
    n_prompts: int
    n_undefined: int


@dataclass(frozen=True)
class ResponseFinding:
    """How a metric responds to a family of conditions, from the weakest level to the strongest.

    Values of `levels` are those of `layers`; `slopes` is empty where there is only one level.
    """

    dataset: str
    family: str
    metric: str
    variant: str
    norm: str
    pooling: str
    layers: list[int]
    levels: list[LevelFinding]
    slopes: list[SlopeFinding]


@dataclass(frozen=True)
class TraitFinding:
    """How a trait of the prompts differs between the groups; medians are None for a name."""

    trait: str
    measure: str
    effect: float | None
    low: float | None
    high: float | None
    n_prompts: int
    reason: str | None


@dataclass(frozen=True)
class ExampleFinding:
    """A prompt near a mode, `low` or `high`, its text shortened to one line."""

    mode: str
    value: float
    prompt_id: int
    dataset: str
    n_tokens: int
    text: str


@dataclass(frozen=True)
class LayerModesFinding:
    """One layer: its histogram, its test, and of a bimodal layer what its groups are like.

    `bimodal` says that one peak was rejected; `peaks` counts those that stand out.
    """

    layer: int
    n_prompts: int
    n_undefined: int
    dip: float | None
    p_value: float | None
    p_holm: float | None
    bimodal: bool
    peaks: int
    split: float | None
    mode_low: float | None
    mode_high: float | None
    share_high: float | None
    edges: list[float]
    counts: list[int]
    traits: list[TraitFinding]
    examples: list[ExampleFinding]
    reason: str | None

    @property
    def several(self) -> bool:
        """Whether there are more than two peaks."""
        return self.peaks > 2  # noqa: PLR2004  (two is two)


@dataclass(frozen=True)
class ModesFinding:
    """The layers of a subject, tested at one level for two modes of a metric."""

    metric: str
    variant: str
    norm: str
    layers: list[LayerModesFinding]

    @property
    def bimodal(self) -> list[LayerModesFinding]:
        """The layers with more than one peak: those with just two first, then the largest dip."""
        found = [each for each in self.layers if each.bimodal]
        return sorted(found, key=lambda each: (each.several, -(each.dip or 0.0), each.layer))


SCHEMA_VERSION = 3


@dataclass(frozen=True)
class TaskFinding:
    """A labelled task; `label` is its name, with the dataset where two tasks share a name."""

    label: str
    name: str
    dataset: str
    type: str
    metric: str
    folds: int


@dataclass(frozen=True)
class LayerFinding:
    """A layer's place; scores and gains 0..1, `cost` relative to the whole model, 0..1.

    The other fields are those of `operators.ranking.evidence.LayerEvidence` and of the table
    `layer_costs`. `front` says whether no other layer scores more at the same or a lower cost.
    """

    layer: int
    score: float | None
    score_low: float | None
    score_high: float | None
    rank: int | None
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    mean_rank: float | None
    won: float | None
    p_value: float | None
    p_holm: float | None
    p_best: float | None
    shortfall: float | None
    shortfall_se: float | None
    cost: float
    front: bool
    parameters: int
    flops_per_token: float
    latency_ms: float
    tasks: dict[str, float | None]


@dataclass(frozen=True)
class ChoiceFinding:
    """What a rule that sees no labels of these tasks chooses, and what that loses (0..1)."""

    rule: str
    layer: int | None
    score: float | None
    regret: float | None
    regret_low: float | None
    regret_high: float | None


@dataclass(frozen=True)
class AssociationFinding:
    """A correlation over layers, its interval, and what unrelated curves reach by chance.

    `permuted` is the level for values in any order, `smooth` for curves as smooth as the metric.
    """

    value: float | None
    low: float | None
    high: float | None
    permuted: float | None
    smooth: float | None


@dataclass(frozen=True)
class CorrelationFinding:
    """How a metric goes with the score over the layers; `reason` says why there is no value."""

    dataset: str
    metric: str
    layers: int
    spearman: AssociationFinding
    distance: AssociationFinding
    reason: str


@dataclass(frozen=True)
class Curve:
    """Scores of one layer in a task, against examples per label or against the level of noise.

    `spread` is the standard deviation over folds.
    """

    layer: int
    x: list[float]
    score: list[float | None]
    spread: list[float | None]


@dataclass(frozen=True)
class CurveFinding:
    """The curves of every layer in one task; `kind` is `examples` or `noise`."""

    label: str
    kind: str
    metric: str
    curves: list[Curve]


@dataclass(frozen=True)
class MetricValue:
    """A metric in one layer; `reason` says why there is no value."""

    layer: int
    value: float | None
    reason: str | None
    n_prompts: int
    n_undefined: int


@dataclass(frozen=True)
class Series:
    """A metric against the layer; `main` is the variant that stands for the metric."""

    dataset: str
    metric: str
    variant: str
    norm: str
    pooling: str
    main: bool
    values: list[MetricValue]


@dataclass(frozen=True)
class Encoded:
    """What went through the model: one dataset in one condition."""

    dataset: str
    condition: str
    prompts: int
    shards: int
    tokens: int
    truncated: int
    skipped_no_tokens: int
    model_seconds: float


@dataclass(frozen=True)
class DatasetFinding:
    """A corpus as it was prepared: unique prompts, and how many texts were left out and why."""

    name: str
    prompts: int
    shards: int
    skipped: dict[str, int]
    duplicates: int


@dataclass(frozen=True)
class SubjectFinding:
    """A model: its verdict, its layers, and what they were judged by."""

    name: str
    revision: str
    model: str
    blocks: int
    norm: str
    pooling: str
    variant: str
    policy: str
    verdict: Verdict
    oracle: float | None
    search_share: float | None
    tasks: list[TaskFinding]
    layers: list[LayerFinding]
    measured_on: str
    choices: list[ChoiceFinding]
    correlations: list[CorrelationFinding]
    curves: list[CurveFinding]
    encoded: list[Encoded]
    metrics: list[Series]
    unmeasured: list[str]
    responses: list[ResponseFinding] = field(default_factory=list)
    modes: ModesFinding | None = None

    @property
    def last(self) -> int:
        """The last layer, which every gain is over."""
        return max((row.layer for row in self.layers), default=0)

    @property
    def is_scored(self) -> bool:
        """Whether any layer has a score."""
        return any(row.score is not None for row in self.layers)


@dataclass(frozen=True)
class OvertakingFinding:
    """From which checkpoints on a layer stays above the last one, and is so beyond its interval."""

    layer: int
    stays_above: str | None
    clearly_above: str | None


@dataclass(frozen=True)
class SweepFinding:
    """The checkpoints of one model from the oldest to the newest; a step is None if unknown."""

    name: str
    revisions: list[str]
    steps: list[int | None]
    overtakings: list[OvertakingFinding]
    sentence: str


@dataclass(frozen=True)
class ModelFinding:
    """A model beside others: depths are layer / last layer, 0..1, the gain is the best layer's."""

    name: str
    revision: str
    blocks: int
    best: int | None
    best_depth: float | None
    best_score: float | None
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    recommended: int
    recommended_depth: float


@dataclass(frozen=True)
class Findings:
    """Everything that a report says."""

    schema_version: int
    run: str
    level: float
    draws: int
    seeds: dict[str, int]
    versions: dict[str, str | None]
    settings: dict[str, Any]
    datasets: list[DatasetFinding]
    subjects: list[SubjectFinding]
    made: dict[str, list[str]] = field(default_factory=dict)  # stage -> what ran its work
    sweeps: list[SweepFinding] = field(default_factory=list)
    side_by_side: list[ModelFinding] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)
