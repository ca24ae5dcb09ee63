"""What a section is made from, a model's ranking and its run, and what several call alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

from layerrank.jobs.rank.ranking import Ranking, Row
from layerrank.jobs.rank.sentences import TRANSFORMED
from layerrank.jobs.report.charts import Line, Mark, in_points
from layerrank.jobs.run import Run
from layerrank.jobs.words import NOTHING, counted, known, span
from layerrank.operators.metrics.registry import (
    METRICS,
    Parameters,
    main_variant,
    of_every_view,
    unit_of,
)


@dataclass(frozen=True)
class Facts:
    """A ranked model; without a run its scores came from elsewhere, and they are all there is."""

    ranking: Ranking
    run: Run | None = None

    @property
    def interval(self) -> str:
        """What an interval is called."""
        return f"{100 * self.ranking.settings.level:g} % interval"

    @property
    def several_datasets(self) -> bool:
        """Whether the name of a dataset has to stand beside what is told of it."""
        return self.run is not None and len(self.run.config.datasets) > 1

    @property
    def views(self) -> int:
        """How many views of a prompt the run compares."""
        return self.run.config.views.count if self.run else 0

    @property
    def vectors(self) -> str:
        """The vectors that were ranked in words."""
        norm, pooling, transform = self.ranking.vectors
        scaled = f", {TRANSFORMED[transform]}" if transform != "raw" else ""
        return f"{vectors_of(norm, pooling)}{scaled}" if self.run else "scores from elsewhere"

    @property
    def setting(self) -> str:
        """How deep the model is, and which vectors were ranked."""
        return f"{counted(self.ranking.last, 'block')}, {self.vectors}"

    @property
    def marks(self) -> list[Mark]:
        """Rules at the layers that matter, with words: the last and the verdict's."""
        verdict, last = self.ranking.verdict, self.ranking.last
        if verdict.layer == last:
            keep = verdict.kind in ("keep_last", "use_layer")
            said = f"keep layer {last}, the last" if keep else f"last layer {last}"
            return [Mark(last, said, keep)]
        sure = verdict.kind == "use_layer"
        said = f"use layer {verdict.layer}" if sure else f"a guess: layer {verdict.layer}"
        return [Mark(last, f"last layer {last}"), Mark(verdict.layer, said, sure)]

    def by_layer(self, of: str, value: str, name: str) -> list[Line]:
        """Return a figure of every layer in points, with its band where it has an interval `of` it.

        Of the vectors that were asked for, and where other vectors of a layer were scored in full
        and are better, what these have.
        """
        ranking = self.ranking
        asked = ranking.plain or ranking
        x = [row["layer"] for row in asked.rows]
        values = [row[value] for row in asked.rows]
        lines = [in_points(name, x, values, band=Facts(asked, self.run).band(of))]
        if ranking.plain:
            better = [
                row[value] if of != ranking.vectors else math.nan
                for row, of in zip(ranking.rows, ranking.vectors_of, strict=True)
            ]
            if not all(map(math.isnan, better)):
                lines.append(in_points("with its best vectors", x, better, "second"))
        return lines

    def band(self, of: str) -> tuple[list[float], list[float]]:
        """Return the ends of an interval of every layer, where there are any."""
        rows = self.ranking.rows
        if not any(known(row[f"{of}_low"]) for row in rows):
            return [], []
        moved = [row["aligned"] - row["score"] if of == "score" else 0.0 for row in rows]
        low, high = (
            [row[f"{of}_{end}"] + by for row, by in zip(rows, moved, strict=True)]
            for end in ("low", "high")
        )
        return low, high


def vectors_of(norm: str, pooling: str) -> str:
    """Return a norm and a pooling in words."""
    state = "final norm" if norm == "final" else "raw output"
    how = "token by token" if pooling == "tokens" else f"{pooling.replace('_', ' ')} pooling"
    return f"{how}, {state}"


def title(metric: str, views: int = 0) -> str:
    """Return a metric's title, with how many views its values compare; its name if none is known.

    The number stands where values do, of the metrics that depend on it.
    """
    found = METRICS[metric].title if metric in METRICS else metric
    return f"{found}, {views} views" if views and of_every_view(metric) else found


def layer_cell(layer: int, ranking: Ranking) -> tuple[str, str]:
    """Return the number of a layer as a table begins its row, the last one marked."""
    return str(layer), "last" if layer == ranking.last else ""


def gain_span(row: Row, last: int) -> str:
    """Return the interval of a layer's gain; the last layer as ranked is what gains are over."""
    if row["layer"] == last and not row["gain"]:
        return "baseline" if known(row["score"]) else NOTHING
    return span(row["gain_low"], row["gain_high"])


def units_of(asked: Parameters) -> dict[str, str]:
    """Return the unit of each metric's main variant."""
    return {name: unit_of(name, main_variant(name, asked)) for name in METRICS}
