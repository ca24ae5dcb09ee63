"""Templates: what a config may say, what they are called, and what a tokenizer makes of them."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerrank.operators.model.tokenise import Frame, tokenise
from layerrank.operators.prompts.conditions import condition_text, graded
from layerrank.operators.prompts.templates import Template, is_prompt, read_template
from layerrank.operators.prompts.views import ViewProbabilities
from tests.operators.prompts.test_conditions import framing_tokenizer
from tests.support.tiny import tiny_tokenizer

QUERY = Template("query: {text}")
IN_ONE_WORD = Template('This sentence: "{text}" means in one word: "')
CHAT = Template("Name the topic of: {text}", is_chat=True)
TEXT = "the layer of a model is a text about the model"


def chatting_tokenizer() -> Any:  # noqa: ANN401  (transformers ships no types)
    """Return a tokenizer that puts a token before every text, as its chat template does."""
    tokenizer = framing_tokenizer()
    tokenizer.chat_template = (
        "{{ '[CLS]' }}{% for message in messages %} {{ message['content'] | trim }} [SEP]"
        "{% endfor %}{% if add_generation_prompt %} model{% endif %}"
    )
    return tokenizer


def ids_of(template: Template, text: str, most: int = 128, tokenizer: Any = None) -> list[int]:  # noqa: ANN401
    (ids,), _ = tokenise(tokenizer or tiny_tokenizer(), [text], most, template)
    return list(ids.tolist())


@pytest.mark.parametrize(
    ("given_template", "template"),
    [
        ("query: {text}", QUERY),
        ({"chat": "Name the topic of: {text}"}, CHAT),
        ('{"text": "{text}"} {0} {}', Template('{"text": "{text}"} {0} {}')),
    ],
)
def test_a_template_is_written_as_it_was_read(given_template: object, template: Template) -> None:
    assert read_template(given_template) == template
    assert read_template(template.written) == template


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("query: ", "a template has {text} once, where the text stands; this has it 0 times"),
        ("{text} and {text}", "this has it 2 times"),
        ({"chat": "user"}, "this has it 0 times"),
        ({"text": None}, 'a template is a text in quotes, such as "query: {text}"'),
        (3, "a template is a text in quotes"),
    ],
)
def test_what_is_no_template_is_refused(bad: object, words: str) -> None:
    with pytest.raises(ValueError, match="template") as refused:
        read_template(bad)
    assert words in str(refused.value)


def test_a_condition_is_named_by_a_digest_of_the_template_and_has_no_level() -> None:
    assert QUERY.condition == "prompt-" + blake2b(b"query: {text}", digest_size=4).hexdigest()
    assert QUERY.condition == "prompt-de879f79"
    names = {each.condition for each in (QUERY, CHAT, Template(CHAT.words), IN_ONE_WORD)}
    assert len(names) == 4
    for name in names:
        assert is_prompt(name)
        assert graded(name) is None
        assert condition_text(TEXT, name, 0, ViewProbabilities(1, 1, 1)) == TEXT
    assert not is_prompt("random-0.30")


def test_only_words_before_the_text_are_a_prefix() -> None:
    assert QUERY.prefix == "query: "
    assert IN_ONE_WORD.prefix is CHAT.prefix is None
    assert Template("{text}").is_plain
    assert not Template("{text}", is_chat=True).is_plain


def test_the_tokens_are_those_of_the_words_around_the_text() -> None:
    tokenizer, texts = tiny_tokenizer(), [TEXT, "", "{text} {0}"]
    ids, cut = tokenise(tokenizer, texts, 128, IN_ONE_WORD)
    assert [tokenizer.decode(each) for each in ids] == [
        f'This sentence: "{text}" means in one word: "' for text in texts
    ]
    assert not cut.any()
    framed = framing_tokenizer()
    expected = framed("more layer model")["input_ids"]
    assert ids_of(Template("more {text} model"), "layer", tokenizer=framed) == expected


def test_what_is_too_long_loses_the_end_of_the_text_and_keeps_the_template() -> None:
    tokenizer = tiny_tokenizer()
    whole = len(ids_of(IN_ONE_WORD, TEXT))

    @given(st.integers(Frame(tokenizer, IN_ONE_WORD).tokens + 1, whole))
    def check(most: int) -> None:
        (ids,), (cut,) = tokenise(tokenizer, [TEXT], most, IN_ONE_WORD)
        assert (len(ids), bool(cut)) == (most, most < whole)
        read = str(tokenizer.decode(ids))
        assert read.startswith('This sentence: "')
        assert read.endswith('" means in one word: "')
        kept = read.removeprefix('This sentence: "').removesuffix('" means in one word: "')
        assert TEXT.startswith(kept)

    check()


def test_a_tokenizer_that_truncates_on_the_left_loses_the_beginning_of_the_text() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.truncation_side = "left"
    read = str(tokenizer.decode(ids_of(IN_ONE_WORD, TEXT, 45, tokenizer)))
    kept = read.removeprefix('This sentence: "').removesuffix('" means in one word: "')
    assert TEXT.endswith(kept)
    assert 0 < len(kept) < len(TEXT)


def test_special_tokens_around_a_cut_text_stay() -> None:
    ids = ids_of(Template("more {text} model"), "layer " * 20, 8, framing_tokenizer())
    assert ids == [0, 6, 4, 4, 4, 4, 5, 1]


def test_a_chat_is_the_tokenizers_own_with_no_special_token_twice() -> None:
    tokenizer, text = chatting_tokenizer(), " layer model "
    message = [{"role": "user", "content": "more" + text}]
    expected = tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"]
    ids = ids_of(Template("more{text}", is_chat=True), text, tokenizer=tokenizer)
    assert ids == expected == [0, 6, 4, 5, 1, 5]
    short = ids_of(Template("more {text}", is_chat=True), "layer " * 20, 7, tokenizer)
    assert short == [0, 6, 4, 4, 4, 1, 5]


def test_a_chat_template_that_can_be_told_the_date_is_told_the_same_every_day() -> None:
    tokenizer = framing_tokenizer()
    tokenizer.chat_template = (
        "{% if not date_string %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ date_string }}: {{ messages[0]['content'] }}"
    )
    assert Frame(tokenizer, CHAT).around("layer") == "01 Jan 2025: Name the topic of: layer"


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        (None, "its tokenizer has no chat template"),
        ("{{ raise_exception('no user here') }}", "takes no message of a user: no user here"),
        ("[CLS] model", "leaves out what the user says"),
        (
            "{{ strftime_now('%d') }} {{ messages[0]['content'] }}",
            "tells the date: write its words",
        ),
    ],
)
def test_a_chat_template_that_is_not_there_or_takes_no_user_is_refused(
    chat: str | None, words: str
) -> None:
    tokenizer = framing_tokenizer()
    tokenizer.chat_template = chat
    with pytest.raises(ValueError, match=words):
        Frame(tokenizer, CHAT)


def test_batches_and_order_change_no_tokens() -> None:
    texts = [TEXT[at:] * 3 for at in range(0, 30, 3)]
    together = tokenise(tiny_tokenizer(), texts, 50, IN_ONE_WORD)
    for text, ids in zip(reversed(texts), reversed(together.ids), strict=True):
        np.testing.assert_array_equal(ids, ids_of(IN_ONE_WORD, text, 50))
