"""What one training step computes: a batch of videos and queries -> the loss terms. No Ray."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from vmr_ray.config import TrainConfig
from vmr_ray.model.cross_interaction import CrossInteraction
from vmr_ray.training.batches import Batch
from vmr_ray.training.losses import Contrast, losses, targets


class Objective(nn.Module):
    """The network and its losses as one module, so that DDP sees a single forward pass."""

    def __init__(self, network: CrossInteraction, config: TrainConfig):
        super().__init__()
        self.network, self.config = network, config

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Every query learns the projection; a sample is fused, with its own or a foreign video."""
        net, device = self.network, batch.video.device
        video = net.encode_video(batch.features, batch.mask)
        query = net.encode_query(batch.tokens, batch.token_mask)
        own = torch.randperm(len(batch.video), device=device)[: max(1, self.config.fused_pairs // _world())]
        asked, foreign = foreign_pairs(batch, round(self.config.foreign_pairs * len(own)))
        rows = torch.cat([own, asked])
        owners = torch.cat([batch.video[own], foreign])
        spans = [batch.spans[i] for i in own.tolist()] + [[] for _ in asked]
        mask = batch.mask[owners]
        heads = net.fuse(video, batch.mask, query[rows], batch.token_mask[rows], owners)
        # Mixed precision ends here: sums over many frames need all their digits.
        with torch.autocast(device.type, enabled=False):
            target = targets(spans, batch.edges[owners], mask)
            contrast = None
            if self.config.loss.contrast:
                contrast = self._contrast(batch, video.float(), query.float())
            return losses(heads.float(), mask, target, contrast, self.config.loss, net.quality)

    def _contrast(self, batch: Batch, video: Tensor, query: Tensor) -> Contrast:
        frames = self.network.project_video(video, batch.mask)[batch.video]
        edges = batch.edges[batch.video]
        spans = torch.tensor([spans[0] for spans in batch.spans], dtype=edges.dtype, device=edges.device)
        # A moment's vector: its frames', weighed by how much of their cells it covers.
        covered = torch.minimum(edges[:, 1:], spans[:, 1:]) - torch.maximum(edges[:, :-1], spans[:, :1])
        moments = covered.clamp_min(0).unsqueeze(1) @ frames
        return gather(
            Contrast(
                queries=self.network.project_query(query, batch.token_mask),
                moments=nn.functional.normalize(moments.squeeze(1), dim=-1),
                temperature=self.network.log_temperature.exp(),
                video=batch.video,
                text=batch.text_key,
                spans=spans,
            )
        )


def gather(contrast: Contrast) -> Contrast:
    """The rows of all training processes together, so that more of them learn from the same batch.

    Every process then has the same loss. The gradient of a gathered row is the sum over the processes,
    which DDP's average makes that of one process with the whole batch.
    """
    world = _world()
    if world == 1:
        return contrast
    rows = torch.tensor(len(contrast.video), device=contrast.video.device)
    counts = [torch.zeros_like(rows) for _ in range(world)]
    dist.all_gather(counts, rows)
    most = int(torch.stack(counts).max())

    def together(x: Tensor) -> Tensor:
        padded = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])])
        parts = all_gather(padded) if x.requires_grad else _gather_plain(padded, world)
        return torch.cat([part[: int(n)] for part, n in zip(parts, counts, strict=True)])

    return Contrast(
        queries=together(contrast.queries),
        moments=together(contrast.moments),
        temperature=contrast.temperature,
        # Every process counts its videos from 0.
        video=together(contrast.video * world + dist.get_rank()),
        text=together(contrast.text),
        spans=together(contrast.spans),
    )


def _gather_plain(x: Tensor, world: int) -> list[Tensor]:
    parts = [torch.empty_like(x) for _ in range(world)]
    dist.all_gather(parts, x.contiguous())
    return parts


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def foreign_pairs(batch: Batch, count: int) -> tuple[Tensor, Tensor]:
    """Up to `count` random pairs (query rows, video rows) of a query and a video that does not show it."""
    videos, device = len(batch.features), batch.video.device
    if videos < 2:
        count = 0
    asked = torch.randint(len(batch.video), (count,), device=device)
    other = (batch.video[asked] + torch.randint(1, max(videos, 2), (count,), device=device)) % videos
    # The same sentence may be true of the other video: such a pair proves nothing.
    told = torch.zeros(int(batch.text.max()) + 1, videos, dtype=torch.bool, device=device)
    told[batch.text, batch.video] = True
    fair = ~told[batch.text[asked], other]
    return asked[fair], other[fair]
