"""What a run found under conditions, as plain data; part of `jobs.findings`."""

from __future__ import annotations

from dataclasses import dataclass


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
