"""The workers of the pipeline, called in one process as Ray calls them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.videos import write_video
from vmr_ray.config import DecodeConfig, EmbedConfig
from vmr_ray.embedding.stages import PART_SCHEMA, Decode, DecodeEncodeWrite, Encode, Write
from vmr_ray.encoders import frame_spec
from vmr_ray.features import FeatureStore, verify
from vmr_ray.schema import StoreSpec, Video
from vmr_ray.video.sources import find_videos

CONFIG = EmbedConfig(decode=DecodeConfig(chunk_frames=3), max_attempts=2, batch_frames=2)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    _, dim = frame_spec(CONFIG.encoder)
    return FeatureStore.create(str(tmp_path / "features"), StoreSpec(CONFIG.encoder, dim, "fps=1"))


def part(video: Video, part: int = 0, parts: int = 1) -> pa.Table:
    return pa.Table.from_pylist([asdict(video) | {"part": part, "parts": parts}], schema=PART_SCHEMA)


def written(worker: DecodeEncodeWrite, row: pa.Table) -> list[dict]:
    return [one for table in worker(row) for one in table.to_pylist()]


def test_a_video_becomes_chunks(tmp_path: Path, store: FeatureStore) -> None:
    (video,) = find_videos([write_video(tmp_path / "a.mp4", seconds=7, fps=10)])
    rows = written(DecodeEncodeWrite(CONFIG, store.root), part(video))
    assert [(row["chunk"], row["last"], row["frames"]) for row in rows] == [
        (0, False, 3),
        (1, False, 3),
        (2, True, 1),
    ]
    assert sum(row["seconds"] for row in rows) == pytest.approx(7) == rows[0]["duration"]
    assert all(row["error"] is None and row["size"] == video.size for row in rows)
    assert store.finished([video]) == {"a.mp4"} and not verify(store.root).problems
    (features,) = store
    assert (features.uri, features.partial) == (video.uri, False)
    assert features.features.shape == (7, 1280) and np.ptp(features.features, axis=0).max() > 0


def test_the_stages_apart_write_the_same(tmp_path: Path, store: FeatureStore) -> None:
    (video,) = find_videos([write_video(tmp_path / "a.mp4", seconds=7, fps=10)])
    other = FeatureStore.create(str(tmp_path / "other"), store.spec)
    written(DecodeEncodeWrite(CONFIG, store.root), part(video))
    decode, encode, write = Decode(CONFIG), Encode(CONFIG, "cpu"), Write(other.root)
    for frames in [*decode(part(video, 0, 2)), *decode(part(video, 1, 2))]:
        for features in encode(frames):
            write(features)
    first, second = (
        {path.name: path.read_bytes() for path in Path(s.path).rglob("*.parquet")} for s in (store, other)
    )
    assert first == second and len(first) == 3


def test_a_bad_video_becomes_a_record(tmp_path: Path, store: FeatureStore) -> None:
    for name, text in (("text.mp4", b"no video"), ("head.mp4", b"\0\0\0\x18ftypisom" + bytes(999))):
        (tmp_path / name).write_bytes(text)
        (video,) = find_videos([tmp_path / name])
        (row,) = written(DecodeEncodeWrite(CONFIG, store.root), part(video))
        assert (row["video_id"], row["frames"], row["chunk"]) == (name, 0, None)
    head, text = store.quarantine.rows()
    assert (head.video_id, head.stage, head.attempts) == ("head.mp4", "open", 2)
    assert (text.video_id, text.stage, text.attempts) == ("text.mp4", "sniff", 1)
    assert "does not begin like a video" in text.error and text.uri == str(tmp_path / "text.mp4")
    assert store.video_ids() == []


def test_a_part_that_fails_is_no_failed_video(tmp_path: Path, store: FeatureStore) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(999))
    (video,) = find_videos([tmp_path / "a.mp4"])
    (row,) = written(DecodeEncodeWrite(CONFIG, store.root), part(video, 1, 2))
    assert row["stage"] == "divided" and store.quarantine.rows() == []


def test_what_the_encoder_raises_is_the_videos_error(tmp_path: Path, store: FeatureStore) -> None:
    (video,) = find_videos([write_video(tmp_path / "a.mp4", seconds=2, fps=10)])
    worker = DecodeEncodeWrite(CONFIG, store.root)

    class Failing:
        size, _ = frame_spec(CONFIG.encoder)

        def __call__(self, frames: np.ndarray) -> np.ndarray:
            raise ValueError(f"no {frames.shape[1]} today")

    worker.encode.__dict__["encoder"] = Failing()
    (row,) = written(worker, part(video))
    assert (row["stage"], row["error"]) == ("encode", "ValueError: no 224 today")
    assert [record.error for record in store.quarantine.rows()] == [row["error"]]
