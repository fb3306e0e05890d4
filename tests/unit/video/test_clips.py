"""Clips and thumbnails as files."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.disks import small_disk
from tests.reported import KINDS, NOT_FINISHED
from tests.videos import index_frame, read_index, write_video
from vmr_ray.errors import FullDiskError, VmrError
from vmr_ray.video.clip_file import write_clip
from vmr_ray.video.clips import clip, make_thumbnail, thumbnail


@pytest.mark.parametrize("link", ["itself", "symbolic", "hard"])
def test_a_clip_never_replaces_its_video(tmp_path: Path, link: str) -> None:
    video = write_video(tmp_path / "milk.mp4", seconds=2)
    before = video.read_bytes()
    out = tmp_path / ("milk.mp4" if link == "itself" else "link.mp4")
    if link == "symbolic":
        out.symlink_to(video)
    elif link == "hard":
        os.link(video, out)
    with pytest.raises(VmrError, match="is an input and would be overwritten"):
        clip(video, 0, 1, out)
    assert video.read_bytes() == before


def test_a_clip_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", seconds=2)
    (tmp_path / "out.mp4").write_bytes(b"old")
    with pytest.raises(VmrError, match=r"^a\.mp4: the video ends at 2\.00 s, before"):
        clip(video, 5, 6, tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    clip(video, 0.5, 1, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.duration == pytest.approx(0.5e6, abs=0.05e6)


@pytest.mark.parametrize(
    ("kind", "streams"),
    [
        ("sound_first.mp4", ["video", "audio"]),
        ("fine_sound.mkv", ["video", "audio"]),
        ("two_pictures.mkv", ["video", "audio"]),
        ("unknown_sound.mp4", ["video"]),
    ],
)
def test_a_clip_has_the_sound_that_can_be_decoded(tmp_path: Path, kind: str, streams: list[str]) -> None:
    video = KINDS[kind](tmp_path / kind)
    write_clip(str(video), 1.5, 2.5, str(tmp_path / "clip.mp4"))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert [stream.type for stream in container.streams] == streams
        seconds = {"video": 0.0, "audio": 0.0}
        for frame in container.decode():
            seconds["video" if isinstance(frame, av.VideoFrame) else "audio"] = frame.time
        assert all(seconds[kind] == pytest.approx(1, abs=0.06) for kind in streams)


def test_pixels_of_any_shape_become_square(tmp_path: Path) -> None:
    wide = KINDS["wide_pixels.mp4"](tmp_path / "wide.mp4")  # 64 x 48 pixels of 2 : 1
    assert Image.open(io.BytesIO(make_thumbnail(str(wide), 1, 500))).size == (128, 48)
    rotated = KINDS["rotated.mp4"](tmp_path / "rotated.mp4")
    assert Image.open(io.BytesIO(make_thumbnail(str(rotated), 1, 24))).size == (24, 32)
    for path, size in ((wide, (128, 48)), (rotated, (48, 64))):
        write_clip(str(path), 1, 2, str(tmp_path / "clip.mp4"))
        with av.open(str(tmp_path / "clip.mp4")) as container:
            frame = next(container.decode(video=0))
            assert (frame.width, frame.height) == size


def test_a_recording_that_was_cut_off_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(VmrError, match=r"a\.mp4 could not be read: it was cut off while it was recorded"):
        thumbnail(NOT_FINISHED(tmp_path / "a.mp4"), 0)


@pytest.mark.parametrize(
    ("kind", "upright"),
    [("mirrored.mp4", np.fliplr), ("mirrored_and_turned.mp4", lambda image: image.swapaxes(0, 1))],
)
def test_a_mirrored_recording_is_shown_as_in_a_mirror(tmp_path: Path, kind: str, upright) -> None:
    video = str(KINDS[kind](tmp_path / kind))
    picture = np.asarray(Image.open(io.BytesIO(make_thumbnail(video, 1, 320))))
    assert read_index(picture) == read_index(upright(index_frame(25, 64, 48)))
    assert picture.shape[:2] == upright(np.zeros((48, 64))).shape


def test_a_clip_that_nobody_waits_for_is_not_made(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", seconds=2)
    stop = threading.Event()
    stop.set()
    with pytest.raises(VmrError, match="could not be read"):
        clip(video, 0, 1, tmp_path / "out.mp4", stop=stop)
    assert list(tmp_path.iterdir()) == [video]


def test_a_full_disk_names_the_clip_and_leaves_nothing(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", seconds=20, size=(320, 240))
    with small_disk(tmp_path / "disk", 16):
        out = tmp_path / "disk" / "clip.mp4"
        with pytest.raises(FullDiskError, match=rf"^cannot write {out} \(its disk is full\): make room"):
            clip(video, 0, 20, out)
        assert list(out.parent.iterdir()) == []
