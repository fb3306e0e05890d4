"""Captioned photos: a folder with a captions file, or a Parquet file that holds both."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from vmr_ray.errors import VmrError, one_line

CAPTION_FILES = ("captions.jsonl", "captions.csv")


@dataclass(frozen=True)
class Photo:
    """One photo and the sentences that describe it.

    Attributes:
        photo_id: its file below the folder, or the SHA-256 of the image in a Parquet file.
        name: what errors call it: its file, or the Parquet file and the photo's name in it.
        image: the file, or the encoded image itself.
    """

    photo_id: str
    name: str
    image: Path | bytes
    captions: tuple[str, ...]

    def open(self) -> Image.Image:
        """The picture in RGB, upright.

        Raises:
            VmrError: it cannot be read as an image.
        """
        try:
            source = io.BytesIO(self.image) if isinstance(self.image, bytes) else self.image
            with Image.open(source) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise VmrError(
                f"{self.name} cannot be read as an image ({one_line(error)}): replace it, or delete it and "
                "its captions"
            ) from None


def read_photos(source: Path, captions: Path | None = None) -> list[Photo]:
    """The photos that have captions, sorted by name.

    Args:
        source: a folder of images, or a Parquet file with a column of encoded images (binary, or a struct
            with a field `bytes`) and a column of lists of captions; a column of texts names the photos.
        captions: for a folder, JSONL or CSV with `file` and `caption`, as many rows a photo as it has
            captions; default: `captions.jsonl` or `captions.csv` in the folder.

    Raises:
        VmrError: a file is missing, or a row of the captions cannot be used.
    """
    if source.is_dir():
        photos = _read_folder(source, captions or _captions_of(source))
    elif not source.is_file():
        raise VmrError(f"{source} does not exist: name a folder of images or a Parquet file")
    elif captions is not None:
        raise VmrError(f"--captions {captions} goes with a folder of images, and {source} is a file")
    else:
        photos = _read_parquet(source)
    return sorted(photos, key=lambda photo: photo.name)


# --- A folder ---


def _captions_of(folder: Path) -> Path:
    for name in CAPTION_FILES:
        if (folder / name).is_file():
            return folder / name
    raise VmrError(f"{folder} has no {' or '.join(CAPTION_FILES)}: add one, or name it with --captions")


def _read_folder(folder: Path, captions: Path) -> list[Photo]:
    by_file: dict[str, list[str]] = {}
    for where, row in _caption_rows(captions):
        file, caption = (_text(row.get(name), name, where) for name in ("file", "caption"))
        if file not in by_file and not (folder / file).is_file():
            raise VmrError(f"{where}: there is no image {folder / file}: correct the name or delete the row")
        by_file.setdefault(file, []).append(caption)
    if not by_file:
        raise VmrError(f"{captions} holds no captions: write a row with file and caption for each")
    return [
        Photo(file, str(folder / file), folder / file, tuple(sentences))
        for file, sentences in by_file.items()
    ]


def _caption_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row of a captions file is, for errors, and its values."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise VmrError(f"cannot read the captions {path}: {one_line(error)}") from None
    return _jsonl_rows(path, text) if path.suffix.lower() == ".jsonl" else _csv_rows(path, text)


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise VmrError(f'{where}: not a JSON object: write {{"file": ..., "caption": ...}}')
        yield where, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        if not {"file", "caption"} <= set(reader.fieldnames or ()):
            raise VmrError(f"{path}, line 1: the header must name the columns file and caption")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise VmrError(f"{where}: too many values: put a caption that holds a comma in double quotes")
            yield where, row
    except csv.Error as error:
        where = f"{path}, line {reader.reader.line_num}"
        raise VmrError(f"{where}: not CSV ({error}): close every double quote") from None


def _text(value: object, name: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise VmrError(f"{where}: {name} is empty or no text: fill it in or delete the row")
    return value.strip()


# --- A Parquet file ---


def _read_parquet(path: Path) -> list[Photo]:
    try:
        schema = pq.read_schema(path)
        image = _column(path, schema, "encoded images (binary, or a struct with bytes)", _is_image)
        sentences = _column(path, schema, "lists of captions", _is_texts)
        name = next((field.name for field in schema if _is_text(field.type)), None)
        columns = [image, sentences, *([name] if name else [])]
        rows: Iterable[dict[str, Any]] = pq.read_table(path, columns=columns).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise VmrError(f"cannot read the photos {path}: {one_line(error)}") from None
    photos = []
    for number, row in enumerate(rows):
        where = f"{path}, {row[name] if name and row[name] else f'row {number:08d}'}"
        data = row[image]["bytes"] if isinstance(row[image], dict) else row[image]
        captions = [text for text in row[sentences] or () if text and text.strip()]
        if not data or not captions:
            raise VmrError(
                f"{where}: it has no {'captions' if data else 'image'}: fill it in or delete the row"
            )
        digest = hashlib.sha256(data).hexdigest()
        photos.append(Photo(digest, where, data, tuple(text.strip() for text in captions)))
    return photos


def _column(path: Path, schema: pa.Schema, what: str, fits: Any) -> str:
    names = [field.name for field in schema if fits(field.type)]
    if len(names) != 1:
        found = ", ".join(names) or "none"
        raise VmrError(f"{path} must have one column of {what}, and has {found}: add it or leave others out")
    return str(names[0])


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _is_texts(type_: pa.DataType) -> bool:
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_)) and _is_text(type_.value_type)


def _is_image(type_: pa.DataType) -> bool:
    if pa.types.is_struct(type_):
        return "bytes" in {field.name for field in type_}
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))
