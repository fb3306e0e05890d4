"""The cross-interaction network: early fusion of a video's frames and a query's tokens.

    frames -> project -> self-attention -+-> frames attend to tokens -+                   +-> start, stop
              (query-free, cached)       |            x N             +-> concatenate ----+-> membership
    tokens -> project -------------------+-> tokens attend to frames -+   + similarity    +-> (quality)
                                                                          + neighbours    +-> (pyramid)

After the Cross Interaction Network (SIGIR 2021, doi 10.1145/3404835.3463021): cross attention both
ways, one fused embedding per frame, start/stop and membership trained together. Positions, the
convolution over neighbours, loss weights and decoding are this project's choice.

The towers do not see each other until `fuse`, so a video is encoded once for all its queries. Their
projections into one space serve the first stage of search; the similarity of every frame with the
sentence in that space is also an input of the fused embedding.
Nothing depends on an absolute position, so the network takes any number of frames.

The letters of the shapes are those of `vmr_ray/model/__init__.py`. The attributes' names are the keys of a
checkpoint's weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, normalize, scaled_dot_product_attention

from vmr_ray.config import ModelConfig


class PyramidCells(NamedTuple):
    """The N cells of all levels of a pyramid; positions and distances count frames."""

    centre: Tensor  # [N]; [Q, N] where every row counts from a frame of its own
    stride: Tensor  # [N] frames from one cell of the level to the next
    mask: Tensor  # [Q, N]
    score: Tensor  # [Q, N] logit: the cell lies in the moment
    before: Tensor  # [Q, N] distance from the moment's start to the centre
    after: Tensor  # [Q, N] distance from the centre to the moment's end


class Heads(NamedTuple):
    """The network's output for Q pairs of a query and a video of T frames. Heads that are off are None."""

    start: Tensor | None  # [Q, T] logits
    stop: Tensor | None  # [Q, T] logits
    membership: Tensor | None  # [Q, T] logits
    fused: Tensor | None = None  # [Q, T, fusion_dim]
    cells: PyramidCells | None = None

    def float(self) -> Heads:
        """The same heads in full precision."""

        def full(x: Tensor | None) -> Tensor | None:
            return x.float() if x is not None and x.is_floating_point() else x

        cells = self.cells and PyramidCells(*map(full, self.cells))  # type: ignore[arg-type]
        return Heads(full(self.start), full(self.stop), full(self.membership), full(self.fused), cells)


class CrossInteraction(nn.Module):
    """Scores every frame of a video against a query.

    Every row of a mask has at least one real entry.
    """

    def __init__(self, config: ModelConfig, frame_dim: int, token_dim: int) -> None:
        super().__init__()
        dim, width, heads, dropout = config.dim, config.fusion_dim, config.heads, config.dropout
        self.frame_in = input_projection(frame_dim, dim, dropout)
        self.token_in = input_projection(token_dim, dim, dropout)
        self.video_layers = nn.ModuleList(Layer(dim, heads, dropout) for _ in range(config.video_layers))
        self.query_layers = nn.ModuleList(Layer(dim, heads, dropout) for _ in range(config.query_layers))
        self.video_out = nn.Linear(dim, dim)
        self.query_out = nn.Linear(dim, dim)
        self.log_temperature = nn.Parameter(torch.tensor(0.07).log())
        # Fusion is narrower because it is computed for every pair, the towers only once a video or query.
        self.frame_fuse, self.token_fuse = nn.Linear(dim, width), nn.Linear(dim, width)
        layers = 0 if config.fusion == "late" else config.cross_layers
        both_ways = config.fusion == "cross"
        self.cross_layers = nn.ModuleList(CrossLayer(width, heads, dropout, both_ways) for _ in range(layers))
        self.readout = Attention(width, heads) if layers else None
        self.fused_in = nn.Sequential(nn.Linear(2 * width + 1, width), nn.GELU(), ChannelDropout(dropout))
        self.context = (
            Layer(width, heads, dropout)
            if config.context == "attention"
            else Neighbours(width, dropout)
            if config.context == "conv"
            else None
        )
        self.fused_norm = nn.LayerNorm(width)
        # Kernel 3: a boundary is a difference between neighbours.
        self.boundary = nn.Conv1d(width, 2, kernel_size=3, padding=1) if config.start_stop else None
        self.membership = nn.Linear(width, 1) if config.membership else None
        self.quality = SpanQuality(width) if config.quality else None
        self.pyramid = Pyramid(width, config.pyramid) if config.pyramid else None

    def encode_video(self, features: Tensor, mask: Tensor) -> Tensor:
        """features [B, T, frame_dim], mask [B, T] -> [B, T, dim]; sees no query, so it can be cached."""
        x = self.frame_in(features)  # [B, T, dim]
        for layer in self.video_layers:
            x = layer(x, mask)
        return self.video_out(x)

    def encode_query(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens [Q, L, token_dim], mask [Q, L] -> [Q, L, dim]"""
        x = self.token_in(tokens)  # [Q, L, dim]
        for layer in self.query_layers:
            x = layer(x, mask)
        return x

    def project_video(self, video: Tensor, mask: Tensor) -> Tensor:
        """video [B, T, dim] from `encode_video` -> unit vectors [B, T, dim], zero where masked.

        A segment's vector is the normalised mean of its frames' vectors.
        """
        return normalize(video, dim=-1) * mask.unsqueeze(-1)  # [B, T, dim] * [B, T, 1]

    def project_query(self, query: Tensor, mask: Tensor) -> Tensor:
        """query [Q, L, dim] from `encode_query` -> unit vectors [Q, dim]"""
        return normalize(self.query_out(masked_mean(query, mask)), dim=-1)  # [Q, dim]

    def fuse(
        self,
        video: Tensor,
        video_mask: Tensor,
        query: Tensor,
        query_mask: Tensor,
        video_index: Tensor | None = None,
    ) -> Heads:
        """video [B, T, dim], video_mask [B, T], query [Q, L, dim], query_mask [Q, L] -> heads [Q, T].

        Logits are 0 where masked. `video_index` [Q] is the row of each query's video; without it row i of
        both is one pair. What depends on the video alone is computed once a video.
        """
        # First-stage similarity of every frame with the sentence.
        sentence = self.project_query(query, query_mask)  # [Q, dim]
        vectors = expand_to_pairs(self.project_video(video, video_mask), video_index)  # [Q, T, dim]
        similarity = vectors @ sentence.unsqueeze(-1) / self.log_temperature.exp()  # [Q, T, 1]

        # Cross-interaction. The first layer expands the videos to pairs.
        frames, tokens = self.frame_fuse(video), self.token_fuse(query)  # [B, T, D], [Q, L, D]
        for layer in self.cross_layers:
            frames, tokens = layer(
                frames, video_mask, tokens, query_mask, video_index
            )  # [Q, T, D], [Q, L, D]
            video_mask, video_index = expand_to_pairs(video_mask, video_index), None  # [Q, T]
        frames = expand_to_pairs(frames, video_index)  # [Q, T, D]
        video_mask = expand_to_pairs(video_mask, video_index)  # [Q, T]

        # One fused embedding per frame, which sees its neighbours.
        if self.readout is not None:
            conditioned = self.readout(frames, tokens, query_mask)  # [Q, T, D]
        else:  # late fusion: the modalities meet in this product only
            conditioned = frames * masked_mean(tokens, query_mask).unsqueeze(1)  # [Q, T, D] * [Q, 1, D]
        fused = self.fused_in(
            torch.cat([frames, conditioned, similarity], dim=-1)
        )  # [Q, T, 2D + 1] -> [Q, T, D]
        if self.context is not None:
            fused = self.context(fused, video_mask)  # [Q, T, D]
        fused = self.fused_norm(fused) * video_mask.unsqueeze(-1)  # [Q, T, D]

        # Heads.
        start = stop = membership = None
        if self.boundary is not None:
            boundary = self.boundary(fused.transpose(1, 2)) * video_mask.unsqueeze(1)  # [Q, 2, T]
            start, stop = boundary.unbind(1)  # [Q, T] both
        if self.membership is not None:
            membership = self.membership(fused).squeeze(-1) * video_mask  # [Q, T]
        cells = None if self.pyramid is None else self.pyramid(fused, video_mask)
        return Heads(start, stop, membership, fused, cells)


class CrossLayer(nn.Module):
    """Frames attend to tokens and tokens to frames, both from the same input; then a feed-forward each.

    One way: the frames attend to the tokens, which stay unchanged.
    """

    def __init__(self, dim: int, heads: int, dropout: float, both_ways: bool) -> None:
        super().__init__()
        self.frame_norm, self.token_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_frames, self.frame_ff = Attention(dim, heads), feed_forward(dim, dropout)
        self.to_tokens = Attention(dim, heads) if both_ways else None
        self.token_ff = feed_forward(dim, dropout) if both_ways else None

    def forward(
        self,
        frames: Tensor,
        frame_mask: Tensor,
        tokens: Tensor,
        token_mask: Tensor,
        video_index: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """frames [B, T, D], tokens [Q, L, D], video_index [Q] -> [Q, T, D], [Q, L, D]"""
        f, t = self.frame_norm(frames), self.token_norm(tokens)
        frame_queries = expand_to_pairs(self.to_frames.queries(f), video_index)  # [Q, H, T, D / H]
        attended = self.to_frames.attend(frame_queries, self.to_frames.memory(t), token_mask)  # [Q, T, D]
        frames = expand_to_pairs(frames, video_index) + attended  # [Q, T, D]
        if self.to_tokens is not None and self.token_ff is not None:
            memory = expand_to_pairs(self.to_tokens.memory(f), video_index, dim=1)  # [2, Q, H, T, D / H]
            frame_mask = expand_to_pairs(frame_mask, video_index)  # [Q, T]
            tokens = tokens + self.to_tokens.attend(
                self.to_tokens.queries(t), memory, frame_mask
            )  # [Q, L, D]
            tokens = tokens + self.token_ff(tokens)
        return frames + self.frame_ff(frames), tokens


class SpanQuality(nn.Module):
    """The predicted IoU of a span, from its first frame, its last frame and the mean of all its frames."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3 * dim, dim), nn.GELU(), nn.Linear(dim, 1))

    def forward(self, fused: Tensor, first: Tensor, last: Tensor) -> Tensor:
        """fused [Q, T, dim], first and last frames [Q, K] (inclusive) -> logits of the IoU [Q, K]"""
        rows = torch.arange(len(fused), device=fused.device).unsqueeze(1)  # [Q, 1]
        last = torch.maximum(first, last)  # invalid spans get a logit too; their score of -inf drops them
        # Means over spans as differences of a running sum that begins with 0.
        total = nn.functional.pad(fused.cumsum(1), (0, 0, 1, 0))  # [Q, T + 1, D]
        inside = (total[rows, last + 1] - total[rows, first]) / (last - first + 1).unsqueeze(-1)  # [Q, K, D]
        span = torch.cat([fused[rows, first], fused[rows, last], inside], dim=-1)  # [Q, K, 3D]
        return self.layers(span).squeeze(-1)  # [Q, K]


class Pyramid(nn.Module):
    """Multi-scale dense head: each cell of each level scores itself and regresses the moment around it.

    After SnAG (arXiv:2404.02257): level i has stride 2^i, the heads are shared between the levels.
    """

    def __init__(self, dim: int, levels: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Conv1d(dim, dim, kernel_size=3, stride=2, padding=1) for _ in range(levels - 1)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(levels - 1))
        self.head = nn.Sequential(nn.Conv1d(dim, dim, kernel_size=3, padding=1), nn.GELU())
        self.out = nn.Conv1d(dim, 3, kernel_size=3, padding=1)
        # A prior: few cells are positive, and the first steps should not be spent on learning that.
        self.prior_logit = -4.0

    def forward(self, fused: Tensor, mask: Tensor) -> PyramidCells:
        """fused [Q, T, D], mask [Q, T]; level i has about T / 2^i cells, T_i below."""
        levels, x, stride = [], fused, 1
        for level in range(len(self.down) + 1):
            if level:
                x = self.down[level - 1](x.transpose(1, 2)).transpose(1, 2)  # [Q, T_i, D]
                mask, stride = mask[:, ::2], 2 * stride  # [Q, T_i]
                x = nn.functional.gelu(self.norms[level - 1](x)) * mask.unsqueeze(-1)  # [Q, T_i, D]
            out = self.out(self.head(x.transpose(1, 2)))  # [Q, 3, T_i]
            score, before, after = out.unbind(1)  # [Q, T_i] each
            # A convolution of stride 2 is centred on every second cell, beginning with the first.
            centre = torch.arange(x.shape[1], device=x.device) * stride + 0.5  # [T_i]
            before, after = (stride * nn.functional.softplus(d) for d in (before, after))
            strides = torch.full_like(centre, stride)  # [T_i]
            levels.append(PyramidCells(centre, strides, mask, score + self.prior_logit, before, after))
        return PyramidCells(*(torch.cat(parts, dim=-1) for parts in zip(*levels, strict=True)))  # [..., N]


class Layer(nn.Module):
    """Pre-norm self-attention with rotary positions, then a feed-forward."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.ff = feed_forward(dim, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, D], mask [B, T] -> [B, T, D]"""
        y = self.norm(x)
        x = x + self.attention(y, y, mask, rotary=True)
        return x + self.ff(x)


class Neighbours(nn.Module):
    """Depth-wise convolution over neighbouring frames, then a feed-forward: cheap local context."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mix = nn.Conv1d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.ff = feed_forward(dim, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [Q, T, D], mask [Q, T] -> [Q, T, D]"""
        y = self.norm(x) * mask.unsqueeze(-1)  # [Q, T, D] * [Q, T, 1]
        x = x + self.mix(y.transpose(1, 2)).transpose(1, 2)  # [Q, D, T] inside
        return x + self.ff(x)


class Attention(nn.Module):
    """Multi-head attention of x [B, T, D] over memory [B, M, D] where mask [B, M] is True."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor, rotary: bool = False) -> Tensor:
        q, kv = self.queries(x), self.memory(memory)  # [B, H, T, D / H], [2, B, H, M, D / H]
        if rotary:
            q, kv = rotate(q), torch.stack([rotate(kv[0]), kv[1]])
        return self.attend(q, kv, mask)

    def queries(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T, D / H]"""
        return self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # via [B, T, H, D / H]

    def memory(self, memory: Tensor) -> Tensor:
        """[B, M, D] -> keys and values [2, B, H, M, D / H]"""
        return self.kv(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def attend(self, q: Tensor, kv: Tensor, mask: Tensor) -> Tensor:
        """q [B, H, T, D / H], kv [2, B, H, M, D / H], mask [B, M] -> [B, T, D]"""
        y = scaled_dot_product_attention(q, kv[0], kv[1], attn_mask=mask[:, None, None])  # [B, H, T, D / H]
        return self.out(y.transpose(1, 2).flatten(2))  # [B, T, D]


class ChannelDropout(nn.Module):
    """Drops channels of whole sequences [B, T, D], because drawing such a mask costs next to nothing."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * dropout(x.new_ones(len(x), 1, x.shape[-1]), self.p) if self.training else x  # * [B, 1, D]


def expand_to_pairs(x: Tensor, video_index: Tensor | None, dim: int = 0) -> Tensor:
    """x [B, ...] of videos -> [Q, ...] of pairs, along `dim`; x itself if row i belongs to pair i."""
    return x if video_index is None else x.index_select(dim, video_index)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """x [Q, L, D] -> [Q, D], the mean where mask [Q, L] is True."""
    weight = mask.unsqueeze(-1).to(x.dtype)  # [Q, L, 1]
    return (x * weight).sum(1) / weight.sum(1)  # [Q, D] / [Q, 1]


def rotate(x: Tensor) -> Tensor:
    """Rotary position embedding (arXiv:2104.09864) of x [..., T, even D]: attention sees distances only."""
    half = x.shape[-1] // 2
    frequency = 10_000.0 ** (-torch.arange(half, device=x.device) / half)  # [D / 2]
    angle = torch.arange(x.shape[-2], device=x.device)[:, None] * frequency  # [T, D / 2]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]  # [..., T, D / 2] both
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)  # [..., T, D]


def input_projection(inputs: int, dim: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(inputs), ChannelDropout(dropout), nn.Linear(inputs, dim), nn.LayerNorm(dim)
    )


def feed_forward(dim: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, 2 * dim),
        nn.GELU(),
        ChannelDropout(dropout),
        nn.Linear(2 * dim, dim),
    )
