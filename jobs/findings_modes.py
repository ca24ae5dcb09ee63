"""What a run found about two kinds of prompts, as plain data; see the table `modes`."""

from __future__ import annotations

from dataclasses import dataclass


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
