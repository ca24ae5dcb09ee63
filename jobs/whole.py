"""A run from its config to its report: what is opened for it, and its stages in order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from layerrank.jobs.cluster.cluster import Cluster, Side, choose
from layerrank.jobs.cluster.console import say
from layerrank.jobs.cluster.pool import Runner
from layerrank.jobs.config import Engine, Stage
from layerrank.jobs.config.run import RunConfig
from layerrank.jobs.config.settings import ClusterConfig
from layerrank.jobs.config.stored import continued, record, require_no_conflict, shown
from layerrank.jobs.extract.stage import extract, require_extracted
from layerrank.jobs.measure.stage import measure
from layerrank.jobs.prepare.stage import most_tokens, prepare, require_prepared
from layerrank.jobs.probe.stage import probe, require_scores
from layerrank.jobs.run import Run, Seen, open_root
from layerrank.jobs.subjects import resolve
from layerrank.jobs.upkeep import healing
from layerrank.storage.lock import claimed
from layerrank.storage.manifest import Manifests

if TYPE_CHECKING:
    from layerrank.jobs.rank.ranking import Ranking

    Publish = Callable[[Run, Sequence[Ranking]], None]

# What the stages' workers need, which processes of this machine import once: their modules, and
# what these import when it is first used.
WORKERS = (
    "layerrank.jobs.prepare.stage",
    "layerrank.jobs.extract.worker",
    "layerrank.jobs.measure.stage",
    "layerrank.jobs.probe.worker",
    "layerrank.operators.analysis.modes",
    "layerrank.operators.metrics.prompts",
    "layerrank.operators.metrics.similarity",
    "layerrank.operators.metrics.tokens",
    "layerrank.operators.metrics.views",
    "layerrank.operators.model.on_transformers",
    "layerrank.operators.probes.labelled",
    "scipy.stats.contingency",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
)
# What the ranking and the report import, which takes a second.
_AT_THE_END = (
    "layerrank.jobs.rank.stage",
    "layerrank.jobs.report.page",
    "layerrank.jobs.report.drawing",
    "markdown_it",
)


@dataclass(frozen=True)
class Where:
    """Where a run writes, if not to its config's output, and what runs it.

    `folder` is where modules of the user's own are looked for first, that of the config's file.
    """

    output: str | None = None
    engine: Engine | None = None
    address: str | None = None
    overwrite: bool = False
    verbose: bool = False
    folder: str = "."


@contextmanager
def opened(given: RunConfig, where: Where, *, nightly: bool = False) -> Iterator[Run]:
    """Give the run of a config; the first line that it prints says what runs it, and why.

    A nightly finds out which checkpoints are new when it has its lock, and is sized by one.
    """
    seen, root = Seen(), open_root(given, where.output)
    config = continued(given, root)
    chosen = None if nightly else resolve(config.subjects, config.storage)
    manifests = Manifests(root, seen.manifests)
    asked = where.engine or config.cluster.engine
    engine, why = choose(
        where.address, asked, lambda: most_tokens(config, manifests, len(chosen or [0]))
    )
    title = "LayerRank nightly" if nightly else "LayerRank"
    say(f"{title}: {config.name} -> {root.uri} (engine {engine}: {why})")
    cluster = open_cluster(
        engine,
        address=where.address,
        config=config.cluster,
        preload=(*WORKERS, *_AT_THE_END) if engine == "ray" else WORKERS,
        verbose=where.verbose,
        say=say,
    )
    with claimed(root, shown(config), partial(require_no_conflict, config, root)), cluster:
        seen.manifests.clear()  # another run may have ended since they were read
        yield Run(config, root, cluster, where.overwrite, given, chosen, seen, where.folder)


def open_cluster(
    engine: Runner,
    *,
    address: str | None,
    config: ClusterConfig,
    preload: Sequence[str] = (),
    verbose: bool = False,
    say: Callable[[str], None],
) -> Cluster:
    """Return the cluster of a run; nothing of it is started yet.

    `preload` names the modules that workers need: processes import them once, and with Ray the
    driver, before it joins.
    """
    side: Side
    if engine == "ray":
        # Ray takes seconds to import, which a run on processes does without.
        from layerrank.jobs.cluster.on_ray import RayCluster  # noqa: PLC0415
        from layerrank.jobs.cluster.ray_session import Session  # noqa: PLC0415

        known = address or os.environ.get("RAY_ADDRESS")
        session = Session(known, config.wait_seconds, verbose, say, preload)
        side = RayCluster(session, config.stall_seconds)
    else:
        from layerrank.jobs.cluster.on_processes import Processes  # noqa: PLC0415

        side = Processes(preload, stall_seconds=config.stall_seconds, verbose=verbose)
    return Cluster(side, say)


def make(
    run: Run,
    stages: Sequence[Stage],
    publish: Publish,
    check: Callable[[Run, bool], None] = lambda *_: None,
) -> None:
    """Do stages of a run, in order; `rank` ends with `publish` of the rankings.

    `check` may refuse the run before anything is made, and again when its texts are prepared.
    """
    began = time.monotonic()
    of_stage: dict[Stage, Callable[[Run], object]] = {
        "prepare": prepare,
        "extract": extract,
        "measure": measure,
        "probe": probe,
        "rank": partial(rank_and_report, publish=publish),
    }

    def work() -> None:
        # A stage on its own reads what those before it have made, with the same settings.
        if stages[0] != "prepare":
            require_prepared(run)
        if stages[0] not in ("prepare", "extract"):
            require_extracted(run)
        check(run, False)
        record(run.config, run.given or run.config, run.root)
        for number, stage in enumerate(stages, 1):
            say(f"{number}/{len(stages)} {stage}")
            of_stage[stage](run)
            if stage == "prepare":
                check(run, True)

    run.require_readable()
    if run.cluster.has_begun and stages[-1] == "rank":
        for name in _AT_THE_END:  # while the engine starts
            import_module(name)
    healing(run, work)
    say(f"done in {time.monotonic() - began:.0f} s")


def rank_and_report(run: Run, publish: Publish) -> None:
    """Do the last stage: what is scored becomes a ranking, and that is published."""
    from layerrank.jobs.rank.stage import rank  # noqa: PLC0415

    require_scores(run)
    publish(run, rank(run))
