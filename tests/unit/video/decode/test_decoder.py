from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import vmr_ray
from tests.reported import KINDS
from tests.videos import index_frame, read_index, write_video
from vmr_ray.config import DecodeConfig
from vmr_ray.video.decode import DecodedChunk, DecodeError, FrameDecoder
from vmr_ray.video.decode.decord_reader import decord_fits
from vmr_ray.video.decode.frame_index import read_index as index_video
from vmr_ray.video.decode.reader import read_frames
from vmr_ray.video.decode.sampling import Sampling
from vmr_ray.video.decode.sniff import container

WIDTH, HEIGHT = 64, 48


@pytest.fixture(scope="module")
def decoders() -> Iterator[dict[str, FrameDecoder]]:
    """One decoder, and so one child process, a sampling."""
    made: dict[str, FrameDecoder] = {}
    yield made
    for decoder in made.values():
        decoder.close()


@pytest.fixture
def decode(decoders: dict[str, FrameDecoder]):
    def run(path: Path, sampling: str = "fps=1", chunk_frames: int = 128) -> list[DecodedChunk]:
        key = f"{sampling} {chunk_frames}"
        if key not in decoders:
            config = DecodeConfig(sampling=sampling, chunk_frames=chunk_frames)
            decoders[key] = FrameDecoder(config, WIDTH, HEIGHT)
        return list(decoders[key].decode(str(path)))

    return run


def indices(chunks: list[DecodedChunk]) -> list[int]:
    return [read_index(frame) for chunk in chunks for frame in chunk.frames]


@pytest.mark.parametrize("fps", [10, 25, Fraction(30000, 1001)], ids=str)
def test_right_frames_at_right_times(tmp_path: Path, decode, fps: Fraction) -> None:
    path = write_video(tmp_path / "a.mp4", seconds=6, fps=fps)
    for sampling, rate in (("fps=1", 1.0), ("fps=2", 2.0), ("fps=0.5", 0.5)):
        (chunk,) = decode(path, sampling)
        assert chunk.frames.shape == (round(6 * rate), HEIGHT, WIDTH, 3)
        assert chunk.frames.dtype == np.uint8
        expected = np.floor((np.arange(round(6 * rate)) / rate + 0.017) * float(fps) + 1e-4)
        assert indices([chunk]) == expected.tolist()
        np.testing.assert_allclose(chunk.times, expected / float(fps), atol=1e-4)
        assert chunk.duration == pytest.approx(6, abs=0.01)
        assert (chunk.index, chunk.last, chunk.damage) == (0, True, "")


@pytest.mark.parametrize("extra", [{}, {"x264-params": "open-gop=1"}], ids=["closed", "open"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "ts", "avi", "flv"])
def test_containers_and_gops(tmp_path: Path, decode, suffix: str, extra: dict[str, str]) -> None:
    frames = 0 if suffix == "avi" else 2
    path = write_video(tmp_path / f"a.{suffix}", seconds=4, gop=10, b_frames=frames, options=extra)
    (chunk,) = decode(path)
    assert indices([chunk]) == [0, 25, 50, 75]
    assert not chunk.damage
    assert indices(decode(path, "keyframes")) == list(range(0, 100, 10))
    assert indices(decode(path, "every=1")) == list(range(100))


def test_key_frames_closer_than_the_reordering(tmp_path: Path, decode) -> None:
    path = write_video(tmp_path / "a.mp4", seconds=2, gop=2, b_frames=1)
    assert indices(decode(path)) == [0, 25]
    assert indices(decode(path, "every=1")) == list(range(50))


def test_variable_frame_rate(tmp_path: Path, decode) -> None:
    times = np.cumsum(np.random.default_rng(0).uniform(0.02, 0.6, 40)).round(3)
    path = write_video(tmp_path / "a.mp4", times=times)
    (chunk,) = decode(path)
    instants = times[0] + np.arange(len(chunk.times))
    expected = np.searchsorted(times, instants + 0.017, side="right") - 1
    assert indices([chunk]) == expected.tolist()
    np.testing.assert_allclose(chunk.times, times[expected] - times[0], atol=1e-3)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_times_count_from_the_files_beginning(tmp_path: Path, decode, suffix: str) -> None:
    (chunk,) = decode(write_video(tmp_path / f"a.{suffix}", seconds=3, start=7.5))
    np.testing.assert_allclose(chunk.edges, [0, 0.5, 1.5, 3], atol=0.01)
    np.testing.assert_allclose(chunk.times, [0, 1, 2], atol=0.01)
    assert indices([chunk]) == [0, 25, 50]
    assert chunk.duration == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("suffix", ["mp4", "ts"])
def test_pictures_that_begin_after_the_sound(tmp_path: Path, decode, suffix: str) -> None:
    path = write_video(tmp_path / f"a.{suffix}", seconds=3, start=1.2, sound=4.2)
    (chunk,) = decode(path)
    np.testing.assert_allclose(chunk.times, [1.2, 2.2, 3.2], atol=0.05)
    assert indices([chunk]) == [0, 25, 50]


def test_edit_list_hides_the_first_frames(tmp_path: Path, decode) -> None:
    path = write_video(tmp_path / "a.mp4", seconds=4, gop=50, start=-0.52)
    (chunk,) = decode(path)
    assert indices([chunk]) == [13, 38, 63, 88]
    np.testing.assert_allclose(chunk.edges, [0, 0.5, 1.5, 2.5, 3.48], atol=1e-3)
    assert indices(decode(path, "keyframes")) == [50]
    whole_in_one_gop = write_video(tmp_path / "b.mp4", seconds=4, gop=500, start=-0.52)
    assert indices(decode(whole_in_one_gop, "keyframes")) == [13]


@pytest.mark.parametrize("sampling", ["every=40", "keyframes"])
@pytest.mark.parametrize("angle", [90, 180, 270])
def test_rotation(tmp_path: Path, decode, angle: int, sampling: str) -> None:
    # decord reads `every=40` of this file and PyAV its key frames: both stand upright.
    path = write_video(tmp_path / "a.mp4", seconds=4, gop=40, b_frames=0, rotation=angle)
    (chunk,) = decode(path, sampling)
    assert chunk.frames.shape == (3, HEIGHT, WIDTH, 3)
    for number, frame in zip((0, 40, 80), chunk.frames, strict=True):
        upright = index_frame(number, 64, 64)
        turned = np.rot90(upright, angle // 90)
        assert read_index(frame) == read_index(turned)


def test_chunks_do_not_change_anything(tmp_path: Path, decode) -> None:
    path = write_video(tmp_path / "a.mp4", seconds=20, fps=10, gop=10)
    (whole,) = decode(path)
    parts = decode(path, chunk_frames=6)
    assert [len(part.frames) for part in parts] == [6, 6, 6, 2]
    assert [part.index for part in parts] == [0, 1, 2, 3]
    assert [part.last for part in parts] == [False, False, False, True]
    assert all(part.duration == whole.duration for part in parts)
    np.testing.assert_array_equal(np.concatenate([part.frames for part in parts]), whole.frames)
    np.testing.assert_array_equal(np.concatenate([part.times for part in parts]), whole.times)
    for number, part in enumerate(parts):
        np.testing.assert_array_equal(part.edges, whole.edges[6 * number : 6 * number + len(part.times) + 1])


@pytest.mark.parametrize("sampling", ["fps=1", "keyframes", "every=5"])
@pytest.mark.parametrize("suffix", ["mp4", "ts"])
@pytest.mark.parametrize("b_frames", [0, 2])
def test_parts_are_the_undivided_video(tmp_path: Path, sampling: str, suffix: str, b_frames: int) -> None:
    path = str(write_video(tmp_path / f"a.{suffix}", seconds=30, fps=10, gop=20, b_frames=b_frames))
    with FrameDecoder(DecodeConfig(sampling=sampling, chunk_frames=4), WIDTH, HEIGHT) as decoder:
        assert decoder.duration(path) == pytest.approx(30, abs=0.2)
        whole = list(decoder.decode(path))
        for parts in (2, 3, 50):
            # The last part first: a part needs none of the others.
            chunks = [c for part in reversed(range(parts)) for c in decoder.decode(path, part, parts)]
            chunks.sort(key=lambda chunk: chunk.index)
            assert [(c.index, c.last, c.duration) for c in chunks] == [
                (c.index, c.last, c.duration) for c in whole
            ]
            for one, other in zip(chunks, whole, strict=True):
                np.testing.assert_array_equal(one.frames, other.frames)
                np.testing.assert_array_equal(one.times, other.times)
                np.testing.assert_array_equal(one.edges, other.edges)


def test_damage_in_a_part_asks_for_the_whole(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", seconds=40, gop=50, muxer={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    at = len(data) * 2 // 3
    data[at : at + 400] = bytes(400)
    path.write_bytes(data)
    with FrameDecoder(DecodeConfig(chunk_frames=4), WIDTH, HEIGHT) as decoder:
        assert len(list(decoder.decode(str(path), 0, 2))) == 5
        with pytest.raises(DecodeError, match="is damaged or missing") as caught:
            list(decoder.decode(str(path), 1, 2))
        assert caught.value.stage == "divided"
        chunks = list(decoder.decode(str(path)))
    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].damage.startswith("the frame at ")
    found = indices(chunks)
    assert found[:20] == [25 * i for i in range(20)], "what lies before the damage"
    assert found[-5:] == [25 * i for i in range(35, 40)], "what lies behind it"
    for one, other in itertools.pairwise(chunks):
        assert one.edges[-1] == other.edges[0]
    assert (chunks[0].edges[0], chunks[-1].edges[-1]) == (0, pytest.approx(40))


@pytest.mark.parametrize(
    "options", [{}, {"x264-params": "open-gop=1:ref=5"}, {"intra-refresh": "1"}], ids=str
)
def test_frames_that_no_other_needs_are_skipped_without_a_trace(tmp_path: Path, options) -> None:
    path = str(write_video(tmp_path / "a.mp4", seconds=12, gop=50, b_frames=3, options=options))
    index = index_video(path)
    assert index.skippable
    for sampling in (Sampling.parse("fps=1"), Sampling.parse("every=7")):
        plan = sampling.plan(index.starts, index.ends, index.keys)
        skipping, decoding_all = (
            [*read_frames(i, sampling, plan, WIDTH, HEIGHT, 99, 1, (0, 1))]
            for i in (index, replace(index, skippable=False, closed=False))
        )
        ((places, frames, damage),) = skipping
        assert places.tolist() == list(range(len(plan.indices))) and not damage
        np.testing.assert_array_equal(frames, decoding_all[0][1])
        assert [read_index(frame) for frame in frames] == plan.indices.tolist()


def test_decord_and_pyav_see_the_same(tmp_path: Path) -> None:
    index = index_video(str(write_video(tmp_path / "a.mp4", seconds=12, gop=50, b_frames=0)))
    sampling = Sampling.parse("fps=1")
    plan = sampling.plan(index.starts, index.ends, index.keys)
    assert decord_fits(index, plan, 99)
    (decord,), (pyav,) = (
        [frames for _, frames, _ in read_frames(i, sampling, plan, WIDTH, HEIGHT, 99, 1, (0, 1))]
        for i in (index, replace(index, closed=False))
    )
    assert np.abs(decord.astype(int) - pyav).mean() < 3


def test_exact_multiple_of_the_chunk(tmp_path: Path, decode) -> None:
    parts = decode(write_video(tmp_path / "a.mp4", seconds=12, fps=10), chunk_frames=6)
    assert [(len(part.frames), part.last) for part in parts] == [(6, False), (6, True)]


@pytest.mark.parametrize("sampling", ["fps=1", "every=1", "keyframes"])
def test_one_frame(tmp_path: Path, decode, sampling: str) -> None:
    (chunk,) = decode(write_video(tmp_path / "a.mp4", times=[0.0]), sampling)
    assert indices([chunk]) == [0]
    assert chunk.last
    assert chunk.duration > 0


def test_fewer_frames_than_samples(tmp_path: Path, decode) -> None:
    slow = write_video(tmp_path / "a.mp4", seconds=12, fps=0.25)
    assert indices(decode(slow)) == [i // 4 for i in range(12)]


@pytest.mark.parametrize("kind", ["clock_restarts.ts", "clock_jumps.ts", "spliced.mpg"])
def test_a_spliced_stream_is_not_damaged(tmp_path: Path, decode, kind: str) -> None:
    chunks = decode(KINDS[kind](tmp_path / kind), "every=10", chunk_frames=4)
    assert indices(chunks) == [*range(0, 50, 10), *range(0, 50, 10)]
    np.testing.assert_allclose(np.concatenate([chunk.times for chunk in chunks]), np.arange(10) * 0.4)
    for chunk in chunks:
        assert chunk.splices == pytest.approx([2.0]) and not chunk.damage


def test_a_stream_without_splices(tmp_path: Path, decode) -> None:
    for kind in ("long_gops.ts", "late.mp4", "late.mkv", "trimmed.mp4", "hidden_start.mp4", "cut_packet.ts"):
        (chunk,) = decode(KINDS[kind](tmp_path / kind))
        assert len(chunk.splices) == 0 and not chunk.damage, kind


def test_cut_file_gives_what_is_left(tmp_path: Path, decode) -> None:
    for suffix, options in (("mp4", {"movflags": "faststart"}), ("mkv", {})):
        whole = write_video(tmp_path / f"a.{suffix}", seconds=30, gop=25, muxer=options)
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        chunks = decode(cut)
        found = indices(chunks)
        assert 5 < len(found) < 30
        assert chunks[-1].last
        assert ("it ends at" if suffix == "mkv" else "frames that it declares") in chunks[-1].damage
        assert found[:-1] == [25 * i for i in range(len(found) - 1)]


def test_index_counts_before_decoding(tmp_path: Path) -> None:
    index = index_video(str(write_video(tmp_path / "a.mp4", seconds=4, gop=10)))
    assert index.keys.tolist() == list(range(0, 100, 10))
    np.testing.assert_allclose(index.starts, np.arange(100) / 25)
    np.testing.assert_allclose(index.ends, np.arange(1, 101) / 25)
    assert index.closed
    assert not index.damage


REFUSED = {
    "empty.mp4": b"",
    "notes.mp4": b"this is no video\n" * 100,
    "list.m3u8": b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:9,\nhttp://localhost/a.ts\n",
    "list.ffconcat": b"ffconcat version 1.0\nfile a.mp4\n",
    "session.sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "manifest.mpd": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_is_no_video(tmp_path: Path, decode, name: str) -> None:
    (tmp_path / name).write_bytes(REFUSED[name])
    with pytest.raises(DecodeError, match=name) as caught:
        decode(tmp_path / name)
    assert caught.value.stage == "sniff"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "uri", ["http://localhost:1/a.mp4", "concat:a.mp4|b.mp4", "pipe:0", "/dev/zero", "/", "a\0b"]
)
def test_refuses_what_is_no_local_file(decode, uri: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(uri)
    assert caught.value.stage == "sniff"


def test_local_file_with_the_name_of_a_protocol(
    tmp_path: Path, decode, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", seconds=2)
    path.rename(tmp_path / "concat:a.mp4")
    assert indices(decode(tmp_path / "concat:a.mp4")) == [0, 25]


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm", "avi", "ts", "flv", "mpg", "asf", "ogg"])
def test_sniffs_known_containers(tmp_path: Path, suffix: str) -> None:
    codec = {"webm": "libvpx", "ogg": "libvpx"}.get(suffix, "libx264")
    name = "ogv" if suffix == "ogg" else suffix
    path = write_video(tmp_path / f"a.{name}", seconds=0.4, b_frames=0, codec=codec)
    assert container(path.read_bytes()[:768]) is not None


def test_error_survives_a_pickle() -> None:
    error = pickle.loads(pickle.dumps(DecodeError("open", "no video stream")))
    assert (error.stage, error.message, str(error)) == ("open", "no video stream", "no video stream")


def test_leaving_early_and_coming_back(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4", seconds=20, fps=10))
    with FrameDecoder(DecodeConfig(chunk_frames=2), WIDTH, HEIGHT) as decoder:
        for chunk in decoder.decode(path):
            assert not chunk.last
            break
        assert len(indices(list(decoder.decode(path)))) == 20


def test_script_without_a_main_guard(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", seconds=2)
    script = tmp_path / "script.py"
    script.write_text(
        "from vmr_ray.config import DecodeConfig\n"
        "from vmr_ray.video.decode import FrameDecoder\n"
        f"for chunk in FrameDecoder(DecodeConfig(), 32, 32).decode({str(path)!r}):\n"
        "    print(chunk.frames.shape, chunk.last)\n"
    )
    root = str(Path(__file__).parents[4])
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("(2, 32, 32, 3) True\n", "")


def test_the_child_imports_its_parents_package(tmp_path: Path) -> None:
    """Even if only the parent's sys.path leads to it."""
    path = write_video(tmp_path / "a.mp4", seconds=2)
    with FrameDecoder(DecodeConfig(), WIDTH, HEIGHT) as decoder:
        assert decoder.duration(str(path)) == pytest.approx(2, abs=0.1)
        variables = Path(f"/proc/{decoder.pid}/environ").read_bytes().decode().split("\0")
    (paths,) = (value.partition("=")[2] for value in variables if value.startswith("PYTHONPATH="))
    assert Path(paths.split(":")[0]) == Path(vmr_ray.__file__).parents[1]


def test_child_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'ray', 'pydantic', 'pyarrow'}"
    code = f"import sys, vmr_ray.video.decode.reader; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"
