"""Adding videos, in front of a backend that accepts or refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.builders import local_client
from vmr_ray.errors import VmrError
from vmr_ray.serve.api import make_api
from vmr_ray.serve.errors import UnavailableError, storage_error
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
    return local_client(make_api(settings, backend))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (VmrError("a.mp4 is being added already"), 409),
        (UnavailableError(), 503),
        (storage_error(OSError(28, "No space left on device", "/secret")), 507),
    ],
    ids=["taken", "busy", "full"],
)
def test_an_upload_that_is_not_queued_may_be_sent_again(
    http: TestClient, backend: Backend, error: Exception, status: int
):
    backend.error = error
    refused = http.post("/v1/videos?name=a.mp4", content=b"old", headers=VIDEO)
    assert refused.status_code == status and "secret" not in refused.text
    assert status != 507 or "No space left on device" in refused.json()["error"]
    backend.error = None
    sent = http.post("/v1/videos?name=a.mp4", content=b"data", headers=VIDEO)
    assert sent.status_code == 202
    assert sent.json() == {"job_id": "1f", "video_id": "a.mp4", "status": "queued", "error": None}
    ((video_id, uri, metadata),) = backend.added
    assert (video_id, metadata) == ("a.mp4", {})
    # Every upload has a file of its own, which the queue deletes if it refuses the job.
    assert Path(uri).read_bytes() == b"data" and Path(uri).suffix == ".mp4" and Path(uri).stem != "a"


def test_refused_uploads(http: TestClient, tmp_path: Path):
    def status(query: str, **more: Any) -> int:
        return http.post(f"/v1/videos{query}", content=b"data", headers=VIDEO | more).status_code

    assert status("") == 422
    assert status("?name=a.txt") == 400
    assert status("?name=b.mp4") == 409  # indexed
    assert status("?name=a.mp4", **{"content-length": str((1 << 20) + 1)}) == 413
    closed = make_api(ServeArgs(index=str(tmp_path), auth="none", max_upload_mb=0), Backend())
    response = local_client(closed).post("/v1/videos", content=b"x", headers=VIDEO)
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


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("video/x-matroska", 202),
        ("application/octet-stream", 202),
        ("text/plain", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/x-www-form-urlencoded", 415),
    ],
)
def test_an_upload_says_that_it_is_a_video(
    http: TestClient, backend: Backend, content_type: str, status: int
):
    """Pages of other sites can send the refused types without asking."""
    headers = {"content-type": content_type}
    response = http.post("/v1/videos?name=a.mp4", content=b"data", headers=headers)
    assert response.status_code == status
    assert len(backend.added) == (status == 202)
    assert status == 202 or "curl --data-binary" in response.json()["error"]


def test_an_id_that_no_address_can_name_is_refused(http: TestClient, backend: Backend, tmp_path: Path):
    file = tmp_path / "roots" / "two\nlines.mp4"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"data")
    for body in ({"uri": str(file)}, {"uri": str(file), "video_id": "a\nb"}):
        response = http.post("/v1/videos", json=body)
        assert response.status_code in (400, 422)
    assert not backend.added
