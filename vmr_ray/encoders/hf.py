"""CLIP- and SigLIP-style dual encoders through transformers, from the hub or a local directory.

On the CPU a tower is exported once and runs through ONNX Runtime, which is as fast as torch or faster.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import nn

from vmr_ray.encoders.hf_network import FrameTower, SentenceTower, TokenTower
from vmr_ray.encoders.hf_processor import pixel_statistics, scaling_of
from vmr_ray.encoders.hub import hub_answers
from vmr_ray.encoders.inference import Runner, equal_lengths, exported_runner, to_device
from vmr_ray.encoders.names import HF, SENTENCE
from vmr_ray.errors import VmrError
from vmr_ray.schema import Fit, Scaling

T = TypeVar("T")
_ALL_WEIGHTS = "*.safetensors", "*.bin", "*.json"


class HfDualEncoder:
    """Both towers: projected frames, and sentences in the same space.

    Frames must have `size`; they are normalized by the model's image processor's mean and deviation.
    """

    def __init__(self, name: str, device: str = "cpu", threads: int | None = None) -> None:
        self.name, self._device, self._threads = name, device, threads
        self.shots: tuple[int, float] | None = None
        self.size, self.dim = spec(name)
        self._run = _frame_runner(name, self.size, device, threads)
        # On the CPU small batches are as fast as large ones, and need less memory.
        self._batch = 4 if device == "cpu" else 256

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        features = np.empty((len(frames), self.dim), np.float32)
        for i in range(0, len(frames), self._batch):
            features[i : i + self._batch] = self._run(frames[i : i + self._batch])
        return features

    @cached_property
    def scaling(self) -> Scaling:
        return scaling(self.name)

    def sentence(self, texts: list[str]) -> np.ndarray:
        return self._sentences(texts)

    @cached_property
    def _sentences(self) -> _Sentences:
        return _Sentences(self.name, self._device, self._threads)

    @cached_property
    def scale(self) -> float:
        return self._logits[0]

    @cached_property
    def bias(self) -> float:
        return self._logits[1]

    @cached_property
    def _logits(self) -> tuple[float, float]:
        model = _model(self.name)
        # SigLIP has a bias, CLIP has none.
        bias = getattr(model, "logit_bias", None)
        return model.logit_scale.exp().item(), 0.0 if bias is None else bias.item()


class HfSentenceEncoder:
    """`HfDualEncoder.sentence` as a text encoder: one state per text."""

    def __init__(self, name: str, device: str = "cpu", threads: int | None = None) -> None:
        self.name = name
        self._sentences = _Sentences(name.removeprefix(SENTENCE), device, threads)
        self.dim, self.max_tokens = self._sentences.dim, self._sentences.max_tokens

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        return list(self._sentences(texts)[:, None])


class HfTextEncoder:
    """Only the text tower: the last hidden states of a text's tokens."""

    def __init__(self, name: str, device: str = "cpu", threads: int | None = None) -> None:
        self.name = name
        self._tokenizer = _Tokenizer(name)
        self._run = _text_runner(name, "tokens", self._tokenizer, device, threads)
        self.dim: int = _config(name).text_config.hidden_size
        self.max_tokens = self._tokenizer.max_tokens

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        states: dict[int, np.ndarray] = {}
        for batch, ids, is_token in self._tokenizer.batches(texts):
            for i, state, kept in zip(batch, self._run(ids), is_token, strict=True):
                states[i] = state[kept]
        return [states[i] for i in range(len(texts))]


class _Sentences:
    """Texts -> unit vectors in the common space, float32 [n, dim]."""

    def __init__(self, name: str, device: str, threads: int | None) -> None:
        self._tokenizer = _Tokenizer(name)
        self._run = _text_runner(name, "sentences", self._tokenizer, device, threads)
        (_, self.dim), self.max_tokens = spec(name), self._tokenizer.max_tokens

    def __call__(self, texts: list[str]) -> np.ndarray:
        vectors = np.empty((len(texts), self.dim), np.float32)
        for batch, ids, _ in self._tokenizer.batches(texts):
            vectors[batch] = self._run(ids)
        return vectors


def spec(name: str) -> tuple[int, int]:
    """(size, dim) of the frames of `hf:<...>`, from its config only.

    Raises:
        VmrError: the config cannot be loaded, or is not a dual encoder's.
    """
    config = _config(name)
    # CLIP projects both towers into one space; SigLIP's towers have the same width and need no projection.
    dim = getattr(config, "projection_dim", None) or config.vision_config.hidden_size
    return config.vision_config.image_size, dim


def scaling(name: str, fit: Fit | None = None) -> Scaling:
    """How its image processor makes frames of `size`; with `fit`, that fit by the processor's filter.

    Raises:
        VmrError: the processor cannot be loaded, or, without `fit`, makes frames of another size.
    """
    from transformers.image_processing_utils import BaseImageProcessor

    size, _ = spec(name)
    processor = _processor(name)
    settings, _ = _load(name, BaseImageProcessor.get_image_processor_dict)
    if (found := scaling_of(processor, settings, size, fit)) is None:
        raise VmrError(
            f"the image processor of {name} does not make the {size} x {size} pixels that its network takes; "
            "choose how with --set embed.fit=crop, pad or squash"
        )
    return found


def _frame_runner(name: str, size: int, device: str, threads: int | None) -> Runner:
    statistics = pixel_statistics(_processor(name))

    def build() -> nn.Module:
        return FrameTower(_model(name, without="text_model"), *statistics)

    random = np.random.default_rng(0)
    examples = [random.integers(0, 256, (n, size, size, 3), np.uint8) for n in (2, 3)]
    return _runner(name, "frames", build, examples, {0: "frames"}, device, threads)


def _text_runner(
    name: str,
    kind: Literal["sentences", "tokens"],
    tokenizer: _Tokenizer,
    device: str,
    threads: int | None,
) -> Runner:
    tower = SentenceTower if kind == "sentences" else TokenTower

    def build() -> nn.Module:
        return tower(_model(name, without="vision_model"))

    # Two examples of different lengths, unless all texts are padded to the same.
    texts = [["a dog"] * 2, ["a man rides the horse over the field"] * 3]
    examples = [next(tokenizer.batches(same))[1] for same in texts]
    return _runner(name, kind, build, examples, {0: "texts", 1: "tokens"}, device, threads)


def _runner(
    name: str,
    kind: str,
    build: Callable[[], nn.Module],
    examples: list[np.ndarray],
    dynamic: dict[int, str],
    device: str,
    threads: int | None,
) -> Runner:
    """ONNX Runtime on the CPU; torch on a GPU, and for a network that cannot be exported."""
    if device == "cpu":
        export = f"hf-{kind}-{_version(name)}"
        if run := exported_runner(export, build, examples, dynamic, threads):
            return run
        if threads:
            torch.set_num_threads(threads)
    module = to_device(build().eval(), device)

    def run_torch(x: np.ndarray) -> np.ndarray:
        half = torch.autocast(torch.device(device).type, torch.float16, enabled=device != "cpu")
        with torch.inference_mode(), half:
            y: np.ndarray = module(torch.tensor(x, device=device)).float().cpu().numpy()
        return y

    return run_torch


def _version(name: str) -> str:
    """A digest of all that an export depends on: the model's files, its code and this code."""
    import transformers

    digest = hashlib.sha256(f"{transformers.__version__} {torch.__version__}".encode())
    for code in (
        Path(__file__),
        *(Path(__file__).with_name(f"hf_{part}.py") for part in ("network", "processor")),
    ):
        digest.update(code.read_bytes())
    if commit := getattr(_config(name), "_commit_hash", None):
        digest.update(f"{name} {commit}".encode())
    else:
        directory = Path(name.removeprefix(HF))
        for path in sorted(path for pattern in _ALL_WEIGHTS for path in directory.glob(pattern)):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


class _Tokenizer:
    """Batches of token ids of equal length, so that no attention mask is needed.

    SigLIP was trained on texts padded to the full length, and attends to the padding; so it does here.
    """

    def __init__(self, name: str) -> None:
        config = _config(name)
        self.max_tokens: int = config.text_config.max_position_embeddings
        self._padding = "max_length" if config.model_type.startswith("siglip") else False
        self._tokenizer = _load(name, _tokenizer)

    def batches(self, texts: list[str], size: int = 32) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
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
            yield (
                batch,
                np.array([ids[i] for i in batch], np.int64),
                np.array([masks[i] for i in batch], bool),
            )


def _config(name: str) -> Any:
    from transformers import AutoConfig

    config = _load(name, AutoConfig.from_pretrained)
    if config.model_type == "siglip2":
        raise VmrError(
            f"{name} is a SigLIP 2 NaFlex model, whose frames have no fixed size; give a SigLIP 2 model of a "
            "fixed resolution, such as hf:google/siglip2-base-patch16-224"
        )
    if not hasattr(config, "text_config") or not hasattr(
        getattr(config, "vision_config", None), "image_size"
    ):
        raise VmrError(f"{name} is a {config.model_type} model; give a CLIP- or SigLIP-style dual encoder")
    return config


def _model(name: str, without: str | None = None) -> Any:
    """The model on the CPU, in single precision; `without` names a tower that is not kept in memory."""
    from transformers import AutoModel

    # Checkpoints may be stored in half precision, which is slow and inaccurate on a CPU.
    model = _load(name, AutoModel.from_pretrained).float().eval()
    if without and hasattr(model, without):
        delattr(model, without)
    return model


def _processor(name: str) -> Any:
    from transformers import AutoImageProcessor

    return _load(name, AutoImageProcessor.from_pretrained)


def _tokenizer(path: str, local_files_only: bool) -> Any:
    """Raises OSError if its files are missing: transformers then makes one that knows no words."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=local_files_only)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise OSError("its tokenizer has no vocabulary")
    return tokenizer


def _load(name: str, loader: Callable[..., T]) -> T:
    """What the directory or the cache holds; else what the hub has.

    The cache comes first, so that a worker neither waits for a hub that does not answer nor takes another
    revision than the worker beside it.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = name.removeprefix(HF)
    offline = True
    try:
        try:
            return loader(path, local_files_only=True)
        except (OSError, ValueError, ImportError):
            offline = Path(path).is_dir() or not hub_answers()
            if offline:
                raise
        return loader(path, local_files_only=False)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        advice = "give hf:<name on the Hugging Face hub>, or "
        if offline and not Path(path).is_dir():
            reason, advice = "no such directory, not in the cache, and the hub cannot be reached", "give "
        raise VmrError(
            f"cannot load {name} ({reason}); {advice}hf:<path> of a directory with config, weights, "
            "tokenizer and image processor, or everyday, which needs no network"
        ) from None
