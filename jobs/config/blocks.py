"""What the blocks of a config have in common: frozen, no unknown key, checked types."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

_LONGEST = 200  # characters of a name: a folder is called so, with a key before it
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=1 << 40)]  # so that products of two are sizes still
UNKNOWN_KEY = "unknown_key"  # a type of problem, with what `did_you_mean` takes
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_OWN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
Given = TypeVar("Given", bound=Sequence[object])


def _require_name(name: str) -> str:
    if len(name) > _LONGEST:
        raise ValueError(f"a name has {_LONGEST} characters at most, and this has {len(name)}")
    if not _NAME.fullmatch(name):
        raise ValueError("a name has letters, digits and . _ + -, one of the first two in front")
    return name


Name = Annotated[
    str,
    AfterValidator(_require_name),
    WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$", "maxLength": _LONGEST}),
]


def is_own(name: str) -> bool:
    """Whether a name is that of a function or class of the user's, `package.module:name`."""
    return _OWN.fullmatch(name) is not None


def _require_own(name: str) -> str:
    if not is_own(name):
        raise ValueError("is not written as package.module:Class")
    return name


# What such a name stands for: `jobs.own`.
OwnName = Annotated[
    str,
    AfterValidator(_require_own),
    WithJsonSchema({"type": "string", "pattern": f"^{_OWN.pattern}$"}),
]


@dataclass(frozen=True)
class Later:
    """Of a key that came after the first root of format 2: `Annotated[…, LATER]`, or with `before`.

    `before` is the value that says how it was without the key, if the default is another.
    """

    before: Any = ...


LATER = Later()


class Block(BaseModel):
    """A frozen mapping of known keys; an unknown one is named with those there are."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:  # noqa: ANN401  (whatever the YAML held)
        if not isinstance(values, Mapping) or cls.model_config.get("extra") == "allow":
            return values
        unknown = [str(key) for key in values if key not in cls.model_fields]
        if not unknown:
            return values
        known = ", ".join(sorted(cls.model_fields))
        said = f"unknown key {', '.join(unknown)}; known keys: {known}"
        meant = {"given": unknown[0], "known": list(cls.model_fields)}
        told = PydanticCustomError(UNKNOWN_KEY, said, meant)
        problems = [InitErrorDetails(type=told, input=values)]
        try:  # what is wrong with the others is told too
            cls.model_validate({key: values[key] for key in values if key in cls.model_fields})
        except ValidationError as error:
            for each in error.errors():
                told = PydanticCustomError(each["type"], each["msg"], each.get("ctx"))
                problems.append(InitErrorDetails(type=told, loc=each["loc"], input=each["input"]))
        raise ValidationError.from_exception_data(cls.__name__, problems, hide_input=True)

    def settings(
        self, *, include: set[str] | None = None, exclude: set[str] | None = None
    ) -> dict[str, Any]:
        """Return the keys that a table depends on, for its digest.

        One that came `Later` than the roots that are to be continued counts when its value is
        another than what stands for these.
        """
        values = self.model_dump(mode="json", include=include, exclude=exclude)
        for name, before in self.later().items():
            if getattr(self, name) == before:
                values.pop(name, None)
        return values

    @classmethod
    def later(cls) -> dict[str, Any]:
        """Return the keys that came later, each with what stands for it in a root before it."""
        found = {}
        for name, field in cls.model_fields.items():
            for each in (each for each in field.metadata if isinstance(each, Later)):
                default = field.get_default(call_default_factory=True)
                found[name] = default if each.before is ... else each.before
        return found


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
