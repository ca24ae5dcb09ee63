"""What each layer costs: one worker loads the model and measures it, once."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from jobs.cluster.console import say
from jobs.cluster.pool import Pool
from jobs.config.settings import StorageConfig
from jobs.run import Run, partition
from jobs.subjects import local
from operators.model.backend import load_backend
from operators.model.cost import LayerCost, layer_costs
from operators.model.subject import Subject

_TOKENS = 128  # of the prompt whose forward passes are measured


def measure_costs(run: Run) -> None:
    """Measure the layers of every subject whose costs are not there yet."""
    config = run.config.extract

    def measured(subject: Subject) -> list[dict[str, Any]]:
        pool = run.cluster.pool(config.device, 1, threads=config.threads)
        work = partial(_costs, run.config.storage, pool)
        units = run.cluster.each("measure", [subject], work, device=pool.device, cpus=pool.num_cpus)
        return [row for rows in units for row in rows]

    for subject in run.subjects:
        settings = {
            # The device decides how long a pass takes; which machine it was is not known before.
            "subject": run.identity(subject),
            "tokens": _TOKENS,
            "device": config.device,
        }
        manifest, made = run.make(
            partition("layer_costs", subject), settings, partial(measured, subject)
        )
        if made:
            last = max(read_costs(run, subject).values(), key=lambda cost: cost.layer)
            say(f"  {subject}: cost of {manifest.rows} layers, {last.latency_ms:.1f} ms the last")


def read_costs(run: Run, subject: Subject) -> dict[int, LayerCost]:
    """Return the measured cost of each layer; FileNotFoundError if it was not measured.

    Tables of earlier versions lack the columns of the quartiles: NaN stands for them.
    """
    return {
        row["layer"]: LayerCost(**{name: each for name, each in row.items() if each is not None})
        for row in run.rows(partition("layer_costs", subject))
    }


def _costs(storage: StorageConfig, pool: Pool, subject: Subject) -> list[dict[str, Any]]:
    torch.set_num_threads(pool.threads)
    model = load_backend(local(subject, storage), torch.device(pool.device))
    return [asdict(cost) for cost in layer_costs(model, _TOKENS)]
