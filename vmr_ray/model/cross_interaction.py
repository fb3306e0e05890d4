"""The cross-interaction network: early fusion of a video's frames and a query's tokens.

    frames -> project -> self-attention -+-> frames attend to tokens -+                   +-> start, stop
              (query-free, cached)       |            x N             +-> concatenate ----+-> membership
    tokens -> project -------------------+-> tokens attend to frames -+   + similarity    +-> (quality)
                                                                          + neighbours    +-> (pyramid)

After the Cross Interaction Network (SIGIR 2021, doi 10.1145/3404835.3463021): cross attention both
ways, one fused embedding a frame, start/stop and membership trained together. Positions, the neighbours'
convolution, loss weights and decoding are this project's choice.

Both towers are free of each other until `fuse`, so a video is encoded once for all its queries. Their
projections into one space serve the first stage of search; the similarity there of every frame with the
sentence is also an input of the fused embedding.
Nothing depends on an absolute position: the network takes any number of frames.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, normalize, scaled_dot_product_attention

from vmr_ray.config import ModelConfig


class Cells(NamedTuple):
    """Cells of all levels of a pyramid, N of them; positions and distances count frames."""

    centre: Tensor  # [N]
    stride: Tensor  # [N] frames from one cell of the level to the next
    mask: Tensor  # [Q, N]
    score: Tensor  # [Q, N] logit: the cell lies in the moment
    before: Tensor  # [Q, N] distance from the centre back to the moment's start
    after: Tensor  # [Q, N] distance to its end


class Heads(NamedTuple):
    """What the network says of Q pairs of a query and a video of T frames. Heads that are off are None."""

    start: Tensor | None  # [Q, T] logits
    stop: Tensor | None  # [Q, T] logits
    membership: Tensor | None  # [Q, T] logits
    fused: Tensor | None = None  # [Q, T, fusion_dim]
    cells: Cells | None = None  # of the pyramid

    def float(self) -> Heads:
        """The same in full precision."""

        def full(x: Tensor | None) -> Tensor | None:
            return x.float() if x is not None and x.is_floating_point() else x

        cells = self.cells and Cells(*map(full, self.cells))  # type: ignore[arg-type]
        return Heads(full(self.start), full(self.stop), full(self.membership), full(self.fused), cells)


class CrossInteraction(nn.Module):
    """Scores every frame of a video against a query.

    Shapes: B videos, Q pairs of a query and a video, T frames, L tokens. Masks are True where real;
    every row holds at least one real entry.
    """

    def __init__(self, config: ModelConfig, frame_dim: int, token_dim: int) -> None:
        super().__init__()
        dim, width, heads, dropout = config.dim, config.fusion_dim, config.heads, config.dropout
        self.frame_in = project(frame_dim, dim, dropout)
        self.token_in = project(token_dim, dim, dropout)
        self.video_layers = nn.ModuleList(Layer(dim, heads, dropout) for _ in range(config.video_layers))
        self.query_layers = nn.ModuleList(Layer(dim, heads, dropout) for _ in range(config.query_layers))
        self.video_out = nn.Linear(dim, dim)
        self.query_out = nn.Linear(dim, dim)
        self.log_temperature = nn.Parameter(torch.tensor(0.07).log())
        # Fusion is narrower: it is computed anew for every pair, the towers once a video or query.
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
        """features [B, T, frame_dim], mask [B, T] -> [B, T, dim]; knows no query, so it can be cached."""
        x = self.frame_in(features)
        for layer in self.video_layers:
            x = layer(x, mask)
        return self.video_out(x)

    def encode_query(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens [Q, L, token_dim], mask [Q, L] -> [Q, L, dim]"""
        x = self.token_in(tokens)
        for layer in self.query_layers:
            x = layer(x, mask)
        return x

    def project_video(self, video: Tensor, mask: Tensor) -> Tensor:
        """video [B, T, dim] from `encode_video` -> unit vectors [B, T, dim], zero where masked.

        A segment's vector is the normalised mean of its frames' vectors.
        """
        return normalize(video, dim=-1) * mask.unsqueeze(-1)

    def project_query(self, query: Tensor, mask: Tensor) -> Tensor:
        """query [Q, L, dim] from `encode_query` -> unit vectors [Q, dim]"""
        return normalize(self.query_out(mean(query, mask)), dim=-1)

    def fuse(
        self,
        video: Tensor,
        video_mask: Tensor,
        query: Tensor,
        query_mask: Tensor,
        owner: Tensor | None = None,
    ) -> Heads:
        """video [B, T, dim] and query [Q, L, dim] -> heads [Q, T], 0 where masked.

        `owner` [Q] is the video of each query; without it row i of both is one pair. What depends on
        the video alone is computed once a video.
        """
        sentence = self.project_query(query, query_mask)
        vectors = each(self.project_video(video, video_mask), owner)
        similarity = vectors @ sentence.unsqueeze(-1) / self.log_temperature.exp()
        frames, tokens = self.frame_fuse(video), self.token_fuse(query)
        for layer in self.cross_layers:
            frames, tokens = layer(frames, video_mask, tokens, query_mask, owner)
            video_mask, owner = each(video_mask, owner), None
        frames, video_mask = each(frames, owner), each(video_mask, owner)
        if self.readout is not None:
            conditioned = self.readout(frames, tokens, query_mask)
        else:  # late fusion: the modalities meet in a product, and nowhere before
            conditioned = frames * mean(tokens, query_mask).unsqueeze(1)
        fused = self.fused_in(torch.cat([frames, conditioned, similarity], dim=-1))
        if self.context is not None:
            fused = self.context(fused, video_mask)
        fused = self.fused_norm(fused) * video_mask.unsqueeze(-1)
        start = stop = membership = None
        if self.boundary is not None:
            start, stop = (self.boundary(fused.transpose(1, 2)) * video_mask.unsqueeze(1)).unbind(1)
        if self.membership is not None:
            membership = self.membership(fused).squeeze(-1) * video_mask
        cells = None if self.pyramid is None else self.pyramid(fused, video_mask)
        return Heads(start, stop, membership, fused, cells)


class CrossLayer(nn.Module):
    """Frames attend to tokens and tokens to frames, at once, then each through its feed-forward.

    One way: the frames attend to the tokens, which stay as they are.
    """

    def __init__(self, dim: int, heads: int, dropout: float, both_ways: bool) -> None:
        super().__init__()
        self.frame_norm, self.token_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_frames, self.frame_ff = Attention(dim, heads), feed_forward(dim, dropout)
        self.to_tokens = Attention(dim, heads) if both_ways else None
        self.token_ff = feed_forward(dim, dropout) if both_ways else None

    def forward(
        self, frames: Tensor, frame_mask: Tensor, tokens: Tensor, token_mask: Tensor, owner: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """frames [B, T, dim], tokens [Q, L, dim] -> [Q, T, dim], [Q, L, dim]"""
        f, t = self.frame_norm(frames), self.token_norm(tokens)
        asked = each(self.to_frames.queries(f), owner)
        frames = each(frames, owner) + self.to_frames.attend(asked, self.to_frames.memory(t), token_mask)
        if self.to_tokens is not None and self.token_ff is not None:
            held = each(self.to_tokens.memory(f), owner, dim=1)
            tokens = tokens + self.to_tokens.attend(self.to_tokens.queries(t), held, each(frame_mask, owner))
            tokens = tokens + self.token_ff(tokens)
        return frames + self.frame_ff(frames), tokens


class SpanQuality(nn.Module):
    """How well a span fits, from its first frame, its last one and the mean of all."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3 * dim, dim), nn.GELU(), nn.Linear(dim, 1))

    def forward(self, fused: Tensor, first: Tensor, last: Tensor) -> Tensor:
        """fused [Q, T, dim], first and last frames [Q, K] (inclusive) -> logits of the IoU [Q, K]"""
        rows = torch.arange(len(fused), device=fused.device).unsqueeze(1)
        last = torch.maximum(first, last)  # spans that are none are scored too, and dropped by their score
        total = nn.functional.pad(fused.cumsum(1), (0, 0, 1, 0))
        inside = (total[rows, last + 1] - total[rows, first]) / (last - first + 1).unsqueeze(-1)
        return self.layers(torch.cat([fused[rows, first], fused[rows, last], inside], dim=-1)).squeeze(-1)


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
        # Focal loss: few cells are positive, and the first steps should not be spent on learning that.
        self.rare = -4.0

    def forward(self, fused: Tensor, mask: Tensor) -> Cells:
        """fused [Q, T, dim], mask [Q, T]"""
        found, x, stride = [], fused, 1
        for level in range(len(self.down) + 1):
            if level:
                x = self.down[level - 1](x.transpose(1, 2)).transpose(1, 2)
                mask, stride = mask[:, ::2], 2 * stride
                x = nn.functional.gelu(self.norms[level - 1](x)) * mask.unsqueeze(-1)
            score, before, after = self.out(self.head(x.transpose(1, 2))).unbind(1)
            # A convolution of stride 2 is centred on every second cell: the first one stays the first.
            centre = torch.arange(x.shape[1], device=x.device) * stride + 0.5
            reach = [stride * nn.functional.softplus(d) for d in (before, after)]
            found.append(Cells(centre, torch.full_like(centre, stride), mask, score + self.rare, *reach))
        return Cells(*(torch.cat(parts, dim=-1) for parts in zip(*found, strict=True)))


class Layer(nn.Module):
    """Pre-norm self-attention with rotary positions, then a feed-forward."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.ff = feed_forward(dim, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, mask, rotary=True)
        return x + self.ff(x)


class Neighbours(nn.Module):
    """Depth-wise convolution over neighbouring frames, then a feed-forward: local context at little cost."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mix = nn.Conv1d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.ff = feed_forward(dim, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.norm(x) * mask.unsqueeze(-1)
        x = x + self.mix(y.transpose(1, 2)).transpose(1, 2)
        return x + self.ff(x)


class Attention(nn.Module):
    """Multi-head attention of x [N, T, dim] over memory [N, M, dim] where mask [N, M] is True."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor, rotary: bool = False) -> Tensor:
        q, kv = self.queries(x), self.memory(memory)
        if rotary:
            q, kv = rotate(q), torch.stack([rotate(kv[0]), kv[1]])
        return self.attend(q, kv, mask)

    def queries(self, x: Tensor) -> Tensor:
        """[N, T, dim] -> [N, heads, T, dim / heads]"""
        return self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def memory(self, memory: Tensor) -> Tensor:
        """[N, M, dim] -> keys and values [2, N, heads, M, dim / heads]"""
        return self.kv(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def attend(self, q: Tensor, kv: Tensor, mask: Tensor) -> Tensor:
        y = scaled_dot_product_attention(q, kv[0], kv[1], attn_mask=mask[:, None, None])
        return self.out(y.transpose(1, 2).flatten(2))


class ChannelDropout(nn.Module):
    """Drops channels of a whole sequence [N, T, dim]; drawing the mask costs next to nothing."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * dropout(x.new_ones(len(x), 1, x.shape[-1]), self.p) if self.training else x


def each(x: Tensor, owner: Tensor | None, dim: int = 0) -> Tensor:
    """What belongs to the owner of each pair; x itself where row i belongs to pair i."""
    return x if owner is None else x.index_select(dim, owner)


def mean(x: Tensor, mask: Tensor) -> Tensor:
    """[N, L, dim] -> [N, dim], the mean where mask [N, L] is True."""
    weight = mask.unsqueeze(-1).to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1)


def rotate(x: Tensor) -> Tensor:
    """Rotary position embedding (arXiv:2104.09864) of x [..., T, even dim]: attention sees distances only."""
    half = x.shape[-1] // 2
    frequency = 10_000.0 ** (-torch.arange(half, device=x.device) / half)
    angle = torch.arange(x.shape[-2], device=x.device)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def project(inputs: int, dim: int, dropout: float) -> nn.Sequential:
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
