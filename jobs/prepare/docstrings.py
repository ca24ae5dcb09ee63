"""The corpus that every installation has: English prose from docstrings of scientific packages.

The sources are parsed, never imported, so reading costs no memory for torch or sympy and runs none
of their code. The passages depend on the versions of the packages alone: a hash of the qualified
name chooses and orders them, whatever the order of the files.

A passage is the prose that follows a docstring's one-line summary. Three tasks are in its
structure: which library it is from, which module, and which summary belongs to which text.
"""

from __future__ import annotations

import ast
import gc
import inspect
import re
import warnings
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from importlib import metadata, util
from itertools import accumulate, takewhile
from pathlib import Path

# By import name, the name of the distribution.
LIBRARIES: dict[str, str] = {
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "pandas": "pandas",
    "matplotlib": "matplotlib",
    "networkx": "networkx",
    "torch": "torch",
    "sympy": "sympy",
}
# Subpackages that are read of the large libraries: documented, and quick to parse.
_SUBPACKAGES: dict[str, str] = {
    "scipy": "cluster fft interpolate io linalg ndimage optimize signal sparse spatial special"
    " stats",
    "pandas": "core errors plotting tseries util",
    "torch": "autograd cuda distributed distributions jit nn optim utils",
    "sympy": "assumptions calculus categories combinatorics concrete core crypto diffgeom geometry"
    " integrals logic matrices ntheory physics series sets utilities vector",
}
# Names of folders and files without documentation of their own library: tests, vendored copies.
_SKIPPED = re.compile(
    r"_?(test|conftest|extern|vendor|benchmark|compat$|distutils|f2py|experimental)|.*_generated"
)
# numpy keeps most of its public functions in numpy._core; other private folders are internal.
_NOT_HIDDEN = frozenset({"_core", "__init__"})
# Folders that only group subpackages: the module of a passage is one level deeper.
_CONTAINERS = frozenset({"pandas.core", "networkx.algorithms"})
_TEXT_CHARS = (120, 400)
_SUMMARY_CHARS = (20, 160)
_SAMPLED = 0.3  # of a library's bytes: 260 passages of each are told within 3 % by any of 40 hashes
_MODULE_PASSAGES = 10  # a smaller module is too small to be a cluster
_MIN_WORDS = 4  # of a sentence
_MIN_LETTERS = 0.85  # share of letters and spaces in a sentence; code and tables have fewer
_UNDERLINE = re.compile(r"[-=~]{3,}$")
_PROSE_SECTIONS = frozenset(
    {"notes", "note", "explanation", "description", "details", "overview", "motivation", "warnings"}
)
# A line that is no prose: indented, directive, doctest, bullet, field, table, section header.
_NOT_A_PARAGRAPH = re.compile(
    r"\s|\.\.|>>>|[-*+•|] |\(?\w{1,2}[.)] |:\w|@|\+[-=]|```|[A-Z][\w ]*:{1,2}$|[\w, *]+ : "
)
_ROLE = re.compile(r"(?::[\w+.-]+)*:?``?(~?)([^`<]+?)(?: *<[^>]*>)?``?_*")
_EMPHASIS = re.compile(r"(?<![\w*])(\*\*?)(?=\w)([^*]+)(?<=\w)\1(?![\w*])")
# Formulas, code, templates, citations (which are part of the grammar) and links.
_NOT_PROSE = re.compile(r"[\\^{}$|<>`]|__|%\(|::|\]_|https?:|\*\*| = |User Guide")
# After an abbreviation or an initial, a full stop ends no sentence.
_SENTENCE_END = re.compile(
    r"(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<!vs\.)(?<!cf\.)(?<!Eq\.)(?<!Fig\.)(?<!Ref\.)(?<!al\.)"
    r"(?<!\b[A-Z]\.)(?<=[.!?]) +(?=[A-Z\"'(])"
)


@dataclass(frozen=True)
class Passage:
    """Prose of one docstring, its summary line, and where it is from."""

    text: str  # sentences that follow the summary, 120 to 400 characters, without the summary
    summary: str  # one line of 20 to 160 characters that ends with a period
    library: str  # import name
    module: str  # public subpackage (scipy.stats, torch.nn), or its parent where it is small
    name: str  # qualified name where it is defined


def versions() -> dict[str, str]:
    """Return the installed version of every library by import name."""
    found = {}
    for library, distribution in LIBRARIES.items():
        try:
            found[library] = metadata.version(distribution)
        except metadata.PackageNotFoundError as error:
            raise _missing(library) from error
    return found


def read_library(library: str, limit: int) -> list[Passage]:
    """Return at most `limit` passages of one library, named as it is imported.

    Summaries are distinct, and no two texts open with the same sentence. ValueError for a library
    that is unknown or not installed.
    """
    root, files = _files(library)
    return _passages(root, files, limit)


def sample_library(library: str, limit: int) -> tuple[list[Passage], int]:
    """Return some of what `read_library` finds, and about how many passages it returns.

    A hash of their names chooses files with a share of the library's bytes, and these alone are
    parsed. Passages that repeat one of another file are counted.
    """
    root, files = _files(library)
    files.sort(key=lambda file: _rank(file.relative_to(root).as_posix()))
    sizes = [file.stat().st_size for file in files]
    reached = list(accumulate(sizes))
    some = 1 + bisect_left(reached, _SAMPLED * reached[-1])
    found = _passages(root, files[:some], limit)
    return found, min(round(len(found) * reached[-1] / reached[some - 1]), limit)


def _files(library: str) -> tuple[Path, list[Path]]:
    """Return the folder of a library, and its files that document it, as their paths tell."""
    if library not in LIBRARIES:
        raise ValueError(f"unknown library {library!r}; known: {', '.join(LIBRARIES)}")
    spec = util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(library)
    root = Path(next(iter(spec.submodule_search_locations)))
    files = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        # Most libraries define public functions in private files, torch in public ones alone.
        hidden = parts if library == "torch" else parts[:-1]
        if (
            not any(_SKIPPED.match(part) for part in parts)
            and not any(part.startswith("_") and part not in _NOT_HIDDEN for part in hidden)
            and parts[0] in _SUBPACKAGES.get(library, parts[0]).split()
        ):
            files.append(path)
    return root, files


def _missing(library: str) -> ValueError:
    return ValueError(
        f"the built-in corpus needs library {library!r}, which is not installed: "
        f"pip install {LIBRARIES[library]}"
    )


def _passages(root: Path, files: Iterable[Path], limit: int) -> list[Passage]:
    """Return the first passages of some files in the order of the hashes of their names."""
    entries: list[tuple[str, str]] = []
    # Trees have no circles; where torch is imported, looking for some takes two thirds of the time.
    looked = gc.isenabled()
    gc.disable()
    try:
        for path in files:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in docstrings are theirs to mend
                tree = ast.parse(path.read_bytes())
            parts = path.relative_to(root).with_suffix("").parts
            entries += _definitions(tree, ".".join((root.name, *parts)).removesuffix(".__init__"))
    finally:
        if looked:
            gc.enable()
    passages: list[Passage] = []
    seen: set[str] = set()
    for name, docstring in sorted(entries, key=lambda entry: (_rank(entry[0]), entry)):
        if len(passages) >= limit:
            break
        passage = _passage(name, docstring, root.name)
        if passage is None:
            continue
        keys = {_letters(passage.summary), _letters(_SENTENCE_END.split(passage.text)[0])}
        if not keys & seen:
            passages.append(passage)
            seen |= keys
    # Passages of a small module count as its parent's, from the deepest level up.
    for dots in (2, 1):
        sizes = Counter(passage.module for passage in passages)
        passages = [
            replace(passage, module=passage.module.rpartition(".")[0])
            if passage.module.count(".") == dots and sizes[passage.module] < _MODULE_PASSAGES
            else passage
            for passage in passages
        ]
    return passages


def _rank(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=8).digest()


def _letters(text: str) -> str:
    """Return the letters alone, so that "1-D" and "2-D" versions of a text count as one."""
    return re.sub(r"[\W\d_]+", "", text.lower())


def _definitions(parent: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, str]]:
    for node in parent.body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if node.name.startswith("_"):
            continue
        docstring = ast.get_docstring(node, clean=False)
        if docstring:
            yield f"{name}.{node.name}", docstring
        if isinstance(node, ast.ClassDef):
            yield from _definitions(node, f"{name}.{node.name}")


def _passage(name: str, docstring: str, library: str) -> Passage | None:
    """Return the passage of a docstring; None if its summary or its text is not one."""
    first, _, rest = inspect.cleandoc(docstring).partition("\n\n")
    summary = _plain(first)
    if (
        not _SUMMARY_CHARS[0] <= len(summary) <= _SUMMARY_CHARS[1]
        or not (summary[0].isupper() and summary.endswith("."))
        or _NOT_PROSE.search(summary)
    ):
        return None
    text = ""
    for sentence in (s for block in _paragraphs(rest) for s in _sentences(_plain(block))):
        longer = f"{text} {sentence}".lstrip()
        if len(longer) > _TEXT_CHARS[1]:
            break
        text = longer
    if len(text) < _TEXT_CHARS[0] or not text[0].isupper() or summary[:-1].lower() in text.lower():
        return None
    public = list(takewhile(lambda part: not part.startswith("_"), name.split(".")[:-1]))
    depth = 3 if ".".join(public[:2]) in _CONTAINERS else 2
    return Passage(text, summary, library, ".".join(public[:depth]), name)


def _paragraphs(docstring: str) -> Iterator[str]:
    """Yield the paragraphs of the sections that hold prose, without lists, code and tables."""
    in_prose = True
    for block in re.split(r"\n\s*\n", docstring.strip("\n")):
        lines = block.split("\n")
        if len(lines) > 1 and _UNDERLINE.match(lines[1]):
            in_prose = lines[0].strip().lower() in _PROSE_SECTIONS
            lines = lines[2:]
        if in_prose:
            yield "\n".join(takewhile(lambda line: not _NOT_A_PARAGRAPH.match(line), lines))


def _plain(block: str) -> str:
    """Return one line without the inline markup of reStructuredText."""
    text = " ".join(block.split())
    text = _ROLE.sub(lambda m: m[2].rpartition(".")[2] if m[1] else m[2], text)
    return _EMPHASIS.sub(r"\2", text)


def _sentences(paragraph: str) -> Iterator[str]:
    """Yield the complete sentences that read as English; a half one led to a list or formula."""
    for sentence in _SENTENCE_END.split(paragraph):
        plain = sum(character.isalpha() or character == " " for character in sentence)
        if (
            (sentence[:1].isupper() or sentence[:1] in "\"'(")
            and sentence.rstrip("\"')").endswith((".", "!", "?"))
            and len(sentence.split()) >= _MIN_WORDS
            and plain >= _MIN_LETTERS * len(sentence)
            and not _NOT_PROSE.search(sentence)
        ):
            yield sentence
