"""How a report was made: what ran each stage, the settings and seeds, the versions."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml

from layerrank.jobs.config.stored import shown
from layerrank.jobs.prepare.records import SKIPPED
from layerrank.jobs.report.section import Cell, Section, Table
from layerrank.jobs.run import TABLES, Run, partition
from layerrank.jobs.words import count

_PACKAGES = (
    "layerrank",
    "torch",
    "transformers",
    "ray",
    "numpy",
    "pyarrow",
    "scikit-learn",
    "datasets",
)


def section(run: Run) -> Section:
    """Return how the report of a run was made."""
    config, made = run.config, _made(run)
    table, corpora = _datasets(run)
    seeds = {"run": config.seed, "probe": config.probe.seed}
    found = section_of(
        shown(config),
        f"Seed of the run {seeds['run']}, of the probes {seeds['probe']}.",
        [f"{stage}: {'; '.join(by)}." for stage, by in made.items()],
        [table],
    )
    told = {"made": made, "datasets": corpora, "seeds": seeds}
    return replace(found, data={**found.data, **told})


def section_of(
    settings: Mapping[str, Any], seeds: str, made: list[str], tables: list[Table] | None = None
) -> Section:
    """Return how a report was made from its settings, seeds, and what ran the work."""
    packages = versions()
    lines = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True).splitlines()
    listed = [[name, each or "not installed"] for name, each in packages.items()]
    return Section(
        "How this was made",
        "made",
        says=[*made, seeds],
        tables=[
            *(tables or []),
            Table("Settings", ["Setting"], [[line] for line in lines], folded=True),
            Table(
                "Versions, of the machine that wrote this report",
                ["Package", "Version"],
                listed,
                words=(0, 1),
                folded=True,
            ),
        ],
        folded=True,
        data={"versions": packages, "settings": settings},
    )


def _datasets(run: Run) -> tuple[Table, list[dict[str, Any]]]:
    """Return the corpora as they were prepared, as a table and as data."""
    found: list[dict[str, Any]] = []
    for dataset in run.config.datasets:
        manifest = run.prompts(dataset)
        facts = manifest.facts()
        found.append(
            {
                "name": dataset.name,
                "prompts": manifest.rows,
                "shards": len(manifest.receipts),
                "skipped": {reason: int(facts[f"skipped_{reason}"]) for reason in SKIPPED},
                "duplicates": int(facts["duplicates"]),
            }
        )
    rows = []
    for each in found:
        counts = [each["prompts"], each["shards"], each["duplicates"], *each["skipped"].values()]
        rows.append([each["name"], *map(count, counts)])
    head: list[Cell] = ["Dataset", "Unique prompts", "Shards", ("Repeated", "encoded once")]
    head += [(reason.replace("_", " "), "left out") for reason in SKIPPED]
    return Table("Prompts of every dataset", head, rows), found


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _made(run: Run) -> dict[str, list[str]]:
    """Return what ran the work of each stage, as its tables say; several after a resumed run."""
    tables = [partition("prompts", dataset) for dataset in run.config.datasets]
    for subject, dataset in run.pairs():
        tables.append(partition("embeddings", subject, dataset))
        tables.append(partition("layer_metrics", subject, dataset))
        tables += [each for task in dataset.tasks for each in run.scores_of(subject, dataset, task)]
    found: dict[str, list[str]] = {}
    for where in tables:
        manifest = run.manifests.load(where)
        known = found.setdefault(TABLES[where.table].stage, [])
        if manifest and manifest.made and manifest.made not in known:
            known.append(manifest.made)
    return {stage: made for stage, made in found.items() if made}
