"""Views for analysts: what each run ranks is picked for them, and a layer is one row.

They stand on the views of the tables, and on two small tables of this connection, in the schema
`layerrank`, which say what of the root is whose: nothing is read before it is asked for. What is
undefined is NULL here, not NaN, which SQL would take for the largest number.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import duckdb
import pyarrow as pa
import yaml

from layerrank.storage import schema
from layerrank.storage.manifest import Manifest
from layerrank.storage.partition import CLEAN, KEYS, RUNS, TableName, step_of
from layerrank.storage.readers import plain_yaml
from layerrank.storage.root import Root

_IS_VIEW = "SELECT 1 FROM duckdb_views() WHERE view_name = ?"
_JOINED: Sequence[TableName] = ["layer_costs", "layer_metrics", "probe_scores", "candidate_scores"]
_MOST_STEP = 1 << 63  # of a 64-bit number; a revision may be a digest
_CONTEXT = {
    "model": schema.KEY_MEANINGS["model"],
    "revision": schema.KEY_MEANINGS["revision"],
    "step": "training step: the last number in the revision's name; NULL if it has none",
    "run": schema.KEY_MEANINGS["group"],
    "published": "when this ranking first stood, UTC; NULL of versions that did not note it",
}
_OF_RUN = pa.schema(
    [
        *((name, pa.string()) for name in ("model", "revision", "run")),
        ("step", pa.int64()),
        ("published", pa.string()),
        *((name, pa.string()) for name in ("norm", "pooling", "variant", "policy")),
    ]
)
_OF_TASK = pa.schema(
    [(name, pa.string()) for name in ("model", "revision", "run", "dataset", "task")]
)
_OF_METRIC = pa.schema(
    [(name, pa.string()) for name in ("model", "revision", "run", "dataset", "metric", "variant")]
)
Complete = Mapping[TableName, Sequence[Manifest]]


class Column(NamedTuple):
    """A column of a view: its name, the expression that it is, its unit and meaning."""

    name: str
    sql: str
    says: str


class View(NamedTuple):
    """A view: what a row of it is, its columns, and where they come from."""

    name: str
    says: str
    columns: Sequence[Column]
    source: str


class Ranked(NamedTuple):
    """What runs rank: their rankings, and the tasks and metrics that are theirs."""

    runs: pa.Table
    tasks: pa.Table
    metrics: pa.Table


NOTHING = Ranked(*(kind.empty_table() for kind in (_OF_RUN, _OF_TASK, _OF_METRIC)))


def ranked(root: Root, complete: Complete) -> Ranked:
    """Return what of the tables each run ranks, as the manifests and the configs of runs say."""
    rankings = complete.get("ranking", ())
    datasets = {
        run: _datasets(root, run) for run in {each.partition.values[-1] for each in rankings}
    }
    by_model: dict[tuple[str, ...], list[Manifest]] = {}
    for table in ("probe_scores", "candidate_scores", "layer_metrics"):
        for each in complete.get(table, ()):
            by_model.setdefault(each.partition.values[:2], []).append(each)
    runs, tasks, metrics = list[tuple[object, ...]](), dict[tuple[str, ...], None](), []
    for ranking in rankings:
        *model, run = ranking.partition.values
        settings, step = ranking.settings, step_of(model[1])
        runs.append(
            (
                *(*model, run),
                step if step is not None and step < _MOST_STEP else None,
                ranking.published or None,
                *(settings.get(name) for name in ("norm", "pooling", "variant", "policy")),
            )
        )
        for each in by_model.get(tuple(model), ()):
            keys, known = each.partition.keys, datasets[run]
            dataset, task = keys["dataset"], keys.get("task", "")
            ours = keys["condition"] == CLEAN and keys.get("group", run) == run
            if not ours or (known is not None and dataset not in known):
                continue
            if each.partition.table == "layer_metrics":
                metrics += [(*model, run, dataset, *of) for of in _main_metrics(each)]
            elif {task, f"{dataset}/{task}"} & {*settings.get("tasks", ())}:
                tasks[*model, run, dataset, task] = None
    return Ranked(
        *(
            pa.Table.from_pylist([dict(zip(kind.names, row, strict=True)) for row in rows], kind)
            for rows, kind in ((runs, _OF_RUN), (tasks, _OF_TASK), (metrics, _OF_METRIC))
        )
    )


def _datasets(root: Root, run: str) -> set[str] | None:
    """Return the datasets of a run; None if no config says, as of scores from elsewhere."""
    try:
        found = plain_yaml.load(root.read(f"{RUNS}/{run}.yaml"), plain_yaml.MOST_KEPT)
        return {each["name"] for each in found["config"]["datasets"]}
    except (FileNotFoundError, yaml.YAMLError, ValueError, LookupError, TypeError):
        return None


def _main_metrics(measured: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the metrics of a partition, each with the variant that stands for it."""
    settings = measured.settings
    alpha, how = settings.get("alphas", [1])[0], settings.get("normalizations", ["raw"])[0]
    names = {
        "order": schema.entropy_variant(alpha),
        "entropy": schema.entropy_variant(alpha, how),
    }
    for metric in settings.get("metrics", ()):
        if metric in schema.MAIN_METRICS:
            yield metric, schema.MAIN_METRICS[metric][0].format(**names)


def create(
    connection: duckdb.DuckDBPyConnection,
    found: Ranked,
    present: Container[str],
    alerts: str,
    vectors: Mapping[int, str],
) -> list[str]:
    """Create the views of a connection, which has the `present` tables, and return their names.

    `alerts` is a list of files in SQL; `vectors` has by the number of features what selects the
    embeddings that have so many.
    """
    connection.execute("CREATE SCHEMA layerrank")
    for name, table in found._asdict().items():
        connection.from_arrow(table).create(f"layerrank.{name}")
    of: dict[str, str] = {"ranking": "ranking"}
    for table in _JOINED:
        of[table] = table
        if table not in present:
            of[table] = f"layerrank.{table}"
            connection.from_arrow(empty(table)).create(of[table])
    views = [_layers(of), _scores(of), _nights(of, alerts)] if "ranking" in present else []
    for size, embeddings in sorted(vectors.items()):
        names = [f"vectors_{size}", *(["vectors"] if len(vectors) == 1 else [])]
        views += [
            _vectors(name, size, embeddings, with_text="prompts" in present) for name in names
        ]
    for view in views:
        columns = ", ".join(f'{each.sql} AS "{each.name}"' for each in view.columns)
        connection.execute(f"CREATE VIEW {view.name} AS SELECT {columns} {view.source}")
        says = {each.name: each.says for each in view.columns}
        comment(connection, view.name, view.says, says)
    return [view.name for view in views]


def empty(table: TableName) -> pa.Table:
    """Return a table without rows, with its keys."""
    keys = [pa.field(key, pa.string()) for key in KEYS[table]]
    return pa.schema([*schema.TABLES[table][1], *keys]).empty_table()


def comment(
    connection: duckdb.DuckDBPyConnection, view: str, says: str, columns: Mapping[str, str]
) -> None:
    """Say of a view, or table, what a row of it is, and of its columns unit and meaning."""
    kind = "VIEW" if connection.execute(_IS_VIEW, [view]).fetchone() else "TABLE"
    told = {
        f"{kind} {view}": f"a row: {says}",
        **{f'COLUMN {view}."{k}"': v for k, v in columns.items()},
    }
    quoted = {what: "'" + text.replace("'", "''") + "'" for what, text in told.items()}
    connection.execute(";".join(f"COMMENT ON {what} IS {text}" for what, text in quoted.items()))


def meanings(table: str, columns: Iterable[str]) -> dict[str, str]:
    """Return unit and meaning of the columns of a table's view."""
    kind = schema.TABLES[table][1]
    of = {each.name: schema.unit(each) for each in kind} | schema.KEY_MEANINGS
    return {name: of.get(name, "unit of the metric") for name in columns}


def _context(table: str, *names: str) -> list[Column]:
    """Return the columns that say which model, and which run, a row is of."""
    found = {name: f"{table}.{name}" for name in names}
    if "published" in found:  # as DuckDB has no time zones without an extension
        found["published"] = f"left({table}.published, 19)::TIMESTAMP"
    return [Column(name, sql, _CONTEXT[name]) for name, sql in found.items()]


def _fields(table: str, kind: pa.Schema, names: Iterable[str]) -> list[Column]:
    """Return columns of a table as they are, what is undefined as NULL."""
    found = []
    for name in names:
        field = kind.field(name)
        sql = f"{table}.{name}"
        if pa.types.is_floating(field.type):
            sql = f"nullif({sql}, 'nan'::DOUBLE)"
        found.append(Column(name, sql, schema.unit(field)))
    return found


def _layers(of: Mapping[str, str]) -> View:
    ranking, costs = schema.RANKING, schema.LAYER_COSTS
    metrics = [
        Column(name, f"m.{name}", f"{unit}; mean over the run's datasets")
        for name, (_, unit) in schema.MAIN_METRICS.items()
    ]
    means = ", ".join(
        f"nullif(avg(value) FILTER (metric = '{name}'), 'nan'::DOUBLE) AS {name}"
        for name in schema.MAIN_METRICS
    )
    return View(
        "layers",
        "a layer in the ranking of a run, its vectors those that score best there, with its costs "
        "and the main variant of every metric, of the vectors that the run was asked to rank; NULL "
        "where it is undefined on a dataset",
        [
            *_context("a", "model", "revision", "step", "run", "published"),
            *_fields("r", ranking, ranking.names),
            *_fields("c", costs, costs.names[1:]),
            *metrics,
        ],
        f"""
        FROM {of["ranking"]} r
        JOIN layerrank.runs a
          ON r.model = a.model AND r.revision = a.revision AND r."group" = a.run
        LEFT JOIN {of["layer_costs"]} c
          ON r.model = c.model AND r.revision = c.revision AND r.layer = c.layer
        LEFT JOIN (
          SELECT model, revision, run, layer, {means} FROM (
            SELECT a.model, a.revision, a.run, v.dataset, v.layer, v.metric, arg_min(v.value, {{
              other: v.norm <> a.norm OR v.pooling <> a.pooling, norm: v.norm, pooling: v.pooling
            }}) AS value
            FROM {of["layer_metrics"]} v
            JOIN layerrank.metrics USING (model, revision, dataset, metric, variant)
            JOIN layerrank.runs a USING (model, revision, run)
            WHERE v.condition = '{CLEAN}' GROUP BY ALL
          ) GROUP BY ALL
        ) m ON r.model = m.model AND r.revision = m.revision AND a.run = m.run AND r.layer = m.layer
        """,
    )


def _scores(of: Mapping[str, str]) -> View:
    fields = ("layer", "norm", "pooling", "variant", "task_type", "metric", "reason")
    known = {name: schema.unit(schema.PROBE_SCORES.field(name)) for name in fields}
    shared = ", ".join(["model", "revision", "dataset", "task", *fields, "value"])
    here = f"condition = '{CLEAN}'"
    return View(
        "scores",
        "a layer's score on a task of a run, of the vectors that the run ranks",
        [
            *_context("s", "model", "revision", "step", "run"),
            *(Column(name, f"s.{name}", schema.KEY_MEANINGS[name]) for name in ("dataset", "task")),
            Column("task_type", "s.task_type", known["task_type"]),
            *(Column(name, f"s.{name}", known[name]) for name in ("layer", "norm", "pooling")),
            Column("transform", "s.variant", schema.unit(schema.RANKING.field("transform"))),
            Column("metric", "s.metric", known["metric"]),
            Column(
                "score",
                "CASE WHEN s.folds = max(s.folds) OVER (PARTITION BY s.model, s.revision, s.run, "
                "s.dataset, s.task) THEN nullif(s.score, 'nan'::DOUBLE) END",
                "mean over the folds, 0..1, correlations -1..1; NULL when undefined, or when a "
                "search scored fewer folds than of other layers",
            ),
            Column("folds", "s.folds", "folds that were scored"),
            Column("reason", "s.reason", known["reason"]),
        ],
        f"""
        FROM (
          SELECT t.model, t.revision, t.run, t.step, t.dataset, t.task, v.task_type, v.layer,
            v.norm, v.pooling, v.variant, v.metric, avg(v.value) AS score, count(*) AS folds,
            max(v.reason) AS reason
          FROM (
            SELECT {shared}, NULL AS run FROM {of["probe_scores"]} WHERE {here}
            UNION ALL
            SELECT {shared}, "group" AS run FROM {of["candidate_scores"]} WHERE {here}
          ) v
          JOIN (SELECT * FROM layerrank.tasks JOIN layerrank.runs USING (model, revision, run)) t
            ON v.model = t.model AND v.revision = t.revision AND v.dataset = t.dataset
            AND v.task = t.task AND (v.run IS NULL OR v.run = t.run)
            AND v.norm = t.norm AND v.pooling = t.pooling AND v.variant = t.variant
          GROUP BY ALL
        ) s
        """,
    )


def _nights(of: Mapping[str, str], alerts: str) -> View:
    counted = "SELECT NULL AS run, NULL AS model, NULL AS revision, 0 AS rules WHERE false"
    if alerts != "[]":
        counted = (
            "SELECT run, model, revision, json_array_length(rules) AS rules "
            f"FROM read_json({alerts}, columns = "
            "{run: 'VARCHAR', model: 'VARCHAR', revision: 'VARCHAR', rules: 'JSON'})"
        )
    fields = ("score", "gain", "gain_chosen", "here_low", "here_high", "cost", "verdict", "sure")
    last = "nullif(l.score, 'nan'::DOUBLE)"
    return View(
        "nights",
        "a ranking: of a model at a revision, by a run, with what it recommends",
        [
            *_context("a", "model", "revision", "step", "run", "published"),
            Column("policy", "a.policy", "that chose: rank.policy of the config"),
            Column("recommended_layer", "r.layer", "the layer that the verdict names"),
            *_fields("r", schema.RANKING, ("norm", "pooling", "transform", "n_tasks", *fields)),
            Column("last_layer", "l.layer", "the last layer, which gains are over"),
            Column("last_score", last, "score of the last layer, as ranked, 0..1"),
            Column("alerts", "coalesce(n.rules, 0)", "rules of a nightly that it broke"),
        ],
        f"""
        FROM {of["ranking"]} r
        JOIN layerrank.runs a
          ON r.model = a.model AND r.revision = a.revision AND r."group" = a.run
        JOIN (
          SELECT model, revision, "group", max(layer) AS layer, arg_max(plain_score, layer) AS score
          FROM {of["ranking"]} GROUP BY ALL
        ) l ON r.model = l.model AND r.revision = l.revision AND r."group" = l."group"
        LEFT JOIN ({counted}) n
          ON a.run = n.run AND a.model = n.model AND a.revision = n.revision
        WHERE r.recommended
        """,
    )


def _vectors(name: str, size: int, embeddings: str, *, with_text: bool) -> View:
    kind = schema.embeddings(size)
    text = Column("text", "p.text" if with_text else "NULL::VARCHAR", "the text itself")
    return View(
        name,
        f"a text's vector of {size} features in a layer; of the text alone, as it is",
        [
            *(
                Column(key, f"e.{key}", schema.KEY_MEANINGS[key])
                for key in ("model", "revision", "dataset")
            ),
            Column("prompt_id", "e.prompt_id", schema.unit(kind.field("prompt_id"))),
            text,
            *_fields("e", kind, ("layer", "norm", "pooling", "n_tokens")),
            Column("vector", f"e.vector::FLOAT[{size}]", schema.unit(kind.field("vector"))),
        ],
        f"""
        FROM ({embeddings}) e
        {"LEFT JOIN prompts p ON e.dataset = p.dataset AND e.prompt_id = p.prompt_id" * with_text}
        WHERE e.condition = '{CLEAN}'
        """,
    )
