"""Only the file that was indexed is answered, whole or in parts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.builders import local_client
from vmr_ray.features.chunks import version_key
from vmr_ray.serve.api import make_api
from vmr_ray.serve.models import ServeArgs
from vmr_ray.serve.streams import PART, parse_range
from vmr_ray.video.sources import find_videos

STREAM = "/v1/videos/a.mp4/stream"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-9", (0, 9)),
        ("bytes=10-", (10, 99)),
        ("bytes=90-200", (90, 99)),
        ("bytes=-5", (95, 99)),
        ("bytes=-500", (0, 99)),
        ("bytes = 3-4, 10-20", (3, 4)),
        ("bytes=99-99", (99, 99)),
        ("bytes=100-", (100, 99)),
        # The whole file is the answer to these.
        ("bytes=9-3", None),
        ("bytes=-0", None),
        ("bytes=-", None),
        ("bytes=²-5", None),
        ("bytes=" + "9" * 5000 + "-", None),
        ("lines=0-9", None),
        ("bytes", None),
        ("", None),
    ],
)
def test_ranges(header: str, expected: tuple[int, int] | None):
    assert parse_range(header, 100) == expected


def test_a_range_without_an_end_is_a_part():
    size = 10 * PART
    assert parse_range("bytes=7-", size) == (7, PART + 6)
    assert parse_range(f"bytes=7-{size}", size) == (7, size - 1)


class Backend:
    """One indexed video."""

    def __init__(self, uri: str, version: str):
        self.row = {"video_id": "a.mp4", "uri": uri, "version": version}

    async def videos(self, video_ids: Any = None) -> list[dict[str, Any]]:
        return [self.row] if "a.mp4" in video_ids else []


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "a.mp4"
    path.write_bytes(bytes(range(256)) * 8192)  # several blocks
    return path


def client(uri: Path | str) -> TestClient:
    (found,) = find_videos([uri])
    backend = Backend(found.uri, version_key(found.fingerprint))
    return local_client(make_api(ServeArgs(index="none", auth="none"), backend))  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_is_answered_whole_or_in_part(video: Path, scheme: str):
    http, data = client(f"{scheme}{video}"), video.read_bytes()
    whole = http.get(STREAM)
    assert whole.status_code == 200 and whole.content == data
    assert whole.headers["accept-ranges"] == "bytes" and whole.headers["content-type"] == "video/mp4"
    assert whole.headers["x-content-type-options"] == "nosniff"
    part = http.get(STREAM, headers={"range": "bytes=1000000-1999999"})
    assert part.status_code == 206 and part.content == data[1_000_000:2_000_000]
    assert part.headers["content-range"] == f"bytes 1000000-1999999/{len(data)}"
    assert part.headers["content-length"] == "1000000"
    behind = http.get(STREAM, headers={"range": "bytes=9000000-"})
    assert behind.status_code == 416 and behind.headers["content-range"] == f"bytes */{len(data)}"
    assert "2097152 bytes" in behind.json()["error"]
    # A client that continues a download names the version that it has the beginning of.
    for etag, status in ((whole.headers["etag"], 206), ('"other"', 200)):
        headers = {"range": "bytes=5-9", "if-range": etag}
        assert http.get(STREAM, headers=headers).status_code == status


def test_head_answers_the_headers_alone(video: Path):
    http = client(video)
    whole = http.head(STREAM)
    assert whole.status_code == 200 and not whole.content
    assert whole.headers["content-length"] == str(video.stat().st_size)
    assert http.head(STREAM, headers={"range": "bytes=0-9"}).headers["content-length"] == "10"
    assert http.head("/v1/videos/a.mp4/thumbnail").headers["content-type"] == "image/jpeg"
    assert http.head("/v1/videos/a.mp4/clip").headers["content-type"] == "video/mp4"
    assert http.head("/v1/videos/b.mp4/stream").status_code == 404


def test_a_link_is_followed_to_the_indexed_file_only(video: Path, tmp_path: Path):
    (tmp_path / "secret").write_bytes(b"secret" * 1000)
    link = tmp_path / "links" / "a.mp4"
    link.parent.mkdir()
    link.symlink_to(video)
    http = client(link)
    assert http.get(STREAM).content == video.read_bytes()
    link.unlink()
    link.symlink_to(tmp_path / "secret")
    for path in (STREAM, "/v1/videos/a.mp4/thumbnail", "/v1/videos/a.mp4/clip?start=0&end=1"):
        refused = http.get(path)
        assert refused.status_code == 409 and "index it again" in refused.json()["error"]
        assert str(tmp_path) not in refused.text
    link.unlink()
    assert http.get(STREAM).status_code == 404
    os.mkfifo(link)  # nothing waits for its writer
    assert http.get(STREAM).status_code == 404


def test_a_file_that_changed_is_not_answered(video: Path):
    http = client(video)
    video.write_bytes(b"other")
    assert http.get(STREAM).status_code == 409
