"""Which rules a checkpoint breaks against those that a root has ranked, and the alert it leaves.

What counts of a checkpoint are its tables: its ranking and metrics, in the order of their steps.
An alert is a JSON file and, where there is a webhook, a POST.
"""

from __future__ import annotations

import json
import math
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np

from layerrank.jobs import words
from layerrank.jobs.cluster.console import say
from layerrank.jobs.config.settings import WEB, NightlyConfig
from layerrank.jobs.rank.ranking import Checkpoint
from layerrank.jobs.rank.stage import main_metrics, ranked_tasks, ranking_settings
from layerrank.jobs.report.facts import title
from layerrank.jobs.run import Run, partition
from layerrank.operators.analysis.regression import ScoreChange, has_moved, jumps, score_change
from layerrank.operators.model.subject import Subject
from layerrank.operators.ranking.scores import TaskScores
from layerrank.storage.manifest import digest_of
from layerrank.storage.partition import ALERTS, Partition, all_partitions, by_step, one_name
from layerrank.storage.root import Root
from layerrank.storage.shards import DamagedError

SCHEMA_VERSION = 1
VARIABLE = "LAYERRANK_WEBHOOK"
Answer = Literal["taken", "refused", "silent"]  # of a webhook; the last if there is none
_WAITING = ".waiting"  # after the key of an alert
_READERS = 16
_MOST_NAMED = 8  # layers in a sentence


@dataclass(frozen=True)
class Broken:
    """A rule that a checkpoint broke: its name in the config, a sentence, and the numbers.

    Scores and their changes are 0..1 in `numbers`, and in points in the sentence.
    """

    rule: str
    says: str
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Alert:
    """The rules that a checkpoint broke against the previous one, and where to look.

    `text` is the whole in a few sentences, under the key that chat services show.
    """

    run: str
    model: str
    revision: str
    previous: str
    text: str
    rules: list[Broken]
    trend: str

    def to_json(self) -> bytes:
        """Return the alert as JSON."""
        content = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        return (json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def without_ranking(run: Run, subjects: Iterable[Subject]) -> list[Subject]:
    """Return the subjects that this run has not ranked yet, in the order of their steps.

    A ranking made with other settings is a SettingsConflictError that names them, as its scores
    cannot be compared with new ones; if the run may overwrite, it counts as not made.
    """
    settings = ranking_settings(run.config)
    ordered = sorted(subjects, key=lambda each: (each.name, by_step(each.revision)))
    stands = partial(run.manifests.stands, settings=settings, overwrite=run.overwrite)
    return [each for each in ordered if stands(partition("ranking", each, run.config)) is None]


def ranked(run: Run, here: Iterable[Subject]) -> tuple[list[Checkpoint], dict[Subject, str]]:
    """Return every checkpoint that this run has ranked with its settings, by model and step.

    They are those of the root's tables: a checkpoint counts when its files are long gone. One whose
    tables are damaged loses its ranking, and so is made again if it is `here`; the others are
    returned with what is wrong.
    """
    digest = digest_of(ranking_settings(run.config))
    known = {(each.name, each.revision): each for each in here}

    def read(where: Partition) -> Checkpoint | tuple[Subject, str] | None:
        of = where.keys["model"], where.keys["revision"]
        gone = Subject(of[0], of[1], of[0])
        manifest = run.manifests.load(where)
        if manifest is None:
            torn = "its ranking has no manifest that can be read"
            return None if of in known else (gone, torn)
        if manifest.digest != digest:
            return None
        try:
            rows = sorted(run.rows(where), key=itemgetter("layer"))
            return Checkpoint(*of, rows, main_metrics(run, *of))
        except DamagedError as error:
            if of not in known:
                run.seen.manifests.pop(error.partition)  # not this night's to look after
                return gone, str(error)
            run.manifests.discard(error)
            run.manifests.withdraw(where)
            return None

    found = all_partitions(run.root, "ranking")
    own = [each for each in found if each.keys["group"] == run.config.name]
    with ThreadPoolExecutor(_READERS) as pool:
        read_now = [*filter(None, pool.map(read, own))]
    lost: dict[Subject, str] = dict(each for each in read_now if isinstance(each, tuple))
    return in_order(each for each in read_now if isinstance(each, Checkpoint)), lost


def in_order(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Return checkpoints by model, then by step."""
    return sorted(checkpoints, key=lambda each: (each.model, by_step(each.revision)))


def before(checkpoints: Sequence[Checkpoint], model: str, revision: str) -> list[Checkpoint]:
    """Return the checkpoints of a model that come before one of its revisions, in order."""
    last = by_step(revision)
    return [each for each in checkpoints if each.model == model and by_step(each.revision) < last]


def judge(run: Run, earlier: Sequence[Checkpoint], new: Checkpoint) -> list[Broken]:
    """Return the rules that a checkpoint breaks against the last of the earlier ones."""
    config, level, previous = run.config.nightly, run.config.rank.level, earlier[-1]
    layer, broken = previous.recommended, list[Broken]()
    change = change_at(run, previous, new)
    limit = config.score_drop
    if limit is not None and change is not None and change.fell_by_more_than(limit):
        row = previous.row(layer)
        others = row.get("plain_score") not in (None, row["score"])
        how = " with its vectors as ranked" if others else ""
        says = (
            f"Layer {layer}, which {previous.revision} recommended, scores{how} "
            f"{words.points(change.now)} points, {words.points(-change.change)} less than there "
            f"({100 * level:g} % interval {words.span(-change.high, -change.low)}; "
            f"limit {words.points(limit)})."
        )
        numbers = {"layer": layer, **asdict(change), "limit": limit, "level": level}
        broken.append(Broken("score_drop", says, numbers))
    moved = config.layer_moved
    if moved is not None and has_moved(layer, new.recommended, moved):
        says = f"The recommended layer moved from {layer} to {new.recommended} (limit {moved})."
        numbers = {"before": layer, "now": new.recommended, "limit": moved}
        broken.append(Broken("layer_moved", says, numbers))
    limit = config.metric_jump
    if limit is None:
        return broken
    for (dataset, metric), values in new.metrics.items():
        layers = sorted(values)
        of_each = [each.metrics.get((dataset, metric), {}) for each in (*earlier, new)]
        table_CL = np.array([[found.get(at, math.nan) for at in layers] for found in of_each])
        found = [
            replace(jump, layer=layers[jump.layer])
            for jump in jumps(table_CL, limit=limit, fewest=config.changes)
        ]
        if not found:
            continue
        most = max(found, key=lambda jump: jump.deviations)
        where = f"layer {most.layer}"
        if len(found) > 1:
            named = ", ".join(str(jump.layer) for jump in found[:_MOST_NAMED])
            rest = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
            where = f"layers {named}{rest}, most in {where}:"
        says = (
            f"{title(metric, run.config.views.count)} on {dataset} jumped in {where} from "
            f"{words.number(most.before)} to {words.number(most.now)}, {most.deviations:,.0f} "
            f"median absolute deviations from its usual change (limit {limit:g})."
        )
        numbers = {"dataset": dataset, "metric": metric}
        numbers |= {"layers": [asdict(jump) for jump in found], "limit": limit}
        broken.append(Broken("metric_jump", says, numbers))
    return broken


def change_at(run: Run, previous: Checkpoint, new: Checkpoint) -> ScoreChange | None:
    """Return how the score of the layer changed that the previous checkpoint's ranking recommended.

    None if the layer has no score in one of them.
    """
    layer, config = previous.recommended, run.config
    if layer not in new.layers:
        return None
    before, now = (_scores_at(run, each, layer) for each in (previous, new))
    drawn = {"seed": config.seed, "draws": config.rank.draws}
    return score_change(before, now, **drawn, level=config.rank.level)


def _scores_at(run: Run, checkpoint: Checkpoint, layer: int) -> list[TaskScores]:
    subject = Subject(checkpoint.model, checkpoint.revision, checkpoint.model)
    row = [checkpoint.layers.index(layer)]
    return [
        replace(each, score_L=each.score_L[row], resampled_LR=each.resampled_LR[row])
        for each in (task.scores for task in ranked_tasks(run, subject, checkpoint.layers))
    ]


def place(run: str, model: str, revision: str) -> str:
    """Return the key of the alert of a checkpoint."""
    return f"{_folder(run, model)}/{one_name(revision)}.json"


def read_alerts(root: Root, run: str, model: str) -> dict[str, Alert]:
    """Return the alerts of a model by revision."""
    folder = _folder(run, model)
    found = {}
    for name in sorted(name for name in root.sizes(folder) if name.endswith(".json")):
        try:
            values = json.loads(root.read(f"{folder}/{name}"))
            del values["schema_version"]
            rules = [Broken(**each) for each in values.pop("rules")]
            alert = Alert(**values, rules=rules)
            said = (*values.values(), *(each.says for each in rules))
            if not all(isinstance(each, str) for each in said):
                raise TypeError("what is said is no text")
            found[unquote(name.removesuffix(".json"))] = alert
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            say(f"  damaged: {root.place(f'{folder}/{name}')} is no alert; it is left out")
    return found


def publish(run: Run, alert: Alert, environment: Mapping[str, str] = os.environ) -> None:
    """Write an alert and POST it to the webhook, if there is one.

    Until that has taken it an empty object stands beside it, by which later nights know.
    """
    key = place(alert.run, alert.model, alert.revision)
    if _has_webhook(run.config.nightly, environment):
        run.root.write(f"{key}{_WAITING}", b"")
    run.root.write(key, alert.to_json())
    if post(alert, run.config.nightly, environment) == "taken":
        run.root.delete(f"{key}{_WAITING}")


def post_waiting(
    run: Run, history: Sequence[Checkpoint], environment: Mapping[str, str] = os.environ
) -> None:
    """POST the alerts of ranked checkpoints that no webhook has taken, in the order of their steps.

    Where nobody answers the others wait on: a night is held up once.
    """
    if not _has_webhook(run.config.nightly, environment):
        return
    waiting = {
        f"{folder}/{name}"
        for folder in {_folder(run.config.name, each.model) for each in history}
        for name in run.root.sizes(folder)
    }
    for each in history:
        key = place(run.config.name, each.model, each.revision)
        if f"{key}{_WAITING}" not in waiting:
            continue
        alert = read_alerts(run.root, run.config.name, each.model).get(each.revision)
        answer = post(alert, run.config.nightly, environment) if alert else "taken"
        if answer == "taken":  # or withdrawn since
            run.root.delete(f"{key}{_WAITING}")
        if answer == "silent":
            return


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect as the answer that it is: whoever is behind it was not told of."""

    def redirect_request(self, *_: object) -> None:
        return None


def post(
    alert: Alert, config: NightlyConfig, environment: Mapping[str, str] = os.environ
) -> Answer:
    """POST an alert to the webhook, if there is one; a failure is a line and no more.

    It is taken by an answer of 2xx within `webhook_seconds`, all in all. Neither the line nor
    anything else shows the address: it is what lets people post there.
    """
    address = _webhook(config, environment)
    if not address:
        return "silent"
    if not address.startswith(WEB):
        say(f"  warning: {VARIABLE} is no http:// or https:// address; the alert was not posted")
        return "silent"
    headers = {"Content-Type": "application/json", "User-Agent": "layerrank"}
    seconds = min(config.webhook_seconds, threading.TIMEOUT_MAX)
    ended: list[Exception | None] = []

    def send() -> None:
        try:
            request = urllib.request.Request(address, alert.to_json(), headers, method="POST")
            opener = urllib.request.build_opener(_NoRedirect)  # by way of the proxies of urllib
            with opener.open(request, timeout=seconds):
                ended.append(None)
        except urllib.error.HTTPError as error:
            error.close()
            ended.append(error)
        except Exception as error:  # noqa: BLE001  (it is told by its name)
            ended.append(error)

    # The timeout of a socket is that of one step of many, and none bounds the look for a host.
    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    sending.join(seconds)
    of = f"the alert of {alert.model} at {alert.revision}"
    error = ended[0] if ended else TimeoutError()
    if error is None:
        say(f"  {of} was posted to the webhook")
        return "taken"
    answer: Answer = "silent"
    if isinstance(error, urllib.error.HTTPError):
        answer, failed = "refused", f"it answered {error.code}"
    else:
        reason = getattr(error, "reason", error)
        failed = type(error if isinstance(reason, str) else reason).__name__
    say(f"  warning: the webhook did not take {of} ({failed}); the next night tries again")
    return answer


def _has_webhook(config: NightlyConfig, environment: Mapping[str, str]) -> bool:
    """Whether alerts are to be posted; where to may not be known tonight."""
    given = config.webhook or environment.get(VARIABLE) or environment.get(f"{VARIABLE}_FILE")
    return bool(given)


def _webhook(config: NightlyConfig, environment: Mapping[str, str]) -> str:
    """Return the address of the config, of the variable, or of the file that another one names.

    A file is how a cluster hands out a secret that no process list and no child is to have.
    """
    file = environment.get(f"{VARIABLE}_FILE")
    if config.webhook:
        return config.webhook.get_secret_value()
    if not file or VARIABLE in environment:
        return environment.get(VARIABLE, "")
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        say(f"  warning: {VARIABLE}_FILE: {file}: {reason}; the alert was not posted")
        return ""


def _folder(run: str, model: str) -> str:
    return f"{ALERTS}/{one_name(run)}/{one_name(model)}"
