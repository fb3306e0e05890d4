from __future__ import annotations

import re

import pytest

from vmr_ray.config import SearchConfig
from vmr_ray.errors import VmrError
from vmr_ray.schema import Moment
from vmr_ray.search.result import SearchRequest, SearchResult

CONFIG = SearchConfig(max_query_chars=5, max_top_k=3)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (SearchRequest(" \n"), "the query is empty"),
        (SearchRequest("abcdef"), "the query has 6 characters, at most 5 are taken"),
        (SearchRequest("a", top_k=0), "top_k is 0: it must be 1 to 3"),
        (SearchRequest("a", top_k=4), "top_k is 4: it must be 1 to 3"),
        (SearchRequest("a", 1, offset=-1), "offset is -1"),
        (SearchRequest("a", 1, video_ids=[]), "video_ids is empty"),
        (SearchRequest("a", 1, min_probability=1.1), "min_probability is 1.1: it must be 0 to 1"),
        (SearchRequest("a", 1, min_probability=float("nan")), "min_probability is nan"),
    ],
)
def test_an_invalid_request_is_refused(request_: SearchRequest, message: str):
    with pytest.raises(VmrError, match=re.escape(message)):
        request_.check(CONFIG)


def test_a_valid_request_passes():
    SearchRequest("abcde", 3, ["a"], offset=7).check(CONFIG)


def test_a_probability_stands_in_the_place_of_the_score_and_claims_no_certainty():
    sure, unsure = Moment("a.mp4", 1, 2, 7.5, 0.999), Moment("a.mp4", 3, 4, 2.5, 0.314)
    assert str(SearchResult("a dog", [sure, unsure])).splitlines() == [
        "'a dog': 2 moments",
        " 1  a.mp4   0:01.0 -  0:02.0     99 %",
        " 2  a.mp4   0:03.0 -  0:04.0     31 %",
    ]
    assert "<th>probable</th>" in SearchResult("a dog", [sure])._repr_html_()
    assert "7.50" in str(SearchResult("a dog", [Moment("a.mp4", 1, 2, 7.5)]))


def test_nothing_found_is_said_and_what_is_nearest_is_pale():
    nearest = [Moment("a.mp4", 1, 2, 0.5, 0.1)]
    result = SearchResult("a dog", [], found=False, nearest=nearest)
    assert str(result).splitlines()[0] == "'a dog': nothing found; nearest anyway:"
    assert "10 %" in str(result)
    assert '<tr style="opacity' in result._repr_html_()
    assert "opacity" not in SearchResult("a dog", nearest)._repr_html_()
    assert str(SearchResult("a dog", [], found=False)) == "'a dog': nothing found"
