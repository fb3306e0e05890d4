"""Frozen frame and text encoders, by name.

    efficientnet-lite0   frames    1280-d ImageNet features; the weights are installed with the package
    minilm               texts     384-d token states of all-MiniLM-L6-v2; the weights are installed, too
    everyday             both      the two above in one space; its frames are efficientnet-lite0's features
    everyday-multilingual  both    the same with sentences of 16 languages, of a package installed on demand
    hf:<name or path>    both      a CLIP- or SigLIP-style dual encoder, loaded by transformers
    imported:<name>      frames    features that were computed elsewhere: they can only be read
    sentence:<name>      texts     one vector per text, in the space of a dual encoder's frames
    imported:<path>      texts     token states that were computed elsewhere, looked up by the query

Importing this package is fast: each encoder loads torch or transformers when it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from vmr_ray.encoders.names import (
    EVERYDAY,
    HF,
    HUB_MODELS,
    IMPORTED,
    LITE0,
    MINILM,
    MULTILINGUAL,
    SENTENCE,
    dual_encoder_of,
    stored_encoder,
)
from vmr_ray.encoders.protocols import DualEncoder, FrameEncoder, TextEncoder
from vmr_ray.errors import VmrError
from vmr_ray.schema import Fit, Scaling

__all__ = [
    "EVERYDAY",
    "HF",
    "HUB_MODELS",
    "IMPORTED",
    "LITE0",
    "MINILM",
    "MULTILINGUAL",
    "SENTENCE",
    "DualEncoder",
    "FrameEncoder",
    "TextEncoder",
    "check_dual_encoder",
    "check_texts",
    "default_text_encoder",
    "dual_encoder",
    "dual_encoder_of",
    "frame_encoder",
    "frame_projection",
    "frame_scaling",
    "frame_spec",
    "stored_encoder",
    "text_encoder",
]


def frame_encoder(name: str, device: str = "cpu", threads: int | None = None) -> FrameEncoder:
    """The frame encoder called `name`; for `hf:` names it is a DualEncoder.

    `threads` limits the CPU threads of one call; None leaves it to the runtime (all cores).

    Raises:
        VmrError: the name is unknown, or its weights cannot be loaded.
    """
    if name == LITE0:
        from vmr_ray.encoders.efficientnet_lite import EfficientNetLite0Encoder

        return EfficientNetLite0Encoder(device, threads)
    if name.startswith(HF):
        return dual_encoder(name, device, threads)
    _refuse_imported(name)
    raise _unknown("frame", name, LITE0)


def dual_encoder(name: str, device: str = "cpu", threads: int | None = None) -> DualEncoder:
    """Both towers of `everyday`, `everyday-multilingual` or an `hf:` name; otherwise as `frame_encoder`."""
    if name in (EVERYDAY, MULTILINGUAL):
        from vmr_ray.encoders.everyday import EverydayEncoder

        return EverydayEncoder(name, device, threads)
    from vmr_ray.encoders.hf import HfDualEncoder

    return HfDualEncoder(name, device, threads)


def check_dual_encoder(name: str) -> None:
    """Raises VmrError if the dual encoder `name` needs a package that is not installed; loads no weights."""
    if name == MULTILINGUAL:
        from vmr_ray.encoders.universal_sentence import check_installed

        check_installed()


def frame_projection(text_encoder_name: str) -> Callable[[np.ndarray], np.ndarray] | None:
    """What maps stored features [..., frame_dim] into the space of the sentences of a `sentence:` encoder.

    None if they are in that space already.
    """
    name = text_encoder_name.removeprefix(SENTENCE)
    if name not in (EVERYDAY, MULTILINGUAL):
        return None
    from vmr_ray.encoders.everyday import FrameProjection

    return FrameProjection(name)


def text_encoder(name: str, device: str = "cpu", threads: int | None = None) -> TextEncoder:
    """The text encoder called `name`; arguments and errors as for `frame_encoder`."""
    if name == MINILM:
        from vmr_ray.encoders.minilm import MiniLMEncoder

        return MiniLMEncoder(device, threads)
    if name.startswith(HF):
        from vmr_ray.encoders.hf import HfTextEncoder

        return HfTextEncoder(name, device, threads)
    if name in (SENTENCE + EVERYDAY, SENTENCE + MULTILINGUAL):
        from vmr_ray.encoders.everyday import EverydaySentenceEncoder

        return EverydaySentenceEncoder(name, device, threads)
    if name.startswith(SENTENCE):
        from vmr_ray.encoders.hf import HfSentenceEncoder

        return HfSentenceEncoder(name, device, threads)
    if name.startswith(IMPORTED):
        from vmr_ray.encoders.imported import ImportedText

        return ImportedText(name)
    raise _unknown("text", name, MINILM)


def check_texts(name: str, texts: Iterable[str]) -> None:
    """Check that the text encoder `name` can encode `texts`; only imported token states can lack one.

    Call it in the driver: the mistake is then reported before any worker starts.

    Raises:
        VmrError: the token states of a text were not imported.
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
        from vmr_ray.encoders.efficientnet_lite import EfficientNetLite0Encoder

        return EfficientNetLite0Encoder.size, EfficientNetLite0Encoder.dim
    if name.startswith(HF):
        from vmr_ray.encoders.hf import spec

        return spec(name)
    _refuse_imported(name)
    raise _unknown("frame", name, LITE0)


def frame_scaling(name: str, fit: Fit | None = None) -> Scaling:
    """How the decoder makes the frames of an encoder: as its own processor does, or by another `fit`.

    Raises:
        VmrError: the config of an `hf:` name cannot be loaded, or its processor does something else.
    """
    if name.startswith(HF):
        from vmr_ray.encoders.hf import scaling

        return scaling(name, fit)
    return Scaling() if fit in (None, "squash") else Scaling(fit, "bicubic")


def default_text_encoder(frame_encoder_name: str) -> str:
    """The text tower of an `hf:` frame encoder, else minilm."""
    return frame_encoder_name if frame_encoder_name.startswith(HF) else MINILM


def _refuse_imported(name: str) -> None:
    """Raises VmrError for features that cannot be computed here."""
    if name.startswith(IMPORTED):
        raise VmrError(
            f"the features {name} were computed elsewhere, so no video can be embedded with them: import its "
            "features with `vmr features import`, or choose another encoder and another --out"
        )


def _unknown(kind: str, name: str, known: str) -> VmrError:
    return VmrError(f"unknown {kind} encoder {name!r}; known: {known}, hf:<name or local path>")
