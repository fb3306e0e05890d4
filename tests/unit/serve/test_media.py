"""Clips and thumbnails."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest

from tests.videos import write_video
from vmr_ray.errors import VmrError
from vmr_ray.serve.media import MediaWorkers


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
