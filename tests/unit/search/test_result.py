from __future__ import annotations

import re

import pytest

from vmr_ray.config import SearchConfig
from vmr_ray.errors import VmrError
from vmr_ray.search.result import SearchRequest

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
    ],
)
def test_an_invalid_request_is_refused(request_: SearchRequest, message: str):
    with pytest.raises(VmrError, match=re.escape(message)):
        request_.check(CONFIG)


def test_a_valid_request_passes():
    SearchRequest("abcde", 3, ["a"], offset=7).check(CONFIG)
