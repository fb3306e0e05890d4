"""Long videos in parts, progress, metrics, and where URIs may point."""

from __future__ import annotations

import contextlib
import struct
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from tests.videos import write_video
from vmr_ray.config import DecodeConfig, EmbedConfig
from vmr_ray.embedding.embed import embed
from vmr_ray.features import verify


def files_of(store: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (store / "chunks").rglob("*.parquet")}


def pad(path: Path, megabytes: int) -> Path:
    """Make an MP4 as large as a long video is, by a box that players skip."""
    with path.open("ab") as file:
        file.write(struct.pack(">I", (megabytes << 20) + 8) + b"free" + bytes(megabytes << 20))
    return path


@pytest.fixture(scope="module")
def long_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    whole = pad(write_video(folder / "whole.mp4", seconds=90, fps=10, gop=20), 20)
    damaged = bytearray(whole.read_bytes())
    at = damaged.index(b"mdat") + 6 * (len(damaged) - (20 << 20)) // 10
    damaged[at : at + 3000] = bytes(3000)
    (folder / "damaged.mp4").write_bytes(damaged)
    return folder


def test_a_divided_video_is_the_undivided_one(cluster, long_videos: Path, tmp_path: Path) -> None:
    decode = DecodeConfig(chunk_frames=8)
    now = []
    parts = EmbedConfig(decode=decode, split_minutes=0.3)
    divided = embed([long_videos], tmp_path / "divided", parts, now.append)
    whole = embed([long_videos], tmp_path / "whole", EmbedConfig(decode=decode))
    assert files_of(tmp_path / "divided") == files_of(tmp_path / "whole")
    assert not verify(str(tmp_path / "divided")).problems
    for summary in (divided, whole):
        assert (summary.embedded, summary.quarantined) == (2, [])
        assert [row.video_id for row in summary.partial] == ["damaged.mp4"]
    assert (divided.frames, divided.hours) == (whole.frames, pytest.approx(whole.hours))
    # All of the one, and of the other what lies before and behind the damage.
    assert 160 / 3600 < whole.hours < 181 / 3600
    assert [n.done for n in now] == sorted(n.done for n in now) and now[-1].done == 2
    assert now[-1].seconds_left == pytest.approx(0, abs=0.1)


def test_parts_go_to_several_workers(cluster, tmp_path: Path) -> None:
    """Watched from outside: which decoders have the file open. In one GOP, so that a part takes seconds."""
    options = {"preset": "ultrafast"}
    made = write_video(tmp_path / "a.mp4", 90, 10, (1280, 720), gop=10**6, b_frames=0, options=options)
    video, at_once, ended = str(pad(made, 20)), [], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            open_in = set()
            for fd in Path("/proc").glob("[0-9]*/fd/*"):
                with contextlib.suppress(OSError):
                    if str(fd.readlink()) == video:
                        open_in.add(fd.parts[2])
            at_once.append(len(open_in))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        config = EmbedConfig(decode=DecodeConfig(chunk_frames=8), split_minutes=0.3)
        assert embed([video], tmp_path / "features", config).embedded == 1
    finally:
        ended.set()
        watcher.join()
    assert max(at_once) == 2


def test_metrics_reach_prometheus(cluster, features: Path) -> None:
    """What the fixture's run counted, read from the endpoint of this node over HTTP."""
    import ray

    (node,) = [n for n in ray.nodes() if n["Alive"]]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = "ray_vmr_embed_videos_total{"
    for _ in range(60):
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        found = [line for line in text.splitlines() if line.startswith("ray_vmr_embed_")]
        embedded = [
            float(line.split()[-1]) for line in found if line.startswith(wanted) and "embedded" in line
        ]
        if sum(embedded) >= 9:
            break
        time.sleep(0.5)
    assert sum(embedded) >= 9, found
    for name in ("frames_total", "video_seconds_total", "videos_left", "eta_seconds"):
        assert any(line.startswith(f"ray_vmr_embed_{name}{{") for line in found), name
