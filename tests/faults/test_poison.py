"""200 bad files and 20 good ones: the job ends by itself, reports all of them, and opens no connection."""

from __future__ import annotations

import contextlib
import os
import signal
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import pytest

from tests.poison import Poison, all_poison, playlist_texts, slowed, write_good
from tests.videos import write_video
from vmr_ray.config import DecodeConfig, EmbedConfig
from vmr_ray.embedding.embed import embed
from vmr_ray.features import FeatureStore
from vmr_ray.schema import Summary
from vmr_ray.video.decode import DecodeError, FrameDecoder

CONFIG = EmbedConfig(decode=DecodeConfig(chunk_frames=4, timeout_s=12))
CRASH, HANG = "bad/crash.mp4", "bad/hang.mp4"


@dataclass
class Watch:
    """What was seen of decoders: which of them had a file of `signals` open, and all their sockets."""

    signals: dict[str, signal.Signals]
    hit: dict[str, set[int]] = field(default_factory=dict)
    decoders: set[int] = field(default_factory=set)
    sockets: set[str] = field(default_factory=set)

    def look(self) -> None:
        for pid in decoders():
            with contextlib.suppress(OSError):
                links = open_files(pid)
                self.decoders.add(pid)
                self.sockets |= {link for link in links if link.startswith("socket:")}
                for path in links & self.signals.keys():
                    os.kill(pid, self.signals[path])
                    self.hit.setdefault(Path(path).name, set()).add(pid)


@dataclass(frozen=True)
class Job:
    """A finished embed of all files, and an earlier one of only the good files."""

    videos: Path
    out: Path
    clean: Path
    good: set[str]
    bad: dict[str, Poison]
    summary: Summary
    watch: Watch
    requests: list[bytes]


def decoders() -> Iterator[int]:
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"\0vmr_ray.video.decode.child\0" in cmdline.read_bytes():
                yield int(cmdline.parent.name)


def open_files(pid: int) -> set[str]:
    links = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.add(str(link.readlink()))
    return links


@contextmanager
def watching(signals: dict[str, signal.Signals]) -> Iterator[Watch]:
    watch, ended = Watch(signals), threading.Event()

    def run() -> None:
        while not ended.wait(0.01):
            watch.look()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()


@contextmanager
def web_server() -> Iterator[tuple[str, list[bytes]]]:
    """Its address, and what every connection asked of it."""
    requests: list[bytes] = []

    class Note(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            requests.append(b"")
            self.request.settimeout(2)
            with contextlib.suppress(OSError):
                requests[-1] = self.request.recv(200)

    with socketserver.TCPServer(("127.0.0.1", 0), Note) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", requests
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def deadline(seconds: int) -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise TimeoutError(f"the job did not end within {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def write_bad(folder: Path, good: list[Path], room: Path, url: str) -> dict[str, Poison]:
    """video_id -> the file. The last two files are good, but their decoders are killed or stopped."""
    folder.mkdir()
    long = write_video(room / "long.mp4", seconds=100, fps=100, gop=250, options={"preset": "ultrafast"})
    accidents = {
        Path(name).stem: Poison("accident", "mp4", long.read_bytes(), frozenset({"decode"}))
        for name in (CRASH, HANG)
    }
    files = all_poison(good, room, url)
    named = {f"{poison.kind}-{i:03}": poison for i, poison in enumerate(files)} | accidents
    for stem, poison in named.items():
        (folder / f"{stem}.{poison.suffix}").write_bytes(poison.data)
    return {f"{folder.name}/{stem}.{poison.suffix}": poison for stem, poison in named.items()}


@pytest.fixture(scope="module")
def job(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    videos, room = tmp_path_factory.mktemp("videos"), tmp_path_factory.mktemp("room")
    out, clean = tmp_path_factory.mktemp("features"), tmp_path_factory.mktemp("clean")
    paths = write_good(videos / "good", 20)
    with deadline(300):
        assert embed([videos], clean, CONFIG).embedded == 20
    with web_server() as (url, requests):
        bad = write_bad(videos / "bad", paths, room, url)
        accidents = {str(videos / CRASH): signal.SIGSEGV, str(videos / HANG): signal.SIGSTOP}
        with watching(accidents) as watch, deadline(600):
            summary = embed([videos], out, CONFIG)
        good = {path.relative_to(videos).as_posix() for path in paths}
        yield Job(videos, out, clean, good, bad, summary, watch, requests)


def chunk_files(store: Path) -> dict[str, Path]:
    return {path.name: path for path in (store / "chunks").rglob("*.parquet")}


def partial_ids(summary: Summary) -> set[str]:
    return {row.video_id for row in summary.partial}


def check_account(job: Job, summary: Summary) -> None:
    """Every video is either in the store or in quarantine, and the summary says the same."""
    store = FeatureStore.open(str(job.out))
    embedded, failed = set(store.video_ids()), [row.video_id for row in summary.quarantined]
    assert summary.videos == summary.skipped + summary.embedded + len(failed) == 220
    assert summary.skipped + summary.embedded == len(embedded)
    assert len(failed) == len(set(failed))
    assert embedded.isdisjoint(failed)
    assert embedded.union(failed) == job.good | job.bad.keys()
    assert store.quarantine.rows() == sorted(summary.quarantined, key=lambda row: row.video_id)


def test_all_are_accounted_for(job: Job) -> None:
    assert (len(job.good), len(job.bad)) == (20, 200)
    check_account(job, job.summary)
    store = FeatureStore.open(str(job.out))
    assert job.good <= set(store.video_ids())
    assert partial_ids(job.summary) == {video.video_id for video in store if video.partial} != set()
    for video in store:
        assert len(video.times) == len(video.features) == len(video.edges) - 1 > 0
        assert np.isfinite(video.features).all() and (np.diff(video.edges) > 0).all()


def test_each_failure_is_explained(job: Job) -> None:
    for row in job.summary.quarantined:
        assert row.stage in {"sniff", "open", "decode"}
        assert row.attempts == (1 if row.stage == "sniff" else CONFIG.max_attempts)
        assert row.error and row.error.isprintable()
    stages = {row.video_id: row.stage for row in job.summary.quarantined}
    hopeless = {video_id: poison.stages for video_id, poison in job.bad.items() if poison.stages}
    assert {poison.kind for poison in job.bad.values() if poison.stages} == {
        "empty",
        "text",
        "playlist",
        "accident",
    }
    assert not {key: stages.get(key) for key, allowed in hopeless.items() if stages.get(key) not in allowed}


def test_a_crash_and_a_hang_cost_one_video_each(job: Job) -> None:
    rows = {row.video_id: row for row in job.summary.quarantined}
    assert "the decoder died with SIGSEGV" in rows[CRASH].error
    assert "no answer from the decoder within 12 s" in rows[HANG].error
    for video_id in (CRASH, HANG):
        assert len(job.watch.hit[Path(video_id).name]) >= rows[video_id].attempts == CONFIG.max_attempts


def test_good_videos_are_the_same_to_the_bit(job: Job) -> None:
    clean, mixed = chunk_files(job.clean), chunk_files(job.out)
    assert len(clean) >= 20
    assert [name for name, path in clean.items() if path.read_bytes() != mixed[name].read_bytes()] == []


def test_no_connection_is_opened(job: Job) -> None:
    assert job.requests == []
    assert len(job.watch.decoders) > 2 * CONFIG.max_attempts
    assert job.watch.sockets == set()


# PyAV's FFmpeg has no demuxer for DASH, and SDP only listens.
@pytest.mark.parametrize(("kind", "demuxer"), [("hls", "hls"), ("master", "hls"), ("concat", "concat")])
def test_a_player_would_call(tmp_path: Path, kind: str, demuxer: str) -> None:
    """The same texts open connections without the decoder's precautions."""
    careless = {"protocol_whitelist": "file,http,tcp,crypto,data", "allowed_extensions": "ALL", "safe": "0"}
    with web_server() as (url, requests):
        path = tmp_path / "a.m3u8"
        path.write_text(playlist_texts(url)[kind])
        with (
            contextlib.suppress(av.FFmpegError),
            av.open(str(path), format=demuxer, options=careless) as found,
        ):
            next(found.demux())
        assert any(kind.encode() in request for request in requests)


def test_again_only_the_bad_are_tried(job: Job) -> None:
    """This time no decoder is killed or stopped."""
    before = {name: path.stat().st_mtime_ns for name, path in chunk_files(job.out).items()}
    finished = {
        Path(path).name for files in FeatureStore.open(str(job.out)).files().values() for path in files
    }
    with deadline(600):
        summary = embed([job.videos], job.out, CONFIG)
    check_account(job, summary)
    assert (summary.skipped, summary.embedded) == (job.summary.embedded, 2)
    failed = {row.video_id for row in job.summary.quarantined}
    assert {row.video_id for row in summary.quarantined} == failed - {CRASH, HANG}
    after = {name: path.stat().st_mtime_ns for name, path in chunk_files(job.out).items()}
    assert {name: before[name] for name in finished} == {name: after[name] for name in finished}
    assert job.requests == []


def test_a_header_alone_makes_no_work(tmp_path: Path) -> None:
    """6 KB that ask for 360,000 frames."""
    video = write_video(tmp_path / "a.mp4", fps=24, muxer={"movflags": "frag_keyframe+empty_moov"})
    video.write_bytes(slowed(video.read_bytes()))
    with (
        FrameDecoder(CONFIG.decode, 64, 48) as decoder,
        pytest.raises(DecodeError, match="96 frames claim to last"),
    ):
        next(decoder.decode(str(video)))
