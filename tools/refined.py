"""Make `vmr_ray/model/refined/model.safetensors`: what places spans around a dual encoder's similarity.

    python -m tools.refined

The weights are trained on no picture and no sentence: the stretches of the videos are random vectors, which
change over time about as those of `everyday` do. What can be learned from them is how a moment looks in the
noisy similarity of its frames and in the changes between them. It takes a minute on one core; the same
machine makes the same file.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from vmr_ray.config import Config, ModelConfig
from vmr_ray.encoders.everyday import EverydayEncoder, unit
from vmr_ray.model.checkpoint import CheckpointInfo, Similarity
from vmr_ray.model.inputs import Example
from vmr_ray.storage import write_bytes
from vmr_ray.training.loop import Trainer

OUT = Path(__file__).parents[1] / "vmr_ray" / "model" / "refined" / "model.safetensors"
STEPS, VIDEOS, STRETCHES = 1500, 600, 7
DIM = 64  # of either part: what the frames are like apart from their looks, and their looks
WEIGHTS = (0.8, 0.6)  # of the two parts
# What all frames have in common, and how far a stretch wanders: the median and the spread of its logarithm.
COMMON, WANDER, SPREAD = 0.35, 0.25, 0.5


class MadeVideos:
    """Videos of random vectors, in the place of a training's rows."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.common = [unit(rng.standard_normal(DIM)) * COMMON for _ in WEIGHTS]
        self.videos = [self._video(rng) for _ in range(VIDEOS)]

    def batches(self, size: int, seed: int | None = None) -> Iterator[list[Example]]:
        rng = np.random.default_rng(seed)
        for _ in range(STEPS):
            yield [self.videos[i] for i in rng.integers(VIDEOS, size=size)]

    def _video(self, rng: np.random.Generator) -> Example:
        frames = [self._stretch(rng) for _ in range(STRETCHES)]
        bounds = np.cumsum([0, *map(len, frames)]).astype(float)
        spans = [[(a, b)] for a, b in pairwise(bounds)]
        vectors = np.concatenate(frames)
        return Example("made", bounds[-1], vectors, np.arange(len(vectors) + 1.0), [], [], spans)

    def _stretch(self, rng: np.random.Generator) -> np.ndarray:
        """Frames [n, 2 * DIM] that wander slowly around a random vector."""
        length = int(rng.integers(4, 13))
        wander = np.exp(rng.normal(np.log(WANDER), SPREAD))
        time = np.linspace(-0.5, 0.5, length)[:, None]  # [n, 1]
        parts = []
        for common, weight in zip(self.common, WEIGHTS, strict=True):
            centre, along, around = rng.standard_normal((3, DIM)) / np.sqrt(DIM)
            wave = np.cos(2 * np.pi * rng.uniform(0.3, 1) * time)
            noise = 0.5 * rng.standard_normal((length, DIM)) / np.sqrt(DIM)
            parts.append(weight * unit(centre + common + wander * (2 * time * along + wave * around + noise)))
        return np.concatenate(parts, 1)


def main() -> None:
    torch.set_num_threads(1)
    _, change = EverydayEncoder().shots or (0, 0.0)
    similarity = Similarity(scale=EverydayEncoder.scale, bias=0, shots=(DIM, change), refined="")
    info = CheckpointInfo(
        model=ModelConfig(),
        similarity=similarity,
        frame_encoder="made",
        frame_dim=2 * DIM,
        sampling="fps=1",
        text_encoder="made",
        token_dim=2 * DIM,
    )
    trainer = Trainer(Config(), info, 0, 1, torch.device("cpu"), lambda module: module)
    trainer.clock.epochs = 1
    print(trainer.train_epoch(MadeVideos(np.random.default_rng(0)), 32, STEPS))
    weights = {name: tensor.contiguous() for name, tensor in trainer.average.module.state_dict().items()}
    write_bytes(OUT, save(weights))


if __name__ == "__main__":
    main()
