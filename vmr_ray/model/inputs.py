"""What the network takes: one video with its queries, and padded batches of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vmr_ray.schema import Span


@dataclass
class Example:
    """One video, T frames, and its queries, L tokens each."""

    video_id: str
    duration: float
    features: np.ndarray  # float16 [T, frame_dim]
    edges: np.ndarray  # float64 [T + 1]
    queries: list[str]
    tokens: list[np.ndarray]  # float16 [L, token_dim]
    spans: list[list[Span]]


def pad(arrays: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """[n_i, dim] arrays -> float32 [N, max n, dim] and the mask [N, max n]."""
    longest = max(len(a) for a in arrays)
    padded = torch.zeros(len(arrays), longest, arrays[0].shape[1])
    mask = torch.zeros(len(arrays), longest, dtype=torch.bool)
    for i, array in enumerate(arrays):
        padded[i, : len(array)] = torch.from_numpy(array.astype(np.float32))
        mask[i, : len(array)] = True
    return padded, mask
