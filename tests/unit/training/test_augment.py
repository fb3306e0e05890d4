from __future__ import annotations

import numpy as np

from vmr_ray.model.inputs import Example
from vmr_ray.schema import Span
from vmr_ray.training.augment import compose, cut, draw_queries, drop_tokens, stitch


def _video(name: str, frames: int, spans: list[Span], first: float = 0.0) -> Example:
    """Frame i of the video carries the number i."""
    features = np.arange(frames, dtype=np.float16)[:, None].repeat(2, 1)
    queries = [f"{name} {start:g}" for start, _ in spans]
    tokens = [np.full((2, 3), i, np.float16) for i in range(len(spans))]
    edges = first + np.arange(frames + 1.0)
    return Example(name, float(frames), features, edges, queries, tokens, [[span] for span in spans])


def test_cut_never_splits_a_moment_and_keeps_every_frame() -> None:
    video = _video("a", 20, [(0.0, 4.3), (3.0, 6.0), (9.0, 12.0), (12.0, 20.0)], first=100.0)
    video.spans = [[(s + 100, e + 100) for s, e in spans] for spans in video.spans]
    firsts = set()
    for seed in range(50):
        pieces = cut(video, np.random.default_rng(seed))
        assert np.concatenate([p.features for p in pieces])[:, 0].tolist() == list(range(20))
        assert [p.queries for p in pieces] == [["a 0", "a 3"], ["a 9"], ["a 12"]]
        assert pieces[0].spans == [[(100.0, 104.3)], [(103.0, 106.0)]]
        firsts.add(len(pieces[0].features))
    assert firsts == {6, 7, 8, 9}  # anywhere between the second 6 and the second 9


def test_stitched_pieces_carry_their_times_along() -> None:
    a, b = _video("a", 5, [(1.0, 4.0)], first=0.0), _video("b", 3, [(0.5, 2.0)])
    both = stitch([a, b])
    assert both.edges.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert both.spans == [[(1.0, 4.0)], [(5.5, 7.0)]]
    assert both.queries == ["a 1", "b 0.5"]
    assert both.features[:, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert both.duration == 8


def test_compose_uses_every_query_once_with_its_own_frames() -> None:
    videos = [_video(name, 12, [(0.0, 4.0), (4.0, 8.0), (8.0, 12.0)]) for name in "abcdef"]
    dealt = compose(videos, np.random.default_rng(0))
    assert sorted(q for v in dealt for q in v.queries) == sorted(q for v in videos for q in v.queries)
    assert any(len({q[0] for q in v.queries}) > 1 for v in dealt)
    for video in dealt:
        for query, [(start, end)] in zip(video.queries, video.spans, strict=True):
            frames = video.features[int(start) : int(end), 0].tolist()
            assert frames == list(range(int(query[2:]), int(query[2:]) + 4))


def test_drawn_queries_ask_for_every_moment_before_any_twice() -> None:
    video = _video("a", 12, [(0.0, 4.0), (4.0, 8.0), (8.0, 12.0)] * 5)
    for seed in range(20):
        drawn = draw_queries(video, 6, np.random.default_rng(seed))
        starts = [span[0] for [span] in drawn.spans]
        assert sorted(starts) == [0, 0, 4, 4, 8, 8] and len(set(starts[:3])) == 3
        for query, tokens in zip(drawn.queries, drawn.tokens, strict=True):
            assert video.queries[int(tokens[0, 0])] == query
    assert len(draw_queries(video, 99, np.random.default_rng(0)).queries) == 15


def test_dropped_tokens_keep_the_first_and_the_order() -> None:
    tokens = np.arange(20, dtype=np.float16)[:, None]
    kept = drop_tokens(tokens, 0.9, 16, np.random.default_rng(0))[:, 0]
    assert len(kept) == 16 and kept[0] == 0 and (np.diff(kept) > 0).all()
    assert len(drop_tokens(tokens[:5], 0.5, 16, np.random.default_rng(0))) == 3
    assert drop_tokens(tokens[:1], 0.5, 16, np.random.default_rng(0)).tolist() == [[0]]
