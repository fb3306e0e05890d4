"""Moments and queries made of videos without annotations."""

from __future__ import annotations

import numpy as np
import pytest

from vmr_ray.encoders.everyday import unit
from vmr_ray.training.stretches import compose_stretches, pseudo_query, stretches_in, stretches_of

DIM = 8


def shown(*lengths: int, noise: float = 0.02, seed: int = 0) -> np.ndarray:
    """Vectors of a video whose shots have these lengths."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(np.eye(DIM)[: len(lengths)], lengths, axis=0)
    return unit(frames + noise * rng.standard_normal(frames.shape)).astype(np.float32)


@pytest.mark.parametrize("shots", [(0, 0.5), None])
def test_stretches_lie_between_cuts(shots: tuple[int, float] | None):
    vectors = shown(5, 1, 9)
    edges = 10 + 2.0 * np.arange(16)
    assert stretches_of(vectors, edges, shots) == [(10, 20), (22, 40)]  # one frame alone is no stretch


def test_long_stretches_are_divided():
    spans = stretches_of(shown(30), np.arange(31.0), (0, 0.5))
    assert spans == [(0, 10), (10, 20), (20, 30)]


def test_a_video_without_changes_or_with_one_frame():
    still = np.repeat(np.eye(DIM, dtype=np.float32)[:1], 6, axis=0)
    assert stretches_of(still, np.arange(7.0), None) == [(0, 6)]
    assert stretches_of(still[:1], np.arange(2.0), None) == []


def test_compositions():
    stretches = [shown(5, seed=i) if i else shown(2, 3) for i in range(6)]
    videos = compose_stretches(stretches, 40, np.random.default_rng(0))
    assert len(videos) == 40
    for video in videos:
        assert len(video.edges) == len(video.features) + 1 and video.edges[-1] == video.duration
        np.testing.assert_allclose(np.linalg.norm(video.features, axis=1), 1, rtol=1e-5)
        (spans,), (query,) = video.spans, video.tokens
        assert spans and all(
            start >= 0 and end <= video.duration and end - start >= 2 for start, end in spans
        )
        assert query.shape == (1, DIM) and np.linalg.norm(query) == pytest.approx(1, rel=1e-5)
    assert len({len(video.features) for video in videos}) > 5


def test_the_same_seed_composes_the_same():
    stretches = [shown(5, seed=i) for i in range(6)]
    first, second = (compose_stretches(stretches, 3, np.random.default_rng(7)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.features, other.features)
        np.testing.assert_array_equal(one.tokens[0], other.tokens[0])


def test_a_query_resembles_its_moment_more_than_others_on_average():
    rng = np.random.default_rng(0)
    means = unit(rng.standard_normal((50, 64)))
    own, others = [], []
    for i, mean in enumerate(means):
        query = pseudo_query(mean[None], means, rng)[0]
        own.append(query @ mean)
        others.append(np.delete(means, i, 0) @ query)
    assert np.mean(own) > np.mean(others) + 2 * np.std(others) / np.sqrt(50)
    assert min(own) < np.max(others)  # it is not too easy


def test_the_stretches_of_a_training_row():
    videos = compose_stretches([shown(6, seed=i) for i in range(6)], 1, np.random.default_rng(0))
    parts = stretches_in(videos[0])
    assert [len(part) for part in parts] == [int(end - start) for start, end in videos[0].spans[0]]
