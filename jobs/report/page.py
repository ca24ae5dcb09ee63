"""report (driver): what a run found, as a page for people, as text, and as JSON for programs.

Everything is rendered before the first write, and the page comes last: whoever finds it finds the
rest. Nothing in it depends on the time or on who renders it: the same tables give the same bytes.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from jobs import words
from jobs.cluster.console import say
from jobs.rank.stage import SubjectRanking
from jobs.report import gallery, guide, wording
from jobs.report.charts import Size
from jobs.report.collect import collect
from jobs.report.findings import Findings, SubjectFinding, SweepFinding
from jobs.report.sections import (
    choices,
    conditions,
    curves,
    inputs,
    modes,
    ranking,
    side_by_side,
    steps,
    training,
)
from jobs.report.sections.conditions import response_plots, shades
from jobs.report.sections.curves import curve_plots
from jobs.report.sections.modes import mode_plots
from jobs.report.sections.ranking import NARROW, WIDE, cost_plot, gain_plot, score_plot
from jobs.report.sections.training import checkpoints, in_full
from jobs.report.wording import gain_span
from jobs.run import Run
from jobs.words import p_value, points, share, signed, span

FOLDER = "report"
COLUMNS = 100
_TASK_COLUMN = 15
_NOTES = (
    "  points: 100 x score; gain over the last layer; p of the gain, corrected by Holm;",
    "  best: share of draws with the highest mean; cost: share of the model's compute",
)
_MINUS = re.compile(r"(?<![\w.-])-(?=\d)")
_MARKDOWN = re.compile(r"([\\`*_\[\]|])")


def publish(run: Run, rankings: list[SubjectRanking]) -> None:
    """Write the report of a run and say what it found."""
    findings = collect(run, rankings)
    for name, content in render(findings).items():
        run.root.write(f"{FOLDER}/{name}", content)
    for sweep in findings.sweeps:
        for line in sweep_story(sweep, checkpoints(findings, sweep), findings.level):
            say(line)
    for subject in in_full(findings):
        for line in story(subject, findings.level):
            say(line)
    say()
    say(f"  report: {run.root.place(f'{FOLDER}/index.html')}")


def render(findings: Findings) -> dict[str, bytes]:
    """Return the files of a report, in the order in which they are to be written."""
    content = json.dumps(findings.to_json(), indent=1, allow_nan=False, ensure_ascii=False)
    return {
        "report.json": (content + "\n").encode(),
        "report.md": _markdown(findings).encode(),
        guide.PAGE: guide_page(findings.versions["layerrank"] or "").encode(),
        "index.html": _page(findings).encode(),
    }


def story(subject: SubjectFinding, level: float) -> list[str]:
    """Return the ranking and the verdict of a subject as lines of plain text."""
    lines = ["", f"  {subject.name} at {subject.revision}: {wording.setting(subject)}", ""]
    if subject.is_scored:
        lines += _table(subject, level)
    verdict = textwrap.wrap(subject.verdict.sentence, COLUMNS - 2)
    return lines + [f"  {line}" for line in verdict]


def sweep_story(sweep: SweepFinding, subjects: Sequence[SubjectFinding], level: float) -> list[str]:
    """Return the verdict of every checkpoint and what became of the layers, as plain text."""
    head = (training.axis(sweep.revisions), "last layer", "best layer", "score", "gain")
    rows = [
        (*head, f"{100 * level:g} % interval", "verdict"),
        *training.verdict_rows(subjects),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["", f"  {sweep.name} over training", "", *(_line(" ", row, widths) for row in rows)]
    return [*lines, "", *(f"  {line}" for line in textwrap.wrap(sweep.sentence, COLUMNS - 2))]


def _table(subject: SubjectFinding, level: float) -> list[str]:
    """Return the ranking as an aligned table; task columns that do not fit are left out."""
    interval = f"{100 * level:g} % interval"
    labels = [task.label for task in subject.tasks]
    columns = ["layer", "score", interval, "rank", "gain", interval, "p", "best", "cost"]
    left_out = ranking.not_counted(subject)
    table = [[*columns, *(f"{_short(each)}{'*' * (each in left_out)}" for each in labels)]]
    for row in subject.layers:
        cells = [str(row.layer), points(row.score), span(row.score_low, row.score_high)]
        cells += [words.NOTHING if row.rank is None else str(row.rank), signed(row.gain)]
        cells += [gain_span(subject, row.layer), p_value(row.p_holm)]
        cells += [share(row.p_best), share(row.cost)]
        table.append([*cells, *(points(row.tasks[label]) for label in labels)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    shown = max(n for n in range(len(widths) + 1) if sum(widths[:n]) + 2 * n <= COLUMNS)
    marked = {1 + i for i, r in enumerate(subject.layers) if r.layer == subject.verdict.layer}
    lines = [
        _line(">" if index in marked else " ", cells[:shown], widths[:shown])
        for index, cells in enumerate(table)
    ]
    hidden = len(widths) - shown
    more = [f"  {words.counted(hidden, 'more task')} in the report"] if hidden else []
    said = [ranking.search(subject)]
    if left_out:
        said.insert(0, f"* not counted, as no layer has a score: {', '.join(left_out)}")
    found = [f"  {line}" for each in said for line in textwrap.wrap(each, COLUMNS - 2)]
    return [*lines, "", *_NOTES, *more, *found, ""]


def _line(mark: str, cells: Iterable[str], widths: Sequence[int]) -> str:
    padded = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
    return f"{mark} {'  '.join(padded)}"


def _short(label: str) -> str:
    return label if len(label) <= _TASK_COLUMN else f"{label[: _TASK_COLUMN - 2]}.."


def _page(findings: Findings) -> str:
    template = page_templates().get_template("report.html.j2")
    return template.render(
        findings=findings,
        # As the config file would say it: neither minus signs nor anything else is typeset.
        settings=escape(_settings(findings)),
        ranking_plots=_ranking_plots,
        cost_plots=_cost_plots,
        curve_plots=curve_plots,
        response_plots=response_plots,
        shades=shades,
        mode_plots=mode_plots,
        metric_groups=gallery.groups,
        by_metric=gallery.by_metric,
        section_links=_section_links,
        score_maps=training.score_maps,
        task_maps=training.task_maps,
        metric_maps=training.metric_maps,
        swatch=side_by_side.swatch,
        side_scores=side_by_side.score_plots,
        side_metrics=side_by_side.metric_plots,
    )


def _section_links(subjects: Sequence[SubjectFinding]) -> dict[str, str]:
    """Return the id of each model's section by its name, of several the last."""
    return {subject.name: f"model-{index}" for index, subject in enumerate(subjects, 1)}


def guide_page(version: str) -> str:
    """Return the reading guide of the metrics as a page, which needs no findings."""
    templates = _templates()
    templates.autoescape = True
    return templates.get_template("metrics.html.j2").render(
        article=guide.article(guide.source()), version=version
    )


def _markdown(findings: Findings) -> str:
    templates = _templates()
    templates.finalize = _escape_markdown
    return templates.get_template("report.md.j2").render(
        # Indented, so that no text in it can end the block.
        findings=findings,
        settings=Markup(textwrap.indent(_settings(findings), "    ")),
        drawn=gallery.drawn,
        guide=guide.PAGE,
    )


def page_templates() -> Environment:
    """Return the templates of HTML pages: text is escaped, and numbers are typeset."""
    templates = _templates()
    templates.autoescape = True
    templates.finalize = _typeset
    return templates


def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("jobs.report", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        words=words,
        wording=wording,
        verdicts=ranking,
        inputs=inputs,
        choosing=choices,
        steps=steps,
        curving=curves,
        conditioning=conditions,
        splitting=modes,
        sweeping=training,
        in_full=in_full,
        checkpoints_of=checkpoints,
    )
    return environment


def _settings(findings: Findings) -> str:
    text: str = yaml.safe_dump(findings.settings, sort_keys=False, allow_unicode=True)
    return text


def _typeset(value: object) -> object:
    """Return text with true minus signs and dashes; what is markup stays."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "–" if value == words.NOTHING else _MINUS.sub("−", value)  # noqa: RUF001


def _escape_markdown(value: object) -> object:
    if isinstance(value, Markup):
        return value
    text = re.sub(r"\s", " ", str(value))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", text)


def _ranking_plots(subject: SubjectFinding, name: str) -> dict[str, dict[str, Markup]]:
    """Return the plots of score and of gain, whose is empty where nothing can be compared."""
    gains = len(wording.scored(subject)) > 1
    return {
        "score": _both(score_plot, subject, f"{name}-score"),
        "gain": _both(gain_plot, subject, f"{name}-gain") if gains else {},
    }


def _cost_plots(subject: SubjectFinding, name: str) -> dict[str, Markup]:
    return _both(cost_plot, subject, f"{name}-cost")


def _both(
    plot: Callable[[SubjectFinding, str, Size], Markup], subject: SubjectFinding, name: str
) -> dict[str, Markup]:
    """Return a plot for wide and for narrow windows."""
    return {
        "wide": plot(subject, f"{name}-wide", WIDE),
        "narrow": plot(subject, f"{name}-narrow", NARROW),
    }
