"""YAML as plain values: what `yaml.safe_load` reads, as far as it stays small.

Aliases, merge keys and depth make much of little, and whoever reads a config walks all of it. So
the parser's events are looked at before a value is made, and a text is refused for what it would
become. A key that a mapping has twice is refused too, of which YAML's readers take the last.
"""

from __future__ import annotations

from typing import Any

import yaml

MOST_VALUES = 50_000  # keys and values of a config
MOST_KEPT = 10 * MOST_VALUES  # of one as a root keeps it: with every default, and what was given
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where it is
_MOST_CHARS = 1 << 22
_MOST_DEPTH = 64
_SCALAR_CHARS = 100  # of a longer scalar, as many count as another value
_NUMBER_CHARS = 400  # more than any finite float has
_SHOWN = 60  # characters of a key
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_TEXTS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")


class RefusedError(yaml.MarkedYAMLError):
    """YAML that is valid and not read; its problem names keys, and no value."""


class _Opened:
    """A list or mapping that is being read: the values before it, the lines of its keys."""

    def __init__(self, event: yaml.CollectionStartEvent, values: int) -> None:
        self.anchor, self.values, self.lines = event.anchor, values, dict[Any, int]()
        self.is_mapping = self.at_key = isinstance(event, yaml.MappingStartEvent)


def load(text: str | bytes, most: int = MOST_VALUES) -> Any:  # noqa: ANN401  (as YAML has it)
    """Return the value of a YAML document.

    What is none is an error of yaml, or a ValueError, as a date such as 2024-99-99 is. RefusedError
    for one that becomes more than `most` keys and values, aliases and merge keys written out, that
    lies deeper than any config or contains itself, and that gives a key twice.
    """
    if len(text) > _MOST_CHARS:
        raise RefusedError(problem=f"it has {len(text):,} characters, at most {_MOST_CHARS:,}")
    loader = _LOADER(text)
    try:
        _Reading(loader, most).require_small()
    finally:
        loader.dispose()
    return yaml.load(text, _LOADER)


class _Reading:
    """What was seen of a document: how many values it becomes, and of what they are."""

    def __init__(self, loader: Any, most: int) -> None:  # noqa: ANN401  (yaml ships no types)
        self._loader, self._most, self._values = loader, most, 0
        self._opened, self._sizes = list[_Opened](), dict[str | None, int]()  # of anchors

    def require_small(self) -> None:
        """Raise RefusedError where the document is not to be read, and parse no more of it."""
        while self._loader.check_event():
            event: Any = self._loader.get_event()
            if isinstance(event, yaml.CollectionEndEvent):
                ended = self._opened.pop()
                self._sizes[ended.anchor] = self._values - ended.values
            elif isinstance(event, yaml.NodeEvent):
                problem = self._problem(event)
                if self._values > self._most:
                    problem = (
                        f"up to here it becomes more than {self._most:,} keys and values, with "
                        "what aliases and merge keys repeat"
                    )
                if problem:
                    raise RefusedError(problem=problem, problem_mark=event.start_mark)

    def _problem(self, event: Any) -> str:  # noqa: ANN401
        """Count what an event adds, and return why it is refused, if it is."""
        inside = self._opened[-1] if self._opened else None
        is_key = inside is not None and inside.at_key
        if inside:
            inside.at_key = inside.is_mapping and not is_key
        if isinstance(event, yaml.ScalarEvent):
            size = self._sizes[event.anchor] = 1 + len(event.value) // _SCALAR_CHARS
            self._values += size
            tag = event.tag
            if tag in (None, "!"):
                tag = self._loader.resolve(yaml.ScalarNode, event.value, event.implicit)
            if tag in _NUMBERS and len(event.value) > _NUMBER_CHARS:
                return f"a number has {len(event.value):,} characters"
            return self._twice(inside, event, tag) if inside and is_key else ""
        if isinstance(event, yaml.AliasEvent):
            self._values += self._sizes.get(event.anchor, 0)  # yaml has an error if there is none
            names_itself = any(each.anchor == event.anchor for each in self._opened)
            return "what an anchor names contains itself" if names_itself else ""
        self._opened.append(_Opened(event, self._values))
        self._values += 1
        too_deep = len(self._opened) > _MOST_DEPTH
        return f"lists and mappings lie more than {_MOST_DEPTH} deep" if too_deep else ""

    def _twice(self, inside: _Opened, event: Any, tag: str) -> str:  # noqa: ANN401
        key: Any = event.value
        if tag not in _TEXTS:
            key = self._loader.construct_object(
                yaml.ScalarNode(tag, key, event.start_mark, event.end_mark)
            )
        line = event.start_mark.line + 1
        if (first := inside.lines.get(key)) is None:
            inside.lines[key] = line
            return ""
        shown = event.value if len(event.value) <= _SHOWN else f"{event.value[:_SHOWN]}…"
        return f"the key {shown!r} is given twice, in lines {first} and {line}"
