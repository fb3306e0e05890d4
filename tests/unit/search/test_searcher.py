"""The searcher on a small index: what a calibrated checkpoint adds to its answers. No Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.builders import checkpoint_info, index_rows
from vmr_ray.encoders.imported import write_states
from vmr_ray.errors import VmrError
from vmr_ray.model.checkpoint import save_checkpoint
from vmr_ray.model.presence import Presence
from vmr_ray.search.result import SearchRequest, SearchResult
from vmr_ray.search.searcher import Searcher
from vmr_ray.search.tables import IndexTables

TOKENS = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float16)


def searcher(folder: Path, presence: Presence | None) -> Searcher:
    """Over three videos of two windows each; two were filmed in the north."""
    write_states(f"{folder}/states", 6, iter([("?", TOKENS)]))
    update = {"text_encoder": f"imported:{folder}/states", "presence": presence}
    info = checkpoint_info().model_copy(update=update)
    torch.manual_seed(0)
    save_checkpoint(folder / "index" / "checkpoint", info.network().state_dict(), info)
    tables = IndexTables.create(str(folder / "index"), info.dim)
    for i, camera in enumerate(("north", "north", "south")):
        tables.add(*index_rows(f"v{i}", "1", 100.0 * i, camera))
    return Searcher(folder / "index")


def ask(searcher: Searcher, **more) -> SearchResult:
    (answer,) = searcher.search_many([SearchRequest("?", **{"top_k": 50, **more})], [TOKENS])
    assert isinstance(answer, SearchResult), answer
    return answer


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    return searcher(tmp_path_factory.mktemp("plain"), None)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory, plain: Searcher) -> Searcher:
    """Of the moments that `plain` finds, the better half is probable enough."""
    scores = sorted(moment.score for moment in ask(plain).moments)
    middle = scores[len(scores) // 2]
    presence = Presence(slope=2.0, intercept=-2.0 * middle, min_probability=0.5)
    return searcher(tmp_path_factory.mktemp("calibrated"), presence)


def test_without_a_calibration_all_is_found_and_nothing_is_said(plain: Searcher):
    answer = ask(plain)
    assert answer.found and not answer.nearest and answer.probability is None
    assert len(answer.moments) > 3 and {m.probability for m in answer.moments} == {None}
    (refused,) = plain.search_many([SearchRequest("?", min_probability=0.5)], [TOKENS])
    assert isinstance(refused, VmrError) and "leave min_probability out" in str(refused)


def test_improbable_moments_are_left_out(plain: Searcher, calibrated: Searcher):
    everything = ask(calibrated, min_probability=0.0)
    assert [m.score for m in everything.moments] == [m.score for m in ask(plain).moments]
    presence = calibrated.predictor.info.presence
    assert presence is not None
    for moment in everything.moments:
        assert moment.probability == presence.probability(moment.score)
    answer = ask(calibrated)
    assert answer.found and not answer.nearest
    assert answer.moments == [m for m in everything.moments if m.probability >= 0.5]
    assert 0 < len(answer.moments) < len(everything.moments)
    assert ask(calibrated, min_probability=0.6).moments == [
        m for m in everything.moments if m.probability >= 0.6
    ]


def test_nothing_found_comes_with_what_is_nearest(calibrated: Searcher):
    everything = ask(calibrated, min_probability=0.0)
    answer = ask(calibrated, min_probability=1.0, top_k=2, saliency=True)
    assert not answer.found and answer.moments == [] and not answer.more
    assert answer.nearest == everything.moments[:2]
    assert answer.saliency.keys() == answer.durations.keys() == {m.video_id for m in answer.nearest}


def test_pages_end_with_the_probable_moments(calibrated: Searcher):
    probable = ask(calibrated).moments
    first = ask(calibrated, top_k=len(probable) - 1)
    last = ask(calibrated, top_k=len(probable) - 1, offset=len(probable) - 1)
    assert first.more and not last.more and first.moments + last.moments == probable
    behind = ask(calibrated, offset=len(probable))
    assert behind.found and behind.moments == behind.nearest == []


@pytest.mark.parametrize(
    ("scope", "videos"),
    (
        ({}, {"v0", "v1", "v2"}),
        ({"video_ids": ["v1"]}, {"v1"}),
        ({"filter": {"camera": "north"}}, {"v0", "v1"}),
    ),
)
def test_the_probability_of_an_answer_counts_the_windows_searched(calibrated: Searcher, scope, videos):
    answer = ask(calibrated, min_probability=0.0, **scope)
    assert {m.video_id for m in answer.moments} == videos
    windows = 2 * len(videos)
    assert calibrated.tables.count_windows(scope.get("video_ids"), scope.get("filter")) == windows
    # Every window was looked into, so the best moment of each is among the answer's.
    presence = calibrated.predictor.info.presence
    assert presence is not None and answer.probability is not None
    best = max(m.score for m in answer.moments)
    assert (
        presence.of_any([best], windows) <= answer.probability <= presence.of_any([best] * windows, windows)
    )
