"""What a section is made from: a model's ranking, and the run whose tables lie behind it."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.rank.ranking import Ranking
from jobs.run import Run
from jobs.words import counted
from operators.metrics.registry import METRICS


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


def vectors_of(norm: str, pooling: str) -> str:
    """Return a norm and a pooling in words."""
    state = "final norm" if norm == "final" else "raw output"
    how = "token by token" if pooling == "tokens" else f"{pooling.replace('_', ' ')} pooling"
    return f"{how}, {state}"


def title(metric: str) -> str:
    """Return a metric's title; its name if no title is known."""
    return METRICS[metric].title if metric in METRICS else metric


def layer_cell(layer: int, ranking: Ranking) -> tuple[str, str]:
    """Return the number of a layer as a table begins its row, the last one marked."""
    return str(layer), "last" if layer == ranking.last else ""
