"""The upkeep of a root: what is damaged is named, deleted, and made again by who can make it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError

from layerrank.jobs.cluster.console import say
from layerrank.jobs.cluster.errors import DONE
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.datasets import MtebSource
from layerrank.jobs.config.prompts import OwnPrompts, sides
from layerrank.jobs.config.run import RunConfig, graded_conditions
from layerrank.jobs.config.settings import ViewsConfig
from layerrank.jobs.config.stored import FOLDER, given_of, stored
from layerrank.jobs.run import Run
from layerrank.jobs.subjects import name_of
from layerrank.operators.prompts.templates import is_prompt
from layerrank.operators.prompts.views import view_name
from layerrank.storage.manifest import (
    Manifest,
    Manifests,
    as_it_lies,
    broken,
    derived,
    everything,
    load,
)
from layerrank.storage.partition import CLEAN, KEYS, Partition, all_partitions
from layerrank.storage.root import Root
from layerrank.storage.shards import DamagedError

Done = TypeVar("Done")


def healing(run: Run, work: Callable[[], Done]) -> Done:
    """Do the work of a run, and again when it meets something damaged, which is deleted first.

    Its stages then find it missing. Last the root is looked at once more. What is damaged a second
    time, or what no stage of the work makes, is an error.
    """
    healed: set[tuple[Partition, str]] = set()
    run.manifests.keep_logs(asked=run.config.delta)
    while True:
        try:
            done = work()
            run.manifests.look()
        except Exception as error:
            damage = damage_in(error)
            if damage is None or (damage.partition, damage.name) in healed:
                raise
            run.cluster.abandon()
            # All of the partition at once: each pass loads the model again.
            where, manifest = damage.partition, run.manifests.load(damage.partition)
            found = {damage.name: damage.why}
            if manifest and damage.name:
                found = run.manifests.damage(manifest, verify=True)
            healed |= {(where, name) for name in {damage.name, *found}}
            for name, why in found.items():
                run.manifests.discard(type(damage)(where, name, why))
        else:
            return done


def damage_in(error: BaseException) -> DamagedError | None:
    """Return the damage that an error is of, wherever it was met; None if it is of something else.

    What a worker raised comes wrapped, with the error itself as the cause.
    """
    chain: list[BaseException | None] = [error]
    for each in chain:
        if each is None:
            continue
        cause = getattr(each, "cause", None)
        if isinstance(each, DamagedError) and not isinstance(cause, DamagedError):
            return each
        chain += [cause if isinstance(cause, BaseException) else None, each.__cause__]
    return None


def repair(root: Root) -> int:
    """Delete what is damaged in a root and what came of it; a run makes it again."""
    manifests = Manifests(root, say=say)
    manifests.keep_logs(asked=False)
    count = 0
    for partition in [each for table in KEYS for each in all_partitions(root, table)]:
        if root.exists(partition.manifest) and as_it_lies(root, partition) is None:
            say(f"  {partition}: its manifest cannot be read; deleted")
            manifests.withdraw(partition)
            count += 1
    damaged: dict[Partition, Manifest] = {}
    for manifest in list(everything(root)):
        where = manifest.partition
        wrong = {} if manifest.withdrawn else broken(root, manifest, lambda *_: True)
        for name, why in wrong.items():
            error = DamagedError(where, name, why)
            say(f"  {error}; deleted")
            damaged[where] = manifest
            manifests.drop(error)
        if where in damaged and not root.sizes(where.path):
            manifests.erase(where)
    for partition in all_partitions(root, "ranking"):  # a nightly names it as long as it lies here
        if partition not in damaged and load(root, partition) is None:
            say(f"  {partition}: not complete; deleted")
            manifests.erase(partition)
            count += 1
    for each in derived(root, damaged.values()):
        say(f"  {each.partition}: came of it; deleted")
        manifests.erase(each.partition)
        count += 1
    manifests.follow(everything(root))
    count += len(damaged)
    say(f"{count} partitions repaired: run again what made them" if count else "nothing is damaged")
    return DONE


def prune(root: Root) -> int:
    """List what no stored config of a root asks for, then delete it."""
    configs = [_as_asked(each, root) for each in stored(root)]
    if not configs or len(configs) < len(root.sizes(FOLDER)):
        raise ConfigError(
            f"{root.place(FOLDER)} has {len(configs)} configs that can be read, of "
            f"{len(root.sizes(FOLDER))}: what is asked for is not known, and nothing is deleted"
        )
    found = [each for table in KEYS for each in all_partitions(root, table)]
    spare = [
        each
        for each in found
        if not any(_asks_for(config, each) for config in configs) and not _is_of_a_file(root, each)
    ]
    for partition in spare:
        say(f"  {partition}: no config asks for it")
    manifests = Manifests(root)
    manifests.keep_logs(asked=False)
    for partition in spare:
        manifests.erase(partition)
    say(f"{len(spare)} of {len(found)} partitions deleted")
    return DONE


def _as_asked(kept: dict[str, Any], root: Root) -> RunConfig:
    """Return a stored config as far as it says which tables there are."""
    named = {key: each for key, each in kept["given"].items() if key not in ("nightly", "views")}
    try:
        views = ViewsConfig.model_validate(kept["config"]["views"])
    except (KeyError, ValidationError):
        raise ConfigError(
            f"{root.place(FOLDER)}/{kept['name']}.yaml is no config of a run: it has no `views`; "
            "nothing is deleted"
        ) from None
    return given_of({**kept, "given": named}, root).model_copy(update={"views": views})


def _is_of_a_file(root: Root, where: Partition) -> bool:
    """Whether a partition is of scores from elsewhere, which no config asks for."""
    manifest = as_it_lies(root, where)
    return manifest is not None and "scores" in manifest.settings


def _asks_for(config: RunConfig, where: Partition) -> bool:
    """Whether a run makes a partition, of whichever revision of its models.

    Which prompts a model comes with is not known here, so that of `auto` any may be asked for.
    """
    keys = where.keys
    datasets = [each for each in config.datasets if keys.get("dataset", each.name) == each.name]
    prompted = {s.template.condition for each in datasets for s in sides(each, OwnPrompts())}
    for each in datasets:  # of a task in a module of the user's any may be
        if isinstance(each.prompts, dict) and isinstance(each.source, MtebSource):
            prompted |= {template.condition for template in each.prompts.values()}
    if any(each.prompts == "auto" for each in datasets) and is_prompt(keys.get("condition", "")):
        prompted.add(keys["condition"])
    asked = {
        "dataset": {each.name for each in datasets},
        "task": {task.name for each in datasets for task in each.tasks},
        "metric": {*config.measure.own},
        "group": {config.name},
        "condition": {CLEAN, *prompted, *map(view_name, range(config.views.count))}
        | {found.name for each in datasets for found in graded_conditions(config, each)},
        "family": set(config.conditions.families()),
        "model": {name_of(each) for each in config.subjects},
    }
    return all(value in asked[key] for key, value in keys.items() if key in asked)
