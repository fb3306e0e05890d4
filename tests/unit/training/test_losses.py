from __future__ import annotations

import pytest
import torch

from vmr_ray.config import LossConfig
from vmr_ray.model.cross_interaction import Heads, Pyramid
from vmr_ray.model.spans import decode_pyramid
from vmr_ray.training.losses import (
    Contrast,
    contrast_loss,
    frame_contrast_loss,
    losses,
    pyramid_loss,
    span_loss,
    targets,
)


def test_targets_are_in_continuous_seconds():
    edges = torch.tensor([[0.0, 1, 2, 3, 4.5]]).repeat(2, 1)
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    target = targets([[(0.5, 2.25)], []], edges, mask)
    torch.testing.assert_close(target.membership, torch.tensor([[0.5, 1, 0.25, 0], [0, 0, 0, 0]]))
    assert target.overlap[0, 0, 1] == pytest.approx(1.5 / 2.25)  # [0, 2) against [0.5, 2.25)
    assert target.overlap[0, 1, 1] == pytest.approx(1 / 1.75)
    assert target.overlap[0].tril(-1).sum() == 0
    assert target.overlap[1].sum() == 0


def test_several_true_spans_all_count():
    edges, mask = torch.arange(7.0)[None], torch.ones(1, 6, dtype=torch.bool)
    target = targets([[(0.0, 2.0), (4.0, 5.0)]], edges, mask)
    assert target.membership[0].tolist() == [1, 1, 0, 0, 1, 0]
    assert target.overlap[0, 0, 1] == 1 and target.overlap[0, 4, 4] == 1


def test_span_loss_is_lowest_at_its_own_target():
    edges, mask = torch.arange(9.0)[None], torch.ones(1, 8, dtype=torch.bool)
    target = targets([[(2.0, 5.0)]], edges, mask)
    flat = torch.zeros(1, 8)
    membership = torch.tensor([[-4.0, -4, 4, 4, 4, -4, -4, -4]])

    def loss(shift: int) -> float:
        return float(span_loss(Heads(flat, flat, membership.roll(shift, 1)), mask, target))

    assert loss(0) < loss(1) < loss(2) < loss(3)


def test_contrast_pulls_matches_pushes_strangers_and_leaves_siblings():
    """Query 1 half-overlaps query 0 in its video (ignored); query 2 repeats query 0's text (a match)."""
    moments = torch.zeros(4, 4, requires_grad=True)  # queries are unit axes: moments[j, i] is logit[i, j]
    spans = torch.tensor([[0.0, 4], [3, 9], [50, 60], [0, 4]])
    video, text = torch.tensor([0, 0, 1, 2]), torch.tensor([7, 8, 7, 9])
    contrast_loss(Contrast(torch.eye(4), moments, torch.tensor(0.1), video, text, spans)).backward()
    gradient = moments.grad.T
    assert gradient[0, 0] < 0 and gradient[0, 2] < 0
    assert gradient[0, 3] > 0
    assert gradient[0, 1] == 0


def test_negative_pairs_are_all_background():
    mask, edges = torch.ones(2, 4, dtype=torch.bool), torch.arange(5.0).expand(2, -1)
    target = targets([[(1.0, 3.0)], []], edges, mask)
    zero = torch.zeros(2, 4)
    quiet = Heads(zero, zero, torch.tensor([[-9.0, 9, 9, -9], [-9, -9, -9, -9]]))
    loud = Heads(zero, zero, torch.tensor([[-9.0, 9, 9, -9], [9, 9, 9, 9]]))
    config = LossConfig(contrast=0)
    assert losses(quiet, mask, target, None, config)["negatives"] < 0.01
    assert losses(loud, mask, target, None, config)["negatives"] > 5


def test_padding_is_not_part_of_the_true_spans_in_frames():
    """The video's last edge is repeated over the padding: its end is still frame 3, not frame 5."""
    edges = torch.tensor([[0.0, 1, 2, 4, 4, 4], [0.0, 2, 4, 6, 8, 10]])
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    target = targets([[(1.0, 4.0)], [(0.0, 1.0), (3.0, 10.0)]], edges, mask)
    assert target.spans[0, 0].tolist() == [1, 3]
    assert target.spans[1].tolist() == [[0, 0.5], [1.5, 5]]
    assert (target.spans[0, 1] < -1e6).all()


def test_a_perfect_pyramid_has_no_regression_loss_and_decodes_the_truth():
    edges, mask = torch.arange(17.0)[None], torch.ones(1, 16, dtype=torch.bool)
    target = targets([[(3.0, 9.0)]], edges, mask)
    cells = Pyramid(8, 3)(torch.randn(1, 16, 8), mask)
    assert cells.centre.tolist() == [*(i + 0.5 for s in (1, 2, 4) for i in range(0, 16, s))]
    # The cells near the span's middle, of the levels that suit its length; they predict exactly its ends.
    right = ((cells.stride == 1) & ((cells.centre - 6).abs() < 1)) | (
        (cells.stride == 2) & ((cells.centre - 6.5).abs() == 2)
    )
    predicted = cells._replace(
        score=torch.where(right, 20.0, -20.0)[None],
        before=(cells.centre - 3)[None],
        after=(9 - cells.centre)[None],
    )
    assert pyramid_loss(predicted, target) < 1e-3
    assert pyramid_loss(predicted._replace(after=predicted.after + 3), target) > 0.2
    assert pyramid_loss(predicted._replace(score=-predicted.score), target) > 5
    [[best, *_]] = decode_pyramid(predicted, Heads(None, None, None), mask, edges.numpy(), 3)
    assert best[:2] == (3.0, 9.0)


def test_frame_contrast_wants_the_moments_frames_above_the_others():
    mask, edges = torch.ones(1, 4, dtype=torch.bool), torch.arange(5.0)[None]
    target = targets([[(1.0, 3.0)]], edges, mask)
    right, wrong = torch.tensor([[-5.0, 5, 5, -5]]), torch.tensor([[5.0, -5, -5, 5]])
    assert frame_contrast_loss(right, mask, target) < 0.01 < 5 < frame_contrast_loss(wrong, mask, target)
    torch.testing.assert_close(
        frame_contrast_loss(right + 7, mask, target), frame_contrast_loss(right, mask, target)
    )
