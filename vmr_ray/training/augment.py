"""Augmentation of training rows. Pure numpy: no Ray, no network.

`compose` makes new videos out of the moments of others; `draw_queries` and `drop_tokens` vary the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from vmr_ray.model.inputs import Example
from vmr_ray.schema import Span


def draw_queries(example: Example, max_queries: int, rng: np.random.Generator) -> Example:
    """At most `max_queries` queries of a video, drawn so that as many moments as possible have one."""
    times_drawn: dict[tuple[Span, ...], int] = {}
    rounds = []  # (how many queries of the same moment came before, query)
    for i in rng.permutation(len(example.queries)):
        spans = tuple(example.spans[i])
        times_drawn[spans] = times_drawn.get(spans, 0) + 1
        rounds.append((times_drawn[spans], i))
    order = sorted(rounds, key=lambda pair: pair[0])
    return take_queries(example, [i for _, i in order[:max_queries]])


def drop_tokens(tokens: np.ndarray, keep: float, max_tokens: int, rng: np.random.Generator) -> np.ndarray:
    """A share `keep` of a query's token states [L, token_dim], in order, at most `max_tokens`.

    The first one always stays. The states are contextual, so the rest still carries the dropped ones; short
    rows make training cheap.
    """
    count = min(max_tokens, int(np.ceil(keep * len(tokens))))
    rest = 1 + rng.choice(len(tokens) - 1, count - 1, replace=False)
    return tokens[[0, *sorted(rest)]]


def compose(examples: Sequence[Example], rng: np.random.Generator) -> list[Example]:
    """Cut every video between its moments and deal the pieces into new videos.

    The number of videos is drawn too: the same frames become fewer long or more short videos, each of about
    as many pieces, so that there is little padding. Every frame and every query is used once.
    """
    pieces = [piece for example in examples for piece in cut(example, rng)]
    videos = min(len(pieces), max(1, round(len(examples) * rng.uniform(0.6, 1.6))))
    order = rng.permutation(len(pieces))
    dealt = [stitch([pieces[i] for i in order[first::videos]]) for first in range(videos)]
    return [video for video in dealt if video.queries]


def cut(example: Example, rng: np.random.Generator) -> list[Example]:
    """Pieces of a video, in order; a cut falls at random into the time between two moments, never into one.

    A frame belongs to the piece that contains the frame's middle; spans are clipped to the piece.
    """
    cuts = [0]
    middles = (example.edges[:-1] + example.edges[1:]) / 2
    spans = sorted(span for spans in example.spans for span in spans)
    end = spans[0][1] if spans else 0.0
    for start, stop in spans:
        if start >= end:
            cuts.append(int(np.searchsorted(middles, rng.uniform(end, start))))
        end = max(end, stop)
    bounds = sorted({*cuts, len(middles)})
    return [_part(example, first, last) for first, last in pairwise(bounds)]


def stitch(pieces: Sequence[Example]) -> Example:
    """One video that plays the pieces one after the other; its times start at 0."""
    edges, spans = [np.zeros(1)], []
    for piece in pieces:
        shift = edges[-1][-1] - piece.edges[0]
        edges.append(piece.edges[1:] + shift)
        spans += [[(start + shift, end + shift) for start, end in query] for query in piece.spans]
    return Example(
        video_id="+".join(dict.fromkeys(piece.video_id for piece in pieces)),
        duration=float(edges[-1][-1]),
        features=np.concatenate([piece.features for piece in pieces]),
        edges=np.concatenate(edges),
        queries=[query for piece in pieces for query in piece.queries],
        tokens=[tokens for piece in pieces for tokens in piece.tokens],
        spans=spans,
    )


def _part(example: Example, first: int, last: int) -> Example:
    low, high = example.edges[first], example.edges[last]
    spans = [_inside(spans, low, high) for spans in example.spans]
    part = replace(
        example,
        duration=float(high - low),
        features=example.features[first:last],
        edges=example.edges[first : last + 1],
        spans=spans,
    )
    return take_queries(part, [i for i, inside in enumerate(spans) if inside])


def take_queries(example: Example, keep: Sequence[int]) -> Example:
    """The video with these of its queries only."""
    return replace(
        example,
        queries=[example.queries[i] for i in keep],
        tokens=[example.tokens[i] for i in keep],
        spans=[example.spans[i] for i in keep],
    )


def _inside(spans: Sequence[Span], low: float, high: float) -> list[Span]:
    """The spans whose middle lies in `[low, high)`, clipped to it.

    A piece is cut at whole frames, so clipping removes less than a frame at either end.
    """
    return [(max(s, low), min(e, high)) for s, e in spans if low <= (s + e) / 2 < high]
