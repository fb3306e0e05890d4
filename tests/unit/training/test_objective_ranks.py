"""Two training processes have the gradients of one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tests.builders import example
from vmr_ray.config import ModelConfig, TrainConfig
from vmr_ray.model.cross_interaction import CrossInteraction
from vmr_ray.training.batches import Batch, collate
from vmr_ray.training.objective import Objective

SHARES = ((5, 8), (6, 11))  # frames of each process's videos


def test_averaged_gradients_are_those_of_the_whole_batch(tmp_path: Path):
    """Holds if every process has the same number of pairs. Otherwise a pair counts more where there are
    fewer, because the losses are means and DDP gives each process the same weight; the contrast is always
    exact."""
    torch.multiprocessing.spawn(_rank, args=(tmp_path,), nprocs=2)
    alone = _objective()
    alone(_batch(*SHARES[0], *SHARES[1]))["total"].backward()
    expected = _gradients(alone)
    for rank in range(2):
        of_rank = torch.load(tmp_path / f"{rank}.pt")
        assert of_rank.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(of_rank[name], gradient, rtol=1e-4, atol=1e-6)


def _objective() -> Objective:
    torch.manual_seed(0)
    network = CrossInteraction(ModelConfig(dim=16, heads=2, dropout=0.0), frame_dim=3, token_dim=5)
    # Nothing is drawn at random: all queries are fused, and no negative pairs.
    return Objective(network, TrainConfig(fused_pairs=1000, foreign_pairs=0.0))


def _batch(*frames: int) -> Batch:
    return collate([example(n) for n in frames])


def _gradients(objective: Objective) -> dict[str, Tensor]:
    return {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}


def _rank(rank: int, directory: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=2
    )
    objective = _objective()
    module = DistributedDataParallel(objective, find_unused_parameters=True)
    module(_batch(*SHARES[rank]))["total"].backward()
    torch.save(_gradients(objective), directory / f"{rank}.pt")
    torch.distributed.destroy_process_group()
