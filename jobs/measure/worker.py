"""The two workers of measuring: token metrics of one shard, layer metrics of one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from layerrank.jobs.cluster import tally
from layerrank.jobs.cluster.pool import TorchDevice
from layerrank.jobs.config.metrics import REASONS, TOKENS
from layerrank.operators.later import Later
from layerrank.operators.metrics.registry import (
    METRICS,
    Layers,
    Parameters,
    Prompts,
    TokenValues,
    Views,
    main_variant,
    of_kind,
    prompts_used,
    token_metrics,
    token_variants,
)
from layerrank.storage import schema
from layerrank.storage.layers import (
    Group,
    by_prompts,
    metric_column,
    prompt_metrics_table,
    shard_vectors,
    token_states,
)
from layerrank.storage.manifest import Manifest, Settings
from layerrank.storage.partition import Partition
from layerrank.storage.root import Root
from layerrank.storage.shards import Receipt, Shard, write_shard

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn.utils import rnn

    from layerrank.operators.metrics import population, similarity
    from layerrank.operators.model import encode
else:  # what is to be measured is said here too, and needs no torch
    torch, rnn, population, similarity, encode = map(
        Later,
        (
            "torch",
            "torch.nn.utils.rnn",
            "layerrank.operators.metrics.population",
            "layerrank.operators.metrics.similarity",
            "layerrank.operators.model.encode",
        ),
    )

Row = dict[str, Any]
_BATCH_TOKENS = 16384
_CACHED_BYTES = 256 << 20  # vectors of a layer that are kept between passes over them


def measure_shard(
    metrics: Sequence[str], parameters: Parameters, digest: str, device: TorchDevice, tokens: Shard
) -> Receipt:
    """Measure a shard of `tokens`, write its `prompt_metrics` and return the receipt."""
    root, name, dtype = tokens.root, tokens.receipt.name, str(tokens.receipt.facts["dtype"])
    layers = [int(layer) for (layer,) in tokens.group_values(["layer"])]
    counted = {"prompts": 0, "undefined": 0}

    def tables() -> Iterator[pa.Table]:
        for layer in layers:
            table = tokens.read_group({"layer": layer})
            ids, lengths = table["prompt_id"].to_numpy(), table["n_tokens"].to_numpy()
            states = token_states(table, dtype)
            bad = [int((~np.isfinite(each)).any(axis=1).sum()) for each in states]
            if any(bad):
                first, count = ids[np.flatnonzero(bad)[0]], np.count_nonzero(bad)
                raise ValueError(
                    f"{root.place(tokens.key)}, layer {layer}: non-finite states at {sum(bad)} "
                    f"tokens of {count} prompts, first prompt_id {first}; extract it again in "
                    "float32"
                )
            values: TokenValues = {}
            for rows in encode.token_budget_batches(lengths.tolist(), _BATCH_TOKENS):
                batch = [torch.from_numpy(states[row].astype(np.float32)) for row in rows]
                hidden_NTD = rnn.pad_sequence(batch, batch_first=True).to(device)
                lengths_N = torch.tensor([*map(len, batch)], device=device)
                found = token_metrics([hidden_NTD], lengths_N, metrics, parameters)
                for variant, values_LN in found.items():
                    values.setdefault(variant, np.full(len(ids), np.nan))[rows] = values_LN[0]
            counted["prompts"] = len(ids)
            counted["undefined"] += int(sum(np.isnan(each).sum() for each in values.values()))
            norm = table["norm"][0].as_py()
            yield prompt_metrics_table(layer, norm, ids, lengths, values, REASONS)
            tally.count(1)

    # The counts fill while the tables are written; the receipt is read after that.
    blank = Receipt(name, 0, digest, "", facts=counted)
    where = tokens.partition.sibling("prompt_metrics").shard(name)
    columns = [metric_column(*key) for key in token_variants(metrics, parameters)]
    return write_shard(root, where, tables(), schema.prompt_metrics(columns), blank)


class Measured(NamedTuple):
    """What one group gave: its rows of `layer_metrics`, and the HSIC terms of its similarities."""

    group: Group
    rows: list[Row]
    terms: dict[str, similarity.Hsic]


@dataclass(frozen=True)
class LayerMetrics:
    """Computes every metric of one (layer, norm, pooling) group, shard by shard."""

    root: Root
    embeddings: Manifest
    views: Sequence[Manifest]
    prompt_metrics: Manifest | None
    metrics: Sequence[str]
    parameters: Parameters
    groups: Sequence[Group]  # sorted; those like the first also average the token metrics
    settings: Settings
    device: TorchDevice = "cpu"

    @property
    def target(self) -> Partition:
        """Where the values of all groups go."""
        return self.embeddings.partition.sibling("layer_metrics")

    def measure(self, group: Group) -> Measured:
        """Measure one group."""
        prompts = population.Population(self._blocks(group))
        rows = [*self._view_rows(group), *self._token_rows(group)]
        for name, measure in of_kind(self.metrics, Prompts).items():
            count = prompts_used(measure, self.parameters, prompts.n_prompts)
            rows += _rows(group, name, measure.compute(prompts, self.parameters), count)
        others = {measure.other for measure in of_kind(self.metrics, Layers).values()}
        layers = {"previous": group.layer - 1, "last": self.groups[-1].layer}
        terms = {}
        for kind in ("itself", *sorted(others)) if others else ():
            layer = layers.get(kind, group.layer)
            if layer < 0:  # nothing comes before the first
                continue
            own = layer == group.layer
            other = (
                prompts if own else population.Population(self._blocks(replace(group, layer=layer)))
            )
            parts = (
                similarity.hsic_sums(x_nD, y_nD, prompts.sums.mean_D, other.sums.mean_D)
                for x_nD, y_nD in zip(prompts.blocks(), other.blocks(), strict=True)
            )
            of_all = similarity.hsic(reduce(similarity.merge_hsic, parts))
            terms[kind] = similarity.Hsic(*(each.double().cpu() for each in of_all))
        return Measured(group, rows, terms)

    def _blocks(self, group: Group) -> Iterable[Tensor]:
        """Return the vectors of a group, one block [n, D] per shard."""

        def read() -> Iterator[Tensor]:
            for objects in by_prompts(self.root, self.embeddings).values():
                yield torch.from_numpy(shard_vectors(objects, group).matrix_ND).to(self.device)

        total = sum(receipt.bytes for receipt in self.embeddings.receipts)
        return _kept(read, total * self.embeddings.facts()["prompts"] / self.embeddings.rows)

    def _view_rows(self, group: Group) -> Iterator[Row]:
        measures = of_kind(self.metrics, Views)
        if not measures:
            return

        def read() -> Iterator[Tensor]:
            # The views of a shard's prompts [n, V, D]. A view that tokenises to nothing has no
            # vector: the prompt is then left out of all views.
            filled = [by_prompts(self.root, each) for each in self.views]
            for name in sorted(set.intersection(*map(set, filled))):
                found = [shard_vectors(shards[name], group) for shards in filled]
                common = reduce(np.intersect1d, [view.prompt_ids for view in found])
                if len(common):
                    stacked = [view.matrix_ND[view.rows_of(common)] for view in found]
                    yield torch.from_numpy(np.stack(stacked, axis=1)).to(self.device)

        blocks = _kept(read, sum(receipt.bytes for view in self.views for receipt in view.receipts))
        count = sum(len(block_NVD) for block_NVD in blocks)
        for name, measure in measures.items():
            # Without a prompt that every view could tokenise there is nothing to compute.
            nothing = {main_variant(name, self.parameters): float("nan")}
            values = measure.compute(blocks, self.parameters) if count else nothing
            used = prompts_used(measure, self.parameters, count)
            yield from _rows(group, name, values, used)

    def _token_rows(self, group: Group) -> Iterator[Row]:
        """Means over prompts: sums and counts over the shards, divided once at the end."""
        first = replace(self.groups[0], layer=group.layer)
        if self.prompt_metrics is None or group != first:
            return
        # Of (metric, variant, norm): the sum of its values, the defined ones, all prompts.
        totals: dict[tuple[str, str, str], npt.NDArray[np.float64]] = {}
        asked = token_variants(self.metrics, self.parameters)
        for shard in self.prompt_metrics.filled(self.root):
            table = shard.read_group({"layer": group.layer})
            norm = table["norm"][0].as_py()
            for metric, variant in asked:
                values_N = table[metric_column(metric, variant)].to_numpy()
                defined_N = ~np.isnan(values_N)
                counts = np.array([values_N[defined_N].sum(), defined_N.sum(), len(values_N)])
                key = metric, variant, norm
                totals[key] = totals.get(key, np.zeros(3)) + counts
        for (metric, variant, norm), (total, defined, prompts) in totals.items():
            value = {variant: total / defined if defined else float("nan")}
            averaged = Group(group.layer, norm, TOKENS)
            yield from _rows(averaged, metric, value, int(defined), int(prompts - defined))


@dataclass(frozen=True)
class _Stream:
    read: Callable[[], Iterator[Tensor]]

    def __iter__(self) -> Iterator[Tensor]:
        return self.read()


def _kept(read: Callable[[], Iterator[Tensor]], size: float) -> Iterable[Tensor]:
    """Return blocks of `size` bytes: in memory if they are small, else read for every pass."""
    return [*read()] if size <= _CACHED_BYTES else _Stream(read)


def layer_rows(task: LayerMetrics, found: Mapping[Group, Measured]) -> Iterator[Row]:
    """Yield the rows of `layer_metrics` from what every group gave.

    Those of the similarities to another layer are made here, by one division: all terms are in.
    """
    prompts = int(task.embeddings.facts()["prompts"])
    last = task.groups[-1].layer
    for group, own in found.items():
        yield from own.rows
        for name, measure in of_kind(task.metrics, Layers).items():
            if measure.other not in own.terms:
                continue  # the first layer has no previous one
            other = replace(group, layer=last if measure.other == "last" else group.layer - 1)
            pair, mine = own.terms[measure.other], own.terms["itself"]
            alike = similarity.cka(pair, mine, found[other].terms["itself"])
            values = {kind: float(value) for kind, value in alike._asdict().items()}
            yield from _rows(group, name, values, prompts)


def _rows(
    group: Group, metric: str, values: Mapping[str, float], prompts: int, undefined: int = 0
) -> Iterator[Row]:
    known = METRICS[metric]
    for variant, value in values.items():
        defined = prompts >= known.fewest and not np.isnan(value)
        yield {
            **asdict(group),
            "metric": metric,
            "variant": variant,
            "value": value if defined else float("nan"),
            "reason": None if defined else known.undefined,
            "n_prompts": prompts,
            "n_undefined": undefined,
        }
