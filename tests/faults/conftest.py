"""The table of what was tried, at the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import pytest
from _pytest.terminal import TerminalReporter

from tests.faults.trial import GOOD, Bench, Result

_results = pytest.StashKey[list[Result]]()


class Tell:
    """Takes the results of a test: all are told at the end, and all must be good."""

    def __init__(self, kept: list[Result]) -> None:
        self._kept = kept

    def __call__(self, results: Sequence[Result]) -> None:
        """Keep results, and fail if one is not good, or if most of them struck nothing."""
        assert results, "nothing was tried"
        self._kept.extend(results)
        assert [each for each in results if each.verdict not in GOOD] == []
        missed = [each for each in results if each.verdict == "missed"]
        assert len(missed) * 2 < len(results), missed


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tell:
    return Tell(request.config.stash.setdefault(_results, []))


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A run of every stage and table."""
    found = Bench(tmp_path_factory.mktemp("run"))
    yield found
    found.end()


@pytest.fixture(scope="session")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A nightly over two checkpoints, with Delta logs."""
    found = Bench(tmp_path_factory.mktemp("nights"), "nightly")
    yield found
    found.end()


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print the table of docs/reliability.md."""
    of_kind = defaultdict[str, list[Result]](list)
    for each in terminalreporter.config.stash.get(_results, []):
        of_kind[each.kind].append(each)
    if not of_kind:
        return
    terminalreporter.write_line("| what happens | trials | how they ended | s each |")
    terminalreporter.write_line("|---|---|---|---|")
    for kind, results in of_kind.items():
        terminalreporter.write_line(_row(kind, results))


def _row(kind: str, results: Sequence[Result]) -> str:
    counts = defaultdict[str, int](int)
    for each in results:
        counts[each.verdict] += each.trials
    verdicts = ", ".join(f"{count:,} {verdict}" for verdict, count in counts.items())
    trials = sum(counts.values())
    seconds = sum(each.seconds for each in results) / trials
    return f"| {kind} | {trials:,} | {verdicts} | {seconds:.2g} |"
