from __future__ import annotations

import numpy as np
import pytest

from vmr_ray.config import DecodeConfig, load_config
from vmr_ray.errors import VmrError
from vmr_ray.video.decode.sampling import Sampling


def frames(seconds: float, fps: float, start: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    starts = start + np.arange(round(seconds * fps)) / fps
    return starts, starts + 1 / fps


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("fps=1", "fps", 1.0),
        ("fps=0.5", "fps", 0.5),
        ("every=30", "every", 30.0),
        ("keyframes", "keyframes", 0.0),
    ],
)
def test_parse(text: str, kind: str, value: float) -> None:
    assert Sampling.parse(text) == Sampling(kind, value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "fps", "fps=0", "fps=-1", "fps=nan", "fps=inf", "every=0", "every=1.5", "keyframes=2", "1"]
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="write fps=<frames a second"):
        Sampling.parse(text)


def test_config_refuses_unknown_sampling_in_a_sentence() -> None:
    assert DecodeConfig(sampling="every=3").sampling == "every=3"
    with pytest.raises(VmrError, match="'often' is not understood"):
        load_config(overrides=["embed.decode.sampling=often"])


@pytest.mark.parametrize("fps", [10, 25, 30000 / 1001])
@pytest.mark.parametrize("rate", [0.5, 1, 2])
@pytest.mark.parametrize("start", [0.0, 8.25])
def test_fps_takes_the_frame_on_screen_at_each_instant(fps: float, rate: float, start: float) -> None:
    starts, ends = frames(8, fps, start)
    plan = Sampling("fps", rate).plan(starts, ends, [0])
    assert len(plan.indices) == 8 * rate
    instants = start + np.arange(8 * rate) / rate
    assert (plan.times <= instants + 0.02).all()
    assert (ends[plan.indices] > instants).all()
    np.testing.assert_array_equal(plan.times, starts[plan.indices])
    # A frame stands for what is nearer to it than to the others.
    assert (plan.edges[0], plan.edges[-1]) == (start, ends[-1])
    np.testing.assert_allclose(plan.edges[1:-1], instants[:-1] + 0.5 / rate)


def test_whole_seconds_meet_the_key_frames_of_ntsc_video() -> None:
    plan = Sampling("fps", 1).plan(*frames(10, 30000 / 1001), [0])
    assert plan.indices.tolist() == [30 * i for i in range(10)]


@pytest.mark.parametrize(
    ("seconds", "edges"), [(3.2, [0, 0.5, 1.5, 2.5, 3.2]), (3.1, [0, 0.5, 1.5, 3.1]), (0.2, [0, 0.2])]
)
def test_a_short_rest_gets_no_sample(seconds: float, edges: list[float]) -> None:
    plan = Sampling("fps", 1).plan(*frames(seconds, 10), [0])
    np.testing.assert_allclose(plan.edges, edges)
    assert len(plan.indices) == len(edges) - 1


def test_variable_frame_rate() -> None:
    starts = [0.0, 0.1, 0.45, 1.55, 2.9]
    plan = Sampling("fps", 1).plan(starts, [*starts[1:], 4.0], [0])
    assert plan.indices.tolist() == [0, 2, 3, 4]
    assert plan.times.tolist() == [0.0, 0.45, 1.55, 2.9]


def test_few_frames_that_claim_to_last_for_days_are_refused() -> None:
    assert len(Sampling("fps", 1).plan([0.0, 5000.0], [1.0, 9999.0], [0]).indices) == 9999
    with pytest.raises(ValueError, match="its 2 frames claim to last 1000000000000 s"):
        Sampling("fps", 1).plan([0.0, 5.0], [1.0, 1e12], [0])
    assert len(Sampling.parse("keyframes").plan([0.0, 5.0], [1.0, 1e12], [0]).indices) == 1


def test_end_that_is_not_after_the_last_start_is_replaced() -> None:
    starts, _ = frames(2, 10)
    assert Sampling("fps", 1).plan(starts, starts, [0]).edges[-1] == pytest.approx(2.0)
    lone = Sampling("fps", 1).plan([5.0], [5.0], [0])
    assert lone.indices.tolist() == [0]
    assert 5.0 < lone.edges[-1] < 5.1


def test_every_and_keyframes_stand_until_the_next_one() -> None:
    starts, ends = frames(1, 10)
    every = Sampling("every", 4).plan(starts, ends, [0])
    assert every.indices.tolist() == [0, 4, 8]
    np.testing.assert_allclose(every.edges, [0, 0.4, 0.8, 1.0])
    keys = Sampling("keyframes").plan(starts, ends, [0, 7])
    assert keys.indices.tolist() == [0, 7]
    np.testing.assert_allclose(keys.edges, [0, 0.7, 1.0])


@pytest.mark.parametrize("text", ["fps=0.01", "fps=1", "every=100", "keyframes"])
def test_at_least_one_sample(text: str) -> None:
    plan = Sampling.parse(text).plan(*frames(0.3, 10), [])
    assert plan.indices.shape == plan.times.shape == (1,)
    assert plan.edges.shape == (2,)
