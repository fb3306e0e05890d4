"""Files of uploads: their names, and that a failed upload leaves nothing."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from fastapi import HTTPException

from tests.disks import small_disk
from vmr_ray.errors import VmrError
from vmr_ray.serve.errors import StorageError
from vmr_ray.serve.uploads import Uploads, upload_name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../a.mp4", "slash"),
        ("a/b.mp4", "slash"),
        ("a\n.mp4", "line break"),
        ("a\0.mp4", "control"),
        ("a\udc80.mp4", "control"),
        (".mp4", "suffix"),
        ("a.txt", "suffix"),
        ("", "suffix"),
        ("x" * 252 + ".mp4", "256 bytes long, at most 255"),
        ("\u6f22" * 84 + ".mp4", "256 bytes long, at most 255"),
    ],
)
def test_a_name_that_no_video_file_can_have(name: str, reason: str):
    with pytest.raises(VmrError, match=f"^name .*{reason}"):
        upload_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "Kitchen (2) - cam+1.MP4",
        "Mom's birthday.mp4",
        "VID [1080p].mp4",
        "9:41\u202fAM.mov",
        "\u0928\u092e\u0938\u094d\u0924\u0947.mp4",
        "-a.mp4",
        "a\\b.mp4",
        "\u6f22" * 83 + ".mp4",
    ],
)
def test_an_upload_keeps_its_name(tmp_path: Path, name: str):
    assert upload_name(name) == name
    asyncio.run(Uploads(str(tmp_path)).receive(blocks(b"one"), "job", name, 6))
    (file,) = files_in(tmp_path)
    assert file == f"ingest/uploads/job{Path(name).suffix.lower()}"


def test_the_forms_of_one_name_are_one():
    assert upload_name("cafe\u0301.mp4") == "caf\u00e9.mp4"


async def blocks(*parts: bytes, error: Exception | None = None) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    if error:
        raise error


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_an_upload_is_kept_in_a_file_of_its_job(tmp_path: Path, scheme: str):
    uploads = Uploads(f"{scheme}{tmp_path}")
    name = "Kitchen (2) - cam+1.MP4"
    uri = asyncio.run(uploads.receive(blocks(b"one", b"two"), "1f", name, 6))
    other = asyncio.run(uploads.receive(blocks(b"other"), "2e", name, 6))
    assert uri == uploads.uri("1f", name) and files_in(tmp_path) == [
        "ingest/uploads/1f.mp4",
        "ingest/uploads/2e.mp4",
    ]
    assert Path(uri).read_bytes() == b"onetwo" and Path(other).read_bytes() == b"other"
    assert (uploads.job_id(uri), uploads.job_id(other)) == ("1f", "2e")
    uploads.remove(uri)
    uploads.remove(uri)
    assert files_in(tmp_path) == ["ingest/uploads/2e.mp4"]


def test_in_object_storage_an_upload_has_a_uri():
    uploads = Uploads("mock:///bucket/index")
    uri = uploads.uri("1f", "a (2).mp4")
    assert uri == "mock:///bucket/index/ingest/uploads/1f.mp4" and uploads.job_id(uri) == "1f"
    # Earlier versions named the file after the video.
    assert uploads.job_id("mock:///bucket/index/ingest/uploads/a%20%282%29.mp4") == "a (2)"


@pytest.mark.parametrize(
    ("parts", "status"), [([b"1234", b"567"], 413), ([], 422), ([b""], 422)], ids=["large", "none", "empty"]
)
def test_a_refused_upload_leaves_nothing(tmp_path: Path, parts: list[bytes], status: int):
    with pytest.raises(HTTPException) as refusal:
        asyncio.run(Uploads(str(tmp_path)).receive(blocks(*parts), "1f", "a.mp4", 6))
    assert refusal.value.status_code == status
    assert files_in(tmp_path) == []


def test_a_failed_upload_leaves_nothing(tmp_path: Path):
    body = blocks(b"1234", error=ConnectionError("the client is gone"))
    with pytest.raises(ConnectionError, match="the client"):
        asyncio.run(Uploads(str(tmp_path)).receive(body, "1f", "a.mp4", 6))
    assert files_in(tmp_path) == []


def test_the_first_error_is_reported_even_if_the_file_cannot_be_deleted(tmp_path: Path):
    async def body() -> AsyncIterator[bytes]:
        yield b"1234"
        for path in (tmp_path / "ingest" / "uploads").iterdir():
            path.unlink()  # so that deleting it again fails
        raise ConnectionError("the client is gone")

    with pytest.raises(ConnectionError, match="the client"):
        asyncio.run(Uploads(str(tmp_path)).receive(body(), "1f", "a.mp4", 6))


def test_a_client_that_goes_away_at_any_moment_leaves_nothing_or_a_whole_file(tmp_path: Path):
    """The request is cancelled after each of the event loop's turns."""

    async def cancelled_after(turns: int) -> bool:
        body = blocks(b"12", b"34", b"56")
        task = asyncio.create_task(Uploads(str(tmp_path)).receive(body, f"{turns:02}", "a.mp4", 6))
        for _ in range(turns):
            if task.done():
                return False
            await asyncio.sleep(0.0005)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return task.cancelled()

    outcomes = [asyncio.run(cancelled_after(turns)) for turns in range(60)]
    assert True in outcomes and outcomes[0]
    whole = [f"ingest/uploads/{turns:02}.mp4" for turns, cancelled in enumerate(outcomes) if not cancelled]
    assert files_in(tmp_path) == whole
    assert all((tmp_path / name).read_bytes() == b"123456" for name in whole)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path):
    with small_disk(tmp_path, 64):
        with pytest.raises(StorageError, match=r"cannot store this \(No space left on device\)") as refusal:
            asyncio.run(Uploads(str(tmp_path)).receive(blocks(*[bytes(10_000)] * 10), "1f", "a.mp4", 10**6))
        assert str(tmp_path) not in str(refusal.value)
        assert files_in(tmp_path) == []


def test_only_uploads_are_removed(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(b"data")
    uploads = Uploads(str(tmp_path))
    for uri in (str(tmp_path / "a.mp4"), f"{tmp_path}/ingest/uploads/../../a.mp4", "none.mp4", ""):
        assert uploads.job_id(uri) is None
        uploads.remove(uri)
    assert files_in(tmp_path) == ["a.mp4"]


def test_files_that_belong_to_nothing_are_removed_once_they_no_longer_grow(tmp_path: Path):
    folder = tmp_path / "ingest" / "uploads"
    folder.mkdir(parents=True)
    names = ("old.mp4", "old.mp4.1f.part", "young.mp4", "old indexed.mp4", "old_unread.mp4")
    for name in names:
        (folder / name).write_bytes(b"data")
        if name.startswith("old"):
            os.utime(folder / name, (time.time() - 2 * 3600,) * 2)
    # The index was in another folder when the video was indexed.
    Uploads(str(tmp_path)).remove_orphans(["/elsewhere/old indexed.mp4"], {"old_unread"})
    assert {path.name for path in folder.iterdir()} == {"young.mp4", "old indexed.mp4", "old_unread.mp4"}


def test_an_index_without_uploads_has_nothing_to_remove(tmp_path: Path):
    Uploads(str(tmp_path)).remove_orphans([], [])
    assert files_in(tmp_path) == []
