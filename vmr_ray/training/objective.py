"""One training step: a batch of videos and queries -> the loss terms. No Ray."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from vmr_ray.config import TrainConfig
from vmr_ray.model.cross_interaction import CrossInteraction
from vmr_ray.model.similarity_network import SimilarityNetwork
from vmr_ray.training.batches import Batch
from vmr_ray.training.losses import Contrast, losses, span_loss, targets


class Objective(nn.Module):
    """The network and its losses as one module, so that DDP sees a single forward pass."""

    def __init__(self, network: CrossInteraction, config: TrainConfig):
        super().__init__()
        self.network, self.config = network, config

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss terms of a batch of B videos and all their queries, A in number.

        All A queries learn the projection. Fusion costs more, so Q pairs are drawn for it: some queries with
        their own video, and some with another one (negative pairs).
        """
        network, device = self.network, batch.video.device
        video = network.encode_video(batch.features, batch.mask)  # [B, T, dim]
        query = network.encode_query(batch.tokens, batch.token_mask)  # [A, L, dim]

        # Draw the pairs.
        max_own = max(1, self.config.fused_pairs // _world())
        own = torch.randperm(len(batch.video), device=device)[:max_own]  # query rows
        others, other_videos = negative_pairs(batch, round(self.config.foreign_pairs * len(own)))
        query_index = torch.cat([own, others])  # [Q]
        video_index = torch.cat([batch.video[own], other_videos])  # [Q]
        spans = [batch.spans[i] for i in own.tolist()] + [[] for _ in others]

        # Fuse them.
        tokens, token_mask = query[query_index], batch.token_mask[query_index]  # [Q, L, dim], [Q, L]
        heads = network.fuse(video, batch.mask, tokens, token_mask, video_index)
        mask, edges = batch.mask[video_index], batch.edges[video_index]  # [Q, T], [Q, T + 1]

        # Mixed precision ends here because sums over many frames need all their digits.
        with torch.autocast(device.type, enabled=False):
            target = targets(spans, edges, mask)
            contrast = None
            if self.config.loss.contrast:
                contrast = self._contrast(batch, video.float(), query.float())
            return losses(heads.float(), mask, target, contrast, self.config.loss, network.quality)

    def _contrast(self, batch: Batch, video: Tensor, query: Tensor) -> Contrast:
        """video [B, T, dim] and query [A, L, dim] -> the contrast of all queries of all processes."""
        frames = self.network.project_video(video, batch.mask)[batch.video]  # [A, T, dim]
        edges = batch.edges[batch.video]  # [A, T + 1]
        first_spans = [spans[0] for spans in batch.spans]
        spans = torch.tensor(first_spans, dtype=edges.dtype, device=edges.device)  # [A, 2]
        # The vector of a moment is the mean of its frames', weighted by the seconds of them it covers.
        covered = torch.minimum(edges[:, 1:], spans[:, 1:]) - torch.maximum(edges[:, :-1], spans[:, :1])
        moments = covered.clamp_min(0).unsqueeze(1) @ frames  # [A, 1, T] @ [A, T, dim] -> [A, 1, dim]
        return gather(
            Contrast(
                queries=self.network.project_query(query, batch.token_mask),
                moments=nn.functional.normalize(moments.squeeze(1), dim=-1),  # [A, dim]
                temperature=self.network.log_temperature.exp(),
                video=batch.video,
                text=batch.text_key,
                spans=spans,
            )
        )


class SimilarityObjective(nn.Module):
    """As `Objective`, for the network around a dual encoder's similarity: start and stop only."""

    def __init__(self, network: SimilarityNetwork):
        super().__init__()
        self.network = network

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss terms of a batch; frames and tokens are the dual encoder's vectors."""
        mask = batch.mask[batch.video]  # [A, T]
        heads, _ = self.network(batch.features[batch.video], mask, batch.tokens[:, 0])
        loss = span_loss(heads, mask, targets(batch.spans, batch.edges[batch.video], mask)).mean()
        return {"span": loss, "total": loss}


def objective_of(network: CrossInteraction | SimilarityNetwork, config: TrainConfig) -> nn.Module:
    """The objective that a checkpoint's network is trained by."""
    if isinstance(network, SimilarityNetwork):
        return SimilarityObjective(network)
    return Objective(network, config)


def gather(contrast: Contrast) -> Contrast:
    """The rows of all training processes together, so that every process has the whole batch to contrast.

    Every process then has the same loss. The gradient of a gathered row is the sum over the processes;
    DDP averages over the processes, which gives the gradient of one process with the whole batch.
    """
    world = _world()
    if world == 1:
        return contrast
    rows = torch.tensor(len(contrast.video), device=contrast.video.device)
    counts = [torch.zeros_like(rows) for _ in range(world)]
    dist.all_gather(counts, rows)
    longest = int(torch.stack(counts).max())

    def together(x: Tensor) -> Tensor:
        """[A, ...] of every process -> [sum of all A, ...]"""
        padded = torch.cat([x, x.new_zeros(longest - len(x), *x.shape[1:])])  # [longest, ...]
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
    """Every process's x, without gradients; of one shape in all of them."""
    parts = [torch.empty_like(x) for _ in range(world)]
    dist.all_gather(parts, x.contiguous())
    return parts


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def negative_pairs(batch: Batch, count: int) -> tuple[Tensor, Tensor]:
    """Up to `count` random pairs (query rows, video rows) of a query and a video that does not show it."""
    videos, device = len(batch.features), batch.video.device
    if videos < 2:
        count = 0
    query = torch.randint(len(batch.video), (count,), device=device)  # [count]
    offset = torch.randint(1, max(videos, 2), (count,), device=device)  # [count]
    video = (batch.video[query] + offset) % videos  # [count], never the query's own
    # Drop pairs whose text belongs to a query of the other video too: it may be true of that video.
    has_text = torch.zeros(int(batch.text.max()) + 1, videos, dtype=torch.bool, device=device)  # [texts, B]
    has_text[batch.text, batch.video] = True
    negative = ~has_text[batch.text[query], video]  # [count]
    return query[negative], video[negative]
