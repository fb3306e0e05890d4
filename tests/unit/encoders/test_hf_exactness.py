"""`hf:` encoders give what transformers gives for the same video frames and texts."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPImageProcessor,
    Siglip2Config,
    SiglipImageProcessor,
)

from tests.pictures import GOP, whole_frames, write_pictures
from tests.tiny_hf import TOKENS, save_tiny
from vmr_ray.config import DecodeConfig
from vmr_ray.encoders import dual_encoder, frame_scaling, frame_spec
from vmr_ray.encoders.hf_processor import pixel_statistics, scaling_of
from vmr_ray.encoders.inference import exported_runner
from vmr_ray.errors import VmrError
from vmr_ray.schema import Fit, Scaling
from vmr_ray.video.decode import FrameDecoder

KINDS = ("clip", "siglip", "siglip2")
TEXTS = ["a man rides the horse over the field", "A dog runs", "the woman opens a door"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save_tiny(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    result: np.ndarray = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return result


def pooled(features: Any) -> np.ndarray:
    array: np.ndarray = getattr(features, "pooler_output", features).numpy()
    return array


def features_of(video: Path, name: str, fit: Fit | None = None) -> np.ndarray:
    """As `vmr embed` makes them."""
    encoder, (size, _) = dual_encoder(name, threads=1), frame_spec(name)
    scaling = frame_scaling(name, fit)
    with FrameDecoder(DecodeConfig(sampling=f"every={GOP}"), size, size, scaling) as decoder:
        (chunk,) = decoder.decode(str(video))
    return encoder(chunk.frames)


def transformers_features(video: Path, model: Path) -> np.ndarray:
    """The model's own image processor on the full frames, and the model."""
    processor, network = AutoImageProcessor.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    with torch.inference_mode():
        inputs = processor(images=whole_frames(video), return_tensors="pt")
        return pooled(network.get_image_features(**inputs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("width", "height", "rotation", "b_frames"),
    [(212, 120, 0, 2), (212, 120, 90, 0), (90, 162, 0, 0), (64, 64, 180, 2)],
)
def test_frames_of_a_video(
    tmp_path: Path, models: dict[str, Path], kind: str, width: int, height: int, rotation: int, b_frames: int
) -> None:
    video = write_pictures(tmp_path / "a.mp4", width, height, rotation, b_frames)
    features = features_of(video, f"hf:{models[kind]}")
    expected = transformers_features(video, models[kind])
    assert cosines(features, expected).min() > 0.99999
    np.testing.assert_allclose(features, expected, atol=1e-3)


def test_another_fit_gives_other_features(tmp_path: Path, models: dict[str, Path]) -> None:
    video = write_pictures(tmp_path / "a.mp4", 212, 120)
    expected = transformers_features(video, models["clip"])
    fits: tuple[Fit, ...] = ("crop", "pad", "squash")
    differences = [np.abs(features_of(video, f"hf:{models['clip']}", fit) - expected).max() for fit in fits]
    assert differences[0] < 1e-3 < 1e-2 < min(differences[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_sentences(models: dict[str, Path], kind: str) -> None:
    tokenizer, network = AutoTokenizer.from_pretrained(models[kind]), AutoModel.from_pretrained(models[kind])
    # SigLIP was trained on texts padded to the full length.
    padding = {"padding": True} if kind == "clip" else {"padding": "max_length", "max_length": TOKENS}
    with torch.inference_mode():
        inputs = tokenizer(TEXTS, truncation=True, return_tensors="pt", **padding)
        expected = pooled(network.eval().get_text_features(**inputs))
    sentences = dual_encoder(f"hf:{models[kind]}").sentence(TEXTS)
    assert cosines(sentences, expected).min() > 0.99999
    np.testing.assert_allclose(np.linalg.norm(sentences, axis=1), 1, atol=1e-5)


# --- what processors say


def test_the_fit_is_the_processors_unless_one_is_chosen(models: dict[str, Path]) -> None:
    clip, siglip2 = f"hf:{models['clip']}", f"hf:{models['siglip2']}"
    assert frame_scaling(clip) == frame_scaling(clip, "crop") == Scaling("crop", "bicubic")
    assert dual_encoder(clip).scaling == Scaling("crop", "bicubic")
    assert frame_scaling(siglip2) == Scaling("squash", "bilinear")
    assert frame_scaling(siglip2, "pad") == Scaling("pad", "bilinear")
    assert frame_scaling("efficientnet-lite0") == Scaling("squash", "decoder")
    assert frame_scaling("efficientnet-lite0", "crop") == Scaling("crop", "bicubic")


SQUARE = {"height": 24, "width": 24}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"size": {"shortest_edge": 24}, "crop_size": SQUARE}, Scaling("crop", "bicubic")),
        ({"size": {"shortest_edge": 28}, "crop_size": SQUARE}, Scaling("crop", "bicubic", 28)),
        ({"size": 24, "crop_size": 24, "resample": 1}, Scaling("crop", "lanczos")),  # as in 2021
        ({"size": {"height": 28, "width": 28}, "crop_size": SQUARE}, Scaling("squash", "bicubic", 28)),
        ({"size": SQUARE, "do_center_crop": False}, Scaling("squash", "bicubic")),
        ({}, Scaling("crop", "bicubic")),  # the network's size
        ({"size": {"shortest_edge": 24}, "do_center_crop": False}, None),
        ({"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}, None),
        ({"size": SQUARE, "do_resize": False}, None),
    ],
)
def test_what_a_processor_does(settings: dict[str, Any], expected: Scaling | None) -> None:
    processor = CLIPImageProcessor(**settings)
    assert scaling_of(processor, settings, 24, None) == expected
    assert scaling_of(processor, settings, 24, "pad") == Scaling("pad", frame_filter(settings))


def frame_filter(settings: dict[str, Any]) -> str:
    return "lanczos" if settings.get("resample") == 1 else "bicubic"


def test_a_processor_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    name = f"hf:{save_tiny(tmp_path, 'siglip')}"
    SiglipImageProcessor(size={"height": 20, "width": 30}).save_pretrained(tmp_path)
    with pytest.raises(VmrError, match=r"does not make the 16 x 16 pixels .*embed\.fit=crop, pad or squash$"):
        frame_scaling(name)
    assert frame_scaling(name, "squash") == Scaling("squash", "bicubic")


def test_without_rescaling_or_normalization() -> None:
    one = SimpleNamespace(do_rescale=True, rescale_factor=1 / 255, do_normalize=False)
    mean, std = pixel_statistics(one)
    assert mean == [0] * 3
    np.testing.assert_allclose(std, [255] * 3)
    other = SimpleNamespace(do_rescale=False, do_normalize=True, image_mean=[1, 2, 3], image_std=[4, 5, 6])
    assert pixel_statistics(other) == ([1, 2, 3], [4, 5, 6])


def test_frames_without_a_fixed_size_are_refused(tmp_path: Path) -> None:
    Siglip2Config().save_pretrained(tmp_path)
    with pytest.raises(VmrError, match=r"is a SigLIP 2 NaFlex model.*fixed resolution"):
        frame_spec(f"hf:{tmp_path}")


# --- ONNX Runtime


def test_a_tower_is_exported_once(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMR_CACHE", str(tmp_path))
    name = f"hf:{models['clip']}"
    dual_encoder(name)
    (frames,) = tmp_path.iterdir()  # no text was encoded, so that tower is not there
    written = frames.stat().st_mtime_ns
    dual_encoder(name).sentence(TEXTS)
    assert sorted(path.name.split("-")[1] for path in tmp_path.iterdir()) == ["frames", "sentences"]
    assert frames.stat().st_mtime_ns == written


def test_other_weights_are_exported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMR_CACHE", str(tmp_path / "cache"))
    model = save_tiny(tmp_path / "model", "clip")
    frames = np.full((1, 24, 24, 3), 90, np.uint8)
    before = dual_encoder(f"hf:{model}")(frames)
    network = AutoModel.from_pretrained(model)
    network.visual_projection.weight.data *= 2
    network.save_pretrained(model)
    np.testing.assert_allclose(dual_encoder(f"hf:{model}")(frames), 2 * before, rtol=1e-3)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_without_a_cache_torch_runs(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3), np.uint8)
    exported = dual_encoder(f"hf:{models['clip']}")
    (tmp_path / "file").touch()
    monkeypatch.setenv("VMR_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        eager = dual_encoder(f"hf:{models['clip']}")
    assert "runs with torch, because its export failed" in caplog.text
    np.testing.assert_allclose(eager(frames), exported(frames), atol=1e-3)
    np.testing.assert_allclose(eager.sentence(TEXTS), exported.sentence(TEXTS), atol=1e-3)


class Branch(nn.Module):
    """Tracing keeps one of its branches, so the export is wrong for other inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


def test_an_export_that_differs_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMR_CACHE", str(tmp_path))
    positive, negative = np.ones((2, 3), np.float32), -np.ones((3, 3), np.float32)
    assert exported_runner("branch", Branch, [positive, negative], {0: "n"}, 1) is None
    assert not list(tmp_path.iterdir())
    run = exported_runner("branch", Branch, [positive, 2 * positive], {0: "n"}, 1)
    assert run is not None
    np.testing.assert_array_equal(run(positive), positive + 1)
