"""Training without annotations: stretches that hold together become moments, their own vectors the queries.

Stretches of many videos are put together in a new order, with cuts, dissolves, or cuts inside of them; the
query for one of them is its mean vector with noise, so that other stretches resemble it as well, as they do
with real sentences. Pure numpy: no Ray, no network. Vectors are those of a dual encoder, of length 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from vmr_ray.encoders.everyday import unit
from vmr_ray.model.inputs import Example
from vmr_ray.schema import Span

MIN_FRAMES = 2  # of a stretch
_MAX_FRAMES = 12
_STRETCHES = (3, 10)  # in a composed video
# How stretches are joined, and how often: cuts, short dissolves, long dissolves (one is nearly always
# going on), and cuts inside the stretches with short dissolves between them.
_JOINS = {"cut": 0.3, "dissolve": 0.15, "glide": 0.35, "recut": 0.2}
_NOISE = (1.5, 5.0)  # length of a query's noise; the vector itself has the length 1
_NOISE_SOURCES = 6  # stretches that the noise is mixed of


def stretches_of(vectors: np.ndarray, edges: np.ndarray, shots: tuple[int, float] | None) -> list[Span]:
    """The stretches [start, end) of a video in seconds: between cuts, and no longer than 12 frames.

    Args:
        vectors: [T, dim] of the frames; `edges` [T + 1] their seconds.
        shots: of the dual encoder, see `DualEncoder`; without it a cut is where neighbours differ by far
            more than is usual in this video.
    """
    looks = vectors if shots is None else unit(vectors[:, shots[0] :])
    change = 1 - (looks[1:] * looks[:-1]).sum(1)  # [T - 1]
    if shots is not None:
        limit = shots[1]
    else:
        limit = np.median(change) + 4 * np.median(np.abs(change - np.median(change))) if len(change) else 0.0
    cuts = [0, *(1 + np.flatnonzero(change > limit)), len(vectors)]
    spans = []
    for first, last in pairwise(cuts):
        bounds = np.linspace(first, last, 1 + -(-(last - first) // _MAX_FRAMES)).round().astype(int)
        spans += [(float(edges[a]), float(edges[b])) for a, b in pairwise(bounds) if b - a >= MIN_FRAMES]
    return spans


def stretches_in(example: Example) -> list[np.ndarray]:
    """The frames [n, dim] of every span of a training row's example."""
    middles = (example.edges[:-1] + example.edges[1:]) / 2
    inside = [(middles >= start) & (middles < end) for spans in example.spans for start, end in spans]
    return [example.features[frames].astype(np.float32) for frames in inside if frames.any()]


def compose_stretches(stretches: Sequence[np.ndarray], count: int, rng: np.random.Generator) -> list[Example]:
    """`count` new videos at one frame a second out of stretches [n, dim], each with one query."""
    means = np.stack([stretch.mean(0) for stretch in stretches])  # [S, dim]
    return [_composed(stretches, means, rng) for _ in range(count)]


def pseudo_query(moment: np.ndarray, means: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The query [1, dim] for the frames [n, dim] of a moment; the noise is mixed of `means` [S, dim]."""
    centre = means.mean(0)
    vector = unit(moment.mean(0) - centre)
    sources = means[rng.integers(len(means), size=_NOISE_SOURCES)] - centre  # [6, dim]
    noise = unit(rng.standard_normal(_NOISE_SOURCES) @ sources)
    return unit(vector + rng.uniform(*_NOISE) * noise)[None].astype(np.float32)


def _composed(stretches: Sequence[np.ndarray], means: np.ndarray, rng: np.random.Generator) -> Example:
    join = str(rng.choice(list(_JOINS), p=list(_JOINS.values())))
    chosen = rng.integers(len(stretches), size=int(rng.integers(*_STRETCHES)))
    parts = [_played(stretches[i], rng) for i in chosen]
    if join == "recut":
        parts = [_recut(part, stretches, rng) for part in parts]
    bounds = np.cumsum([0, *map(len, parts)])
    vectors = unit(_dissolved(np.concatenate(parts), bounds, join, rng)).astype(np.float32)
    asked = int(rng.integers(len(parts)))
    moment = vectors[bounds[asked] : bounds[asked + 1]]
    spans = [
        (float(first), float(last))
        for (first, last), i in zip(pairwise(bounds), chosen, strict=True)
        if i == chosen[asked]
    ]
    edges = np.arange(len(vectors) + 1, dtype=np.float64)
    query = pseudo_query(moment, means, rng)
    return Example("composed", float(edges[-1]), vectors, edges, ["stretch"], [query], [spans])


def _played(stretch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A stretch [n, dim] at another speed, forwards or backwards, not always at whole frames."""
    length = int(rng.integers(MIN_FRAMES, _MAX_FRAMES + 1))
    at = np.linspace(0, len(stretch) - 1, length).round().astype(int)
    if rng.random() < 0.5:
        at = at[::-1]
    near = np.clip(at + rng.integers(-1, 2, length), 0, len(stretch) - 1)
    share = rng.uniform(0, 0.5, (length, 1))
    mixed: np.ndarray = stretch[at] * (1 - share) + stretch[near] * share
    return mixed


def _recut(part: np.ndarray, stretches: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A part [n, dim] in which every one to three frames another frame is mixed in."""
    mixed, at = part.copy(), 0
    while at < len(part):
        end = at + int(rng.integers(1, 4))
        other = stretches[int(rng.integers(len(stretches)))]
        share = rng.uniform(0, 0.45)
        mixed[at:end] = part[at:end] * (1 - share) + other[rng.integers(len(other))] * share
        at = end
    return mixed


def _dissolved(frames: np.ndarray, bounds: np.ndarray, join: str, rng: np.random.Generator) -> np.ndarray:
    """Frames [T, dim] with the neighbours of every inner bound mixed, unless `join` is "cut"."""
    if join == "cut":
        return frames
    mixed = frames.copy()
    for before, bound, after in zip(bounds, bounds[1:], bounds[2:], strict=False):
        shorter = min(bound - before, after - bound)
        half = {"dissolve": 1, "recut": int(rng.integers(1, 3))}.get(join)
        half = half or max(1, round(rng.uniform(0.2, 0.5) * shorter))
        for t in range(max(0, bound - half), min(len(frames), bound + half)):
            share = (t + 0.5 - (bound - half)) / (2 * half)
            old, new = frames[min(t, bound - 1)], frames[max(t, bound)]
            mixed[t] = old * (1 - share) + new * share
    return mixed
