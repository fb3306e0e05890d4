from __future__ import annotations

import pytest
import torch

from vmr_ray.config import LossConfig, ModelConfig
from vmr_ray.model.cross_interaction import CrossInteraction, Heads, Pyramid, SpanQuality
from vmr_ray.model.spans import decode_cells, decode_spans
from vmr_ray.training.losses import (
    Contrast,
    contrast_loss,
    losses,
    pyramid_loss,
    saliency_loss,
    span_loss,
    targets,
)

CONFIG = ModelConfig(dim=32, heads=4, video_layers=1, dropout=0.0)


@pytest.fixture
def model() -> CrossInteraction:
    torch.manual_seed(0)
    return CrossInteraction(CONFIG, frame_dim=12, token_dim=10).eval()


def _run(model: CrossInteraction, frames: torch.Tensor, tokens: torch.Tensor, pad: int = 0) -> torch.Tensor:
    """[3, Q, T] logits with `pad` rows of rubbish behind every sequence."""
    T, L = frames.shape[1], tokens.shape[1]
    video_mask, query_mask = torch.arange(T + pad) < T, torch.arange(L + pad) < L
    video_mask, query_mask = video_mask.expand(len(frames), -1), query_mask.expand(len(tokens), -1)
    frames = torch.cat([frames, 100 * torch.randn(len(frames), pad, frames.shape[2])], 1)
    tokens = torch.cat([tokens, 100 * torch.randn(len(tokens), pad, tokens.shape[2])], 1)
    video = model.encode_video(frames, video_mask)
    query = model.encode_query(tokens, query_mask)
    return torch.stack(model.fuse(video, video_mask, query, query_mask)[:3])[:, :, :T]


def test_padding_changes_nothing(model: CrossInteraction) -> None:
    frames, tokens = torch.randn(2, 9, 12), torch.randn(2, 5, 10)
    torch.testing.assert_close(_run(model, frames, tokens), _run(model, frames, tokens, pad=4))


def test_query_and_frame_order_both_matter(model: CrossInteraction) -> None:
    frames, tokens = torch.randn(1, 9, 12), torch.randn(1, 5, 10)
    plain = _run(model, frames, tokens)
    assert not torch.allclose(plain, _run(model, frames, torch.randn(1, 5, 10)), atol=1e-4)
    assert not torch.allclose(plain, _run(model, frames.flip(1), tokens).flip(2), atol=1e-4)


def test_any_length_goes_through(model: CrossInteraction) -> None:
    with torch.inference_mode():
        assert _run(model, torch.randn(1, 1, 12), torch.randn(1, 1, 10)).isfinite().all()
        assert _run(model, torch.randn(1, 1500, 12), torch.randn(1, 3, 10)).isfinite().all()


def test_projections_are_unit_vectors(model: CrossInteraction) -> None:
    mask = torch.tensor([[True, True, False]])
    frames = model.project_video(model.encode_video(torch.randn(1, 3, 12), mask), mask)
    query = model.project_query(model.encode_query(torch.randn(1, 3, 10), mask), mask)
    torch.testing.assert_close(frames.norm(dim=-1), mask.float())
    torch.testing.assert_close(query.norm(dim=-1), torch.ones(1))


def test_targets_are_in_continuous_seconds() -> None:
    edges = torch.tensor([[0.0, 1, 2, 3, 4.5]]).repeat(2, 1)
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    target = targets([[(0.5, 2.25)], []], edges, mask)
    torch.testing.assert_close(target.membership, torch.tensor([[0.5, 1, 0.25, 0], [0, 0, 0, 0]]))
    assert target.overlap[0, 0, 1] == pytest.approx(1.5 / 2.25)  # [0, 2) against [0.5, 2.25)
    assert target.overlap[0, 1, 1] == pytest.approx(1 / 1.75)
    assert target.overlap[0].tril(-1).sum() == 0
    assert target.overlap[1].sum() == 0


def test_several_true_spans_all_count() -> None:
    edges, mask = torch.arange(7.0)[None], torch.ones(1, 6, dtype=torch.bool)
    target = targets([[(0.0, 2.0), (4.0, 5.0)]], edges, mask)
    assert target.membership[0].tolist() == [1, 1, 0, 0, 1, 0]
    assert target.overlap[0, 0, 1] == 1 and target.overlap[0, 4, 4] == 1


def test_span_loss_is_lowest_at_its_own_target() -> None:
    edges, mask = torch.arange(9.0)[None], torch.ones(1, 8, dtype=torch.bool)
    target = targets([[(2.0, 5.0)]], edges, mask)
    flat = torch.zeros(1, 8)
    membership = torch.tensor([[-4.0, -4, 4, 4, 4, -4, -4, -4]])

    def loss(shift: int) -> float:
        return float(span_loss(Heads(flat, flat, membership.roll(shift, 1)), mask, target))

    assert loss(0) < loss(1) < loss(2) < loss(3)


def test_contrast_pulls_matches_pushes_strangers_and_leaves_siblings() -> None:
    """Query 1 half-overlaps query 0 in its video (ignored); query 2 repeats query 0's text (a match)."""
    moments = torch.zeros(4, 4, requires_grad=True)  # queries are unit axes: moments[j, i] is logit[i, j]
    spans = torch.tensor([[0.0, 4], [3, 9], [50, 60], [0, 4]])
    video, text = torch.tensor([0, 0, 1, 2]), torch.tensor([7, 8, 7, 9])
    contrast_loss(Contrast(torch.eye(4), moments, torch.tensor(0.1), video, text, spans)).backward()
    gradient = moments.grad.T
    assert gradient[0, 0] < 0 and gradient[0, 2] < 0
    assert gradient[0, 3] > 0
    assert gradient[0, 1] == 0


def test_learns_to_find_the_frames_that_hold_the_word() -> None:
    """A token's vector is planted in a run of frames; the model must find run and seconds."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(4, 12, generator=generator)
    model = CrossInteraction(CONFIG, 12, 12)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    mask, query_mask = torch.ones(32, 12, dtype=torch.bool), torch.ones(32, 1, dtype=torch.bool)
    edges = (torch.arange(13.0) * 2).expand(32, -1)

    def batch() -> tuple[torch.Tensor, torch.Tensor, list[list[tuple[float, float]]]]:
        frames = 0.3 * torch.randn(32, 12, 12, generator=generator)
        word = torch.randint(4, (32,), generator=generator)
        first = torch.randint(0, 8, (32,), generator=generator)
        for i in range(32):
            frames[i] += words[(word[i] + 1) % 4]
            frames[i, first[i] : first[i] + 4] = words[word[i]]
        return frames, words[word][:, None], [[(2.0 * f, 2.0 * f + 8)] for f in first.tolist()]

    def forward(frames: torch.Tensor, tokens: torch.Tensor) -> Heads:
        return model.fuse(
            model.encode_video(frames, mask), mask, model.encode_query(tokens, query_mask), query_mask
        )

    for _ in range(40):
        frames, tokens, spans = batch()
        terms = losses(forward(frames, tokens), mask, targets(spans, edges, mask), None, LossConfig())
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
    model.eval()
    frames, tokens, spans = batch()
    found = decode_spans(forward(frames, tokens), mask, edges.numpy(), 1, 0.5)
    right = sum(best[0][:2] == true[0] for best, true in zip(found, spans, strict=True))
    assert right >= 28


def test_negative_pairs_are_all_background() -> None:
    mask, edges = torch.ones(2, 4, dtype=torch.bool), torch.arange(5.0).expand(2, -1)
    target = targets([[(1.0, 3.0)], []], edges, mask)
    zero = torch.zeros(2, 4)
    quiet = Heads(zero, zero, torch.tensor([[-9.0, 9, 9, -9], [-9, -9, -9, -9]]))
    loud = Heads(zero, zero, torch.tensor([[-9.0, 9, 9, -9], [9, 9, 9, 9]]))
    config = LossConfig(contrast=0)
    assert losses(quiet, mask, target, None, config)["negatives"] < 0.01
    assert losses(loud, mask, target, None, config)["negatives"] > 5


def test_padding_is_not_part_of_the_true_spans_in_frames() -> None:
    """The video's last edge is repeated over the padding: its end is still frame 3, not frame 5."""
    edges = torch.tensor([[0.0, 1, 2, 4, 4, 4], [0.0, 2, 4, 6, 8, 10]])
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    target = targets([[(1.0, 4.0)], [(0.0, 1.0), (3.0, 10.0)]], edges, mask)
    assert target.spans[0, 0].tolist() == [1, 3]
    assert target.spans[1].tolist() == [[0, 0.5], [1.5, 5]]
    assert (target.spans[0, 1] < -1e6).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"membership": False},
        {"start_stop": False},
        {"fusion": "one-way"},
        {"fusion": "late"},
        {"quality": True},
        {"pyramid": 3},
    ],
    ids=str,
)
def test_every_option_trains_all_its_weights_and_decodes(changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = CrossInteraction(CONFIG.model_copy(update=changes), 12, 10)
    mask, query_mask = torch.ones(2, 9, dtype=torch.bool), torch.ones(3, 5, dtype=torch.bool)
    mask[1, 7:] = False
    owner = torch.tensor([0, 1, 1])
    edges = torch.arange(10.0).expand(3, -1)
    video = model.encode_video(torch.randn(2, 9, 12), mask)
    query = model.encode_query(torch.randn(3, 5, 10), query_mask)
    heads = model.fuse(video, mask, query, query_mask, owner)
    target = targets([[(1.0, 3.0)], [(2.0, 6.5)], []], edges, mask[owner])
    terms = losses(heads, mask[owner], target, None, LossConfig(saliency=0.5), model.quality)
    assert terms["total"].isfinite()
    terms["total"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    if heads.cells is None:
        found = decode_spans(heads, mask[owner], edges.numpy(), 5, 0.5, model.quality)
    else:
        found = decode_cells(heads.cells, heads, mask[owner], edges.numpy(), 5)
    for spans, length in zip(found, (9, 7, 7), strict=True):
        assert spans and all(0 <= s <= e <= length for s, e, _ in spans)
        assert [s[2] for s in spans] == sorted((s[2] for s in spans), reverse=True)


def test_a_video_is_fused_once_for_all_its_queries(model: CrossInteraction) -> None:
    mask, query_mask = torch.ones(2, 9, dtype=torch.bool), torch.ones(4, 5, dtype=torch.bool)
    video = model.encode_video(torch.randn(2, 9, 12), mask)
    query = model.encode_query(torch.randn(4, 5, 10), query_mask)
    owner = torch.tensor([1, 0, 1, 1])
    shared = model.fuse(video, mask, query, query_mask, owner)
    apart = model.fuse(video[owner], mask[owner], query, query_mask)
    torch.testing.assert_close(shared[:3], apart[:3])


def test_a_perfect_pyramid_has_no_regression_loss_and_decodes_the_truth() -> None:
    edges, mask = torch.arange(17.0)[None], torch.ones(1, 16, dtype=torch.bool)
    target = targets([[(3.0, 9.0)]], edges, mask)
    cells = Pyramid(8, 3)(torch.randn(1, 16, 8), mask)
    assert cells.centre.tolist() == [*(i + 0.5 for s in (1, 2, 4) for i in range(0, 16, s))]
    # The cells near the span's middle, of the levels that suit its length; they say exactly its ends.
    right = ((cells.stride == 1) & ((cells.centre - 6).abs() < 1)) | (
        (cells.stride == 2) & ((cells.centre - 6.5).abs() == 2)
    )
    said = cells._replace(
        score=torch.where(right, 20.0, -20.0)[None],
        before=(cells.centre - 3)[None],
        after=(9 - cells.centre)[None],
    )
    assert pyramid_loss(said, target) < 1e-3
    assert pyramid_loss(said._replace(after=said.after + 3), target) > 0.2
    assert pyramid_loss(said._replace(score=-said.score), target) > 5
    [[best, *_]] = decode_cells(said, Heads(None, None, None), mask, edges.numpy(), 3)
    assert best[:2] == (3.0, 9.0)


def test_quality_knows_the_span_that_it_is_asked_about() -> None:
    """The means over the span come from a running sum: they must be those written out."""
    quality, fused = SpanQuality(4), torch.randn(2, 6, 4)
    first, last = torch.tensor([[0, 2], [5, 1]]), torch.tensor([[5, 2], [5, 4]])
    for q in range(2):
        for k in range(2):
            s, e = int(first[q, k]), int(last[q, k])
            written = torch.cat([fused[q, s], fused[q, e], fused[q, s : e + 1].mean(0)])
            torch.testing.assert_close(quality(fused, first, last)[q, k], quality.layers(written)[0])


def test_saliency_wants_the_moments_frames_above_the_others() -> None:
    mask, edges = torch.ones(1, 4, dtype=torch.bool), torch.arange(5.0)[None]
    target = targets([[(1.0, 3.0)]], edges, mask)
    right, wrong = torch.tensor([[-5.0, 5, 5, -5]]), torch.tensor([[5.0, -5, -5, 5]])
    assert saliency_loss(right, mask, target) < 0.01 < 5 < saliency_loss(wrong, mask, target)
    torch.testing.assert_close(saliency_loss(right + 7, mask, target), saliency_loss(right, mask, target))
