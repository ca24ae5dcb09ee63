"""What a section is made from: a model's ranking, and the run whose tables lie behind it."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.rank.ranking import Ranking
from jobs.report.charts import Mark
from jobs.report.wording import vectors_of
from jobs.run import Run
from jobs.words import counted


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
    def vectors(self) -> str:
        """The vectors that were ranked in words."""
        norm, pooling, variant = self.ranking.vectors
        scaled = ", scaled to unit length" if variant == "l2" else ""
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
            keep = verdict.kind == "keep_last"
            said = f"keep layer {last}, the last" if keep else f"last layer {last}"
            return [Mark(last, said, keep)]
        sure = verdict.kind == "use_layer"
        said = f"use layer {verdict.layer}" if sure else f"a guess: layer {verdict.layer}"
        return [Mark(last, f"last layer {last}"), Mark(verdict.layer, said, sure)]

    def band(self, of: str) -> tuple[list[float], list[float]]:
        """Return the ends of the intervals of every layer's score or gain, where there are any."""
        rows = self.ranking.rows if self.ranking.has_intervals else []
        return [row[f"{of}_low"] for row in rows], [row[f"{of}_high"] for row in rows]
