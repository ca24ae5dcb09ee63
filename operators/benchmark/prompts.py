"""What a model reads before the texts of mteb's tasks: how a prompt is found, and mteb's registry.

A prompt is called as `mteb.models.abs_encoder.get_prompt_name` looks it up: by task and prompt
type, by task, by type of task and prompt type, by type of task, by prompt type (mteb 2.26). Nothing
here loads a model or the data of a task.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from layerrank.operators.benchmark.tasks import is_of_mteb, metadata_of, mteb_library, parse

if TYPE_CHECKING:
    from mteb import TaskMetadata
    from mteb.types import PromptType

SIDES = ("query", "document")


def prompt_keys(task: str, asked: str, modules: Sequence[str] = ()) -> list[str]:
    """Return what a prompt of a task may be called, the first that there is is taken.

    `asked` is the prompt type, `none` without one.
    """
    metadata = metadata_of(task, modules)
    of_side = [asked] if asked in SIDES else []
    keys = [
        key
        for each in (metadata.name, str(metadata.type))
        for key in (*(f"{each}-{side}" for side in of_side), each)
    ]
    return [*keys, *of_side]


def prompt_names(tasks: Sequence[str]) -> list[str]:
    """Return everything that a prompt of some tasks may be called.

    One that mteb does not know, and a module of the user's defines, may be of any type.
    """
    known = [task for task in tasks if is_of_mteb(task)]
    every = (prompt_keys(task, side) for task in known for side in SIDES)
    names = [key for keys in every for key in reversed(keys)]
    if own := [parse(task).task for task in tasks if task not in known]:
        registered = importlib.import_module("mteb.get_tasks").TASK_LIST
        own += sorted({str(each.metadata.type) for each in registered})
    names += [key for name in own for key in (name, *(f"{name}-{side}" for side in SIDES))]
    return [*dict.fromkeys([*SIDES, *names])]


def registered_prompt(model: str, task: str, asked: str, modules: Sequence[str] = ()) -> str | None:
    """Return the words that a model has before the texts of a task, as mteb's registry has it.

    None if mteb knows no such model, or nothing of its prompts: the words are those that mteb's
    wrappers of sentence-transformers put there, a prompt or an instruction in its template.
    """
    mteb_library()
    models = importlib.import_module("mteb.models.model_implementations").MODEL_REGISTRY
    given: dict[str, Any] = models[model].loader_kwargs if model in models else {}
    if prompts := given.get("model_prompts"):
        return next(
            (prompts[key] for key in prompt_keys(task, asked, modules) if key in prompts), ""
        )
    if not given.get("instruction_template"):
        return None
    if asked == "document" and not given.get("apply_instruction_to_passages", True):
        return ""
    of_side = importlib.import_module("mteb.types").PromptType(asked) if asked in SIDES else None
    return _instruction(given, metadata_of(task, modules), of_side)


def _instruction(
    given: dict[str, Any], metadata: TaskMetadata, prompt_type: PromptType | None
) -> str:
    """Return the instruction of a task, as an encoder of mteb makes it."""
    base = importlib.import_module("mteb.models.abs_encoder").AbsEncoder
    names = ("instruction_template", "prompts_dict", "prompt_priority")
    own = {name: given[name] for name in names if given.get(name) is not None}
    # A template that is a function is a method otherwise.
    bound = {name: staticmethod(each) if callable(each) else each for name, each in own.items()}
    encoder = type("Instructed", (base,), {**bound, "encode": None})
    return str(encoder().get_task_instruction(metadata, prompt_type))
