"""The names by which encoders are chosen; a trailing colon marks a prefix."""

from __future__ import annotations

LITE0 = "efficientnet-lite0"
MINILM = "minilm"
EVERYDAY = "everyday"
MULTILINGUAL = "everyday-multilingual"
HF = "hf:"
SENTENCE = "sentence:"
IMPORTED = "imported:"

# Short names of models on the hub; docs/embedding.md compares them.
HUB_MODELS = {
    "clip": "openai/clip-vit-base-patch32",
    "clip-large": "openai/clip-vit-large-patch14",
    "siglip": "google/siglip-base-patch16-224",
    "siglip2": "google/siglip2-base-patch16-224",
}


def stored_encoder(name: str) -> str:
    """The frame encoder whose features a store holds if a person chooses `name`.

    `everyday` and `everyday-multilingual` read the features of `efficientnet-lite0`, and a short name stands
    for a model on the hub.
    """
    if name in (EVERYDAY, MULTILINGUAL):
        return LITE0
    return HF + HUB_MODELS[name] if name in HUB_MODELS else name


def dual_encoder_of(features: str, chosen: str | None = None) -> str | None:
    """The dual encoder that compares a store's features with sentences; None if there is none.

    `chosen` is a person's choice among those that fit the features; None takes the usual one.
    """
    if chosen is not None and stored_encoder(chosen) != features:
        return None
    if features == LITE0:
        return MULTILINGUAL if chosen == MULTILINGUAL else EVERYDAY
    return features if features.startswith(HF) else None
