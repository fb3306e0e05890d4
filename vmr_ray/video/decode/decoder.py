"""FrameDecoder: sampled frames of video files, decoded in a child process of its own.

Native decoders crash, hang and eat memory on bad files. Here that costs one video and 0.3 s.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vmr_ray.config import DecodeConfig


class DecodeError(Exception):
    """A video that cannot be decoded.

    `stage` is "sniff", "open", "decode" or "divided"; `message` one sentence.
    """

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(stage, message)
        self.stage = stage
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass
class Chunk:
    """Consecutive sampled frames of one video. Times are presentation timestamps, in seconds.

    They count from the file's beginning, as players do. A video stream may begin later than that (than
    the sound, say): the first edge of the first chunk is the first frame's timestamp.

    Attributes:
        index: 0, 1, 2 ... within the video.
        last: no chunk follows.
        frames: uint8 [n, height, width, 3], RGB, upright.
        times: float64 [n], timestamps of the frames.
        edges: float64 [n + 1], frame i stands for `[edges[i], edges[i + 1])`.
        duration: seconds from the first frame's start to the last one's end, of the whole video.
        damage: what is known to be damaged or missing in the file, in words, or empty; a video is
            partial if any of its chunks is damaged.
    """

    index: int
    last: bool
    frames: NDArray[np.uint8]
    times: NDArray[np.float64]
    edges: NDArray[np.float64]
    duration: float
    damage: str


class FrameDecoder:
    """Decodes one video at a time to `width` x `height`; a context manager.

    The child process starts with the first video and serves all that follow. It ends with
    `close()`, or with the process that owns the decoder, however that ends.
    """

    def __init__(self, config: DecodeConfig, width: int, height: int) -> None:
        self._timeout = config.timeout_s
        self._memory_gb = config.memory_gb
        self._shape = (height, width, 3)
        self._options = json.dumps(
            {
                "sampling": config.sampling,
                "chunk_frames": config.chunk_frames,
                "memory_gb": config.memory_gb,
                "threads": config.threads,
                "width": width,
                "height": height,
            }
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        return self._process.pid if self._process else None

    def __enter__(self) -> FrameDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child process. A later `decode` starts a new one."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        self._stderr.close()
        self._process = None

    def decode(self, path: str, part: int = 0, parts: int = 1) -> Iterator[Chunk]:
        """Stream the sampled frames of a local video file, at most `chunk_frames` at a time.

        The chunks of all `parts` together are those of the undivided video. A file that is known to be
        damaged, or cannot be entered at every key frame, comes in part 0 alone.

        Raises:
            DecodeError: not a video ("sniff"), not readable ("open"), or no frame of it can be
                decoded, or the child died or took longer than `timeout_s` for a chunk ("decode"), or
                a part turned out to be damaged, so that only the undivided video tells what is left
                of it ("divided").
                Chunks may have come before it. The decoder can be used again at once.
        """
        held: Chunk | None = None
        for message, frames in self._ask(path, part, parts):
            if held is not None:
                # Only what follows a chunk tells whether it was the last.
                end = "end" in message
                last, damage = end and message["last"], message["damage"] if end else ""
                yield replace(held, last=last, damage=held.damage or damage)
            if "n" in message:
                held = Chunk(
                    index=message["index"],
                    last=False,
                    frames=frames,
                    times=np.array(message["times"], np.float64),
                    edges=np.array(message["edges"], np.float64),
                    duration=message["duration"],
                    damage=message["damage"],
                )

    def duration(self, path: str) -> float:
        """Seconds that a local video file declares, 0 if it does not tell; raises as `decode` does."""
        return float([message["duration"] for message, _ in self._ask(path, 0, 0)][-1])

    def _ask(self, path: str, part: int, parts: int) -> Iterator[tuple[dict[str, Any], NDArray[np.uint8]]]:
        finished = False
        try:
            self._request({"path": path, "part": part, "parts": parts})
            while not finished:
                message, frames = self._receive()
                finished = "error" in message or "end" in message
                if "error" in message:
                    raise DecodeError(message["stage"], message["error"])
                yield message, frames
        except TimeoutError:
            reason = f"{path}: no answer from the decoder within {self._timeout:g} s (decode.timeout_s)"
            raise DecodeError("decode", reason) from None
        except (EOFError, BrokenPipeError):
            raise DecodeError("decode", f"{path}: {self._obituary()}") from None
        finally:
            if not finished:
                self.close()

    def _request(self, request: dict[str, Any]) -> None:
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            root = str(Path(__file__).parents[2])
            paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
            # In append mode, so that the child can empty it between videos.
            self._stderr = tempfile.TemporaryFile("a+b")  # noqa: SIM115
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "vmr_ray.video.decode.child", self._options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                bufsize=0,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(paths),
                    # Tries at the end of a damaged file; the library's 10,240 take minutes.
                    "DECORD_EOF_RETRY_MAX": "128",
                },
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")

    def _receive(self) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        deadline = time.monotonic() + self._timeout
        size = bytearray(4)
        self._read(memoryview(size), deadline)
        header = bytearray(struct.unpack(">I", size)[0])
        self._read(memoryview(header), deadline)
        message = json.loads(header)
        frames = np.empty((message.get("n", 0), *self._shape), np.uint8)
        self._read(frames.reshape(-1).data, deadline)
        return message, frames

    def _read(self, view: memoryview, deadline: float) -> None:
        assert self._process is not None and self._process.stdout is not None
        stream = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(stream, select.POLLIN)
        while len(view):
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
            count = os.readv(stream, [view])
            if not count:
                raise EOFError
            view = view[count:]

    def _obituary(self) -> str:
        """How the child died: its signal or exit code and the last line it wrote."""
        assert self._process is not None
        code = self._process.wait()
        cause = (
            f"the decoder died with {signal.Signals(-code).name}"
            if code < 0
            else f"the decoder exited with {code}"
        )
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").split("\n")
        last = next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")
        return f"{cause} ({last[:200]})" if last else cause
