"""probe (CPU tasks): labelled tasks scored for every layer, from the shards alone.

One unit is one (task, layer, norm, pooling): it reads that layer's row groups and nothing else. A
task is published when all of its layers are scored, so a killed run repeats at most the tasks that
were under way. A task that fails is named, the others are scored and stored, and the run ends
incomplete.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from jobs.cluster.console import Progress, say
from jobs.config.datasets import DatasetConfig, MtebSource
from jobs.config.run import noise_conditions
from jobs.probe.search import Ranked, Searched, group_of, search
from jobs.probe.worker import Scorer, ScoreTarget, ScoreUnit
from jobs.run import Run, partition
from jobs.tasks.types import ClassificationTask, FittedTask, Task
from operators.model.subject import Subject
from storage.manifest import Manifest
from storage.partition import CLEAN, Partition
from storage.vectors import Group, groups

Row = dict[str, Any]
_ORDER = ("layer", "norm", "pooling", "variant", "examples", "fold")


class Collected:
    """Rows of scores until their target is whole, and the first failure of each target."""

    def __init__(self, run: Run, targets: Sequence[ScoreTarget]) -> None:
        self._run, self._targets = run, targets
        self._rows: dict[int, list[Row]] = defaultdict(list)
        self._left: dict[int, int] = defaultdict(int)
        self.failed: dict[int, str] = {}

    def expect(self, units: Iterable[ScoreUnit]) -> None:
        """Count the units that are to come."""
        for unit in units:
            self._left[unit.target] += 1

    def take(self, index: int, rows: list[Row], why: str | None) -> None:
        """Take what one unit gave; a target whose last unit this was is published."""
        self.add(index, rows, why)
        self._left[index] -= 1
        if not self._left[index]:
            self.publish(index)

    def add(self, index: int, rows: list[Row], why: str | None) -> None:
        """Keep rows of a target of which more are to come."""
        self._rows[index] += rows
        if why is not None:
            self.failed.setdefault(index, why)

    def publish(self, index: int, facts: dict[str, int | float | str] | None = None) -> None:
        """Write the scores of a target that did not fail."""
        rows, target = self._rows.pop(index, []), self._targets[index]
        if index in self.failed:
            return
        rows.sort(key=lambda row: [row.get(column, 0) for column in _ORDER])
        reasons = [row["reason"] for row in rows if row["reason"]]
        known = {**(facts or {}), **({"undefined": reasons[0]} if reasons else {})}
        self._run.write(target.partition, target.settings, rows, known)


_TOGETHER = "searched_tasks"  # fact of a shard: the tasks whose scores decided what was dropped


class TasksFailedError(RuntimeError):
    """Some tasks could not be scored; what was scored is stored."""


def probe(run: Run) -> None:
    """Score every task of every subject that is not scored yet."""
    targets = score_targets(run)
    missing = _missing(run, targets, overwrite=run.overwrite)
    failed = _score_targets(run, missing) if missing else {}
    for target in targets:
        if target.partition not in failed:
            _tell(run, target)
    if not targets:
        say("  no labelled task in the config")
    if failed:
        reasons = "; ".join(f"{_named(run, where)}: {why}" for where, why in failed.items())
        raise TasksFailedError(
            f"{len(failed)} of {len(targets)} scorings failed ({reasons}); the others are stored, "
            "and the same command goes on with these"
        )


def require_scores(run: Run) -> None:
    """Raise if a task is not scored with this run's settings, so that no old score is ranked."""
    for target in _missing(run, score_targets(run), overwrite=False):
        raise FileNotFoundError(
            f"task {_named(run, target.partition)} is not scored yet: run `layerrank probe` first"
        )


def score_targets(run: Run) -> list[ScoreTarget]:
    """Return everything that is to be scored: each task, and what its curves need beside it."""
    return [
        target
        for subject, dataset in run.pairs()
        for task in dataset.tasks
        for target in _task_targets(run, subject, dataset, task)
    ]


def _task_targets(
    run: Run, subject: Subject, dataset: DatasetConfig, task: Task
) -> Iterator[ScoreTarget]:
    config = run.config
    items = run.manifests.require(partition("tasks", task, dataset))
    clean = run.embeddings(subject, dataset)
    settings = {
        "items": items.content,
        "embeddings": clean.content,
        "seed": config.probe.seed,
        "replicates": config.probe.replicates,
        **task.model_dump(),
    }
    modules = dataset.source.modules if isinstance(dataset.source, MtebSource) else ()

    def target(where: Partition, own: Row, **more: Any) -> ScoreTarget:  # noqa: ANN401
        shared = (subject, task, items, clean, more.pop("noisy", None), where)
        return ScoreTarget(*shared, {**settings, **own}, modules=modules, **more)

    ranked = {"variants": [config.rank.variant], **_ranked_group(run)}
    variants: Row = {"variants": list(config.probe.variants), "search": config.rank.search}
    if config.rank.search == "halving":
        variants["searched"] = ranked
    where = partition("probe_scores", subject, dataset, task)
    yield target(where, variants, variants=config.probe.variants)
    if isinstance(task, ClassificationTask) and config.curves.examples:
        examples = config.curves.examples
        where = partition("learning_curves", subject, dataset, task)
        own = {**ranked, "examples": list(examples)}
        yield target(where, own, variants=(config.rank.variant,), examples=examples)
    for condition in noise_conditions(config, dataset) if isinstance(task, FittedTask) else ():
        noisy = run.manifests.require(partition("embeddings", subject, dataset, condition.name))
        where = partition("probe_scores", subject, dataset, condition.name, task)
        own = {**ranked, "noisy": noisy.content}
        yield target(where, own, variants=(config.rank.variant,), noisy=noisy)


def _ranked_group(run: Run) -> dict[str, str]:
    return {"norm": run.config.rank.norm, "pooling": run.config.rank.pooling}


def _missing(run: Run, targets: Sequence[ScoreTarget], *, overwrite: bool) -> list[ScoreTarget]:
    """Return the targets that are not scored; of a search all tasks of a subject, or none.

    What a search drops depends on all of its tasks: with one more or one less, others may survive.
    """
    found = {
        each.partition: run.manifests.current(each.partition, each.settings, overwrite=overwrite)
        for each in targets
    }
    missing = {where for where, manifest in found.items() if manifest is None}
    if run.config.rank.search == "halving":
        for together in _by_subject(targets).values():
            manifests = [found[each.partition] for each in together]
            if any(
                m is None or m.receipts[0].facts.get(_TOGETHER) != _names(together)
                for m in manifests
            ):
                missing.update(each.partition for each in together)
    return [each for each in targets if each.partition in missing]


def _by_subject(targets: Iterable[ScoreTarget]) -> dict[Subject, list[ScoreTarget]]:
    """Return the tasks of each subject, which one search scores."""
    found: dict[Subject, list[ScoreTarget]] = defaultdict(list)
    for target in targets:
        if _is_protocol(target):
            found[target.subject].append(target)
    return found


def _names(targets: Iterable[ScoreTarget]) -> str:
    keys = [each.partition.keys for each in targets]
    return ", ".join(sorted(f"{each['dataset']}/{each['task']}" for each in keys))


def _is_protocol(target: ScoreTarget) -> bool:
    """Whether a target holds what is ranked, and no curve beside it."""
    return target.noisy is None and not target.examples


def _score_targets(run: Run, targets: Sequence[ScoreTarget]) -> dict[Partition, str]:
    """Score what is missing, publish each target when it is whole; return what failed and why."""
    config = run.config
    scorer = Scorer(run.root, tuple(targets), config.probe.seed, config.probe.replicates)
    collected = Collected(run, targets)
    rest = list(range(len(targets)))
    if config.rank.search == "halving":
        protocol = [index for index in rest if _is_protocol(targets[index])]
        rest = [index for index in rest if index not in protocol]
        _search(run, scorer, collected, protocol)
    units = [
        ScoreUnit(index, group, 0, targets[index].folds)
        for index in rest
        for group in scored_groups(run, targets[index])
    ]
    collected.expect(units)
    _run_units(run, scorer, units, collected.take)
    return {targets[index].partition: why for index, why in collected.failed.items()}


def scored_groups(run: Run, target: ScoreTarget) -> list[Group]:
    """Return the vectors that a target scores: all, and for curves the ranked ones."""
    found = groups(run.root, target.embeddings)
    if _is_protocol(target):
        return found
    return [each for each in found if _is_ranked(run, each)]


def _is_ranked(run: Run, group: Group) -> bool:
    return (group.norm, group.pooling) == (run.config.rank.norm, run.config.rank.pooling)


def _run_units(
    run: Run,
    scorer: Scorer,
    units: Sequence[ScoreUnit],
    take: Callable[[int, list[Row], str | None], None],
) -> None:
    if not units:
        return
    with Progress("probe", len(units), "layer scores") as progress:
        for index, rows, why in run.cluster.each("probe", units, scorer):
            take(index, rows, why)
            progress.add(1)


def _search(run: Run, scorer: Scorer, collected: Collected, protocol: Sequence[int]) -> None:
    """Score the ranked vectors by successive halving, subject by subject, the others in full.

    Scores that are stored are kept: of a search with other tasks, or beside a task that failed.
    """
    for subject, together in _by_subject(scorer.targets[index] for index in protocol).items():
        targets = {
            index: scorer.targets[index]
            for index in protocol
            if scorer.targets[index].subject == subject
        }
        stored = {index: _stored(run, target) for index, target in targets.items()}
        for index, rows in stored.items():
            collected.add(index, rows, None)
        score = partial(_scored, run, scorer, collected)
        found = [(index, group) for index, t in targets.items() for group in scored_groups(run, t)]
        ranked = sorted({group for _, group in found if _is_ranked(run, group)})
        searched = search(
            targets,
            stored,
            Ranked(ranked, run.config.rank.variant),
            score,
            run.config.probe.replicates,
        )
        known = {(index, group_of(row)) for index, rows in stored.items() for row in rows}
        score(
            [
                ScoreUnit(index, group, 0, targets[index].folds)
                for index, group in found
                if (index, group) not in known and not _is_ranked(run, group)
            ]
        )
        facts: dict[str, int | float | str] = {_TOGETHER: _names(together)}
        if searched is not None:
            facts["survivors"] = ",".join(map(str, searched.survivors))
            facts["search_share"] = round(searched.share, 4)
            _tell_search(subject, searched)
        for index, target in targets.items():
            # Withdrawn before anything in it is replaced, and not for a failure.
            if stored[index] and index not in collected.failed:
                run.manifests.withdraw(target.partition)
            collected.publish(index, facts)


def _scored(
    run: Run, scorer: Scorer, collected: Collected, units: Sequence[ScoreUnit]
) -> list[tuple[int, list[Row]]]:
    """Score units of targets of which more are to come, and return their rows."""
    found: list[tuple[int, list[Row]]] = []

    def take(index: int, rows: list[Row], why: str | None) -> None:
        collected.add(index, rows, why)
        found.append((index, rows))

    _run_units(run, scorer, units, take)
    return found


def _stored(run: Run, target: ScoreTarget) -> list[Row]:
    present = run.manifests.current(target.partition, target.settings, overwrite=run.overwrite)
    return [] if present is None else run.rows(target.partition)


def _tell_search(subject: Subject, searched: Searched) -> None:
    say(
        f"  {subject}: layers {', '.join(map(str, searched.survivors))} scored in full, "
        f"{100 * searched.share:.0f} % of the work of a full sweep"
    )


def _tell(run: Run, target: ScoreTarget) -> None:
    manifest: Manifest = run.manifests.require(target.partition)
    reason = manifest.receipts[0].facts.get("undefined")
    outcome = f"undefined: {reason}" if reason else f"{manifest.rows} scores"
    say(f"  {_named(run, target.partition)} ({target.task.type}): {outcome}")


def _named(run: Run, where: Partition) -> str:
    """Name what is scored, with the dataset, condition or model where there are several."""
    keys = where.keys
    parts = [keys["task"]]
    if where.table == "learning_curves":
        parts.append("learning curve")
    if keys["condition"] != CLEAN:
        parts.append(keys["condition"])
    if len(run.config.datasets) > 1:
        parts.append(keys["dataset"])
    if len(run.subjects) > 1:
        parts.append(f"{keys['model']} at {keys['revision']}")
    return ", ".join(parts)
