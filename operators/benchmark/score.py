"""A task of mteb in two steps: the texts it reads, and its scores from their vectors.

Between the two, every unique text is encoded once for all layers and all tasks. Both steps run
mteb's own evaluators on a copy of the same loaded task, so the second asks for what the first saw.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import datasets
from sklearn.exceptions import ConvergenceWarning, UndefinedMetricWarning

from operators.benchmark.encoder import Lookup, LookupEncoder, Recorder, Vectors, model_meta
from operators.benchmark.names import canonical
from operators.benchmark.results import result_json, write_result
from operators.benchmark.tasks import load_task, mteb_library
from operators.probes.fold import unit_rows

if TYPE_CHECKING:
    from mteb import AbsTask, TaskResult

Variant = Literal["raw", "l2"]


@dataclass(frozen=True)
class TaskOutcome:
    """What mteb says about one task.

    `score` is the main metric, the mean over subsets (and splits, joined with "+" in `split`) as
    mteb forms it; higher is better, 0..1 for most metrics, -1..1 for correlations. `experiments`
    are the main metric of every repetition where the task repeats (classification, regression,
    clustering), the subsets one after the other; repetition i drew the same rows for every layer.
    `json` is the result file as mteb writes it.
    """

    name: str
    task_type: str
    main_metric: str
    score: float
    split: str
    experiments: tuple[float, ...]
    json: str


def recorded_texts(task: str | AbsTask, modules: Sequence[str] = ()) -> list[str]:
    """Return the unique texts that `encode` receives for a task, in first-seen order.

    mteb's evaluators run once on pseudo-random vectors, so its sampling is followed exactly.
    """
    recorder = Recorder()
    _evaluate(_loaded(task, modules), recorder, "layerrank/recorder", "none")
    return recorder.texts


def score_task(
    task: str | AbsTask,
    lookup: Lookup,
    *,
    modules: Sequence[str] = (),
    model_name: str,
    revision: str,
    variant: Variant = "raw",
    results_folder: Path | None = None,
) -> TaskOutcome:
    """Score a task with mteb's own evaluators on vectors that `lookup` returns for its texts.

    Give the task that `load_task` returned to score several layers: it is copied for each, which
    takes milliseconds where loading takes seconds. `variant="l2"` divides every vector by its L2
    norm, which is another model to every estimator that is not invariant to scale. Where
    `results_folder` is given, it becomes a result cache of mteb: one folder per layer.

    A text without a vector raises ValueError with the task and the text's first characters.
    """
    task = _loaded(task, modules)
    vectors = lookup if variant == "raw" else _normalised(lookup)
    result = _evaluate(task, vectors, model_name, revision)
    outcome = _outcome(task, result)
    if results_folder is not None:
        write_result(results_folder, model_name, revision, outcome.name, outcome.json)
    return outcome


def _loaded(task: str | AbsTask, modules: Sequence[str]) -> AbsTask:
    return load_task(task, modules) if isinstance(task, str) else task


def _normalised(lookup: Lookup) -> Lookup:
    def unit_vectors(texts: Sequence[str]) -> Vectors:
        return unit_rows(lookup(texts))

    return unit_vectors


def _evaluate(task: AbsTask, lookup: Lookup, model_name: str, revision: str) -> TaskResult:
    mteb = mteb_library()
    encoder = LookupEncoder(canonical(task), lookup, model_meta(model_name, revision))
    with _quiet():
        results = mteb.evaluate(
            encoder,
            # Its random state moves on with every evaluation; tables are shared, not copied.
            copy.deepcopy(task),
            # The default cache is keyed by name and revision: a second layer would be given the
            # first one's scores.
            cache=None,
            co2_tracker=False,
            show_progress_bar=False,
            encode_kwargs={"batch_size": 32, "show_progress_bar": False},
        )
    if not results.task_results:
        raise ValueError(f"mteb task {canonical(task)} has no result: {results.exceptions}")
    result: TaskResult = results.task_results[0]
    return result


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what mteb's protocols cause by design, and the progress bars of `datasets`."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            # Stopping after 100 iterations and averaging over labels that were never predicted are
            # parts of the classification protocol.
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.simplefilter("ignore", UndefinedMetricWarning)
            # The task was chosen by name; that a newer version exists is no reason to change it.
            warnings.filterwarnings("ignore", message="The task .* is superseded by")
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _outcome(task: AbsTask, result: TaskResult) -> TaskOutcome:
    metric = str(task.metadata.main_score)
    parts: list[Mapping[str, Any]] = [part for split in result.scores.values() for part in split]
    return TaskOutcome(
        name=canonical(task),
        task_type=str(task.metadata.type),
        main_metric=metric,
        score=float(result.get_score()),
        split="+".join(result.scores),
        experiments=tuple(score for part in parts for score in _experiments(part, metric)),
        json=result_json(result),
    )


def _experiments(part: Mapping[str, Any], metric: str) -> list[float]:
    """Return the main metric of every repetition within one subset, or nothing."""
    if "scores_per_experiment" in part:
        scores = [experiment.get(metric) for experiment in part["scores_per_experiment"]]
        return [] if None in scores else [float(score) for score in scores]
    repeated = part.get("v_measures" if metric == "v_measure" else f"{metric}_scores", [])
    # Fast clustering repeats on every level of the labels, and nests the scores by level.
    levels = repeated.values() if isinstance(repeated, Mapping) else [repeated]
    return [float(score) for level in levels for score in level]
