"""The layers of a model, ranked: what a report and a nightly read, from a run or from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from layerrank.jobs.rank import sentences
from layerrank.jobs.rank.sentences import Gap
from layerrank.operators.analysis import labelfree
from layerrank.operators.analysis.correlates import correlation
from layerrank.operators.model.subject import Kind, Subject, Vectors
from layerrank.operators.ranking import Policy
from layerrank.operators.ranking.draws import draw_scores
from layerrank.operators.ranking.evidence import Choice, Evidence, LayerEvidence, weigh
from layerrank.operators.ranking.policy import Verdict, pareto, recommend
from layerrank.operators.ranking.scores import TIE, TaskScores

Array = npt.NDArray[np.float64]
Row = Mapping[str, Any]  # of a table, by column; NaN where a number does not exist
ByLayer = dict[int, float]  # layer -> value, NaN where it is undefined
Metrics = Mapping[tuple[str, str], ByLayer]  # the main variants, by dataset and metric
# Vectors that this tool did not make.
ELSEWHERE = Vectors("elsewhere", "elsewhere", "raw")
ON = " on "  # between a metric and its dataset, in a rule of a run with several datasets


class Option(NamedTuple):
    """A layer with some vectors of it, and the share of its folds that was scored, 0..1."""

    layer: int
    vectors: Vectors
    scored: float = 1.0


@dataclass(frozen=True)
class RankedTask:
    """A task and its scores; `label` is its name, with the dataset if two share it.

    `undefined` says of the layers that were scored and have no score why they have none, `note`
    what of the task does not count.
    """

    label: str
    name: str
    dataset: str
    metric: str
    folds: int
    scores: TaskScores
    undefined: Mapping[int, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Settings:
    """How a ranking is made: `rank` of a config, and the seed of the run."""

    policy: Policy = "best"
    draws: int = 10_000
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Ranking:
    """The ranking of one model's layers.

    `vectors` are those that were asked to be ranked, `options` every candidate with what was scored
    of it. Evidence on them is of `weighed`, and of a layer counts the best, which is what `tasks`
    hold and what `vectors_of` says. `plain` is the ranking of the asked vectors alone, and `alone`
    the choice among the candidates of the last layer; both where there are others to choose from.
    `cost_L` is the compute of a token relative to the whole model, `kind` that of the model, asked
    where nothing is labelled. Of a run, `costs` has the measured cost of each layer, `features` the
    length of a vector, and `search_share` the share of a full sweep that a search scored, `dropped`
    the layers that it left, which have no score; `candidates_share` the same of other vectors.
    `notes` say what differs from what was given.
    """

    subject: Subject
    vectors: Vectors
    settings: Settings
    tasks: Sequence[RankedTask]
    evidence: Evidence
    verdict: Verdict
    cost_L: Array
    costs: Mapping[int, Row] = field(default_factory=dict)
    features: int = 0
    metrics: Metrics = field(default_factory=dict)
    kind: Kind | None = None
    search_share: float | None = None
    candidates_share: float | None = None
    dropped: Sequence[int] = ()
    notes: Sequence[str] = ()
    options: Sequence[Option] = ()
    weighed: Sequence[Option] = ()
    plain: Ranking | None = None
    alone: Choice | None = None

    @property
    def layers(self) -> list[int]:
        """The numbers of the layers."""
        return [row.layer for row in self.evidence.layers]

    @property
    def last(self) -> int:
        """The last layer, which every gain is over."""
        return max(self.layers)

    @property
    def vectors_of(self) -> list[Vectors]:
        """The vectors that count of every layer, in the order of the layers."""
        return [self.weighed[at].vectors for at in self.evidence.rows]

    @property
    def scores_LT(self) -> Array:
        """The main score of every layer and task, NaN where there is none."""
        columns = [task.scores.score_L for task in self.tasks]
        return np.array(columns, dtype=np.float64).reshape(-1, len(self.layers)).T

    @cached_property
    def table(self) -> list[dict[str, Any]]:
        """The rows of the table `ranking`, layer by layer."""
        comparable = [row.gain_even for row in self.evidence.layers]
        front_L = pareto(comparable, self.cost_L)
        plain = (self.plain or self).evidence.layers
        given = zip(self.evidence.rows, self.cost_L, front_L, plain, strict=True)
        return [
            {
                **self._row(at, of_layer),
                "cost": float(cost),
                "plain_score": of_plain.score,
                "plain_gain": of_plain.gain,
                "pareto": bool(on_front),
                "verdict": self.verdict.kind,
                "sure": self.verdict.sure,
                "recommended": of_layer.layer == self.verdict.layer,
            }
            for of_layer, (at, cost, on_front, of_plain) in zip(
                self.evidence.layers, given, strict=True
            )
        ]

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """The rows of the table `candidates`, layer by layer; without evidence what was dropped."""
        at_of = {(each.layer, each.vectors): at for at, each in enumerate(self.weighed)}
        costs = dict(zip(self.layers, self.cost_L.tolist(), strict=True))
        recommended, found = self.evidence.rows[self.layers.index(self.verdict.layer)], []
        unknown = dict.fromkeys((each.name for each in fields(LayerEvidence)), math.nan)
        nothing = {**unknown, "n_tasks": 0, "rank": None}
        for option in self.options:
            at = at_of.get((option.layer, option.vectors))
            row = {**nothing, **option.vectors._asdict(), "gain_chosen": math.nan}
            if at is not None:
                row = self._row(at, self.evidence.candidates[at])
            told = {"scored": option.scored, "cost": costs[option.layer]}
            found.append({**row, "layer": option.layer, **told, "recommended": at == recommended})
        return found

    def _row(self, at: int, evidence: LayerEvidence) -> dict[str, Any]:
        """Return the evidence on a candidate as columns of a table."""
        choice = self.evidence.choice
        corrected = choice.gain if choice and choice.row == at else math.nan
        return {
            **asdict(evidence),
            **self.weighed[at].vectors._asdict(),
            "gain_chosen": corrected,
        }

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of the table with the measured cost and the score of each task, by layer.

        `aligned` is the score that is drawn: the last layer's plus the even gain, so that layers
        with scores in other tasks stand where they are compared; NaN for what is not comparable.
        """
        labels, base = [task.label for task in self.tasks], self.evidence.baseline
        found: list[Row] = []
        for row, scores_T in zip(self.table, self.scores_LT.tolist(), strict=True):
            tasks = dict(zip(labels, scores_T if labels else [], strict=True))
            aligned = row["score"]
            if self.has_holes:
                aligned = base.score + row["gain_even"]
            of_layer = {**self.costs.get(row["layer"], {}), "tasks": tasks, "aligned": aligned}
            found.append({**row, **of_layer})
        return found

    @property
    def has_holes(self) -> bool:
        """Whether some layer lacks a task that the last layer has."""
        base = self.evidence.baseline.n_tasks
        return any(0 < row.n_tasks < base for row in self.evidence.layers)

    @property
    def scored(self) -> list[Row]:
        """The rows of the layers that are comparable: they have a rank."""
        return [row for row in self.rows if row["rank"] is not None]

    @property
    def best_first(self) -> list[Row]:
        """The rows of the comparable layers, the highest gain first, of equals the lowest."""
        return sorted(self.scored, key=lambda row: (-row["gain_even"], row["layer"]))

    @property
    def nearest(self) -> int | None:
        """The layer below the last that gains most; None if none is comparable."""
        others = [row["layer"] for row in self.best_first if row["layer"] != self.last]
        return others[0] if others else None

    @property
    def is_certain(self) -> bool:
        """Whether the verdict is advice and no guess."""
        return self.verdict.kind in ("use_layer", "keep_last")

    @property
    def counting(self) -> list[RankedTask]:
        """The tasks that have a score in the last layer; no gain contains the others."""
        return [task for task in self.tasks if task.scores.task in self.evidence.tasks]

    def metric(self, name: str) -> ByLayer:
        """Return a metric by layer, on the first dataset that has it."""
        return next((self.metrics[key] for key in self.metrics if key[1] == name), {})

    @property
    def sentence(self) -> str:
        """The verdict in words, and what is not in the ranking."""
        said = sentences.sentence(self.evidence, self.verdict, self.how)
        if self.verdict.kind == "no_labels":
            said = sentences.unlabelled(self.kind, self.verdict.layer)
        return " ".join(filter(None, [said, self.without_depth, *self.gaps]))

    @property
    def answer(self) -> str:
        """What to do, in a few words."""
        return sentences.answer(self.evidence, self.verdict, self.how)

    @property
    def how(self) -> str:
        """What is done to the vectors of the choice, in words; nothing if they are those asked."""
        choice = self.evidence.choice
        if choice is None:
            return ""
        return sentences.different(self.weighed[choice.row].vectors, self.vectors)

    @property
    def without_depth(self) -> str:
        """What the last layer's other vectors gain; nothing where there are none."""
        choice, alone, plain = self.evidence.choice, self.alone, self.plain
        if choice is None or alone is None or plain is None:
            return ""
        if choice.layer == self.last and self.verdict.kind == "use_layer":
            return ""  # that is the advice
        of_last = [each for each in self.weighed if each.layer == self.last]
        how = sentences.different(of_last[alone.row].vectors, self.vectors)
        gain = plain.evidence.row(choice.layer).gain
        saved = self.verdict.saved if self.verdict.layer == choice.layer else 0.0
        return sentences.without_depth(choice, alone, how, gain, saved)

    @property
    def advice(self) -> str:
        """What to do with the verdict."""
        return sentences.advice(self.evidence, self.verdict)

    @property
    def gaps(self) -> list[str]:
        """What is not in the ranking, in sentences: layers, and tasks in every layer or in some."""
        never, partly = dict[str, str](), list[Gap]()
        for task in self.tasks:
            lacking = np.array(self.layers)[np.isnan(task.scores.score_L)].tolist()
            layers = [layer for layer in lacking if layer not in self.dropped]
            reasons = [task.undefined[layer] for layer in layers if layer in task.undefined]
            gap = Gap(task.label, layers, next(iter(reasons), ""))
            if len(lacking) == len(self.layers):
                never[gap.task] = f"there is no score in any layer{gap.because}"
            elif self.last in layers:
                reason = task.undefined.get(self.last, "")
                because = f" ({reason})" if reason else ""
                never[gap.task] = f"the last layer ({self.last}) has no score there{because}"
            elif layers:
                partly.append(gap)
        return [
            *([sentences.dropped(self.dropped)] if self.dropped else []),
            *([sentences.not_counted(never)] if never else []),
            *sentences.holes(self.evidence, partly),
            *(task.note for task in self.tasks if task.note),
        ]


@dataclass(frozen=True)
class Checkpoint:
    """A ranked checkpoint: the rows of its table `ranking` by layer, and its metrics.

    `tasks` has the score of each task by layer, as far as they were read.
    """

    model: str
    revision: str
    ranking: Sequence[Row]
    metrics: Metrics
    tasks: Mapping[str, ByLayer] = field(default_factory=dict)

    @property
    def layers(self) -> list[int]:
        """The layers that were ranked."""
        return [row["layer"] for row in self.ranking]

    @property
    def recommended(self) -> int:
        """The layer that the ranking recommends."""
        layer: int = next(row["layer"] for row in self.ranking if row["recommended"])
        return layer

    @property
    def best(self) -> int | None:
        """The layer that scores highest, the lowest of equals; None if none has a score."""
        return min((row["layer"] for row in self.ranking if row["rank"] == 1), default=None)

    def row(self, layer: int) -> Row:
        """Return the row of a layer."""
        return next(row for row in self.ranking if row["layer"] == layer)


def ranking_of(
    subject: Subject,
    weighed: Sequence[Option],
    tasks: Sequence[RankedTask],
    cost_L: Array,
    settings: Settings,
    kind: Kind | None = None,
    **told: Any,  # noqa: ANN401  (the other fields of Ranking)
) -> Ranking:
    """Rank the layers of a model by the scores of its tasks; without any its kind may say which.

    The scores of the tasks are of the options that are `weighed`, by layer, of each the asked
    vectors first; the costs are of the layers.
    """
    layers = [*dict.fromkeys(each.layer for each in weighed)]
    costs = dict(zip(layers, cost_L.tolist(), strict=True))

    def evidence_on(rows: Sequence[int], *, keep_last: bool = False) -> Evidence:
        return weigh(
            [of_rows(task, rows).scores for task in tasks],
            layers=[weighed[at].layer for at in rows],
            cost_L=[costs[weighed[at].layer] for at in rows],
            policy=settings.policy,
            seed=settings.seed,
            draws=settings.draws,
            level=settings.level,
            keep_last=keep_last,
        )

    every = range(len(weighed))
    evidence = evidence_on(every)
    verdict = recommend(evidence, cost_L)
    if verdict.layer == layers[-1] and verdict.kind != "use_layer":
        evidence = evidence_on(every, keep_last=True)
    first = [[each.layer for each in weighed].index(layer) for layer in layers]
    told = {"options": weighed, **told, "weighed": weighed, "kind": kind}
    if len(weighed) > len(layers):
        plain = [weighed[at] for at in first], [of_rows(task, first) for task in tasks]
        of_plain = {name: each for name, each in told.items() if name not in ("options", "weighed")}
        told["plain"] = ranking_of(subject, *plain, cost_L, settings, **of_plain)
        told["alone"] = evidence_on(range(first[-1], len(weighed))).choice
    if verdict.kind == "no_labels":
        known_layer = labelfree.rule_for(kind, layers)
        layer = max(layers) if known_layer is None else known_layer
        saved = float(1 - cost_L[list(layers).index(layer)])
        verdict = Verdict("no_labels", layer, saved, "no_labels")
    own = [of_rows(task, evidence.rows) for task in tasks]
    vectors = weighed[first[-1]].vectors
    return Ranking(subject, vectors, settings, own, evidence, verdict, cost_L, **told)


def of_rows(task: RankedTask, rows: Sequence[int]) -> RankedTask:
    """Return a task with some rows of its scores."""
    found, these = task.scores, [*rows]
    found = replace(found, score_L=found.score_L[these], resampled_LR=found.resampled_LR[these])
    return replace(task, scores=found)


def as_good_as_best(row: Row) -> bool:
    """Whether a layer is within one standard error of the best, itself among them."""
    return bool(row["shortfall"] <= row["shortfall_se"] + TIE)


def checkpoint_of(ranking: Ranking) -> Checkpoint:
    """Return a ranking as a checkpoint among others."""
    tasks = {
        task.label: dict(zip(ranking.layers, task.scores.score_L.tolist(), strict=True))
        for task in ranking.tasks
    }
    name, revision = ranking.subject.name, ranking.subject.revision
    return Checkpoint(name, revision, ranking.table, ranking.metrics, tasks)


def at_layers(values: ByLayer, layers: Sequence[int]) -> Array:
    """Return the values of some layers in their order, NaN where there is no finite one."""
    found = np.array([values.get(layer, math.nan) for layer in layers])
    return np.where(np.isfinite(found), found, math.nan)


def choice_rows(ranking: Ranking) -> list[dict[str, Any]]:
    """Return what every rule without labels chooses, with its regret where there are labels.

    With several tasks the regret is the mean over tasks of what is lost to the best layer of each
    task, as published numbers are; with one task it is what is lost to the best layer. All of the
    vectors that were asked for: no rule chooses others without labels.
    """
    ranking = ranking.plain or ranking
    layers, settings = ranking.layers, ranking.settings
    several = len({dataset for dataset, _ in ranking.metrics}) > 1
    rules = labelfree.depth_rules(layers)
    for (dataset, metric), values in ranking.metrics.items():
        chosen = labelfree.metric_rule(metric, at_layers(values, layers), layers=layers)
        if chosen is not None:
            rules[f"{metric}{ON}{dataset}" if several else metric] = chosen
    if not ranking.scored:
        nothing = [math.nan] * 4
        return [asdict(labelfree.Choice(rule, layer, *nothing)) for rule, layer in rules.items()]
    how: dict[str, Any] = {"layers": layers, "level": settings.level}
    counted_LT = np.array([task.scores.score_L for task in ranking.counting]).T
    if len(ranking.counting) > 1:
        how |= {"seed": settings.seed, "draws": settings.draws}
        found = labelfree.task_regrets(rules, counted_LT, **how)
    else:
        score_L = np.array([row.score for row in ranking.evidence.layers])
        (task,) = ranking.counting
        drawn_LB = draw_scores([task.scores], seed=settings.seed, draws=settings.draws)
        found = labelfree.regrets(
            rules, score_L, draws_LB=drawn_LB if drawn_LB.shape[1] else None, **how
        )
    return [asdict(each) for each in found]


def correlation_rows(ranking: Ranking) -> list[dict[str, Any]]:
    """Return how the main variant of every metric goes with the score over the layers.

    Both are of the vectors that were asked for.
    """
    ranking = ranking.plain or ranking
    if not ranking.scored:
        return []
    score_L = np.array([row.score for row in ranking.evidence.layers])
    rows = []
    for (dataset, metric), values in ranking.metrics.items():
        found = correlation(
            metric,
            at_layers(values, ranking.layers),
            score_L,
            layers=ranking.layers,
            seed=ranking.settings.seed,
            level=ranking.settings.level,
        )
        row = {"dataset": dataset, "metric": metric, "layers": found.n_layers}
        for name, association in (("spearman", found.spearman), ("distance", found.distance)):
            for key, value in asdict(association).items():
                row[name if key == "value" else f"{name}_{key}"] = value
        rows.append({**row, "reason": found.reason or None})
    return rows
