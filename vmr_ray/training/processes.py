"""What training processes exchange besides gradients."""

from __future__ import annotations

from typing import Any

import numpy as np


def gather_objects(value: Any, world: int) -> list[Any]:
    """Every process's value, by rank, on every process. All `world` processes must call it."""
    if world == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world
    dist.all_gather_object(values, value)
    return values


def mean_of_processes(metrics: dict[str, float], world: int) -> dict[str, float]:
    """The mean of each metric over the processes that have it."""
    rows = gather_objects(metrics, world)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
