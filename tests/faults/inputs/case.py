"""A bad input as data: what makes it, the command that gets it, what is right, and the judgement.

In commands, texts of files and expected words FOLDER stands for the case's own folder, MODEL for a
tiny checkpoint, ROOT for an output with tables.
"""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from tests.support.machines.living import Told

SECRET = "sk-SECRET/0123456789"
_UNSHOWN = ("Cc", "Cs", "Zl", "Zp")
_TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
Content = str | bytes | Callable[[Path], object]  # of a file, or what makes it
_BASE: dict[str, Any] = yaml.safe_load("""
name: bad
subjects: [{model: MODEL, name: tiny}]
datasets: [{name: odd, source: {files: FOLDER/a.jsonl}}]
views: {count: 0}
measure: {metrics: [curvature], token_metrics: fused}
extract: {workers: 1, max_tokens: 32}
cluster: {engine: process}
rank: {draws: 100}
""")


def lines(rows: list[Any]) -> str:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


ROWS = lines(
    [
        {"text": f"text {n} of it", "label": "ab"[n % 2], "part": ("train", "test")[n // 2 % 2]}
        for n in range(40)
    ]
)


@dataclass(frozen=True)
class Places:
    """Where a case is made, and what all cases share."""

    folder: Path
    model: Path
    root: Path

    def fill(self, text: str) -> str:
        """Return a text with the places in it."""
        for word, place in (("FOLDER", self.folder), ("MODEL", self.model), ("ROOT", self.root)):
            text = text.replace(word, str(place))
        return text


@dataclass(frozen=True)
class Case:
    """A command that is refused in a line that `says` what and where, or works if nothing does."""

    name: str
    command: tuple[str, ...]
    says: tuple[str, ...] = ()
    files: Mapping[str, Content] = field(default_factory=dict)
    model: Callable[[Path], object] | None = None  # changes FOLDER/m, a copy of the checkpoint
    canary: str = ""  # a file that must not come into being
    never: str = SECRET  # what must not be printed
    environment: Mapping[str, str] = field(default_factory=dict)  # needs a process of its own

    def make(self, places: Places) -> list[str]:
        """Make the files of the case, and return its command."""
        if self.model:
            shutil.copytree(places.model, places.folder / "m")
            self.model(places.folder / "m")
        for name, content in self.files.items():
            path = places.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.write_text(places.fill(content), encoding="utf-8", newline="")
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                content(path)
        return [places.fill(each) for each in self.command]

    def faults(self, told: Told, places: Places) -> list[str]:
        """Return what is wrong with how the command ended."""
        printed = told.stdout + told.stderr
        errors = [line for line in told.stderr.splitlines() if not line.startswith("  ")]
        if errors and errors[0].startswith("usage: "):
            errors = [line for line in errors if ": error: " in line]
        found = []
        if not self.says:
            found += [f"exit {told.returncode}"] * (told.returncode != 0)
            found += ["an error is said"] * bool(errors)
        else:
            found += [f"exit {told.returncode}"] * (told.returncode not in (1, 2))
            found += ["a report is there"] * (places.folder / "out" / "report").exists()
            found += [f"{len(errors)} lines of error"] * (len(errors) != 1)
            ours = all(line.startswith(("layerrank: ", "layerrank ")) for line in errors)
            found += ["a line that is not ours"] * (not ours)
            wanted = (places.fill(each) for each in self.says)
            found += [f"not said: {each}" for each in wanted if each not in " ".join(errors)]
        found += ["a traceback"] * ("Traceback" in printed)
        found += [f"printed: {self.never}"] * (self.never in printed)
        hidden = {hex(ord(each)) for each in printed if _is_hidden(each)}
        found += [f"control characters: {hidden}"] * bool(hidden)
        if self.canary and Path(places.fill(self.canary)).exists():
            found.append(f"{self.canary} is there")
        return found


def _is_hidden(character: str) -> bool:
    """Whether a terminal obeys a character instead of showing it, or shows others elsewhere."""
    turns = unicodedata.bidirectional(character) in _TURNS
    return turns or (unicodedata.category(character) in _UNSHOWN and character != "\n")


def config(
    name: str,
    given: str | bytes | dict[str, Any],
    *says: str,
    command: str = "run",
    more: tuple[str, ...] = (),
    output: str = "FOLDER/out",
    files: Mapping[str, Content] | None = None,
    **known: Any,  # noqa: ANN401
) -> Case:
    """A config: its text, or the keys that replace those of one that works."""
    text = yaml.safe_dump({**_BASE, **given}) if isinstance(given, dict) else given
    command_line = (command, "FOLDER/run.yaml", "--output", output, *more)
    made = {"a.jsonl": ROWS, **(files or {}), "run.yaml": text}
    return Case(f"config: {name}", command_line, says, made, **known)


def data(
    name: str,
    content: Content | Mapping[str, Content],
    *says: str,
    source: Mapping[str, Any] | None = None,
    **dataset: Any,  # noqa: ANN401
) -> Case:
    """The content of a.jsonl, or files of which the first is the source; keys of the dataset."""
    files = content if isinstance(content, Mapping) else {"a.jsonl": content}
    given = {"name": "odd", "source": source or {"files": f"FOLDER/{next(iter(files))}"}}
    made = config(name, {"datasets": [{**given, **dataset}]}, *says, files=files)
    return replace(made, name=f"data: {name}")


def model(
    name: str,
    change: Callable[[Path], object] | None,
    /,
    *says: str,
    more: tuple[str, ...] = (),
    canary: str = "",
    environment: Mapping[str, str] | None = None,
    **subject: Any,  # noqa: ANN401
) -> Case:
    """What is done to a copy of the checkpoint, and keys of the subject."""
    given = {"model": "FOLDER/m" if change else "MODEL", "name": "tiny", **subject}
    made = config(name, {"subjects": [given]}, *says, more=more)
    return replace(
        made, name=f"model: {name}", model=change, canary=canary, environment=environment or {}
    )
