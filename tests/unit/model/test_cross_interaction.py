from __future__ import annotations

import pytest
import torch

from vmr_ray.config import LossConfig, ModelConfig
from vmr_ray.model.cross_interaction import CrossInteraction, Heads, SpanQuality
from vmr_ray.model.spans import decode_pyramid, decode_spans
from vmr_ray.training.losses import losses, targets

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


def test_learns_to_find_the_frames_that_contain_the_word() -> None:
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
    decoded = decode_spans(forward(frames, tokens), mask, edges.numpy(), 1, 0.5)
    right = sum(best[0][:2] == true[0] for best, true in zip(decoded, spans, strict=True))
    assert right >= 28


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
    video_index = torch.tensor([0, 1, 1])
    edges = torch.arange(10.0).expand(3, -1)
    video = model.encode_video(torch.randn(2, 9, 12), mask)
    query = model.encode_query(torch.randn(3, 5, 10), query_mask)
    heads = model.fuse(video, mask, query, query_mask, video_index)
    target = targets([[(1.0, 3.0)], [(2.0, 6.5)], []], edges, mask[video_index])
    terms = losses(heads, mask[video_index], target, None, LossConfig(saliency=0.5), model.quality)
    assert terms["total"].isfinite()
    terms["total"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    if heads.cells is None:
        decoded = decode_spans(heads, mask[video_index], edges.numpy(), 5, 0.5, model.quality)
    else:
        decoded = decode_pyramid(heads.cells, heads, mask[video_index], edges.numpy(), 5)
    for spans, length in zip(decoded, (9, 7, 7), strict=True):
        assert spans and all(0 <= s <= e <= length for s, e, _ in spans)
        assert [s[2] for s in spans] == sorted((s[2] for s in spans), reverse=True)


def test_a_video_is_fused_once_for_all_its_queries(model: CrossInteraction) -> None:
    mask, query_mask = torch.ones(2, 9, dtype=torch.bool), torch.ones(4, 5, dtype=torch.bool)
    video = model.encode_video(torch.randn(2, 9, 12), mask)
    query = model.encode_query(torch.randn(4, 5, 10), query_mask)
    video_index = torch.tensor([1, 0, 1, 1])
    shared = model.fuse(video, mask, query, query_mask, video_index)
    apart = model.fuse(video[video_index], mask[video_index], query, query_mask)
    torch.testing.assert_close(shared[:3], apart[:3])


def test_quality_knows_the_span_that_it_is_asked_about() -> None:
    """The means over the span come from a running sum: they must be those written out."""
    quality, fused = SpanQuality(4), torch.randn(2, 6, 4)
    first, last = torch.tensor([[0, 2], [5, 1]]), torch.tensor([[5, 2], [5, 4]])
    for q in range(2):
        for k in range(2):
            s, e = int(first[q, k]), int(last[q, k])
            written = torch.cat([fused[q, s], fused[q, e], fused[q, s : e + 1].mean(0)])
            torch.testing.assert_close(quality(fused, first, last)[q, k], quality.layers(written)[0])
