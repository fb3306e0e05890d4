"""What a training needs to go on from a checkpoint: raw weights, optimizer, clock."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load

from vmr_ray.storage import read_bytes


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """An optimizer's state as flat tensors, `<parameter>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{k}": v.clone().cpu() for i, entry in state.items() for k, v in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def load_trainer(directory: str | Path) -> dict[str, torch.Tensor]:
    """The network's own (not averaged) weights and the optimizer's state."""
    return load(read_bytes(f"{directory}/trainer.safetensors"))
