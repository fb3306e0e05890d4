"""Clips and thumbnails."""

from __future__ import annotations

import asyncio
import io
import tempfile
from pathlib import Path

import av
import pytest
from PIL import Image

from tests.disks import small_disk
from tests.videos import write_video
from vmr_ray.errors import VmrError
from vmr_ray.serve.errors import StorageError
from vmr_ray.serve.media import MediaWorkers, OpenedVideo


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def opened(path: Path) -> OpenedVideo:
    return OpenedVideo.of(path, path.open("rb"))


def test_a_clip_is_left_to_the_caller_and_a_failed_one_deleted(tmp_path: Path, temporary: Path):
    video = write_video(tmp_path / "a.mp4", seconds=2)

    async def cut() -> None:
        workers = MediaWorkers()
        clip = await workers.clip(opened(video), 0.5, 1.5)
        assert list(temporary.iterdir()) == [clip] and clip.stat().st_size > 0
        clip.unlink()
        with pytest.raises(VmrError, match="end must come after"):
            await workers.clip(opened(video), 1.5, 0.5)

    asyncio.run(cut())
    assert list(temporary.iterdir()) == []


def test_a_client_that_disconnects_leaves_no_clip_and_frees_its_slot(tmp_path: Path, temporary: Path):
    video = write_video(tmp_path / "a.mp4", seconds=2)

    async def cut() -> None:
        workers = MediaWorkers(slots=1)
        first = asyncio.create_task(workers.clip(opened(video), 0.5, 1.5))
        while not list(temporary.iterdir()):  # the decoder has started
            await asyncio.sleep(0.001)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        # The only slot is free when the first clip is cut and deleted.
        second = await workers.clip(opened(video), 0.0, 0.5)
        assert list(temporary.iterdir()) == [second]

    asyncio.run(cut())


def test_a_thumbnail_changes_with_its_file(tmp_path: Path):
    async def thumbnails() -> tuple[bytes, bytes, bytes]:
        workers = MediaWorkers()
        video = write_video(tmp_path / "a.mp4", seconds=2)
        first = await workers.thumbnail(opened(video), 1.0, 64)
        same = await workers.thumbnail(opened(video), 1.01, 64)
        write_video(video, seconds=2, size=(80, 60))
        return first, same, await workers.thumbnail(opened(video), 1.0, 64)

    first, same, changed = asyncio.run(thumbnails())
    assert first == same != changed and first.startswith(b"\xff\xd8")


def test_the_opened_file_is_shown_whatever_takes_its_place(tmp_path: Path, temporary: Path):
    video, link = write_video(tmp_path / "a.mp4", seconds=2, times=[0, 1]), tmp_path / "link.mp4"
    link.symlink_to(video)
    other = write_video(tmp_path / "other.mp4", times=[k / 10 for k in range(20)], size=(32, 24))

    async def shown() -> tuple[int, ...]:
        workers = MediaWorkers()
        videos = [opened(link) for _ in range(3)]
        link.unlink()
        link.symlink_to(other)
        picture = await workers.thumbnail(videos[0], 1.5, 64)
        clip = await workers.clip(videos[1], 0, 1)
        begins = (await workers.playback(videos[2])).begins
        assert begins == 0 and all(video.file.closed for video in videos)
        with av.open(str(clip)) as container:
            width = container.streams.video[0].width
        clip.unlink()
        return Image.open(io.BytesIO(picture)).width, width

    assert asyncio.run(shown()) == (64, 64)


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    video = write_video(tmp_path / "a.mp4", seconds=20, size=(320, 240))
    with small_disk(tmp_path / "disk", 16):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "disk"))
        with pytest.raises(StorageError, match=r"cannot store this \(No space left on device\)"):
            asyncio.run(MediaWorkers().clip(opened(video), 0, 20))
        assert list((tmp_path / "disk").iterdir()) == []
