"""The cross-interaction network: early fusion of a video's frames and a query's tokens.

    frames  -> project -> self-attention (rotary) -+-> frames attend to tokens -+
                                                   |            x N             +-> concatenate -> heads
    tokens  -> project -> self-attention (rotary) -+-> tokens attend to frames -+

After the Cross Interaction Network (SIGIR 2021, doi 10.1145/3404835.3463021): self-attention inside
each modality, cross attention both ways, one fused embedding a frame, start/stop and membership
trained together. Positions, loss weights and decoding are this project's choice.

Both towers are free of each other until `fuse`, so a video is encoded once for all its queries.
Nothing depends on an absolute position: the network takes any number of frames.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, normalize, scaled_dot_product_attention

from vmr_ray.config import ModelConfig


class Heads(NamedTuple):
    """Logits of every frame, each [Q, T]."""

    start: Tensor
    stop: Tensor
    membership: Tensor


class CrossInteraction(nn.Module):
    """Scores every frame of a video against a query.

    Shapes: B videos, Q queries, T frames, L tokens. Masks are True where real; every row holds at
    least one real entry.
    """

    def __init__(self, config: ModelConfig, frame_dim: int, token_dim: int) -> None:
        super().__init__()
        dim, width, heads, dropout = config.dim, config.fusion_dim, config.heads, config.dropout
        self.frame_in = project(frame_dim, dim, dropout)
        self.token_in = project(token_dim, dim, dropout)
        self.video_layers = nn.ModuleList(Layer(dim, heads, dropout) for _ in range(config.video_layers))
        self.query_layers = nn.ModuleList(Layer(dim, heads, dropout) for _ in range(config.query_layers))
        self.video_out = nn.Linear(dim, dim)
        # Fusion is narrower: it is computed anew for every pair, the towers once a video or query.
        self.frame_fuse, self.token_fuse = nn.Linear(dim, width), nn.Linear(dim, width)
        self.cross_layers = nn.ModuleList(
            CrossLayer(width, heads, dropout) for _ in range(config.cross_layers)
        )
        self.readout = Attention(width, heads)
        self.fused_in = nn.Sequential(nn.Linear(2 * width + 1, width), nn.GELU(), ChannelDropout(dropout))
        self.fused_layer = Layer(width, heads, dropout)
        self.fused_norm = nn.LayerNorm(width)
        # Kernel 3: a boundary is a difference between neighbours.
        self.boundary = nn.Conv1d(width, 2, kernel_size=3, padding=1)
        self.membership = nn.Linear(width, 1)
        self.query_out = nn.Linear(dim, dim)
        self.log_temperature = nn.Parameter(torch.tensor(0.07).log())

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
        weight = mask.unsqueeze(-1).to(query.dtype)
        return normalize(self.query_out((query * weight).sum(1) / weight.sum(1)), dim=-1)

    def fuse(self, video: Tensor, video_mask: Tensor, query: Tensor, query_mask: Tensor) -> Heads:
        """video [Q, T, dim] and query [Q, L, dim], one row a pair -> logits [Q, T]; 0 where masked."""
        sentence = self.project_query(query, query_mask).unsqueeze(-1)
        similarity = self.project_video(video, video_mask) @ sentence / self.log_temperature.exp()
        frames, tokens = self.frame_fuse(video), self.token_fuse(query)
        for layer in self.cross_layers:
            frames, tokens = layer(frames, video_mask, tokens, query_mask)
        conditioned = self.readout(frames, tokens, query_mask)
        fused = self.fused_in(torch.cat([frames, conditioned, similarity], dim=-1))
        fused = self.fused_norm(self.fused_layer(fused, video_mask)) * video_mask.unsqueeze(-1)
        start, stop = (self.boundary(fused.transpose(1, 2)) * video_mask.unsqueeze(1)).unbind(1)
        return Heads(start, stop, self.membership(fused).squeeze(-1) * video_mask)


class CrossLayer(nn.Module):
    """Frames attend to tokens and tokens to frames, at once, then each through its feed-forward."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.frame_norm, self.token_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_frames = Attention(dim, heads)
        self.to_tokens = Attention(dim, heads)
        self.frame_ff, self.token_ff = feed_forward(dim, dropout), feed_forward(dim, dropout)

    def forward(
        self, frames: Tensor, frame_mask: Tensor, tokens: Tensor, token_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        f, t = self.frame_norm(frames), self.token_norm(tokens)
        frames = frames + self.to_frames(f, t, token_mask)
        tokens = tokens + self.to_tokens(t, f, frame_mask)
        return frames + self.frame_ff(frames), tokens + self.token_ff(tokens)


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


class Attention(nn.Module):
    """Multi-head attention of x [N, T, dim] over memory [N, M, dim] where mask [N, M] is True."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor, rotary: bool = False) -> Tensor:
        split = (-1, self.heads, x.shape[-1] // self.heads)
        q = self.q(x).unflatten(-1, split[1:]).transpose(1, 2)
        k, v = self.kv(memory).unflatten(-1, (2, *split[1:])).permute(2, 0, 3, 1, 4)
        if rotary:
            q, k = rotate(q), rotate(k)
        y = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        return self.out(y.transpose(1, 2).flatten(2))


class ChannelDropout(nn.Module):
    """Drops channels of a whole sequence [N, T, dim]; drawing the mask costs next to nothing."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * dropout(x.new_ones(len(x), 1, x.shape[-1]), self.p) if self.training else x


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
