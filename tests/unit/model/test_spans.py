from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from vmr_ray.model.cross_interaction import Heads
from vmr_ray.model.spans import (
    PEAK,
    _largest,
    decode_spans,
    nms,
    peak,
    soft_suppress,
    span_scores,
    temporal_iou,
)


def _heads(queries: int, frames: int, seed: int = 0) -> Heads:
    generator = torch.Generator().manual_seed(seed)
    return Heads(*torch.randn(3, queries, frames, generator=generator))


def test_span_scores_equal_the_sum_written_out() -> None:
    heads, mask = _heads(2, 7), torch.ones(2, 7, dtype=torch.bool)
    mask[1, 5:] = False
    scores = span_scores(heads, mask)
    relative = heads.membership - peak(heads.membership, mask)[:, None] + PEAK
    for q, s, e in itertools.product(range(2), range(7), range(7)):
        if e < s or not mask[q, e]:
            assert scores[q, s, e] == float("-inf")
        else:
            expected = heads.start[q, s] + heads.stop[q, e] + relative[q, s : e + 1].sum()
            assert scores[q, s, e] == pytest.approx(float(expected), abs=1e-5)


def test_membership_alone_decodes_the_maximum_sum_subarray_below_the_peak() -> None:
    membership = torch.tensor([[-2.0, 3.0, 2.5, 4.0, -5.0, 2.0]])
    zero = torch.zeros_like(membership)
    mask = torch.ones_like(membership, dtype=torch.bool)
    edges = [np.array([0.0, 1.0, 2.5, 3.0, 4.0, 5.0, 6.25])]
    [best, *_] = decode_spans(Heads(zero, zero, membership), mask, edges, 5, 0.5)[0]
    assert best == (1.0, 4.0, 4.0)


def test_confidence_moves_the_score_and_not_the_span() -> None:
    heads, mask = _heads(1, 12), torch.ones(1, 12, dtype=torch.bool)
    edges = [np.arange(13.0)]
    sure = heads._replace(membership=heads.membership + 5)
    for plain, raised in zip(
        decode_spans(heads, mask, edges, 5, 0.5)[0], decode_spans(sure, mask, edges, 5, 0.5)[0], strict=True
    ):
        assert raised[:2] == plain[:2]
        assert raised[2] == pytest.approx(plain[2] + 5, abs=1e-4)


def test_decoded_spans_are_ranked_distinct_and_inside_the_video() -> None:
    heads, mask = _heads(3, 40), torch.ones(3, 40, dtype=torch.bool)
    mask[1, 10:] = False
    edges = [np.linspace(5, 45, 41), np.linspace(0, 10, 11), np.linspace(0, 20, 41)]
    decoded = decode_spans(heads, mask, edges, 5, 0.5)
    for spans, edge in zip(decoded, edges, strict=True):
        assert 0 < len(spans) <= 5
        assert [s[2] for s in spans] == sorted((s[2] for s in spans), reverse=True)
        assert all(edge[0] <= start < end <= edge[-1] for start, end, _ in spans)
        for a, b in itertools.combinations(np.array(spans)[:, :2], 2):
            assert temporal_iou(a, b) <= 0.5


def test_one_frame_video_decodes_to_its_only_cell() -> None:
    assert decode_spans(_heads(1, 1), torch.ones(1, 1, dtype=torch.bool), [np.array([3.0, 4.5])], 5, 0.5)[0][
        0
    ][:2] == (
        3.0,
        4.5,
    )


def test_nms_keeps_the_best_of_near_copies() -> None:
    spans = [(0.0, 10.0, 0.5), (1.0, 10.0, 0.9), (20.0, 30.0, 0.7), (0.0, 3.0, 0.1)]
    assert nms(spans, 0.5) == [(1.0, 10.0, 0.9), (20.0, 30.0, 0.7), (0.0, 3.0, 0.1)]
    assert nms(spans, 0.5, top_k=1) == [(1.0, 10.0, 0.9)]
    assert nms([], 0.5) == []


@pytest.mark.parametrize(
    ("a", "b", "iou"),
    [((0, 10), (5, 15), 1 / 3), ((0, 1), (1, 2), 0), ((0, 4), (1, 2), 0.25), ((2, 2), (2, 2), 0)],
)
def test_temporal_iou_is_continuous(a: tuple[float, float], b: tuple[float, float], iou: float) -> None:
    assert temporal_iou(np.array(a, float), np.array(b, float)) == pytest.approx(iou)


def test_soft_nms_lowers_near_copies_instead_of_dropping_them() -> None:
    spans = np.array([[0.0, 10.0], [1.0, 10.0], [20.0, 30.0]])
    kept = soft_suppress(spans, np.log([0.8, 0.9, 0.5]), sigma=0.5, top_k=3)
    assert [s[:2] for s in kept] == [(1.0, 10.0), (20.0, 30.0), (0.0, 10.0)]
    assert kept[1][2] == pytest.approx(np.log(0.5))
    assert kept[2][2] == pytest.approx(np.log(0.8) - 0.9**2 / 0.5)
    assert len(soft_suppress(spans, np.zeros(3), 0.5, 2)) == 2


def test_the_best_of_large_scores_are_those_of_a_plain_top_k() -> None:
    torch.manual_seed(0)
    values = torch.randn(3, 64 * 64).masked_fill_(torch.rand(3, 64 * 64) < 0.5, float("-inf"))
    plain, fast = values.topk(20, dim=1), _largest(values, 20, block=16)
    assert torch.equal(fast[0], plain.values)
    assert torch.equal(values.gather(1, fast[1]), plain.values)


def test_the_span_is_the_same_however_many_spans_are_asked_for() -> None:
    """Few wanted: searched block by block; many: at once."""
    torch.manual_seed(0)
    heads = Heads(*torch.randn(3, 2, 512).unbind(0))
    mask, edges = torch.ones(2, 512, dtype=torch.bool), [np.arange(513.0)] * 2
    few, many = (decode_spans(heads, mask, edges, top_k, nms=0.5) for top_k in (1, 400))
    assert [decoded[0] for decoded in few] == [decoded[0] for decoded in many]
