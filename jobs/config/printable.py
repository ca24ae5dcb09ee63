"""What may be shown: nothing that a terminal obeys, and no secret.

Whatever a command prints goes through `guarded`, also what libraries print, and whatever an error
says through `without_secrets`. So a secret is not shown even where somebody else's message has it:
each that the config, the command line or the environment holds is known by its value, and what
stands before the host of an address, or signs it, is known by its place.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO, cast
from urllib.parse import quote, quote_plus, unquote

# What a terminal obeys, or shows in another order, and does not show: control characters, marks
# and overrides of direction, separators of lines, halves of surrogate pairs.
_UNSHOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_MARKDOWN = re.compile(r"([\\`*_\[\]|])")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_REDRAWN = re.compile(r"(?:\r|\n|\x1b\[A)*")  # what progress bars write beside themselves
_BAR = re.compile(r"(\r*)(.*?)([\r\n]*)", re.DOTALL)
_HIDDEN = "***"
# Of an address, also one that is cut short: what stands before its host, where a password may hold
# slashes, but what a host begins with is none; and what it gives values to.
_USER = re.compile(
    r"(?:(?P<scheme>[\w+.-]+):/{1,3}+(?![\w-]*(?:\.[\w-]+)+:\d{1,5}/|localhost:\d{1,5}/)"
    r"(?P<user>[^\s/@:]*:\S*|[^\s/@:]+)"
    r"|(?<![\w/:@.-])[\w+.-]+:(?![/\d])[^\s@'\"]+)@(?=[\w-])"
)
_CONTAINERS = ("az", "abfs", "abfss", "wasb", "wasbs")  # which stand where others have a user
_QUERY = re.compile(
    r"(?P<place>(?P<scheme>[\w+.-]+)://[^\s?#;]*)(?P<query>[?#;]\S*?)(?=[\"'`)\],;]*(?:\s|$))"
)
_GIVES = re.compile(r"(?P<name>[?#;&](?:[\w.-]+=)?)(?P<value>[^?#;&]*)")
_SIGNS = re.compile(r"sig|token|key|secret|passw|credential|auth|x-\w+-", re.IGNORECASE)
# What is part of ordinary text: some words, a region, a small number.
_PLAIN = re.compile(
    r"(?=.{0,23}$)[\W_]*[A-Za-z]+([-_./ ]+[A-Za-z]+)*[\W_]*|[a-z]{2}(-[a-z]+)+-\d|\d{1,6}"
)
# Blocks of a config of which no value is shown, and keys that were meant to be in them.
_BLOCKS = ("storage", "nightly")
_SET = re.compile(rf"\b((?:{'|'.join(_BLOCKS)})(?:\.\w+)+)=\S+")  # on the command line
_GIVEN = re.compile(rf"(?:--set=)?(?:{'|'.join(_BLOCKS)})[\w.]*=(?P<value>.*)", re.DOTALL)
_KEYS = ("key", "secret", "token", "webhook", "password", "endpoint_url")
_PAIR = re.compile(rf"({'|'.join(_KEYS)})\s*[:=]\s*(?P<value>.+)", re.DOTALL)
_FIELD = re.compile(r"[a-z_]+")
_VARIABLES = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "LAYERRANK_WEBHOOK", "AZURE_CLIENT_SECRET"),
    *("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_SAS_TOKEN"),
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
)
_SHORTEST, _SIGNATURE = 6, 16  # characters: a shorter value is part of many words
_KNOWN: set[str] = set()


def escaped(line: str) -> str:
    """Return one line in which whatever a terminal cannot show is escaped, as Python writes it."""
    return _UNSHOWN.sub(lambda found: repr(found[0])[1:-1], line)


def in_markdown(text: str) -> str:
    """Return a text as Markdown shows it: one line, no markup of its own, and no HTML."""
    text = escaped(re.sub(r"\s", " ", text))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", text)


def printable(line: str) -> str:
    """Return one line of our own or of a library as it may be shown."""
    return escaped(without_secrets(line))


def without_secrets(text: str) -> str:
    """Return a text with what is known to be secret, or may be so in an address, as ***."""
    return without_known(_SET.sub(rf"\1={_HIDDEN}", without_signatures(text)))


def without_signatures(text: str) -> str:
    """Return a text without what may be secret in its addresses, by its place alone."""
    if ":" not in text:
        return text
    return _QUERY.sub(_without_values, _USER.sub(_without_user, text))


def without_known(text: str) -> str:
    """Return a text without the secrets that are known by their value."""
    for secret in sorted(_KNOWN, key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    return text


def _without_user(found: re.Match[str]) -> str:
    scheme = found["scheme"]
    if scheme in _CONTAINERS and ":" not in found["user"]:
        return found[0]
    return f"{scheme}://{_HIDDEN}@" if scheme else f"{_HIDDEN}@"


def _without_values(found: re.Match[str]) -> str:
    """Return an address without the values that sign it, and on the web without all but words."""

    def hidden(each: re.Match[str]) -> str:
        name, value = each["name"], each["value"]
        is_odd = found["scheme"].startswith("http") and not _PLAIN.fullmatch(value)
        is_secret = value and (is_odd or ("=" in name and _SIGNS.search(name)))
        return f"{name}{_HIDDEN}" if is_secret else each[0]

    return found["place"] + _GIVES.sub(hidden, found["query"])


def know_secrets(values: object, *, within: bool = False, top: bool = True) -> None:
    """Know from now on what is secret in the values of a config, whichever form they have.

    That is every text of some blocks, and of others what addresses hold. `within` such a block,
    what was to be a key may be a secret too: `secret:VALUE` without a blank.
    """
    if isinstance(values, Mapping):
        for key, each in values.items():
            name = str(key)
            if pair := _PAIR.match(name):
                _know(pair["value"])
            elif within and not _FIELD.fullmatch(name):
                _know(name)
            is_secret = within or (top and name in (*_BLOCKS, *_KEYS))
            know_secrets(each, within=is_secret, top=False)
    elif isinstance(values, (list, tuple)):
        for each in values:
            know_secrets(each, within=within, top=False)
    elif isinstance(values, str) and within:
        _know(values)
        for word in re.split(r"[\s{}\[\],'\"]+", values):
            _know(pair["value"] if (pair := _PAIR.fullmatch(word)) else word)
    elif isinstance(values, str) and "://" in values:
        _know_address(values)


def _know(secret: str) -> None:
    """Know a secret in every way that it is written in messages.

    A word or two are part of many messages: as a secret they are known by their place alone.
    """
    address = re.match(r"\w+://([^/?]+)(.*)", secret, re.DOTALL)
    for each in (secret, unquote(secret), *(address.groups() if address else ())):
        if len(each) >= _SHORTEST and not _PLAIN.fullmatch(each):
            forms = (each, quote(each), quote(each, safe=""), quote_plus(each), repr(each)[1:-1])
            _KNOWN.update(forms)


def _know_address(address: str) -> None:
    """Know what an address holds before its host, and what signs it."""
    if (found := _USER.match(address)) and _without_user(found) != found[0]:
        user = found["user"] or found[0][:-1]
        for each in (user, *user.split(":", 1), *re.split("[:/]", user)):
            _know(each)
    if found := _QUERY.match(address):
        for each in _GIVES.finditer(found["query"]):
            if len(each["value"]) >= _SIGNATURE:
                _know(each["value"])


class Discreet:
    """Of whatever inherits from it too, Python shows no secret."""

    def __repr__(self) -> str:
        return without_secrets(super().__repr__())

    def __str__(self) -> str:
        return without_secrets(super().__str__())


@contextmanager
def guarded(arguments: Sequence[str]) -> Iterator[None]:
    """Let nothing through to the terminal for a block that may not be shown, whoever prints it.

    What `arguments` and the environment hold is known then, and nothing of earlier blocks.
    """
    _KNOWN.clear()
    for each in (os.environ.get(name, "") for name in _VARIABLES):
        _know(each)
    for each in arguments:
        know_secrets(each)
        if found := _GIVEN.fullmatch(each):
            know_secrets(found["value"], within=True)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", _Guard(each)) for each in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def unguarded(stream: TextIO) -> TextIO:
    """Return what a guarded stream writes to, for what goes there as it is."""
    return stream.stream if isinstance(stream, _Guard) else stream


class _Guard:
    """A stream, each line of whose text is printable."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        found = _BAR.fullmatch(_COLOUR.sub("", text))
        if found and not _REDRAWN.fullmatch(text):
            lines = "\n".join(map(printable, found[2].split("\n")))
            self.stream.write(f"{found[1]}{lines}{found[3]}")
        else:
            self.stream.write(text)
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        for each in lines:
            self.write(each)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.stream, name)
