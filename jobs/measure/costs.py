"""What each layer costs: one worker loads the model and measures it, once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from jobs.cluster.console import say
from jobs.cluster.pool import TorchDevice
from jobs.config.settings import StorageConfig
from jobs.run import Run, partition
from jobs.subjects import local
from operators.model.subject import Subject

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


def measure_costs(run: Run) -> None:
    """Measure the layers of every subject whose costs are not there yet."""
    for subject in run.subjects:
        settings = {
            # The device decides how long a pass takes; which machine it was is not known before.
            "subject": run.identity(subject),
            "tokens": _TOKENS,
            "device": run.config.extract.device,
        }
        manifest, made = run.make(
            partition("layer_costs", subject), settings, partial(_measured, run, subject)
        )
        if made:
            last = max(read_costs(run, subject).values(), key=lambda cost: cost.layer)
            say(f"  {subject}: cost of {manifest.rows} layers, {last.latency_ms:.1f} ms the last")


def read_costs(run: Run, subject: Subject) -> dict[int, LayerCost]:
    """Return the measured cost of each layer; FileNotFoundError if it was not measured."""
    return {row["layer"]: LayerCost(**row) for row in run.rows(partition("layer_costs", subject))}


def _measured(run: Run, subject: Subject) -> list[dict[str, Any]]:
    config = run.config.extract
    pool = run.cluster.pool(config.device, 1, threads=config.threads)
    work = partial(_costs, run.config.storage, pool.device, pool.threads)
    rows: list[dict[str, Any]]
    (rows,) = run.cluster.each("measure", [subject], work, device=pool.device, cpus=pool.num_cpus)
    return rows


def _costs(
    storage: StorageConfig, device: TorchDevice, threads: int, subject: Subject
) -> list[dict[str, Any]]:
    """Load a model and measure its layers."""
    # The driver imports neither torch nor transformers for this.
    import torch  # noqa: PLC0415

    from operators.model.cost import layer_costs  # noqa: PLC0415
    from operators.model.load import load_model  # noqa: PLC0415

    torch.set_num_threads(threads)
    model = load_model(local(subject, storage), torch.device(device))
    return [{**asdict(cost), "device": device} for cost in layer_costs(model, _TOKENS)]
