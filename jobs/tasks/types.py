"""Labelled tasks on the columns of a dataset, one block of the config per type."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from jobs.config.blocks import Block, Count, Name

# Settings of the protocol: they belong to the scores of a task, not to its items.
PROTOCOL = {
    "folds",
    "samples_per_label",
    "samples",
    "max_documents",
    "documents_per_fold",
    "test_fraction",
}


class _Task(Block):
    """What tasks have in common: fields that end in `_column` name columns of the source."""

    texts: ClassVar[tuple[str, ...]] = ()  # those of them whose columns hold texts
    name: Name

    @property
    def own_text_columns(self) -> tuple[str, ...]:
        """The columns whose texts the task reads, beside the dataset's text column."""
        return tuple(column for field in self.texts if (column := getattr(self, field)))

    @property
    def value_columns(self) -> tuple[str, ...]:
        """The columns that hold what is not text: labels, scores, the split."""
        fields = [name for name in type(self).model_fields if name.endswith("_column")]
        values = (getattr(self, field) for field in fields if field not in self.texts)
        return tuple(column for column in values if column)


class _FittedTask(_Task):
    """A task that is fitted on one part of its items and tested on the other."""

    split_column: str | None = Field(None, description="holds train and test; else a seeded split")
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    folds: Count = 10


class ClassificationTask(_FittedTask):
    """Predict a label from the text: logistic regression on a few examples per label."""

    type: Literal["classification"]
    label_column: str
    multi_label: bool = Field(
        False, description="a text has any number of labels, in a list or separated"
    )
    label_separator: str = Field(",", min_length=1)
    samples_per_label: Count = 8


class RegressionTask(_FittedTask):
    """Predict a number from the text: a regression on a sample of the training items."""

    type: Literal["regression"]
    value_column: str
    samples: Count = Field(2048, description="training items of a fold, at most")


class ClusteringTask(_Task):
    """Find the labels again without seeing them: k-means against the labels."""

    type: Literal["clustering"]
    label_column: str
    split_column: str | None = Field(None, description="if given, only its test rows are clustered")
    max_documents: Count | None = None
    documents_per_fold: Count = 2048
    folds: Count = 10


class PairClassificationTask(_Task):
    """Tell pairs that belong together from others: average precision of their similarity."""

    texts = ("first_column", "second_column")
    type: Literal["pair_classification"]
    first_column: str
    second_column: str
    label_column: str = Field(description="1 or 0, true or false")
    split_column: str | None = Field(None, description="if given, only its test rows are scored")


class StsTask(_Task):
    """Semantic similarity of pairs: rank correlation of the cosine with people's scores."""

    texts = ("first_column", "second_column")
    type: Literal["sts"]
    first_column: str
    second_column: str
    score_column: str
    split_column: str | None = Field(None, description="if given, only its test rows are scored")


class RerankingTask(_Task):
    """Order each query's own candidates, one a row: mean average precision."""

    texts = ("query_column", "candidate_column")
    type: Literal["reranking"]
    query_column: str
    candidate_column: str
    relevance_column: str = Field(description="whole number, 0 = not relevant")
    split_column: str | None = Field(None, description="if given, only its test rows are scored")


class RetrievalTask(_Task):
    """Find the documents that belong to a query among those of all queries: nDCG@10."""

    texts = ("query_column", "document_column")
    type: Literal["retrieval"]
    query_column: str
    document_column: str | None = Field(None, description="default: the text column")
    relevance_column: str | None = Field(
        None, description="whole number, 0 = not relevant; default: a row's document is relevant"
    )


class MtebTask(_Task):
    """A task of mteb, scored by mteb's own evaluators on the stored vectors."""

    type: Literal["mteb"]
    name: str = Field(min_length=1)
    text_column: Literal["text"] = "text"
    task_column: Literal["task"] = "task"
    texts = ("text_column",)


FittedTask = ClassificationTask | RegressionTask
LabelledTask = FittedTask | ClusteringTask
PairTask = PairClassificationTask | StsTask
RelevanceTask = RerankingTask | RetrievalTask
Task = Annotated[LabelledTask | PairTask | RelevanceTask | MtebTask, Field(discriminator="type")]
