"""What each layer costs: one worker loads the model and measures it, once."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import pyarrow as pa

from jobs.cluster.cluster import one_unit, result_table, run_tasks
from jobs.cluster.console import say
from jobs.cluster.pool import plan_pool
from jobs.config.settings import StorageConfig
from jobs.run import Run, costs_partition
from jobs.subjects import local, subject_identity
from operators.model.subject import Subject
from storage import schema
from storage.manifest import Settings, current, digest_of, publish, require
from storage.shards import Receipt, read_table, write_shard

COSTS = "costs.parquet"
_TOKENS = 128  # of the prompt whose forward passes are measured


@dataclass(frozen=True)
class LayerCost:
    """The model cut after a layer; see the table `layer_costs` for the units."""

    layer: int
    parameters: int
    flops_per_token: float
    latency_ms: float
    tokens: int
    device: str


@dataclass(frozen=True)
class _Measure:
    """Measures the layers of one subject on a device."""

    subject: Subject
    storage: StorageConfig
    device: str
    threads: int

    def __call__(self, batch: pa.Table) -> pa.Table:
        # The driver imports neither torch nor transformers for this.
        import torch  # noqa: PLC0415

        from operators.model.cost import layer_costs  # noqa: PLC0415
        from operators.model.load import load_model  # noqa: PLC0415

        assert one_unit(batch) == str(self.subject)
        torch.set_num_threads(self.threads)
        here = local(self.subject, self.storage)
        model = load_model(here, torch.device(self.device))
        return result_table([asdict(cost) for cost in layer_costs(model, _TOKENS)])


def measure_costs(run: Run) -> None:
    """Measure the layers of every subject whose costs are not there yet."""
    for subject in run.subjects:
        where, settings = costs_partition(subject), _settings(run, subject)
        if current(run.root, where, settings, overwrite=run.overwrite) is not None:
            continue
        device = run.config.extract.device
        pool = plan_pool(
            run.cluster.resources(device), device, 1, threads=run.config.extract.threads
        )
        task = _Measure(subject, run.config.storage, pool.device, pool.threads)
        found = run_tasks(
            [str(subject)], task.__call__, num_cpus=pool.num_cpus, num_gpus=pool.num_gpus
        )
        rows = [{**row, "device": pool.device} for row in next(iter(found))]
        table = pa.Table.from_pylist(rows, schema.LAYER_COSTS)
        blank = Receipt(COSTS, 0, digest_of(settings), "")
        receipt = write_shard(run.root, where.shard(COSTS), [table], schema.LAYER_COSTS, blank)
        publish(run.root, where, settings, [receipt])
        say(
            f"  {subject}: cost of {len(rows)} layers, {rows[-1]['latency_ms']:.1f} ms for the last"
        )


def read_costs(run: Run, subject: Subject) -> dict[int, LayerCost]:
    """Return the measured cost of each layer; FileNotFoundError if it was not measured."""
    manifest = require(run.root, costs_partition(subject))
    rows = read_table(run.root, manifest.objects()[0]).to_pylist()
    return {row["layer"]: LayerCost(**row) for row in rows}


def _settings(run: Run, subject: Subject) -> Settings:
    # The device decides how long a pass takes; which machine it was is not known beforehand.
    identity = subject_identity(subject, run.config.storage)
    return {"subject": identity, "tokens": _TOKENS, "device": run.config.extract.device}
