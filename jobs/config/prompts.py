"""Which template the model reads each side of each task in, as a config has it or the model.

A side is named as the column of a task's items that holds the ids of its texts, and of a task of
mteb as what mteb asks for its texts as. The texts of a side without a template are read as they
are, in the clean pass, which every text goes through anyway: metrics of the layers are of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import (
    ClassificationTask,
    DatasetConfig,
    FittedTask,
    MtebSource,
    MtebTask,
    Task,
    TwoSided,
)
from layerrank.operators.prompts.templates import TEXT, Template

# What mteb calls the types of tasks, by which models name prompts.
_TYPES = {
    "classification": "Classification",
    "regression": "Regression",
    "clustering": "Clustering",
    "pair_classification": "PairClassification",
    "sts": "STS",
    "reranking": "Reranking",
    "retrieval": "Retrieval",
}
ASKED = ("none", "query", "document")
# What sentence-transformers takes for them, the first that there is.
_USUAL = {"none": (), "query": ("query",), "document": ("document", "passage", "corpus")}


@dataclass(frozen=True)
class OwnPrompts:
    """The prompts that a model comes with, by name, and the name of the one for all other texts.

    `models` are the names that mteb may know it by.
    """

    prompts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None
    models: tuple[str, ...] = ()

    def template(self, names: Iterable[str], asked: str) -> Template | None:
        """Return the template of a side, by the first of the names that there is."""
        known = (self.prompts.get(each) for each in (*names, *_USUAL[asked], self.default or ""))
        return _before(next((words for words in known if words is not None), ""))


class Side(NamedTuple):
    """A side of a task whose texts are read in a template."""

    task: Task
    name: str
    template: Template

    @property
    def asked(self) -> str:
        """Whether its texts are queries or documents, or none of these."""
        if isinstance(self.task, TwoSided):
            return "query" if self.name == self.task.ids[0] else "document"
        return self.name if self.name in ASKED else "none"

    def has_texts(self, facts: Mapping[str, float]) -> bool:
        """Whether it has any, by what is known of the items of its task: mteb may ask for none."""
        return not isinstance(self.task, MtebTask) or facts.get(asked_fact(self.name), 0) > 0

    def __str__(self) -> str:
        asked = "" if self.asked == "none" else f" ({self.asked})"
        return f"{self.task.name}{asked}"


class Prompted(NamedTuple):
    """A template, and the texts that are read in it: those of some sides of tasks.

    Each is the name of a task, its side, and the content of its items; without any it is all texts.
    `words` are what the tokenizer reads, the template of a chat filled in.
    """

    template: Template
    sides: Sequence[Sequence[str]] = ()
    words: str = ""


def asked_fact(asked: str) -> str:
    """Return what the number of texts is called that mteb asks for as such, in a task's items."""
    return f"asked_{asked}"


def sides(dataset: DatasetConfig, own: OwnPrompts, *, imports: bool = False) -> list[Side]:
    """Return the sides of a dataset's tasks that have a template; `own` prompts are for `auto`.

    Of tasks of mteb that are in modules of the user's they are known only to who `imports` these.
    """
    found = []
    for task in dataset.tasks:
        if isinstance(task, MtebTask):
            of_task = _of_mteb(dataset, task, own, imports=imports)
        else:
            of_task = _of_columns(dataset, task, own)
        for name, template in of_task:
            if template is not None and not template.is_plain:
                found.append(Side(task, name, template))
    return found


def by_template(found: Sequence[Side]) -> dict[Template, list[Side]]:
    """Return sides by their template, in one order whatever the config's."""
    return {
        template: [side for side in found if side.template == template]
        for template in sorted({side.template for side in found})
    }


def templates_of(dataset: DatasetConfig) -> int:
    """Return in how many templates the texts of a dataset are read, whatever the model, about."""
    return len(by_template(sides(dataset, OwnPrompts()))) + 2 * (dataset.prompts == "auto")


def require_no_noise(found: Sequence[Side], noise: Sequence[float]) -> None:
    """ConfigError if a task is to be tested on noisy texts that it reads in a template."""
    for side in found if noise else ():
        if isinstance(side.task, FittedTask):
            raise ConfigError(
                f"task {side.task.name} reads its texts in {side.template.words!r}, and "
                'curves.noise tests texts alone: give the task `prompt: "{text}"`, or leave '
                "curves.noise out"
            )


def told(dataset: DatasetConfig, found: Sequence[Side]) -> Iterator[str]:
    """Yield a line for each template of a dataset: which it is, and for what."""
    for template, same in by_template(found).items():
        what = ", ".join(map(str, same))
        yield f"{dataset.name}: {template.condition} is {template.written!r}, for {what}"
    if dataset.prompts == "auto" and not found:
        yield f"{dataset.name}: prompts is auto, and the model comes with none for its tasks"


def all_known(dataset: DatasetConfig) -> bool:
    """Whether all prompts of a dataset are known to who imports no module of the user's."""
    return dataset.prompts is None or not getattr(dataset.source, "modules", ())


def prefixes(found: Sequence[Side]) -> dict[str, str]:
    """Return the prompts of an exported model: the words before queries and before documents.

    Those that all such sides of a run agree on, and that are nothing but a prefix.
    """
    said = {}
    for asked in ASKED[1:]:
        words = {side.template.prefix for side in found if side.asked == asked}
        if len(words) == 1 and (prefix := words.pop()):
            said[asked] = prefix
    return said


def _before(words: str | None) -> Template | None:
    """Return the template of a prefix, whatever braces it has; None without one."""
    if not words:
        return None
    if TEXT in words:
        raise ConfigError(f"a prompt of the model's own holds {TEXT}: {words!r}; give `prompts`")
    return Template(words + TEXT)


def _of_columns(
    dataset: DatasetConfig, task: Task, own: OwnPrompts
) -> Iterator[tuple[str, Template | None]]:
    """Yield the sides of a task on columns, each with the task's template or its column's."""
    two = isinstance(task, TwoSided)
    kind = _TYPES.get(task.type, "")
    if isinstance(task, ClassificationTask) and task.multi_label:
        kind = "MultilabelClassification"
    for place, (name, column) in enumerate(zip(task.ids, task.text_columns, strict=True)):
        asked = ASKED[1 + place] if two else "none"
        given = getattr(task, f"{asked}_prompt" if two else "prompt")
        if given is not None:
            yield name, given
        elif isinstance(dataset.prompts, dict):
            yield name, dataset.prompts.get(column or dataset.text_column)
        elif dataset.prompts == "auto":
            names = (f"{kind}-{asked}", kind) if two else (kind,)
            yield name, own.template(names, asked)


def _of_mteb(
    dataset: DatasetConfig, task: Task, own: OwnPrompts, *, imports: bool
) -> Iterator[tuple[str, Template | None]]:
    """Yield what mteb may ask for the texts of a task as, each with the template of that."""
    if dataset.prompts is None:
        return
    from layerrank.operators.benchmark.prompts import (  # noqa: PLC0415  (imports mteb, seconds)
        prompt_keys,
        registered_prompt,
    )
    from layerrank.operators.benchmark.tasks import is_of_mteb  # noqa: PLC0415  (the same)

    assert isinstance(dataset.source, MtebSource)
    modules = dataset.source.modules if imports else ()
    if dataset.source.modules and not (imports or is_of_mteb(task.name)):
        return
    for asked in ASKED:
        keys = prompt_keys(task.name, asked, modules)
        if isinstance(dataset.prompts, dict):
            given = dataset.prompts
            yield asked, next((given[key] for key in keys if key in given), None)
            continue
        known = (registered_prompt(name, task.name, asked, modules) for name in own.models)
        words = next((each for each in known if each is not None), None)
        yield asked, own.template(keys, asked) if words is None else _before(words)
