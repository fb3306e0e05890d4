from __future__ import annotations

import numpy as np
import torch

from tests.unit.test_batches import example
from vmr_ray.batches import collate
from vmr_ray.config import ModelConfig, TrainConfig
from vmr_ray.model.cross_interaction import CrossInteraction
from vmr_ray.model.objective import Objective, foreign_pairs
from vmr_ray.schema import Annotation
from vmr_ray.train import split


def test_foreign_pairs_never_show_the_query():
    a, b, c = example(4), example(5, queries=1), example(6, queries=3)
    c.queries[2] = "only in c"
    batch = collate([a, b, c])
    told = {(text, video) for text, video in zip(batch.text.tolist(), batch.video.tolist(), strict=True)}
    seen = set()
    for _ in range(50):
        asked, other = foreign_pairs(batch, 20)
        for q, v in zip(asked.tolist(), other.tolist(), strict=True):
            assert (int(batch.text[q]), v) not in told
            seen.add((batch.spans[q][0], v))
    assert seen


def test_one_video_has_no_foreign_pairs():
    asked, other = foreign_pairs(collate([example(4)]), 20)
    assert len(asked) == len(other) == 0


def test_every_weight_is_trained_and_the_loss_falls():
    torch.manual_seed(0)
    network = CrossInteraction(
        ModelConfig(dim=16, heads=2, video_layers=1, cross_layers=1, dropout=0.0), frame_dim=3, token_dim=5
    )
    objective = Objective(network, TrainConfig())
    batch = collate([example(6), example(7, queries=3), example(9)])
    batch.spans[0] = [(np.float64(1.0), np.float64(3.0))]  # as a cut of a composed video gives them
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
    assert objective(batch)["total"] < 0.7 * first["total"]


def test_split_is_by_video_and_stable():
    groups = {f"v{i}": [Annotation(f"v{i}", "q", ((0.0, 1.0),))] for i in range(20)}
    train, val = split(groups, 0.1, seed=1)
    assert len(val) == 2 and not set(train) & set(val) and len(train) == 18
    assert split(dict(reversed(list(groups.items()))), 0.1, seed=1)[1].keys() == val.keys()
    assert split(groups, 0.1, seed=2)[1].keys() != val.keys()
    assert np.isclose(sum(map(len, split(groups, 0.5, seed=3)[1].values())), 10)
