"""Adding videos, in front of a backend that accepts or refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from vmr_ray.errors import VmrError
from vmr_ray.serve.api import make_api
from vmr_ray.serve.errors import UnavailableError
from vmr_ray.serve.ingest import IngestJob
from vmr_ray.serve.models import ServeArgs

VIDEO = {"content-type": "video/mp4"}


class Backend:
    """Queues what it is given, or raises `error`."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.added: list[tuple[str, str, dict[str, Any]]] = []

    async def add(self, video_id: str, uri: str, metadata: dict[str, Any]) -> IngestJob:
        if self.error:
            raise self.error
        self.added.append((video_id, uri, metadata))
        return IngestJob("1f", video_id, uri, metadata)

    async def job(self, job_id: str) -> IngestJob | None:
        return (
            IngestJob("1f", "a.mp4", "/secret/a.mp4", status="failed", error="no video")
            if job_id == "1f"
            else None
        )

    async def videos(self, video_ids: Any = None, offset: int = 0, limit: int | None = None) -> list[dict]:
        names = sorted(video_ids or "abcde") if video_ids != ["a.mp4"] else []
        rows = [
            {"video_id": name, "uri": f"/secret/{name}", "duration": 2.0, "frames": 2, "partial": False}
            for name in names
        ]
        return rows[offset:][:limit]


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def http(backend: Backend, tmp_path: Path) -> TestClient:
    settings = ServeArgs(index=str(tmp_path), auth="none", roots=(str(tmp_path),), max_upload_mb=1)
    return TestClient(make_api(settings, backend), client=("127.0.0.1", 5000))


@pytest.mark.parametrize(
    ("error", "status"), [(VmrError("already there"), 400), (UnavailableError(), 503)], ids=["user", "busy"]
)
def test_an_upload_that_is_not_queued_may_be_sent_again(
    http: TestClient, backend: Backend, tmp_path: Path, error: Exception, status: int
):
    backend.error = error
    refused = http.post("/v1/videos?name=a.mp4", content=b"data", headers=VIDEO)
    assert refused.status_code == status
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    backend.error = None
    sent = http.post("/v1/videos?name=a.mp4", content=b"data", headers=VIDEO)
    assert sent.status_code == 202
    assert sent.json() == {"job_id": "1f", "video_id": "a.mp4", "status": "queued", "error": None}
    path = str(tmp_path / "ingest" / "uploads" / "a.mp4")
    assert backend.added == [("a.mp4", path, {})] and Path(path).read_bytes() == b"data"
    twice = http.post("/v1/videos?name=a.mp4", content=b"data", headers=VIDEO)
    assert twice.status_code == 409 and "ask for its job" in twice.json()["error"]


def test_refused_uploads(http: TestClient, tmp_path: Path):
    def status(query: str, **more: Any) -> int:
        return http.post(f"/v1/videos{query}", content=b"data", headers=VIDEO | more).status_code

    assert status("") == 422
    assert status("?name=a.txt") == 400
    assert status("?name=b.mp4") == 409  # indexed
    assert status("?name=a.mp4", **{"content-length": str((1 << 20) + 1)}) == 413
    closed = make_api(ServeArgs(index=str(tmp_path), auth="none", max_upload_mb=0), Backend())
    response = TestClient(closed, client=("127.0.0.1", 5000)).post("/v1/videos", content=b"x", headers=VIDEO)
    assert response.status_code == 403 and "no uploads" in response.json()["error"]


def test_a_video_is_added_by_its_path(http: TestClient, backend: Backend, tmp_path: Path):
    file = tmp_path / "b.mp4"
    file.write_bytes(b"data")
    assert http.post("/v1/videos", json={"uri": str(file)}).status_code == 202
    named = {"uri": str(file), "video_id": "cam/1", "metadata": {"year": 2024}}
    assert http.post("/v1/videos", json=named).status_code == 202
    assert backend.added == [("b.mp4", str(file), {}), ("cam/1", str(file), {"year": 2024})]
    for wrong in ({}, {"uri": str(file), "url": "x"}, {"uri": ""}):
        response = http.post("/v1/videos", json=wrong)
        assert response.status_code == 422 and "ur" in response.json()["error"]
    assert (
        http.post("/v1/videos", content=b"{", headers={"content-type": "application/json"}).status_code == 422
    )


def test_a_job_is_found_by_its_id_and_shows_no_path(http: TestClient):
    assert http.get("/v1/jobs/1f").json() == {
        "job_id": "1f",
        "video_id": "a.mp4",
        "status": "failed",
        "error": "no video",
    }
    assert http.get("/v1/jobs/2e").status_code == 404


def test_pages_of_videos(http: TestClient):
    names, token = [], None
    for size in (2, 2, 1):
        page = http.get("/v1/videos", params={"limit": 2} | ({"page_token": token} if token else {})).json()
        assert len(page["videos"]) == size
        names += [video["video_id"] for video in page["videos"]]
        token = page["next_page_token"]
    assert names == list("abcde") and token is None


def test_a_form_is_answered_with_the_right_command(http: TestClient):
    response = http.post("/v1/videos", files={"file": ("a.mp4", b"data", "video/mp4")})
    assert response.status_code == 415 and "curl --data-binary @FILE.mp4" in response.json()["error"]


def test_an_id_that_no_address_can_name_is_refused(http: TestClient, backend: Backend, tmp_path: Path):
    file = tmp_path / "roots" / "two\nlines.mp4"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"data")
    for body in ({"uri": str(file)}, {"uri": str(file), "video_id": "a\nb"}):
        response = http.post("/v1/videos", json=body)
        assert response.status_code in (400, 422)
    assert not backend.added
