"""The service over real HTTP."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def client(index: Path) -> Iterator[httpx.Client]:
    from ray import serve

    from vmr_ray.serve.local import start

    url = start(index, port=free_port())
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client
    serve.shutdown()


def test_search(client: httpx.Client):
    response = client.post("v1/search", json={"query": "the red ball spins", "top_k": 3})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert [m["rank"] for m in answer["results"]] == [1, 2, 3]
    assert all(0 <= m["start"] < m["end"] for m in answer["results"])
    assert answer["model_version"] == client.get("healthz").json()["model_version"]
    assert set(answer["took_ms"]) == {"encode", "candidates", "rank", "total"}


def test_search_within_a_video(client: httpx.Client):
    video = client.get("v1/videos").json()["videos"][0]["video_id"]
    answer = client.post("v1/search", json={"query": "the red ball spins", "video_ids": [video]}).json()
    assert {m["video_id"] for m in answer["results"]} == {video}


def test_service_answers_as_the_library_does(client: httpx.Client, index: Path):
    from vmr_ray.search import Searcher

    found = Searcher(index).search("the red ball spins", 5).moments
    answer = client.post("v1/search", json={"query": "the red ball spins", "top_k": 5}).json()
    assert [(m["video_id"], m["start"], m["end"]) for m in answer["results"]] == [
        (m.video_id, m.start, m.end) for m in found
    ]


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({}, 422, "query"),
        ({"query": " "}, 422, "query"),
        ({"query": "ok", "top_k": 0}, 422, "top_k"),
        ({"query": "ok", "topk": 5}, 422, "topk"),
        ({"query": "x" * 2000}, 400, "at most 1000"),
        ({"query": "ok", "video_ids": ["none.mp4"]}, 400, "none.mp4"),
        ({"query": "x" * 10_000_000}, 413, "exceeds"),
    ],
)
def test_mistakes_are_named(client: httpx.Client, body: dict, status: int, told: str):
    response = client.post("v1/search", json=body)
    assert response.status_code == status
    assert told in response.json()["error"] and len(response.text) < 500
    assert "Traceback" not in response.text


def test_videos_do_not_show_paths(client: httpx.Client, world):
    response = client.get("v1/videos")
    assert len(response.json()["videos"]) == 9
    assert str(world.root) not in response.text


def test_stream_answers_ranges(client: httpx.Client, world):
    video = client.get("v1/videos").json()["videos"][0]["video_id"]
    data = (world.videos / video).read_bytes()
    whole = client.get(f"v1/videos/{video}/stream")
    assert whole.content == data and whole.headers["content-type"] == "video/mp4"
    part = client.get(f"v1/videos/{video}/stream", headers={"range": "bytes=10-19"})
    assert part.status_code == 206 and part.content == data[10:20]


def test_stream_serves_indexed_videos_only(client: httpx.Client):
    for name in ("none.mp4", "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd"):
        assert client.get(f"v1/videos/{name}/stream").status_code == 404


def test_documentation_and_page(client: httpx.Client):
    paths = client.get("openapi.json").json()["paths"]
    assert {"/v1/search", "/v1/videos", "/healthz"} <= set(paths)
    assert client.get("docs").status_code == 200
    page = client.get("/")
    assert page.status_code == 200 and "Search inside video" in page.text
