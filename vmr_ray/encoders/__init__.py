"""Frozen frame and text encoders, by name.

    efficientnet-lite0   frames    1280-d ImageNet features; its weights come with the installation
    minilm               texts     384-d token states of all-MiniLM-L6-v2; likewise
    hf:<name or path>    both      a CLIP- or SigLIP-style dual encoder, loaded by transformers
    imported:<name>      frames    features that were computed elsewhere: they can be read, not made
    sentence:hf:<name>   texts     one vector a text, in the space of the dual encoder's frames
    imported:<path>      texts     token states that were computed elsewhere, looked up by the query

Importing this package is light: torch and transformers are loaded by the encoder that needs them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from vmr_ray.errors import VmrError

LITE0 = "efficientnet-lite0"
MINILM = "minilm"
HF = "hf:"
SENTENCE = "sentence:"
IMPORTED = "imported:"


class FrameEncoder(Protocol):
    """Square RGB frames, uint8 `[n, size, size, 3]` -> features, float32 `[n, dim]`."""

    name: str
    dim: int
    size: int

    def __call__(self, frames: np.ndarray) -> np.ndarray: ...


class TextEncoder(Protocol):
    """Texts -> the states of each one's tokens, float32 `[tokens, dim]`.

    The model's own start and end tokens are kept, padding is not; a longer text is cut to `max_tokens`.
    """

    name: str
    dim: int
    max_tokens: int

    def __call__(self, texts: list[str]) -> list[np.ndarray]: ...


class DualEncoder(FrameEncoder, Protocol):
    """A frame encoder with a text tower that meets it in one space.

    It was trained on logits of `scale * cosine + bias`.
    """

    scale: float
    bias: float

    def sentence(self, texts: list[str]) -> np.ndarray:
        """Unit vectors in the frames' space, float32 `[n, dim]`."""
        ...


def frame_encoder(name: str, device: str = "cpu", threads: int | None = None) -> FrameEncoder:
    """The frame encoder called `name`; for `hf:` names it is a DualEncoder.

    `threads` bounds the CPU threads of one call; None leaves it to the runtime (all cores). For `hf:`
    it is torch's own setting, the whole process's.

    Raises:
        VmrError: the name is unknown, or its weights cannot be loaded.
    """
    if name == LITE0:
        from vmr_ray.encoders.bundled import EfficientNetLite0Encoder

        return EfficientNetLite0Encoder(device, threads)
    if name.startswith(HF):
        return dual_encoder(name, device, threads)
    _not_imported(name)
    raise _unknown("frame", name, LITE0)


def dual_encoder(name: str, device: str = "cpu", threads: int | None = None) -> DualEncoder:
    """Both towers of an `hf:` name; arguments and errors as for `frame_encoder`."""
    from vmr_ray.encoders.hf import HfDualEncoder

    return HfDualEncoder(name, device, threads)


def text_encoder(name: str, device: str = "cpu", threads: int | None = None) -> TextEncoder:
    """The text encoder called `name`; arguments and errors as for `frame_encoder`."""
    if name == MINILM:
        from vmr_ray.encoders.bundled import MiniLMEncoder

        return MiniLMEncoder(device, threads)
    if name.startswith(HF):
        from vmr_ray.encoders.hf import HfTextEncoder

        return HfTextEncoder(name, device, threads)
    if name.startswith(SENTENCE):
        from vmr_ray.encoders.hf import HfSentenceEncoder

        return HfSentenceEncoder(name, device, threads)
    if name.startswith(IMPORTED):
        from vmr_ray.encoders.imported import ImportedText

        return ImportedText(name)
    raise _unknown("text", name, MINILM)


def check_texts(name: str, texts: Iterable[str]) -> None:
    """Raises VmrError if the text encoder `name` is one of imported states and lacks those of a text.

    A mistake that is told here need not be found by a worker.
    """
    if name.startswith(IMPORTED):
        from vmr_ray.encoders.imported import ImportedText

        ImportedText(name).check(texts)


def frame_spec(name: str) -> tuple[int, int]:
    """(size, dim) of a frame encoder, without its weights.

    Raises:
        VmrError: the name is unknown, or its config cannot be loaded.
    """
    if name == LITE0:
        from vmr_ray.encoders.bundled import EfficientNetLite0Encoder

        return EfficientNetLite0Encoder.size, EfficientNetLite0Encoder.dim
    if name.startswith(HF):
        from vmr_ray.encoders.hf import spec

        return spec(name)
    _not_imported(name)
    raise _unknown("frame", name, LITE0)


def default_text_encoder(frame_encoder_name: str) -> str:
    """The text tower of an `hf:` frame encoder, else minilm."""
    return frame_encoder_name if frame_encoder_name.startswith(HF) else MINILM


def _not_imported(name: str) -> None:
    if name.startswith(IMPORTED):
        raise VmrError(
            f"the features {name} were computed elsewhere, so no video can be embedded with them: import its "
            "features with `vmr features import`, or choose another encoder and another --out"
        )


def _unknown(kind: str, name: str, known: str) -> VmrError:
    return VmrError(f"unknown {kind} encoder {name!r}; known: {known}, hf:<name or local path>")
