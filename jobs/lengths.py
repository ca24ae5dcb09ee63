"""Lengths of random prompts against what a model and its tokenizer allow, before anything runs."""

from __future__ import annotations

from jobs.checkpoints import local
from jobs.config import ConfigError, RunConfig
from operators.subject import Subject, read_shape


def require_lengths(config: RunConfig, subject: Subject) -> None:
    """ConfigError if a length is more than the model reads, or less than its tokenizer frames."""
    if not config.conditions.length:
        return
    from operators.tokenise import load_tokenizer, token_limit, vocabulary_of  # noqa: PLC0415

    here = local(subject, config.storage, weights=False)
    tokenizer, shape = load_tokenizer(here), read_shape(here)
    most = token_limit(tokenizer, shape, max(config.conditions.length))
    fewest = vocabulary_of(tokenizer, shape).shortest
    try:
        config.conditions.require_within(most, f"model {subject}", fewest)
    except ValueError as error:
        raise ConfigError(str(error)) from None
