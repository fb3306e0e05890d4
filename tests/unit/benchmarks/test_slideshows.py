"""The videos of benchmarks/slideshows.py, made of photos of one colour each and decoded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks import slideshows
from benchmarks.slides.kinds import KINDS
from benchmarks.slides.screen import strip, strip_border
from tests.pictures import COLOURS, jpeg, write_photos
from vmr_ray.annotations import load_annotations
from vmr_ray.errors import VmrError
from vmr_ray.photos.compose import SHOTS

FPS, SIZE = 10, 48


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


def make(photos: Path, out: Path, **options: Any) -> Path:
    given = {
        "captions": None,
        "kind": "slides",
        "videos": 3,
        "seed": 0,
        "first": 0,
        "last": None,
        "queries": 5,
        "fps": FPS,
        "size": SIZE,
        "processes": 1,
    }
    slideshows.main(photos, out, **(given | options))
    return out


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "moments.jsonl").read_text().splitlines()]


def colours_of(video: Path, columns: slice = slice(None)) -> list[set[int]]:
    """Which photos are on the screen at each frame: those whose colour is in a tenth of its columns."""
    frames = []
    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            pixels = frame.to_ndarray(format="rgb24")[:, columns].reshape(-1, 1, 3).astype(int)
            distance = np.abs(pixels - np.array(COLOURS)).max(axis=2)
            near = distance.argmin(axis=1)[distance.min(axis=1) < 40]
            shares = np.bincount(near, minlength=len(COLOURS)) / len(pixels)
            frames.append(set(np.flatnonzero(shares > 0.1).tolist()))
    return frames


def photo_of(line: dict[str, Any]) -> int:
    return int(line["query"].split()[-1])


def spans_of(line: dict[str, Any]) -> list[list[float]]:
    return line.get("spans", [[line["start"], line["end"]]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_photo_is_on_the_screen_when_its_moment_says(photos: Path, tmp_path: Path, kind: str) -> None:
    out = make(photos, tmp_path / "out", kind=kind)
    annotated = lines(out)
    assert len(list((out / "videos").glob("*.mp4"))) == 3
    margin = {"slides": 4, "glide": 12, "recut": 11, "inset": 4, "again": 1}[kind]  # frames: half of a fade
    for name in {line["video"] for line in annotated}:
        # The camera of `glide` sees a photo before it is in the middle.
        columns = slice(SIZE // 2 - 2, SIZE // 2 + 2) if kind == "glide" else slice(None)
        shown = colours_of(out / name, columns)
        seen_photos: set[int] = set()
        for line in (line for line in annotated if line["video"] == name):
            photo = photo_of(line)
            seen_photos.add(photo)
            assert line["duration"] == pytest.approx(len(shown) / FPS)
            inside = np.zeros(len(shown), bool)
            near = np.zeros(len(shown), bool)
            for start, end in spans_of(line):
                first, last = round(start * FPS), round(end * FPS)
                assert 0 <= first < last <= len(shown)
                inside[first + margin : last - margin] = True
                near[max(0, first - margin) : last + margin] = True
            present = np.array([photo in frame for frame in shown])
            if kind != "inset":  # there one small picture may cover another, or much of the background
                assert present[inside].all(), (name, line)
            assert present[inside].any()
            assert not present[~near].any(), (name, line)
        assert SHOTS[0] <= len(seen_photos) <= SHOTS[1]


def test_a_hard_cut_lies_exactly_where_the_next_moment_begins(photos: Path, tmp_path: Path) -> None:
    """`again` has hard cuts only: every frame shows the one photo in whose moment it is."""
    out = make(photos, tmp_path / "out", kind="again", videos=1)
    shown = colours_of(out / "videos" / "again_0_00000.mp4")
    truth: list[set[int]] = [set() for _ in shown]
    for line in lines(out):
        for start, end in spans_of(line):
            for frame in range(round(start * FPS), round(end * FPS)):
                truth[frame].add(photo_of(line))
    assert shown == truth


def test_the_lines_are_annotations_as_training_reads_them(photos: Path, tmp_path: Path) -> None:
    out = make(photos, tmp_path / "out", kind="again")
    annotations = load_annotations(out / "moments.jsonl").annotations
    assert [(a.video_id, a.query, a.duration) for a in annotations] == [
        (line["video"], line["query"], line["duration"]) for line in lines(out)
    ]
    assert max(len(a.spans) for a in annotations) > 1
    assert {spans_of(line)[0][0] for line in lines(out)} == {line["start"] for line in lines(out)}


def test_same_arguments_same_files_and_another_seed_another(photos: Path, tmp_path: Path) -> None:
    def content(out: Path) -> dict[str, bytes]:
        return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.*"))}

    one = content(make(photos, tmp_path / "one"))
    assert one == content(make(photos, tmp_path / "two", processes=2))
    assert len(one) == 4
    other = content(make(photos, tmp_path / "other", seed=1))
    assert one["moments.jsonl"] != other["moments.jsonl"]


def test_slices_of_the_photos_share_none(tmp_path: Path) -> None:
    table = {
        "id": [f"{i:02d}" for i in range(16)],
        "picture": [jpeg((16 * i, 0, 0), (24, 24)) for i in range(16)],
        "sentences": [[f"photo {i}"] for i in range(16)],
    }
    pq.write_table(pa.table(table), tmp_path / "photos.parquet")
    train = make(tmp_path / "photos.parquet", tmp_path / "train", last=8, size=32)
    val = make(tmp_path / "photos.parquet", tmp_path / "val", first=8, size=32)
    assert {photo_of(line) for line in lines(train)} == set(range(8))
    assert {photo_of(line) for line in lines(val)} == set(range(8, 16))


def test_a_caption_of_two_photos_has_the_moments_of_both() -> None:
    script = KINDS["slides"]([0, 1, 2, 3], FPS, np.random.default_rng(0))
    captions = [["a dog"], ["a cat"], ["a dog"], ["a bird"]]
    rows = slideshows.annotate("v.mp4", script, captions, 5, FPS, np.random.default_rng(0))
    (dog,) = (row for row in rows if row["query"] == "a dog")
    (first,), (last,) = script.moments[0], script.moments[2]
    assert dog["spans"] == [[first[0] / FPS, first[1] / FPS], [last[0] / FPS, last[1] / FPS]]
    assert "spans" not in next(row for row in rows if row["query"] == "a cat")


def test_photos_on_a_strip_meet_at_their_border() -> None:
    row = strip([Image.new("RGB", (60, 40), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))])
    pixels = np.asarray(row).astype(int)[20]
    for number in (1, 2):
        at = round(strip_border(number, 3) * row.width)
        before, after = pixels[at, number - 1], pixels[at, number]
        assert abs(before - after) < 50
        assert pixels[at - 10, number - 1] == 255
        assert pixels[at + 10, number] == 255


def test_bad_photos_are_named(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(VmrError, match=r"2 photos of .* are in the slice"):
        make(photos, tmp_path / "out", first=10)
    (photos / "03.jpg").write_bytes(jpeg(COLOURS[3])[:200])
    with pytest.raises(VmrError, match=r"03.jpg cannot be read as an image \(.*\): replace it") as error:
        make(photos, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "moments.jsonl").exists()


def test_finished_videos_are_not_overwritten(photos: Path, tmp_path: Path) -> None:
    out = make(photos, tmp_path / "out", videos=1)
    with pytest.raises(VmrError, match=r"moments.jsonl exists: name another folder"):
        make(photos, out, videos=1)
