"""Reading captioned photos: folders and Parquet files, and what is wrong with them."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pictures import write_photos
from vmr_ray.errors import VmrError
from vmr_ray.photos.files import read_photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


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
    assert {photo.photo_id for photo in from_jsonl} == {path.name for path in photos.glob("*.jpg")}
    assert len({photo.photo_id for photo in from_parquet}) == len(from_parquet)
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


def test_a_place_without_captioned_photos_is_named(tmp_path: Path) -> None:
    with pytest.raises(VmrError, match=r"none does not exist: name a folder"):
        read_photos(tmp_path / "none")
    with pytest.raises(VmrError, match=r"has no captions.jsonl or captions.csv"):
        read_photos(tmp_path)


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
