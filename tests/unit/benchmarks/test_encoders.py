"""What a frame and a sentence cost: the models that the benchmark makes, and that all of them are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.encoders import SHAPES, cache_in, measure, save_random, shape_of
from vmr_ray.encoders import HUB_MODELS, frame_spec
from vmr_ray.errors import VmrError


def test_every_short_name_has_a_shape() -> None:
    assert SHAPES.keys() == HUB_MODELS.keys()
    with pytest.raises(VmrError, match="--only blip is none of clip, clip-large, siglip, siglip2"):
        shape_of("blip")


@pytest.mark.parametrize(("kind", "dim"), [("clip", 24), ("siglip", 32)])
def test_torch_and_onnx_see_the_same_in_a_model_of_random_weights(tmp_path: Path, kind: str, dim: int):
    with cache_in(str(tmp_path)):
        name = f"hf:{save_random(tmp_path / kind, kind, 32, 32, 1, 2, dim)}"
        assert frame_spec(name) == (224, dim)
        figures = measure(name, frames=2, runs=1)
    assert figures["max_difference"] < 1e-4
    assert figures["ratio"] == figures["torch_ms"] / figures["onnx_ms"]
