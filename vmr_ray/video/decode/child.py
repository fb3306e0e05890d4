"""The decoder's process: requests on stdin, frames on stdout, errors of native libraries on stderr.

A request is one line of JSON: `path`, and `part` of `parts`; 0 parts ask for the duration only. The
answer is a series of messages, each a big-endian uint32, that many bytes of JSON, and `n` frames of raw RGB.
The last one has `error` or `end`. The process ends when the parent closes its end of the pipe, even in the
middle of a video.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import struct
import sys
import threading
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vmr_ray.video.decode.isolation import isolate
from vmr_ray.video.decode.sniff import refusal

if TYPE_CHECKING:
    from vmr_ray.video.decode.frame_index import FrameIndex


def _send(out: BinaryIO, message: dict[str, Any], frames: bytes | memoryview = b"") -> None:
    header = json.dumps(message).encode()
    out.write(struct.pack(">I", len(header)) + header)
    out.write(frames)
    out.flush()


def _answer(out: BinaryIO, request: dict[str, Any], options: dict[str, Any]) -> None:
    """Send all messages that answer one request; an error is a message too."""
    from vmr_ray.schema import Scaling
    from vmr_ray.video.decode.frame_index import read_duration
    from vmr_ray.video.decode.picture import KeptPictures, keys_far_apart
    from vmr_ray.video.decode.reader import chunk_range, read_frames
    from vmr_ray.video.decode.sampling import Sampling

    path, parts = request["path"], request["parts"]
    stage = "sniff"
    try:
        if reason := refusal(path):
            return _send(out, {"error": reason, "stage": stage})
        stage = "open"
        if not parts:
            return _send(out, {"end": True, "duration": read_duration(path)})
        status = Path(path).stat()
        index = _index(path, status.st_size, status.st_mtime_ns)
        sampling = Sampling.parse(options["sampling"])
        plan = sampling.plan(index.starts, index.ends, index.keys)
        stage = "decode"
        size, chunk = (options["width"], options["height"]), options["chunk_frames"]
        scaling = Scaling(**options["scaling"])
        first, stop = chunk_range(index, plan, chunk, request["part"], parts)
        divided = (stop - first) * chunk < len(plan.indices)
        sent, end, damage = first, None, index.damage
        pictures = KeptPictures(index) if keys_far_apart(index) else None
        for positions, frames, damaged in read_frames(
            index, sampling, plan, *size, chunk, options["threads"], (first, stop), scaling, pictures
        ):
            if damaged and divided:
                return _send(out, {"error": damaged, "stage": "divided"})
            damage = damage or damaged
            if not len(frames):
                continue
            # A lost frame's time goes to the frame before it, or, at a chunk's end, to the next chunk's first
            # frame: no time is missing between chunks.
            edges = plan.edges[[*positions, positions[-1] + 1]]
            edges[0], end = edges[0] if end is None else end, edges[-1]
            message = {
                "n": len(frames),
                "index": sent,
                "times": plan.times[positions].tolist(),
                "edges": edges.tolist(),
                "duration": float(plan.edges[-1] - plan.edges[0]),
                "damage": damage,
                "splices": index.splices.tolist(),
                "pictures": pictures.take() if pictures else [],
            }
            _send(out, message, frames.data)
            sent += 1
        if first < stop and sent == first:
            return _send(out, {"error": f"no frame of {path} can be decoded", "stage": stage})
        last = first < stop and (not divided or stop * chunk >= len(plan.indices))
        _send(out, {"end": True, "last": last, "damage": damage})
    except BrokenPipeError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        _send(out, {"error": f"{path}: {' '.join(reason.split())[:300]}", "stage": stage})


@lru_cache(maxsize=1)
def _index(path: str, size: int, mtime: int) -> FrameIndex:
    """The index of a file. It is cached because a worker often decodes several parts of one video."""
    from vmr_ray.video.decode.frame_index import read_index

    return read_index(path)


def main() -> None:
    options = json.loads(sys.argv[1])
    # Ctrl-C reaches the whole process group, and the parent decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Native libraries that print must not print into the stream of frames.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    isolate(options["memory_gb"])
    requests: queue.Queue[dict[str, Any]] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            requests.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        request = requests.get()
        os.ftruncate(2, 0)
        _answer(out, request, options)


if __name__ == "__main__":
    main()
