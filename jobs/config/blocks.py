"""What the blocks of a config have in common: frozen, no unknown key, checked types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
LATER = "came after the first root of format 2"  # Annotated[…, LATER] of a key that did
Given = TypeVar("Given", bound=Sequence[object])


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

    def settings(
        self, *, include: set[str] | None = None, exclude: set[str] | None = None
    ) -> dict[str, Any]:
        """Return the keys that a table depends on, for its digest.

        One that came `LATER` than the roots that are to be continued counts when it is no default.
        """
        values = self.model_dump(mode="json", include=include, exclude=exclude)
        for name, field in type(self).model_fields.items():
            default = field.get_default(call_default_factory=True)
            if LATER in field.metadata and getattr(self, name) == default:
                values.pop(name, None)
        return values


def require_distinct(values: Given, what: str = "") -> Given:
    """Return the values; ValueError that names what is there twice."""
    counts = Counter(map(str, values))
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if repeated:
        raise ValueError(f"{what}{', '.join(repeated)} is used twice")
    return values


# Of a tuple of a block: no value twice, and besides in ascending order.
Distinct = AfterValidator(require_distinct)
Ascending = AfterValidator(lambda values: tuple(sorted(require_distinct(values))))


class ConfigError(ValueError):
    """The user's config or arguments cannot be run as they stand."""
