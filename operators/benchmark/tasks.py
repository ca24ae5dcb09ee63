"""mteb's tasks by name: how one is named, the lists that stand for many, and their data.

A task is named as mteb names it (`Banking77Classification`), or with the part of it that is meant:
`MassiveIntentClassification[de,fr]`, `MSMARCO[default@dev]`, `AmazonReviewsClassification[*]`.
Before the `@` stand the subsets (languages, mostly; `*` is all of them), after it the splits. A
name alone means the test split where the task has one, and all its splits otherwise; all subsets,
and for the multilingual tasks of the paper's list the English one, as the paper scored it.

mteb is an optional extra and takes seconds to import, so nothing here imports it before it is used.

Since `datasets` 4, `dataset["label"]` is a view that decodes one row per access. mteb's evaluators
index such columns row by row, many times, which makes classification several times slower than its
arithmetic. Columns of a loaded task are lists, with the same values, so scores are identical.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

from datasets import Dataset, DatasetDict

if TYPE_CHECKING:
    from mteb import AbsTask, TaskMetadata

    OwnTasks = Mapping[str, type[AbsTask]]

_NAME = re.compile(r"(?P<task>[^\[\]]+)(?:\[(?P<subsets>[^@\[\]]+)(?:@(?P<splits>[^@\[\]]+))?\])?")
_EVERY = "*"

# The 32 tasks of arXiv 2412.09563 and 2502.02013, as in the result files the authors released.
PAPER_32 = (
    "AmazonCounterfactualClassification",
    "AmazonReviewsClassification",
    "Banking77Classification",
    "EmotionClassification",
    "MTOPDomainClassification",
    "MTOPIntentClassification",
    "MassiveIntentClassification",
    "MassiveScenarioClassification",
    "ToxicConversationsClassification",
    "TweetSentimentExtractionClassification",
    "ArxivClusteringS2S",
    "BiorxivClusteringS2S",
    "MedrxivClusteringS2S",
    "RedditClustering",
    "StackExchangeClustering",
    "TwentyNewsgroupsClustering",
    "SprintDuplicateQuestions",
    "TwitterSemEval2015",
    "TwitterURLCorpus",
    "AskUbuntuDupQuestions",
    "MindSmallReranking",
    "SciDocsRR",
    "StackOverflowDupQuestions",
    "BIOSSES",
    "SICK-R",
    "STS12",
    "STS13",
    "STS14",
    "STS15",
    "STS16",
    "STS17",
    "STSBenchmark",
)

# MindSmallReranking costs more than the other 31 together: 2.36 million query rows, and about 45
# minutes of scoring per layer (extrapolated).
PAPER_31 = tuple(name for name in PAPER_32 if name != "MindSmallReranking")

LISTS = MappingProxyType({"paper-31": PAPER_31, "paper-32": PAPER_32})

_ENGLISH = {
    "AmazonCounterfactualClassification": "en",
    "AmazonReviewsClassification": "en",
    "MTOPDomainClassification": "en",
    "MTOPIntentClassification": "en",
    "MassiveIntentClassification": "en",
    "MassiveScenarioClassification": "en",
    "STS17": "en-en",
}

# A task's data are {subset: {split: dataset}}, for retrieval {subset: {split: {part: dataset}}}.
# What lies deeper, such as the relevant documents of a million queries, holds no dataset.
_DEPTH = 3


@dataclass(frozen=True)
class TaskName:
    """A task and the part of it that is meant; None is what a name alone means."""

    task: str
    subsets: tuple[str, ...] | None = None
    splits: tuple[str, ...] | None = None


def parse(name: str) -> TaskName:
    """Read a task's name, with or without its part; ValueError if it is not written as one."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"mteb task {name!r}: expected NAME, NAME[SUBSET,SUBSET] or NAME[SUBSET@SPLIT]"
        )
    parts = (
        None if part is None else tuple(item.strip() for item in part.split(","))
        for part in match.group("subsets", "splits")
    )
    return TaskName(match["task"], *parts)


def limit(task: AbsTask, part: TaskName) -> AbsTask:
    """Restrict a task to the subsets and splits that its name means; unknown ones raise."""
    subsets, splits = usual_part(task.metadata)
    every = list(task.metadata.hf_subsets)
    if part.subsets is not None:
        subsets = every if part.subsets == (_EVERY,) else list(part.subsets)
    splits = splits if part.splits is None else list(part.splits)
    for what, wanted, known in (
        ("subset", subsets, every),
        ("evaluation split", splits, list(task.metadata.eval_splits)),
    ):
        unknown = [item for item in wanted if item not in known]
        if unknown:
            raise ValueError(
                f"mteb task {part.task} has no {what} {unknown[0]!r}; it has {', '.join(known)}"
            )
    return task.filter_eval_splits(splits).filter_languages(None, hf_subsets=subsets)


def canonical(task: AbsTask) -> str:
    """Return the shortest name that means the subsets and splits to which a task is restricted."""
    metadata = task.metadata
    subsets, splits = usual_part(metadata)
    same_splits = set(task.eval_splits) == set(splits)
    if set(task.hf_subsets) == set(subsets) and same_splits:
        return metadata.name
    every = set(task.hf_subsets) == set(metadata.hf_subsets)
    part = _EVERY if every else ",".join(task.hf_subsets)
    return f"{metadata.name}[{part}{'' if same_splits else '@' + ','.join(task.eval_splits)}]"


def usual_part(metadata: TaskMetadata) -> tuple[list[str], list[str]]:
    """Return the subsets and the splits that a name alone means."""
    every, splits = list(metadata.hf_subsets), list(metadata.eval_splits)
    english = _ENGLISH.get(metadata.name)
    return [english] if english in every else every, ["test"] if "test" in splits else splits


def mteb_library() -> ModuleType:
    """Return the mteb package; ValueError with the command that installs it if it is absent."""
    try:
        return importlib.import_module("mteb")
    except ModuleNotFoundError as error:
        if error.name != "mteb":
            raise
        raise ValueError(
            "tasks of mteb by name need the extra: pip install 'layerrank[mteb]'"
        ) from error


def task_names(spec: str | Sequence[str], modules: Sequence[str] = ()) -> list[str]:
    """Return the names of the tasks that `spec` stands for, each once, in the given order.

    A name is that of a task (see above for its parts), of one of the user's
    own tasks in `modules`, of an mteb benchmark ("MTEB(eng, v1)"), or of a list: `paper-32`, the
    tasks of the paper, or `paper-31`, the same without MindSmallReranking, which has 2.36 million
    query rows and takes longer to score than the other 31 together. A task that is a mean over
    others (CQADupstackRetrieval) stands for those.

    A name that is none of these raises ValueError with the names closest to it. No network is used,
    and no module is imported: with `modules` a name that mteb does not know is one of theirs, and
    whether it is so turns out when it is loaded.
    """
    found: list[str] = []
    for name in [spec] if isinstance(spec, str) else spec:
        tasks = None
        if name in LISTS:
            found += LISTS[name]
            continue
        with suppress(KeyError):
            tasks = mteb_library().get_benchmark(name).tasks
        if tasks is None and modules and not is_of_mteb(name):
            found.append(name)
            continue
        for task in [_named(name, {})] if tasks is None else tasks:
            for part in _parts(task):
                _require_text(part)
                found.append(canonical(part))
    return list(dict.fromkeys(found))


def is_of_mteb(name: str) -> bool:
    """Whether mteb itself has a task of a name, whatever the part of it that is meant."""
    try:
        mteb_library().get_task(parse(name).task)
    except KeyError:
        return False
    return True


def metadata_of(name: str, modules: Sequence[str] = ()) -> TaskMetadata:
    """Return what mteb says of a task, without its data."""
    return _named(name, _own_tasks(modules)).metadata


def load_task(name: str, modules: Sequence[str] = ()) -> AbsTask:
    """Return a new instance of a task, restricted to the part that is named, with its data loaded.

    `modules` are import paths of modules that hold the user's own tasks (subclasses of `AbsTask`);
    they are imported first, and an own task is found before one of mteb's with the same name.
    A task that cannot be loaded raises ValueError with its name.

    The task is a template: `recorded` and `score_task` work on copies of it, because an mteb
    task that was evaluated once draws other documents the second time.
    """
    task = _named(name, _own_tasks(modules))
    if _averaged(task):
        parts = ", ".join(canonical(part) for part in _parts(task))
        raise ValueError(f"mteb task {name} is a mean over other tasks: name those ({parts})")
    _require_text(task)
    try:
        task.load_data()
        convert = getattr(task, "convert_v1_dataset_format_to_v2", None)
        if convert is not None:
            convert(num_proc=None)
    except (OSError, ValueError) as error:
        lines = str(error).strip().splitlines()
        raise ValueError(
            f"mteb task {name}: cannot load its data: {lines[0] if lines else type(error).__name__}"
        ) from error
    if not task.dataset:
        raise ValueError(f"mteb task {name}: its load_data sets no dataset")
    # mteb tests this flag before every evaluation; an own load_data may have left it out.
    task.data_loaded = True
    task.dataset = eager_columns(task.dataset)
    return task


def _parts(task: AbsTask) -> Iterator[AbsTask]:
    """Yield the tasks that an aggregate comes down to, or the task itself."""
    averaged = _averaged(task)
    for part in averaged:
        yield from _parts(part)
    if not averaged:
        yield task


def _averaged(task: AbsTask) -> list[AbsTask]:
    """Return the tasks over which an aggregate is a mean; any other task has none."""
    return list(getattr(task.metadata, "tasks", None) or [])


def _named(name: str, own: OwnTasks) -> AbsTask:
    """Return a new instance of the named task without its data."""
    part = parse(name)
    if part.task in own:
        return limit(own[part.task](), part)
    library = mteb_library()
    try:
        task: AbsTask = library.get_task(part.task)
    except KeyError:
        registered = importlib.import_module("mteb.get_tasks").TASK_LIST
        known = [
            *LISTS,
            *own,
            *(each.metadata.name for each in registered),
            *(benchmark.name for benchmark in library.get_benchmarks()),
        ]
        close = difflib.get_close_matches(part.task, known) or list(LISTS)
        raise ValueError(
            f"unknown mteb task, benchmark or list {name!r}; close to it: {', '.join(close)}"
        ) from None
    return task if _averaged(task) else limit(task, part)


def _own_tasks(modules: Sequence[str]) -> OwnTasks:
    found: dict[str, type[AbsTask]] = {}
    for path in modules:
        base = mteb_library().AbsTask
        try:
            module = importlib.import_module(path)
        except ImportError as error:
            raise ValueError(
                f"module {path} of own mteb tasks cannot be imported: {error}"
            ) from error
        for value in vars(module).values():
            if not (isinstance(value, type) and issubclass(value, base)):
                continue
            metadata = getattr(value, "metadata", None)
            if metadata is None or value.__module__.split(".")[0] == "mteb":
                continue
            if found.setdefault(metadata.name, value) is not value:
                raise ValueError(
                    f"module {path}: {value.__name__} and {found[metadata.name].__name__} "
                    f"are both named {metadata.name}; give each task its own metadata"
                )
    return found


def _require_text(task: AbsTask) -> None:
    modalities = list(task.metadata.modalities)
    if modalities != ["text"]:
        raise ValueError(
            f"mteb task {task.metadata.name} reads {', '.join(modalities)}; "
            "only tasks of text alone can be scored"
        )


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
