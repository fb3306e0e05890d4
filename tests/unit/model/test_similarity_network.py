"""The network around a dual encoder's similarity."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from vmr_ray.model.checkpoint import Similarity
from vmr_ray.model.similarity_network import SimilarityNetwork

DIM = 12
PLAIN = Similarity(scale=10, bias=0, shots=(DIM // 2, 0.5))


def inputs(frames: int = 30, queries: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    vectors = normalize(torch.randn(queries, frames, DIM), dim=-1)
    return (
        vectors,
        torch.ones(queries, frames, dtype=torch.bool),
        normalize(torch.randn(queries, DIM), dim=-1),
    )


def refined(seed: int | None = None) -> SimilarityNetwork:
    """With a residual that is untrained, or that has random weights."""
    network = SimilarityNetwork(PLAIN.model_copy(update={"refined": ""}))
    if seed is not None:
        torch.manual_seed(seed)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return network


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shots", [PLAIN.shots, None])
def test_before_training_it_is_the_similarity_alone(training: bool, shots: tuple[int, float] | None):
    network = refined().train(training)
    network.similarity = PLAIN.model_copy(update={"shots": shots})
    alone = SimilarityNetwork(network.similarity)
    heads, logits = network(*inputs())
    expected, expected_logits = alone(*inputs())
    assert torch.equal(logits, expected_logits)
    for head, other in zip(heads[:3], expected[:3], strict=True):
        assert torch.equal(head, other)


def test_padding_changes_nothing():
    network = refined(seed=1).eval()
    vectors, mask, sentences = inputs(frames=20)
    heads, _ = network(vectors, mask, sentences)
    longer = torch.cat([vectors, torch.randn(3, 9, DIM)], 1)
    padded, _ = network(longer, torch.cat([mask, torch.zeros(3, 9, dtype=torch.bool)], 1), sentences)
    for head, other in zip(heads[:3], padded[:3], strict=True):
        torch.testing.assert_close(head, other[:, :20])


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_window_of_few_frames(frames: int):
    heads, logits = refined(seed=1).eval()(*inputs(frames))
    assert all(head.shape == logits.shape == (3, frames) for head in heads[:3])
    assert all(head.isfinite().all() for head in heads[:3])


def test_what_it_learns_depends_on_cosines_alone():
    """Turned vectors have the same cosines, so any dual encoder's frames are alike to it."""
    network = refined(seed=2).eval()
    vectors, mask, sentences = inputs()
    turns = [torch.linalg.qr(torch.randn(DIM // 2, DIM // 2))[0] for _ in range(2)]
    turn = torch.block_diag(*turns)
    heads, _ = network(vectors, mask, sentences)
    turned, _ = network(vectors @ turn, mask, sentences @ turn)
    for head, other in zip(heads[:3], turned[:3], strict=True):
        torch.testing.assert_close(head, other, atol=1e-3, rtol=1e-3)
