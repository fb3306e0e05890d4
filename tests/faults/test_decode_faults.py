"""Real crashes, hangs and damage. No faults are built into the decoder: the child is killed from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.videos import read_index, write_video
from vmr_ray.config import DecodeConfig
from vmr_ray.video.decode import DecodeError, FrameDecoder


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Five minutes, so that the decoder is still busy when a test interferes."""
    return str(write_video(tmp_path_factory.mktemp("videos") / "long.mp4", seconds=300, gop=250))


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_video(tmp_path_factory.mktemp("videos") / "short.mp4", seconds=2))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(pid: int, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def works(decoder: FrameDecoder, path: str) -> bool:
    return [read_index(frame) for chunk in decoder.decode(path) for frame in chunk.frames][:2] == [0, 25]


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a_crash_costs_one_video(video: str, short: str, number: signal.Signals) -> None:
    with FrameDecoder(DecodeConfig(chunk_frames=4), 64, 48) as decoder:
        chunks = decoder.decode(video)
        next(chunks)
        first = decoder.pid
        assert first is not None
        os.kill(first, number)
        with pytest.raises(DecodeError, match=f"the decoder died with {number.name}") as caught:
            list(chunks)
        assert caught.value.stage == "decode"
        assert works(decoder, short)
        assert decoder.pid != first


def test_a_hang_is_ended(video: str, short: str) -> None:
    with FrameDecoder(DecodeConfig(chunk_frames=4, timeout_s=10), 64, 48) as decoder:
        assert works(decoder, short)
        decoder._timeout = 0.5
        chunks = decoder.decode(video)
        next(chunks)
        first = decoder.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(DecodeError, match=r"no answer from the decoder within 0\.5 s"):
            list(chunks)
        assert gone(first)
        decoder._timeout = 10
        assert works(decoder, short)


def test_a_child_that_died_idle_is_replaced(short: str) -> None:
    with FrameDecoder(DecodeConfig(), 64, 48) as decoder:
        assert works(decoder, short)
        first = decoder.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
        assert works(decoder, short)
        assert decoder.pid != first


def test_too_little_memory_is_an_error_of_one_video(short: str) -> None:
    with (
        FrameDecoder(DecodeConfig(memory_gb=1.5, sampling="every=1"), 20_000, 20_000) as decoder,
        pytest.raises(DecodeError) as caught,
    ):
        list(decoder.decode(short))
    assert caught.value.stage == "decode"
    assert "\n" not in str(caught.value)


def test_close_ends_the_child(video: str) -> None:
    decoder = FrameDecoder(DecodeConfig(chunk_frames=4), 64, 48)
    chunks = decoder.decode(video)
    next(chunks)
    pid = decoder.pid
    assert pid is not None
    decoder.close()
    assert gone(pid)
    assert decoder.pid is None


@pytest.mark.parametrize("sampling", ["fps=1", "every=1"])
def test_the_child_dies_with_its_parent(video: str, sampling: str) -> None:
    code = (
        "import sys, time\n"
        "from vmr_ray.config import DecodeConfig\n"
        "from vmr_ray.video.decode import FrameDecoder\n"
        f"decoder = FrameDecoder(DecodeConfig(chunk_frames=4, sampling={sampling!r}), 64, 48)\n"
        f"chunks = decoder.decode({video!r})\n"
        "next(chunks)\n"
        "print(decoder.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
        parent.wait()
    assert gone(child)


def test_garbage_behind_a_video_header(tmp_path: Path, short: str) -> None:
    noise = np.random.default_rng(0).bytes(50_000)
    heads = {
        "a.mp4": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2",
        "a.mkv": b"\x1a\x45\xdf\xa3",
        "a.avi": b"RIFF\0\0\1\0AVI LIST",
        "a.flv": b"FLV\1\1\0\0\0\t\0\0\0\0",
    }
    with FrameDecoder(DecodeConfig(timeout_s=20), 64, 48) as decoder:
        for name, head in heads.items():
            (tmp_path / name).write_bytes(head + noise)
            with pytest.raises(DecodeError, match=name) as caught:
                list(decoder.decode(str(tmp_path / name)))
            assert caught.value.stage in ("open", "decode")
            assert "\n" not in str(caught.value)
        assert works(decoder, short)


def test_flipped_bytes_give_frames_or_an_error(
    tmp_path: Path, short: str, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = bytearray(Path(write_video(tmp_path / "a.mp4", seconds=8, gop=50)).read_bytes())
    rng = np.random.default_rng(0)
    outcomes = set()
    with FrameDecoder(DecodeConfig(timeout_s=20, chunk_frames=3), 64, 48) as decoder:
        for number in range(30):
            damaged = bytearray(whole)
            for place in rng.integers(40, len(whole), 20):
                damaged[place] ^= int(rng.integers(1, 256))
            path = tmp_path / f"{number}.mp4"
            path.write_bytes(damaged)
            try:
                chunks = list(decoder.decode(str(path)))
            except DecodeError as error:
                outcomes.add(error.stage)
                continue
            outcomes.add("frames")
            assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
            for chunk in chunks:
                assert len(chunk.frames) == len(chunk.times) == len(chunk.edges) - 1 > 0
        assert works(decoder, short)
    assert {"frames", "open"} <= outcomes
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("sampling", "gop"), [("fps=1", 40), ("fps=1", 10**6), ("every=5", 40)])
def test_memory_stays_flat(tmp_path: Path, sampling: str, gop: int) -> None:
    """10 minutes at 10 frames a second: 1.2 GB of frames at this size, if they were kept."""
    path = write_video(
        tmp_path / "a.mp4", seconds=600, fps=10, gop=gop, options={"preset": "ultrafast"}, size=(32, 32)
    )
    with FrameDecoder(DecodeConfig(sampling=sampling, chunk_frames=16), 264, 264) as decoder:
        count, peak = 0, []
        for chunk in decoder.decode(str(path)):
            count += len(chunk.frames)
            status = Path(f"/proc/{decoder.pid}/status").read_text()
            peak.append(int(status.partition("VmHWM:")[2].split()[0]) / 1024)
    assert count == (600 if sampling == "fps=1" else 1200)
    assert peak[-1] < 400
    assert peak[-1] - peak[len(peak) // 4] < 40


def test_the_child_has_no_network(short: str) -> None:
    with FrameDecoder(DecodeConfig(), 64, 48) as decoder:
        assert works(decoder, short)
        if Path(f"/proc/{decoder.pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
            pytest.skip("this system lets no process make a network namespace")
        interfaces = Path(f"/proc/{decoder.pid}/net/dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
        routes = Path(f"/proc/{decoder.pid}/net/route").read_text().splitlines()[1:]
        assert not routes
