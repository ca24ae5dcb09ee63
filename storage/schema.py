"""The tables: every column with its type and unit, declared once and never inferred.

A write casts to its schema or fails. Partition keys (`model`, `revision`, `dataset`, `condition`)
are folders, not columns; `storage.partition` builds them.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

VERSION = 2
ROW_BITS = 32  # row = file or slice index << ROW_BITS | position within it


def _column(name: str, kind: pa.DataType, unit: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"unit": unit})


def _table(name: str, *columns: pa.Field) -> pa.Schema:
    return pa.schema(columns, metadata={"layerrank.table": name, "layerrank.version": str(VERSION)})


# Of the folders that a partition lies in.
KEY_MEANINGS = {
    "model": "name of the subject",
    "revision": "of the model: branch, tag or commit, or folder of a checkpoint",
    "dataset": "name of the dataset in the config",
    "condition": "clean, a view, a level of a perturbation, or a template (prompt-…)",
    "task": "name of the task in the config",
    "group": "name of the run, as in its config",
    "family": "of perturbations: random, repeat, truncate, noise or length",
}

_PROMPT_ID = _column("prompt_id", pa.int64(), "signed 64-bit blake2b of the exact UTF-8 text")
_LAYER = _column("layer", pa.int16(), "0 = input of the first block, k = output of block k")
_NORM = _column("norm", pa.string(), "none = raw output, final = the model's final norm applied")
_POOLING = _column(
    "pooling", pa.string(), "mean, mean_no_first, last, first or weighted_mean over real tokens"
)
_N_TOKENS = _column("n_tokens", pa.int32(), "tokens, special ones included, after truncation")
_METRIC = _column("metric", pa.string(), "name in the metric registry")
_PARAMETERS = _column("variant", pa.string(), "parameters of the metric")
_ROW = _column("row", pa.int64(), "source order: file or slice index * 2^32 + row within it")
_SPLIT = _column("split", pa.string(), "train or test")
_VALUE = _column("value", pa.float64(), "unit of the metric; NaN when undefined")
_REASON = _column(
    "reason", pa.string(), "why the value is NaN; null when it is defined", nullable=True
)

PROMPTS = _table(
    "prompts",
    _PROMPT_ID,
    _column("text", pa.large_string(), "the exact text, never an augmented one"),
    _column("shard", pa.int32(), "shard number"),
)

LABELLED_ITEMS = _table(
    "tasks",
    _ROW,
    _PROMPT_ID,
    _column("label", pa.string(), "class or cluster, or a JSON list of several"),
    _SPLIT,
)

RETRIEVAL_ITEMS = _table(
    "tasks",
    _ROW,
    _column("query_id", pa.int64(), "prompt_id of the query"),
    _column("candidate_id", pa.int64(), "prompt_id of a candidate document"),
    _column("relevance", pa.int16(), "gain; 0 = not relevant"),
)

VALUED_ITEMS = _table(
    "tasks", _ROW, _PROMPT_ID, _column("value", pa.float64(), "what is to be predicted"), _SPLIT
)

PAIR_ITEMS = _table(
    "tasks",
    _ROW,
    _column("first_id", pa.int64(), "prompt_id of the first text"),
    _column("second_id", pa.int64(), "prompt_id of the second text"),
    _column("value", pa.float64(), "similarity by people; of a pair classification 1 or 0"),
)

MTEB_ITEMS = _table(
    "tasks",
    _ROW,
    _PROMPT_ID,
    _column(
        "prompt_type",
        pa.string(),
        "what mteb asks for the text as: query, document or none; empty if that was not noted",
    ),
)

# Those of a task of the user's own, of texts or of pairs of them.
OWN_ITEMS, OWN_PAIR_ITEMS = (
    _table("tasks", _ROW, *ids, _column("label", pa.string(), "a JSON object of the row's cells"))
    for ids in ([_PROMPT_ID], [PAIR_ITEMS.field("first_id"), PAIR_ITEMS.field("second_id")])
)

# As they lie in the table: the columns of every type, null in the others, so that all tasks can be
# read together.
TASKS = _table(
    "tasks",
    *(
        each.with_nullable(each is not _ROW)
        for each in {
            name: items.field(name)
            for items in (LABELLED_ITEMS, VALUED_ITEMS, PAIR_ITEMS, RETRIEVAL_ITEMS, MTEB_ITEMS)
            for name in items.names
        }.values()
    ),
)


def as_tasks(items: pa.Table) -> pa.Table:
    """Return the items of a task as rows of `TASKS`."""
    nothing = {each.name: pa.nulls(items.num_rows, each.type) for each in TASKS}
    found = {**nothing, **dict(zip(items.column_names, items.columns, strict=True))}
    return pa.table([found[name] for name in TASKS.names], schema=TASKS)


TOKENS = _table(
    "tokens",
    _PROMPT_ID,
    _LAYER,
    _NORM,
    _N_TOKENS,
    _column("dim", pa.int32(), "features per token"),
    _column(
        "states", pa.large_binary(), "row-major little-endian [n_tokens, dim], see footer dtype"
    ),
)

# Every metric of tokens in its variants with default parameters, by the unit of its values; a
# column that was not asked for is NaN, and other parameters have columns behind these.
TOKEN_METRICS = {
    **{
        f"prompt_entropy_alpha_{alpha}{how}{first}": "share of the maximum" if how else "nats"
        for alpha in (1, 2)
        for how in ("", "_maxentropy")
        for first in ("", "_no_first")
    },
    **{f"curvature{how}{first}": "radians" for how in ("", "_skip") for first in ("", "_no_first")},
    **{
        f"{name}{first}": "activation units"
        for name in ("mean_norm", "largest_coordinate")
        for first in ("", "_no_first")
    },
    "first_token_share": "share of the squared norm",
}

LAYER_METRICS = _table(
    "layer_metrics",
    _LAYER,
    _NORM,
    _column("pooling", pa.string(), "pooling measured, or tokens for means of prompt metrics"),
    _METRIC,
    _PARAMETERS,
    _VALUE,
    _REASON,
    _column("n_prompts", pa.int64(), "prompts the value is made from"),
    _column("n_undefined", pa.int64(), "prompts left out because their value is undefined"),
)
# The metrics of layers: the variant that stands for each, as the registry has it, and its unit.
MAIN_METRICS = {
    "prompt_entropy": ("{entropy}", "nats, or as measure.normalizations begins"),
    "curvature": ("", "radians"),
    "mean_norm": ("", "activation units"),
    "largest_coordinate": ("", "activation units"),
    "first_token_share": ("", "share"),
    "dataset_entropy": ("{entropy}", "nats, or as measure.normalizations begins"),
    "effective_rank": ("", "directions"),
    "rankme": ("", "directions"),
    "participation_ratio": ("centered", "directions"),
    "stable_rank": ("centered", "directions"),
    "alpha_req": ("", "exponent"),
    "twonn": ("", "dimensions"),
    "anisotropy": ("", "cosine"),
    "cka_previous": ("debiased", "similarity"),
    "cka_last": ("debiased", "similarity"),
    "infonce": ("loss", "nats"),
    "lidar": ("{entropy}", "nats, or as measure.normalizations begins"),
    "dime": ("{order}", "nats"),
}


def entropy_variant(alpha: float, how: str = "raw") -> str:
    """Return the name of a variant of an entropy: ``alpha=1``, ``alpha=1,maxEntropy``."""
    return f"alpha={alpha:g}" + ("" if how == "raw" else f",{how}")


OWN_METRICS = _table(
    "own_metrics",
    _LAYER,
    _NORM,
    _POOLING,
    _column("variant", pa.string(), "name that the function gave the value; empty of a lone one"),
    _VALUE,
    _REASON,
    _column("n_prompts", pa.int64(), "prompts the value is made from"),
)

PROMPT_TRAITS = _table(
    "prompt_traits",
    _PROMPT_ID,
    _N_TOKENS,
    _column("repeated_tokens", pa.float64(), "share of tokens that occurred before in the prompt"),
    _column("unknown_words", pa.float64(), "share of words that are no single token; NaN if none"),
    _column("reason", pa.string(), "why unknown_words is NaN; null otherwise", nullable=True),
)

_TRAIT = pa.struct(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("trait", "measure")),
        *(pa.field(name, pa.float64(), nullable=False) for name in ("effect", "low", "high")),
        pa.field("n_prompts", pa.int64(), nullable=False),
        pa.field("reason", pa.string()),
    ]
)
_EXAMPLE = pa.struct(
    pa.field(name, kind, nullable=False)
    for name, kind in {
        "mode": pa.string(),
        "prompt_id": pa.int64(),
        "dataset": pa.string(),
        "shard": pa.string(),
        "value": pa.float64(),
        "n_tokens": pa.int32(),
    }.items()
)

MODES = _table(
    "modes",
    _LAYER,
    _NORM,
    _column("metric", pa.string(), "whose values per prompt are tested"),
    _PARAMETERS,
    _column("n_prompts", pa.int64(), "prompts with a value, of all datasets together"),
    _column("n_undefined", pa.int64(), "prompts left out because their value is undefined"),
    _column("dip", pa.float64(), "Hartigan's dip, 0..1/4; NaN when undefined, like all below"),
    _column("p_value", pa.float64(), "of the dip against one mode; 1e-5 means that or less"),
    _column("p_holm", pa.float64(), "p_value corrected for one test per layer (Holm)"),
    _column("peaks", pa.int16(), "that stand out, up to 6: 2, or more if values are like a comb"),
    _column("split", pa.float64(), "between the two modes, in the unit of the metric"),
    _column("mode_low", pa.float64(), "median of the prompts in the lower mode, same unit"),
    _column("mode_high", pa.float64(), "median of the prompts in the upper mode, same unit"),
    _column("share_high", pa.float64(), "share of the prompts that lie above the split, 0..1"),
    _column("edges", pa.list_(pa.float64()), "edges of the histogram's bins, same unit"),
    _column("counts", pa.list_(pa.int64()), "prompts per bin of the histogram"),
    _column("traits", pa.list_(_TRAIT), "effects -1..1: upper against lower group; its medians"),
    _column("examples", pa.list_(_EXAMPLE), "prompts nearest to each mode, nearest first"),
    _REASON,
)

SENSITIVITY = _table(
    "sensitivity",
    _LAYER,
    _NORM,
    _column("pooling", pa.string(), "pooling measured, or tokens for slopes of prompt metrics"),
    _METRIC,
    _PARAMETERS,
    _column(
        "slope",
        pa.float64(),
        "unit of the metric per unit of probability or share, or per doubling of a length; "
        "NaN when undefined",
    ),
    _column(
        "slope_low",
        pa.float64(),
        "lower end of the interval over prompts; NaN for a metric of all prompts together",
    ),
    _column("slope_high", pa.float64(), "upper end of the interval over prompts, or NaN"),
    _REASON,
    _column("levels", pa.int16(), "levels of the family, the clean pass among them"),
    _column("n_prompts", pa.int64(), "prompts the slope is made from"),
    _column("n_undefined", pa.int64(), "prompts left out because fewer than two levels have one"),
)

_SCORE = (
    _LAYER,
    _NORM,
    _POOLING,
    _column("variant", pa.string(), "raw = the vectors as stored, l2 = each of unit length"),
    _column("task_type", pa.string(), "type in the config, or mteb's own for a task of mteb"),
    _column("fold", pa.int16(), "experiment number"),
    _column("metric", pa.string(), "main metric of the task type"),
    _column("value", pa.float64(), "0..1, correlations -1..1; NaN when undefined"),
    _REASON,
    _column("n_train", pa.int64(), "training items of the fold"),
    _column("n_test", pa.int64(), "test items of the fold"),
)

PROBE_SCORES = _table(
    "probe_scores",
    *_SCORE,
    _column(
        "replicates",
        pa.list_(pa.float64()),
        "the value on bootstrap resamples of the test items, the same ones in every layer",
    ),
)

CANDIDATE_SCORES = _table("candidate_scores", *PROBE_SCORES)

LEARNING_CURVES = _table(
    "learning_curves",
    _column("examples", pa.int32(), "training items per label, or per tenth of the values"),
    *_SCORE,
)

TRANSFORMS = _table(
    "transforms",
    _LAYER,
    _NORM,
    _POOLING,
    _column("n_prompts", pa.int64(), "texts that it was fitted on, whatever their labels"),
    _column("mean", pa.list_(pa.float64()), "of each feature, activation units"),
    _column("deviation", pa.list_(pa.float64()), "of each feature, activation units; 1 if none"),
    _column("directions", pa.list_(pa.float64()), "k unit vectors of largest variance, [k, D]"),
)

LAYER_COSTS = _table(
    "layer_costs",
    _LAYER,
    _column("parameters", pa.int64(), "of the model cut after the layer, shared ones once"),
    _column("flops_per_token", pa.float64(), "forward, 2 per multiply-add, see `tokens`"),
    _column("latency_ms", pa.float64(), "median of a forward pass of one prompt, milliseconds"),
    _column("latency_low_ms", pa.float64(), "a quarter of the passes took less", nullable=True),
    _column("latency_high_ms", pa.float64(), "a quarter of the passes took more", nullable=True),
    _column("tokens", pa.int32(), "length of the prompt that was measured"),
    _column("device", pa.string(), "torch device that was measured"),
)

CHOICES = _table(
    "choices",
    _column("rule", pa.string(), "that chooses a layer without labels of these tasks"),
    _column("layer", pa.int16(), "chosen; null if the rule chooses none", nullable=True),
    _column("score", pa.float64(), "mean main score of the choice, 0..1; NaN without labels"),
    _column("regret", pa.float64(), "what the choice loses to the best layer, 0..1"),
    _column("regret_low", pa.float64(), "lower end of the bootstrap interval of regret"),
    _column("regret_high", pa.float64(), "upper end of the bootstrap interval of regret"),
)

_ASSOCIATION = {
    "": "of a metric with the score over the layers",
    "_low": "lower end of its interval",
    "_high": "upper end of its interval",
    "_permuted": "absolute value that layers in any order reach by chance",
    "_smooth": "absolute value that curves as smooth as the metric reach by chance",
}
CORRELATIONS = _table(
    "correlations",
    _column("dataset", pa.string(), "that the metric was measured on"),
    _column("metric", pa.string(), "its main variant, of the ranked vectors"),
    _column("layers", pa.int16(), "layers that have both"),
    *(
        _column(f"{name}{end}", pa.float64(), f"{name} correlation: {says}")
        for name in ("spearman", "distance")
        for end, says in _ASSOCIATION.items()
    ),
    _REASON,
)

_TRANSFORM = _column(
    "transform", pa.string(), "raw, l2 (unit length), z (standardised) or abtt (top directions off)"
)
_EVIDENCE = (
    _column("n_tasks", pa.int32(), "in which it and the last layer have a score"),
    _column("score", pa.float64(), "mean main score over its tasks, 0..1"),
    _column("score_low", pa.float64(), "lower end of the interval of score on these tasks"),
    _column("score_high", pa.float64(), "upper end of the interval of score on these tasks"),
    _column("rank", pa.int16(), "by gain, 1 = best; null if not comparable", nullable=True),
    _column(
        "gain", pa.float64(), "mean over its tasks of the score minus the baseline's, the last"
    ),
    _column("gain_even", pa.float64(), "gain as if it had every task, which ranks; or gain"),
    _column("gain_low", pa.float64(), "lower end of the interval of gain on a new task"),
    _column("gain_high", pa.float64(), "upper end of the interval of gain on a new task"),
    _column("here_low", pa.float64(), "lower end of the interval of gain on these tasks"),
    _column("here_high", pa.float64(), "upper end of the interval of gain on these tasks"),
    _column("gain_chosen", pa.float64(), "of the choice: its gain after choosing without a task"),
    _column("mean_rank", pa.float64(), "mean over tasks of the rank within the task, 1 = best"),
    _column("won", pa.float64(), "share of tasks in which the layer scores highest, ties split"),
    _column("taken", pa.float64(), "share of choices without one task that took the layer"),
    _column("p_value", pa.float64(), "two-sided test of gain = 0 by sign flips of tasks"),
    _column("p_max", pa.float64(), "p_value corrected for all layers by their maximum"),
    _column("shortfall", pa.float64(), "how far it lies behind the best layer, paired"),
    _column("shortfall_se", pa.float64(), "standard error of the shortfall"),
    _column("cost", pa.float64(), "compute of a token relative to the whole model, 0..1"),
)

CANDIDATES = _table(
    "candidates",
    *(_LAYER, _NORM, _POOLING, _TRANSFORM),
    _column("scored", pa.float64(), "share of its folds that a search scored; below 1 no evidence"),
    *_EVIDENCE,
    _column("recommended", pa.bool_(), "the candidate that the verdict names"),
)

RANKING = _table(
    "ranking",
    *(_LAYER, _NORM, _POOLING, _TRANSFORM),
    *_EVIDENCE,
    _column("plain_score", pa.float64(), "score of the layer's ranked vectors, as configured"),
    _column("plain_gain", pa.float64(), "their gain over those of the last layer"),
    _column("pareto", pa.bool_(), "no other layer scores more at the same or a lower cost"),
    _column("verdict", pa.string(), "use_layer, keep_last, not_enough_evidence or no_labels"),
    _column("sure", pa.string(), "where the gain is above 0: new_task, these_tasks or nothing"),
    _column("recommended", pa.bool_(), "the layer that the verdict names"),
)


def embeddings(dim: int) -> pa.Schema:
    """Return the schema of `embeddings` for vectors of `dim` float32 features.

    The vector is a non-null fixed-size list of non-null items: the form that Parquet writes and
    reads several times faster than the default, and that SQL engines still read as floats.
    """
    item = pa.field("element", pa.float32(), nullable=False)
    vector = _column("vector", pa.list_(item, dim), "activation units of the model, pooled")
    return _table("embeddings", _PROMPT_ID, _LAYER, _NORM, _POOLING, _N_TOKENS, vector)


def prompt_metrics(columns: Sequence[str] = ()) -> pa.Schema:
    """Return the schema of `prompt_metrics`, with the `columns` that are not among the built-in."""
    units = {**dict.fromkeys(columns, "unit of the metric"), **TOKEN_METRICS}
    values = [*TOKEN_METRICS, *sorted(set(columns) - TOKEN_METRICS.keys())]
    reasons = "why which metrics that were asked for are NaN; null where none is"
    return _table(
        "prompt_metrics",
        *(_PROMPT_ID, _LAYER, _NORM, _N_TOKENS),
        *(_column(name, pa.float64(), units[name]) for name in values),
        _column("reasons", pa.string(), reasons, nullable=True),
    )


def _as_lists(kind: pa.Schema) -> pa.Schema:
    """Return columns that hold vectors of any number of features."""
    at = kind.get_field_index("vector")
    return kind.set(at, kind.field(at).with_type(pa.list_(pa.float32())))


# Every table: what a row of it is, and its columns.
TABLES: dict[str, tuple[str, pa.Schema]] = {
    "prompts": ("a unique text of a dataset", PROMPTS),
    "tasks": ("an item of a labelled task; columns of other types of task are null", TASKS),
    "embeddings": ("a text's vector in a layer", _as_lists(embeddings(1))),
    "tokens": ("the states of all tokens of a text in a layer", TOKENS),
    "prompt_metrics": ("metrics of the tokens of a text in a layer", prompt_metrics()),
    "layer_metrics": ("a metric of a layer, in a variant", LAYER_METRICS),
    "own_metrics": ("a value of a metric of the user's own, of a layer", OWN_METRICS),
    "sensitivity": ("how a metric of a layer changes with a perturbation", SENSITIVITY),
    "prompt_traits": ("what a sampled text is like", PROMPT_TRAITS),
    "modes": ("whether the values of a metric fall into two groups, in a layer", MODES),
    "probe_scores": ("a layer's score on a fold of a task, for some vectors", PROBE_SCORES),
    "learning_curves": (
        "a layer's score on a fold of a task, fitted on fewer examples",
        LEARNING_CURVES,
    ),
    "candidate_scores": (
        "a layer's score on a fold of a task, for vectors that one run compares",
        CANDIDATE_SCORES,
    ),
    "layer_costs": ("what the model cut after a layer costs", LAYER_COSTS),
    "transforms": ("what was fitted on the vectors of a layer", TRANSFORMS),
    "choices": ("the layer that a rule takes without labels, and what that loses", CHOICES),
    "correlations": ("how a metric goes with the score over the layers", CORRELATIONS),
    "candidates": ("a layer with vectors that may be recommended, in a run", CANDIDATES),
    "ranking": ("a layer in the ranking of a run", RANKING),
}


def unit(column: pa.Field) -> str:
    """Return unit and meaning of a column."""
    says: bytes = (column.metadata or {}).get(b"unit", b"")
    return says.decode()
