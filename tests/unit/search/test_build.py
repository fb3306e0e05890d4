"""What building an index decides and copies before any work is done: no Ray."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.builders import SPEC, VIDEOS, write_features
from vmr_ray.config import ModelConfig
from vmr_ray.errors import VmrError
from vmr_ray.features import FeatureStore
from vmr_ray.model.checkpoint import CheckpointInfo, load_network, save_checkpoint
from vmr_ray.model.windows import Window
from vmr_ray.search.build import _jobs, copy_checkpoint, segments
from vmr_ray.search.tables import VIDEO_SCHEMA, IndexTables


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, CheckpointInfo]:
    info = CheckpointInfo(
        model=ModelConfig(dim=8, heads=2, video_layers=1, cross_layers=1),
        frame_encoder="x",
        frame_dim=4,
        sampling="fps=1",
        text_encoder="y",
        token_dim=4,
    )
    path = tmp_path / "checkpoint"
    return path, save_checkpoint(path, info.network().state_dict(), info)


@pytest.mark.parametrize(
    "left",
    [
        {},
        {"model.safetensors.0123456789abcdef0123456789abcdef.part": 100},
        {"model.safetensors": 100},
        {"model.safetensors": None},
        {"model.safetensors": None, "checkpoint.json.0123456789abcdef0123456789abcdef.part": 10},
    ],
    ids=["nothing", "part of the weights", "damaged weights", "weights", "weights and part of the JSON"],
)
def test_an_interrupted_copy_is_completed(
    checkpoint: tuple[Path, CheckpointInfo], tmp_path: Path, left: dict[str, int | None]
):
    """`left`: the files of the interrupted copy, and how many bytes of them had been written."""
    source, info = checkpoint
    copy = tmp_path / "index" / "checkpoint"
    copy.mkdir(parents=True)
    for name, size in left.items():
        original = source / ("checkpoint.json" if "json" in name else "model.safetensors")
        (copy / name).write_bytes(original.read_bytes()[:size])
    copy_checkpoint(source, info, str(copy.parent))
    assert load_network(copy)[1] == info


def test_another_checkpoint_is_refused(checkpoint: tuple[Path, CheckpointInfo], tmp_path: Path):
    source, info = checkpoint
    copy_checkpoint(source, info, str(tmp_path / "index"))
    shutil.rmtree(source)
    copy_checkpoint(source, info, str(tmp_path / "index"))  # it is not needed any more
    with pytest.raises(VmrError, match="made with another checkpoint"):
        copy_checkpoint(source, info.model_copy(update={"version": "other"}), str(tmp_path / "index"))


def test_new_and_changed_videos_are_indexed(tmp_path: Path):
    store = FeatureStore.create(str(tmp_path / "features"), SPEC)
    tables = IndexTables.create(str(tmp_path / "index"), 4)
    with pytest.raises(VmrError, match="holds no finished video"):
        _jobs(store, tables, None, {})
    a, b, c = (video.video_id for video in VIDEOS)
    for video in VIDEOS:
        write_features(store, video, [3])
    assert set(_jobs(store, tables, None, {})) == {a, b, c}
    version = store.version(store.files()[a])
    row = {"video_id": a, "uri": "/a", "version": version, "metadata": '{"year": 1}', "duration": 3.0}
    other = row | {"video_id": b, "version": "00000000", "metadata": "{}"}
    tables.videos.add(pa.Table.from_pylist([row, other], VIDEO_SCHEMA))
    assert set(_jobs(store, tables, None, {})) == {b, c}
    assert set(_jobs(store, tables, None, {a: {"year": 1}})) == {b, c}
    jobs = _jobs(store, tables, None, {a: {"year": 2}})
    assert {video: job.metadata for video, job in jobs.items()} == {a: '{"year": 2}', b: "{}", c: "{}"}
    # The windows of one file with other metadata have another version, so that both may exist for a moment.
    versions = {name: store.version(store.files()[name]) for name in (a, b, c)}
    assert {video: job.version for video, job in jobs.items()} == versions | {a: f"{version}.1"}
    with pytest.raises(VmrError, match="metadata names the video 'none'"):
        _jobs(store, tables, None, {"none": {}})
    tables.delete_videos([b])
    assert set(_jobs(store, tables, None, {})) == {c}
    assert set(_jobs(store, tables, [b, "none"], {})) == {b}


def test_segments_cover_the_core_and_are_unit_vectors():
    vectors = np.eye(6, dtype=np.float16)
    window = Window("v", 0, np.arange(7.0), np.zeros((6, 6), np.float16), (0, 6), vectors)
    starts, ends, means = segments(window, 4)
    assert (starts.tolist(), ends.tolist()) == ([0.0, 2.0], [4.0, 6.0])
    np.testing.assert_allclose(means, np.array([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]]) / 2)
    half = Window("v", 0, window.edges, window.states, (0, 3), vectors)
    assert segments(half, 4)[0].tolist() == [0.0], "the other one's middle is in the next window's core"
