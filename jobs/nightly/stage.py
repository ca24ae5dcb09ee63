"""nightly: the checkpoints that have no ranking yet, each compared with the one before it.

One at a time, in the order of their steps, through the stages of any run: partitions are appended,
the trend page is rebuilt, and a checkpoint that breaks a rule leaves an alert. The ranking of a
checkpoint is written when it has been judged, so one that has a ranking needs no second look.
A checkpoint that cannot be read or scored is named and tried again the next time.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field, replace
from functools import partial

from layerrank.jobs.cluster.console import say
from layerrank.jobs.cluster.errors import explain
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.stored import record
from layerrank.jobs.extract.stage import extract
from layerrank.jobs.measure.stage import measure
from layerrank.jobs.nightly import judge
from layerrank.jobs.nightly.judge import Alert, before, in_order, ranked, without_ranking
from layerrank.jobs.nightly.page import address, is_stale, publish
from layerrank.jobs.prepare.stage import prepare
from layerrank.jobs.probe.stage import probe, require_scores
from layerrank.jobs.rank.ranking import Checkpoint, checkpoint_of
from layerrank.jobs.rank.stage import rank_subject, write_subject
from layerrank.jobs.run import Run
from layerrank.jobs.subjects import resolve
from layerrank.jobs.upkeep import healing
from layerrank.jobs.words import counted, points, signed
from layerrank.operators.model.subject import Subject
from layerrank.storage.lock import LeaseLostError, Lock, held
from layerrank.storage.partition import TableName, partitions
from layerrank.storage.shards import DamagedError

_STAGES = (extract, measure, probe)


@dataclass
class Night:
    """What a night did: checkpoint -> why it failed, and the alerts."""

    failed: dict[Subject, str] = field(default_factory=dict)
    regressed: list[Alert] = field(default_factory=list)


def nightly(run: Run, *, verbose: bool = False) -> Night:
    """Evaluate, publish and judge every checkpoint without a ranking, then rebuild the trend page.

    LockHeldError if another nightly has the root; LeaseLostError, and nothing more is published, if
    another one has taken it over.
    """
    night = Night()
    with held(Lock(run.root, "nightly", run.config.nightly.lease_seconds)) as lock:
        run.seen.manifests.clear()  # another night may have ended before this one had the lock
        found = resolve(run.config.subjects, run.config.storage, keep_gone=True)
        history, lost = ranked(run, found)
        new = without_ranking(run, found)
        say(f"{counted(len(found), 'checkpoint')}, {len(new)} without a ranking")
        for subject, why in lost.items():
            night.failed[subject] = f"{why}; its checkpoint is not here to make it again"
            say(f"  {subject}: {night.failed[subject]}: `layerrank repair` removes what is left")
        judge.post_waiting(run, history)
        if new:
            record(run.config, run.given or run.config, run.root)
            healing(run, partial(prepare, run))
        for number, subject in enumerate(new, 1):
            say(f"{number}/{len(new)} {subject}")
            run.cluster.forget()
            try:
                one = replace(run, chosen=(subject,))
                history = healing(one, partial(_evaluate, one, history, lock, night))
            except (LeaseLostError, ConfigError):  # of the whole night
                raise
            except Exception as error:  # noqa: BLE001  (of one checkpoint: the others go on)
                if verbose:
                    traceback.print_exception(error)
                run.cluster.abandon()
                night.failed[subject] = explain(error)[0]
                say(f"  failed, and tried again the next time: {night.failed[subject]}")
        lock.check()
        if new or is_stale(run, history):
            publish(run, history, night.failed)
        _forget(run, history)
    if not new and not night.failed:
        say("nothing new")
        return night
    failed = night.failed
    done = sum(subject not in failed for subject in new)
    say(f"{counted(done, 'checkpoint')} ranked, {len(failed)} failed")
    for subject, reason in failed.items():
        say(f"  failed: {subject}: {reason}")
    for alert in night.regressed:
        rules = dict.fromkeys(each.rule for each in alert.rules)
        say(f"  alert: {alert.model} at {alert.revision}: {', '.join(rules)}")
    return night


def _evaluate(run: Run, history: list[Checkpoint], lock: Lock, night: Night) -> list[Checkpoint]:
    """Take one checkpoint through the stages, judge it, and return the history with it."""
    (subject,) = run.subjects
    run.require_readable()
    for stage in _STAGES:
        lock.check()
        stage(run)
    require_scores(run)
    ranking = rank_subject(run, subject)
    new = replace(checkpoint_of(ranking), tasks={})  # as every checkpoint of the history is
    say(f"  {ranking.sentence}")
    lock.check()
    _judge(run, before(history, new.model, new.revision), new, night)
    write_subject(run, ranking)
    others = [each for each in history if (each.model, each.revision) != (new.model, new.revision)]
    return in_order([*others, new])


def _forget(run: Run, history: list[Checkpoint]) -> None:
    """Remove the vectors and states of all but the latest checkpoints, if the config says so."""
    latest = run.config.keep.nights
    if latest is None:
        return
    of_model: dict[str, list[str]] = {}
    for each in history:
        of_model.setdefault(each.model, []).append(each.revision)
    old = {(model, each) for model, all_ in of_model.items() for each in all_[:-latest]}
    names = {dataset.name for dataset in run.config.datasets}
    tables: tuple[TableName, ...] = ("embeddings", "tokens")
    for where in (each for table in tables for each in partitions(run.root, table)):
        keys = where.keys
        ours = (keys["model"], keys["revision"]) in old and keys["dataset"] in names
        if ours and run.root.sizes(where.path) and run.manifests.load(where):
            run.manifests.remove(where, "keep.nights")


def _judge(run: Run, earlier: list[Checkpoint], new: Checkpoint, night: Night) -> None:
    key = judge.place(run.config.name, new.model, new.revision)
    if not earlier:
        say("  there is no earlier checkpoint to compare with")
        run.root.delete(key)
        return
    previous = earlier[-1]
    before_it = previous.recommended
    try:
        change = judge.change_at(run, previous, new)
    except (DamagedError, FileNotFoundError) as error:
        if isinstance(error, DamagedError) and new.revision in error.partition.values:
            raise
        night.failed[Subject(previous.model, previous.revision, previous.model)] = str(error)
        say(f"  nothing is compared with {previous.revision}: {error}")
        run.root.delete(key)
        return
    compared = "no score to compare."
    if change is not None:
        now, since = points(change.now), signed(change.change)
        compared = f"layer {before_it} scores {now} points, {since} since then."
    layers = f"layer {new.recommended} after layer {before_it} at {previous.revision}"
    say(f"  Recommended: {layers}; {compared}")
    broken = judge.judge(run, earlier, new)
    if not broken:
        run.root.delete(key)
        return
    says = " ".join(each.says for each in broken)
    text = f"{new.model} at {new.revision}, compared with {previous.revision}: {says}"
    names = run.config.name, new.model, new.revision, previous.revision
    alert = Alert(*names, text, broken, address(run))
    night.regressed.append(alert)
    for each in broken:
        say(f"  alert, {each.rule}: {each.says}")
    judge.publish(run, alert)
