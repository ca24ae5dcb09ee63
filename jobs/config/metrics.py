"""What a config asks of the metrics: their parameters, and what becomes of token states."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from layerrank.jobs.config.run import RunConfig
from layerrank.operators.metrics.registry import METRICS, Parameters, Tokens, Views, of_kind
from layerrank.operators.model.subject import ModelShape

TOKENS = "tokens"  # the pooling column of a mean over per-prompt token metrics
REASONS = {name: metric.undefined for name, metric in METRICS.items()}
FUSED_ABOVE = 1 << 30  # bytes of every prompt's token states: with more, metrics are fused
_FLOAT_BYTES = {"float32": 4, "float16": 2}


@dataclass(frozen=True)
class TokenPlan:
    """What becomes of token states: metrics in the model actor or not, and prompts stored."""

    fused: bool
    stored: int


def state_bytes(config: RunConfig, shape: ModelShape) -> int:
    """Return the bytes of a prompt's token states in every layer, at the longest."""
    tokens = min(config.extract.max_tokens, shape.max_tokens or config.extract.max_tokens)
    return tokens * (shape.layers + 1) * shape.hidden_size * _FLOAT_BYTES[config.tokens.dtype]


def token_plan(config: RunConfig, shape: ModelShape, prompts: int) -> TokenPlan:
    """Return where the token metrics of `prompts` prompts are computed (`measure.token_metrics`).

    Stored states can be measured again in another way; fused metrics cost no storage. By default
    states are stored while those of every prompt are small, else they are a sample. Conditions are
    compared with the clean pass prompt by prompt, so with them the clean metrics are fused too: of
    every prompt, and computed in the same place.
    """
    sample, mode = min(config.tokens.sample, prompts), config.measure.token_metrics
    if mode == "auto" and not token_metrics(config):
        return TokenPlan(fused=False, stored=0)
    if mode == "auto" and config.conditions.passes():
        return TokenPlan(fused=True, stored=sample)
    if mode == "auto" and sample and prompts * state_bytes(config, shape) <= FUSED_ABOVE:
        return TokenPlan(fused=False, stored=prompts)
    return TokenPlan(mode != "stored", 0 if mode == "fused" else sample)


def metrics_of(config: RunConfig) -> tuple[str, ...]:
    """Return the metrics of ours that a run has; without any view not those that compare views."""
    measure = config.measure
    of_views = () if config.views.count else of_kind(measure.metrics, Views)
    return tuple(name for name in measure.metrics if name not in (*of_views, *measure.own))


def left_out(config: RunConfig) -> str:
    """Return which metrics of the config are not measured, in a sentence; "" if all are."""
    done = (*metrics_of(config), *config.measure.own)
    names = [name for name in config.measure.metrics if name not in done]
    return f"Without views (views.count is 0): no {', '.join(names)}." if names else ""


def token_metrics(config: RunConfig) -> tuple[str, ...]:
    """Return the metrics of the run that are of tokens."""
    return tuple(of_kind(config.measure.metrics, Tokens))


def token_metric_settings(config: RunConfig) -> dict[str, Any]:
    """Return what the values of token metrics depend on, beside the states."""
    settings = config.measure.settings(
        include={"alphas", "normalizations", "without_first", "method"}
    )
    return {"metrics": sorted(token_metrics(config)), **settings}


def parameters(config: RunConfig) -> Parameters:
    """Return the metric parameters of a run."""
    names = [field.name for field in fields(Parameters) if field.name != "seed"]
    asked = {name: getattr(config.measure, name) for name in names}
    return Parameters(**asked, seed=config.seed)


def shown_vectors(
    measured: Iterable[tuple[str, str]], ranked: tuple[str, str]
) -> tuple[str, str] | None:
    """Return the norm and pooling that stand for a metric: the ranked ones, else the first."""
    known = sorted(set(measured))
    return ranked if ranked in known else next(iter(known), None)
