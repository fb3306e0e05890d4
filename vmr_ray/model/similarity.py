"""Search without annotations: a dual encoder's logit of a frame and the sentence is the frame's membership.

Windows, span decoding and suppression are those of a trained network; `similarity_network.py` is its
substitute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from vmr_ray.config import ModelConfig
from vmr_ray.encoders import (
    EVERYDAY,
    MULTILINGUAL,
    SENTENCE,
    TextEncoder,
    dual_encoder,
    dual_encoder_of,
    frame_projection,
    text_encoder,
)
from vmr_ray.errors import VmrError
from vmr_ray.model.checkpoint import CheckpointInfo, Similarity
from vmr_ray.model.cross_interaction import Heads
from vmr_ray.model.inputs import pad
from vmr_ray.model.predictor import Queries, VideoInput, encode_in_windows
from vmr_ray.model.presence import Presence
from vmr_ray.model.similarity_network import SimilarityNetwork, contrasted
from vmr_ray.model.spans import PEAK, ScoredSpan, decode_spans, peak
from vmr_ray.model.windows import Window
from vmr_ray.schema import StoreSpec

_BATCH = 64  # pairs compared at once
_REFINED_SAMPLING = "fps=1"
# Fitted to slideshows of captioned photos, see `tools/presence.py`.
_PRESENCE = {
    EVERYDAY: Presence(slope=0.77, intercept=-1.54, min_probability=0.26),
    MULTILINGUAL: Presence(slope=0.58, intercept=-1.17, min_probability=0.30),
}


def similarity_checkpoint(spec: StoreSpec, root: str, encoder: str | None = None) -> CheckpointInfo:
    """A checkpoint for the features of a dual encoder, without any training of the caller's.

    With the features of `everyday` at one frame a second it has the weights of `shipped_weights`, which
    were made for that; with others it has none.

    Args:
        encoder: which one, if several read these features; default: the usual one.

    Raises:
        VmrError: the features at `root` are of another kind, or their encoder cannot be loaded.
    """
    name = dual_encoder_of(spec.encoder, encoder)
    if name is None and encoder is not None:
        raise VmrError(
            f"{root} holds features of {spec.encoder}, which the encoder {encoder} does not read: embed with "
            f"--encoder {encoder} and another --out, or leave --encoder out"
        )
    if name is None:
        raise VmrError(
            f"{root} holds features of {spec.encoder}, which knows no sentences: give a --checkpoint, "
            "or embed with --encoder everyday, or hf:<name> of a CLIP- or SigLIP-style model"
        )
    dual = dual_encoder(name)
    info = CheckpointInfo(
        model=ModelConfig(),
        similarity=Similarity(scale=dual.scale, bias=dual.bias, shots=dual.shots),
        frame_encoder=spec.encoder,
        frame_dim=spec.dim,
        sampling=spec.sampling,
        fit=spec.fit,
        text_encoder=SENTENCE + name,
        token_dim=dual.dim,
        presence=_PRESENCE.get(name),
    )
    if name in (EVERYDAY, MULTILINGUAL) and spec.sampling == _REFINED_SAMPLING:
        return info.with_weights(shipped_weights())
    return info.with_digest()


def shipped_weights() -> bytes:
    """The weights of the network around the similarity that come with the package, see `README.md` there."""
    return (Path(__file__).parent / "refined" / "model.safetensors").read_bytes()


class SimilarityPredictor:
    """A dual encoder as a predictor; the token states of a query are its one sentence vector."""

    has_membership = True

    def __init__(self, network: SimilarityNetwork, info: CheckpointInfo, device: str = "cpu"):
        self.network, self.info, self.device = network.to(device).eval(), info, device

    @cached_property
    def text(self) -> TextEncoder:
        return text_encoder(self.info.text_encoder, self.device)

    @cached_property
    def _projection(self) -> Callable[[np.ndarray], np.ndarray] | None:
        return frame_projection(self.info.text_encoder)

    @torch.inference_mode()
    def encode_videos(self, videos: Sequence[VideoInput], batch: int = 32) -> list[Window]:
        return encode_in_windows(videos, self.info.model.window, self._encode_frames, self.device, batch)

    def _encode_frames(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """features [B, T, frame_dim] -> unit vectors [B, T, dim] twice: as states and as vectors.

        Features of training rows have been projected.
        """
        if features.shape[-1] != self.info.token_dim and self._projection is not None:
            features = torch.from_numpy(self._projection(features.cpu().numpy())).to(self.device)
        vectors = normalize(features.float(), dim=-1)
        return vectors, vectors

    def encode_tokens(self, tokens: Sequence[np.ndarray]) -> Queries:
        """tokens: the sentence vector [1, dim] of every query."""
        states, mask = (x.to(self.device) for x in pad(tokens))  # [Q, 1, dim], [Q, 1]
        return Queries(states, mask, normalize(states[:, 0].float(), dim=-1))  # vectors [Q, dim]

    @torch.inference_mode()
    def rank(
        self,
        windows: Sequence[Window],
        queries: Queries,
        pairs: Sequence[tuple[int, int]],
        top_k: int,
        nms: float,
        batch: int | None = None,
    ) -> list[list[ScoredSpan]]:
        """See `Predictor.rank`; a span's score is the logit that the encoder gives its best frame."""
        ranked: list[list[ScoredSpan]] = []
        batch = batch or _BATCH
        for at in range(0, len(pairs), batch):
            part = pairs[at : at + batch]
            part_windows = [windows[w] for w, _ in part]
            query_index = [q for _, q in part]
            heads, logits, mask = self._compare(part_windows, queries.vectors[query_index])
            edges, cores = [w.edges for w in part_windows], [w.core for w in part_windows]
            assert heads.membership is not None
            decoded = decode_spans(heads, mask, edges, top_k, nms, cores=cores)
            # The contrast places the span within its window; the plain logit compares windows.
            raised = (peak(logits, mask) - peak(heads.membership, mask)).tolist()
            ranked += [
                [(s, e, v + up) for s, e, v in spans] for spans, up in zip(decoded, raised, strict=True)
            ]
        return ranked

    @torch.inference_mode()
    def membership_of(self, windows: Sequence[Window], queries: Queries, query: int) -> list[np.ndarray]:
        """For every frame of the windows' cores how near its logit is to the best one of all windows."""
        if not windows:
            return []
        vectors = queries.vectors[query].expand(len(windows), -1)  # [Q, dim]
        _, logits, mask = self._compare(windows, vectors)  # [Q, T] both
        contrast = contrasted(logits.view(1, -1), mask.view(1, -1))  # [1, Q * T]
        probabilities = (contrast.view_as(logits) - PEAK).sigmoid().cpu().numpy()  # [Q, T]
        return [row[slice(*window.core)] for row, window in zip(probabilities, windows, strict=True)]

    def _compare(self, windows: Sequence[Window], vectors: Tensor) -> tuple[Heads, Tensor, Tensor]:
        """Heads, logits and mask [Q, T] of Q windows, each for its own query [Q, dim]."""
        frames, mask = (x.to(self.device) for x in pad([window.states for window in windows]))  # [Q, T, dim]
        heads, logits = self.network(frames, mask, vectors)
        return heads, logits, mask
