"""Search without training: a dual encoder's logit of a frame and the sentence is the frame's membership.

Of the trained network only the towers are missing; windows, span decoding and suppression are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from vmr_ray.config import ModelConfig
from vmr_ray.encoders import HF, SENTENCE, dual_encoder
from vmr_ray.errors import VmrError
from vmr_ray.model.checkpoint import CheckpointInfo, Similarity
from vmr_ray.model.cross_interaction import Heads
from vmr_ray.model.inputs import pad
from vmr_ray.model.predictor import Predictor, Queries, Window
from vmr_ray.model.spans import PEAK, ScoredSpan, decode_spans, peak
from vmr_ray.schema import StoreSpec


def similarity_checkpoint(spec: StoreSpec, root: str) -> CheckpointInfo:
    """A checkpoint without weights for the features of a dual encoder.

    Raises:
        VmrError: the features at `root` are of another kind, or their encoder cannot be loaded.
    """
    if not spec.encoder.startswith(HF):
        raise VmrError(
            f"{root} holds features of {spec.encoder}, which knows no sentences: give a --checkpoint, "
            "or embed with --encoder hf:<name> of a CLIP- or SigLIP-style model"
        )
    encoder = dual_encoder(spec.encoder)
    info = CheckpointInfo(
        model=ModelConfig(),
        similarity=Similarity(scale=encoder.scale, bias=encoder.bias),
        frame_encoder=spec.encoder,
        frame_dim=spec.dim,
        sampling=spec.sampling,
        text_encoder=SENTENCE + spec.encoder,
        token_dim=spec.dim,
    )
    return info.model_copy(update={"version": hashlib.sha256(info.model_dump_json().encode()).hexdigest()})


class SimilarityPredictor(Predictor):
    """A dual encoder in the place of the network; its token states are one sentence vector a query."""

    def __init__(self, info: CheckpointInfo, device: str = "cpu"):
        assert info.similarity is not None
        self.info, self.device, self.similarity = info, device, info.similarity

    tells_membership = True

    def _see(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        vectors = normalize(features.float(), dim=-1)
        return vectors, vectors

    def encode_tokens(self, tokens: Sequence[np.ndarray]) -> Queries:
        """The vector of every query, each [1, frame_dim]."""
        states, mask = (x.to(self.device) for x in pad(tokens))
        return Queries(states, mask, normalize(states[:, 0].float(), dim=-1))

    @torch.inference_mode()
    def rank(
        self,
        seen: Sequence[Window],
        queries: Queries,
        pairs: Sequence[tuple[int, int]],
        top_k: int,
        nms: float,
        batch: int | None = None,
    ) -> list[list[ScoredSpan]]:
        """As the network's; a span's score is the logit that the encoder gives its best frame."""
        found: list[list[ScoredSpan]] = []
        size = batch or 64
        for at in range(0, len(pairs), size):
            part = pairs[at : at + size]
            windows = [seen[w] for w, _ in part]
            logits, mask = self._logits(windows, queries.vectors[[q for _, q in part]])
            heads = Heads(None, None, _contrasted(logits, mask))
            edges, cores = [w.edges for w in windows], [w.core for w in windows]
            spans = decode_spans(heads, mask, edges, top_k, nms, cores=cores)
            # Where the best frame lies is told within the window; how good it is, between windows.
            best = (peak(logits, mask) - 2 * PEAK).tolist()
            found += [[(s, e, v + up) for s, e, v in row] for row, up in zip(spans, best, strict=True)]
        return found

    @torch.inference_mode()
    def membership_of(self, seen: Sequence[Window], queries: Queries, query: int) -> list[np.ndarray]:
        """How near to the best frame of all windows each frame of their cores is, in [0, 1]."""
        if not seen:
            return []
        logits, mask = self._logits(seen, queries.vectors[query].expand(len(seen), -1))
        sure = _contrasted(logits.view(1, -1), mask.view(1, -1)).view_as(logits) - PEAK
        rows = sure.sigmoid().cpu().numpy()
        return [row[slice(*window.core)] for row, window in zip(rows, seen, strict=True)]

    def _logits(self, seen: Sequence[Window], vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and mask [n, T] of every window's frames for its own query [n, dim]."""
        frames, mask = (x.to(self.device) for x in pad([window.states for window in seen]))
        cosine = (frames.float() @ vectors.unsqueeze(2)).squeeze(2)
        # A single frame is noisy: each is told with its neighbours.
        before = torch.cat([cosine[:, :1], cosine[:, :-1]], 1)
        after = torch.cat([cosine[:, 1:], cosine[:, -1:]], 1)
        last = mask.sum(1, keepdim=True) - 1
        after = torch.where(torch.arange(cosine.shape[1], device=self.device) == last, cosine, after)
        smooth = (before + 2 * cosine + after) / 4
        return self.similarity.scale * smooth + self.similarity.bias, mask


def _contrasted(logits: Tensor, mask: Tensor) -> Tensor:
    """[n, T] with 0 at a row's lower quartile and twice PEAK at its best frame.

    What is above the middle between the two is a moment's: encoders tell a fitting frame from another by
    little, and by how much differs from sentence to sentence.
    """
    best = peak(logits, mask).unsqueeze(1)
    low = logits.masked_fill(~mask, float("nan")).nanquantile(0.25, dim=1, keepdim=True)
    return (logits - low) / (best - low).clamp_min(1e-6) * 2 * PEAK
