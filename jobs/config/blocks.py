"""What the blocks of a config have in common: frozen, no unknown key, checked types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Block(BaseModel):
    """A frozen mapping of known keys; an unknown one is named with those there are."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:  # noqa: ANN401  (whatever the YAML held)
        if isinstance(values, Mapping):
            unknown = [str(key) for key in values if key not in cls.model_fields]
            if unknown:
                known = ", ".join(sorted(cls.model_fields))
                raise ValueError(f"unknown key {', '.join(unknown)}; known keys: {known}")
        return values


def require_distinct(values: Sequence[object], what: str = "") -> None:
    """ValueError that names what is there twice."""
    names = [str(value) for value in values]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{what}{', '.join(repeated)} is used twice")


def _distinct(values: tuple[object, ...]) -> tuple[object, ...]:
    require_distinct(values)
    return values


def _ascending(values: tuple[float, ...]) -> tuple[float, ...]:
    require_distinct(values)
    return tuple(sorted(values))


# Of a tuple of a block: no value twice, and besides in ascending order.
Distinct = AfterValidator(_distinct)
Ascending = AfterValidator(_ascending)


class ConfigError(ValueError):
    """The user's config or arguments cannot be run as they stand."""
