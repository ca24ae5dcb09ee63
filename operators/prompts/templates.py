"""Templates: what stands around a text when the model reads it, as a query or as a document.

E5 reads "query: " before a query, an instruction model the whole task, a decoder under PromptEOL
`This sentence: "{text}" means in one word: "`. What a text is called stays that of the text alone;
vectors of it in a template are of another condition, named after the template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

TEXT = "{text}"  # where the text stands; any other brace is a brace
_PROMPT = "prompt-"
_CHAT = "chat"


@dataclass(frozen=True, order=True)
class Template:
    """Words with one `{text}` among them.

    Of a chat they are what the user says, in the chat template that the model's tokenizer has.
    """

    words: str
    is_chat: bool = False

    @property
    def condition(self) -> str:
        """The condition of what is read in it: `prompt-` and 8 hexadecimal digits (blake2b)."""
        named = f"{_CHAT}\0{self.words}" if self.is_chat else self.words
        return _PROMPT + blake2b(named.encode(), digest_size=4).hexdigest()

    @property
    def written(self) -> str | dict[str, str]:
        """The template as a config has it."""
        return {_CHAT: self.words} if self.is_chat else self.words

    @property
    def is_plain(self) -> bool:
        """Whether it is the text alone, which the clean pass has."""
        return self == Template(TEXT)

    @property
    def prefix(self) -> str | None:
        """The words before the text; None if there is more than these."""
        before, _, after = self.words.partition(TEXT)
        return None if self.is_chat or after else before

    def around(self, text: str) -> str:
        """Return the words with a text."""
        before, _, after = self.words.partition(TEXT)
        return f"{before}{text}{after}"


def read_template(given: object) -> Template:
    """Return the template that a config has; ValueError if it is none."""
    is_chat = isinstance(given, Mapping) and [*given] == [_CHAT]
    words = given[_CHAT] if isinstance(given, Mapping) and is_chat else given
    if isinstance(words, Template):
        return words
    if not isinstance(words, str):
        raise ValueError(
            'a template is a text in quotes, such as "query: {text}", or {chat: "{text}"}'
        )
    if (times := words.count(TEXT)) != 1:
        raise ValueError(
            f"a template has {TEXT} once, where the text stands; this has it {times} times"
        )
    return Template(words, is_chat)


def is_prompt(condition: str) -> bool:
    """Whether a condition is that of a template."""
    return condition.startswith(_PROMPT)
