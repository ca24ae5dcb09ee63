"""The conditions of a run: every prompt again, perturbed, at several levels of each family."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from jobs.config.blocks import Block, Count, require_distinct
from operators.prompts.conditions import FAMILIES, Condition

# Names of conditions have two decimals.
_Probability = Annotated[float, Field(ge=0, le=1, multiple_of=0.01)]
_Share = Annotated[float, Field(gt=0, le=1, multiple_of=0.01)]


class ConditionsConfig(Block):
    """Levels of perturbation; each costs a forward pass of every dataset, measured like the clean.

    Probability 0 and share 1 are the clean pass, which every family but `length` begins from.
    """

    random: tuple[_Probability, ...] = Field(
        (), description="probability per token: a random token of the vocabulary instead"
    )
    repeat: tuple[_Probability, ...] = Field(
        (), description="probability per token: one token of the prompt instead, always the same"
    )
    noise: tuple[_Probability, ...] = Field(
        (), description="probability per word of each kind of typo"
    )
    truncate: tuple[_Share, ...] = Field((), description="share of the prompt's tokens, from 1st")
    length: tuple[Count, ...] = Field(
        (), description="tokens of a random prompt, those around every text included"
    )

    @field_validator("random", "repeat", "noise", "truncate", "length")
    @classmethod
    def _ascending(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        require_distinct([str(level) for level in levels], "value")
        return tuple(sorted(levels))

    def passes(self) -> list[Condition]:
        """Return the conditions that need a pass of their own, family by family."""
        given = [Condition(name, float(x)) for name in FAMILIES for x in getattr(self, name)]
        return [each for each in given if not each.is_clean]

    def families(self) -> dict[str, list[Condition]]:
        """Return the conditions of each family that is asked for, the clean pass among them."""
        found: dict[str, list[Condition]] = {}
        for each in self.passes():
            found.setdefault(each.family, []).append(each)
        for name, conditions in found.items():
            clean = FAMILIES[name].clean
            if clean is not None:
                conditions.append(Condition(name, clean))
            conditions.sort()
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
