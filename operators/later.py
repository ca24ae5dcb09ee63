"""What is imported when it is first called: torch and scikit-learn take seconds.

Who only reads a config, or finds everything present, does without them. mypy is shown the module:

    if TYPE_CHECKING:
        from layerrank.operators.metrics import tokens
    else:
        tokens = Later("layerrank.operators.metrics.tokens")
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from typing import Any


@dataclass(frozen=True)
class Later:
    """A module whose functions and classes are named before it is imported."""

    module: str

    def __getattr__(self, name: str) -> Called:
        if name.startswith("__"):  # of Python itself: how to copy, how to pickle
            raise AttributeError(name)
        return Called(self.module, name)


@dataclass(frozen=True)
class Called:
    """A function or a class by its name; pickled as that, so that a worker alone imports it."""

    module: str
    name: str

    def __getattr__(self, name: str) -> Called:
        if name.startswith("__"):
            raise AttributeError(name)
        return Called(self.module, f"{self.name}.{name}")

    def __call__(self, *args: Any, **named: Any) -> Any:  # noqa: ANN401  (as what is called)
        """Import the module and call what it names."""
        return attrgetter(self.name)(import_module(self.module))(*args, **named)
