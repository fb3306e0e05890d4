"""What a training keeps in its checkpoints, next to the averaged weights, to resume where it stopped.

`trainer.safetensors` has the tensors `network.<name>` (the weights that are trained, not averaged),
`optimizer.<parameter>.<name>`, `clock` (see `TrainingClock.to_save`) and `averaged` (the number of steps in
the average); `history.json` has the rows of all validations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from vmr_ray.errors import VmrError, one_line
from vmr_ray.model.checkpoint import CheckpointInfo, load_info, load_weights, save_checkpoint
from vmr_ray.storage import join, read_bytes, read_json, write_json

_FIX = "delete this checkpoint's directory; the training then resumes from an earlier one"
_NETWORK, _OPTIMIZER = "network.", "optimizer."


@dataclass(frozen=True)
class TrainingState:
    """What `load_state` reads."""

    info: CheckpointInfo
    history: list[dict[str, float]]
    averaged_weights: dict[str, Tensor]
    trainer: dict[str, Tensor]  # the content of `trainer.safetensors`

    @property
    def weights(self) -> dict[str, Tensor]:
        """The network's own (not averaged) weights."""
        return _without_prefix(self.trainer, _NETWORK)

    @property
    def clock(self) -> list[float]:
        """See `TrainingClock.to_save`."""
        seconds: list[float] = self.trainer["clock"].tolist()
        return seconds


def save_state(
    directory: str,
    info: CheckpointInfo,
    network: nn.Module,
    average: torch.optim.swa_utils.AveragedModel,
    optimizer: torch.optim.Optimizer,
    clock: Sequence[float],
    history: Sequence[dict[str, Any]],
) -> None:
    """Write a checkpoint with the averaged weights, and the state to resume from it."""
    trainer = {f"{_NETWORK}{k}": v.clone().cpu() for k, v in network.state_dict().items()}
    trainer |= optimizer_tensors(optimizer)
    trainer |= {
        "clock": torch.tensor(clock, dtype=torch.float64),  # [3]
        "averaged": average.n_averaged.cpu(),
    }
    save_checkpoint(directory, average.module.state_dict(), info, trainer)
    write_json(join(directory, "history.json"), history)


def load_state(directory: str | Path) -> TrainingState:
    """Read what `save_state` has written.

    Raises:
        VmrError: a file is missing or damaged.
    """
    info = load_info(directory)
    try:
        history = read_json(join(directory, "history.json"), _FIX)
    except FileNotFoundError:
        raise VmrError(f"{directory} has no history.json: {_FIX}") from None
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise VmrError(f"{directory}/history.json is not a list of validations: {_FIX}")
    return TrainingState(info, history, load_weights(directory, info), load_trainer(directory))


def load_trainer(directory: str | Path) -> dict[str, Tensor]:
    """Read `trainer.safetensors`.

    Raises:
        VmrError: it is missing or damaged.
    """
    path = join(directory, "trainer.safetensors")
    try:
        return load(read_bytes(path))
    except (OSError, SafetensorError) as error:
        raise VmrError(f"cannot read {path} ({one_line(error)}): {_FIX}") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as flat tensors, `optimizer.<parameter>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{_OPTIMIZER}{index}.{name}": value.clone().cpu()
        for index, entry in state.items()
        for name, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimizer the state that `optimizer_tensors` returned; other tensors are ignored."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in _without_prefix(tensors, _OPTIMIZER).items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _without_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
