"""The service over real HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from benchmarks.common.processes import descendants, free_port
from vmr_ray.features import FeatureStore
from vmr_ray.schema import Moment


@pytest.fixture(scope="module")
def served(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the index, because these tests add and delete videos."""
    own = tmp_path_factory.mktemp("served") / "index"
    shutil.copytree(index, own)
    return own


@pytest.fixture(scope="module")
def client(served: Path, world) -> Iterator[httpx.Client]:
    from ray import serve

    from vmr_ray.serve.local import start

    url = start(served, port=free_port(), roots=[str(world.root)], max_upload_mb=1)
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client
    serve.shutdown()


def test_search(client: httpx.Client):
    response = client.post("v1/search", json={"query": "the red ball spins", "top_k": 3})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert [m["rank"] for m in answer["results"]] == [1, 2, 3]
    assert all(0 <= m["start"] < m["end"] for m in answer["results"])
    assert answer["model_version"] == client.get("readyz").json()["model_version"]
    assert set(answer["took_ms"]) == {"encode", "candidates", "rank", "total"}


def test_search_within_a_video(client: httpx.Client):
    video = client.get("v1/videos").json()["videos"][0]["video_id"]
    answer = client.post("v1/search", json={"query": "the red ball spins", "video_ids": [video]}).json()
    assert {m["video_id"] for m in answer["results"]} == {video}


def test_service_answers_as_the_library_does(client: httpx.Client, index: Path):
    from vmr_ray.search.searcher import Searcher

    moments = Searcher(index).search("the red ball spins", 5).moments
    answer = client.post("v1/search", json={"query": "the red ball spins", "top_k": 5}).json()
    assert [(m["video_id"], m["start"], m["end"]) for m in answer["results"]] == [place(m) for m in moments]


def place(moment: Moment) -> tuple[str, float, float]:
    return moment.video_id, moment.start, moment.end


def test_encoding_elsewhere_changes_no_answer(index: Path, cluster: None):
    """Queries encoded by the Encoder, by the Ranker, and by both in one batch have the same answers."""
    from vmr_ray.errors import VmrError
    from vmr_ray.search.result import SearchRequest, SearchResult
    from vmr_ray.serve.app import Encoder, Ranker
    from vmr_ray.serve.models import ServeArgs

    serve_args = ServeArgs(index=str(index), auth="none")
    encoder, ranker = Encoder.func_or_class(serve_args), Ranker.func_or_class(serve_args)
    queries = ["the red ball spins", " the blue ball spins ", "x" * 1001, ""]
    requests = [SearchRequest(query, 3) for query in queries]

    async def search() -> list[list[SearchResult | VmrError]]:
        name, states = await encoder.encode(queries)
        assert len(states) == len(queries)
        mixed = await asyncio.gather(
            ranker.search(requests[:1], None),
            ranker.search(requests[1:], (name, states[1:])),
        )
        return [
            await ranker.search(requests, (name, states)),
            await ranker.search(requests, None),
            await ranker.search(requests, ("another encoder", states)),
            [answer for answers in mixed for answer in answers],
        ]

    by_encoder, *others = asyncio.run(search())
    for answers in others:
        for request, expected, answer in zip(requests, by_encoder, answers, strict=True):
            if len(request.query.strip()) in range(1, 1001):
                assert [place(m) for m in answer.moments] == [place(m) for m in expected.moments]
                assert len(answer.moments) == 3
            else:
                assert isinstance(answer, VmrError) and str(answer) == str(expected)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 422, "query"),
        ({"query": " "}, 422, "query"),
        ({"query": "ok", "top_k": 0}, 422, "top_k"),
        ({"query": "ok", "topk": 5}, 422, "topk"),
        ({"query": "x" * 2000}, 400, "at most 1000"),
        ({"query": "ok", "video_ids": ["none.mp4"]}, 400, "none.mp4"),
        ({"query": "x" * 10_000_000}, 413, "exceeds"),
        ({"query": "ok", "page_token": "x"}, 400, "page_token"),
        ({"query": "ok", "group_by": "colour"}, 422, "group_by"),
        ({"query": "ok", "filter": {"a": {"b": 1}}}, 422, "filter"),
        ({"query": "ok", "include": ["pixels"]}, 422, "include"),
    ],
)
def test_errors_name_the_field(client: httpx.Client, body: dict, status: int, message: str):
    response = client.post("v1/search", json=body)
    assert response.status_code == status
    assert message in response.json()["error"] and len(response.text) < 500
    assert "Traceback" not in response.text


def test_videos_do_not_show_paths(client: httpx.Client, world):
    response = client.get("v1/videos")
    assert len(response.json()["videos"]) == 9
    assert str(world.root) not in response.text


def test_pages_of_videos_make_the_whole_list(client: httpx.Client):
    whole = client.get("v1/videos").json()
    videos, token = [], {}
    for size in (4, 4, 1):
        page = client.get("v1/videos", params={"limit": 4, **token}).json()
        assert len(page["videos"]) == size
        videos += page["videos"]
        token = {"page_token": page["next_page_token"]}
    assert videos == whole["videos"]
    assert token["page_token"] is None and whole["next_page_token"] is None


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


def test_a_service_on_this_machine_listens_on_loopback_only(client: httpx.Client):
    """None of the processes of Ray and Serve, in a cluster that `connect` started."""
    import ray  # isort: split
    import psutil  # Ray brings it along

    assert ray.util.get_node_ip_address() == "127.0.0.1"
    addresses = set()
    for pid in descendants(os.getpid()):
        with suppress(psutil.Error):  # it has ended
            sockets = psutil.Process(pid).net_connections()
            addresses |= {socket.laddr.ip for socket in sockets if socket.status == "LISTEN"}
    assert addresses and addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_documentation_and_page(client: httpx.Client):
    paths = client.get("openapi.json").json()["paths"]
    assert {"/v1/search", "/v1/videos", "/healthz"} <= set(paths)
    assert client.get("docs").status_code == 200
    page = client.get("/")
    assert page.status_code == 200 and "Search inside video" in page.text


def test_a_page_continues_where_the_previous_one_ends(client: httpx.Client):
    ask = {"query": "the red ball spins"}
    whole = client.post("v1/search", json=ask | {"top_k": 6}).json()["results"]
    first = client.post("v1/search", json=ask | {"top_k": 3}).json()
    token = {"page_token": first["next_page_token"]}
    second = client.post("v1/search", json=ask | {"top_k": 3} | token).json()
    assert first["results"] + second["results"] == whole
    # A token belongs to its request.
    other = client.post("v1/search", json=ask | {"top_k": 2} | token)
    assert other.status_code == 400 and "page_token" in other.json()["error"]


def test_results_are_limited_by_score_and_grouped_by_video(client: httpx.Client):
    ask = {"query": "the red ball spins", "top_k": 20}
    moments = client.post("v1/search", json=ask).json()["results"]
    min_score = moments[2]["score"]
    kept = client.post("v1/search", json=ask | {"min_score": min_score}).json()["results"]
    assert kept == [m for m in moments if m["score"] >= min_score]
    grouped = client.post("v1/search", json=ask | {"group_by": "video"}).json()["results"]
    videos = [m["video_id"] for m in grouped]
    assert len(set(videos)) == len(videos) > 1
    assert grouped[0] == moments[0]


def test_a_batch_answers_each_search_separately(client: httpx.Client):
    good = {"query": "the red ball spins", "top_k": 2}
    response = client.post("v1/search:batch", json={"searches": [good, good | {"video_ids": ["none.mp4"]}]})
    first, second = response.json()["responses"]
    alone = client.post("v1/search", json=good).json()["results"]
    # The last digits of a sum depend on what else is in the batch.
    scores = [[m.pop("score") for m in moments] for moments in (first["results"], alone)]
    assert first["results"] == alone and scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert "none.mp4" in second["error"]


def test_saliency_covers_the_found_videos(client: httpx.Client):
    ask = {"query": "the red ball spins", "top_k": 2, "include": ["saliency", "thumbnail"]}
    answer = client.post("v1/search", json=ask).json()
    assert set(answer["saliency"]) == {m["video_id"] for m in answer["results"]}
    durations = {v["video_id"]: v["duration"] for v in client.get("v1/videos").json()["videos"]}
    for video, curve in answer["saliency"].items():
        assert curve["times"] == sorted(curve["times"]) and curve["times"][-1] < durations[video]
        assert all(0 <= value <= 1 for value in curve["values"])
    picture = client.get(answer["results"][0]["thumbnail"])
    assert picture.headers["content-type"] == "image/jpeg"


def test_pictures_and_clips(client: httpx.Client, world):
    import av
    from PIL import Image

    video = client.get("v1/videos").json()["videos"][0]["video_id"]
    picture = client.get(f"v1/videos/{video}/thumbnail", params={"t": 1.0, "width": 100})
    assert Image.open(io.BytesIO(picture.content)).width == 100
    cut = client.get(f"v1/videos/{video}/clip", params={"start": 1.0, "end": 2.5})
    assert cut.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(cut.content)) as container:
        rate = float(container.streams.video[0].average_rate)
        assert abs(sum(1 for _ in container.decode(video=0)) / rate - 1.5) <= 2 / rate
    for span in ({"start": 2, "end": 1}, {"start": 0, "end": 10_000}):
        refused = client.get(f"v1/videos/{video}/clip", params=span)
        assert refused.status_code == 400 and str(world.root) not in refused.text


def test_videos_come_and_go_without_a_restart(client: httpx.Client, served: Path, world):
    """A video from a root and an uploaded one are found once their jobs are done, until they are deleted."""
    source = next(world.videos.rglob("*.mp4"))
    added = client.post(
        "v1/videos", json={"uri": str(source), "video_id": "added", "metadata": {"camera": "north"}}
    )
    sent = client.post(
        "v1/videos?name=sent.mp4", content=source.read_bytes(), headers={"content-type": "video/mp4"}
    )
    for response in (added, sent):
        assert response.status_code == 202, response.text
        assert finished(client, response.json()["job_id"]) == {"status": "done", "error": None}
    twice = client.post("v1/videos?name=sent.mp4", content=b"x", headers={"content-type": "video/mp4"})
    assert twice.status_code == 409
    ask = {"query": "the red ball spins"}
    north = client.post("v1/search", json=ask | {"filter": {"camera": ["north", "south"]}}).json()["results"]
    assert {m["video_id"] for m in north} == {"added"}
    assert client.post("v1/search", json=ask | {"filter": {"camera": "south"}}).json()["results"] == []
    same = client.post("v1/search", json=ask | {"video_ids": ["sent.mp4"]}).json()["results"]
    assert [(m["start"], m["end"]) for m in same] == [(m["start"], m["end"]) for m in north]
    assert client.get("v1/videos/added").json()["metadata"] == {"camera": "north"}
    again = client.post("v1/videos", json={"uri": str(source), "video_id": "added"})
    assert again.status_code == 400 and "already" in again.json()["error"]
    for video in ("added", "sent.mp4"):
        assert client.delete(f"v1/videos/{video}").status_code == 204
        assert client.get(f"v1/videos/{video}").status_code == 404
        assert client.delete(f"v1/videos/{video}").status_code == 404
    remaining = client.post("v1/search", json=ask | {"top_k": 100}).json()["results"]
    assert not {"added", "sent.mp4"} & {m["video_id"] for m in remaining}
    assert source.exists()
    assert not list((served / "ingest" / "uploads").iterdir())
    assert FeatureStore.open(str(served / "ingest" / "features")).video_ids() == []


def finished(client: httpx.Client, job_id: str) -> dict[str, str | None]:
    """Status and error of a job when it has ended."""
    for _ in range(600):
        job = client.get(f"v1/jobs/{job_id}").json()
        if job["status"] in ("done", "failed"):
            return {name: job[name] for name in ("status", "error")}
        time.sleep(0.2)
    raise AssertionError(job)


def test_a_bad_upload_fails_with_its_reason(client: httpx.Client, world):
    sent = client.post(
        "v1/videos?name=bad.mp4", content=b"no video at all", headers={"content-type": "video/mp4"}
    )
    job = finished(client, sent.json()["job_id"])
    assert job["status"] == "failed" and job["error"]
    assert "bad.mp4" in job["error"] and "/uploads" not in job["error"]
    assert client.get("v1/videos/bad.mp4").status_code == 404


@pytest.mark.parametrize(
    ("name", "size", "status"),
    [("..%2Fa.mp4", 10, 400), ("a.txt", 10, 400), ("a.mp4", 0, 422), ("a.mp4", (1 << 20) + 1, 413)],
)
def test_uploads_are_limited(client: httpx.Client, name: str, size: int, status: int):
    response = client.post(
        f"v1/videos?name={name}", content=bytes(size), headers={"content-type": "video/mp4"}
    )
    assert response.status_code == status, response.text


def test_uris_outside_the_roots_are_refused(client: httpx.Client):
    for uri in ("../../etc/passwd", "file:///etc/passwd", "http://169.254.169.254/a.mp4", "/etc/passwd"):
        response = client.post("v1/videos", json={"uri": uri})
        assert response.status_code == 400 and "roots" in response.json()["error"]


def test_metrics_have_the_stages_of_search(client: httpx.Client):
    client.post("v1/search", json={"query": "the red ball spins"})
    for _ in range(60):
        text = client.get("metrics").text
        if 'stage="rank"' in text:
            break
        time.sleep(1)
    assert "vmr_search_stage_ms_bucket" in text and 'stage="rank"' in text
    assert "ray_serve_" in text


def test_the_dashboard_shows_metrics_that_exist(client: httpx.Client):
    client.post("v1/search", json={"query": "the red ball spins"})
    client.post("v1/search", json={})  # so that errors are counted
    dashboard = json.loads((Path(__file__).parents[2] / "serve_configs" / "grafana.json").read_text())
    shown = {
        name.removesuffix("_bucket")
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_\w+", target["expr"])
    }
    assert len(shown) == len(dashboard["panels"])
    for _ in range(60):  # they are exported every few seconds
        text = client.get("metrics").text
        missing = {name for name in shown if f"# TYPE {name} " not in text}
        if not missing:
            return
        time.sleep(1)
    assert not missing


# Valid requests to each route, and as many invalid ones to each route that can refuse a request.
EXAMPLES = 70


def test_no_request_breaks_it_or_shows_a_path(client: httpx.Client, world, index: Path):
    """A thousand requests drawn from the OpenAPI document."""
    schema = schemathesis.openapi.from_dict(client.get("openapi.json").json())
    operations = [operation.ok() for operation in schema.get_all_operations()]
    videos = [v["video_id"] for v in client.get("v1/videos").json()["videos"]]
    statuses: Counter[int] = Counter()
    secrets = [str(world.root), str(index.parent), "site-packages", "Traceback", "/root", "/home/"]

    def send(case: Any, real: bool) -> None:
        if case.media_type == "video/*":
            case.media_type = "application/json"  # anything else would be an upload, and embedded
        if real and case.method != "DELETE" and "video_id" in case.path_parameters:
            case.path_parameters["video_id"] = videos[statuses.total() % len(videos)]
        request = case.as_transport_kwargs(base_url=str(client.base_url).rstrip("/"))
        request.pop("cookies", None)
        headers = {k: v for k, v in request.pop("headers", {}).items() if _sendable(k, v)}
        response = client.request(**{k: v for k, v in request.items() if v is not None}, headers=headers)
        statuses[response.status_code] += 1
        assert response.status_code < 500, (request, response.status_code, response.text[:500])
        if "video" not in response.headers.get("content-type", ""):
            for secret in secrets:
                assert secret not in response.text, (request, response.text[:500])

    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @settings(
                max_examples=EXAMPLES,
                phases=[Phase.generate],
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def drawn(case: Any) -> None:
                send(case, real=statuses.total() % 3 == 0)

            # Some routes have no parameter that could be invalid.
            with suppress(Unsatisfiable):
                drawn()
    assert statuses.total() >= 1000, statuses
    assert {200, 404, 422} <= set(statuses), statuses


def _sendable(name: str, value: str) -> bool:
    return name.isascii() and value.isascii() and "\n" not in value and "\r" not in value
