"""Three hours of frames: found whole wherever it is, in memory that does not grow with the video."""

from __future__ import annotations

import resource
import subprocess
import sys

import numpy as np
import pytest
import torch

from vmr_ray.config import LossConfig, ModelConfig
from vmr_ray.model.checkpoint import CheckpointInfo
from vmr_ray.model.cross_interaction import CrossInteraction
from vmr_ray.model.inputs import Example
from vmr_ray.model.network_predictor import NetworkPredictor
from vmr_ray.model.predictor import retrieve
from vmr_ray.training.losses import losses, targets

HOUR = 3600
WORDS = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def predictor() -> NetworkPredictor:
    """A network that has learned to find the frames that contain the query's word."""
    config = ModelConfig(dim=32, heads=4, dropout=0.0, window=64)
    torch.manual_seed(0)
    network = CrossInteraction(config, 12, 12)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(1)
    mask, one = torch.ones(16, 64, dtype=torch.bool), torch.ones(16, 1, dtype=torch.bool)
    for _ in range(120):
        word = torch.randint(4, (16,), generator=generator)
        first = torch.randint(0, 50, (16,), generator=generator)
        frames = 0.3 * torch.randn(16, 64, 12, generator=generator) + WORDS[(word + 1) % 4][:, None]
        for i in range(16):
            frames[i, first[i] : first[i] + 12] = WORDS[word[i]]
        heads = network.fuse(
            network.encode_video(frames, mask), mask, network.encode_query(WORDS[word][:, None], one), one
        )
        spans = [[(float(f), float(f + 12))] for f in first.tolist()]
        target = targets(spans, torch.arange(65.0).expand(16, -1), mask)
        optimizer.zero_grad()
        losses(heads, mask, target, None, LossConfig())["total"].backward()
        optimizer.step()
    info = CheckpointInfo(
        model=config, frame_encoder="f", frame_dim=12, sampling="fps=1", text_encoder="minilm", token_dim=12
    )
    return NetworkPredictor(network, info)


# A border of the windows (they start every 32 frames), the very ends, and in between.
@pytest.mark.parametrize("start", [0, 57, 5000, 32 * 150 - 6, 3 * HOUR - 12])
def test_a_moment_is_found_whole_anywhere_in_three_hours(predictor: NetworkPredictor, start: int) -> None:
    rng = np.random.default_rng(start)
    words = WORDS.numpy()
    frames = 0.3 * rng.standard_normal((3 * HOUR, 12)) + words[3]
    frames[start : start + 12] = words[2]
    video = Example(
        "v", 3.0 * HOUR, frames.astype(np.float16), np.arange(3 * HOUR + 1.0), ["q"], [words[2:3]], [[]]
    )
    [[(begin, end, _), *_]] = retrieve(predictor, [video], top_k=5, nms_iou=0.5)
    assert abs(begin - start) <= 1 and abs(end - (start + 12)) <= 1


def test_three_hours_take_little_more_memory_than_one() -> None:
    one, three = (peak_mb(hours) for hours in (1, 3))
    # What is kept of two more hours: states and vectors of 7,200 frames, twice for the windows' overlap.
    kept = 2 * HOUR * 2 * 2 * 256 * 2 / 2**20
    assert three - one < kept + 60, (one, three)


def peak_mb(hours: int) -> float:
    code = f"from tests.unit.model.test_network_predictor import search_hours; search_hours({hours})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def search_hours(hours: int) -> None:
    torch.set_num_threads(1)
    info = CheckpointInfo(
        model=ModelConfig(),
        frame_encoder="f",
        frame_dim=64,
        sampling="fps=1",
        text_encoder="minilm",
        token_dim=16,
    )
    predictor = NetworkPredictor(CrossInteraction(info.model, 64, 16), info)
    rng = np.random.default_rng(0)
    frames = rng.standard_normal((hours * HOUR, 64)).astype(np.float16)
    tokens = [rng.standard_normal((9, 16)).astype(np.float16)]
    video = Example("v", hours * HOUR, frames, np.arange(hours * HOUR + 1.0), ["q"], tokens, [[]])
    [spans] = retrieve(predictor, [video], top_k=5, nms_iou=0.5)
    assert len(spans) == 5
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
