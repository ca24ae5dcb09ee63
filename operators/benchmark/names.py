"""How an mteb task is named, and the lists that stand for many names.

A task is named as mteb names it (`Banking77Classification`), or with the part of it that is meant:
`MassiveIntentClassification[de,fr]`, `MSMARCO[default@dev]`, `AmazonReviewsClassification[*]`.
Before the `@` stand the subsets (languages, mostly; `*` is all of them), after it the splits.

A name alone means the test split where the task has one, and all its splits otherwise; all subsets,
and for the multilingual tasks of the paper's list the English one, as the paper scored it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mteb import AbsTask, TaskMetadata

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

_ENGLISH = MappingProxyType(
    {
        "AmazonCounterfactualClassification": "en",
        "AmazonReviewsClassification": "en",
        "MTOPDomainClassification": "en",
        "MTOPIntentClassification": "en",
        "MassiveIntentClassification": "en",
        "MassiveScenarioClassification": "en",
        "STS17": "en-en",
    }
)


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
    return TaskName(match["task"], _listed(match["subsets"]), _listed(match["splits"]))


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


def _listed(part: str | None) -> tuple[str, ...] | None:
    return None if part is None else tuple(item.strip() for item in part.split(","))
