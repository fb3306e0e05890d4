"""Files of uploads: their names, and that a failed upload leaves nothing."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastapi import HTTPException

from vmr_ray.errors import VmrError
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
    uploads = Uploads(str(tmp_path))
    asyncio.run(uploads.receive(blocks(b"one"), name, 6))
    assert files_in(tmp_path) == [f"ingest/uploads/{name}"]
    uploads.remove(name)
    assert files_in(tmp_path) == []


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
def test_an_upload_is_kept_under_its_name(tmp_path: Path, scheme: str):
    uploads = Uploads(f"{scheme}{tmp_path}")
    name = "Kitchen (2) - cam+1.MP4"
    asyncio.run(uploads.receive(blocks(b"one", b"two"), name, 6))
    assert files_in(tmp_path) == [f"ingest/uploads/{name}"]
    assert Path(uploads.uri(name)).read_bytes() == b"onetwo"
    with pytest.raises(HTTPException, match="uploaded already") as taken:
        asyncio.run(uploads.receive(blocks(b"other"), name, 6))
    assert taken.value.status_code == 409
    assert Path(uploads.uri(name)).read_bytes() == b"onetwo"
    uploads.remove(name)
    uploads.remove(name)
    assert files_in(tmp_path) == []


def test_in_object_storage_an_upload_has_a_quoted_uri():
    uploads = Uploads("mock:///bucket/index")
    assert uploads.uri("a (2).mp4") == "mock:///bucket/index/ingest/uploads/a%20%282%29.mp4"


@pytest.mark.parametrize(
    ("parts", "status"), [([b"1234", b"567"], 413), ([], 422), ([b""], 422)], ids=["large", "none", "empty"]
)
def test_a_refused_upload_leaves_nothing(tmp_path: Path, parts: list[bytes], status: int):
    with pytest.raises(HTTPException) as refusal:
        asyncio.run(Uploads(str(tmp_path)).receive(blocks(*parts), "a.mp4", 6))
    assert refusal.value.status_code == status
    assert files_in(tmp_path) == []


def test_a_failed_upload_leaves_nothing(tmp_path: Path):
    with pytest.raises(ConnectionError, match="the client"):
        asyncio.run(
            Uploads(str(tmp_path)).receive(
                blocks(b"1234", error=ConnectionError("the client is gone")), "a.mp4", 6
            )
        )
    assert files_in(tmp_path) == []


def test_the_first_error_is_reported_even_if_the_file_cannot_be_deleted(tmp_path: Path):
    async def body() -> AsyncIterator[bytes]:
        yield b"1234"
        for path in (tmp_path / "ingest" / "uploads").iterdir():
            path.unlink()  # so that deleting it again fails
        raise ConnectionError("the client is gone")

    with pytest.raises(ConnectionError, match="the client"):
        asyncio.run(Uploads(str(tmp_path)).receive(body(), "a.mp4", 6))


def test_of_two_uploads_of_one_name_the_first_to_end_is_kept(tmp_path: Path):
    uploads = Uploads(str(tmp_path))

    async def slow() -> AsyncIterator[bytes]:
        yield b"slow"
        await uploads.receive(blocks(b"fast"), "a.mp4", 6)

    with pytest.raises(HTTPException, match="uploaded already"):
        asyncio.run(uploads.receive(slow(), "a.mp4", 6))
    assert files_in(tmp_path) == ["ingest/uploads/a.mp4"]
    assert Path(uploads.uri("a.mp4")).read_bytes() == b"fast"


def test_only_uploads_are_removed(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(b"data")
    uploads = Uploads(str(tmp_path))
    for video_id in ("../../a.mp4", str(tmp_path / "a.mp4"), "none.mp4", ""):
        uploads.remove(video_id)
    assert files_in(tmp_path) == ["a.mp4"]


def test_unfinished_files_of_dead_uploads_are_removed(tmp_path: Path):
    folder = tmp_path / "ingest" / "uploads"
    folder.mkdir(parents=True)
    names = ("old.mp4.1f.part", "young.mp4.2e.part", "old.mp4")
    for name in names:
        (folder / name).write_bytes(b"data")
        if name.startswith("old"):
            os.utime(folder / name, (time.time() - 2 * 86400,) * 2)
    Uploads(str(tmp_path)).remove_stale()
    assert {path.name for path in folder.iterdir()} == {"young.mp4.2e.part", "old.mp4"}


def test_an_index_without_uploads_has_nothing_to_remove(tmp_path: Path):
    Uploads(str(tmp_path)).remove_stale()
    assert files_in(tmp_path) == []
