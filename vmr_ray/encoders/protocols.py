"""What an encoder offers, whatever computes it."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from vmr_ray.schema import Scaling


class FrameEncoder(Protocol):
    """Square RGB frames, uint8 `[n, size, size, 3]` -> features, float32 `[n, dim]`.

    `scaling` is how the encoder's own image processor makes such frames of others: the fit and the
    interpolation. The decoder applies it, unless `embed.fit` chooses another fit.
    """

    name: str
    dim: int
    size: int

    @property
    def scaling(self) -> Scaling: ...

    def __call__(self, frames: np.ndarray) -> np.ndarray: ...


class TextEncoder(Protocol):
    """Texts -> the states of each one's tokens, float32 `[tokens, dim]`.

    The model's own start and end tokens are kept, padding is dropped; a longer text is cut to `max_tokens`.
    """

    name: str
    dim: int
    max_tokens: int

    def __call__(self, texts: list[str]) -> list[np.ndarray]: ...


class DualEncoder(FrameEncoder, Protocol):
    """A frame encoder and a text tower that map into the same space.

    The logit of a pair is `scale * cosine + bias`.

    Attributes:
        shots: (first, change): where the cosine of two neighbouring frames, in the dimensions from `first`
            on, is below `1 - change`, a new shot begins. None if shots are not known by these vectors.
    """

    shots: tuple[int, float] | None

    @property
    def scale(self) -> float: ...

    @property
    def bias(self) -> float: ...

    def sentence(self, texts: list[str]) -> np.ndarray:
        """Unit vectors in the space of the frames, float32 `[n, dim]`."""
        ...
