"""Clips and thumbnails, and ranges of files in object storage."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from fastapi import Request
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from tests.videos import write_video
from vmr_ray.errors import VmrError
from vmr_ray.serve.media import MediaWorkers, parse_range, stream_remote


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
        # The whole file is the answer to these.
        ("bytes=100-", None),
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


def test_a_remote_file_is_streamed_whole_or_in_part(tmp_path: Path):
    data = bytes(range(256)) * 8192  # two blocks
    (tmp_path / "a.mp4").write_bytes(data)

    def answer(request: Request) -> Response:
        return stream_remote(f"file://{tmp_path}/a.mp4", "video/mp4", request.headers.get("range"))

    client = TestClient(Starlette(routes=[Route("/", answer)]))
    whole = client.get("/")
    assert whole.status_code == 200 and whole.content == data
    assert whole.headers["accept-ranges"] == "bytes" and whole.headers["content-type"] == "video/mp4"
    part = client.get("/", headers={"range": "bytes=1000000-1999999"})
    assert part.status_code == 206 and part.content == data[1_000_000:2_000_000]
    assert part.headers["content-range"] == f"bytes 1000000-1999999/{len(data)}"
    assert part.headers["content-length"] == "1000000"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_clip_is_left_to_the_caller_and_a_failed_one_deleted(tmp_path: Path, temporary: Path):
    video = write_video(tmp_path / "a.mp4", seconds=2)

    async def cut() -> None:
        workers = MediaWorkers()
        clip = await workers.clip(video, 0.5, 1.5)
        assert list(temporary.iterdir()) == [clip] and clip.stat().st_size > 0
        clip.unlink()
        with pytest.raises(VmrError, match="end must come after"):
            await workers.clip(video, 1.5, 0.5)

    asyncio.run(cut())
    assert list(temporary.iterdir()) == []


def test_a_client_that_disconnects_leaves_no_clip_and_frees_its_slot(tmp_path: Path, temporary: Path):
    video = write_video(tmp_path / "a.mp4", seconds=2)

    async def cut() -> None:
        workers = MediaWorkers(slots=1)
        first = asyncio.create_task(workers.clip(video, 0.5, 1.5))
        while not list(temporary.iterdir()):  # the decoder has started
            await asyncio.sleep(0.001)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        # The only slot is free when the first clip is cut and deleted.
        second = await workers.clip(video, 0.0, 0.5)
        assert list(temporary.iterdir()) == [second]

    asyncio.run(cut())


def test_a_thumbnail_changes_with_its_file(tmp_path: Path):
    async def thumbnails() -> tuple[bytes, bytes, bytes]:
        workers = MediaWorkers()
        video = write_video(tmp_path / "a.mp4", seconds=2)
        first = await workers.thumbnail(video, 1.0, 64)
        same = await workers.thumbnail(video, 1.01, 64)
        write_video(video, seconds=2, size=(80, 60))
        return first, same, await workers.thumbnail(video, 1.0, 64)

    first, same, changed = asyncio.run(thumbnails())
    assert first == same != changed and first.startswith(b"\xff\xd8")
