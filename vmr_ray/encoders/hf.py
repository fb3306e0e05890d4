"""CLIP- and SigLIP-style dual encoders through transformers, from the hub or a local directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vmr_ray.encoders.hub import hub_answers
from vmr_ray.encoders.inference import equal_lengths, to_device
from vmr_ray.encoders.names import HF, SENTENCE
from vmr_ray.errors import VmrError

T = TypeVar("T")


class HfDualEncoder:
    """Both towers: projected frames, and sentences in the same space.

    Frames must have `size`; they are normalized by the model's image processor's mean and deviation.
    """

    def __init__(self, name: str, device: str = "cpu", threads: int | None = None) -> None:
        from transformers.image_processing_utils import BaseImageProcessor

        self.name = name
        self.shots: tuple[int, float] | None = None
        self.size, self.dim = spec(name)
        self._tokenizer = _Tokenizer(name)
        self._model = _model(name, device, threads)
        self.scale = self._model.logit_scale.exp().item()
        # SigLIP has a bias, CLIP has none.
        bias = getattr(self._model, "logit_bias", None)
        self.bias = 0.0 if bias is None else bias.item()
        self.max_tokens = self._tokenizer.max_tokens
        processor, _ = _load(name, BaseImageProcessor.get_image_processor_dict)
        # In units of a uint8 pixel; [3, 1, 1] against [n, 3, size, size].
        self._mean = 255 * torch.tensor(processor["image_mean"], device=device).view(3, 1, 1)
        self._std = 255 * torch.tensor(processor["image_std"], device=device).view(3, 1, 1)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        with _inference(self._model.device):
            pixels = torch.tensor(frames, device=self._model.device).permute(0, 3, 1, 2)
            features = self._model.get_image_features(pixel_values=(pixels - self._mean) / self._std)
        return _array(_pooled(features))

    def sentence(self, texts: list[str]) -> np.ndarray:
        vectors = np.empty((len(texts), self.dim), np.float32)
        for batch, ids, _ in self._tokenizer.batches(texts):
            with _inference(self._model.device):
                features = self._model.get_text_features(input_ids=ids.to(self._model.device))
            vectors[batch] = _array(nn.functional.normalize(_pooled(features).float(), dim=-1))
        return vectors


class HfSentenceEncoder:
    """`HfDualEncoder.sentence` as a text encoder: one state per text."""

    def __init__(self, name: str, device: str = "cpu", threads: int | None = None) -> None:
        self.name = name
        self._dual = HfDualEncoder(name.removeprefix(SENTENCE), device, threads)
        self.dim, self.max_tokens = self._dual.dim, self._dual.max_tokens

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        return list(self._dual.sentence(texts)[:, None])


class HfTextEncoder:
    """Only the text tower: the last hidden states of a text's tokens."""

    def __init__(self, name: str, device: str = "cpu", threads: int | None = None) -> None:
        self.name = name
        self._tokenizer = _Tokenizer(name)
        self._text_model = _model(name, device, threads).text_model
        self.dim: int = self._text_model.config.hidden_size
        self.max_tokens = self._tokenizer.max_tokens

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        states: dict[int, np.ndarray] = {}
        for batch, ids, is_token in self._tokenizer.batches(texts):
            with _inference(self._text_model.device):
                hidden = self._text_model(input_ids=ids.to(self._text_model.device)).last_hidden_state
            for i, state, kept in zip(batch, _array(hidden), is_token, strict=True):
                states[i] = state[kept]
        return [states[i] for i in range(len(texts))]


def spec(name: str) -> tuple[int, int]:
    """(size, dim) of the frames of `hf:<...>`, from its config only.

    Raises:
        VmrError: the config cannot be loaded, or is not a dual encoder's.
    """
    config = _config(name)
    # CLIP projects both towers into one space; SigLIP's towers have the same width and need no projection.
    dim = getattr(config, "projection_dim", None) or config.vision_config.hidden_size
    return config.vision_config.image_size, dim


class _Tokenizer:
    """Batches of token ids of equal length, so that no attention mask is needed.

    SigLIP was trained on texts padded to the full length, and attends to the padding; so it does here.
    """

    def __init__(self, name: str) -> None:
        from transformers import AutoTokenizer

        config = _config(name)
        self.max_tokens: int = config.text_config.max_position_embeddings
        self._padding = "max_length" if config.model_type.startswith("siglip") else False
        self._tokenizer = _load(name, AutoTokenizer.from_pretrained)

    def batches(self, texts: list[str], size: int = 32) -> Iterator[tuple[list[int], Tensor, np.ndarray]]:
        """(positions in `texts`, ids [n, tokens], True where an id is not padding [n, tokens])."""
        if not texts:
            return
        tokens = self._tokenizer(
            texts,
            padding=self._padding,
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=True,
        )
        ids, masks = tokens["input_ids"], tokens["attention_mask"]
        for batch in equal_lengths(ids, size):
            yield batch, torch.tensor([ids[i] for i in batch]), np.array([masks[i] for i in batch], bool)


def _config(name: str) -> Any:
    from transformers import AutoConfig

    config = _load(name, AutoConfig.from_pretrained)
    if not hasattr(config, "text_config") or not hasattr(
        getattr(config, "vision_config", None), "image_size"
    ):
        raise VmrError(f"{name} is a {config.model_type} model; give a CLIP- or SigLIP-style dual encoder")
    return config


def _model(name: str, device: str, threads: int | None) -> Any:
    from transformers import AutoModel

    if threads and device == "cpu":
        torch.set_num_threads(threads)
    # Checkpoints may be stored in half precision, which is slow and inaccurate on a CPU.
    return to_device(_load(name, AutoModel.from_pretrained).float().eval(), device)


def _load(name: str, loader: Callable[..., T]) -> T:
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = name.removeprefix(HF)
    offline = Path(path).is_dir() or not hub_answers()
    try:
        return loader(path, local_files_only=offline)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        advice = "give hf:<name on the Hugging Face hub>, or "
        if offline and not Path(path).is_dir():
            reason, advice = "no such directory, not in the cache, and the hub cannot be reached", "give "
        raise VmrError(
            f"cannot load {name} ({reason}); {advice}hf:<path> of a directory with config, weights, "
            "tokenizer and image processor, or everyday, which needs no network"
        ) from None


@contextmanager
def _inference(device: torch.device) -> Iterator[None]:
    half = torch.autocast(device.type, torch.float16, enabled=device.type != "cpu")
    with torch.inference_mode(), half:
        yield


def _pooled(features: Any) -> Tensor:
    """The tensor: transformers 5 returns an output object, earlier versions the tensor itself."""
    return getattr(features, "pooler_output", features)


def _array(x: Tensor) -> np.ndarray:
    return x.float().cpu().numpy()
