"""probe (CPU tasks): labelled tasks scored for every layer, from the shards alone.

One unit is one (task, layer, norm, pooling): it reads that layer's row groups and nothing else. A
task is published when all of its layers are scored, so a killed run repeats at most the tasks that
were under way. A task that fails is named, the others are scored and stored, and the run ends
incomplete.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, get_args

import numpy as np

from layerrank.jobs.cluster.console import Progress, say
from layerrank.jobs.config.candidates import other_vectors, ranked_vectors
from layerrank.jobs.config.datasets import PROMPTS, MtebSource, OwnTask, Task
from layerrank.jobs.config.run import RunConfig, learning_examples, noise_conditions
from layerrank.jobs.own import Own
from layerrank.jobs.probe.candidates import Rungs, Score, fitted
from layerrank.jobs.probe.worker import Row, Scorer, ScoreTarget, ScoreUnit
from layerrank.jobs.run import Run, partition
from layerrank.operators.model.subject import Subject, Transform
from layerrank.operators.probes.transform import FITTED
from layerrank.operators.ranking.ladder import Candidate, climb
from layerrank.operators.ranking.search import Rule, State, replay
from layerrank.storage.layers import Group, groups
from layerrank.storage.manifest import Manifest
from layerrank.storage.partition import CLEAN, Partition
from layerrank.storage.shards import Facts

_ORDER = ("layer", "norm", "pooling", "variant", "examples", "fold")
# Facts of a shard: the tasks whose scores decided what was dropped, and the content of the fits.
_TOGETHER, _FITS = "searched_tasks", "transforms"


class TasksFailedError(RuntimeError):
    """Some tasks could not be scored; what was scored is stored."""


def probe(run: Run) -> None:
    """Score every task of every subject that is not scored yet, then their candidates."""
    fits = _fits(run, now=True)
    targets = score_targets(run, fits)
    failed = _scored(run, targets, _missing(run, targets, overwrite=run.overwrite))
    whole = [each for each in run.subjects if not any(of == each for of, _ in failed)]
    candidates = candidate_targets(run, targets, fits, whole)
    absent = _missing(run, candidates, overwrite=run.overwrite)
    failed |= _scored(run, candidates, absent)
    if not targets:
        say("  no labelled task in the config")
    if failed:
        reasons = "; ".join(f"{_named(run, where)}: {why}" for (_, where), why in failed.items())
        raise TasksFailedError(
            f"{len(failed)} of {len(targets) + len(candidates)} scorings failed ({reasons}); the "
            "others are stored, and the same command goes on with these"
        )


def _scored(
    run: Run, targets: Sequence[ScoreTarget], missing: Sequence[ScoreTarget]
) -> dict[tuple[Subject, Partition], str]:
    """Score what is missing of some targets, and say what is there; return why which failed."""
    probing, plain = run.config.probe, ranked_vectors(run.config)
    scores = _Scores(run, Scorer(run.root, missing, plain, probing.seed, probing.replicates))
    searches = _searches(run, missing)
    for together in searches:
        search_of = _climb if together[min(together)].of_candidates else _search
        search_of(scores, together)
    searched = {index for together in searches for index in together}
    units = [
        ScoreUnit(index, group, 0, target.task.repeats, transforms)
        for index, target in enumerate(missing)
        if index not in searched
        for group, transforms in scores.wanted(target).items()
    ]
    left = Counter(unit.target for unit in units)
    for unit, _ in scores.of(units):
        left[unit.target] -= 1
        if not left[unit.target]:
            scores.publish(unit.target)
    failed = {
        (missing[index].subject, missing[index].partition): why
        for index, why in scores.failed.items()
    }
    for target in targets:
        if (target.subject, target.partition) not in failed:
            manifest = run.manifests.require(target.partition)
            reason = manifest.receipts[0].facts.get("undefined")
            outcome = f"undefined: {reason}" if reason else f"{manifest.rows} scores"
            say(f"  {_named(run, target.partition)} ({target.task.type}): {outcome}")
    return failed


def require_scores(run: Run) -> None:
    """Raise if a task is not scored with this run's settings, so that no old score is ranked."""
    fits = _fits(run, now=False)
    targets = score_targets(run, fits)
    targets += candidate_targets(run, targets, fits, run.subjects)
    for target in _missing(run, targets, overwrite=False):
        raise FileNotFoundError(
            f"task {_named(run, target.partition)} is not scored yet: run `layerrank probe` first"
        )


def _fits(run: Run, *, now: bool) -> dict[Subject, Manifest | None]:
    """Return the transforms of every subject, where there is a task to score them on."""
    labelled = any(dataset.tasks for dataset in run.config.datasets)
    return {each: fitted(run, each, now=now) for each in run.subjects} if labelled else {}


def score_targets(run: Run, fits: Mapping[Subject, Manifest | None]) -> list[ScoreTarget]:
    """Return everything that is to be scored: each task, and what its curves need beside it."""
    config, found = run.config, []
    vectors = config.rank.settings(include={"norm", "pooling"})
    ranked = {"variants": [config.rank.variant], **vectors}
    searched = {"searched": ranked} if config.rank.search == "halving" else {}
    asked = {"variants": list(config.probe.variants), "search": config.rank.search, **searched}
    for subject, dataset in run.pairs():
        modules = dataset.source.modules if isinstance(dataset.source, MtebSource) else ()
        for task in dataset.tasks:
            items = run.manifests.require(partition("tasks", task, dataset))
            clean = run.embeddings(subject, dataset)
            prompted = {
                side.name: run.manifests.require(
                    partition("embeddings", subject, dataset, side.template.condition)
                )
                for side in run.sides(subject, dataset)
                if side.task.name == task.name
            }
            contents = {name: each.content for name, each in prompted.items()}
            scorer = run.own_task(task)
            settings = {
                "items": items.content,
                "embeddings": clean.content,
                **config.probe.settings(include={"seed", "replicates"}),
                **_of_task(task, scorer),
                **({"prompted": contents} if prompted else {}),
            }
            where = partition("probe_scores", subject, dataset, task)
            made_of = partial(ScoreTarget, subject, task, items, clean)
            of_task = partial(made_of, modules=modules, prompted=prompted, own=scorer)
            of_ranked = fits[subject] if config.rank.variant in FITTED else None
            found.append(of_task(where, settings | asked, fits=of_ranked))
            if examples := learning_examples(config, task):
                where = partition("learning_curves", subject, dataset, task)
                own = {**settings, **ranked, "examples": list(examples)}
                found.append(of_task(where, own, examples=examples, fits=of_ranked))
            for condition in noise_conditions(config, [task]):
                tested = partition("embeddings", subject, dataset, condition.name)
                noisy = run.manifests.require(tested)
                where = partition("probe_scores", subject, dataset, condition.name, task)
                own = {**settings, **ranked, "noisy": noisy.content}
                found.append(of_task(where, own, noisy=noisy, fits=of_ranked))
    return found


def own_as_scored(run: Run) -> dict[str, Own]:
    """Return the classes of tasks of the user's own as the scores know them, without their source.

    Of one that nothing is scored with there is no digest.
    """
    found = dict[str, Own]()
    for subject, dataset in run.pairs():
        for task in (each for each in dataset.tasks if isinstance(each, OwnTask)):
            scores = run.manifests.load(partition("probe_scores", subject, dataset, task))
            digest = scores.settings.get("own", {}).get("source", "") if scores else ""
            if digest or task.type not in found:
                found[task.type] = Own(task.type, digest)
    return found


def _of_task(task: Task, own: Own | None) -> dict[str, Any]:
    """Return what scores depend on of a task's block, and of its class if it is the user's own.

    Then it is under one name, whatever names the user chose.
    """
    keys = task.settings(exclude=PROMPTS)
    return {"own": {**keys, "source": own.digest}} if own else keys


def candidate_targets(
    run: Run,
    targets: Sequence[ScoreTarget],
    fits: Mapping[Subject, Manifest | None],
    subjects: Sequence[Subject],
) -> list[ScoreTarget]:
    """Return what is to be scored of candidates, beside the targets of the tasks of some subjects.

    They are a run's own: what is fitted and what a search drops depends on all of its tasks.
    """
    config, found = run.config, []
    if not (config.candidates and other_vectors(config)):
        return []
    asked = {
        "candidates": config.candidates.settings(exclude={"sample", "texts"}),
        "ranked": [*ranked_vectors(config)],
    }
    for each in (each for each in targets if each.is_protocol and each.subject in subjects):
        keys = each.partition.keys
        where = partition("candidate_scores", each.subject, keys["dataset"], keys["task"], config)
        settings = {**each.settings, **asked}
        found.append(replace(each, partition=where, settings=settings, fits=fits[each.subject]))
    return found


def _missing(run: Run, targets: Sequence[ScoreTarget], *, overwrite: bool) -> list[ScoreTarget]:
    """Return the targets that are not scored; of a search all tasks of a subject, or none.

    What a search drops depends on all of its tasks: with one more or one less, others may survive.
    Scores of transforms that were fitted on other texts are not those that are wanted.
    """
    found = {
        each.partition: run.manifests.current(each.partition, each.settings, overwrite=overwrite)
        for each in targets
    }
    missing = {where for where, manifest in found.items() if manifest is None}
    for each in targets:
        manifest = found[each.partition]
        if manifest and manifest.receipts[0].facts.get(_FITS, "") != _fits_fact(each):
            missing.add(each.partition)
    for together in _searches(run, targets):
        names = _names(together.values())
        for manifest in (found[each.partition] for each in together.values()):
            if manifest is None or manifest.receipts[0].facts.get(_TOGETHER) != names:
                missing.update(each.partition for each in together.values())
    return [each for each in targets if each.partition in missing]


def _searches(run: Run, targets: Iterable[ScoreTarget]) -> list[dict[int, ScoreTarget]]:
    """Return the tasks that one search scores, by their index: a subject's, or its candidates'."""
    found: dict[tuple[Subject, bool], dict[int, ScoreTarget]] = defaultdict(dict)
    for index, target in enumerate(targets):
        halving = run.config.rank.search == "halving"
        searches = climbs(run.config) if target.of_candidates else halving
        if searches and target.is_protocol:
            found[target.subject, target.of_candidates][index] = target
    return [*found.values()]


def climbs(config: RunConfig) -> bool:
    """Whether candidates are searched rung by rung."""
    return config.candidates is not None and config.candidates.search == "halving"


def _fits_fact(target: ScoreTarget) -> str:
    return target.fits.content if target.fits else ""


def _names(targets: Iterable[ScoreTarget]) -> str:
    keys = [each.partition.keys for each in targets]
    return ", ".join(sorted(f"{each['dataset']}/{each['task']}" for each in keys))


@dataclass
class _Scores:
    """Rows of scores until their target is whole, and the first failure of each target."""

    run: Run
    scorer: Scorer
    rows: defaultdict[int, list[Row]] = field(default_factory=lambda: defaultdict(list))
    failed: dict[int, str] = field(default_factory=dict)

    def is_ranked(self, group: Group) -> bool:
        """Whether a group holds the vectors that are ranked."""
        ranking = self.run.config.rank
        return (group.norm, group.pooling) == (ranking.norm, ranking.pooling)

    def wanted(self, target: ScoreTarget) -> dict[Group, tuple[Transform, ...]]:
        """Return the vectors that a target scores, with their transforms.

        Of curves the ranked ones; of a task what is extracted, in every variant; of its candidates
        the others that may be recommended.
        """
        config, plain = self.run.config, ranked_vectors(self.run.config)
        found = groups(self.run.root, target.embeddings)
        if target.of_candidates:
            fitted = target.fits is not None
            others = [v for v in other_vectors(config) if fitted or v.transform not in FITTED]
            asked = {
                each: tuple(v.transform for v in others if v[:2] == (each.norm, each.pooling))
                for each in found
            }
            return {each: hows for each, hows in asked.items() if hows}
        if not target.is_protocol:
            return {each: (plain.transform,) for each in found if self.is_ranked(each)}
        extract, variants = config.extract, config.probe.variants
        return {
            each: tuple(dict.fromkeys([*variants, plain.transform]))
            if self.is_ranked(each)
            else variants
            for each in found  # of which some are there for candidates alone
            if each.norm in extract.norms and each.pooling in extract.poolings
        }

    def of(self, units: Sequence[ScoreUnit]) -> Iterator[tuple[ScoreUnit, list[Row]]]:
        """Score units, keep what that gives of all items, and yield each with its rows."""
        if not units:
            return
        total, counted = sum(len(unit.transforms) for unit in units), self.run.cluster.counted
        with Progress("probe", total, "layer scores", counted=counted) as progress:
            for unit, rows, why in self.run.cluster.each("probe", units, self.scorer):
                if unit.share == 1:
                    self.rows[unit.target] += rows
                if why is not None:
                    self.failed.setdefault(unit.target, why)
                progress.add(len(unit.transforms))
                yield unit, rows

    def publish(self, index: int, facts: Facts | None = None) -> None:
        """Write the scores of a target that did not fail."""
        rows, target = self.rows.pop(index, []), self.scorer.targets[index]
        if index in self.failed:
            return
        rows.sort(key=lambda row: [row.get(column, 0) for column in _ORDER])
        reasons = [row["reason"] for row in rows if row["reason"]]
        known = {**(facts or {}), **({"undefined": reasons[0]} if reasons else {})}
        if fits := _fits_fact(target):
            known[_FITS] = fits
        self.run.write(target.partition, target.settings, rows, known)


def _stored(scores: _Scores, targets: Mapping[int, ScoreTarget]) -> dict[int, list[Row]]:
    """Return what is stored of a search's tasks, which is not scored again."""
    run, stored = scores.run, dict[int, list[Row]]()
    for index, target in targets.items():
        present = run.manifests.current(target.partition, target.settings, overwrite=run.overwrite)
        stored[index] = [] if present is None else run.rows(target.partition)
        if present and present.receipts[0].facts.get(_FITS, "") != _fits_fact(target):
            stored[index] = [row for row in stored[index] if row["variant"] not in FITTED]
    return stored


def _publish(scores: _Scores, stored: Mapping[int, list[Row]], facts: Facts) -> None:
    for index, rows in stored.items():
        # Withdrawn before anything in it is replaced, and not for a failure.
        if rows and index not in scores.failed:
            scores.run.manifests.withdraw(scores.scorer.targets[index].partition)
        scores.publish(index, facts)


def _search(scores: _Scores, targets: dict[int, ScoreTarget]) -> None:
    """Score the ranked vectors of a subject by successive halving, the others in full.

    Scores that are stored are kept: of a search with other tasks, or beside a task that failed.
    """
    run, stored = scores.run, _stored(scores, targets)
    for index in targets:
        scores.rows[index] += stored[index]
    found = [
        (index, group, hows)
        for index, each in targets.items()
        for group, hows in scores.wanted(each).items()
    ]
    ranked = sorted({group for _, group, _ in found if scores.is_ranked(group)})
    variant, replicates = run.config.rank.variant, run.config.probe.replicates
    of_ranked = {how for _, group, hows in found if scores.is_ranked(group) for how in hows}
    also = tuple(how for how in get_args(Transform) if how in of_ranked - {variant})
    searched = search(targets, stored, ranked, variant, scores.of, replicates, also=also)
    known = {(index, _group(row)) for index, rows in stored.items() for row in rows}
    others = [
        ScoreUnit(index, group, 0, targets[index].task.repeats, hows)
        for index, group, hows in found
        if (index, group) not in known and not scores.is_ranked(group)
    ]
    deque(scores.of(others), maxlen=0)  # all of them, which stay in `scores`
    facts: dict[str, int | float | str] = {_TOGETHER: _names(targets.values())}
    if searched is not None:
        survivors, share = [str(layer) for layer in searched[0]], searched[1]
        facts |= {"survivors": ",".join(survivors), "search_share": round(share, 4)}
        subject = next(iter(targets.values())).subject
        say(
            f"  {subject}: layers {', '.join(survivors)} scored in full, "
            f"{100 * share:.0f} % of the work of a full sweep"
        )
    _publish(scores, stored, facts)


def _climb(scores: _Scores, targets: dict[int, ScoreTarget]) -> None:
    """Score the candidates of a subject rung by rung, beginning around the layer that is best.

    Scores that are stored are kept as far as this search goes.
    """
    run, stored, first = scores.run, _stored(scores, targets), targets[min(targets)]
    wanted = scores.wanted(first)
    layers = sorted({group.layer for group in wanted})
    there = {(g.norm, g.pooling, how) for g, hows in wanted.items() for how in hows}
    others = [each for each in other_vectors(run.config) if each in there]
    facts: dict[str, int | float | str] = {_TOGETHER: _names(targets.values())}
    rungs = Rungs(targets, others, scores.of)
    for index, rows in stored.items():
        rungs.keep(index, rows)
    if others:
        start = _best_layer(run, targets.values())
        full = climb(layers, len(others), start, rungs.look, rungs.ladder(len(layers)))
        every = [Candidate(layer, v) for layer in layers for v in range(len(others))]
        share = rungs.share(every)
        facts["candidates_share"] = round(share, 4)
        say(
            f"  {first.subject}: {len(full)} of {len(every)} candidates scored in full beside what "
            f"every layer is, {100 * share:.0f} % of the work of a full sweep"
        )
    for index, rows in stored.items():
        scores.rows[index] += [row for row in rows if rungs.has_reached(index, row)]
    _publish(scores, stored, facts)


def _best_layer(run: Run, targets: Iterable[ScoreTarget]) -> int:
    """Return the layer with the highest mean score over tasks, of the vectors as ranked."""
    of_tasks: dict[int, list[float]] = defaultdict(list)
    for target in targets:
        keys, values = target.partition.keys, defaultdict[int, list[float]](list)
        where = partition("probe_scores", target.subject, keys["dataset"], keys["task"])
        for row in run.ranked_rows(where):
            values[row["layer"]].append(row["value"])
        for layer, of_layer in values.items():
            of_tasks[layer].append(float(np.mean(of_layer)))
    most = max(map(len, of_tasks.values()))
    means = {layer: sum(of) / most for layer, of in of_tasks.items() if len(of) == most}
    # A layer without a score in some task (NaN) is none to begin with.
    return min(means, key=lambda layer: (np.isnan(means[layer]), -means[layer], layer))


def search(
    targets: Mapping[int, ScoreTarget],
    stored: Mapping[int, Sequence[Row]],
    ranked: Sequence[Group],
    variant: Transform,
    score: Score,
    replicates: int,
    also: tuple[Transform, ...] = (),
) -> tuple[list[int], float] | None:
    """Score the `ranked` vectors of a subject round by round, until no layer is left to compare.

    `targets` are the tasks of the subject by index, `stored` the rows that they have already, and
    `score` runs units and returns their rows, none for a unit that failed; what is scored of a
    layer is scored of its other variants `also`. As in a full sweep, a task that fails or that no
    layer has a score of does not count. Return the layers that were scored in full, and the share
    of a full sweep's work that was done; None if no task is left.
    """

    def compared(rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if row["variant"] == variant and _group(row) in ranked]

    rows = {index: compared(stored.get(index, ())) for index in targets}
    group = {each.layer: each for each in ranked}
    failed: set[int] = set()
    rule = Rule()
    while counting := [
        index
        for index in targets
        if index not in failed
        and not (rows[index] and all(math.isnan(row["value"]) for row in rows[index]))
    ]:
        state = _state({index: targets[index] for index in counting}, rows, ranked, replicates)
        pending = replay(state, rule)[-1]
        if not pending.missing:
            return pending.layers, state.share
        units = []
        for cells in pending.missing:
            target = targets[counting[cells.task]]
            folds = cells.fold_to if target.cells > 1 else target.task.repeats
            place = counting[cells.task], group[cells.layer]
            units.append(ScoreUnit(*place, cells.fold_from, folds, (variant, *also)))
        for unit, scores in score(units):
            rows[unit.target] += compared(scores)
            if not scores:
                failed.add(unit.target)
    return None


def _group(row: Row) -> Group:
    return Group(row["layer"], row["norm"], row["pooling"])


def _state(
    targets: Mapping[int, ScoreTarget],
    rows: Mapping[int, Sequence[Row]],
    ranked: Sequence[Group],
    replicates: int,
) -> State:
    """Return what is scored of the targets; a score that is undefined stands for all its folds."""
    layers = [group.layer for group in ranked]
    n_folds = tuple(target.cells for target in targets.values())
    shape = (len(layers), len(targets), max(n_folds))
    scores_LTF, done_LTF = np.full(shape, np.nan), np.zeros(shape, dtype=np.bool_)
    replicates_LTR = np.full((*shape[:2], replicates), np.nan)
    for column, index in enumerate(targets):
        for place, layer in enumerate(layers):
            mine = [row for row in rows[index] if row["layer"] == layer]
            if mine and n_folds[column] == 1:
                drawn = mine[-1]["replicates"] or ()
                scores_LTF[place, column, 0] = np.mean([row["value"] for row in mine])
                done_LTF[place, column, 0] = True
                replicates_LTR[place, column, : len(drawn)] = drawn
                continue
            for row in mine:
                folds = slice(None) if row["reason"] else row["fold"]
                scores_LTF[place, column, folds] = row["value"]
                done_LTF[place, column, folds] = True
    return State(tuple(layers), n_folds, scores_LTF, done_LTF, replicates_LTR)


def _named(run: Run, where: Partition) -> str:
    """Name what is scored, with the dataset, condition or model where there are several."""
    keys = where.keys
    parts = [keys["task"]]
    if where.table == "learning_curves":
        parts.append("learning curve")
    if where.table == "candidate_scores":
        parts.append("candidates")
    if keys["condition"] != CLEAN:
        parts.append(keys["condition"])
    if len(run.config.datasets) > 1:
        parts.append(keys["dataset"])
    if len(run.subjects) > 1:
        parts.append(f"{keys['model']} at {keys['revision']}")
    return ", ".join(parts)
