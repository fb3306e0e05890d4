"""The names by which encoders are chosen; a trailing colon marks a prefix."""

from __future__ import annotations

LITE0 = "efficientnet-lite0"
MINILM = "minilm"
HF = "hf:"
SENTENCE = "sentence:"
IMPORTED = "imported:"
