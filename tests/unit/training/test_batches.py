from __future__ import annotations

import numpy as np
import torch

from tests.builders import example
from vmr_ray.model.inputs import Example
from vmr_ray.schema import VideoFeatures
from vmr_ray.training.batches import collate, crop, from_row, to_row


def test_rows_round_trip():
    e = example()
    video = VideoFeatures(e.video_id, "", e.duration, e.edges[:-1], e.edges, e.features)
    back = from_row(to_row(video, e.queries, e.tokens, e.spans), 3, 5)
    np.testing.assert_array_equal(back.features, e.features)
    np.testing.assert_array_equal(back.tokens[1], e.tokens[1])
    assert (back.queries, back.spans) == (e.queries, e.spans)


def test_collate_pads_and_masks():
    batch = collate([example(4), example(6, queries=3)])
    assert batch.features.shape == (2, 6, 3) and batch.tokens.shape == (5, 4, 5)
    assert batch.mask.sum(1).tolist() == [4, 6]
    assert batch.edges[0].tolist() == [0, 1, 2, 3, 4, 4, 4]
    assert batch.video.tolist() == [0, 0, 1, 1, 1]
    assert batch.text.tolist() == [0, 1, 0, 1, 2]
    assert batch.features[0, 4:].abs().sum() == 0


def test_crop_keeps_a_moment_inside_the_window():
    spans = [[(float(s), s + 5.0)] for s in range(0, 95, 5)]
    long = example(100, queries=len(spans), spans=spans)
    for seed in range(50):
        cut = crop(long, window=20, rng=np.random.default_rng(seed))
        low, high = cut.edges[0], cut.edges[-1]
        assert len(cut.features) == 20 and high - low == 20
        assert 1 <= len(cut.queries) == len(cut.tokens) == len(cut.spans)
        for (span,), query in zip(cut.spans, cut.queries, strict=True):
            assert low <= span[0] < span[1] <= high
            true = spans[int(query.split()[1])][0]
            assert span[1] - span[0] >= 0.45 * (true[1] - true[0])


def test_crop_of_a_moment_longer_than_the_window():
    long = example(100, queries=1, spans=[[(10.0, 90.0)]])
    for seed in range(20):
        cut = crop(long, window=20, rng=np.random.default_rng(seed))
        assert len(cut.queries) == 1


def test_short_videos_stay_whole():
    e = example(6)
    cut = crop(e, window=20, rng=np.random.default_rng(0))
    assert cut.queries == e.queries
    assert torch.equal(collate([cut]).features, collate([e]).features)


def test_training_cuts_a_window_out_of_three_hours():
    hour = 3600
    rng = np.random.default_rng(0)
    frames = np.zeros((3 * hour, 4), np.float16)
    spans = [[(9000.0, 9010.0)], [(20.0, 25.0)]]
    video = Example(
        "v", 3.0 * hour, frames, np.arange(3 * hour + 1.0), ["a", "b"], [frames[:2], frames[:2]], spans
    )
    for _ in range(20):
        cut = crop(video, 256, rng)
        assert len(cut.features) == 256 and cut.queries in (["a"], ["b"])
        [[(start, end)]] = cut.spans
        assert cut.edges[0] <= start < end <= cut.edges[-1]
