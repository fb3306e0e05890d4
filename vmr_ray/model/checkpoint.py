"""Checkpoints: `model.safetensors` + `checkpoint.json` (+ `trainer.safetensors`, to resume a training).

No pickle. The JSON names both encoders, so that a checkpoint refuses features of another kind, and
holds the checksum of the weights, so that a truncated file is found before it is used.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer
from safetensors.torch import load, save

from vmr_ray.config import ModelConfig, validated
from vmr_ray.errors import VmrError, one_line
from vmr_ray.model.cross_interaction import CrossInteraction
from vmr_ray.model.presence import Presence
from vmr_ray.model.similarity_network import SimilarityNetwork
from vmr_ray.schema import Fit, StoreSpec
from vmr_ray.storage import join, read_bytes, read_json, write_bytes

FORMAT = 1


class Similarity(BaseModel):
    """Ranking without a network: a dual encoder's logit is `scale * cosine + bias`.

    `shots` is the encoder's, see `DualEncoder`; without it a video counts as one shot. `refined` is the
    checksum of the weights that place spans better; without it there are none.
    """

    model_config = ConfigDict(extra="forbid")

    scale: float
    bias: float
    shots: tuple[int, float] | None = None
    refined: str | None = None


class CheckpointInfo(BaseModel):
    """The content of `checkpoint.json`. `version` is the checksum of the weights.

    With `similarity` a dual encoder ranks, and the tokens of a text are its one vector in the space of the
    frames; `version` is then a digest of this record, which names the checksum of the weights, if any.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    format: int = FORMAT
    version: str = ""
    model: ModelConfig
    similarity: Similarity | None = None
    frame_encoder: str
    frame_dim: int
    sampling: str
    fit: Fit = "squash"
    text_encoder: str
    token_dim: int
    epoch: int = 0
    metrics: dict[str, float] = {}
    presence: Presence | None = None
    constants: dict[str, Any] = {}  # see evaluation/controls.py, fit_constants

    @model_serializer(mode="wrap")
    def _without_usual_fit(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without "squash", as earlier versions write it: the version of a similarity is a digest of this."""
        data: dict[str, Any] = serialize(self)
        if self.fit == "squash":
            data.pop("fit", None)
        return data

    def check_features(self, spec: StoreSpec, root: str) -> None:
        """Raises VmrError if the features of the store at `root` are not those the model was trained on."""
        trained_on = (self.frame_encoder, self.frame_dim, self.sampling)
        if trained_on == (spec.encoder, spec.dim, spec.sampling) and self.fit != spec.fit:
            raise VmrError(
                f"{root} holds features of frames made square by {spec.fit}, the checkpoint was trained on "
                f"{self.fit}: embed with --set embed.fit={self.fit}, or train again"
            )
        if trained_on != (spec.encoder, spec.dim, spec.sampling):
            raise VmrError(
                f"{root} holds features of {spec.encoder} at {spec.sampling}, the checkpoint was trained on "
                f"{self.frame_encoder} at {self.sampling}: embed with those settings, or train again"
            )

    @property
    def dim(self) -> int:
        """Width of the states and first-stage vectors in an index."""
        return self.token_dim if self.similarity else self.model.dim

    @property
    def row_dim(self) -> int:
        """Width of the frames in training rows: features, or a dual encoder's vectors."""
        return self.token_dim if self.similarity else self.frame_dim

    @property
    def weights(self) -> str | None:
        """The checksum of `model.safetensors`; None if there is no such file."""
        return self.similarity.refined if self.similarity else self.version

    def network(self) -> CrossInteraction | SimilarityNetwork:
        """A network of this configuration with random weights, or those of the similarity alone."""
        if self.similarity:
            return SimilarityNetwork(self.similarity)
        return CrossInteraction(self.model, self.frame_dim, self.token_dim)

    def with_weights(self, data: bytes) -> CheckpointInfo:
        """This record with the checksum of the weights in `data`, and the version that follows from it."""
        checksum = hashlib.sha256(data).hexdigest()
        if not self.similarity:
            return self.model_copy(update={"version": checksum})
        similarity = self.similarity.model_copy(update={"refined": checksum})
        return self.model_copy(update={"similarity": similarity}).with_digest()

    def with_digest(self) -> CheckpointInfo:
        """This record of a similarity with its version."""
        fields = {"version": "", "epoch": 0, "metrics": {}, "constants": {}}
        # Without fields that are None, so that a new optional field does not make an index outdated.
        identity = self.model_copy(update=fields).model_dump_json(exclude_none=True)
        return self.model_copy(update={"version": hashlib.sha256(identity.encode()).hexdigest()})


def save_checkpoint(
    directory: str | Path,
    weights: dict[str, torch.Tensor],
    info: CheckpointInfo,
    trainer: dict[str, torch.Tensor] | None = None,
) -> CheckpointInfo:
    """Write a checkpoint; returns its info with the version. The JSON is written last, so a directory that
    has one is whole."""
    data = save({name: tensor.contiguous().cpu() for name, tensor in weights.items()})
    info = info.with_weights(data)
    write_bytes(join(directory, "model.safetensors"), data)
    if trainer is not None:
        write_bytes(join(directory, "trainer.safetensors"), save(trainer))
    write_bytes(join(directory, "checkpoint.json"), info.model_dump_json(indent=1).encode())
    return info


def load_info(directory: str | Path) -> CheckpointInfo:
    """Read `checkpoint.json`.

    Raises:
        VmrError: it is missing, damaged, or of another format.
    """
    path = join(directory, "checkpoint.json")
    try:
        data = read_json(path, "copy the checkpoint again")
    except FileNotFoundError:
        raise VmrError(
            f"no checkpoint at {directory}: train one with `vmr train`, and name its `best` directory"
        ) from None
    if isinstance(data, dict) and data.get("format") != FORMAT:
        raise VmrError(f"{path} has format {data.get('format')}, this version reads {FORMAT}: train again")
    return validated(CheckpointInfo, data, path)


def load_weights(directory: str | Path, info: CheckpointInfo) -> dict[str, torch.Tensor]:
    """Read and verify `model.safetensors`.

    Raises:
        VmrError: it is missing, truncated or altered.
    """
    path = join(directory, "model.safetensors")
    try:
        data = read_bytes(path)
    except OSError as error:
        raise VmrError(f"cannot read {path} ({one_line(error)}): copy the checkpoint again") from None
    if hashlib.sha256(data).hexdigest() != info.weights:
        raise VmrError(
            f"{path} is truncated or altered (its checksum is not the one in checkpoint.json): "
            "copy the checkpoint again"
        )
    return load(data)


def check_weights(directory: str | Path, info: CheckpointInfo) -> None:
    """Raises VmrError if the checkpoint has weights and they are missing, truncated or altered."""
    if info.weights:
        load_weights(directory, info)


def load_network(directory: str | Path) -> tuple[CrossInteraction | SimilarityNetwork, CheckpointInfo]:
    """The network of a checkpoint, in evaluation mode, and the checkpoint's info.

    Raises:
        VmrError: the checkpoint is missing, damaged, or of another version.
    """
    info = load_info(directory)
    network = info.network()
    try:
        if info.weights:
            network.load_state_dict(load_weights(directory, info))
    except RuntimeError as error:
        raise VmrError(
            f"{directory} does not fit this version's network, train again: {one_line(error, 200)}"
        ) from None
    return network.eval(), info
