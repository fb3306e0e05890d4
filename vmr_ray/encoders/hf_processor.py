"""What an image processor of transformers does to a picture, in the terms of the decoder and the towers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL.Image import Resampling

from vmr_ray.schema import Fit, Scaling


def scaling_of(processor: Any, settings: Mapping[str, Any], size: int, fit: Fit | None) -> Scaling | None:
    """The processor's scaling to `size` x `size` pixels; with `fit`, that fit by the processor's filter.

    Args:
        settings: what the processor's file says; a size that it does not say is the network's.

    Returns:
        None without `fit` if the processor makes something else than `size` x `size` pixels of a picture.
    """
    # Without a filter processors resize bilinearly.
    filter_ = Resampling.BILINEAR if processor.resample is None else Resampling(int(processor.resample))
    own = _own_scaling(processor, settings, size, filter_.name.lower())
    if fit is None or (own is not None and own.fit == fit):
        return own
    return Scaling(fit, filter_.name.lower())


def _own_scaling(processor: Any, settings: Mapping[str, Any], size: int, filter_: str) -> Scaling | None:
    crops = bool(getattr(processor, "do_center_crop", False))
    if "size" not in settings and "crop_size" not in settings:
        return Scaling("crop" if crops else "squash", filter_)
    if not processor.do_resize or (crops and _sides(processor.crop_size) != (size, size)):
        return None
    edge = processor.size.get("shortest_edge")
    if edge and crops and not processor.size.get("longest_edge"):
        return Scaling("crop", filter_, 0 if edge == size else edge)
    sides = _sides(processor.size)
    if sides == (size, size):
        return Scaling("squash", filter_)
    if crops and sides[0] and sides[0] == sides[1]:
        return Scaling("squash", filter_, sides[0])
    return None


def _sides(size: Any) -> tuple[int, int]:
    return size.get("height") or 0, size.get("width") or 0


def pixel_statistics(processor: Any) -> tuple[list[float], list[float]]:
    """(mean, deviation) of each colour by which the processor normalizes, in units of a uint8 pixel."""
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    mean, std = [0.0] * 3, [1.0] * 3
    if processor.do_normalize:
        mean, std = list(processor.image_mean), list(processor.image_std)
    return [m / factor for m in mean], [s / factor for s in std]
