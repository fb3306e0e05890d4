"""The network's input: one video with its queries, and padded batches of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vmr_ray.schema import Span


@dataclass
class Example:
    """One video of T frames and its queries of L tokens each."""

    video_id: str
    duration: float  # seconds
    features: np.ndarray  # float16 [T, frame_dim]
    edges: np.ndarray  # float64 [T + 1] seconds
    queries: list[str]
    tokens: list[np.ndarray]  # a query: float16 [L, token_dim]
    spans: list[list[Span]]  # a query: its true spans


def pad(arrays: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """B arrays [T_i, D] -> float32 [B, T, D] and the mask [B, T], with T the largest T_i."""
    longest = max(len(a) for a in arrays)
    padded = torch.zeros(len(arrays), longest, arrays[0].shape[1])  # [B, T, D]
    mask = torch.zeros(len(arrays), longest, dtype=torch.bool)  # [B, T]
    for i, array in enumerate(arrays):
        padded[i, : len(array)] = torch.from_numpy(array.astype(np.float32))
        mask[i, : len(array)] = True
    return padded, mask
