"""The towers of a transformers dual encoder, each a module that maps one tensor to one float tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class FrameTower(nn.Module):
    """uint8 RGB frames `[n, size, size, 3]` -> features in the common space, float32 `[n, dim]`.

    The normalisation is part of it; `mean` and `std` are in units of a uint8 pixel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, frames: Tensor) -> Tensor:
        pixels = (frames.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return _pooled(self.model.get_image_features(pixel_values=pixels))


class SentenceTower(nn.Module):
    """Token ids `[n, tokens]`, without a mask -> unit vectors in the common space, float32 `[n, dim]`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        features = _pooled(self.model.get_text_features(input_ids=ids))
        return nn.functional.normalize(features.float(), dim=-1)


class TokenTower(nn.Module):
    """Token ids `[n, tokens]`, without a mask -> last hidden states, float32 `[n, tokens, dim]`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        states: Tensor = self.model.text_model(input_ids=ids).last_hidden_state
        return states


def _pooled(features: Any) -> Tensor:
    """The tensor: transformers 5 returns an output object, earlier versions the tensor itself."""
    return getattr(features, "pooler_output", features)
