"""Dataset columns as lists.

Since `datasets` 4, `dataset["label"]` is a view that decodes one row per access. mteb's evaluators
index such columns row by row, many times, which makes classification several times slower than its
arithmetic. Lists give them the same values, so scores are identical.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, DatasetDict

# A task's data are {subset: {split: dataset}}, for retrieval {subset: {split: {part: dataset}}}.
# What lies deeper, such as the relevant documents of a million queries, holds no dataset.
_DEPTH = 3


class _EagerDataset(Dataset):  # type: ignore[misc]  # datasets ships without types
    """A dataset whose columns are read whole, and whose selections are such datasets too."""

    def __getitem__(self, key: Any) -> Any:  # noqa: ANN401 - what the library's own method takes
        value = super().__getitem__(key)
        # A formatted dataset ("numpy", "torch") has arrays for columns: those stay as they are.
        return value[:] if isinstance(key, str) and self.format["type"] is None else value

    def select(self, *args: Any, **kwargs: Any) -> Dataset:  # noqa: ANN401 - as above
        return _eager(super().select(*args, **kwargs))


def eager_columns(data: Any, depth: int = _DEPTH) -> Any:  # noqa: ANN401 - tasks nest data freely
    """Return a task's data with every dataset in it reading its columns as lists.

    Containers are new, the tables behind the datasets are shared. The type of the data stays.
    """
    if isinstance(data, Dataset):
        return _eager(data)
    if not isinstance(data, Mapping) or not depth:
        return data
    nested = {key: eager_columns(value, depth - 1) for key, value in data.items()}
    return DatasetDict(nested) if isinstance(data, DatasetDict) else nested


def _eager(dataset: Dataset) -> Dataset:
    # Building one from its table would lose the row selection and the format, which are private.
    eager = copy.copy(dataset)
    eager.__class__ = _EagerDataset
    return eager
