"""report (driver): what a run found, as a page for people, as text, and as JSON for programs.

A report is a list of sections, a file of `sections/` each. Everything is rendered before the first
write, and the page comes last: whoever finds it finds the rest. Nothing in it depends on the time
or on who renders it: the same tables give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from layerrank.jobs.cluster.console import say
from layerrank.jobs.config.blocks import ConfigError
from layerrank.jobs.config.metrics import parameters
from layerrank.jobs.config.stored import without_passwords
from layerrank.jobs.rank.ranking import Ranking, checkpoint_of, choice_rows
from layerrank.jobs.report import guide, kept, made, section
from layerrank.jobs.report.facts import Facts, units_of
from layerrank.jobs.report.section import Cell, Section, Table
from layerrank.jobs.report.sections import (
    answer,
    choices,
    conditions,
    cost,
    curves,
    inputs,
    metrics,
    modes,
    ranking,
    side_by_side,
    training,
)
from layerrank.jobs.run import Run, partition, write_table
from layerrank.jobs.words import capital, counted
from layerrank.storage.manifest import Manifests
from layerrank.storage.partition import TableName, one_name, step_of
from layerrank.storage.root import Root

FOLDER = "report"
SCHEMA_VERSION = 3
# What stands in a model's part of a report, in this order; the first is seen before anything else.
SECTIONS: tuple[Callable[[Facts], Section], ...] = (
    answer.section,
    answer.steps,
    ranking.section,
    cost.section,
    curves.section,
    choices.section,
    metrics.section,
    conditions.section,
    modes.section,
    inputs.section,
)


def folder_of(name: str) -> str:
    """Return where the report of a run lies under its root."""
    return f"{FOLDER}/{one_name(name)}"


@dataclass(frozen=True)
class Report:
    """The facts of every model, and how they came to be."""

    name: str
    models: Sequence[Facts]
    made: Section
    units: Mapping[str, str]

    @property
    def folder(self) -> str:
        """Where its files lie under the root."""
        return folder_of(self.name)

    @property
    def sweeps(self) -> list[list[Facts]]:
        """The checkpoints of every model that has two or more, the oldest first.

        In the order of their steps; where one has no step in its revision, as they were given.
        """
        together: dict[str, list[Facts]] = {}
        for facts in self.models:
            together.setdefault(facts.ranking.subject.name, []).append(facts)
        found = []
        for same in together.values():
            steps = [step_of(facts.ranking.subject.revision) for facts in same]
            if None not in steps:
                same.sort(key=lambda facts: step_of(facts.ranking.subject.revision) or 0)
            found += [same] if len(same) > 1 else []
        return found

    @property
    def in_full(self) -> list[Facts]:
        """The models that are shown in full: of every sweep the newest checkpoint."""
        newest = {same[-1].ranking.subject.name: same[-1] for same in self.sweeps}
        return [each for each in self.models if newest.get(each.ranking.subject.name, each) is each]

    def training(self) -> list[Section]:
        """Return the section of each sweep."""
        found = []
        for number, same in enumerate(self.sweeps):
            level = same[-1].ranking.settings.level
            checkpoints = [checkpoint_of(facts.ranking) for facts in same]
            told = training.section(checkpoints, level, self.units, views=same[-1].views)
            found.append(replace(told, anchor=f"training-{number}"))
        return found


def publish(run: Run, rankings: Sequence[Ranking], *, anew: bool = True) -> None:
    """Say what a run found and write its report; one that is current stays, unless `anew`."""
    units = units_of(parameters(run.config))
    models = [Facts(each, run) for each in rankings]
    report = Report(run.config.name, models, made.section(run), units)
    if not anew and kept.is_current(run, report.folder, report.made.data):
        tell(report)
        _say_where(report, run.root)
        return
    kept.keep(run, report.made.data, write(report, run.root))


def publish_scores(path: str, root: Root | None, rankings: Sequence[Ranking]) -> None:
    """Say what scores from elsewhere show; with a root write their tables and their report."""
    file, settings = PurePosixPath(path), asdict(rankings[0].settings)
    if root and not file.stem.strip("."):
        raise ConfigError(
            f"{path}: what is stored is called as the file without its ending, and {file.stem!r} "
            "is no name: rename it"
        )
    told = made.section_of(
        {"scores": file.name, **settings},
        f"Scores of {file.name}; seed of the draws {settings['seed']}.",
        [],
    )
    for each in rankings if root else ():
        assert root is not None
        written = {"scores": file.name, "tasks": each.evidence.tasks, "level": each.evidence.level}
        tables: dict[TableName, list[dict[str, Any]]]
        tables = {"choices": choice_rows(each), "ranking": each.table}
        for table, rows in tables.items():
            where = partition(table, each.subject, file.stem)
            write_table(Manifests(root), where, written, rows)
    report = Report(file.stem, [Facts(each) for each in rankings], told, {})
    if root:
        write(report, root)
    else:
        tell(report)


def write(report: Report, root: Root) -> dict[str, bytes]:
    """Say what a report found, and write its files, which are returned."""
    files = render(report)
    tell(report)
    for name, content in files.items():
        root.write(f"{report.folder}/{name}", content)
    root.write(f"{FOLDER}/index.html", index(root))
    _say_where(report, root)
    return files


def _say_where(report: Report, root: Root) -> None:
    say()
    say(f"  report: {root.place(f'{report.folder}/index.html')}")


def tell(report: Report) -> None:
    """Say what a report found."""
    for sweep in report.training():
        for line in ["", f"  {sweep.title}", *section.console([sweep])]:
            say(line)
    for facts in report.in_full:
        lines = [f"  left out: {note}" for note in facts.ranking.notes]
        if facts.ranking.scored:
            lines += section.console([ranking.section(facts)])
        else:
            lines += ["", *section.wrapped(facts.ranking.sentence)]
        for line in ["", f"  {facts.ranking.subject}: {facts.setting}", *lines]:
            say(line)


def index(root: Root) -> bytes:
    """Return the page that lists the reports of a root, with what each says of its models."""
    rows: list[list[Cell]] = []
    for folder in root.folders(FOLDER):
        try:
            found = json.loads(root.read(f"{FOLDER}/{folder}/report.json"))
            says = [str(each["verdict"]["sentence"]) for each in found["subjects"]]
            name = Markup('<a href="{}/index.html">{}</a>').format(quote(folder), found["run"])
            rows.append([name, str(len(says)), says[0]])
        except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
            continue  # it is being written, or not ours
    table = Table("Reports", ["Run", "Models", "Of the first"], rows, words=(0, 2))
    return section.page(
        "page.html.j2",
        title="Reports of this root",
        about=f"{counted(len(rows), 'run')}.",
        before=[Section("Runs", "runs", tables=[table])],
        models=[],
        after=[],
        version=made.versions()["layerrank"] or "",
        forms={},
    )


def render(report: Report) -> dict[str, bytes]:
    """Return the files of a report, in the order in which they are to be written."""
    sections = {id(facts): [make(facts) for make in SECTIONS] for facts in report.models}
    of_all = [side_by_side.section(report.in_full), *report.training()]
    several = [(facts, sections[id(facts)]) for facts in report.in_full]
    version = str(report.made.data["versions"]["layerrank"] or "")
    parts = [section.markdown(each, 1) for each in of_all]
    for facts, own in several:
        name = Section(f"{facts.ranking.subject.name}: layer ranking", says=[facts.setting])
        parts += [section.markdown(name, 1), *map(section.markdown, own)]
    text = "\n\n".join(filter(None, [*parts, section.markdown(report.made, 1)]))
    return {
        "report.json": section.json_bytes(_data(report, sections, of_all)),
        "report.md": f"{text}\n".encode(),
        guide.PAGE: guide.page(version),
        "index.html": _page(report, several, of_all, version),
    }


def _data(
    report: Report, sections: Mapping[int, Sequence[Section]], of_all: Sequence[Section]
) -> dict[str, Any]:
    """Return what report.json holds: the facts of every model, from the data of its sections."""
    subjects = []
    for facts in report.models:
        found = facts.ranking
        head = {
            "name": found.subject.name,
            "revision": found.subject.revision,
            "model": without_passwords(found.subject.model),
            "blocks": found.last,
            **found.vectors._asdict(),
            "policy": found.settings.policy,
            "verdict": {**asdict(found.verdict), "sentence": found.sentence},
        }
        subjects.append(head)
        for each in sections[id(facts)]:
            head |= each.data
    settings = report.models[0].ranking.settings
    side, *sweeps = of_all
    return {
        "schema_version": SCHEMA_VERSION,
        "run": report.name,
        "level": settings.level,
        "draws": settings.draws,
        **report.made.data,
        "subjects": subjects,
        "sweeps": [each.data for each in sweeps],
        **side.data,
    }


def _page(
    report: Report,
    models: Sequence[tuple[Facts, Sequence[Section]]],
    of_all: Sequence[Section],
    version: str,
) -> bytes:
    told = []
    for facts, sections in models:
        name, revision = facts.ranking.subject.name, facts.ranking.subject.revision
        where = f"Revision {revision}; " if revision else ""
        about = capital(f"{where}{facts.setting}; run {report.name}.")
        told.append({"name": name, "about": about, "sections": sections})
    names = {each["name"] for each in told}
    count = counted(len(models), "model")
    return section.page(
        "page.html.j2",
        title=f"{report.name if len(names) > 1 else told[0]['name']}: layer ranking",
        about=f"{count} in full{', of several checkpoints the newest' if report.sweeps else ''}.",
        before=of_all,
        models=told,
        after=[report.made],
        version=version,
        forms={"JSON": "report.json", "text": "report.md"},
    )
