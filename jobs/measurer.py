"""The two workers of measuring: token metrics of one shard, layer metrics of one layer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from jobs.cluster import one_unit, result_table
from operators.batching import token_budget_batches
from operators.metrics.registry import (
    DATASET_METRICS,
    METRICS,
    TOKEN_METRICS,
    VIEW_METRICS,
    Parameters,
    variant_of,
)
from storage import schema
from storage.manifest import Manifest
from storage.partition import Partition
from storage.root import Root
from storage.shards import Receipt, group_values, read_group, read_receipt, write_shard
from storage.spool import token_states
from storage.vectors import Group, read_vectors

TOKENS = "tokens"  # the pooling column of a mean over per-prompt token metrics
_BATCH_TOKENS = 16384


@dataclass(frozen=True)
class TokenMetrics:
    """Computes the token metrics of one `tokens` shard, every layer of it."""

    root: Root
    tokens: Partition
    metrics: tuple[str, ...]
    parameters: Parameters
    digest: str
    device: str

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Measure one shard, write its `prompt_metrics` and return the receipt."""
        name = one_unit(batch)
        key = self.tokens.shard(name)
        dtype = str(read_receipt(self.root, key, 0).facts["dtype"])
        layers = [int(layer) for (layer,) in group_values(self.root, key, ["layer"])]
        where = self.tokens.sibling("prompt_metrics").shard(name)
        counted: dict[str, int | float | str] = {}

        def tables() -> Iterator[pa.Table]:
            for layer in layers:
                table = read_group(self.root, key, {"layer": layer})
                rows = self._measure(table, token_states(table, dtype))
                counted["undefined"] = int(counted.get("undefined", 0)) + sum(
                    row["reason"] is not None for row in rows
                )
                yield pa.Table.from_pylist(rows, schema.PROMPT_METRICS)

        blank = Receipt(name, 0, self.digest, "", facts=counted)
        receipt = write_shard(self.root, where, tables(), schema.PROMPT_METRICS, blank)
        return result_table(receipt.to_json())

    def _measure(self, table: pa.Table, states: Sequence[Any]) -> list[dict[str, Any]]:
        known = table.select(["prompt_id", "layer", "norm", "n_tokens"]).to_pylist()
        lengths = [row["n_tokens"] for row in known]
        rows: list[dict[str, Any]] = []
        for metric in self.metrics:
            values = np.full(len(known), np.nan)
            for chosen in token_budget_batches(lengths, _BATCH_TOKENS):
                hidden_NTD, lengths_N = _pad_states([states[i] for i in chosen], self.device)
                compute = TOKEN_METRICS[metric]
                values[chosen] = compute(hidden_NTD, lengths_N, self.parameters).cpu().numpy()
            for row, value in zip(known, values, strict=True):
                reason = METRICS[metric].undefined if np.isnan(value) else None
                variant = variant_of(metric, self.parameters)
                own = {"metric": metric, "variant": variant, "value": value, "reason": reason}
                rows.append({**row, **own})
        return rows


def _pad_states(states: Sequence[Any], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    lengths_N = torch.tensor([len(each) for each in states])
    hidden_NTD = torch.zeros(len(states), int(lengths_N.max()), states[0].shape[1])
    for row, each in zip(hidden_NTD, states, strict=True):
        row[: len(each)] = torch.from_numpy(each.astype(np.float32))
    return hidden_NTD.to(device), lengths_N.to(device)


@dataclass(frozen=True)
class LayerMetrics:
    """Computes every metric of one (layer, norm, pooling) group."""

    root: Root
    clean: Manifest
    views: tuple[Manifest, ...]
    prompt_metrics: Manifest | None
    metrics: tuple[str, ...]
    parameters: Parameters
    dataset_sample: int
    with_tokens: tuple[str, str]  # the norm and pooling whose unit also averages the token metrics
    device: str

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Measure one group and return its rows of `layer_metrics`."""
        group = Group(**json.loads(one_unit(batch)))
        return result_table(
            [*self._dataset_rows(group), *self._view_rows(group), *self._token_rows(group)]
        )

    def _dataset_rows(self, group: Group) -> Iterator[dict[str, Any]]:
        chosen = [name for name in self.metrics if name in DATASET_METRICS]
        if chosen:
            found = read_vectors(self.root, self.clean, group, at_most=self.dataset_sample)
            matrix_ND = torch.from_numpy(found.matrix_ND).to(self.device)
            for name in chosen:
                values = DATASET_METRICS[name](matrix_ND, self.parameters)
                yield from _rows(group, name, values, len(found.prompt_ids))

    def _view_rows(self, group: Group) -> Iterator[dict[str, Any]]:
        chosen = [name for name in self.metrics if name in VIEW_METRICS]
        if not chosen:
            return
        found = [read_vectors(self.root, manifest, group) for manifest in self.views]
        # A view that tokenises to nothing has no vector: the prompt is then left out of all views.
        common = found[0].prompt_ids
        for view in found[1:]:
            common = np.intersect1d(common, view.prompt_ids)
        stacked = [view.matrix_ND[view.rows_of(common)] for view in found]
        views_NVD = torch.from_numpy(np.stack(stacked, axis=1)).to(self.device)
        for name in chosen:
            values = VIEW_METRICS[name](views_NVD, self.parameters)
            yield from _rows(group, name, values, len(common))

    def _token_rows(self, group: Group) -> Iterator[dict[str, Any]]:
        """Means over prompts: sums and counts over the shards, divided once at the end."""
        if self.prompt_metrics is None or (group.norm, group.pooling) != self.with_tokens:
            return
        sums: dict[tuple[str, str, str], list[float]] = {}
        shards = zip(self.prompt_metrics.objects(), self.prompt_metrics.receipts, strict=True)
        for key in (key for key, receipt in shards if receipt.rows):
            table = read_group(self.root, key, {"layer": group.layer})
            for row in table.to_pylist():
                entry = sums.setdefault((row["metric"], row["variant"], row["norm"]), [0.0, 0, 0])
                if row["reason"] is None:
                    entry[0] += row["value"]
                    entry[1] += 1
                else:
                    entry[2] += 1
        for (metric, variant, norm), (total, count, undefined) in sums.items():
            where = Group(group.layer, norm, TOKENS)
            value = {variant: total / count if count else float("nan")}
            yield from _rows(where, metric, value, int(count), int(undefined))


def _rows(
    group: Group, metric: str, values: dict[str, float], prompts: int, undefined: int = 0
) -> Iterator[dict[str, Any]]:
    for variant, value in values.items():
        yield {
            **asdict(group),
            "metric": metric,
            "variant": variant,
            "value": value,
            "reason": METRICS[metric].undefined if np.isnan(value) else None,
            "n_prompts": prompts,
            "n_undefined": undefined,
        }
