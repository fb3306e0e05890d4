"""The search routes in front of a backend that answers at will."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from tests.builders import local_client
from vmr_ray.errors import VmrError
from vmr_ray.schema import Moment
from vmr_ray.search.result import SearchRequest, SearchResult
from vmr_ray.serve.admission import SearchPlaces
from vmr_ray.serve.api import make_api
from vmr_ray.serve.errors import UnavailableError
from vmr_ray.serve.models import ServeArgs


class Backend:
    def __init__(self, answer: Callable[[SearchRequest], Any]):
        self.answer = answer
        self.requests: list[SearchRequest] = []
        self.cancelled = 0

    async def search(self, request: SearchRequest) -> Any:
        self.requests.append(request)
        try:
            answer = self.answer(request)
            return await answer if asyncio.iscoroutine(answer) else answer
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def client(backend: Backend) -> TestClient:
    api = make_api(ServeArgs(index="none", auth="none"), backend)  # type: ignore[arg-type]
    return local_client(api)


def endless(request: SearchRequest) -> SearchResult:
    """A page of moments, with more behind it."""
    moments = [Moment("cam 1/a#b.mp4", float(i), i + 1.5, -float(i)) for i in range(request.top_k)]
    return SearchResult(request.query, moments, {"total": 1.0}, more=True, model_version="v1")


def test_pages_follow_each_other_and_end():
    http = client(backend := Backend(endless))
    body = {"query": " a dog ", "top_k": 100, "include": ["thumbnail"]}
    answer = http.post("/v1/search", json=body).json()
    assert backend.requests == [SearchRequest("a dog", 100)]
    assert answer["results"][1] == {
        "rank": 2,
        "video_id": "cam 1/a#b.mp4",
        "start": 1.0,
        "end": 2.5,
        "score": -1.0,
        "probability": None,
        "thumbnail": "v1/videos/cam%201/a%23b.mp4/thumbnail?t=1.8",
    }
    pages = 1
    while token := answer["next_page_token"]:
        # What a page includes may change on the way; what is searched may not.
        answer = http.post("/v1/search", json={"query": "a dog", "top_k": 100, "page_token": token}).json()
        assert answer["results"][0]["rank"] == backend.requests[-1].offset + 1 == 100 * pages + 1
        assert answer["results"][0]["thumbnail"] is None and answer["saliency"] is None
        pages += 1
    assert pages == 11


def test_a_forged_token_reaches_no_searcher():
    http = client(backend := Backend(endless))
    token = http.post("/v1/search", json={"query": "a dog"}).json()["next_page_token"]
    assert len(backend.requests) == 1
    signature = base64.urlsafe_b64decode(token + "==").partition(b".")[2]
    for offset in (b"10", b"11", b"1000000000"):
        forged = base64.urlsafe_b64encode(offset + b"." + signature).decode().rstrip("=")
        if forged == token:
            continue
        response = http.post("/v1/search", json={"query": "a dog", "page_token": forged})
        assert response.status_code == 400 and "page_token" in response.json()["error"]
    assert len(backend.requests) == 1


def test_an_error_of_one_search_is_its_own_answer():
    def answer(request: SearchRequest) -> SearchResult | VmrError:
        return VmrError("the query is too long") if request.query == "long" else endless(request)

    searches = [{"query": "a dog", "top_k": 1}, {"query": "long"}, {"query": "a dog", "page_token": "x"}]
    response = client(Backend(answer)).post("/v1/search:batch", json={"searches": searches})
    assert response.status_code == 200
    good, long, token = response.json()["responses"]
    assert len(good["results"]) == 1
    assert long == {"error": "the query is too long"} and "page_token" in token["error"]


def test_a_busy_service_refuses_the_whole_batch_and_stops_the_rest():
    async def wait() -> None:
        await asyncio.sleep(60)

    def answer(request: SearchRequest) -> Any:
        if request.query == "busy":
            raise UnavailableError
        return wait()

    backend = Backend(answer)
    searches = [{"query": "slow"}, {"query": "slow"}, {"query": "busy"}]
    response = client(backend).post("/v1/search:batch", json={"searches": searches})
    assert response.status_code == 503 and response.headers["retry-after"] == "1"
    assert backend.cancelled == 2


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"query": "x" * 1001}, 400, "at most 1000"),
        ({"filter": {"a": ["x"] * 101}}, 422, "filter"),
        ({"filter": {"a": ["x"] * 60, "b": ["y"] * 41}}, 422, "at most 100 values"),
        ({"filter": {str(i): 1 for i in range(21)}}, 422, "filter"),
        ({"video_ids": ["x"] * 1001}, 422, "video_ids"),
        ({"query": "x" * (1 << 18)}, 413, "exceeds"),
    ],
)
def test_limits_are_checked_before_any_work(change: dict[str, Any], status: int, message: str):
    http = client(backend := Backend(endless))
    body = {"query": "a dog"} | change
    response = http.post("/v1/search", json=body)
    assert response.status_code == status and message in response.json()["error"]
    batch = http.post("/v1/search:batch", json={"searches": [{"query": "a cat", "top_k": 1}, body]})
    assert batch.status_code == (200 if status == 400 else status)
    assert [request.query for request in backend.requests] == ["a cat"] * (status == 400)
    kept = {"filter": {"a": ["x"] * 60, "b": ["y"] * 40}}
    assert http.post("/v1/search", json={"query": "a dog"} | kept).status_code == 200


def test_a_batch_counts_as_its_searches():
    """While one batch is answered, another one does not fit; a single search does."""
    go = asyncio.Event()

    async def answer(request: SearchRequest) -> SearchResult:
        await go.wait()
        return endless(request)

    async def send() -> list[int]:
        api = make_api(ServeArgs(index="none", auth="none"), Backend(answer))  # type: ignore[arg-type]
        api.state.searches = SearchPlaces(1.5, first=33)
        transport = httpx.ASGITransport(api, client=("127.0.0.1", 5000))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:

            async def post(path: str, body: Any) -> int:
                return (await http.post(path, json=body)).status_code

            batch = {"searches": [{"query": "a dog", "top_k": 1}] * 32}
            first = asyncio.create_task(post("/v1/search:batch", batch))
            while api.state.searches.taken < 32:
                await asyncio.sleep(0)
            second = await post("/v1/search:batch", batch)
            third = asyncio.create_task(post("/v1/search", {"query": "a dog", "top_k": 1}))
            await asyncio.sleep(0.01)
            go.set()
            statuses = [await first, second, await third]
            assert api.state.searches.taken == 0
            return statuses

    assert asyncio.run(send()) == [200, 503, 200]


def test_nothing_found_is_an_empty_list_with_what_is_nearest():
    def nothing(request: SearchRequest) -> SearchResult:
        assert request.min_probability == 0.9
        nearest = [Moment("a.mp4", 1.0, 2.0, 0.5, 0.2)]
        return SearchResult(request.query, [], found=False, nearest=nearest, probability=0.1)

    http = client(Backend(nothing))
    answer = http.post("/v1/search", json={"query": "a dog", "min_probability": 0.9}).json()
    assert (answer["results"], answer["found"], answer["probability"]) == ([], False, 0.1)
    assert [(m["rank"], m["video_id"], m["probability"]) for m in answer["nearest"]] == [(1, "a.mp4", 0.2)]
    for wrong in (-0.1, 1.1, "nan"):
        assert http.post("/v1/search", json={"query": "a dog", "min_probability": wrong}).status_code == 422
