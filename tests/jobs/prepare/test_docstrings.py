"""The built-in corpus: rules on a package written for the purpose, invariants on installed ones."""

import ast
import gc
import subprocess
import sys
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import pytest

from layerrank.jobs.prepare import docstrings
from layerrank.jobs.prepare.docstrings import Passage, read_library, sample_library
from tests.support.places import PROJECT

TOY = '''
def estimate(x):
    """
    Estimate the weight of
    a :class:`~toy.zoo.Parrot`.

    The estimate needs ``x`` and *no* other `value <https://example.org>`, e.g. no height. It is
    consistent under weak conditions that most parrots satisfy. The formula is

    .. math:: w = x^2

    for every parrot. By default x is in grams [1]_. Read more in the :ref:`User Guide <zoo>`.

    - a point that is no sentence of the description, and rather long besides.

    Parameters
    ----------
    x : float
        The height of a parrot that is not part of the prose of this docstring at all.

    Notes
    -----
    Heavier parrots are rarer::

        estimate(3)

    Their weight is known to A. Smith.
    >>> estimate(3)

    References
    ----------
    Smith wrote a book about the weight of parrots, which is a classic of the field.
    """


def _private(x):
    """Estimate what nobody outside of this file asks for.

    This text is long enough to be a passage and has every other property of one, but the function
    that it belongs to is private to its module.
    """


class Cage:
    """Hold parrots of any weight at all"""

    def shut(self):
        """Shut the cage before it is too late.

        Google sections are no prose, and end where their indentation ends.

        Args:
            who: The parrot that is inside of the cage when it is shut, and stays there.

        The description may go on after them as if nothing at all had happened.
        """
'''

ESTIMATE = Passage(
    text=(
        "The estimate needs x and no other value, e.g. no height. It is consistent under weak "
        "conditions that most parrots satisfy. Their weight is known to A. Smith."
    ),
    summary="Estimate the weight of a Parrot.",
    library="toy",
    module="toy",
    name="toy.zoo.estimate",
)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "toy"
    for folder in (package, package / "tests", package / "_vendored"):
        folder.mkdir()
        (folder / "__init__.py").touch()
        (folder / "zoo.py").write_text(TOY, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(docstrings, "LIBRARIES", {"toy": "toy-package"})
    return package


@pytest.fixture(scope="module")
def corpus() -> list[Passage]:
    return [passage for name in ("numpy", "networkx") for passage in read_library(name, 280)]


def test_prose_is_kept_and_all_else_dropped(toy: Path) -> None:
    assert toy.is_dir()
    found = {passage.name: passage for passage in read_library("toy", 9)}
    assert found.pop(ESTIMATE.name) == ESTIMATE
    assert {name: passage.text for name, passage in found.items()} == {
        "toy.zoo.Cage.shut": "Google sections are no prose, and end where their indentation ends. "
        "The description may go on after them as if nothing at all had happened."
    }


def define(toy: Path, *documented: tuple[str, str]) -> None:
    """Write functions with these summaries and texts in place of the others."""
    (toy / "zoo.py").write_text(
        "".join(
            f'def f{at}(x):\n  """{summary}\n\n  {text}\n  """\n'
            for at, (summary, text) in enumerate(documented)
        )
    )


def test_texts_end_at_a_sentence_before_400_characters(toy: Path) -> None:
    sentences = [f"This is sentence number {n} of a text that goes on." for n in range(20)]
    define(toy, ("Go on as long as you want.", "\n  ".join(sentences)))
    (passage,) = read_library("toy", 9)
    # 49 characters each and a space between: 8 of them are 399.
    assert passage.text == " ".join(sentences[:8])


def test_summaries_are_one_line_of_bounded_length(toy: Path) -> None:
    summaries = {
        "Short but not too short.": True,
        "Too short.": False,
        "No period at the end of it": False,
        "lower case at the beginning of it.": False,
        "A formula such as x^2 in the summary.": False,
        "A template that {who} fills in later.": False,
        "L" + "o" * 160 + "ng.": False,
    }
    for summary, kept in summaries.items():
        define(toy, (summary, ESTIMATE.text))
        assert [passage.summary for passage in read_library("toy", 9)] == [summary] * kept
        define(toy, (summary, f"{ESTIMATE.text} {summary}"))  # which says nothing new
        assert read_library("toy", 9) == []


def test_no_two_passages_share_a_summary_or_an_opening_sentence(toy: Path) -> None:
    text = "The transform of {0}-d data opens with this sentence. It then goes on to say {1}."
    filler = "something long enough to be a passage of its own, whatever it may be about"
    pairs = [
        ("Transform data of some kind.", text.format(1, filler)),
        ("Transform other data of a kind.", text.format(2, filler + " in the end")),
        ("Transform data of some kind.", f"Here is a text of its own that says {filler} at all."),
    ]
    define(toy, *pairs)
    found = [(passage.summary, passage.text) for passage in read_library("toy", 9)]
    # Which of them come first is a matter of hashes; the first pair conflicts with both others.
    assert found in ([pairs[0]], [pairs[1], pairs[2]], [pairs[2], pairs[1]])


def test_passages_of_the_installed_libraries(corpus: list[Passage]) -> None:
    assert Counter(passage.library for passage in corpus) == {"numpy": 280, "networkx": 280}
    for passage in corpus:
        assert 120 <= len(passage.text) <= 400
        assert 20 <= len(passage.summary) <= 160
        assert passage.summary.endswith(".")
        assert passage.summary not in passage.text
        assert passage.text[0].isupper()
        assert passage.text.rstrip("\"')")[-1] in ".!?"
        assert not {"\n", "`", "\\", "{"} & set(passage.text + passage.summary)
        assert ">>>" not in passage.text
        assert passage.name.startswith(f"{passage.library}.")
        assert f"{passage.name}.".startswith(passage.module.split("._")[0])
        assert "._" not in passage.module
        assert ".tests." not in passage.name
    # Distinct within a library.
    for each in ("text", "summary"):
        assert len({(passage.library, getattr(passage, each)) for passage in corpus}) == len(corpus)


def test_small_modules_count_as_their_parent(corpus: list[Passage]) -> None:
    sizes = Counter(passage.module for passage in corpus)
    assert len(sizes) >= 12
    assert all(size >= 10 for module, size in sizes.items() if "." in module)
    assert {"numpy.linalg", "networkx.algorithms.centrality", "networkx.algorithms"} <= set(sizes)


def test_the_order_of_files_does_not_matter(
    corpus: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda path, pattern: reversed(list(listing(path, pattern))))
    assert read_library("numpy", 280) == corpus[:280]


def test_a_smaller_limit_takes_the_first_ones(corpus: list[Passage]) -> None:
    some = read_library("numpy", 20)
    assert len({passage.name.split(".")[1] for passage in some}) >= 4
    assert [passage.name for passage in some] == [passage.name for passage in corpus[:20]]
    assert read_library("numpy", 0) == []


def test_some_files_tell_how_many_passages_there_are(
    corpus: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = Mock(wraps=ast.parse)
    monkeypatch.setattr(ast, "parse", parse)
    everything = read_library("numpy", 10_000)
    whole = sum(len(call.args[0]) for call in parse.call_args_list)
    parse.reset_mock()
    some, count = sample_library("numpy", 10_000)
    assert count == pytest.approx(len(everything), rel=0.1)
    assert len(some) < len(everything) / 2
    read = sum(len(call.args[0]) for call in parse.call_args_list)
    assert 0.3 * whole <= read < 0.4 * whole
    some, count = sample_library("numpy", 20)
    assert (len(some), count) == (20, 20)
    assert sample_library("networkx", 280)[1] == len(corpus) - 280
    assert gc.isenabled()  # it is not while files are parsed


def test_reading_does_not_import_the_library() -> None:
    code = (
        "import sys; from layerrank.jobs.prepare.docstrings import read_library; "
        "read_library('networkx', 5); "
        "assert not {'networkx', 'numpy', 'torch', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)


def test_a_library_that_is_missing_or_unknown_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"unknown library 'nunpy'; known: numpy, scipy, sklearn"):
        read_library("nunpy", 5)
    monkeypatch.setattr(docstrings, "LIBRARIES", {"toy": "toy-package"})
    missing = r"needs library 'toy', which is not installed: pip install toy-package"
    with pytest.raises(ValueError, match=missing):
        read_library("toy", 5)
    with pytest.raises(ValueError, match=missing):
        docstrings.versions()


@pytest.mark.slow
def test_the_libraries_are_balanced_and_modules_are_groups() -> None:
    passages = [p for name in docstrings.LIBRARIES for p in read_library(name, 280)]
    assert len(passages) >= 2_000
    assert min(Counter(passage.library for passage in passages).values()) >= 200
    sizes = Counter(passage.module for passage in passages)
    assert sum(size >= 15 for size in sizes.values()) >= 30
