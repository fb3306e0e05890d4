"""Validation: whose queries are asked of which video, and the calibration."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from vmr_ray.model.inputs import Example
from vmr_ray.model.presence import Presence
from vmr_ray.training import validation
from vmr_ray.training.validation import in_other_videos, validate


def example(name: str, queries: list[str]) -> Example:
    tokens = [np.full((2, 4), float(len(query)), np.float16) for query in queries]
    features = np.zeros((3, 8), np.float16)
    return Example(name, 3.0, features, np.arange(4.0), queries, tokens, [[(0.0, 1.0)]] * len(queries))


def test_a_query_is_asked_of_the_next_video_unless_it_is_its_own_too():
    videos = [example("a", ["dog", "cat", "owl"]), example("b", ["cat", "bee"]), example("c", ["bee"])]
    asked = [(e.video_id, e.queries) for e in in_other_videos(videos, limit=2)]
    assert asked == [("b", ["dog", "owl"]), ("c", ["cat"]), ("a", ["bee"])]
    assert [t[0, 0] for t in in_other_videos(videos)[0].tokens] == [3, 3]


def test_one_video_has_no_other():
    assert in_other_videos([example("a", ["dog"])]) == in_other_videos([]) == []


@pytest.fixture
def predictor(monkeypatch):
    """Gives a query the score of its length in its own video, and less by 4 in another one."""
    own = {f"v{i}": {"x" * (5 + i % 3), f"{'y' * (4 + i % 2)}{i:02}"} for i in range(24)}

    def retrieve(_, examples, top_k, nms):
        return [
            [(0.0, 1.0, len(query) - (0.0 if query in own[e.video_id] else 4.0))]
            for e in examples
            for query in e.queries
        ]

    monkeypatch.setattr(validation, "retrieve", retrieve)
    videos = [example(name, sorted(queries)) for name, queries in own.items()]
    return SimpleNamespace(info=SimpleNamespace(similarity=None, presence=None)), videos


def test_the_calibration_tells_own_videos_from_others(predictor):
    model, videos = predictor
    metrics, presence = validate(model, iter([videos[:12], videos[12:]]), 0, 1, 0.5)
    assert metrics["miou"] == 100 and presence is not None
    assert presence.probability(2.0) < 0.1 < 0.9 < presence.probability(6.0)
    assert presence.min_probability == presence.probability(5.0)  # of the lowest own score


def test_made_up_queries_leave_the_calibration_as_it_is(predictor):
    model, videos = predictor
    known = Presence(slope=1.0, intercept=0.0, min_probability=0.2)
    model.info = replace_info(model.info, similarity=object(), presence=known)
    assert validate(model, iter([videos]), 0, 1, 0.5)[1] == known


def replace_info(info, **values):
    return SimpleNamespace(**{**vars(info), **values})
