"""FrameDecoder: sampled frames of video files, decoded in a child process of its own.

Native decoders crash, hang and use up the memory on bad files. Here that costs one video and 0.3 s.
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
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vmr_ray.schema import Chunk, Scaling

if TYPE_CHECKING:
    from vmr_ray.config import DecodeConfig


class DecodeError(Exception):
    """A video that cannot be decoded.

    `stage` is "sniff", "open", "decode" or "divided"; `message` is one sentence.
    """

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(stage, message)
        self.stage = stage
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class DecodedChunk(Chunk):
    """A chunk and its pixels.

    Attributes:
        frames: uint8 [n, height, width, 3], RGB, upright.
        splices: float64 [J], seconds at which the clock of the whole video jumps.
        pictures: seconds and small JPEGs of some of the frames, if key frames are far apart; else empty.
    """

    frames: NDArray[np.uint8]
    splices: NDArray[np.float64]
    pictures: list[tuple[float, bytes]]


class FrameDecoder:
    """Decodes one video at a time to `width` x `height` pixels, which `scaling` makes of any frame.

    It is a context manager.

    A child process starts with the first video and decodes all that follow. It ends with `close()`, or when
    the process that owns the decoder ends, even by SIGKILL.
    """

    def __init__(self, config: DecodeConfig, width: int, height: int, scaling: Scaling = Scaling()) -> None:
        self._timeout = config.timeout_s
        self._shape = (height, width, 3)
        self._options = json.dumps(
            {
                "sampling": config.sampling,
                "chunk_frames": config.chunk_frames,
                "memory_gb": config.memory_gb,
                "threads": config.threads,
                "width": width,
                "height": height,
                "scaling": asdict(scaling),
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

    def decode(self, path: str, part: int = 0, parts: int = 1) -> Iterator[DecodedChunk]:
        """Stream the sampled frames of a local video file, at most `chunk_frames` at a time.

        The chunks of all `parts` together are those of the undivided video. If a file is known to be
        damaged, or cannot be entered at every key frame, part 0 has all chunks.

        Raises:
            DecodeError: not a video ("sniff"); not readable ("open"); no frame of it can be decoded, or the
                child died or took longer than `timeout_s` for a chunk ("decode"); or a part turned out to
                be damaged, so that the undivided video must be decoded instead ("divided").
                Chunks may have been yielded before. The decoder can be used again immediately.
        """
        waiting: DecodedChunk | None = None
        for message, frames in self._ask(path, part, parts):
            if waiting is not None:
                # Only the next message shows whether it was the last chunk.
                end = "end" in message
                last, damage = end and message["last"], message["damage"] if end else ""
                yield replace(waiting, last=last, damage=waiting.damage or damage)
            if "n" in message:
                waiting = DecodedChunk(
                    index=message["index"],
                    last=False,
                    duration=message["duration"],
                    times=np.array(message["times"], np.float64),
                    edges=np.array(message["edges"], np.float64),
                    damage=message["damage"],
                    frames=frames,
                    splices=np.array(message["splices"], np.float64),
                    pictures=[(second, b64decode(text)) for second, text in message["pictures"]],
                )

    def duration(self, path: str) -> float:
        """The seconds that a local video file declares, 0 if it declares none; raises as `decode` does."""
        return float([message["duration"] for message, _ in self._ask(path, 0, 0)][-1])

    def _ask(self, path: str, part: int, parts: int) -> Iterator[tuple[dict[str, Any], NDArray[np.uint8]]]:
        """The messages of the child's answer, each with its frames; see `child`."""
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
            raise DecodeError("decode", f"{path}: {self._cause_of_death()}") from None
        finally:
            if not finished:
                self.close()

    def _request(self, request: dict[str, Any]) -> None:
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            # The child must import this package even if only the parent's sys.path leads to it.
            root = str(Path(__file__).parents[3])
            paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
            # Append mode lets the child truncate the file between videos.
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
                    # Retries at the end of a damaged file; decord's default of 10,240 takes minutes.
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

    def _cause_of_death(self) -> str:
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
