"""LayerRank: which layer of a language model to use.

    import layerrank as lr
    result = lr.rank("sentence-transformers/all-MiniLM-L6-v2", texts, labels)
    result.best_layer

`rank` and `open` are in `layerrank.api`, which is imported when it is first asked for. Everything
else of ours is imported below this name too, so that packages called `jobs` or `storage` may stand
beside it: in the checkout these lie at the top and are links in this folder.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerrank.api import Error, Report, Result, RunError, UsageError, open, rank

__all__ = ["Error", "Report", "Result", "RunError", "UsageError", "open", "rank"]


def __getattr__(name: str) -> Any:  # noqa: ANN401  (whatever has the name)
    if name == "__version__":
        return version("layerrank")
    if name in __all__:
        return getattr(import_module("layerrank.api"), name)
    raise AttributeError(f"module 'layerrank' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
