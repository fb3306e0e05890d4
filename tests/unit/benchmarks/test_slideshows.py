"""The videos of benchmarks/slideshows.py, made of photos of one colour each and decoded again."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks import slideshows
from benchmarks.slides.kinds import KINDS, SHOTS
from benchmarks.slides.photos import read_photos
from benchmarks.slides.screen import strip, strip_border
from vmr_ray.annotations import load_annotations
from vmr_ray.errors import VmrError

# Far from each other in RGB, so that the nearest one to a decoded pixel is certain.
COLOURS = list(itertools.product((20, 130, 240), (20, 240), (20, 240)))
FPS, SIZE = 10, 48


def jpeg(colour: Sequence[int], size: tuple[int, int] = (96, 64)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, tuple(colour)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a photo a colour, two captions each."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = []
    for number, colour in enumerate(COLOURS):
        name = f"{number:02d}.jpg"
        (folder / name).write_bytes(jpeg(colour, (96, 64) if number % 2 else (64, 96)))
        rows += [{"file": name, "caption": f"{text} {number}"} for text in ("a wall of paint", "one colour,")]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


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


def test_every_photo_is_dealt_once_before_any_comes_again() -> None:
    hands = list(slideshows.deal(11, 40, np.random.default_rng(0)))
    assert {len(hand) for hand in hands} == set(range(SHOTS[0], SHOTS[1] + 1))
    assert all(len(set(hand)) == len(hand) for hand in hands)
    counts = np.bincount(list(itertools.chain(*hands)), minlength=11)
    assert counts.max() - counts.min() <= 1


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


def test_captions_come_as_csv_and_photos_as_parquet_too(photos: Path, tmp_path: Path) -> None:
    from_jsonl = read_photos(photos)
    with (tmp_path / "other.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["caption", "file"])
        for photo in from_jsonl:
            writer.writerows([caption, Path(photo.name).name] for caption in photo.captions)
    assert read_photos(photos, tmp_path / "other.csv") == from_jsonl
    rows = [
        {
            "image": {"bytes": (photos / Path(photo.name).name).read_bytes(), "path": "x"},
            "captions": list(photo.captions),
        }
        for photo in from_jsonl
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "photos.parquet")
    from_parquet = read_photos(tmp_path / "photos.parquet")
    assert [photo.captions for photo in from_parquet] == [photo.captions for photo in from_jsonl]
    assert [photo.open().size for photo in from_parquet] == [photo.open().size for photo in from_jsonl]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("c.jsonl", '{"file": "00.jpg", "caption": "x"}\nnonsense', "c.jsonl, line 2: not a JSON object"),
        ("c.jsonl", '{"file": "no.jpg", "caption": "x"}', "c.jsonl, line 1: there is no image .*no.jpg"),
        ("c.jsonl", '{"file": "00.jpg", "caption": " "}', "c.jsonl, line 1: caption is empty"),
        ("c.jsonl", "\n", "c.jsonl holds no captions"),
        ("c.csv", "name,caption\n00.jpg,x\n", "c.csv, line 1: the header must name the columns file and"),
        ("c.csv", "file,caption\n00.jpg,x, y\n", "c.csv, line 2: too many values"),
        ("c.csv", 'file,caption\n00.jpg,"x', "c.csv, line 2: not CSV"),
        ("c.csv", "file,caption\n00.jpg\n", "c.csv, line 2: caption is empty"),
    ],
)
def test_bad_captions_are_named(photos: Path, tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(VmrError, match=sentence) as error:
        read_photos(photos, tmp_path / name)
    assert "\n" not in str(error.value)


def test_bad_photos_are_named(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(VmrError, match=r"none does not exist: name a folder"):
        read_photos(tmp_path / "none")
    with pytest.raises(VmrError, match=r"has no captions.jsonl or captions.csv"):
        read_photos(tmp_path)
    with pytest.raises(VmrError, match=r"2 photos of .* are in the slice"):
        make(photos, tmp_path / "out", first=10)
    (photos / "03.jpg").write_bytes(jpeg(COLOURS[3])[:200])
    with pytest.raises(VmrError, match=r"03.jpg cannot be read as an image \(.*\): replace it") as error:
        make(photos, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "moments.jsonl").exists()


def test_a_parquet_file_must_have_one_column_of_each_kind(tmp_path: Path) -> None:
    path = tmp_path / "photos.parquet"
    pq.write_table(pa.table({"a": [b"x"], "b": [b"y"], "captions": [["z"]]}), path)
    with pytest.raises(VmrError, match=r"photos.parquet must have one column of encoded images .* has a, b"):
        read_photos(path)
    pq.write_table(pa.table({"name": ["p1", "p2"], "a": [b"x", b"y"], "captions": [["z"], []]}), path)
    with pytest.raises(VmrError, match=r"photos.parquet, p2: it has no captions"):
        read_photos(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(VmrError, match=r"cannot read the photos .*photos.parquet"):
        read_photos(path)


def test_finished_videos_are_not_overwritten(photos: Path, tmp_path: Path) -> None:
    out = make(photos, tmp_path / "out", videos=1)
    with pytest.raises(VmrError, match=r"moments.jsonl exists: name another folder"):
        make(photos, out, videos=1)
