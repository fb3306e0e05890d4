from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmr_ray.errors import VmrError
from vmr_ray.serve.ingest import checked_uri
from vmr_ray.storage import filesystem
from vmr_ray.video.sources import _uri, find_videos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.mp4", "sub/b.MKV", "sub/deep/c.mov", "notes.txt", ".hidden/d.mp4"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "videos"


def ids(*inputs: str | Path) -> list[str]:
    return [video.video_id for video in find_videos(inputs)]


def test_directory_is_searched_for_videos(folder: Path):
    assert ids(folder) == ["a.mp4", "sub/b.MKV", "sub/deep/c.mov"]


def test_file_uri_names_the_same_videos(folder: Path):
    assert ids(folder.as_uri()) == ids(folder)


def test_names_with_spaces_and_brackets(folder: Path):
    odd = folder / "odd #1 [abc] 100%.mp4"
    odd.write_bytes(b"x")
    assert ids(odd) == [odd.name]
    (video,) = [v for v in find_videos([folder.as_uri()]) if v.video_id == odd.name]
    filesys, path = filesystem(video.uri)
    assert path == str(odd) and filesys.get_file_info(path).size == 1


def test_object_store_uris_keep_bucket_and_options():
    item = "s3://archive/videos?endpoint_override=127.0.0.1%3A9000&scheme=http"
    uri = _uri(item, "archive/videos/my clip.mp4")
    assert uri == "s3://archive/videos/my%20clip.mp4?endpoint_override=127.0.0.1%3A9000&scheme=http"
    assert _uri("hdfs://host:8020/v", "/v/a.mp4") == "hdfs://host:8020/v/a.mp4"


def test_globs_stay_in_their_directory(folder: Path):
    assert ids(f"{folder}/*.mp4") == ["a.mp4"]
    assert ids(f"{folder}/sub/*") == ["b.MKV"]
    assert ids(f"{folder}/**/*.mov") == ["sub/deep/c.mov"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/b*.mp4", ["a/b/b3.mp4", "a/b2.mp4", "b1.mp4"]),  # not a/b/c.mp4
        ("**/*.mp4", ["a/b/b3.mp4", "a/b/c.mp4", "a/b2.mp4", "ab/d.mp4", "b1.mp4"]),
        ("**", ["a/b/b3.mp4", "a/b/c.mp4", "a/b2.mp4", "ab/d.mp4", "b1.mp4"]),
        ("**/b/*.mp4", ["a/b/b3.mp4", "a/b/c.mp4"]),
        ("**/b/**/*.mp4", ["a/b/b3.mp4", "a/b/c.mp4"]),
        ("a*/**/*.mp4", ["a/b/b3.mp4", "a/b/c.mp4", "a/b2.mp4", "ab/d.mp4"]),
        ("a/**/*.mp4", ["b/b3.mp4", "b/c.mp4", "b2.mp4"]),  # ids count from the fixed part
        ("*/*.mp4", ["a/b2.mp4", "ab/d.mp4"]),
        ("*.mp4", ["b1.mp4"]),
        ("?b/*", ["ab/d.mp4"]),
        ("[ab]/*.mp4", ["a/b2.mp4"]),
        ("a**/*.mp4", ["a/b2.mp4", "ab/d.mp4"]),  # `**` spans folders only as a whole segment
    ],
)
def test_globs(tmp_path: Path, pattern: str, expected: list[str]):
    for name in ("b1.mp4", "a/b2.mp4", "a/b/b3.mp4", "a/b/c.mp4", "ab/d.mp4", ".hidden/b4.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert ids(f"{tmp_path}/{pattern}") == expected
    with pytest.raises(VmrError, match="no videos in"):
        ids(f"{tmp_path}/**/*.MP4")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://archive/few/%252e%252e/secret.mp4?scheme=http",
        "s3://archive/few/../secret.mp4?scheme=http",
        "s3://archive/fewer/a.mp4?scheme=http",
        "s3://archive/few/a.mp4?endpoint_override=evil.example&scheme=http",
        "s3://archive/few/a.mp4",
        "s3://someone@archive/few/a.mp4?scheme=http",
        "S3://archive-2/few/a.mp4?scheme=http",
    ],
)
def test_a_manifest_names_no_uri_outside_the_roots(tmp_path: Path, uri: str):
    """Nor does the service accept it."""
    roots = ["s3://archive/few?scheme=http"]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(f'{{"video_id": "x", "uri": "{uri}"}}\n')
    with pytest.raises(VmrError, match=r"m\.jsonl, line 1: .* embed\.storage_roots"):
        find_videos([manifest], roots)
    with pytest.raises(VmrError, match="not below any of the service's roots"):
        checked_uri(uri, roots)


def test_a_named_file_needs_no_suffix(folder: Path):
    assert ids(folder / "notes.txt") == ["notes.txt"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.jsonl", '{"video_id": "one", "uri": "videos/a.mp4"}\n\n{"video_id": "two", "uri": "gone.mp4"}\n'),
        ("m.csv", "video_id,uri\none,videos/a.mp4\ntwo,gone.mp4\n"),
    ],
)
def test_manifest_gives_ids_and_counts_paths_from_itself(folder: Path, name: str, text: str):
    manifest = folder.parent / name
    manifest.write_text(text)
    one, two = find_videos([manifest])
    assert (one.video_id, two.video_id) == ("one", "two")
    assert Path(one.uri) == folder / "a.mp4"
    assert one.fingerprint and not two.fingerprint


def test_fingerprint_follows_the_file(folder: Path):
    before = find_videos([folder / "a.mp4"])[0].fingerprint
    (folder / "a.mp4").write_bytes(b"xyz")
    assert find_videos([folder / "a.mp4"])[0].fingerprint != before


def test_mistakes_are_named(folder: Path, tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"video_id": "one"}\n')
    for item, message in [
        (empty, "no videos in"),
        (tmp_path / "gone", "no such file or directory"),
        (bad, "line 1"),
        ("nosuch://bucket/x", "cannot use nosuch://"),
    ]:
        with pytest.raises(VmrError, match=message):
            find_videos([item])


def test_two_videos_of_one_id_are_refused(folder: Path):
    (folder / "deep").mkdir()
    (folder / "deep" / "a.mp4").write_bytes(b"y")
    with pytest.raises(VmrError, match="two videos have the id 'a.mp4'"):
        find_videos([folder, folder / "deep"])


def test_a_name_that_is_no_text_stops_no_folder(folder: Path):
    os.close(os.open(os.fsencode(folder) + b"/caf\xe9.mp4", os.O_CREAT))
    (folder / "two\nlines.mp4").write_bytes(b"x")
    left_out: list[str] = []
    assert len(find_videos([folder], left_out=left_out)) == 3
    assert sorted(left_out) == [
        "'caf\\\\xe9.mp4' (its name is not UTF-8: rename it)",
        "'two\\nlines.mp4' (its name has a line break or another control character: rename it)",
        "notes.txt",
    ]


def test_a_link_upwards_repeats_nothing(folder: Path):
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "sub" / "self").symlink_to(folder / "sub")
    other = folder.parent / "other"
    other.mkdir()
    (other / "e.mp4").write_bytes(b"x")
    (folder / "link").symlink_to(other)
    assert ids(folder) == ["a.mp4", "link/e.mp4", "sub/b.MKV", "sub/deep/c.mov"]


@pytest.mark.parametrize("name", ["MOV001.MOD", "00001.m2t", "VTS_01_1.VOB", "clip.f4v", "GL010001.LRV"])
def test_endings_of_cameras_and_recorders(folder: Path, name: str):
    (folder / name).write_bytes(b"x")
    assert name in ids(folder)
