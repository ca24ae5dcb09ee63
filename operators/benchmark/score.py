"""A task of mteb in two steps: the texts it reads, and its scores from their vectors.

Between the two, every unique text is encoded once for all layers and all tasks. Both steps run
mteb's own evaluators on a copy of the same loaded task, so the second asks for what the first saw.

Results are filed as mteb writes them, so that its own tools read one layer as if it were one model:
`mteb.ResultCache("<root>/mteb/layer-07").load_results()` reads what lies under `result_path`.

Shapes: N texts, D dimensions.
"""

from __future__ import annotations

import copy
import importlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import datasets
import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning, UndefinedMetricWarning

from layerrank.operators.benchmark.tasks import canonical, load_task, mteb_library, parse
from layerrank.operators.model.subject import Transform
from layerrank.operators.probes.fold import unit_rows

if TYPE_CHECKING:
    from mteb import AbsTask, TaskResult
    from mteb.models.model_meta import ModelMeta

META_FILE = "model_meta.json"
Vectors = npt.NDArray[np.float32]

# What mteb asks for texts as: a model may read queries in another way than documents.
Asked = Literal["query", "document", "none"]
# Vectors [N, D] of N texts in their order, as what they are asked for; KeyError with the text where
# there is none.
Lookup = Callable[[Sequence[str], Asked], Vectors]


class Recorder:
    """A lookup that has a vector for every text, and keeps the texts in first-seen order.

    A text that is asked for as several is kept as each.

    The vectors are 8 pseudo-random numbers in -1/2..1/2 that depend on the text alone: small, so
    that evaluators finish quickly, and different, so that none of them finds nothing to fit.
    """

    def __init__(self) -> None:
        self.asked: dict[tuple[str, Asked], None] = {}

    @property
    def texts(self) -> list[str]:
        """The unique texts."""
        return [*dict.fromkeys(text for text, _ in self.asked)]

    def __call__(self, texts: Sequence[str], asked: Asked = "none") -> Vectors:
        """Note `texts` and return their vectors [N, 8]."""
        self.asked.update(dict.fromkeys((text, asked) for text in texts))
        digests = b"".join(
            blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            for text in texts
        )
        numbers = np.frombuffer(digests, dtype="<u2").reshape(len(texts), 8)
        return (numbers / np.float32(2**16 - 1) - np.float32(0.5)).astype(np.float32)


@dataclass(frozen=True)
class LookupEncoder:
    """An encoder in the sense of mteb's `EncoderProtocol`, whose vectors are looked up.

    Texts are looked up as mteb hands them to a model: as they are, and a document as its title and
    text in one (`(title + " " + text).strip()`). Similarity is the cosine, as for mteb's encoders
    that name it.
    """

    task_name: str
    lookup: Lookup
    mteb_model_meta: ModelMeta

    # The inputs are a torch DataLoader; the task that mteb names beside is the one of the lookup.
    def encode(self, inputs: Any, *, prompt_type: Any = None, **_: object) -> Vectors:  # noqa: ANN401
        """Return the vectors [N, D] of the loader's texts, in their order, as `prompt_type`."""
        texts = list(inputs.dataset["text"])
        try:
            vectors_ND = self.lookup(texts, "none" if prompt_type is None else prompt_type.value)
        except KeyError as error:
            text = str(error.args[0] if error.args else "")
            raise ValueError(
                f"mteb task {self.task_name}: no stored vector for {text[:60]!r} "
                f"({len(text)} characters); extract the texts that `recorded` returns for it"
            ) from error
        if vectors_ND.ndim != 2 or len(vectors_ND) != len(texts):  # noqa: PLR2004 - a matrix
            raise ValueError(
                f"mteb task {self.task_name}: {len(texts)} texts need one vector each, "
                f"the lookup returned {vectors_ND.shape}"
            )
        # Half precision changes scores, and evaluators fail on types that numpy does not know.
        return np.ascontiguousarray(vectors_ND, dtype=np.float32)

    def similarity(self, first_ND: npt.ArrayLike, second_ND: npt.ArrayLike) -> object:
        """Return the cosine of every pair of a first and a second vector."""
        return importlib.import_module("mteb.similarity_functions").cos_sim(first_ND, second_ND)

    def similarity_pairwise(self, first_ND: npt.ArrayLike, second_ND: npt.ArrayLike) -> object:
        """Return the cosine of every first vector with the second one of the same row."""
        library = importlib.import_module("mteb.similarity_functions")
        return library.pairwise_cos_sim(first_ND, second_ND)


def model_meta(model_name: str, revision: str) -> ModelMeta:
    """Return mteb's description of a model of which only name and revision are known.

    mteb requires an organisation in the name; a name without "/" gets `layerrank/` before it.
    """
    mteb_library()
    described = importlib.import_module("mteb.models.model_meta")
    meta: ModelMeta = described.ModelMeta.create_empty(
        overwrites={
            "name": model_name if "/" in model_name else f"layerrank/{model_name}",
            "revision": revision,
            "similarity_fn_name": described.ScoringFunction.COSINE,
        }
    )
    return meta


@dataclass(frozen=True)
class TaskOutcome:
    """What mteb says about one task.

    `score` is the main metric, the mean over subsets (and splits, joined with "+" in `split`) as
    mteb forms it; higher is better, 0..1 for most metrics, -1..1 for correlations. `experiments`
    are the main metric of every repetition where the task repeats (classification, regression,
    clustering), the subsets one after the other; repetition i drew the same rows for every layer.
    `json` is the result file as mteb writes it: scores rounded to 6 decimals, times and versions.
    """

    name: str
    task_type: str
    main_metric: str
    score: float
    split: str
    experiments: tuple[float, ...]
    json: str


def recorded(task: str | AbsTask, modules: Sequence[str] = ()) -> list[tuple[str, Asked]]:
    """Return the unique texts that `encode` receives for a task and as what, as first seen.

    mteb's evaluators run once on pseudo-random vectors, so its sampling is followed exactly.
    """
    recorder = Recorder()
    loaded = load_task(task, modules) if isinstance(task, str) else task
    _evaluate(loaded, recorder, "layerrank/recorder", "none")
    return [*recorder.asked]


def score_task(
    task: AbsTask, lookup: Lookup, *, model_name: str, revision: str, variant: Transform = "raw"
) -> TaskOutcome:
    """Score a task with mteb's own evaluators on vectors that `lookup` returns for its texts.

    The task is what `load_task` returned, for several layers: it is copied for each, which takes
    milliseconds where loading takes seconds. `variant="l2"` divides every vector by its L2 norm,
    which is another model to every estimator that is not invariant to scale.

    A text without a vector raises ValueError with the task and the text's first characters.
    """
    looked_up = lookup if variant == "raw" else lambda *asked: unit_rows(lookup(*asked))
    result = _evaluate(task, looked_up, model_name, revision)
    metric = str(task.metadata.main_score)
    parts: list[Mapping[str, Any]] = [part for split in result.scores.values() for part in split]
    with TemporaryDirectory() as folder:
        # The file format is mteb's own business, and it writes only to a path.
        path = Path(folder, "result.json")
        result.to_disk(path)
        text = path.read_text(encoding="utf-8")
    return TaskOutcome(
        name=canonical(task),
        task_type=str(task.metadata.type),
        main_metric=metric,
        score=float(result.get_score()),
        split="+".join(result.scores),
        experiments=tuple(score for part in parts for score in _experiments(part, metric)),
        json=text,
    )


def result_path(model_name: str, revision: str, layer: int, task: str) -> str:
    """Return where a task's result of one layer goes, relative to the root of a run.

    `mteb/layer-07/results/<org>__<model>/<revision>/<Task>.json`: the folder of a layer is one
    result cache, and mteb looks below `results`. `model_meta_json` goes into `META_FILE` beside it.
    """
    model = model_meta(model_name, revision).model_name_as_path()
    # A revision may be a git reference with slashes; mteb expects one folder for it. What is made
    # of dots alone would be another folder.
    folder, file = (name.replace("/", "__") for name in (revision, parse(task).task))
    path = f"{model}/{folder if folder.strip('.') else f'_{folder}'}/{file}.json"
    return str(PurePosixPath(f"mteb/layer-{layer:02d}/results", path))


def model_meta_json(model_name: str, revision: str) -> str:
    """Return mteb's `model_meta.json`, without which it passes a folder of results over."""
    return json.dumps(model_meta(model_name, revision).to_dict(), default=str, indent=4)


def _evaluate(task: AbsTask, lookup: Lookup, model_name: str, revision: str) -> TaskResult:
    mteb = mteb_library()
    encoder = LookupEncoder(canonical(task), lookup, model_meta(model_name, revision))
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
    finally:
        if shown:
            datasets.enable_progress_bars()
    if not results.task_results:
        raise ValueError(f"mteb task {canonical(task)} has no result: {results.exceptions}")
    result: TaskResult = results.task_results[0]
    return result


def _experiments(part: Mapping[str, Any], metric: str) -> list[float]:
    """Return the main metric of every repetition within one subset, or nothing."""
    if "scores_per_experiment" in part:
        scores = [experiment.get(metric) for experiment in part["scores_per_experiment"]]
        return [] if None in scores else [float(score) for score in scores]
    repeated = part.get("v_measures" if metric == "v_measure" else f"{metric}_scores", [])
    # Fast clustering repeats on every level of the labels, and nests the scores by level.
    levels = repeated.values() if isinstance(repeated, Mapping) else [repeated]
    return [float(score) for level in levels for score in level]
