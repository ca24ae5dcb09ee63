"""Lengths of random prompts against what a model and its tokenizer allow, before anything runs."""

from __future__ import annotations

from jobs.conditions import ConditionsConfig
from jobs.config import ConfigError
from operators.subject import ModelShape, Subject


def require_lengths(config: ConditionsConfig, subject: Subject, shape: ModelShape) -> None:
    """ConfigError if a length is more than the model reads, or less than its tokenizer frames."""
    if not config.length:
        return
    from operators.tokenise import load_tokenizer, token_limit, vocabulary_of  # noqa: PLC0415

    tokenizer = load_tokenizer(subject)
    most = token_limit(tokenizer, shape, max(config.length))
    fewest = vocabulary_of(tokenizer, shape).shortest
    try:
        config.require_within(most, f"model {subject}", fewest)
    except ValueError as error:
        raise ConfigError(str(error)) from None
