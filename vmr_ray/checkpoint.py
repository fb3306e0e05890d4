"""Checkpoints: `model.safetensors` + `checkpoint.json` (+ `trainer.safetensors` to go on training).

No pickle. The JSON names both encoders, so that a checkpoint refuses features of another kind, and
holds the checksum of the weights, so that a truncated file is found before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load, save

from vmr_ray.config import ModelConfig, validated
from vmr_ray.errors import VmrError
from vmr_ray.features import StoreSpec
from vmr_ray.model.cross_interaction import CrossInteraction
from vmr_ray.sources import filesystem

FORMAT = 1


class Similarity(BaseModel):
    """Ranking without a network: a dual encoder's logit is `scale * cosine + bias`."""

    model_config = ConfigDict(extra="forbid")

    scale: float
    bias: float


class CheckpointInfo(BaseModel):
    """What a checkpoint says of itself. `version` is the checksum of its weights.

    With `similarity` there are no weights and no network: the frames' own encoder ranks.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    format: int = FORMAT
    version: str = ""
    model: ModelConfig
    similarity: Similarity | None = None
    frame_encoder: str
    frame_dim: int
    sampling: str
    text_encoder: str
    token_dim: int
    epoch: int = 0
    metrics: dict[str, float] = {}
    constants: dict[str, Any] = {}  # see controls.fit_constants

    def check_features(self, spec: StoreSpec, root: str) -> None:
        """Raises VmrError if the store's features are not those the model was trained on."""
        mine = (self.frame_encoder, self.frame_dim, self.sampling)
        if mine != (spec.encoder, spec.dim, spec.sampling):
            raise VmrError(
                f"{root} holds features of {spec.encoder} at {spec.sampling}, the checkpoint was trained on "
                f"{self.frame_encoder} at {self.sampling}: embed with those settings, or train anew"
            )

    @property
    def dim(self) -> int:
        """Width of the states and first-stage vectors that an index holds."""
        return self.frame_dim if self.similarity else self.model.dim

    def network(self) -> CrossInteraction:
        return CrossInteraction(self.model, self.frame_dim, self.token_dim)


def save_checkpoint(
    directory: str | Path,
    weights: dict[str, torch.Tensor],
    info: CheckpointInfo,
    trainer: dict[str, torch.Tensor] | None = None,
) -> CheckpointInfo:
    """Write a checkpoint; the JSON goes last, so a directory with one is whole."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    data = save({name: tensor.contiguous().cpu() for name, tensor in weights.items()})
    info = info.model_copy(update={"version": hashlib.sha256(data).hexdigest()})
    _write(directory / "model.safetensors", data)
    if trainer is not None:
        _write(directory / "trainer.safetensors", save(trainer))
    _write(directory / "checkpoint.json", info.model_dump_json(indent=1).encode())
    return info


def load_info(directory: str | Path) -> CheckpointInfo:
    """Read `checkpoint.json`.

    Raises:
        VmrError: it is missing, damaged, or of another format.
    """
    path = f"{directory}/checkpoint.json"
    try:
        data = json.loads(_read(path))
    except FileNotFoundError:
        raise VmrError(
            f"no checkpoint at {directory}: train one with `vmr train`, and name its `best` directory"
        ) from None
    except (ValueError, OSError) as error:
        raise VmrError(f"{path} is damaged ({error}): copy the checkpoint again") from None
    if isinstance(data, dict) and data.get("format") != FORMAT:
        raise VmrError(f"{path} has format {data.get('format')}, this version reads {FORMAT}: train anew")
    return validated(CheckpointInfo, data, path)


def load_weights(directory: str | Path, info: CheckpointInfo) -> dict[str, torch.Tensor]:
    """Read and verify `model.safetensors`.

    Raises:
        VmrError: it is missing, truncated or altered.
    """
    path = f"{directory}/model.safetensors"
    try:
        data = _read(path)
    except OSError as error:
        raise VmrError(f"cannot read {path} ({error}): copy the checkpoint again") from None
    if hashlib.sha256(data).hexdigest() != info.version:
        raise VmrError(
            f"{path} is truncated or altered (its checksum is not the one in checkpoint.json): "
            "copy the checkpoint again"
        )
    return load(data)


def check_weights(directory: str | Path, info: CheckpointInfo) -> None:
    """Raises VmrError if the weights, where there are any, are missing, truncated or altered."""
    if not info.similarity:
        load_weights(directory, info)


def load_network(directory: str | Path) -> tuple[CrossInteraction, CheckpointInfo]:
    """The network of a checkpoint, in evaluation mode, and what the checkpoint says of itself."""
    info = load_info(directory)
    if info.similarity:
        raise VmrError(
            f"{directory} ranks by {info.frame_encoder}'s similarity: train a network to use it here"
        )
    network = info.network()
    try:
        network.load_state_dict(load_weights(directory, info))
    except RuntimeError as error:
        raise VmrError(
            f"{directory} does not fit this version's network, train anew: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None
    return network.eval(), info


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
    return load(_read(f"{directory}/trainer.safetensors"))


def _read(path: str) -> bytes:
    filesys, inner = filesystem(path)
    with filesys.open_input_stream(inner) as stream:
        return stream.read()


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)
