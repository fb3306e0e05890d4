from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.builders import example
from vmr_ray.config import ModelConfig, TrainConfig
from vmr_ray.model.cross_interaction import CrossInteraction
from vmr_ray.training.batches import collate
from vmr_ray.training.losses import Contrast, contrast_loss
from vmr_ray.training.objective import Objective, gather, negative_pairs


def test_negative_pairs_never_show_the_query():
    a, b, c = example(4), example(5, queries=1), example(6, queries=3)
    c.queries[2] = "only in c"
    batch = collate([a, b, c])
    own = {(text, video) for text, video in zip(batch.text.tolist(), batch.video.tolist(), strict=True)}
    pairs = set()
    for _ in range(50):
        query, video = negative_pairs(batch, 20)
        for q, v in zip(query.tolist(), video.tolist(), strict=True):
            assert (int(batch.text[q]), v) not in own
            pairs.add((batch.spans[q][0], v))
    assert pairs


def test_one_video_has_no_negative_pairs():
    query, video = negative_pairs(collate([example(4)]), 20)
    assert len(query) == len(video) == 0


def test_every_weight_is_trained_and_the_loss_falls():
    torch.manual_seed(0)
    network = CrossInteraction(
        ModelConfig(dim=16, heads=2, video_layers=1, cross_layers=1, dropout=0.0), frame_dim=3, token_dim=5
    )
    objective = Objective(network, TrainConfig())
    examples = [example(6), example(7, queries=3), example(9)]
    for e in examples:  # texts of their own: the contrast of queries with one text has a floor far above 0
        e.queries = [f"{query} of {e.video_id}" for query in e.queries]
    batch = collate(examples)
    batch.spans[0] = [(np.float64(1.0), np.float64(3.0))]  # as a cut of a composed video gives them
    torch.manual_seed(1)
    first = objective(batch)
    assert set(first) >= {"span", "membership", "contrast", "total"}
    first["total"].backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None]
    assert unused == []
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        objective(batch)["total"].backward()
        optimizer.step()
    torch.manual_seed(1)  # the pairs that `first` was computed on
    assert objective(batch)["total"] < 0.5 * first["total"]


def test_two_processes_have_the_gradient_of_one_with_the_whole_batch(tmp_path):
    """Contrast and gradients of ranks with 2 and 3 queries, against one process with all 5."""
    torch.multiprocessing.spawn(_rank, args=(tmp_path,), nprocs=2)
    alone = _contrast_of(range(5))
    loss = contrast_loss(alone)
    loss.backward()
    for rank, rows in enumerate(SHARES):
        of_rank = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(of_rank["loss"], loss.detach())
        # What DDP makes of it: the gradients of the parameters, averaged over the ranks.
        torch.testing.assert_close(of_rank["queries"] / 2, alone.queries.grad[list(rows)])
        torch.testing.assert_close(of_rank["moments"] / 2, alone.moments.grad[list(rows)])
        torch.testing.assert_close(of_rank["temperature"], alone.temperature.grad)


SHARES = (range(2), range(2, 5))


def _contrast_of(rows: range) -> Contrast:
    """Five queries: 0 and 1 are of one video and overlap by a third, 2 and 4 have the same text."""
    generator = torch.Generator().manual_seed(0)
    queries, moments = torch.randn(2, 5, 8, generator=generator)
    rows_ = list(rows)
    return Contrast(
        queries[rows_].requires_grad_(),
        moments[rows_].requires_grad_(),
        torch.tensor(0.2, requires_grad=True),
        torch.tensor([0, 0, 1, 2, 2])[rows_],
        torch.tensor([10, 11, 12, 13, 12])[rows_],
        torch.tensor([[0.0, 4], [2, 6], [0, 3], [0, 3], [5, 9]])[rows_],
    )


def _rank(rank: int, directory) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=2
    )
    own = _contrast_of(SHARES[rank])
    loss = contrast_loss(gather(own))
    loss.backward()
    gradients = {name: getattr(own, name).grad for name in ("queries", "moments", "temperature")}
    torch.save({"loss": loss.detach(), **gradients}, directory / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("changes", [{}, {"pyramid": 2, "quality": True}], ids=["defaults", "all heads"])
def test_mixed_precision_loses_little(changes):
    """bfloat16 in the network, float32 in the losses; here on a CPU, which has the same autocast."""
    torch.manual_seed(0)
    config = ModelConfig(dim=32, heads=2, dropout=0.0, **changes)
    objective = Objective(CrossInteraction(config, frame_dim=3, token_dim=5), TrainConfig(foreign_pairs=0))
    batch = collate([example(6), example(7, queries=3), example(9)])
    torch.manual_seed(1)
    full = objective(batch)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = objective(batch)
    mixed["total"].backward()
    for name, value in full.items():
        assert mixed[name].dtype == torch.float32
        torch.testing.assert_close(mixed[name], value, rtol=0.05, atol=0.05)
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
